"""A part of fusevol is killed: what readers see meanwhile, and that the rest puts it right."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from fusevol.system.mounts import find_mount
from tests.support import processes
from tests.support.cluster import Cluster
from tests.support.instance import COMMAND, Instance, eventually, running
from tests.support.node import TIMESTAMPED, Node, Pod, Tenant, current
from tests.support.proxy import Proxy

pytestmark = pytest.mark.root

VOLUMES: dict[str, dict[str, Any]] = {
    "c": {"configMap": {"name": "settings"}},
    "s": {"secret": {"secretName": "credentials"}},
    "e": {"emptyDir": {}},
}


def make_objects(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    tenant.secret("credentials", {"password": "geheim"})


@pytest.fixture
def pod(cluster: Cluster, node: str, namespace: str, tmp_path: Path) -> Iterator[Pod]:
    """All of VOLUMES are served."""
    with Node(cluster, node, tmp_path) as served:
        tenant = served.tenant(namespace)
        make_objects(tenant)
        pod = tenant.pod("web", VOLUMES)
        (pod.path("e") / "data").write_text("kept")
        yield pod


def is_whole(pod: Pod) -> bool:
    return (
        (pod.path("c") / "a").read_text() == "1"
        and (pod.path("s") / "password").read_text() == "geheim"
        and (pod.path("e") / "data").read_text() == "kept"
    )


# -- the agent ----------------------------------------------------------------------------------------------------

NODES = 5
ROUNDS = 4
"""Of each node: the keeper starts an agent again after 0, 0.5, 1 and 2 s."""

KEYS = 20


def contents(number: int) -> dict[str, str]:
    """Two keys that must match, and many that come and go: most of an update is their links."""
    others = {f"{'even' if number % 2 == 0 else 'odd'}-{index}": "x" for index in range(KEYS)}
    return {"a": str(number), "b": str(number), **others}


class Updates:
    """A thread that changes the ConfigMap `settings` as fast as it can, but for pauses."""

    def __init__(self, tenant: Tenant) -> None:
        self.number = 0
        self._tenant = tenant
        self._config_map = tenant.config_map("settings", contents(0))
        self._going = threading.Event()
        self._changing = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._over:
            self._going.wait(0.05)
            with self._changing:
                if self._going.is_set():
                    self.number += 1
                    self._config_map["data"] = contents(self.number)
                    self._config_map = self._tenant.node.cluster.admin.replace(self._config_map)

    def go_on(self) -> None:
        self._going.set()

    def pause(self) -> None:
        """Returns when the last change has been made."""
        self._going.clear()
        with self._changing:
            pass

    @property
    def goal(self) -> str:
        version = self._config_map["metadata"]["resourceVersion"]
        return f"object=ConfigMap/{self._tenant.namespace}/settings@{version}"

    def stop(self) -> None:
        self._over = True
        self._thread.join(10)


def shown_number(volume: Path) -> int:
    """Which version the volume shows; AssertionError where it shows anything but a whole one."""
    data = os.open(volume / "..data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = os.listdir(data)
        found = {}
        for name in names:
            with open(os.open(name, os.O_RDONLY, dir_fd=data)) as file:
                found[name] = file.read()
    finally:
        os.close(data)
    assert found == contents(int(found["a"]))
    return int(found["a"])


def test_an_agent_killed_in_the_middle_of_an_update(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """20 deaths at random moments: the volume shows the old or the new version, whole; the next agent finishes what
    was begun and removes what was left; nothing else is touched."""
    rng = random.Random(7391)
    interrupted = 0
    with ExitStack() as stack:
        nodes = [Node(cluster, f"crashing-{n}", tmp_path / str(n)) for n in range(NODES)]
        for node in nodes:
            stack.enter_context(node)
        tenant = nodes[0].tenant(namespace)
        updates = Updates(tenant)
        stack.callback(updates.stop)
        tenant.config_map("other", {"k": "v"})
        tenant.secret("credentials", {"password": "geheim"})
        volumes = {**VOLUMES, "other": {"configMap": {"name": "other"}}}
        pods = [node.tenant(namespace).pod(f"web-{n}", volumes, wait=False) for n, node in enumerate(nodes)]
        for node, pod in zip(nodes, pods, strict=True):
            node.instance.wait(pod.goal)
        untouched = [inodes(pod, ["s", "e", "other"]) for pod in pods]
        for _ in range(ROUNDS):
            start = updates.number
            updates.go_on()
            eventually(lambda start=start: all(shown_number(pod.path("c")) > start for pod in pods), timeout=20)
            agents = [agent_of(node.instance) for node in nodes]
            for agent in agents:
                assert agent is not None
                time.sleep(rng.uniform(0, 0.03))
                os.kill(agent, signal.SIGKILL)
            updates.pause()
            for node, pod, agent in zip(nodes, pods, agents, strict=True):
                eventually(lambda node=node, agent=agent: agent_of(node.instance) != agent)
                number = shown_number(pod.path("c"))
                assert start < number <= updates.number
                # nobody writes now: the links lead to what `..data` shows
                assert (pod.path("c") / "a").read_text() == (pod.path("c") / "b").read_text() == str(number)
                interrupted += links(pod.path("c")) != sorted(contents(number))
            for pod, before in zip(pods, untouched, strict=True):
                volume = pod.path("c")
                eventually(lambda volume=volume: shown_number(volume) == updates.number, timeout=20)
                eventually(lambda volume=volume: is_settled(volume), timeout=5)
                assert links(volume) == sorted(contents(updates.number))
                assert inodes(pod, ["s", "e", "other"]) == before
        for node in nodes:
            node.instance.wait(updates.goal)
            told = node.instance.status()["processes"]
            assert (told["agent"]["restarts"], told["server"]["restarts"]) == (ROUNDS, 0)
    assert interrupted, "no agent died between two links: this test has tried nothing"


def agent_of(instance: Instance) -> int | None:
    """The agent's pid; None where there is none. (The same as in `status`, but at once.)"""
    keeper = instance.keeper_pid
    for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        with suppress(OSError):
            if b"fusevol.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def inodes(pod: Pod, volumes: list[str]) -> dict[str, int]:
    paths = [path for name in volumes for path in (pod.path(name), *sorted(pod.path(name).rglob("*")))]
    return {str(path): path.lstat().st_ino for path in paths}


def links(volume: Path) -> list[str]:
    return sorted(name for name in os.listdir(volume) if not name.startswith(".."))


def is_settled(volume: Path) -> bool:
    """No leftovers of an update."""
    internal = {name for name in os.listdir(volume) if name.startswith("..")}
    return internal == {"..data", current(volume)} and TIMESTAMPED.fullmatch(current(volume)) is not None


def test_what_happens_while_the_agent_is_dead_is_made_up_for(pod: Pod) -> None:
    """A change, a new Pod, a deleted one. `status` tells the last known state and says that it is old."""
    tenant = Tenant(pod.node, str(pod.object["metadata"]["namespace"]))
    instance = tenant.instance
    going = tenant.pod("going", {"e": {"emptyDir": {}}})
    agent = instance.pid("agent")
    os.kill(agent, signal.SIGSTOP)
    tenant.patch("ConfigMap", "settings", data={"a": "2"})
    tenant.delete("Pod", "going", grace_seconds=0)
    coming = tenant.pod("coming", VOLUMES, wait=False)
    os.kill(agent, signal.SIGKILL)
    assert (pod.path("c") / "a").read_text() == "1"
    status = eventually(lambda: (told := instance.status())["stale"] and told)
    assert {volume["name"] for volume in status["volumes"] if volume["podUID"] == pod.uid} == set(VOLUMES)
    instance.wait()
    assert instance.status()["stale"] is False
    assert (pod.path("c") / "a").read_text() == (coming.path("c") / "a").read_text() == "2"
    assert not going.directory.exists()
    assert not going.backing("e").exists()
    assert (pod.path("e") / "data").read_text() == "kept"


# -- the server ---------------------------------------------------------------------------------------------------


def test_the_servers_death_is_an_error_at_once_and_everything_comes_back(pod: Pod) -> None:
    instance = pod.node.instance
    with (pod.path("s") / "password").open("rb", buffering=0) as opened:
        began = time.monotonic()
        instance.kill("server")
        first = eventually(lambda: errno_of_read(opened))
        assert first in (errno.ENOTCONN, errno.ECONNABORTED)  # the latter: the request was under way
        assert errno_of_read(opened) == errno.ENOTCONN
        assert time.monotonic() - began < 10, "a hang"
    eventually(lambda: is_whole(pod))
    instance.wait()
    assert is_whole(pod)
    status = instance.status()
    assert status["processes"]["server"]["restarts"] == 1
    assert status["processes"]["agent"]["restarts"] == 0
    assert "the server died (SIGKILL)" in instance.log
    assert {volume["phase"] for volume in status["volumes"]} == {"Mounted"}
    tenant = Tenant(pod.node, str(pod.object["metadata"]["namespace"]))
    instance.wait(tenant.patch("ConfigMap", "settings", data={"a": "2"}))
    assert (pod.path("c") / "a").read_text() == "2"


def errno_of_read(file: IO[bytes]) -> int:
    """0 if it can be read."""
    try:
        os.pread(file.fileno(), 1, 0)
    except OSError as error:
        return error.errno or 0
    return 0


def test_without_an_api_server_a_new_server_has_the_empty_dirs_only(
    cluster: Cluster, node: str, namespace: str, proxy: Proxy, tmp_path: Path
) -> None:
    """Contents are nowhere else: what docs/operations.md says of this engine."""
    with Node(cluster, node, tmp_path, server=proxy.url) as served:
        tenant, instance = served.tenant(namespace), served.instance
        make_objects(tenant)
        pod = tenant.pod("web", VOLUMES)
        (pod.path("e") / "data").write_text("kept")
        proxy.refuse()
        instance.kill("server")
        eventually(lambda: (pod.path("e") / "data").read_text() == "kept")
        assert not pod.path("s").exists()
        phases = {"c": "Pending", "s": "Pending", "e": "Mounted"}
        eventually(lambda: {told["name"]: told["phase"] for told in instance.status()["volumes"]} == phases)
        assert "the API server cannot be reached" in instance.run("wait", "--timeout", "1", check=False).stderr
        proxy.refuse(False)
        instance.wait()
        assert is_whole(pod)


def test_server_and_agent_die_together(pod: Pod) -> None:
    instance = pod.node.instance
    for victim in (instance.pid("server"), instance.pid("agent")):
        os.kill(victim, signal.SIGKILL)
    eventually(lambda: is_whole(pod), timeout=20)
    instance.wait()
    assert {name: told["restarts"] for name, told in instance.status()["processes"].items()} == {
        "keeper": 0,
        "server": 1,
        "agent": 1,
    }


# -- the keeper ---------------------------------------------------------------------------------------------------


def test_without_its_keeper_everything_is_readable_and_can_be_cleared_away(pod: Pod) -> None:
    instance = pod.node.instance
    server, agent = instance.pid("server"), instance.pid("agent")
    os.kill(instance.keeper_pid, signal.SIGKILL)
    instance.exit_code()
    eventually(lambda: agent not in processes.children())
    assert is_whole(pod)
    (pod.path("e") / "more").write_text("written")
    instance.run("unmount")
    assert find_mount(instance.mountpoint) is None
    eventually(lambda: server not in processes.children())
    instance.start()
    instance.wait()
    assert is_whole(pod)
    assert (pod.path("e") / "more").read_text() == "written"


# -- the mount ----------------------------------------------------------------------------------------------------


def test_a_mount_that_somebody_detached_is_not_taken_for_served(pod: Pod) -> None:
    """`umount -l`: whoever comes now finds an empty directory. Who has a volume mounted keeps it."""
    instance = pod.node.instance
    bound = instance.mountpoint.parent / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", pod.path("c"), bound], check=True)
    try:
        subprocess.run(["umount", "--lazy", instance.mountpoint], check=True)
        refused = instance.run("wait", "--timeout", "1", check=False)
        assert refused.returncode == 1
        assert "the mount is not at its place" in refused.stderr
        assert (bound / "a").read_text() == "1"
    finally:
        subprocess.run(["umount", bound], check=True)


# -- memory that cannot be locked ---------------------------------------------------------------------------------


@contextmanager
def manifests(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    (directory / "nothing.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n")
    yield directory
    shutil.rmtree(directory)


UNPRIVILEGED = ["prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--"]


def test_a_lock_that_is_required_and_impossible_is_refused(tmp_path: Path) -> None:
    instance = Instance(tmp_path)
    with manifests(tmp_path / "manifests") as source:
        options = ["--manifests", source, "--state-dir", instance.state, "--runtime-dir", instance.runtime]
        command = [*UNPRIVILEGED, *COMMAND, "mount", instance.mountpoint, *options, "--require-locked-memory"]
        refused = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 4
    assert "memory cannot be locked: mlockall: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert find_mount(instance.mountpoint) is None
    assert list(instance.runtime.iterdir()) == []


def test_memory_is_locked_where_it_must_be(tmp_path: Path) -> None:
    options = ("--require-locked-memory",)
    with (
        manifests(tmp_path / "manifests") as source,
        running(tmp_path, "--manifests", source, options=options) as instance,
    ):
        instance.wait()
        status = instance.status()
    assert status["locked"] is True
    assert all(status["processes"][name]["lockedBytes"] > 1 << 20 for name in ("server", "agent"))
