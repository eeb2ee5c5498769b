"""Histories on a real node: whatever order things come in, at rest the mount is what the model says, no reader ever
misses a key or sees what never was, and what has not changed is not written.

    outcome = run(cluster, tmp_path, generate(10, 3, None), "first")

Several histories live on one node at once, in step; after each round everything has to come to rest.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fusevol.protocol.instance import Instance as Sockets
from tests.support.cluster import Client, Cluster
from tests.support.desired_tree import MARKER, Namespace, PodModel, Served, Source, VolumeSpec, differences, scan
from tests.support.histories import Fault, History, Round, SetObject, SetPod, perform
from tests.support.instance import Instance, running
from tests.support.proxy import Proxy
from tests.support.tree_reader import Expected, TreeReader

REST = 40.0  # seconds until everything has to be at rest: the agent's restart and the source's back-off may add up
STEADY = 0.3  # seconds in which nothing may change any more
CANARY = "canary"  # a Pod for `fusevol wait`, which reads everything anew whatever it waits for


@dataclass(slots=True)
class Outcome:
    """`failed` has the history (with the faults that it really saw) and what was wrong, one line each."""

    histories: int = 0
    operations: int = 0
    kills: int = 0
    outages: int = 0
    reads: int = 0
    seconds: float = 0.0
    failed: list[tuple[History, list[str]]] = field(default_factory=list)
    log: str = ""  # what fusevol logged when something was wrong

    def add(self, other: Outcome) -> None:
        self.histories += other.histories
        self.operations += other.operations
        self.kills += other.kills
        self.outages += other.outages
        self.reads += other.reads
        self.seconds += other.seconds
        self.failed += other.failed
        self.log += other.log


class _Lane:
    """One history's namespace: makes the operations at the API server and tells the model."""

    def __init__(self, api: Client, node: str, name: str) -> None:
        self.model = Namespace(name)
        self.operations = 0
        self.uids: set[str] = set()  # of all Pods that it has had at a round's end
        self._api = api
        self._node = node

    def play(self, round_: Round) -> None:
        for operation, pause in zip(round_.operations, round_.pauses, strict=True):
            time.sleep(pause)
            self.operations += 1
            perform(operation, self.model, self._api, self._node)
        self.uids |= {pod.uid for pod in self.model.pods.values()}

    def concerns(self, line: str) -> bool:
        """Whether a line of what was wrong is about this history."""
        named = re.search(rf"{re.escape(self.model.name)}(?!\d)", line)
        return named is not None or any(uid in line for uid in self.uids)

    def foresee(self, round_: Round) -> Namespace:
        """The model after the round, with all states that it will have seen; Pods to be created have no uid yet."""
        model = copy.deepcopy(self.model)
        for operation in round_.operations:
            perform(operation, model, None, self._node)
        return model


class _Run:
    """The histories of one node, in step."""

    def __init__(self, lanes: list[_Lane], canary: _Lane, instance: Instance, proxy: Proxy, reader: TreeReader) -> None:
        self.lanes = lanes
        self._canary = canary
        self._instance = instance
        self._proxy = proxy
        self._reader = reader
        self._mount = instance.mountpoint
        self._socket = Sockets(instance.runtime, instance.mountpoint)

    def round(self, rounds: Sequence[Round], fault: Fault) -> list[str]:
        """What was wrong, one line each, each with the namespace or the Pod's uid in it."""
        for lane in self.lanes:
            lane.model.begin()
        foreseen = [lane.foresee(round_) for lane, round_ in zip(self.lanes, rounds, strict=True)]
        found = self._watch(foreseen)
        with ThreadPoolExecutor(len(self.lanes)) as pool:
            playing = [pool.submit(lane.play, round_) for lane, round_ in zip(self.lanes, rounds, strict=True)]
            self._inflict(fault)
            for each in playing:
                each.result()
        for lane in self.lanes:
            lane.model.settle()
        found += self._come_to_rest()
        found += self._watch([lane.model for lane in self.lanes], settled=True)
        return found

    def _inflict(self, fault: Fault) -> None:
        time.sleep(fault.at)
        if fault.outage:
            self._proxy.refuse()
            self._proxy.drop_all()
        if fault.kill:
            self._kill_agent()
        if fault.outage:
            time.sleep(fault.outage)
            self._proxy.refuse(False)

    def _kill_agent(self) -> None:
        def pid() -> int | None:
            found: int | None = self._socket.ask_keeper({"op": "status"})["processes"]["agent"]["pid"]
            return found

        self._until(lambda: [] if pid() else ["the agent does not run"], 35.0)  # the last kill's back-off
        if (agent := pid()) is not None:
            os.kill(agent, signal.SIGKILL)

    # -- readers --------------------------------------------------------------------------------------------------

    def _watch(self, models: Sequence[Namespace], *, settled: bool = False) -> list[str]:
        """Lets the reader go on with what stays as it is, or with what it may become in the round that begins."""
        volumes: list[Expected] = []
        files: dict[Path, bytes] = {}
        before = {pod.uid for lane in self.lanes for pod in lane.model.pods.values()}
        for model in models:
            for pod, volume in model.living():
                root = self._mount / pod.path(volume)
                if pod.uid not in before:
                    continue
                if volume.marked:
                    files[root / MARKER] = pod.uid.encode()
                if volume.spec.kind == "emptyDir":
                    continue
                candidates = volume.candidates if settled else model.possible(pod, volume)
                contents = [{path: data for path, _, data in each} for each in candidates if each is not None]
                if len(contents) == len(candidates):
                    volumes.append(Expected(root, tuple(contents)))
        return [f"a reader: {violation}" for violation in self._reader.watch(volumes, files)]

    # -- rest -----------------------------------------------------------------------------------------------------

    def _come_to_rest(self) -> list[str]:
        """By itself first. Then the barrier makes sure that the agent has seen everything, so that nothing may change
        any more: what is shown where nothing resolves is what stays."""
        if found := self._until(self._differences, REST):
            return [f"not at rest after {REST:g} s: {line}" for line in found]
        goal = f"pod/{self._canary.model.name}/{CANARY}"
        answer = self._socket.ask_agent({"op": "wait", "for": goal, "timeout": 30}, timeout=35)
        if not answer["ok"]:
            return [f"fusevol wait: {answer['missing']}"]
        time.sleep(STEADY)
        if found := self._until(self._differences, REST):
            return [f"not at rest after fusevol wait: {line}" for line in found]
        self._adopt()
        time.sleep(STEADY)
        for lane in self.lanes:
            for _, volume in lane.model.living():
                volume.unchanged = volume.directory is not None
        return [f"changed at rest: {line}" for line in self._differences()]

    def _differences(self) -> list[str]:
        lanes = [*self.lanes, self._canary]
        return differences(self._mount, self._instance.state, [lane.model for lane in lanes])

    def _adopt(self) -> None:
        """What is seen now is what the next round begins with. emptyDirs get a file that must stay."""
        for lane in self.lanes:
            for pod, volume in lane.model.living():
                self._adopt_volume(pod, volume)

    def _adopt_volume(self, pod: PodModel, volume: Served) -> None:
        root = self._mount / pod.path(volume)
        if volume.spec.kind == "emptyDir":
            if not volume.marked:
                (root / MARKER).write_text(pod.uid)
                volume.marked = True
        elif root.exists():
            volume.directory = os.readlink(root / "..data")
            if len(volume.candidates) > 1:
                shown = {path: data for path, (_, data) in scan(root / "..data")[0].items()}
                volume.candidates = tuple(
                    each
                    for each in volume.candidates
                    if each is not None and {path: data for path, _, data in each} == shown
                )
        else:
            volume.candidates = (None,)

    @staticmethod
    def _until(check: Callable[[], list[str]], seconds: float) -> list[str]:
        """What is still wrong after at most so many seconds."""
        deadline = time.monotonic() + seconds
        while (found := check()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


def run(cluster: Cluster, base: Path, histories: Sequence[History], name: str) -> Outcome:
    """All of them at once on a node and a fusevol of their own, below `base`. `name` is for node and namespaces. The
    faults of a round are those of one history, each in its turn. Ends with the first round in which something was
    wrong."""
    began = time.monotonic()
    node = f"node-{name}"
    namespaces = [f"{name}-{number}" for number in range(len(histories))]
    lanes = [_Lane(cluster.admin, node, namespace) for namespace in namespaces]
    canary = _Lane(cluster.admin, node, f"{name}-{CANARY}")
    cluster.create_node(node)
    for lane in (*lanes, canary):
        cluster.create_namespace(lane.model.name)
    canary.play(_canary_round())
    outcome = Outcome(histories=len(histories))
    with (
        Proxy(cluster, f"system:node:{node}", ["system:nodes"]) as proxy,
        running(base, "--kubeconfig", cluster.node_kubeconfig(node, server=proxy.url), options=("--node", node)) as fs,
        TreeReader() as reader,
    ):
        fs.wait()
        canary.model.settle()
        together = _Run(lanes, canary, fs, proxy, reader)
        faults: list[Fault] = []
        for number in range(min(len(history.rounds) for history in histories)):
            faults.append(histories[number % len(histories)].rounds[number].fault)
            wrong = together.round([history.rounds[number] for history in histories], faults[-1])
            if wrong:
                outcome.failed = _blame(lanes, histories, faults, wrong)
                outcome.log = fs.log
                break
        outcome.reads = reader.reads
        outcome.kills = sum(fault.kill for fault in faults)
        outcome.outages = sum(fault.outage > 0 for fault in faults)
    for lane in (*lanes, canary):
        cluster.delete_namespace(lane.model.name)
    cluster.admin.delete("Node", node)
    outcome.operations = sum(lane.operations for lane in lanes)
    outcome.seconds = time.monotonic() - began
    return outcome


def _canary_round() -> Round:
    volume = VolumeSpec("configMap", (Source("configMap", "one"),))
    return Round((SetObject("ConfigMap", "one", {"a": "1"}), SetPod(CANARY, (volume,))), (0.0, 0.0))


def _blame(
    lanes: list[_Lane], histories: Sequence[History], faults: list[Fault], wrong: list[str]
) -> list[tuple[History, list[str]]]:
    """Each history that something was wrong with, up to that round; what is nobody's is everybody's."""
    found = []
    for lane, history in zip(lanes, histories, strict=True):
        lines = [line for line in wrong if lane.concerns(line) or not any(other.concerns(line) for other in lanes)]
        if lines:
            rounds = [
                msgspec.structs.replace(round_, fault=fault)
                for round_, fault in zip(history.rounds, faults, strict=False)
            ]
            found.append((History(tuple(rounds)), lines))
    return found
