"""Tampering, row by row of KUBELET.md 11. What a kubelet repairs or not, nobody can do here: root is refused, and
nothing has changed. What can be damaged, an emptyDir's directory and the server's memory, is put right."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import containers
from tests.support.containers import Container, Mount
from tests.support.instance import Instance, eventually, running

pytestmark = pytest.mark.root

DATA = {"key": "content", "other": "too"}
PATHS = {"items": [{"key": "key", "path": "key"}, {"key": "other", "path": "dir/file"}]}
VOLUMES: dict[str, dict[str, Any]] = {
    "config": {"configMap": {"name": "objects", **PATHS}},
    "secret": {"secret": {"secretName": "objects", **PATHS}},
    "all": {"projected": {"sources": [{"configMap": {"name": "objects", **PATHS}}]}},
    "pod": {
        "downwardAPI": {
            "items": [
                {"path": "key", "fieldRef": {"fieldPath": "metadata.name"}},
                {"path": "dir/file", "fieldRef": {"fieldPath": "metadata.uid"}},
            ]
        }
    },
    "scratch": {"emptyDir": {}},
}
PLUGINS = {"config": "configmap", "secret": "secret", "all": "projected", "pod": "downward-api"}


def objects() -> dict[str, Any]:
    metadata = {"name": "objects", "namespace": "default"}
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": DATA},
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": DATA},
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "pod", "namespace": "default"},
                "spec": {
                    "securityContext": {"fsGroup": 2000},
                    "containers": [
                        {
                            "name": "main",
                            "image": "busybox",
                            "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in VOLUMES],
                        }
                    ],
                    "volumes": [{"name": name, **source} for name, source in VOLUMES.items()],
                },
            },
        ],
    }


class Node:
    def __init__(self, instance: Instance) -> None:
        self.instance = instance

    @property
    def pod(self) -> Path:
        return (self.instance.mountpoint / "by-name" / "default" / "pod").resolve()

    @property
    def scratch(self) -> Path:
        return self.pod / "volumes" / "kubernetes.io~empty-dir" / "scratch"

    @property
    def backing(self) -> Path:
        return self.instance.state / "pods" / self.pod.name / "volumes" / "kubernetes.io~empty-dir" / "scratch"

    @property
    def ready(self) -> Path:
        return (
            self.instance.state / "pods" / self.pod.name / "plugins" / "kubernetes.io~empty-dir" / "scratch" / "ready"
        )

    def root(self, volume: str) -> Path:
        return self.pod / "volumes" / f"kubernetes.io~{PLUGINS[volume]}" / volume

    def kill(self, name: str) -> None:
        """And waits until all is as it should be."""
        killed = self.instance.kill(name)
        eventually(lambda: self.instance.status()["processes"][name]["pid"] not in (None, killed), 30)
        self.instance.wait("pod/default/pod")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    base = tmp_path_factory.mktemp("tamper")
    (base / "manifests").mkdir()
    (base / "manifests" / "objects.json").write_text(json.dumps(objects()))
    with running(base, "--manifests", base / "manifests") as instance:
        instance.wait("pod/default/pod")
        yield Node(instance)


@pytest.fixture(params=list(PLUGINS))
def root(node: Node, request: pytest.FixtureRequest) -> Path:
    """The root of a volume of each kind."""
    return node.root(request.param)


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything that there is to know of all below (and of the directory itself) but access times."""
    found: dict[str, tuple[object, ...]] = {}
    paths = [top]
    while paths:
        path = paths.pop()
        status = path.lstat()
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            content = sorted(os.listdir(path))
            paths += path.iterdir()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        else:
            content = path.read_bytes()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found[str(path)] = (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            *times,
            content,
        )
    return found


def refused(top: Path, *attempts: Callable[[], object], with_: tuple[int, ...] = (errno.EROFS,)) -> None:
    """None of them works, and nothing below `top` is another afterwards."""
    before = snapshot(top)
    for number, attempt in enumerate(attempts):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is looked at
            attempt()
        assert caught.value.errno in with_, f"attempt {number}: {caught.value}"
        assert snapshot(top) == before


def opened(path: Path, flags: int) -> Callable[[], None]:
    return lambda: os.close(os.open(path, flags, 0o644))


# -- API volumes --------------------------------------------------------------------------------------------------


def test_the_content_of_a_file(root: Path) -> None:
    for path in (root / "key", root / "..data" / "key", root / os.readlink(root / "..data") / "dir" / "file"):
        refused(
            root,
            opened(path, os.O_WRONLY),
            opened(path, os.O_RDWR),
            opened(path, os.O_WRONLY | os.O_APPEND),
            opened(path, os.O_RDONLY | os.O_TRUNC),
            opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            partial(os.truncate, path, 0),
            partial(os.utime, path),
        )


def test_a_file_of_the_version_deleted(root: Path) -> None:
    version = root / os.readlink(root / "..data")
    refused(
        root,
        lambda: os.unlink(version / "key"),
        lambda: os.unlink(version / "dir" / "file"),
        lambda: os.rename(version / "key", version / "gone"),
    )


def test_the_directory_of_the_version_deleted(root: Path) -> None:
    version = root / os.readlink(root / "..data")
    refused(
        root,
        lambda: os.rmdir(version),
        lambda: os.rmdir(version / "dir"),
        lambda: os.rename(version, root / "..gone"),
        lambda: os.rename(version / "dir", version / "gone"),
        lambda: shutil.rmtree(version),
    )


def test_the_data_link_deleted(root: Path) -> None:
    refused(root, lambda: os.unlink(root / "..data"), lambda: os.rename(root / "..data", root / "..gone"))


def test_a_link_deleted(root: Path) -> None:
    refused(
        root,
        lambda: os.unlink(root / "key"),
        lambda: os.unlink(root / "dir"),
        lambda: os.rename(root / "key", root / "gone"),
    )


def test_mode_and_owner(root: Path) -> None:
    version = root / os.readlink(root / "..data")
    for path in (root / "key", version / "dir" / "file", version, version / "dir", root):
        refused(
            root,
            partial(os.chmod, path, 0o777),
            partial(os.chown, path, 1000, 1000),
        )
    refused(root, lambda: os.lchown(root / "key", 1000, 1000), lambda: os.lchown(root / "..data", 1000, 1000))


def test_extended_attributes(root: Path) -> None:
    nothing_of_it = (errno.EROFS, errno.ENOTSUP, errno.EPERM)
    refused(root, lambda: os.setxattr(root / "key", "user.x", b"1"), with_=nothing_of_it)
    refused(root, lambda: os.setxattr(root, "trusted.x", b"1"), with_=nothing_of_it)


def test_a_link_led_elsewhere_or_replaced_by_a_file(node: Node, root: Path) -> None:
    new = node.scratch / "new"
    new.write_text("of the same mount")
    refused(
        root,
        lambda: os.rename(root / "dir", root / "key"),
        lambda: os.rename(root / "..data" / "key", root / "key"),
        lambda: os.symlink("/etc/passwd", root / "other"),
    )
    # refused by a kernel that knows another mount, or by the server
    refused(root, lambda: os.rename(new, root / "key"), with_=(errno.EROFS, errno.EXDEV))
    assert new.read_text() == "of the same mount"


def test_something_more_in_the_root(root: Path) -> None:
    refused(
        root,
        opened(root / "more", os.O_WRONLY | os.O_CREAT),
        opened(root / "more", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        lambda: os.mkdir(root / "more"),
        lambda: os.mkdir(root / "..2026_11_22_19_35_35.1"),
        lambda: os.symlink("..data/more", root / "more"),
        lambda: os.link(root / "..data" / "key", root / "more"),
        lambda: os.mknod(root / "more", stat.S_IFIFO | 0o600),
    )


def test_something_more_in_the_version(root: Path) -> None:
    for directory in (root / "..data", root / "..data" / "dir"):
        refused(
            root,
            opened(directory / "more", os.O_WRONLY | os.O_CREAT),
            partial(os.mkdir, directory / "more"),
            partial(os.symlink, "key", directory / "more"),
            partial(os.link, root / "..data" / "key", directory / "more"),
            partial(os.mknod, directory / "more", stat.S_IFIFO | 0o600),
        )


def test_the_data_link_replaced(node: Node, root: Path) -> None:
    new = node.scratch / "new"
    new.write_text("not a link")
    refused(root, lambda: os.rename(new, root / "..data"), with_=(errno.EROFS, errno.EXDEV))
    refused(
        root,
        opened(root / "..data", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW),
        with_=(errno.EROFS, errno.ELOOP),
    )
    refused(root, lambda: os.rename(root / "key", root / "..data"))


def test_a_temporary_data_link_left_over(root: Path) -> None:
    """Which would keep a kubelet from ever writing the volume again."""
    refused(
        root,
        lambda: os.symlink(os.readlink(root / "..data"), root / "..data_tmp"),
        opened(root / "..data_tmp", os.O_WRONLY | os.O_CREAT),
        lambda: os.mkdir(root / "..data_tmp"),
    )


def test_the_whole_volume_deleted(node: Node, root: Path) -> None:
    top = node.pod
    refused(
        top,
        lambda: os.rmdir(root),
        lambda: os.rename(root, root.with_name("gone")),
        lambda: shutil.rmtree(root),
        lambda: os.rmdir(root.parent),
        lambda: os.rename(root.parent, root.parent.with_name("gone")),
        lambda: os.rmdir(top),
        lambda: os.rename(top, top.with_name("gone")),
        lambda: os.unlink(node.instance.mountpoint / "by-name" / "default" / "pod"),
    )


@pytest.mark.skipif(bool(containers.available()), reason=containers.available())
def test_from_a_container(node: Node, root: Path, tmp_path: Path) -> None:
    """Mounted read-only, as always, and even if it were not."""
    before = snapshot(root)
    mounts = [Mount(root, "/ro", readonly=True), Mount(root, "/rw")]
    with Container(tmp_path / "c", mounts) as container:
        for where in ("/ro", "/rw"):
            for command in (
                f"echo x > {where}/key",
                f"rm {where}/key",
                f"rm -r {where}/..data",
                f"touch {where}/more",
                f"chmod 777 {where}/key",
                f"mv {where}/key {where}/gone",
            ):
                done = container.exec("sh", "-c", command)
                assert done.returncode != 0, command
                assert "Read-only file system" in done.stderr, done.stderr
    assert snapshot(root) == before


# -- emptyDirs ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def emptied(node: Node) -> Iterator[None]:
    """Each test finds the emptyDir empty."""
    yield
    for path in node.scratch.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def stands_empty(node: Node) -> None:
    """The emptyDir can be used, and its directory is as one that was set up just now (KUBELET.md 5.1, 10.3)."""
    assert os.listdir(node.scratch) == []
    for path in (node.scratch, node.backing):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o2777, 0, 2000)
    (node.scratch / "new").write_text("new")
    assert (node.backing / "new").read_text() == "new"
    assert node.ready.exists()


def test_a_backing_directory_emptied(node: Node) -> None:
    (node.scratch / "directory").mkdir()
    (node.scratch / "directory" / "file").write_text("content")
    assert (node.scratch / "directory" / "file").read_text() == "content"
    for path in node.backing.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    eventually(lambda: not os.listdir(node.scratch))
    with pytest.raises(FileNotFoundError):
        (node.scratch / "directory" / "file").read_text()
    stands_empty(node)


def test_a_backing_directory_removed(node: Node) -> None:
    """At its next use. A kubelet notices it when it starts anew, and only then (KUBELET.md 5.6)."""
    (node.scratch / "file").write_text("content")
    descriptor = os.open(node.scratch, os.O_PATH | os.O_DIRECTORY)
    try:
        shutil.rmtree(node.backing)
        stands_empty(node)
        # who stood there before stands there still: a container's mount
        assert os.listdir(f"/proc/self/fd/{descriptor}/") == ["new"]
    finally:
        os.close(descriptor)


def test_a_backing_directory_and_all_above_removed(node: Node) -> None:
    shutil.rmtree(node.instance.state / "pods" / node.pod.name / "volumes")
    stands_empty(node)


@pytest.mark.parametrize("killed", ["server", "agent"])
def test_a_backing_directory_removed_and_its_ready_file_left(node: Node, killed: str) -> None:
    """What the fix of v1.20 is for (KUBELET.md 5.3): set up again, not taken for there."""
    (node.scratch / "file").write_text("content")
    shutil.rmtree(node.backing)
    assert node.ready.exists()
    node.kill(killed)
    stands_empty(node)


def test_a_ready_file_removed(node: Node) -> None:
    """The directory is set up again and keeps what is in it."""
    (node.scratch / "file").write_text("content")
    shutil.rmtree(node.ready.parent)
    node.kill("server")
    assert (node.scratch / "file").read_text() == "content"
    assert node.ready.exists()


# -- the server ---------------------------------------------------------------------------------------------------


def test_a_server_that_lost_its_state_gets_it_back(node: Node) -> None:
    (node.scratch / "kept").write_text("content")

    def looks() -> dict[str, dict[str, tuple[int, int, int, bytes]]]:
        return {name: files(node.root(name)) for name in PLUGINS}

    def files(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in (root / "key", root / "dir" / "file"):
            status = path.stat()
            found[path.name] = (status.st_mode, status.st_uid, status.st_gid, path.read_bytes())
        return found

    before = looks()
    node.kill("server")
    assert looks() == before
    assert (node.scratch / "kept").read_text() == "content"
