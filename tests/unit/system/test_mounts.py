from __future__ import annotations

from pathlib import Path

from fusevol.system.mounts import MountInfo, find_mount, parse, roots_on
from tests.unit.system.fake_proc import MAIN, ROOT, FakeProc


def test_a_line_is_taken_apart() -> None:
    assert parse(
        "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue"
    ) == MountInfo(
        id=36,
        parent=35,
        device="98:0",
        root="/mnt1",
        deleted=False,
        mountpoint="/mnt2",
        shared=7,
        master=1,
        fstype="ext3",
        source="/dev/root",
    )


def test_blanks_backslashes_and_bytes_of_names_are_understood() -> None:
    line = r"1 2 0:5 /a\040b /x\134\011y\012z\043 rw - fuse.fusevol a\040source rw"
    mount = parse(line)
    assert (mount.root, mount.mountpoint, mount.source) == ("/a b", "/x\\\ty\nz#", "a source")
    assert (mount.shared, mount.master) == (None, None)


def test_a_removed_root_is_named_without_the_mark() -> None:
    mount = parse("1 2 0:5 /pods/u/volumes/p/v//deleted /v ro - fuse.fusevol fusevol rw")
    assert (mount.root, mount.deleted) == ("/pods/u/volumes/p/v", True)


def test_of_stacked_mounts_the_topmost_is_found(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    top = "39 40 0:51 / /mnt rw - fuse.fusevol fusevol rw"  # the kernel reuses ids: a smaller one may be the later
    proc.add(100, [ROOT, top, MAIN])
    found = find_mount(Path("/mnt"), tmp_path)
    assert found is not None
    assert found.device == "0:51"
    assert find_mount(Path("/mnt2"), tmp_path) is None


def test_roots_of_a_device_in_all_namespaces_each_once(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, MAIN])
    proc.add(101, [ROOT, MAIN])
    bind = "60 50 0:50 /pods/u/volumes/p/v /data ro,relatime - fuse.fusevol fusevol rw"
    gone = "61 50 0:50 /pods/u/volumes/p/w//deleted /old ro,relatime - fuse.fusevol fusevol rw"
    other = "62 50 0:5 / /dev rw - tmpfs tmpfs rw"
    proc.add(200, ["50 1 0:30 / / rw - overlay overlay rw", bind, gone, other], namespace=2)
    proc.add(201, ["50 1 0:30 / / rw - overlay overlay rw", bind, gone, other], namespace=2)
    (tmp_path / "300").mkdir()  # one that vanished before it could be looked at

    assert sorted(roots_on("0:50", tmp_path)) == [
        (100, "/", "/mnt"),
        (200, "/pods/u/volumes/p/v", "/data"),
        (200, "/pods/u/volumes/p/w", "/old"),
    ]
    assert roots_on("0:5", tmp_path) == [(200, "/", "/dev")]


def test_a_chrooted_process_does_not_hide_what_others_of_its_namespace_see(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [], root="/var/empty")
    proc.add(101, [ROOT, MAIN])
    assert roots_on("0:50", tmp_path) == [(101, "/", "/mnt")]
