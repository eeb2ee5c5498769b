"""What inotify watchers see of a volume: the modifying events of a real kubelet 1.36.2, in its order (recorded on ext4
for a ConfigMap and on tmpfs for a Secret: KUBELET-MEASURED.md 2), and what programs make of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import watchdog.events
import watchdog.observers
import watchfiles

from fusevol.protocol.instance import Instance as Sockets
from tests.support import containers
from tests.support.containers import Container, Mount
from tests.support.inotify import Lines, Watch
from tests.support.instance import Instance, eventually, running
from tests.system.fsnotify import watcher

pytestmark = pytest.mark.root

# -- as recorded --------------------------------------------------------------------------------------------------

PUBLISHED = [
    "..NEW1 CREATE,ISDIR",
    "..NEW1 ATTRIB,ISDIR",
    "..data_tmp CREATE",
    "..data_tmp MOVED_FROM",
    "..data MOVED_TO",
]
VALUE_CHANGED = [*PUBLISHED, "..OLD DELETE,ISDIR"]
KEY_ADDED_AND_REMOVED = [*PUBLISHED, "added CREATE", "gone DELETE", "..OLD DELETE,ISDIR"]
OF_A_FILE = ["ATTRIB", "DELETE_SELF"]
OF_DATA = ({"a DELETE", "b DELETE", "gone DELETE"}, 3, "DELETE_SELF")  # the files in any order, as readdir has them
NOTHING: list[str] = []

REMOVED = 15.0  # seconds: the old version goes a second after the update
QUIET = 1.3  # seconds without an event: longer than an old version stays

FIRST = {"a": "1", "b": "2", "gone": "3"}
CHANGED = {"a": "one", "b": "2", "gone": "3"}
OTHER_KEYS = {"a": "1", "b": "2", "added": "4"}

VOLUMES: dict[str, dict[str, Any]] = {
    "v": {"configMap": {"name": "objects"}},
    "w": {"secret": {"secretName": "objects"}},
    "x": {"configMap": {"name": "objects", "items": [{"key": "b", "path": "b"}, {"key": "a", "path": "d/e/a"}]}},
}


class Pod:
    """A Pod with a volume of each kind, and the ConfigMap and the Secret that they show, in a namespace of its own."""

    def __init__(self, instance: Instance, manifests: Path, namespace: str) -> None:
        self._manifests = manifests
        self._namespace = namespace
        self._sockets = Sockets(instance.runtime, instance.mountpoint)
        self.set(FIRST)
        self._write("pod", self._pod())
        self.synced()
        self._root = instance.mountpoint / "by-name" / namespace / "pod" / "volumes"

    def volume(self, name: str) -> Path:
        plugin = "secret" if "secret" in VOLUMES[name] else "configmap"
        return (self._root / f"kubernetes.io~{plugin}" / name).resolve()

    def set(self, data: dict[str, str], annotation: str = "") -> None:
        metadata = {"name": "objects", "namespace": self._namespace, "annotations": {"note": annotation}}
        objects = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data},
        ]
        self._write("objects", {"apiVersion": "v1", "kind": "List", "items": objects})

    def synced(self) -> None:
        """Returns when all that was written so far is shown."""
        goal = {"op": "wait", "for": f"pod/{self._namespace}/pod", "timeout": 30}
        answer = self._sockets.ask_agent(goal, timeout=35)
        assert answer["ok"], answer

    def remove(self) -> None:
        for path in self._manifests.glob(f"{self._namespace}-*"):
            path.unlink()

    def _write(self, name: str, obj: dict[str, Any]) -> None:
        path = self._manifests / f"{self._namespace}-{name}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(obj))
        new.rename(path)

    def _pod(self) -> dict[str, Any]:
        mounts = [{"name": name, "mountPath": f"/{name}"} for name in VOLUMES]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", "namespace": self._namespace},
            "spec": {
                "containers": [{"name": "main", "image": "busybox", "volumeMounts": mounts}],
                "volumes": [{"name": name, **source} for name, source in VOLUMES.items()],
            },
        }


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    base = tmp_path_factory.mktemp("inotify")
    (base / "manifests").mkdir()
    with running(base, "--manifests", base / "manifests") as instance:
        instance.wait()
        yield instance


@pytest.fixture
def pod(instance: Instance) -> Iterator[Pod]:
    pod = Pod(instance, instance.mountpoint.parent / "manifests", f"inotify-{next(_numbers)}")
    yield pod
    pod.remove()


# -- inotifywait --------------------------------------------------------------------------------------------------


CHANGES = {
    "a value": (CHANGED, VALUE_CHANGED, VALUE_CHANGED, OF_A_FILE, OF_A_FILE),
    # x has not changed, its items are what they were; the content of v's `a` is the same, its version is another
    "keys": (OTHER_KEYS, KEY_ADDED_AND_REMOVED, NOTHING, OF_A_FILE, NOTHING),
    "nothing": (FIRST, NOTHING, NOTHING, NOTHING, NOTHING),
}


@pytest.mark.parametrize("from_where", ["host", "bind"])
@pytest.mark.parametrize("change", CHANGES)
def test_watchers_of_volumes_and_files(pod: Pod, tmp_path: Path, from_where: str, change: str) -> None:
    """A file is followed through the links to the version that is there: it is never modified, it goes."""
    data, whole, items, file, item = CHANGES[change]
    wanted = {"v": whole, "w": whole, "x": items, "v/a": file, "w/a": file, "x/d/e/a": item}
    with ExitStack() as stack:
        watches: dict[str, Watch] = {}
        for path in wanted:
            volume, _, name = path.partition("/")
            bound_at = (tmp_path / path.replace("/", "-")) if from_where == "bind" else None
            if bound_at:
                bound_at.mkdir()
            watches[path] = stack.enter_context(Watch(pod.volume(volume), name, bound_at=bound_at))
        pod.set(data, annotation="changed")
        pod.synced()
        if any(wanted.values()):
            eventually(lambda: all(len(watches[path].modifying()) >= len(wanted[path]) for path in wanted), REMOVED)
        time.sleep(QUIET)
        assert {path: watch.modifying() for path, watch in watches.items()} == wanted


@pytest.mark.parametrize("change", CHANGES)
def test_watchers_of_the_data_link(pod: Pod, change: str) -> None:
    """Followed to the version that is there: its files go, then it goes."""
    data, events, *_ = CHANGES[change]
    with Watch(pod.volume("v"), "..data") as disk, Watch(pod.volume("w"), "..data") as memory:
        pod.set(data, annotation="changed")
        pod.synced()
        if not events:
            time.sleep(QUIET)
            assert disk.modifying() + memory.modifying() == []
            return
        for watch in (disk, memory):
            eventually(lambda watch=watch: len(watch.modifying()) >= 4, REMOVED)
            *files, last = watch.modifying()
            assert (set(files), len(files), last) == OF_DATA


def test_an_agent_that_starts_anew_raises_no_event(instance: Instance, pod: Pod) -> None:
    with Watch(pod.volume("v")) as disk, Watch(pod.volume("w")) as memory, Watch(pod.volume("v"), "a") as file:
        killed = instance.kill("agent")
        eventually(lambda: instance.status()["processes"]["agent"]["pid"] not in (None, killed), 30)
        pod.synced()
        time.sleep(QUIET)
        assert disk.modifying() + memory.modifying() + file.modifying() == []


def test_updates_one_after_the_other(pod: Pod) -> None:
    """Each is seen whole; what an update replaced may go later than the next one comes."""
    with Watch(pod.volume("v")) as watch:
        for number in range(3):
            pod.set({**FIRST, "a": f"number {number}"})
            pod.synced()
        eventually(lambda: sum("DELETE" in event for event in watch.modifying()) == 3, REMOVED)
        events = [event for event in watch.modifying() if "DELETE" not in event]
        assert events == [event.replace("NEW1", f"NEW{number}") for number in (1, 2, 3) for event in PUBLISHED]


# -- containers ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(containers.available()), reason=containers.available())
def test_watchers_in_a_container(pod: Pod, tmp_path: Path) -> None:
    mounts = [Mount(pod.volume(name), f"/{name}", readonly=True) for name in ("v", "w")]
    with Container(tmp_path / "c", mounts) as container:
        inside = Path(f"/proc/{container.pid}/root")
        with Watch(inside / "v") as disk, Watch(inside / "w") as memory, Watch(inside / "v" / "a") as file:
            pod.set({**OTHER_KEYS, "a": "one"})
            eventually(lambda: all(len(watch.modifying()) >= 8 for watch in (disk, memory)), REMOVED)
            assert disk.modifying() == memory.modifying() == KEY_ADDED_AND_REMOVED
            assert file.modifying() == OF_A_FILE
        assert container.read("/v/a") == container.read("/w/a") == "one"


# -- programs -----------------------------------------------------------------------------------------------------


class _Handler(watchdog.events.FileSystemEventHandler):
    """Reads the file when `..data` has become another."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen: list[str] = []

    def on_moved(self, event: watchdog.events.FileSystemEvent) -> None:
        if os.path.basename(event.dest_path) == "..data":
            self.seen.append(self.file.read_text())


def contents(count: int) -> Iterator[tuple[dict[str, str], str]]:
    for number in range(count):
        yield {**FIRST, "a": f"number {number}"}, f"number {number}"


@pytest.mark.parametrize("volume", ["v", "w"])
def test_watchdog(pod: Pod, volume: str) -> None:
    handler = _Handler(pod.volume(volume) / "a")
    observer = watchdog.observers.Observer()
    observer.schedule(handler, str(pod.volume(volume)))
    observer.start()
    try:
        for number, (data, _) in enumerate(contents(3), 1):
            pod.set(data)
            eventually(lambda number=number: len(handler.seen) >= number)
    finally:
        observer.stop()
        observer.join(10)
    assert handler.seen == [content for _, content in contents(3)]


@pytest.mark.parametrize("volume", ["v", "w"])
def test_watchfiles(pod: Pod, volume: str) -> None:
    root = pod.volume(volume)
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        # ours alone is watched: without debounce's long default a batch is an update
        for changes in watchfiles.watch(root, stop_event=stop, debounce=50, watch_filter=None, recursive=False):
            published = any(os.path.basename(path) == "..data" for _, path in changes)
            seen.extend([(root / "a").read_text()] if published else [])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        time.sleep(0.5)  # it does not tell when it watches
        for data, content in contents(3):
            pod.set(data)
            eventually(lambda content=content: content in seen)
    finally:
        stop.set()
        thread.join(10)
    assert [content for content, _ in itertools.groupby(seen)] == [content for _, content in contents(3)]


@pytest.mark.parametrize("volume", ["v", "w"])
def test_a_go_program_with_fsnotify(pod: Pod, volume: str) -> None:
    """Viper's way. A file of an `items` path (`d/e/a`) it would never see change, on a real kubelet neither."""
    with Lines([watcher(), pod.volume(volume) / "a"], "watching") as program:
        for number, (data, _) in enumerate(contents(5), 1):
            pod.set(data)
            eventually(lambda number=number: len(program.lines) > number)
        time.sleep(QUIET)  # the removals tell it nothing new
        assert program.lines[1:] == [f'config "{content}"' for _, content in contents(5)]


@pytest.mark.skipif(bool(containers.available()), reason=containers.available())
def test_a_go_program_with_fsnotify_in_a_container(pod: Pod, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    shutil.copy(watcher(), tools / "watch")
    mounts = [Mount(pod.volume("v"), "/v", readonly=True), Mount(tools, "/tools", readonly=True)]
    with Container(tmp_path / "c", mounts) as container:
        # its input stays open for as long as the one of the container's first process
        container.exec("sh", "-c", "/tools/watch /v/a </proc/1/fd/0 >/seen 2>&1 &")
        seen = tmp_path / "c" / "root" / "seen"
        eventually(lambda: "watching" in seen.read_text())
        for number, (data, _) in enumerate(contents(3), 1):
            pod.set(data)
            eventually(lambda number=number: len(seen.read_text().splitlines()) > number)
        assert seen.read_text().splitlines()[1:] == [f'config "{content}"' for _, content in contents(3)]
