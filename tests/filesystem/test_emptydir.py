"""emptyDir through a real mount: what a container's programs see of it."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusevol.system import paths
from tests.support.emptydir import USER, Volume, as_user
from tests.support.server import META, ServerUnderTest, errno_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and acts as other users"),
]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def opening(flags: int, use: Callable[[int], object] = lambda fd: None, name: str = "file") -> Callable[[], None]:
    """Opens, uses and closes a file."""

    def function() -> None:
        fd = os.open(name, flags)
        try:
            use(fd)
        finally:
            os.close(fd)

    return function


def writing(fd: int) -> None:
    os.write(fd, b"y")


# ------------------------------------------------------------------------------------------------ whose and which mode


def test_new_objects_have_the_callers_owner_mode_and_umask(volume: Volume) -> None:
    def make() -> None:
        os.umask(0o027)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir("directory", 0o777)
        os.symlink("file", "link")
        os.mkfifo("fifo", 0o666)
        os.umask(0)
        os.close(os.open("open", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir("tmp", 0o1777)

    assert as_user(volume, make, gid=1001) == "ok"
    modes = {name: stat.S_IMODE((volume.backing / name).lstat().st_mode) for name in os.listdir(volume.backing)}
    del modes["link"]
    assert modes == {"file": 0o640, "directory": 0o750, "fifo": 0o640, "open": 0o666, "tmp": 0o1777}
    for view in (volume.path, volume.backing):
        owners = {((view / name).lstat().st_uid, (view / name).lstat().st_gid) for name in os.listdir(view)}
        assert owners == {(USER, 1001)}


def test_a_setgid_volume_gives_its_group(volume: Volume) -> None:
    os.chown(volume.path, 0, 2000)
    volume.path.chmod(0o2777)

    def make() -> None:
        os.mkdir("directory")
        os.close(os.open("directory/file", os.O_CREAT | os.O_WRONLY, 0o660))

    assert as_user(volume, make) == "ok"
    directory, file = (volume.backing / "directory").stat(), (volume.backing / "directory/file").stat()
    assert (directory.st_uid, directory.st_gid, directory.st_mode & 0o7777) == (USER, 2000, 0o2755)
    assert (file.st_uid, file.st_gid) == (USER, 2000)


def test_permissions_are_the_kernels(volume: Volume) -> None:
    (volume.path / "root").write_text("x")
    (volume.path / "root").chmod(0o600)
    assert as_user(volume, opening(os.O_RDONLY, name="root")) == "EACCES"
    assert as_user(volume, lambda: os.chmod("root", 0o666)) == "EPERM"
    assert as_user(volume, lambda: os.chown("root", USER, USER)) == "EPERM"
    (volume.path / "blind").touch()
    (volume.path / "blind").chmod(0o222)
    assert as_user(volume, opening(os.O_WRONLY, name="blind")) == "ok"
    assert as_user(volume, opening(os.O_RDONLY, name="blind")) == "EACCES"
    assert as_user(volume, lambda: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))) == "EPERM"


@pytest.mark.parametrize(
    "change",
    [
        opening(os.O_WRONLY, writing),
        opening(os.O_WRONLY | os.O_TRUNC),
        lambda: os.truncate("file", 3),
        opening(os.O_WRONLY, lambda fd: os.ftruncate(fd, 3)),
    ],
    ids=["write", "O_TRUNC", "truncate", "ftruncate"],
)
def test_another_users_change_clears_set_user_id(volume: Volume, change: Callable[[], object]) -> None:
    file = volume.path / "file"
    file.write_text("0123456789")
    file.chmod(0o6777)
    assert as_user(volume, change) == "ok"
    assert file.stat().st_mode & 0o7777 == 0o777
    assert (volume.backing / "file").stat().st_mode & 0o7777 == 0o777


def test_roots_write_leaves_set_user_id(volume: Volume) -> None:
    file = volume.path / "file"
    file.write_text("0123456789")
    file.chmod(0o6777)
    with file.open("r+b") as opened:
        opened.write(b"x")
    assert file.stat().st_mode & 0o7777 == 0o6777
    os.chown(file, 5, 6)
    assert file.stat().st_mode & 0o7777 == 0o777


def test_a_write_takes_file_capabilities_away(volume: Volume) -> None:
    file = volume.path / "file"
    file.write_text("x")
    file.chmod(0o777)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, revision 2
    os.setxattr(file, "security.capability", capability)
    assert os.getxattr(volume.backing / "file", "security.capability") == capability
    assert as_user(volume, opening(os.O_WRONLY, writing)) == "ok"
    assert os.listxattr(volume.backing / "file") == []


# ------------------------------------------------------------------------------------------------ access control lists

ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER = 1, 2, 4, 0x10, 0x20
NOBODY = 0xFFFFFFFF


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Entries of tag, permissions, id (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


READ_FOR_USER = _acl(
    (ACL_USER_OBJ, 6, NOBODY),
    (ACL_USER, 4, USER),
    (ACL_GROUP_OBJ, 0, NOBODY),
    (ACL_MASK, 6, NOBODY),
    (ACL_OTHER, 0, NOBODY),
)


def test_access_control_lists_are_enforced_and_inherited(volume: Volume) -> None:
    file = volume.path / "file"
    file.write_text("secret")
    os.chown(file, 0, 2000)
    try:
        os.setxattr(volume.backing / "file", "system.posix_acl_access", READ_FOR_USER)
        os.removexattr(volume.backing / "file", "system.posix_acl_access")
    except OSError as error:
        pytest.skip(f"the backing file system has no access control lists: {error.strerror}")
    os.setxattr(file, "system.posix_acl_access", READ_FOR_USER)
    assert as_user(volume, opening(os.O_RDONLY)) == "ok"
    # the group's permission bits show the mask, 6, but the owning group has none
    assert as_user(volume, opening(os.O_RDONLY), uid=1500, gid=2000) == "EACCES"
    (volume.path / "directory").mkdir()
    os.setxattr(volume.path / "directory", "system.posix_acl_default", READ_FOR_USER)
    (volume.path / "directory/new").touch()
    assert os.listxattr(volume.backing / "directory/new") == ["system.posix_acl_access"]


# ------------------------------------------------------------------------------------------------ files


def test_unlinked_files_and_removed_directories_live_as_long_as_they_are_used(volume: Volume) -> None:
    with (volume.path / "file").open("w+b") as opened:
        opened.write(b"content")
        opened.flush()
        path_only = os.open(volume.path / "file", os.O_PATH)
        (volume.path / "file").unlink()
        opened.seek(0)
        assert opened.read() == b"content"
        assert os.fstat(opened.fileno()).st_nlink == 0
        os.ftruncate(opened.fileno(), 3)
    # nobody has it open any more
    with open(f"/proc/self/fd/{path_only}", "rb") as again:
        assert again.read() == b"con"
    os.close(path_only)
    (volume.path / "directory").mkdir()
    directory = os.open(volume.path / "directory", os.O_PATH)
    (volume.path / "directory").rmdir()
    assert os.fstat(directory).st_nlink in (0, 1)
    assert errno_of(lambda: os.mkdir("x", dir_fd=directory)) == "ENOENT"
    assert errno_of(lambda: os.stat("x", dir_fd=directory)) == "ENOENT"
    os.close(directory)
    assert os.listdir(volume.path) == []


def test_a_file_replaced_by_rename_keeps_its_content_for_who_has_it_open(volume: Volume) -> None:
    (volume.path / "old").write_text("old")
    (volume.path / "new").write_text("new")
    with (volume.path / "old").open() as opened:
        inode = os.fstat(opened.fileno()).st_ino
        (volume.path / "new").rename(volume.path / "old")
        assert opened.read() == "old"
        assert os.fstat(opened.fileno()).st_ino == inode
    assert (volume.path / "old").read_text() == "new"


def test_hard_links_are_one_inode(volume: Volume) -> None:
    (volume.path / "a").write_text("content")
    (volume.path / "directory").mkdir()
    os.link(volume.path / "a", volume.path / "directory/b")
    a, b = (volume.path / "a").stat(), (volume.path / "directory/b").stat()
    assert (a.st_ino, a.st_nlink) == (b.st_ino, b.st_nlink) == (a.st_ino, 2)
    (volume.path / "a").chmod(0o600)
    assert (volume.path / "directory/b").stat().st_mode & 0o777 == 0o600
    with (volume.path / "directory/b").open("a") as opened:
        opened.write(" and more")
    assert (volume.path / "a").read_text() == "content and more"
    (volume.path / "a").unlink()
    assert (volume.path / "directory/b").stat().st_nlink == 1


def test_rename_noreplace_and_exchange(volume: Volume) -> None:
    (volume.path / "a").write_text("A")
    (volume.path / "b").mkdir()
    directory = os.open(volume.path, os.O_RDONLY)
    assert errno_of(lambda: paths.rename(directory, "a", directory, "b", paths.RENAME_NOREPLACE)) == "EEXIST"
    paths.rename(directory, "a", directory, "b", paths.RENAME_EXCHANGE)
    assert (volume.path / "a").is_dir()
    assert (volume.path / "b").read_text() == "A"
    paths.rename(directory, "b", directory, "c", paths.RENAME_NOREPLACE)
    assert sorted(os.listdir(directory)) == ["a", "c"]
    assert errno_of(lambda: os.rename("a", "c", src_dir_fd=directory, dst_dir_fd=directory)) == "ENOTDIR"
    os.close(directory)


def test_two_volumes_are_two_file_systems_for_rename_and_link(
    server: ServerUnderTest, volume: Volume, tmp_path: Path
) -> None:
    other = Volume(server, "other", tmp_path / "other")
    (volume.path / "a").write_text("A")
    assert errno_of(lambda: os.rename(volume.path / "a", other.path / "a")) == "EXDEV"
    assert errno_of(lambda: os.link(volume.path / "a", other.path / "a")) == "EXDEV"
    shutil.move(volume.path / "a", other.path / "a")
    assert (other.path / "a").read_text() == "A"


def test_times_have_nanoseconds(volume: Volume) -> None:
    file = volume.path / "file"
    file.touch()
    os.utime(file, ns=(1_000_000_000_000_000_001, 1_111_111_111_222_222_222))
    assert file.stat().st_atime_ns == 1_000_000_000_000_000_001
    assert file.stat().st_mtime_ns == 1_111_111_111_222_222_222
    paths.set_times(str(file), None, 7)
    assert file.stat().st_atime_ns == 1_000_000_000_000_000_001
    assert file.stat().st_mtime_ns == 7
    before = time.time()
    os.utime(file)
    assert file.stat().st_mtime >= before - 1
    (volume.path / "link").symlink_to("file")
    os.utime(volume.path / "link", ns=(5, 6), follow_symlinks=False)
    assert (volume.path / "link").lstat().st_mtime_ns == 6
    assert file.stat().st_mtime_ns != 6


def test_appending_processes_lose_nothing(volume: Volume) -> None:
    def append(number: int) -> None:
        with open(volume.path / "log", "ab", buffering=0) as log:
            for line in range(200):
                log.write(f"{number} {line}\n".encode())

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (volume.backing / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {line}" for number in range(4) for line in range(200))


def test_mapped_memory_and_direct_io(volume: Volume) -> None:
    file = volume.path / "file"
    file.write_bytes(bytes(8192))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapped:
        mapped[4096:4101] = b"hello"
        mapped.flush()
    assert (volume.backing / "file").read_bytes()[4096:4101] == b"hello"
    fd = os.open(file, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as aligned:
        aligned[:] = b"d" * 4096
        assert os.pwrite(fd, aligned, 4096) == 4096
    os.close(fd)
    assert file.read_bytes() == bytes(4096) + b"d" * 4096


def test_programs_run_from_an_empty_dir(volume: Volume) -> None:
    shutil.copy("/bin/true", volume.path / "program")
    assert subprocess.run([volume.path / "program"], check=False).returncode == 0


def test_locks(volume: Volume) -> None:
    (volume.path / "lock").touch()
    with (volume.path / "lock").open("w") as first, (volume.path / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert errno_of(lambda: fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN"
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fifos_and_sockets_work_between_processes(volume: Volume) -> None:
    os.mkfifo(volume.path / "fifo")
    reader = threading.Thread(target=lambda: received.append((volume.path / "fifo").read_text()))
    received: list[str] = []
    reader.start()
    (volume.path / "fifo").write_text("through the pipe")
    reader.join(10)
    assert received == ["through the pipe"]


def test_extended_attributes(volume: Volume) -> None:
    file = volume.path / "file"
    file.touch()
    assert errno_of(lambda: os.getxattr(file, "user.none")) == "ENODATA"
    for size in (0, 1, 1000, 3000):
        os.setxattr(file, "user.some", b"v" * size)
        assert os.getxattr(file, "user.some") == b"v" * size
    os.setxattr(file, "user.other", b"\0\xff")
    assert sorted(os.listxattr(file)) == ["user.other", "user.some"]
    os.removexattr(file, "user.some")
    assert os.listxattr(volume.backing / "file") == ["user.other"]
    assert as_user(volume, lambda: os.setxattr("file", "user.mine", b"")) == "EACCES"
    assert os.getxattr(volume.path, "user.fusevol.pod") == META.pod.encode()
    assert errno_of(lambda: os.setxattr(volume.path, "user.fusevol.pod", b"x")) == "EROFS"


def test_names_and_links_may_be_any_bytes(volume: Volume) -> None:
    name, target = b"\xff\xfe caf\xc3\xa9", b"\x80/../" + b"t" * 1000
    root = os.fsencode(volume.path)
    os.symlink(target, root + b"/" + name)
    assert os.readlink(root + b"/" + name) == target
    assert os.listdir(os.fsencode(volume.backing)) == [name]
    assert errno_of(lambda: (volume.path / ("x" * 256)).touch()) == "ENAMETOOLONG"


def test_sync(volume: Volume) -> None:
    fd = os.open(volume.path / "file", os.O_CREAT | os.O_RDWR | os.O_SYNC, 0o600)
    os.write(fd, b"x")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(volume.path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    os.sync()
