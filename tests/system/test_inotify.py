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
from pathlib import Path
from typing import Any

import pytest
import watchdog.events
import watchdog.observers
import watchfiles

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
OF_DATA = ({"a DELETE", "b DELETE", "gone DELETE"}, "DELETE_SELF")  # the files in any order, as readdir has them
NOTHING: list[str] = []

REMOVED_WITHIN = 10.0  # seconds: the old version goes a second after the update
QUIET = 1.5  # seconds without an event: longer than an old version stays

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
        self._instance = instance
        self._manifests = manifests
        self._namespace = namespace
        self.set(FIRST)
        self._write("pod", self._pod())
        instance.wait(f"pod/{namespace}/pod")
        self._volumes = {
            volume["name"]: Path(volume["path"])
            for volume in instance.status()["volumes"]
            if volume["namespace"] == namespace
        }

    def volume(self, name: str) -> Path:
        return self._volumes[name]

    def set(self, data: dict[str, str], annotation: str = "") -> None:
        metadata = {"name": "objects", "namespace": self._namespace, "annotations": {"note": annotation}}
        objects = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data},
        ]
        self._write("objects", {"apiVersion": "v1", "kind": "List", "items": objects})

    def synced(self) -> None:
        """Returns when all that was written so far is shown."""
        self._instance.wait(f"pod/{self._namespace}/pod")

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


def expect(watch: Watch, events: list[str]) -> None:
    """All of them come, and no others after them."""
    eventually(lambda: len(watch.modifying()) >= len(events), REMOVED_WITHIN)
    assert watch.modifying() == events


@pytest.mark.parametrize("from_where", ["host", "bind"])
@pytest.mark.parametrize(
    ("volume", "data", "events"),
    [
        ("v", CHANGED, VALUE_CHANGED),
        ("w", CHANGED, VALUE_CHANGED),
        ("x", CHANGED, VALUE_CHANGED),
        ("v", OTHER_KEYS, KEY_ADDED_AND_REMOVED),
        ("w", OTHER_KEYS, KEY_ADDED_AND_REMOVED),
        ("x", OTHER_KEYS, NOTHING),  # its items are what they were
        ("v", FIRST, NOTHING),
        ("w", FIRST, NOTHING),
        ("x", FIRST, NOTHING),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_volume(
    pod: Pod, tmp_path: Path, from_where: str, volume: str, data: dict[str, str], events: list[str]
) -> None:
    with Watch(pod.volume(volume), bound_at=tmp_path if from_where == "bind" else None) as watch:
        pod.set(data, annotation="changed")
        pod.synced()
        if not events:
            time.sleep(QUIET)
        expect(watch, events)


@pytest.mark.parametrize("from_where", ["host", "bind"])
@pytest.mark.parametrize(
    ("volume", "file", "data", "events"),
    [
        ("v", "a", CHANGED, OF_A_FILE),
        ("w", "a", CHANGED, OF_A_FILE),
        ("x", "d/e/a", CHANGED, OF_A_FILE),
        ("v", "a", OTHER_KEYS, OF_A_FILE),  # its content is the same, its version is not
        ("x", "d/e/a", OTHER_KEYS, NOTHING),
        ("v", "a", FIRST, NOTHING),
        ("w", "a", FIRST, NOTHING),
    ],
    ids=lambda value: value.replace("/", "-") if isinstance(value, str) else "",
)
def test_a_file(
    pod: Pod, tmp_path: Path, from_where: str, volume: str, file: str, data: dict[str, str], events: list[str]
) -> None:
    """Followed through the links to the version that is there: it is never modified, it goes."""
    bound = {"bound_at": tmp_path, "name": file} if from_where == "bind" else {}
    path = pod.volume(volume) if bound else pod.volume(volume) / file
    with Watch(path, **bound) as watch:  # type: ignore[arg-type]
        pod.set(data, annotation="changed")
        pod.synced()
        if not events:
            time.sleep(QUIET)
        expect(watch, events)


@pytest.mark.parametrize("data", [CHANGED, OTHER_KEYS], ids=["value", "keys"])
@pytest.mark.parametrize("volume", ["v", "w"])
def test_the_data_link(pod: Pod, volume: str, data: dict[str, str]) -> None:
    with Watch(pod.volume(volume) / "..data") as watch:
        pod.set(data)
        eventually(lambda: len(watch.modifying()) >= 4, REMOVED_WITHIN)
        *files, last = watch.modifying()
        assert (set(files), last) == OF_DATA
        assert len(files) == 3


def test_the_data_link_without_a_change(pod: Pod) -> None:
    with Watch(pod.volume("v") / "..data") as watch:
        pod.set(FIRST, annotation="changed")
        pod.synced()
        time.sleep(QUIET)
        assert watch.modifying() == []


def test_updates_one_after_the_other(pod: Pod) -> None:
    """Each is seen whole; what an update replaced may go later than the next one comes."""
    with Watch(pod.volume("v")) as watch:
        for number in range(3):
            pod.set({**FIRST, "a": f"number {number}"})
            pod.synced()
        eventually(lambda: sum("DELETE" in event for event in watch.modifying()) == 3, REMOVED_WITHIN)
        events = [event for event in watch.modifying() if "DELETE" not in event]
        assert events == [event.replace("NEW1", f"NEW{number}") for number in (1, 2, 3) for event in PUBLISHED]


# -- containers ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(containers.available()), reason=containers.available())
@pytest.mark.parametrize(("data", "events"), [(CHANGED, VALUE_CHANGED), (OTHER_KEYS, KEY_ADDED_AND_REMOVED)])
@pytest.mark.parametrize("volume", ["v", "w"])
def test_a_volume_in_a_container(
    pod: Pod, tmp_path: Path, volume: str, data: dict[str, str], events: list[str]
) -> None:
    with Container(tmp_path / "c", [Mount(pod.volume(volume), "/v", readonly=True)]) as container:
        inside = Path(f"/proc/{container.pid}/root/v")
        with Watch(inside) as watch, Watch(inside / "a") as file:
            pod.set(data)
            expect(watch, events)
            expect(file, OF_A_FILE)
        assert container.read("/v/a") == data["a"]


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
            if any(os.path.basename(path) == "..data" for _, path in changes):
                seen.append((root / "a").read_text())

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
