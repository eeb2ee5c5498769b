"""The tree above the volumes, what the kernel is told of it, and the operations on top of both."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fusevol.model.errors import NoSuchAttribute, NoSuchEntry, ReadOnlyVolume, StaleNode
from fusevol.model.objects import SECRET
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import ObjectVersion, VolumeMeta
from fusevol.server.inodes import ROOT, Attr
from fusevol.server.notifications import AttributesChanged, EntryGone, Notification
from fusevol.server.versions import Rejected
from tests.support.core import FIRST, META, OTHER, VOLUME, Core, config_map, digest

CM = config_map("cm")
PLUGIN = "pods/uid-1/volumes/kubernetes.io~configmap"
EMPTY = VolumeRef("uid-1", "kubernetes.io/empty-dir", "scratch")


@pytest.fixture
def core() -> Core:
    return Core()


def gone(core: Core) -> list[str]:
    return [told.name for told in core.notifications if isinstance(told, EntryGone)]


def test_the_tree_has_kubelets_modes(core: Core) -> None:
    core.publish(Tree(()))
    core.volumes.set_name("shop", "cart", "uid-1")
    modes = {
        path: stat.S_IMODE(core.walk(path).mode)
        for path in ("", "pods", "pods/uid-1", "pods/uid-1/volumes", PLUGIN, "by-name", "by-name/shop")
    }
    assert modes == {
        "": 0o755,
        "pods": 0o750,
        "pods/uid-1": 0o750,
        "pods/uid-1/volumes": 0o750,
        PLUGIN: 0o755,
        "by-name": 0o755,
        "by-name/shop": 0o755,
    }


def test_a_pod_comes_with_its_first_volume_or_alone(core: Core) -> None:
    core.volumes.add_pod("uid-2")
    core.volumes.add_pod("uid-2")
    core.publish(Tree(()))
    assert core.volumes.pods == ("uid-2", "uid-1")
    assert core.list("pods/uid-2") == ["volumes"]


def test_a_plugins_directory_comes_with_its_first_volume_and_goes_with_its_pod(core: Core) -> None:
    """KUBELET-MEASURED: of a Pod that completed the plugins' directories stay until it is deleted."""
    second = VolumeRef("uid-1", VOLUME.plugin, "second")
    core.publish(Tree(()))
    core.publish(Tree(()), second)
    core.volumes.unpublish(VOLUME)
    assert core.list(PLUGIN) == ["second"]
    core.volumes.unpublish(second)
    assert core.list(PLUGIN) == []
    assert core.volumes.pods == ("uid-1",)
    core.volumes.remove_pod("uid-1")
    assert core.list("pods") == []


def test_a_plugins_directory_that_was_asked_for_outlives_a_failed_publish_and_goes_with_the_pod(core: Core) -> None:
    for _ in range(2):
        core.volumes.add_plugin("uid-1", VOLUME.plugin)
    with pytest.raises(Rejected):
        core.publish(Tree(()), directory="no")
    assert core.list(PLUGIN) == []
    core.volumes.remove_pod("uid-1")
    assert core.list("pods") == []


def test_a_publish_that_fails_leaves_no_directory(core: Core) -> None:
    with pytest.raises(Rejected):
        core.publish(Tree(()), directory="no")
    assert core.list("pods/uid-1/volumes") == []
    assert core.volumes.states() == ()


def test_publishing_twice_and_touching_the_unknown_is_rejected(core: Core) -> None:
    with pytest.raises(Rejected):
        core.volumes.stage(VOLUME, FIRST, Tree(()), "", META)
    with pytest.raises(Rejected):
        core.volumes.annotate(VOLUME, META)
    core.publish(Tree(()))
    with pytest.raises(Rejected):
        core.publish(Tree(()))
    core.volumes.unpublish(EMPTY)
    core.volumes.remove_pod("uid-9")
    core.volumes.set_name("no", "body", None)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "n\0", "x" * 256])
def test_names_that_cannot_be_entries_are_rejected(core: Core, name: str) -> None:
    for wrong in (VolumeRef(name, "p", "v"), VolumeRef("uid", "p", name)):
        with pytest.raises(Rejected):
            core.publish(Tree(()), wrong)
    with pytest.raises(Rejected):
        core.volumes.add_pod(name)
    with pytest.raises(Rejected):
        core.volumes.set_name("shop", name, "uid-1")
    assert core.list("by-name") == core.list("pods") == []


def test_names_are_links_that_are_asked_for_each_time(core: Core) -> None:
    core.volumes.add_pod("uid-1")
    core.volumes.set_name("shop", "cart", "uid-1")
    link = core.fs.lookup(core.walk("by-name/shop").nodeid, "cart", OTHER)
    assert (link.entry_timeout, link.attr_timeout) == (0, 0)
    assert core.fs.readlink(link.nodeid) == "../../pods/uid-1"
    assert core.volumes.names == {("shop", "cart"): "uid-1"}
    core.volumes.set_name("shop", "cart", "uid-2")
    assert core.volumes.names == {("shop", "cart"): "uid-2"}
    assert core.list("by-name/shop") == ["cart"]
    core.volumes.set_name("shop", "cart", None)
    assert core.list("by-name") == []


# -------------------------------------------------------------------------------------------- notifications


def test_the_kernel_is_told_bottom_up_and_only_of_what_it_knows(core: Core) -> None:
    core.publish(core.tree(CM, "1", {"a": b"", "dir/b": b"", "c": b""}))
    volume = core.walk(VOLUME.path)
    core.read(f"{VOLUME.path}/dir/b")
    core.notifications.clear()
    core.volumes.unpublish(VOLUME)
    # `dir` is the directory and the link to it; `a` and `c` were never looked up
    assert gone(core) == ["b", "dir", FIRST, "..data", "dir", "vol"]
    by_name = {told.name: told for told in core.notifications if isinstance(told, EntryGone)}
    assert by_name["vol"].nodeid == volume.nodeid
    assert AttributesChanged(core.walk(PLUGIN).nodeid) in core.notifications


def test_no_directory_above_a_volume_that_stands_is_ever_said_to_be_gone(core: Core) -> None:
    for name in ("one", "two"):
        core.publish(Tree(()), VolumeRef("uid-1", VOLUME.plugin, name))
        core.walk(f"{PLUGIN}/{name}/..data")
    core.notifications.clear()
    core.volumes.unpublish(VolumeRef("uid-1", VOLUME.plugin, "one"))
    assert gone(core)[-1] == "one"
    core.notifications.clear()
    core.volumes.remove_pod("uid-1")
    assert gone(core)[-4:] == ["two", "kubernetes.io~configmap", "volumes", "uid-1"]


def test_when_the_kernel_is_told_the_tree_has_changed_already() -> None:
    found = []

    def look(told: Notification) -> None:
        if isinstance(told, EntryGone):
            try:
                found.append(core.fs.lookup(told.parent, told.name, OTHER))
            except NoSuchEntry:
                pass

    core = Core(when_told=look)
    core.publish(core.tree(CM, "1", {"a": b""}))
    core.read(f"{VOLUME.path}/a")
    core.volumes.remove_pod("uid-1")
    assert gone(core)[-1] == "uid-1"
    assert found == []


def test_attributes_of_a_directory_that_the_kernel_knows_are_said_to_change(core: Core) -> None:
    pods = core.walk("pods")
    core.notifications.clear()
    core.volumes.add_pod("uid-1")
    assert core.notifications == [AttributesChanged(pods.nodeid)]
    after = core.walk("pods")
    assert (after.nlink, after.mtime_ns > pods.mtime_ns) == (pods.nlink + 1, True)


def test_a_name_that_comes_back_is_another_node(core: Core) -> None:
    core.publish(core.tree(CM, "1", {"a": b""}))
    before = core.walk(VOLUME.path).nodeid
    core.volumes.unpublish(VOLUME)
    core.publish(core.tree(CM, "1", {"a": b""}))
    assert core.walk(VOLUME.path).nodeid > before


def test_a_process_inside_a_removed_volume_finds_nothing_any_more(core: Core) -> None:
    core.publish(core.tree(CM, "1", {"a": b""}))
    root = core.walk(VOLUME.path).nodeid
    fh = core.fs.opendir(root, OTHER)
    core.volumes.unpublish(VOLUME)
    with pytest.raises(NoSuchEntry):
        core.fs.lookup(root, "a", OTHER)
    assert core.fs.getattr(root).nlink == 0
    core.fs.releasedir(fh)
    core.forget_all()
    with pytest.raises(StaleNode):
        core.fs.getattr(root)


def test_everything_is_wiped_when_a_volume_and_its_object_are_gone(core: Core) -> None:
    secret = ObjectRef(SECRET, "shop", "s")
    core.publish(core.tree(secret, "1", {"k": b"sesame"}))
    fh, handle = core.fs.open(core.walk(f"{VOLUME.path}/k").nodeid, os.O_RDONLY, OTHER)
    view = handle.read(0, 100)
    core.fs.release(fh)
    core.volumes.contents.drop(secret)
    core.volumes.unpublish(VOLUME)
    assert bytes(view) == b"sesame", "the kernel may still ask for it"
    core.forget_all()
    assert bytes(view) == bytes(6)


# -------------------------------------------------------------------------------------------- extended attributes


def test_a_volumes_root_tells_what_it_shows(core: Core) -> None:
    meta = VolumeMeta("shop", "cart", 3, "now", (ObjectVersion(CM, "17"), ObjectVersion(config_map("z"), "4")))
    core.publish(Tree(()))
    core.volumes.annotate(VOLUME, meta)
    root = core.walk(VOLUME.path).nodeid
    told = {name.removeprefix("user.fusevol."): core.fs.getxattr(root, name) for name in core.fs.listxattr(root)}
    assert told == {
        "namespace": b"shop",
        "pod": b"cart",
        "generation": b"3",
        "updated": b"now",
        "objects": b"ConfigMap/shop/cm@17\nConfigMap/shop/z@4",
    }
    for other in ("user.fusevol.else", "user.x", "security.capability"):
        with pytest.raises(NoSuchAttribute):
            core.fs.getxattr(root, other)


def test_nothing_but_a_volumes_root_tells(core: Core) -> None:
    core.publish(Tree(()))
    for path in ("", "pods", f"{VOLUME.path}/..data"):
        nodeid = core.walk(path).nodeid
        assert core.fs.listxattr(nodeid) == []
        with pytest.raises(NoSuchAttribute):
            core.fs.getxattr(nodeid, "user.fusevol.pod")


# -------------------------------------------------------------------------------------------- emptyDirs


def test_an_empty_dir_is_published_twice_and_told_of(core: Core, tmp_path: Path) -> None:
    for pod in ("cart", "cart2"):
        meta = VolumeMeta("shop", pod, 1, "now")
        core.volumes.publish_empty_dir(EMPTY, str(tmp_path), 0o777, 0, meta)
    root = core.walk(EMPTY.path).nodeid
    assert core.fs.getxattr(root, "user.fusevol.pod") == b"cart2"
    with pytest.raises(ReadOnlyVolume):
        core.fs.setxattr(root, "user.fusevol.pod", b"x")
    with pytest.raises(ReadOnlyVolume):
        core.fs.removexattr(root, "user.fusevol.pod")
    (state,) = core.volumes.states()
    assert (state.ref, state.digest, state.settled) == (EMPTY, "", True)
    with pytest.raises(Rejected):
        core.volumes.stage(EMPTY, FIRST, Tree(()), digest(Tree(())), META)
    core.volumes.unpublish(EMPTY)
    assert core.list("pods/uid-1/volumes/kubernetes.io~empty-dir") == []
    assert tmp_path.is_dir()


def test_an_empty_dir_without_its_backing_directory_is_not_published(core: Core, tmp_path: Path) -> None:
    backing = tmp_path / "file"
    backing.write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        core.volumes.publish_empty_dir(EMPTY, str(backing), 0o777, 0, META)
    assert core.volumes.states() == ()


def test_statfs_is_the_backing_file_systems_where_there_is_one(core: Core, tmp_path: Path) -> None:
    assert core.fs.statfs().blocks == 0
    core.volumes.publish_empty_dir(EMPTY, str(tmp_path), 0o777, 0, META)
    assert core.fs.statfs().blocks == os.statvfs(tmp_path).f_blocks


# -------------------------------------------------------------------------------------------- listing


def test_a_listing_that_does_not_fit_goes_on_where_it_stopped(core: Core) -> None:
    core.publish(core.tree(CM, "1", {f"key-{number:03}": b"" for number in range(100)}))
    directory = core.walk(f"{VOLUME.path}/{FIRST}").nodeid
    fh = core.fs.opendir(directory, OTHER)
    names: list[str] = []
    offset, room = 0, 0

    def emit(name: str, attr: Attr, after: int) -> bool:
        nonlocal offset, room
        if room == 0:
            return False
        names.append(name)
        offset, room = after, room - 1
        return True

    before = None
    while before != offset:
        before, room = offset, 7
        core.fs.readdir(fh, offset, emit)
    assert names == [".", "..", *(f"key-{number:03}" for number in range(100))]
    lookups = {node.lookups for nodeid, node in core.volumes.inodes._nodes.items() if nodeid > directory}
    assert max(lookups) == 1, "what did not fit was not counted"


def test_a_listing_is_of_one_moment_until_it_is_rewound(core: Core) -> None:
    fh = core.fs.opendir(core.walk("pods").nodeid, OTHER)

    def names(offset: int) -> list[str]:
        found: list[str] = []
        core.fs.readdir(fh, offset, lambda name, attr, after: found.append(name) is None)
        return found

    core.volumes.add_pod("uid-1")
    assert names(0) == [".", "..", "uid-1"]
    core.volumes.add_pod("uid-2")
    assert names(2) == ["uid-1"]
    assert names(0) == [".", "..", "uid-1", "uid-2"]


def test_the_root_is_its_own_parent(core: Core) -> None:
    found: dict[str, int] = {}
    fh = core.fs.opendir(ROOT, OTHER)
    core.fs.readdir(fh, 0, lambda name, attr, after: found.setdefault(name, attr.nodeid) > 0)
    assert found["."] == found[".."] == ROOT
