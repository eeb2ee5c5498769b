"""Random histories of a node against the model of `desired_tree`: whatever order things come in, at rest the mount is
what the model says, and no reader ever misses a key.

A history is the life of one namespace, in rounds: operations at the API server, and what happens to the agent and to
the way to the API server meanwhile. `run` lets several histories live at once on one node, in step; after each round
everything has to come to rest. All is data: a history can be printed as JSON, read again (`History` by msgspec) and
run alone.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fusevol.protocol import instance as protocol
from tests.support.cluster import Client, Cluster
from tests.support.desired_tree import (
    MARKER,
    Item,
    Key,
    Namespace,
    PodModel,
    Served,
    Source,
    VolumeSpec,
    decoded,
    differences,
    scan,
)
from tests.support.instance import Instance, running
from tests.support.proxy import Proxy
from tests.support.tree_reader import Expected, TreeReader

REST = 40.0  # seconds until everything has to be at rest: the agent's restart and the source's back-off may add up
STEADY = 0.3  # seconds in which nothing may change any more

# -- operations -------------------------------------------------------------------------------------------------


class SetObject(msgspec.Struct, frozen=True, tag="set", omit_defaults=True):
    """Creates or replaces a ConfigMap or Secret. An immutable one, or with `anew` any, is deleted first."""

    kind: str
    name: str
    data: dict[str, str]
    binary: dict[str, str] = {}  # base64
    immutable: bool = False
    anew: bool = False


class DeleteObject(msgspec.Struct, frozen=True, tag="delete"):
    kind: str
    name: str


class SetPod(msgspec.Struct, frozen=True, tag="pod", omit_defaults=True):
    """Creates a Pod; one of this name is deleted first."""

    name: str
    volumes: tuple[VolumeSpec, ...]
    labels: dict[str, str] = {}
    group: int | None = None


class LabelPod(msgspec.Struct, frozen=True, tag="label"):
    name: str
    labels: dict[str, str]


class EndPod(msgspec.Struct, frozen=True, tag="end"):
    name: str
    phase: str


class DeletePod(msgspec.Struct, frozen=True, tag="delete-pod"):
    name: str


Operation = SetObject | DeleteObject | SetPod | LabelPod | EndPod | DeletePod


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens `at` seconds after the round has begun: the agent is killed, the API server cannot be reached for
    `outage` seconds (all connections are cut, the agent dies in the middle of it), or both."""

    kill: bool = False
    outage: float = 0.0
    at: float = 0.0


class Round(msgspec.Struct, frozen=True, omit_defaults=True):
    """`pauses` in seconds: before each operation."""

    operations: tuple[Operation, ...]
    pauses: tuple[float, ...]
    fault: Fault = Fault()


class History(msgspec.Struct, frozen=True):
    rounds: tuple[Round, ...]

    def __str__(self) -> str:
        return msgspec.json.encode(self).decode()


# -- what hypothesis draws from ---------------------------------------------------------------------------------

OBJECTS = [("ConfigMap", "one"), ("ConfigMap", "two"), ("Secret", "one"), ("Secret", "two")]
KEYS = ["a", "b", "c.txt", "d"]
PATHS = ["a", "b", "d/x", "d/y", "e/f/z", "k"]  # beside a key `d`, `d/x` is a file below a file
FIELDS = ["metadata.labels", "metadata.labels['app']", "metadata.name", "metadata.uid"]
MODES = [None, None, None, 0o400, 0o600, 0o755]
PODS = ["p", "q"]

_words = st.sampled_from(["", "1", "2", "three\n", "x" * 5000, "ä→🎉"])
_labels = st.dictionaries(st.sampled_from(["app", "example.com/tier"]), st.sampled_from(["x", "y-1", ""]))
_pods = st.sampled_from(PODS)


@st.composite
def _set_object(draw: st.DrawFn) -> SetObject:
    kind, name = draw(st.sampled_from(OBJECTS))
    data = draw(st.dictionaries(st.sampled_from(KEYS), _words, max_size=4))
    binary = draw(st.dictionaries(st.sampled_from(KEYS), st.sampled_from([b"\xff\x00", b"\x80" * 100])))
    rare = draw(st.integers(0, 9))
    return SetObject(
        kind,
        name,
        {key: value for key, value in data.items() if key not in binary},
        {key: base64.b64encode(value).decode() for key, value in binary.items()},
        immutable=rare == 0,
        anew=rare == 1,
    )


@st.composite
def _source(draw: st.DrawFn, paths: list[str], kind: str) -> Source:
    """Takes the paths of its items from `paths`: the API server wants each of them once in a volume."""
    count = draw(st.integers(0, min(3, len(paths)))) if kind != "downwardAPI" else min(2, len(paths))
    keys = FIELDS if kind == "downwardAPI" else KEYS
    items = tuple(
        Item(draw(st.sampled_from(keys)), paths.pop(draw(st.integers(0, len(paths) - 1))), draw(st.sampled_from(MODES)))
        for _ in range(count)
    )
    if kind == "downwardAPI":
        return Source("downwardAPI", items=items)
    name = draw(st.sampled_from(["one", "two"]))
    return Source("configMap" if kind == "configMap" else "secret", name, items, draw(st.booleans()))


@st.composite
def _volume(draw: st.DrawFn) -> VolumeSpec:
    kind = draw(st.sampled_from(["configMap", "secret", "projected", "projected", "downwardAPI", "emptyDir"]))
    paths = list(PATHS)
    if kind == "projected":
        kinds = draw(st.lists(st.sampled_from(["configMap", "secret", "downwardAPI"]), min_size=1, max_size=3))
    else:
        kinds = [] if kind == "emptyDir" else [kind]
    sources = tuple(draw(_source(paths, each)) for each in kinds)
    mode = draw(st.sampled_from(MODES)) if sources else None
    return VolumeSpec(kind, sources, mode, mounted=draw(st.integers(0, 9)) != 0)  # type: ignore[arg-type]


_set_pod = st.builds(
    SetPod,
    name=_pods,
    volumes=st.lists(_volume(), min_size=1, max_size=4).map(tuple),
    labels=_labels,
    group=st.sampled_from([None, None, 0, 1234]),
)
_operation = st.one_of(  # changes of objects are what most of it is about
    _set_object(),
    _set_object(),
    _set_object(),
    st.builds(lambda key: DeleteObject(*key), st.sampled_from(OBJECTS)),
    _set_pod,
    st.builds(LabelPod, _pods, _labels),
    st.builds(DeletePod, _pods),
    st.builds(EndPod, _pods, st.sampled_from(["Succeeded", "Failed"])),
)
_fault = st.one_of(
    st.just(Fault()),
    st.builds(Fault, kill=st.just(True), at=st.sampled_from([0.0, 0.02, 0.1])),
    st.builds(Fault, outage=st.sampled_from([0.05, 0.3, 1.0]), at=st.sampled_from([0.0, 0.05])),
    st.builds(Fault, kill=st.just(True), outage=st.sampled_from([0.05, 0.3, 1.0]), at=st.sampled_from([0.0, 0.05])),
)


@st.composite
def histories(draw: st.DrawFn, rounds: int) -> History:
    """The first round makes objects and Pods, so that the others have something to change."""
    found = []
    for number in range(rounds):
        first = [draw(_set_object()), draw(_set_object()), draw(_set_pod), draw(_set_pod)] if number == 0 else []
        operations = [*first, *draw(st.lists(_operation, min_size=1, max_size=5))]
        pauses = tuple(draw(st.sampled_from([0.0, 0.0, 0.01, 0.05])) for _ in operations)
        found.append(Round(tuple(operations), pauses, draw(_fault)))
    return History(tuple(found))


def generate(count: int, rounds: int, number: int | None) -> list[History]:
    """`count` histories, the same ones for the same seed `number`; None: always the same ones."""
    found: list[History] = []

    @settings(
        max_examples=count,
        derandomize=number is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(histories(rounds))
    def collect(history: History) -> None:
        found.append(history)

    (collect if number is None else seed(number)(collect))()
    return found[:count]


# -- running ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """`failed` has the history (with the faults that it really saw) and what was wrong, one line each."""

    histories: int = 0
    operations: int = 0
    reads: int = 0
    seconds: float = 0.0
    failed: list[tuple[History, list[str]]] = field(default_factory=list)
    log: str = ""  # what fusevol logged when something was wrong

    def add(self, other: Outcome) -> None:
        self.histories += other.histories
        self.operations += other.operations
        self.reads += other.reads
        self.seconds += other.seconds
        self.failed += other.failed
        self.log += other.log


class _Lane:
    """One history's namespace: makes the operations at the API server and tells the model."""

    def __init__(self, api: Client, node: str, name: str) -> None:
        self.model = Namespace(name)
        self.operations = 0
        self._api = api
        self._node = node

    def play(self, round_: Round) -> None:
        for operation, pause in zip(round_.operations, round_.pauses, strict=True):
            time.sleep(pause)
            self.operations += 1
            perform(operation, self.model, self._api, self._node)

    def foresee(self, round_: Round) -> Namespace:
        """The model after the round, with all states that it will have seen; Pods to be created have no uid yet."""
        model = copy.deepcopy(self.model)
        for operation in round_.operations:
            perform(operation, model, None, self._node)
        return model


def perform(operation: Operation, model: Namespace, api: Client | None, node: str) -> None:
    """Does the operation, as far as it makes sense, and tells the model of it. Without `api` it is only thought of."""
    match operation:
        case SetObject(kind, name):
            _set(operation, model, api)
        case DeleteObject(kind, name):
            key = _key(kind, name)
            if key in model.objects:
                if api:
                    api.delete(kind, name, model.name)
                model.delete_object(key)
        case SetPod(name, volumes, labels, group):
            if name in model.pods:
                perform(DeletePod(name), model, api, node)
            created = api.create(_pod(operation, node), model.name) if api else {"metadata": {"uid": ""}}
            model.create_pod(name, created["metadata"]["uid"], labels, group, volumes)
        case LabelPod(name, labels) if name in model.pods:
            if api:
                old = dict.fromkeys(model.pods[name].labels.keys() - labels.keys())
                api.patch("Pod", name, {"metadata": {"labels": {**old, **labels}}}, model.name)
            model.label_pod(name, labels)
        case EndPod(name, phase) if name in model.pods and not model.pods[name].ended:
            if api:
                api.patch("Pod", name, {"status": {"phase": phase}}, model.name, subresource="status")
            model.end_pod(name)
        case DeletePod(name) if name in model.pods:
            if api:
                api.delete("Pod", name, model.name, grace_seconds=0)
            model.delete_pod(name)


def _set(operation: SetObject, model: Namespace, api: Client | None) -> None:
    kind, name = operation.kind, operation.name
    key = _key(kind, name)
    values = {"data": operation.data, "binaryData": operation.binary}
    if kind == "Secret":
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in operation.data.items()}
        values = {"data": encoded | operation.binary}
    metadata = {"name": name, "namespace": model.name}
    obj = {"kind": kind, "metadata": metadata, "immutable": operation.immutable, **values}
    if key in model.objects and (operation.anew or key in model.immutable):
        perform(DeleteObject(kind, name), model, api, "")
    if api:
        (api.replace if key in model.objects else api.create)(obj)
    model.set_object(key, decoded(operation.data, operation.binary), operation.immutable)


def _key(kind: str, name: str) -> Key:
    return {"ConfigMap": "configMap", "Secret": "secret"}[kind], name


def _pod(operation: SetPod, node: str) -> dict[str, object]:
    volumes = [(f"v{number}", volume) for number, volume in enumerate(operation.volumes)]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name, volume in volumes if volume.mounted]
    security = {} if operation.group is None else {"securityContext": {"fsGroup": operation.group}}
    return {
        "kind": "Pod",
        "metadata": {"name": operation.name, "labels": operation.labels},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "busybox", "volumeMounts": mounts}],
            "volumes": [{"name": name, **volume.api()} for name, volume in volumes],
            **security,
        },
    }


class _Run:
    """The histories of one node, in step."""

    def __init__(
        self, lanes: list[_Lane], instance: Instance, proxy: Proxy, reader: TreeReader, canary: str
    ) -> None:
        self.lanes = lanes
        self._instance = instance
        self._proxy = proxy
        self._reader = reader
        self._canary = canary
        self._mount = instance.mountpoint
        self._socket = protocol.Instance(instance.runtime, instance.mountpoint)

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
        answer = self._socket.ask_agent({"op": "wait", "for": self._canary, "timeout": 30}, timeout=35)
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
        return differences(self._mount, self._instance.state, [lane.model for lane in self.lanes] + [self._canaries])

    @property
    def _canaries(self) -> Namespace:
        raise NotImplementedError

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


_ = (contextlib, json, Iterator)
