from __future__ import annotations

from pathlib import Path

import pytest

from fusevol.system.holders import Holder, holders
from fusevol.system.mounts import parse
from tests.unit.system.fake_proc import MAIN, ROOT, FakeProc


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """One process that has nothing of the mount."""
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, MAIN], files=[("/etc/passwd", 20), ("socket:[7]", 9)])
    return proc


def found(proc: FakeProc, *exclude: int) -> list[Holder]:
    return holders(parse(MAIN), exclude, proc.root)


def test_nobody(proc: FakeProc) -> None:
    assert found(proc) == []


def test_open_files_working_and_root_directories_and_mappings(proc: FakeProc) -> None:
    mounts = [ROOT, MAIN]
    proc.add(101, mounts, command="tail", files=[("/mnt/pods/u/f", 40)])
    proc.add(102, mounts, command="bash", cwd="/mnt/pods")
    proc.add(103, mounts, command="chrooted", root="/mnt/pods/u")
    proc.add(104, mounts, command="mapper", maps="7f00-7f01 r--p 00000000 00:32 77    /mnt/pods/u/with blank\n")
    assert found(proc) == [
        (101, "tail", "/mnt/pods/u/f"),
        (102, "bash", "/mnt/pods"),
        (103, "chrooted", "/mnt/pods/u"),
        (104, "mapper", "/mnt/pods/u/with blank"),
    ]
    assert found(proc, 101, 102, 103, 104) == []


def test_what_only_looks_like_it_is_not_taken(proc: FakeProc) -> None:
    inner = "41 40 0:77 / /mnt/inner rw - tmpfs tmpfs rw"
    proc.add(101, [ROOT, MAIN], files=[("/mnt/below-the-mount", 20), ("/mntx/f", 20)], cwd="/mntx")
    proc.add(102, [ROOT, MAIN, inner], cwd="/mnt/inner/deep", root="/x")
    assert found(proc) == [(0, "mount", "/mnt/inner")]


def test_bind_mounts_here_and_in_containers(proc: FakeProc) -> None:
    bind = "61 20 0:50 /pods/u /elsewhere rw - fuse.fusevol fusevol rw"
    proc.add(101, [ROOT, MAIN, bind], root="/x")  # a view of its own
    container = ["50 1 0:30 / / rw - overlay overlay rw", "60 50 0:50 /pods/u/v /data ro - fuse.fusevol fusevol rw"]
    proc.add(200, container, namespace=2, command="app")
    proc.add(201, container, namespace=2, command="worker")
    assert found(proc) == [(0, "mount", "/elsewhere"), (200, "app", "/data")]


def test_a_file_opened_in_a_container_is_found_by_the_id_of_its_mount(proc: FakeProc) -> None:
    container = ["50 1 0:30 / / rw - overlay overlay rw", "60 50 0:50 /pods/u/v /data ro - fuse.fusevol fusevol rw"]
    proc.add(200, container, namespace=2, command="app")
    proc.add(201, container, namespace=2, command="worker", files=[("/data/..data/key", 60)])
    assert (201, "worker", "/data/..data/key") in found(proc)


def test_another_file_system_mounted_inside(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, MAIN, "41 40 0:77 / /mnt/inner rw - tmpfs tmpfs rw"])
    assert found(proc) == [(0, "mount", "/mnt/inner")]


class TestCopies:
    """Mount propagation puts our mount into the namespaces of others, and takes it away with ours."""

    def test_of_a_peer_and_of_a_slave_of_a_slave(self, proc: FakeProc) -> None:
        peer = ["70 1 254:0 / / rw shared:1 - ext4 /dev/vda rw", "71 70 0:50 / /mnt rw shared:9 - fuse.fusevol f rw"]
        slave = [
            "80 1 254:0 / / rw shared:5 master:1 - ext4 /dev/vda rw",
            "81 80 0:50 / /mnt rw - fuse.fusevol f rw",
        ]
        distant = ["90 1 254:0 / / rw master:5 - ext4 /dev/vda rw", "91 90 0:50 / /mnt rw - fuse.fusevol f rw"]
        for pid, mounts in ((200, peer), (300, slave), (400, distant)):
            proc.add(pid, mounts, namespace=pid)
        assert found(proc) == []

    def test_a_private_clone_holds_it(self, proc: FakeProc) -> None:
        private = ["70 1 254:0 / / rw - ext4 /dev/vda rw", "71 70 0:50 / /mnt rw - fuse.fusevol f rw"]
        proc.add(200, private, namespace=2, command="unshared")
        assert found(proc) == [(200, "unshared", "/mnt")]

    def test_a_bind_of_the_whole_elsewhere_holds_it(self, proc: FakeProc) -> None:
        elsewhere = ["70 1 254:0 / / rw master:1 - ext4 /dev/vda rw", "71 70 0:50 / /all rw - fuse.fusevol f rw"]
        proc.add(200, elsewhere, namespace=2, command="other")
        assert found(proc) == [(200, "other", "/all")]

    def test_a_bind_of_the_parent_directory_shows_the_same_place(self, tmp_path: Path) -> None:
        proc = FakeProc(tmp_path)
        deep = "40 20 0:50 / /srv/vol/mnt rw shared:9 - fuse.fusevol fusevol rw"
        bound = ["70 1 0:30 / / rw - overlay o rw", "72 70 254:0 /srv/vol /vol rw master:1 - ext4 /dev/vda rw"]
        proc.add(100, [ROOT, deep])
        proc.add(200, [*bound, "71 72 0:50 / /vol/mnt rw - fuse.fusevol f rw"], namespace=2)
        assert holders(parse(deep), (), proc.root) == []


class TestTakenFromItsPlace:
    """By `umount -l`, or moved: whoever stands on it stays there, and would get ENOTCONN."""

    def test_mounts_elsewhere_even_where_copies_would_be(self, tmp_path: Path) -> None:
        proc = FakeProc(tmp_path)
        proc.add(100, [ROOT])
        left = ["70 1 254:0 / / rw master:1 - ext4 /dev/vda rw", "71 70 0:50 / /mnt rw - fuse.fusevol f rw"]
        proc.add(200, left, namespace=2, command="slave")
        proc.add(
            300, ["50 1 0:30 / / rw - overlay o rw", "60 50 0:50 /pods/u/v /data ro - fuse.fusevol f rw"], namespace=3
        )
        assert found(proc) == [(200, "slave", "/mnt"), (300, "sleep", "/data")]

    def test_open_files_are_found_by_the_id_it_had(self, tmp_path: Path) -> None:
        proc = FakeProc(tmp_path)
        proc.add(100, [ROOT], files=[("/etc/passwd", 20)])
        proc.add(101, [ROOT], command="tail", files=[("/pods/u/f", 40)])
        assert found(proc) == [(101, "tail", "/pods/u/f")]

    def test_an_id_that_another_mount_has_got_since_tells_nothing(self, tmp_path: Path) -> None:
        proc = FakeProc(tmp_path)
        other = ["40 20 0:77 / /other rw - tmpfs tmpfs rw", "41 40 0:78 / /other/in rw - tmpfs tmpfs rw"]
        proc.add(100, [ROOT, *other], files=[("/other/f", 40)])
        proc.add(101, [ROOT, *other], files=[("/other/f", 40)])
        assert found(proc) == []

    def test_moved(self, tmp_path: Path) -> None:
        proc = FakeProc(tmp_path)
        proc.add(100, [ROOT, "40 20 0:50 / /moved rw - fuse.fusevol fusevol rw"])
        assert found(proc) == [(0, "mount", "/moved")]


def test_a_mount_over_it_stands_on_it(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, MAIN, "41 40 0:77 / /mnt rw - tmpfs tmpfs rw"])
    assert found(proc) == [(0, "mount", "/mnt")]


def test_names_with_line_separators_of_other_worlds(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(100, [ROOT, MAIN, "41 20 0:77 / /a\u2028b\x0bc rw - tmpfs tmpfs rw"])
    proc.add(101, [ROOT, MAIN], command="mapper", maps="7f00-7f01 r--p 00000000 00:32 77    /mnt/a\rb\n")
    assert found(proc) == [(101, "mapper", "/mnt/a\rb")]
