from __future__ import annotations

from pathlib import Path

import pytest

from fusevol.system.mounts import MountInfo, find_mount, mounts_at, parse, roots_on
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


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r"])
def test_only_the_kernels_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    name = f"/srv/a{separator}b"
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, f"41 20 0:51 / {name} rw - tmpfs tmpfs rw", MAIN])
    found = find_mount(Path(name), tmp_path)
    assert found is not None
    assert found.device == "0:51"
    assert roots_on("0:51", tmp_path) == [(100, "/", name)]
    assert roots_on("0:50", tmp_path) == [(100, "/", "/mnt")]


def test_bytes_that_are_no_utf_8_come_back_as_they_are(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT])
    with (tmp_path / "100/mountinfo").open("ab") as file:
        file.write(b"41 20 0:51 / /mnt/\xff\x85 rw - tmpfs tmpfs rw\n")
    assert [mount.device for mount in mounts_at(Path("/mnt/\udcff\udc85"), tmp_path)] == ["0:51"]


@pytest.mark.parametrize(
    "line", ["nonsense 0:50 with blanks", "x 20 0:50 / /mnt rw - tmpfs tmpfs rw", "1 2 0:50 / /x - "]
)
def test_a_line_that_is_none_hides_no_other(tmp_path: Path, line: str) -> None:
    FakeProc(tmp_path).add(100, [line, ROOT, MAIN])
    found = find_mount(Path("/mnt"), tmp_path)
    assert found is not None
    assert found.device == "0:50"
    assert roots_on("0:50", tmp_path) == [(100, "/", "/mnt")]


class TestHidden:
    """A mount over ours, or over a directory above it: a look-up of our mount point does not end on ours any more."""

    DEEP = "40 20 0:50 / /srv/mnt rw - fuse.fusevol fusevol rw"

    def at(self, tmp_path: Path, *mounts: str) -> tuple[str | None, list[str]]:
        FakeProc(tmp_path).add(100, mounts)
        found = find_mount(Path("/srv/mnt"), tmp_path)
        return (found and found.device), [mount.device for mount in mounts_at(Path("/srv/mnt"), tmp_path)]

    def test_over_it(self, tmp_path: Path) -> None:
        over = "41 40 0:60 / /srv/mnt rw - tmpfs tmpfs rw"
        assert self.at(tmp_path, ROOT, self.DEEP, over) == ("0:60", ["0:50", "0:60"])

    def test_over_a_directory_above(self, tmp_path: Path) -> None:
        over = "41 20 0:60 / /srv rw - tmpfs tmpfs rw"
        assert self.at(tmp_path, ROOT, self.DEEP, over) == (None, ["0:50"])

    def test_another_at_the_same_path_on_what_hides_it(self, tmp_path: Path) -> None:
        over = ["41 20 0:60 / /srv rw - tmpfs tmpfs rw", "42 41 0:61 / /srv/mnt rw - tmpfs tmpfs rw"]
        assert self.at(tmp_path, ROOT, self.DEEP, *over) == ("0:61", ["0:50", "0:61"])

    def test_not_by_what_stands_beside_or_was_there_before(self, tmp_path: Path) -> None:
        rootfs = "1 1 0:2 / / rw - rootfs rootfs rw"
        before = "30 20 0:70 / /srv rw - ext4 /dev/vdb rw"
        ours = "40 30 0:50 / /srv/mnt rw - fuse.fusevol fusevol rw"
        beside = ["41 30 0:60 / /srv/mnt2 rw - tmpfs tmpfs rw", "42 40 0:61 / /srv/mnt/in rw - tmpfs tmpfs rw"]
        assert self.at(tmp_path, rootfs, ROOT, before, ours, *beside) == ("0:50", ["0:50"])

    def test_in_a_root_directory_that_is_no_mount(self, tmp_path: Path) -> None:
        assert self.at(tmp_path, self.DEEP) == ("0:50", ["0:50"])
