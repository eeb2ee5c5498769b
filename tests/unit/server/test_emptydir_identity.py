"""emptyDir: one node per inode, and finding the inode again: by its handle, or by a descriptor where there are none."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.model.errors import StaleNode
from fusevol.server.emptydir import EmptyDirVolume
from fusevol.server.inodes import InodeTable
from fusevol.system import handles
from tests.support.emptydir import ME, Kernel, descriptors, refused


@pytest.fixture(params=["handles", "overlayfs"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kernel]:
    """On a file system with handles and on one without, which needs root to be mounted."""
    backing = tmp_path / "backing"
    backing.mkdir()
    overlay = request.param == "overlayfs"
    if overlay:
        if os.geteuid() != 0:
            pytest.skip("needs root to mount an overlayfs")
        layers = tmp_path / "layers"
        subprocess.run(["mount", "-t", "tmpfs", "layers", _made(layers)], check=True)
        options = f"lowerdir={_made(layers / 'l')},upperdir={_made(layers / 'u')},workdir={_made(layers / 'w')}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, backing], check=True)
        backing = backing / "volume"
        backing.mkdir()
    fd = os.open(backing, os.O_RDONLY)
    available = handles.available(fd)
    os.close(fd)
    try:
        if available is overlay:
            pytest.skip(f"file handles are {'' if available else 'not '}available on {backing}")
        kernel = Kernel(backing)
        yield kernel
        kernel.volume.close()
    finally:
        gc.collect()  # a failed test's descriptors
        if overlay:
            subprocess.run(["umount", "-l", backing.parent, layers], check=True)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_an_inode_has_one_node_whatever_its_name(kernel: Kernel) -> None:
    node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    kernel.known(node)
    handle.release()
    directory = kernel.known(kernel.root.mkdir("directory", 0o700, ME))
    assert directory.link(node, "link", ME) is node
    kernel.root.rename("file", directory, "renamed", 0, ME)
    assert kernel.look_up("directory/link") is node
    assert kernel.look_up("directory/renamed") is node
    assert node.attributes().nlink == 2
    listed = {entry.name: entry.node for entry in directory.opendir(ME).read(0)}
    assert listed["link"] is listed["renamed"] is node


def test_nodeids_are_never_used_twice(kernel: Kernel) -> None:
    seen = set()
    for _ in range(50):
        node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
        kernel.known(node)
        handle.release()
        kernel.root.unlink("file", ME)
        assert node.nodeid not in seen
        seen.add(node.nodeid)
        kernel.forget(node)


def test_a_known_node_outlives_the_cache_of_descriptors(kernel: Kernel) -> None:
    nodes = []
    for number in range(200):
        node, handle = kernel.root.create(f"file{number}", 0o600, os.O_RDWR, ME)
        handle.write(0, b"x" * number)
        handle.release()
        nodes.append(kernel.known(node))
    assert [node.attributes().size for node in nodes] == list(range(200))
    assert len(kernel.volume.recent) <= 64


def test_a_removed_inode_stays_until_the_kernel_forgets_it(kernel: Kernel) -> None:
    file, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    handle.write(0, b"content")
    handle.release()
    kernel.known(file)
    directory = kernel.known(kernel.root.mkdir("directory", 0o700, ME))
    other, handle = kernel.root.create("other", 0o600, os.O_RDWR, ME)
    handle.release()
    kernel.known(other)
    kernel.root.unlink("file", ME)
    kernel.root.rmdir("directory", ME)
    third, handle = kernel.root.create("third", 0o600, os.O_RDWR, ME)
    handle.release()
    kernel.known(third)
    kernel.root.rename("third", kernel.root, "other", 0, ME)
    kernel.volume.recent.clear()
    assert [node.attributes().nlink for node in (file, other)] == [0, 0]
    assert kernel.content(file) == b"content"  # /proc/self/fd/N of an unlinked file
    with refused(errno.ENOENT):
        directory.create("x", 0o600, os.O_RDWR, ME)  # in a working directory that was removed
    open_before = descriptors()
    for node in (file, directory, other):
        kernel.forget(node)
    del node, file, directory, other
    gc.collect()  # of the error that was caught above
    assert descriptors() == open_before - 3


def test_one_of_two_links_removed_is_no_removed_inode(kernel: Kernel) -> None:
    node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    handle.release()
    kernel.known(node)
    kernel.root.link(node, "link", ME)
    kernel.root.unlink("file", ME)
    assert node.attributes().nlink == 1
    assert kernel.look_up("link") is node


def test_no_descriptor_is_left_when_all_is_forgotten(kernel: Kernel) -> None:
    before = descriptors()
    for number in range(100):
        node, handle = kernel.root.create(f"file{number}", 0o600, os.O_RDWR, ME)
        handle.release()
        kernel.known(node)
        kernel.forget(node)
        del node, handle
    for name in kernel.names(kernel.root):  # listed, and not looked up
        kernel.root.unlink(name, ME)
    assert descriptors() == before


def test_a_failed_removal_changes_nothing(kernel: Kernel) -> None:
    directory = kernel.known(kernel.root.mkdir("directory", 0o700, ME))
    kernel.known(directory.mkdir("child", 0o700, ME))
    with refused(errno.ENOTEMPTY):
        kernel.root.rmdir("directory", ME)
    assert kernel.names(kernel.look_up("directory")) == ["child"]


def test_what_is_removed_behind_our_back_is_stale_but_for_who_has_it_open(kernel: Kernel) -> None:
    for name in ("file", "open"):
        (kernel.backing / name).write_text(name)
    (kernel.backing / "directory").mkdir()
    file, opened, directory = (kernel.look_up(name) for name in ("file", "open", "directory"))
    handle = opened.open(os.O_RDONLY, ME)
    kernel.inodes.opened(opened)
    for name in ("file", "open"):
        (kernel.backing / name).unlink()
    (kernel.backing / "directory").rmdir()
    with refused(errno.ESTALE):
        file.attributes()
    with refused(errno.ESTALE):
        file.open(os.O_RDONLY, ME)
    with refused(errno.ESTALE):
        directory.lookup("x", ME)
    assert opened.attributes().nlink == 0
    assert handle.read(0, 10) == b"open"
    handle.release()
    with refused(errno.ENOENT):
        kernel.look_up("file")


def test_a_removed_backing_directory_is_made_anew_behind_the_same_root(kernel: Kernel) -> None:
    old = kernel.known(kernel.root.mkdir("old", 0o700, ME))
    shutil.rmtree(kernel.backing)
    assert kernel.root.attributes().mode & 0o7777 == 0o777
    assert kernel.backing.is_dir()
    assert kernel.names(kernel.root) == []
    with refused(errno.ESTALE):
        old.attributes()
    for number in range(3):
        shutil.rmtree(kernel.backing)
        node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
        handle.write(0, b"%d" % number)
        handle.release()
        assert (kernel.backing / "file").read_bytes() == b"%d" % number
        assert kernel.look_up("file") is node


def test_an_emptied_backing_directory_goes_on(kernel: Kernel) -> None:
    kernel.known(kernel.root.mkdir("old", 0o700, ME))
    (kernel.backing / "old").rmdir()
    with refused(errno.ENOENT):
        kernel.root.lookup("old", ME)
    assert kernel.root.mkdir("old", 0o700, ME).attributes().nlink >= 1


def test_a_closed_volume_is_stale_but_for_open_files(kernel: Kernel) -> None:
    node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    kernel.known(node)
    kernel.volume.close()
    for stale in (node, kernel.root):
        with pytest.raises(StaleNode):
            stale.attributes()
    assert handle.write(0, b"x") == 1
    handle.release()
    assert (kernel.backing / "file").read_text() == "x"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another group")
def test_the_new_backing_directory_has_mode_and_group_as_planned(tmp_path: Path) -> None:
    volume = EmptyDirVolume(InodeTable(), str(tmp_path / "pods/uid/volumes/v"), 0o2777, 2000)
    status = (tmp_path / "pods/uid/volumes/v").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2777, 0, 2000)
    assert (tmp_path / "pods/uid").stat().st_mode & 0o7777 == 0o750
    volume.close()


def test_the_backing_directory_itself_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "backing").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        EmptyDirVolume(InodeTable(), str(tmp_path / "backing"), 0o777, 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_what_is_mounted_below_the_backing_directory_keeps_its_identity(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "backing")
    (kernel.backing / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", kernel.backing / "mounted"], check=True)
    try:
        (kernel.backing / "mounted/file").write_text("below")
        file = kernel.look_up("mounted/file")
        kernel.volume.recent.clear()
        assert kernel.content(file) == b"below"
        with refused(errno.EXDEV):
            kernel.root.link(file, "link", ME)
        kernel.forget(file)
    finally:
        kernel.volume.close()
        subprocess.run(["umount", "-l", kernel.backing / "mounted"], check=True)


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_files_do_not_take_the_descriptors_that_others_need(kernel: Kernel, few_descriptors: int) -> None:
    (kernel.backing / "file").write_text("content")
    file = kernel.look_up("file")
    opened = []
    with refused(errno.ENFILE):
        while True:
            opened.append(file.open(os.O_RDONLY, ME))
    assert len(opened) > few_descriptors // 2
    with refused(errno.ENFILE):
        kernel.root.create("new", 0o600, os.O_RDWR, ME)
    kernel.known(kernel.root.mkdir("directory", 0o700, ME))
    assert sorted(os.listdir(kernel.backing)) == ["directory", "file"]
    for handle in opened:
        handle.release()
    assert kernel.content(file) == b"content"


def test_no_descriptor_left_is_an_error_of_that_request_only(kernel: Kernel, few_descriptors: int) -> None:
    (kernel.backing / "file").write_text("content")
    file = kernel.look_up("file")
    taken = _all_descriptors()
    kernel.volume.recent.clear()
    taken += _all_descriptors()
    with refused(errno.EMFILE):
        kernel.root.mkdir("directory", 0o700, ME)
    for fd in taken:
        os.close(fd)
    assert os.listdir(kernel.backing) == ["file"]
    assert kernel.content(file) == b"content"


def test_cached_descriptors_are_given_up_where_others_are_needed(kernel: Kernel, few_descriptors: int) -> None:
    for number in range(20):
        kernel.known(kernel.root.mkdir(f"directory{number}", 0o700, ME))
    if not len(kernel.volume.recent):
        pytest.skip("nothing is cached where there are no handles")
    taken = _all_descriptors()
    kernel.known(kernel.root.mkdir("another", 0o700, ME))
    assert kernel.look_up("directory0").attributes().nlink >= 1
    for fd in taken:
        os.close(fd)


def _all_descriptors() -> list[int]:
    """Takes all that are left."""
    taken = []
    while True:
        try:
            taken.append(os.open("/", os.O_PATH))
        except OSError:
            return taken
