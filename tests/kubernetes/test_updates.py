"""An object changes: what readers and inotify watchers of its volumes see (KUBELET-MEASURED 2, 3)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support.instance import eventually
from tests.support.node import TIMESTAMPED, Tenant, current, tree

pytestmark = pytest.mark.root


SETTINGS = {"configMap": {"name": "settings"}}


def versions(volume: Path) -> list[str]:
    """The timestamped directories that stand in the volume."""
    return [name for name in os.listdir(volume) if TIMESTAMPED.fullmatch(name)]


# -- content ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_values_change_and_keys_come_and_go(tenant: Tenant, kind: str) -> None:
    make = tenant.config_map if kind == "ConfigMap" else tenant.secret
    make("settings", {"a": "1", "b": "1", "gone": "1"})
    source = SETTINGS if kind == "ConfigMap" else {"secret": {"secretName": "settings"}}
    volume = tenant.pod("web", {"v": source}).path("v")
    before = current(volume)
    two = "2" if kind == "ConfigMap" else base64.b64encode(b"2").decode()
    tenant.instance.wait(tenant.patch(kind, "settings", data={"a": two, "added": two, "gone": None}))
    assert current(volume) != before
    shown = sorted(name for name in os.listdir(volume) if not name.startswith(".."))
    assert shown == ["a", "added", "b"]
    assert {name: (volume / name).read_text() for name in shown} == {"a": "2", "added": "2", "b": "1"}
    eventually(lambda: versions(volume) == [current(volume)])


def test_a_container_that_holds_a_file_open_reads_its_version_to_the_end(tenant: Tenant) -> None:
    old, new = "o" * 500_000, "n" * 500_000
    for kind, make in (("configMap", tenant.config_map), ("secret", tenant.secret)):
        make(f"large-{kind.lower()}", {"k": old})
    volumes = {"c": {"configMap": {"name": "large-configmap"}}, "s": {"secret": {"secretName": "large-secret"}}}
    pod = tenant.pod("web", volumes)
    with (pod.path("c") / "k").open() as of_config_map, (pod.path("s") / "k").open() as of_secret:
        files = (of_config_map, of_secret)
        begun = [file.read(1000) for file in files]
        goals = [
            tenant.patch("ConfigMap", "large-configmap", data={"k": new}),
            tenant.patch("Secret", "large-secret", stringData={"k": new}),
        ]
        for goal, volume in zip(goals, volumes, strict=True):
            path = pod.path(volume)
            tenant.instance.wait(goal)
            assert (path / "k").read_text() == new
            eventually(lambda path=path: versions(path) == [current(path)])  # the old files are unlinked now
        assert [begin + file.read() for begin, file in zip(begun, files, strict=True)] == [old, old]


def test_what_shows_nothing_new_is_not_written(tenant: Tenant) -> None:
    """Another resourceVersion, another key than is shown: the directory stays, and no watcher hears anything."""
    tenant.config_map("settings", {"a": "1", "b": "1"})
    only_a = {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a"}]}}
    pod = tenant.pod("web", {"v": only_a})
    volume = pod.path("v")
    before, inodes = tree(volume), [path.lstat().st_ino for path in sorted(volume.rglob("*"))]
    with watching(volume) as watch:
        for change in ({"metadata": {"labels": {"x": "1"}}}, {"data": {"b": "2"}}, {"immutable": True}):
            goal = tenant.patch("ConfigMap", "settings", **change)
            tenant.instance.wait(goal)
        assert tree(volume) == before
        assert [path.lstat().st_ino for path in sorted(volume.rglob("*"))] == inodes
        assert watch.modifying() == []
    shown = pod.status("v")
    assert shown is not None
    assert shown["generation"] == 1
    assert shown["objects"][0]["resourceVersion"] == goal.partition("@")[2], (
        "status tells the newest version all the same"
    )


@pytest.mark.parametrize("immutable", [False, True])
def test_a_deleted_objects_content_stays_and_a_new_one_is_picked_up(tenant: Tenant, immutable: bool) -> None:
    tenant.config_map("settings", {"a": "old", "gone": "x"}, immutable=immutable)
    pod = tenant.pod("web", {"v": SETTINGS})
    volume = pod.path("v")
    before = tree(volume)
    tenant.delete("ConfigMap", "settings")
    (event,) = eventually(lambda: tenant.events(pod))
    assert event["message"] == 'MountVolume.SetUp failed for volume "v" : configmap "settings" not found'
    assert tree(volume) == before
    status = eventually(lambda: (told := pod.status("v")) and told["error"] and told)
    assert (status["phase"], status["error"]) == ("Mounted", 'configmap "settings" not found')
    refused = tenant.instance.run("wait", "--for", pod.goal, "--timeout", "1", check=False)
    assert refused.returncode == 1
    assert 'volume v: configmap "settings" not found' in refused.stderr
    tenant.config_map("settings", {"a": "new"}, immutable=immutable)
    eventually(lambda: (volume / "a").read_text() == "new", timeout=1)
    tenant.instance.wait(pod.goal)
    assert not os.path.lexists(volume / "gone")
    status = pod.status("v")
    assert status is not None
    assert (status["phase"], status["error"]) == ("Mounted", None)


def test_a_key_that_vanishes_leaves_the_last_good_content(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1", "b": "1"})
    items = {"items": [{"key": "a", "path": "a"}, {"key": "b", "path": "b"}]}
    volumes = {
        "strict": {"configMap": {"name": "settings", **items}},
        "lax": {"configMap": {"name": "settings", "optional": True, **items}},
    }
    pod = tenant.pod("web", volumes)
    before = tree(pod.path("strict"))
    tenant.patch("ConfigMap", "settings", data={"a": "2", "b": None})
    eventually(lambda: not os.path.lexists(pod.path("lax") / "b"))
    (event,) = eventually(lambda: tenant.events(pod))
    text = "configmap references non-existent config key: b"
    assert event["message"] == f'MountVolume.SetUp failed for volume "strict" : {text}'
    assert tree(pod.path("strict")) == before
    assert (pod.path("lax") / "a").read_text() == "2"
    tenant.patch("ConfigMap", "settings", data={"b": "3"})
    eventually(lambda: (pod.path("strict") / "b").read_text() == "3", timeout=1)
    assert (pod.path("strict") / "a").read_text() == "2"


def test_one_object_in_many_volumes(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    pods = [tenant.pod(f"web-{number}", {"v": SETTINGS, "w": SETTINGS}, wait=False) for number in range(10)]
    tenant.instance.wait()
    tenant.instance.wait(tenant.patch("ConfigMap", "settings", data={"a": "2"}))
    assert {(pod.path(volume) / "a").read_text() for pod in pods for volume in "vw"} == {"2"}


# -- a reader that never rests ------------------------------------------------------------------------------------

READER = """
import json, os, select, sys
volume = sys.argv[1]
rounds, seen, problems = 0, set(), []

def content(name, directory):
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)

print("ready", flush=True)
while rounds % 50 or not select.select([sys.stdin], [], [], 0)[0]:
    rounds += 1
    try:
        data = os.open(f"{volume}/..data", os.O_PATH | os.O_DIRECTORY)
        try:
            both = content("a", data), content("b", data)
        finally:
            os.close(data)
        with open(f"{volume}/a", "rb") as file:
            through_the_link = file.read()
        if len(set(both)) > 1 or int(through_the_link) < int(both[0]):
            problems.append([both[0].decode(), both[1].decode(), through_the_link.decode()])
        seen.add(both[0])
    except OSError as error:
        problems.append(str(error))
print(json.dumps({"rounds": rounds, "seen": len(seen), "problems": problems[:10]}))
"""


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_a_reader_never_sees_a_mix_and_never_misses_a_key(tenant: Tenant, kind: str) -> None:
    """1,000 updates of two keys that must match, while a third one comes and goes."""
    make = tenant.config_map if kind == "ConfigMap" else tenant.secret
    make("settings", {"a": "0", "b": "0"})
    source = SETTINGS if kind == "ConfigMap" else {"secret": {"secretName": "settings"}}
    pod = tenant.pod("web", {"v": source})
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(pod.path("v"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        obj = tenant.node.cluster.admin.get(kind, "settings", tenant.namespace)
        obj["kind"], obj["apiVersion"] = kind, "v1"
        for number in range(1, 1001):
            content = {"a": str(number), "b": str(number), **({"third": "x"} if number % 2 else {})}
            obj.pop("data", None)
            obj["data" if kind == "ConfigMap" else "stringData"] = content
            obj = {**tenant.node.cluster.admin.replace(obj), "kind": kind, "apiVersion": "v1"}
        version = obj["metadata"]["resourceVersion"]
        tenant.instance.wait(f"object={kind}/{tenant.namespace}/settings@{version}")
        assert (pod.path("v") / "a").read_text() == "1000"
        told = json.loads(reader.communicate(timeout=30)[0])
    finally:
        reader.kill()
        reader.wait(10)
    assert told["problems"] == []
    assert told["seen"] >= 50, told  # it did read between the updates
    eventually(lambda: versions(pod.path("v")) == [current(pod.path("v"))])


# -- inotify ------------------------------------------------------------------------------------------------------


class Watch:
    """What an `inotifywait -m` has written so far."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output

    def text(self) -> str:
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def modifying(self) -> list[str]:
        """`name EVENTS` of the events that tell of a change, the watched path itself as `.`."""
        found = []
        for line in self.text().splitlines():
            if line.count("|") == 2:
                _, name, events = line.split("|")
                if not set(events.split(",")) & {"OPEN", "ACCESS", "CLOSE"}:
                    found.append(f"{name or '.'} {events}")
        return found


@contextmanager
def watching(volume: Path, name: str = "", *, through: Path | None = None) -> Iterator[Watch]:
    """`inotifywait -m` on the volume or on `name` in it; as a container does it, where there is a directory to mount
    it at (`through`): through a read-only bind mount in another mount namespace."""
    listen = ["inotifywait", "-m", "--format", "%w|%f|%e", str((through or volume) / name)]
    command = ["setpriv", "--pdeathsig", "KILL", "--"]
    if through is not None:
        script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
        command += [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            str(volume),
            str(through),
        ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([*command, *listen], stdout=output, stderr=output)
        try:
            watch = Watch(output)
            eventually(lambda: "Watches established" in watch.text())
            yield watch
        finally:
            process.kill()
            process.wait(10)


@pytest.fixture(params=["on the host", "through a bind mount"])
def through(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "on the host":
        return None
    (tmp_path / "container").mkdir()
    return tmp_path / "container"


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_watchers_see_what_they_see_under_kubelet(tenant: Tenant, through: Path | None, kind: str) -> None:
    make = tenant.config_map if kind == "ConfigMap" else tenant.secret
    make("settings", {"a": "1", "b": "1", "gone": "1"})
    source = SETTINGS if kind == "ConfigMap" else {"secret": {"secretName": "settings"}}
    volume = tenant.pod("web", {"v": source}).path("v")
    encoded = (lambda text: text) if kind == "ConfigMap" else (lambda text: base64.b64encode(text.encode()).decode())
    first = current(volume)
    with (
        watching(volume, through=through) as of_volume,
        watching(volume, "a", through=through) as of_file,
        watching(volume, "..data", through=through) as of_data,
    ):
        tenant.patch(kind, "settings", data={"a": encoded("2")})
        eventually(lambda: f"{first} DELETE,ISDIR" in of_volume.modifying())
        second = current(volume)
        assert of_volume.modifying() == [*swap(second), f"{first} DELETE,ISDIR"]
        # both stand on the old version, and see it go
        eventually(lambda: ". DELETE_SELF" in of_file.modifying() and ". DELETE_SELF" in of_data.modifying())
        assert of_file.modifying() == [". ATTRIB", ". DELETE_SELF"]
        *deletions, last = of_data.modifying()
        assert sorted(deletions) == ["a DELETE", "b DELETE", "gone DELETE"]
        assert last == ". DELETE_SELF"
    with watching(volume, through=through) as of_volume:
        tenant.patch(kind, "settings", data={"added": encoded("3"), "gone": None})
        eventually(lambda: f"{second} DELETE,ISDIR" in of_volume.modifying())
        links = ["added CREATE", "gone DELETE"]
        assert of_volume.modifying() == [*swap(current(volume)), *links, f"{second} DELETE,ISDIR"]


def swap(directory: str) -> list[str]:
    """How a volume begins to show `directory`."""
    return [
        f"{directory} CREATE,ISDIR",
        f"{directory} ATTRIB,ISDIR",
        "..data_tmp CREATE",
        "..data_tmp MOVED_FROM",
        "..data MOVED_TO",
    ]
