"""emptyDirs on disk: kubelet's order since v1.20 (KUBELET.md 5.3-5.7)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.agent.volumemanager.backing import StateDirectory, remove_tree
from fusevol.model.refs import VolumeRef
from fusevol.model.tree import EmptyDir
from fusevol.system import tmpfs

REF = VolumeRef("u1", "kubernetes.io/empty-dir", "scratch")


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_set_up_makes_directory_and_ready_file(state: StateDirectory, tmp_path: Path) -> None:
    data = state.set_up(REF, EmptyDir())
    assert data == tmp_path / "pods/u1/volumes/kubernetes.io~empty-dir/scratch"
    ready = tmp_path / "pods/u1/plugins/kubernetes.io~empty-dir/scratch/ready"
    assert (mode(data), mode(ready), mode(ready.parent)) == (0o777, 0o644, 0o750)
    made = ("pods", "pods/u1", "pods/u1/volumes", "pods/u1/plugins", "pods/u1/plugins/kubernetes.io~empty-dir")
    assert {name: mode(tmp_path / name) for name in made} == dict.fromkeys(made, 0o750)
    assert mode(data.parent) == 0o755


def test_set_up_with_a_group_is_setgid(state: StateDirectory) -> None:
    data = state.set_up(REF, EmptyDir(mode=0o2777, gid=2000 if os.geteuid() == 0 else os.getegid()))
    assert mode(data) == 0o2777


def test_set_up_again_keeps_what_is_there(state: StateDirectory) -> None:
    data = state.set_up(REF, EmptyDir())
    (data / "file").write_text("kept")
    data.chmod(0o700)
    assert state.set_up(REF, EmptyDir()) == data
    assert (data / "file").read_text() == "kept"
    assert mode(data) == 0o700  # its container's business


def test_a_ready_file_without_its_directory_does_not_stop_set_up(state: StateDirectory) -> None:
    """The bug that v1.20 fixed (#95770): SetUp believed the ready file, and the Pod never started."""
    data = state.set_up(REF, EmptyDir())
    data.rmdir()
    assert state.set_up(REF, EmptyDir()).is_dir()
    assert mode(data) == 0o777


def test_tear_down_unsets_ready_before_the_data_goes(state: StateDirectory, tmp_path: Path) -> None:
    data = state.set_up(REF, EmptyDir())
    (data / "file").touch()
    state.unset_ready(REF)
    assert not (tmp_path / "pods/u1/plugins/kubernetes.io~empty-dir/scratch").exists()
    assert data.exists()
    assert state.scan() == [REF]  # a tear down that was interrupted here is known after a restart
    state.remove_data(REF)
    state.remove_pod("u1")
    assert not (tmp_path / "pods/u1").exists()
    state.remove_data(REF)  # again is fine


def test_scan_finds_a_ready_file_without_data_and_leaves_strangers(state: StateDirectory, tmp_path: Path) -> None:
    state.set_up(REF, EmptyDir()).rmdir()
    stranger = tmp_path / "pods/u1/volumes/kubernetes.io~csi"
    stranger.mkdir()
    assert state.scan() == [REF]
    state.unset_ready(REF)
    state.remove_pod("u1")
    assert stranger.exists()


def test_removal_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "d").mkdir()
    (inside / "d/up").symlink_to("../../outside")
    remove_tree(inside)
    assert not inside.exists()
    assert (outside / "precious").exists()


def test_removal_of_a_tree_4000_levels_deep(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(900 if os.geteuid() else 4000):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    remove_tree(top)
    assert not top.exists()


def test_removal_needs_few_descriptors_however_deep(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    code = f"""
import os, resource
from pathlib import Path
from fusevol.agent.volumemanager.backing import remove_tree
descriptor = os.open({str(top)!r}, os.O_RDONLY)
for _ in range(400):
    os.mkdir("d", dir_fd=descriptor)
    deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
    os.close(descriptor)
    descriptor = deeper
os.close(descriptor)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
remove_tree(Path({str(top)!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not top.exists()


def test_nested_mount_points_are_made_beneath_the_volume_only(state: StateDirectory, tmp_path: Path) -> None:
    """A container's link stands where one is to be made, and the ready file was lost."""
    plan = EmptyDir(mountpoints=("a/b", "link/evil"))
    data = state.data(REF)
    data.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (data / "link").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        state.set_up(REF, plan)
    assert mode(data / "a/b") == 0o755
    assert list(outside.iterdir()) == []


def test_a_mount_is_not_crossed(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    top = tmp_path / "top"
    (top / "mnt").mkdir(parents=True)
    assert os.system(f"mount -t tmpfs tmpfs {top}/mnt") == 0
    try:
        (top / "mnt/precious").touch()
        with pytest.raises(OSError, match="a mount stands here"):
            remove_tree(top)
        assert (top / "mnt/precious").exists()
    finally:
        assert os.system(f"umount {top}/mnt") == 0


def test_medium_memory_is_a_tmpfs_of_the_planned_size(state: StateDirectory) -> None:
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    plan = EmptyDir(medium="Memory", mode=0o1777, size_limit=1 << 20)
    data = state.set_up(REF, plan)
    try:
        figures = os.statvfs(data)
        assert figures.f_blocks * figures.f_frsize == 1 << 20
        assert mode(data) == 0o1777
        (data / "file").write_text("kept")
        assert state.set_up(REF, plan) == data
        assert (data / "file").read_text() == "kept"
        with pytest.raises(OSError, match="No space left"):
            (data / "large").write_bytes(bytes(2 << 20))
    finally:
        state.unset_ready(REF)
        state.remove_data(REF)
    assert not data.exists()


def test_a_ready_file_without_its_tmpfs_does_not_stop_set_up(state: StateDirectory) -> None:
    """After a reboot the directory and the ready file are there, the tmpfs is not."""
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    plan = EmptyDir(medium="Memory", mode=0o1777, size_limit=1 << 20)
    data = state.set_up(REF, plan)
    tmpfs.detach_tmpfs(data)
    assert not tmpfs.is_tmpfs(data)
    state.set_up(REF, plan)
    assert tmpfs.is_tmpfs(data)
    state.remove_data(REF)
