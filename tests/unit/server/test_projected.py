"""API volumes without a mount: what stands, who may change it, and updates that stop anywhere."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusevol.agent.publisher.atomic_writer import Step, plan_finish, plan_update
from fusevol.model.errors import FileSystemError, NoSuchEntry, ReadOnlyVolume
from fusevol.model.objects import SECRET
from fusevol.model.refs import DATA_LINK, DATA_LINK_TMP, ObjectRef
from fusevol.model.tree import ContentRef, File, Literal, Tree
from fusevol.server.content import ContentMissing
from fusevol.server.inodes import Caller, SetAttr
from fusevol.server.nodes import Owner
from fusevol.server.notifications import PagesStale
from fusevol.server.versions import Rejected
from tests.support.core import FIRST, META, OTHER, VOLUME, WRITER, Core, config_map, digest

CM = config_map("cm")
ROOT = VOLUME.path
NEXT = "..2026_11_22_19_35_35.2"


@pytest.fixture
def core() -> Core:
    core = Core()
    core.publish(core.tree(CM, "1", {"a": b"a1", "dir/b": b"b1"}))
    return core


def stage(core: Core, tree: Tree, directory: str = NEXT) -> list[Step]:
    """Stages; returns all steps of the update without the removals."""
    view = core.volumes.stage(VOLUME, directory, tree, digest(tree), META)
    return plan_update(view, directory, tree).steps


def update(core: Core, tree: Tree, directory: str = NEXT) -> None:
    view = core.volumes.stage(VOLUME, directory, tree, digest(tree), META)
    plan = plan_update(view, directory, tree)
    core.perform(plan.steps)
    for steps in plan.removals.values():
        core.perform(steps)


# -------------------------------------------------------------------------------------------- what stands


def test_a_published_volume_has_kubelets_layout(core: Core) -> None:
    assert core.list(ROOT) == [FIRST, DATA_LINK, "a", "dir"]
    assert core.list(f"{ROOT}/{FIRST}/dir") == ["b"]
    assert core.read(f"{ROOT}/a") == b"a1"
    assert core.read(f"{ROOT}/dir/b") == b"b1"
    assert stat.filemode(core.walk(ROOT).mode) == "drwxrwxrwx"
    assert stat.filemode(core.walk(f"{ROOT}/{FIRST}").mode) == "drwxr-xr-x"
    assert stat.filemode(core.walk(f"{ROOT}/a").mode) == "-rw-r--r--"


def test_directories_count_their_subdirectories(core: Core) -> None:
    assert core.walk(f"{ROOT}/{FIRST}").nlink == 3
    assert core.walk(f"{ROOT}/dir").nlink == 2


def test_owners_are_the_trees_and_root_stands_for_who_mounted() -> None:
    core = Core(Owner(1000, 1001))
    content = Literal(b"token")
    tree = Tree((File("t", 0o600, content, uid=7, gid=8), File("u", 0o600, content)), 0o3777, 0o2755, gid=55)
    core.publish(tree)

    def owner(path: str) -> tuple[int, int]:
        attr = core.walk(path)
        return attr.uid, attr.gid

    assert owner(ROOT) == owner(f"{ROOT}/{FIRST}") == (1000, 55)
    assert owner(f"{ROOT}/t") == (7, 8)
    assert owner(f"{ROOT}/u") == (1000, 1001)
    root = core.walk(ROOT).nodeid
    links = {name: core.fs.lookup(root, name, OTHER) for name in ("t", "u", DATA_LINK)}
    assert {name: (link.uid, link.gid) for name, link in links.items()} == {
        "t": (7, 55),
        "u": (1000, 55),
        DATA_LINK: (1000, 55),
    }


def test_an_empty_tree_still_has_its_data_link() -> None:
    core = Core()
    core.publish(Tree(()))
    assert core.list(ROOT) == [FIRST, DATA_LINK]
    assert core.list(f"{ROOT}/{DATA_LINK}") == []


def test_mountpoints_are_made_in_the_root_instead_of_links() -> None:
    core = Core()
    core.publish(core.tree(CM, "1", {"a": b"A", "k": b""}, mountpoints=("x/y", "x/z", "a/b")))
    assert core.list(f"{ROOT}/x") == ["y", "z"]
    assert stat.filemode(core.walk(f"{ROOT}/x/y").mode) == "drwxr-xr-x"
    assert core.list(f"{ROOT}/a") == ["b"]
    assert core.read(f"{ROOT}/..data/a") == b"A"
    assert core.read(f"{ROOT}/k") == b""


def test_mountpoints_of_an_fs_group_are_like_all_its_directories() -> None:
    core = Core()
    tree = core.tree(CM, "1", {"k": b""}, mountpoints=("x/y",), directory_mode=0o2755, root_mode=0o2777, gid=2000)
    core.publish(tree)
    for path in (f"{ROOT}/x", f"{ROOT}/x/y"):
        assert stat.filemode(core.walk(path).mode) == "drwxr-sr-x"


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "..a", "a/.", "x\0", "n" * 256])
def test_a_path_that_is_none_is_rejected(path: str) -> None:
    core = Core()
    with pytest.raises(Rejected):
        core.publish(Tree((File(path, 0o644, Literal(b"")),)))
    assert core.volumes.states() == ()


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_paths_that_collide_are_rejected(paths: tuple[str, str]) -> None:
    core = Core()
    with pytest.raises(Rejected):
        core.publish(Tree(tuple(File(path, 0o644, Literal(b"")) for path in paths)))


@pytest.mark.parametrize("name", ["2026", "..", DATA_LINK, DATA_LINK_TMP, "../x", ""])
def test_a_directory_name_that_is_none_is_rejected(name: str) -> None:
    core = Core()
    with pytest.raises(Rejected):
        core.publish(Tree(()), directory=name)


def test_a_failed_publish_leaves_no_reference_behind(core: Core) -> None:
    held = core.volumes.contents.acquire(ContentRef(CM, "1", "a", ""))
    before = held.references
    files = (File("a", 0o644, ContentRef(CM, "1", "a", "")), File("b", 0o644, ContentRef(CM, "1", "gone", "")))
    with pytest.raises(ContentMissing):
        core.volumes.stage(VOLUME, NEXT, Tree(files), "", META)
    assert held.references == before
    assert core.volumes.states()[0].settled


# -------------------------------------------------------------------------------------------- updates


def test_an_update_in_kubelets_order(core: Core) -> None:
    update(core, core.tree(CM, "2", {"a": b"a2", "new": b"n2"}))
    assert sorted(core.list(ROOT)) == [NEXT, DATA_LINK, "a", "new"]
    assert core.read(f"{ROOT}/a") == b"a2"
    assert core.volumes.states()[0].settled


def test_nothing_of_a_staged_version_is_seen_before_it_is_made(core: Core) -> None:
    steps = stage(core, core.tree(CM, "2", {"a": b"a2"}))
    assert core.list(ROOT) == [FIRST, DATA_LINK, "a", "dir"]
    assert not core.volumes.states()[0].settled
    core.perform(steps[:1])
    attr = core.walk(f"{ROOT}/{NEXT}")
    assert stat.filemode(attr.mode) == "drwx------"
    assert core.read(f"{ROOT}/{NEXT}/a") == b"a2"
    assert core.read(f"{ROOT}/a") == b"a1"


def test_digest_and_meta_are_the_current_versions_until_the_rename(core: Core) -> None:
    tree = core.tree(CM, "2", {"a": b"a2"})
    meta = META.__class__("shop", "cart", 2, "later")
    before = core.volumes.states()[0]
    view = core.volumes.stage(VOLUME, NEXT, tree, digest(tree), meta)
    steps = plan_update(view, NEXT, tree).steps
    for step in steps:
        shown = core.volumes.states()[0]
        assert (shown.digest, shown.meta) == (before.digest, before.meta)
        core.perform([step])
        if step.call == "rename":
            break
    shown = core.volumes.states()[0]
    assert (shown.digest, shown.meta) == (digest(tree), meta)


def test_an_old_handle_reads_its_own_version_to_the_end(core: Core) -> None:
    fh, handle = core.fs.open(core.walk(f"{ROOT}/a").nodeid, os.O_RDONLY, OTHER)
    update(core, core.tree(CM, "2", {"a": b"a2"}))
    core.volumes.unpublish(VOLUME)
    core.volumes.contents.drop(CM)
    core.forget_all()
    view = handle.read(0, 10)
    assert bytes(view) == b"a1"
    core.fs.release(fh)
    assert bytes(view) == b"\0\0", "wiped at the last close"


def test_a_file_bound_out_of_an_old_directory_serves_until_it_is_forgotten(core: Core) -> None:
    attr = core.walk(f"{ROOT}/a")
    update(core, core.tree(CM, "2", {"a": b"a2"}))
    fh, handle = core.fs.open(attr.nodeid, os.O_RDONLY, OTHER)
    view = handle.read(0, 10)
    assert bytes(view) == b"a1"
    assert core.fs.getattr(attr.nodeid).nlink == 0
    core.fs.release(fh)
    assert bytes(view) == b"a1"
    core.forget_all()
    assert bytes(view) == b"\0\0"


def test_another_stage_replaces_what_was_not_completed(core: Core) -> None:
    steps = stage(core, core.tree(CM, "2", {"a": b"a2"}))
    core.perform(steps[:3])
    assert steps[2].call == "symlink"
    third = "..2026_3"
    tree = core.tree(CM, "3", {"a": b"a3"})
    core.volumes.stage(VOLUME, third, tree, digest(tree), META)
    with pytest.raises(ReadOnlyVolume):
        core.perform([Step("rename", DATA_LINK_TMP, DATA_LINK)])
    update(core, tree, third)
    assert sorted(core.list(ROOT)) == [third, DATA_LINK, "a"]
    assert core.read(f"{ROOT}/a") == b"a3"


def test_staging_the_same_directory_again_goes_on_where_it_stopped(core: Core) -> None:
    tree = core.tree(CM, "2", {"a": b"a2"})
    core.perform(stage(core, tree)[:1])
    update(core, tree)
    assert core.read(f"{ROOT}/a") == b"a2"
    assert core.volumes.states()[0].settled


def test_staging_a_name_that_stands_with_another_content_is_rejected(core: Core) -> None:
    core.perform(stage(core, core.tree(CM, "2", {"a": b"a2"}))[:1])
    other = core.tree(CM, "3", {"a": b"a3"})
    for directory in (NEXT, FIRST):
        with pytest.raises(Rejected):
            core.volumes.stage(VOLUME, directory, other, digest(other), META)


@pytest.mark.parametrize("done", range(7))
def test_staging_nothing_lets_what_an_interrupted_update_left_be_put_right(core: Core, done: int) -> None:
    core.perform(stage(core, core.tree(CM, "2", {"a": b"a2", "new": b""}))[:done])
    plan = plan_finish(core.volumes.stage(VOLUME, "", Tree(()), "", META))
    core.perform(plan.steps)
    for steps in plan.removals.values():
        core.perform(steps)
    keys = ["a", "dir"] if done < 4 else ["a", "new"]  # the fourth step is the rename
    current = FIRST if done < 4 else NEXT
    assert sorted(core.list(ROOT)) == sorted([current, DATA_LINK, *keys])
    assert core.volumes.states()[0].settled


def test_new_mountpoints_come_with_an_update_and_old_ones_stay() -> None:
    core = Core()
    core.publish(core.tree(CM, "1", {"a": b"1"}, mountpoints=("old",)))
    update(core, core.tree(CM, "2", {"a": b"2"}, mountpoints=("new",)))
    assert {"old", "new"} <= set(core.list(ROOT))
    assert core.volumes.states()[0].settled


# -------------------------------------------------------------------------------------------- who may do what

Act = Callable[[Core, Caller], object]


def _root(core: Core) -> int:
    return core.walk(ROOT).nodeid


def _first(core: Core) -> int:
    return core.walk(f"{ROOT}/{FIRST}").nodeid


def _file(core: Core) -> int:
    return core.walk(f"{ROOT}/a").nodeid


REFUSED: dict[str, Act] = {
    "mkdir": lambda core, who: core.fs.mkdir(_root(core), "x", 0o755, who),
    "mkdir of a version's name": lambda core, who: core.fs.mkdir(_root(core), "..2026_x", 0o755, who),
    "mknod": lambda core, who: core.fs.mknod(_root(core), "x", stat.S_IFREG | 0o644, 0, who),
    "create": lambda core, who: core.fs.create(_root(core), "x", 0o644, os.O_WRONLY, who),
    "symlink": lambda core, who: core.fs.symlink(_root(core), "x", "y", who),
    "symlink ..data_tmp": lambda core, who: core.fs.symlink(_root(core), DATA_LINK_TMP, FIRST, who),
    "symlink of a key elsewhere": lambda core, who: core.fs.symlink(_root(core), "a", "/etc/passwd", who),
    "link": lambda core, who: core.fs.link(_file(core), _root(core), "x", who),
    "unlink a link": lambda core, who: core.fs.unlink(_root(core), "a", who),
    "unlink ..data": lambda core, who: core.fs.unlink(_root(core), DATA_LINK, who),
    "unlink a file": lambda core, who: core.fs.unlink(_first(core), "a", who),
    "rmdir the current version": lambda core, who: core.fs.rmdir(_root(core), FIRST, who),
    "rmdir in the current version": lambda core, who: core.fs.rmdir(_first(core), "dir", who),
    "rename a link": lambda core, who: core.fs.rename(_root(core), "a", _root(core), "x", 0, who),
    "rename ..data": lambda core, who: core.fs.rename(_root(core), DATA_LINK, _root(core), "x", 0, who),
    "rename a file": lambda core, who: core.fs.rename(_first(core), "a", _first(core), "x", 0, who),
    "rename elsewhere": lambda core, who: core.fs.rename(_root(core), "a", _first(core), "a", 0, who),
    "chmod the root": lambda core, who: core.fs.setattr(_root(core), SetAttr(mode=0o755), None, who),
    "chmod the version": lambda core, who: core.fs.setattr(_first(core), SetAttr(mode=0o700), None, who),
    "chmod a file": lambda core, who: core.fs.setattr(_file(core), SetAttr(mode=0o600), None, who),
    "chown": lambda core, who: core.fs.setattr(_first(core), SetAttr(mode=0o755, uid=1), None, who),
    "truncate": lambda core, who: core.fs.setattr(_file(core), SetAttr(size=0), None, who),
    "utimens": lambda core, who: core.fs.setattr(_file(core), SetAttr(mtime_ns=0), None, who),
    "open to write": lambda core, who: core.fs.open(_file(core), os.O_WRONLY, who),
    "open to read and write": lambda core, who: core.fs.open(_file(core), os.O_RDWR, who),
    "setxattr": lambda core, who: core.fs.setxattr(_root(core), "user.x", b""),
    "setxattr of ours": lambda core, who: core.fs.setxattr(_root(core), "user.fusevol.pod", b""),
    "removexattr": lambda core, who: core.fs.removexattr(_root(core), "user.fusevol.pod"),
    "mkdir in the mount's root": lambda core, who: core.fs.mkdir(1, "x", 0o755, who),
    "rmdir of pods": lambda core, who: core.fs.rmdir(1, "pods", who),
    "unlink in by-name": lambda core, who: core.fs.unlink(core.walk("by-name").nodeid, "x", who),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("who", [WRITER, OTHER], ids=["writer", "other"])
def test_what_is_not_staged_is_read_only_for_everybody(core: Core, name: str, who: Caller) -> None:
    before = core.list(ROOT), core.list(f"{ROOT}/{FIRST}"), core.volumes.states()
    with pytest.raises(ReadOnlyVolume):
        REFUSED[name](core, who)
    assert before == (core.list(ROOT), core.list(f"{ROOT}/{FIRST}"), core.volumes.states())


def test_nobody_but_the_writer_makes_a_staged_step(core: Core) -> None:
    tree = core.tree(CM, "2", {"a": b"a2", "new": b"n"})
    view = core.volumes.stage(VOLUME, NEXT, tree, digest(tree), META)
    plan = plan_update(view, NEXT, tree)
    for step in [*plan.steps, *(step for steps in plan.removals.values() for step in steps)]:
        for other in (OTHER, Caller(0, 0, 0)):
            with pytest.raises(ReadOnlyVolume):
                core.perform([step], other)
        core.perform([step])


def test_a_forgotten_writer_is_nobody(core: Core) -> None:
    steps = stage(core, core.tree(CM, "2", {"a": b"a2"}))
    core.volumes.writer.forget()
    with pytest.raises(ReadOnlyVolume):
        core.perform(steps[:1])


def test_the_writer_is_who_looked_the_nonce_up_but_never_pid_0() -> None:
    core = Core()
    writer = core.volumes.writer
    writer.register("..n2")
    assert not writer.is_writer(WRITER)
    with pytest.raises(NoSuchEntry):
        core.fs.lookup(1, "..n2", Caller(0, 0, 0))
    assert not writer.confirmed
    with pytest.raises(NoSuchEntry):
        core.fs.lookup(1, "..n2", OTHER)
    assert writer.confirmed
    with pytest.raises(NoSuchEntry):
        core.fs.lookup(1, "..n2", WRITER)
    assert writer.is_writer(OTHER)
    assert not writer.is_writer(WRITER)


def test_a_version_becomes_current_only_with_its_mode(core: Core) -> None:
    steps = [step for step in stage(core, core.tree(CM, "2", {"a": b"a2"})) if step.call != "chmod"]
    core.perform(steps[:2])
    with pytest.raises(ReadOnlyVolume):
        core.perform(steps[2:3])


def test_the_kernel_may_drop_setgid_from_an_ordinary_users_chmod() -> None:
    core = Core()
    core.publish(core.tree(CM, "1", {"a": b"1"}, directory_mode=0o2755, gid=55))
    tree = core.tree(CM, "2", {"a": b"2"}, directory_mode=0o2755, gid=55)
    core.perform(stage(core, tree)[:1])
    attr = core.fs.setattr(core.walk(f"{ROOT}/{NEXT}").nodeid, SetAttr(mode=0o755), None, WRITER)
    assert attr.mode == stat.S_IFDIR | 0o2755


def test_rename_flags_and_making_twice_are_refused(core: Core) -> None:
    steps = stage(core, core.tree(CM, "2", {"a": b"a2"}))
    core.perform(steps[:3])
    root = _root(core)
    for flags in (1, 2):
        with pytest.raises(ReadOnlyVolume):
            core.fs.rename(root, DATA_LINK_TMP, root, DATA_LINK, flags, WRITER)
    for step in (steps[0], steps[2]):
        with pytest.raises(FileSystemError) as caught:
            core.perform([step])
        assert caught.value.errno == errno.EEXIST


def test_a_retired_version_goes_bottom_up_only(core: Core) -> None:
    core.perform(stage(core, core.tree(CM, "2", {"a": b"a2"})))
    for wrong, number in (
        (Step("rmdir", FIRST), errno.ENOTEMPTY),
        (Step("rmdir", f"{FIRST}/dir"), errno.ENOTEMPTY),
        (Step("unlink", f"{FIRST}/dir"), errno.EISDIR),
        (Step("rmdir", f"{FIRST}/a"), errno.ENOTDIR),
        (Step("unlink", f"{FIRST}/gone"), errno.ENOENT),
        (Step("unlink", FIRST), errno.EISDIR),
    ):
        with pytest.raises(FileSystemError) as caught:
            core.perform([wrong])
        assert caught.value.errno == number, wrong


# -------------------------------------------------------------------------------------------- secrets


def test_secrets_are_read_past_the_page_cache_and_swept_out_of_it_at_each_close() -> None:
    core = Core()
    secret = ObjectRef(SECRET, "shop", "s")
    core.publish(core.tree(secret, "1", {"k": b"v"}))
    attr = core.walk(f"{ROOT}/k")
    fh1, handle = core.fs.open(attr.nodeid, os.O_RDONLY, OTHER)
    fh2, _ = core.fs.open(attr.nodeid, os.O_RDONLY, OTHER)
    assert (handle.direct_io, handle.keep_cache) == (True, False)
    for count, fh in enumerate((fh1, fh2), 1):
        core.fs.release(fh)
        assert core.notifications.count(PagesStale(attr.nodeid)) == count


def test_config_maps_stay_in_the_page_cache(core: Core) -> None:
    fh, handle = core.fs.open(_file(core), os.O_RDONLY, OTHER)
    assert (handle.direct_io, handle.keep_cache, handle.blocking) == (False, True, False)
    core.notifications.clear()
    core.fs.release(fh)
    assert core.notifications == []


# -------------------------------------------------------------------------------------------- interruption

keys = st.sampled_from(["a", "b", "dir/c", "dir/d", "deep/er/e"])
contents = st.dictionaries(keys, st.sampled_from([b"1", b"2"]), max_size=5)
interruptions = st.lists(st.tuples(contents, st.integers(0, 14)), max_size=5)


@given(first=contents, interrupted=interruptions, last=contents, forgetting=st.booleans())
@settings(deadline=None)
def test_an_update_that_stops_anywhere_is_whole_and_the_next_one_completes(
    first: dict[str, bytes], interrupted: list[tuple[dict[str, bytes], int]], last: dict[str, bytes], forgetting: bool
) -> None:
    core = Core()
    core.publish(core.tree(CM, "0", first))
    shown = first
    for number, (data, steps) in enumerate([*interrupted, (last, 10_000)], 1):
        tree = core.tree(CM, str(number), data)
        directory = f"..2026_{number}"
        view = core.volumes.stage(VOLUME, directory, tree, digest(tree), META)
        assert core.volumes.stage(VOLUME, directory, tree, digest(tree), META) == view, "staging is idempotent"
        plan = plan_update(view, directory, tree)
        for step in [*plan.steps, *(step for removal in plan.removals.values() for step in removal)][:steps]:
            core.perform([step])
            if step.call == "rename":
                shown = data
            assert seen(core) == shown
        if forgetting:
            core.forget_all()
    tops = {path.partition("/")[0] for path in last}
    assert set(core.list(ROOT)) == {directory, DATA_LINK} | tops
    for path, content in last.items():
        assert core.read(f"{ROOT}/{path}") == content
    assert core.volumes.states()[0].settled
    core.forget_all()
    for path in last:
        held = core.volumes.contents.acquire(ContentRef(CM, str(number), path, ""))
        assert held.references == 3, "the store's, the current version's and this one"


def seen(core: Core) -> dict[str, bytes]:
    """All files below `..data`."""
    found = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        for name in core.list(f"{ROOT}/{DATA_LINK}/{prefix}"):
            path = f"{prefix}{name}"
            if stat.S_ISDIR(core.walk(f"{ROOT}/{DATA_LINK}/{path}").mode):
                pending.append(path + "/")
            else:
                found[path] = core.read(f"{ROOT}/{DATA_LINK}/{path}")
    return found
