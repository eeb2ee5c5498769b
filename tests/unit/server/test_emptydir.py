"""emptyDir: what each operation does to the backing directory, and whose what it makes is."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.server.emptydir import EmptyDirVolume
from fusevol.server.inodes import Caller, InodeTable, SetAttr
from fusevol.system import paths
from tests.support.emptydir import ME, Kernel, refused

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
USER = Caller(uid=1000, gid=1001, pid=2)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The server's: callers' masks are applied by the kernel."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    (tmp_path / "backing").mkdir()
    kernel = Kernel(tmp_path / "backing")
    yield kernel
    kernel.volume.close()


def test_a_created_file_is_written_read_and_stands_in_the_backing_directory(kernel: Kernel) -> None:
    node, handle = kernel.root.create("file", 0o640, os.O_RDWR, ME)
    assert handle.write(0, b"hello") == 5
    assert handle.write(5, memoryview(b" world")) == 6
    assert handle.read(0, 100) == b"hello world"
    assert handle.read(6, 3) == b"wor"
    assert handle.read(11, 100) == b""
    handle.fsync(True)
    handle.fsync(False)
    handle.release()
    assert (kernel.backing / "file").read_bytes() == b"hello world"
    attributes = node.attributes()
    assert (attributes.mode, attributes.size, attributes.nlink) == (stat.S_IFREG | 0o640, 11, 1)
    with refused(errno.EEXIST):
        kernel.root.create("file", 0o640, os.O_RDWR | os.O_EXCL, ME)


def test_create_without_excl_opens_what_is_there(kernel: Kernel) -> None:
    (kernel.backing / "file").write_text("there")
    node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    assert handle.read(0, 10) == b"there"
    handle.release()
    assert node is kernel.look_up("file")


def test_offsets_of_o_append_are_the_kernels(kernel: Kernel) -> None:
    (kernel.backing / "file").write_text("0123456789")
    handle = kernel.look_up("file").open(os.O_WRONLY | os.O_APPEND, ME)
    handle.write(2, b"ab")
    handle.release()
    assert (kernel.backing / "file").read_text() == "01ab456789"


def test_o_trunc_truncates(kernel: Kernel) -> None:
    (kernel.backing / "file").write_text("0123456789")
    kernel.look_up("file").open(os.O_WRONLY | os.O_TRUNC, ME).release()
    assert (kernel.backing / "file").read_text() == ""


def test_directories_links_and_special_files(kernel: Kernel) -> None:
    directory = kernel.root.mkdir("directory", 0o1750, ME)
    link = directory.symlink("link", "../elsewhere/\udcff", ME)
    fifo = kernel.root.mknod("fifo", stat.S_IFIFO | 0o620, 0, ME)
    socket = kernel.root.mknod("socket", stat.S_IFSOCK | 0o600, 0, ME)
    assert directory.attributes().mode == stat.S_IFDIR | 0o1750
    assert link.readlink() == "../elsewhere/\udcff"
    assert stat.S_ISLNK(link.attributes().mode)
    assert fifo.attributes().mode == stat.S_IFIFO | 0o620
    assert socket.attributes().mode == stat.S_IFSOCK | 0o600
    assert kernel.names(kernel.root) == ["directory", "fifo", "socket"]
    with refused(errno.EOPNOTSUPP):
        fifo.open(os.O_RDONLY, ME)  # would wait for a writer, and with it every other request
    with refused(errno.EISDIR):
        directory.open(os.O_RDONLY, ME)
    with refused(errno.ENOTDIR):
        fifo.lookup("x", ME)
    with refused(errno.ENOTEMPTY):
        kernel.root.rmdir("directory", ME)
    with refused(errno.ENOTDIR):
        kernel.root.rmdir("fifo", ME)
    directory.unlink("link", ME)
    kernel.root.rmdir("directory", ME)
    assert kernel.names(kernel.root) == ["fifo", "socket"]


@pytest.mark.root
@root_only
def test_new_objects_belong_to_the_caller(kernel: Kernel) -> None:
    file, handle = kernel.root.create("file", 0o4755, os.O_WRONLY, USER)
    handle.release()
    made = [
        file,
        kernel.root.mkdir("directory", 0o700, USER),
        kernel.root.symlink("link", "/etc/passwd", USER),
        kernel.root.mknod("fifo", stat.S_IFIFO | 0o600, 0, USER),
    ]
    assert {(node.attributes().uid, node.attributes().gid) for node in made} == {(1000, 1001)}
    assert file.attributes().mode == stat.S_IFREG | 0o4755
    assert os.stat("/etc/passwd").st_uid == 0


@pytest.mark.root
@root_only
def test_a_setgid_directory_gives_its_group_and_its_bit(kernel: Kernel) -> None:
    os.chown(kernel.backing, 0, 2000)
    kernel.backing.chmod(0o2777)
    file, handle = kernel.root.create("file", 0o660, os.O_WRONLY, USER)
    handle.release()
    directory = kernel.root.mkdir("directory", 0o755, USER)
    link = kernel.root.symlink("link", "file", USER)
    assert {node.attributes().gid for node in (file, directory, link)} == {2000}
    assert {node.attributes().uid for node in (file, directory, link)} == {1000}
    assert directory.attributes().mode == stat.S_IFDIR | 0o2755
    nested, handle = directory.create("nested", 0o600, os.O_WRONLY, USER)
    handle.release()
    assert nested.attributes().gid == 2000


@pytest.mark.root
@root_only
def test_device_nodes_are_for_root(kernel: Kernel) -> None:
    with refused(errno.EPERM):
        kernel.root.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), USER)
    node = kernel.root.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ME)
    assert node.attributes().rdev == os.makedev(1, 3)


def test_setattr_changes_what_it_is_told_to(kernel: Kernel) -> None:
    (kernel.backing / "file").write_text("0123456789")
    node = kernel.look_up("file")
    node.setattr(SetAttr(mode=0o4711), None, ME)
    node.setattr(SetAttr(atime_ns=1_000_000_000_123_456_789), None, ME)
    node.setattr(SetAttr(mtime_ns=1_111_111_111_987_654_321), None, ME)
    attributes = node.attributes()
    assert attributes.mode == stat.S_IFREG | 0o4711
    assert attributes.atime_ns == 1_000_000_000_123_456_789
    assert attributes.mtime_ns == 1_111_111_111_987_654_321
    node.setattr(SetAttr(size=4), None, ME)
    assert (kernel.backing / "file").read_text() == "0123"
    handle = node.open(os.O_WRONLY, ME)
    node.setattr(SetAttr(size=2), handle, ME)
    handle.release()
    handle = node.open(os.O_RDONLY, ME)
    node.setattr(SetAttr(size=1), handle, ME)
    handle.release()
    assert (kernel.backing / "file").read_text() == "0"
    with refused(errno.EINVAL):
        node.setattr(SetAttr(size=-1), None, ME)


@pytest.mark.root
@root_only
def test_chown_changes_links_themselves_and_leaves_what_is_not_given(kernel: Kernel) -> None:
    (kernel.backing / "outside").touch()
    (kernel.backing / "link").symlink_to("outside")
    link = kernel.look_up("link")
    link.setattr(SetAttr(uid=5), None, ME)
    link.setattr(SetAttr(gid=6, mtime_ns=7), None, ME)
    assert (link.attributes().uid, link.attributes().gid, link.attributes().mtime_ns) == (5, 6, 7)
    assert (kernel.backing / "outside").stat().st_uid == 0


@pytest.mark.root
@root_only
def test_set_user_id_goes_with_chown_unless_a_mode_is_given_too(kernel: Kernel) -> None:
    for name, changes, mode in (
        ("a", SetAttr(uid=5), 0o755),
        ("b", SetAttr(uid=5, mode=0o4755), 0o4755),
    ):
        (kernel.backing / name).touch()
        (kernel.backing / name).chmod(0o4755)
        node = kernel.look_up(name)
        node.setattr(changes, None, ME)
        assert node.attributes().mode & 0o7777 == mode


@pytest.mark.parametrize(
    ("before", "user", "after"), [(0o6755, USER, 0o755), (0o2644, USER, 0o2644), (0o6755, ME, 0o6755)]
)
def test_truncating_at_open_clears_set_user_id_for_all_but_root(
    kernel: Kernel, before: int, user: Caller, after: int
) -> None:
    if user is ME and os.geteuid() != 0:
        pytest.skip("not root")
    (kernel.backing / "file").touch()
    (kernel.backing / "file").chmod(before)
    kernel.look_up("file").open(os.O_WRONLY | os.O_TRUNC, user).release()
    assert (kernel.backing / "file").stat().st_mode & 0o7777 == after


def test_rename_in_all_its_kinds(kernel: Kernel) -> None:
    for name in "ab":
        (kernel.backing / name).write_text(name)
    directory = kernel.root.mkdir("directory", 0o755, ME)
    a = kernel.look_up("a")
    with refused(errno.EEXIST):
        kernel.root.rename("a", kernel.root, "b", paths.RENAME_NOREPLACE, ME)
    kernel.root.rename("a", kernel.root, "b", paths.RENAME_EXCHANGE, ME)
    assert kernel.look_up("b") is a
    kernel.root.rename("b", directory, "c", paths.RENAME_NOREPLACE, ME)
    assert kernel.look_up("directory/c") is a
    kernel.root.rename("a", directory, "c", 0, ME)
    assert kernel.content(kernel.look_up("directory/c")) == b"b"
    assert kernel.content(a) == b"a"  # replaced, and still known
    with refused(errno.EINVAL):
        kernel.root.rename("directory", kernel.root, "d", 4, ME)
    with refused(errno.ENOENT):
        kernel.root.rename("gone", kernel.root, "d", 0, ME)


def test_nothing_is_linked_or_renamed_into_another_volume(kernel: Kernel, tmp_path: Path) -> None:
    other = EmptyDirVolume(InodeTable(), str(tmp_path / "other"), 0o777, 0)
    (kernel.backing / "a").touch()
    with refused(errno.EXDEV):
        other.root.link(kernel.look_up("a"), "b", ME)
    with refused(errno.EXDEV):
        kernel.root.rename("a", other.root, "b", 0, ME)
    other.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc", "a\0b"])
def test_a_name_is_one_component(kernel: Kernel, name: str) -> None:
    (kernel.backing / "file").touch()
    for operation in (
        lambda: kernel.root.lookup(name, ME),
        lambda: kernel.root.create(name, 0o600, os.O_RDWR, ME),
        lambda: kernel.root.mkdir(name, 0o700, ME),
        lambda: kernel.root.mknod(name, stat.S_IFIFO, 0, ME),
        lambda: kernel.root.symlink(name, "x", ME),
        lambda: kernel.root.link(kernel.look_up("file"), name, ME),
        lambda: kernel.root.unlink(name, ME),
        lambda: kernel.root.rmdir(name, ME),
        lambda: kernel.root.rename("file", kernel.root, name, 0, ME),
        lambda: kernel.root.rename(name, kernel.root, "x", 0, ME),
    ):
        with refused(errno.EINVAL):
            operation()
    assert os.listdir(kernel.backing) == ["file"]


def test_links_out_of_the_volume_are_not_followed(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (kernel.backing / "link").symlink_to(tmp_path / "secret")
    (kernel.backing / "up").symlink_to("..")
    link = kernel.look_up("link")
    assert link.readlink() == str(tmp_path / "secret")
    with refused(errno.EOPNOTSUPP):
        link.open(os.O_RDWR, ME)
    with refused(errno.ENOTDIR):
        kernel.look_up("up").lookup("secret", ME)
    with refused(errno.EOPNOTSUPP):
        kernel.root.create("link", 0o600, os.O_RDWR, ME)
    with refused(errno.EEXIST):
        kernel.root.create("link", 0o600, os.O_RDWR | os.O_EXCL, ME)
    with refused(errno.EOPNOTSUPP):
        link.setattr(SetAttr(mode=0o777), None, ME)
    link.setattr(SetAttr(mtime_ns=5), None, ME)
    hard = kernel.root.link(link, "hard", ME)
    assert hard is link
    assert (kernel.backing / "hard").is_symlink()
    kernel.root.unlink("link", ME)
    kernel.root.rename("hard", kernel.root, "up", 0, ME)
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "secret").stat().st_mtime_ns > 5


def test_extended_attributes(kernel: Kernel) -> None:
    node, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    handle.release()
    with refused(errno.ENODATA):
        node.getxattr("user.none")
    with refused(errno.ENODATA):
        node.removexattr("user.none")
    with refused(errno.EOPNOTSUPP):
        node.setxattr("nonsense", b"")
    node.setxattr("user.empty", b"")
    node.setxattr("user.some", bytes(range(256)))
    assert (node.getxattr("user.empty"), node.getxattr("user.some")) == (b"", bytes(range(256)))
    assert sorted(node.listxattr()) == ["user.empty", "user.some"]
    node.removexattr("user.empty")
    assert node.listxattr() == ["user.some"]


def test_statfs_is_that_of_the_backing(kernel: Kernel) -> None:
    native, ours = os.statvfs(kernel.backing), kernel.root.statfs()
    assert (ours.block_size, ours.blocks, ours.files) == (native.f_frsize, native.f_blocks, native.f_files)
    assert ours.blocks_available <= ours.blocks_free <= ours.blocks


def test_reads_and_writes_run_in_other_threads_at_the_same_time(kernel: Kernel) -> None:
    _, handle = kernel.root.create("file", 0o600, os.O_RDWR, ME)
    piece = 64 << 10

    def work(number: int) -> None:
        for index in range(number, 64, 4):
            handle.write(index * piece, bytes([index]) * piece)
            assert handle.read(index * piece, piece) == bytes([index]) * piece

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.release()
    content = (kernel.backing / "file").read_bytes()
    assert content == b"".join(bytes([index]) * piece for index in range(64))
