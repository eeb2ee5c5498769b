"""emptyDirs for tests: over a directory without a mount, the kernel's side being played here, and through a mount."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusevol.model.errors import FileSystemError
from fusevol.model.refs import VolumeRef
from fusevol.protocol import messages
from fusevol.server.emptydir import EmptyDirVolume
from fusevol.server.emptydir.node import EmptyDirNode
from fusevol.server.inodes import Caller, InodeTable, Node
from fusevol.system.libc import checked, libc
from tests.support.server import META, ServerUnderTest, errno_of

ME = Caller(uid=os.geteuid(), gid=os.getegid(), pid=1)


USER = 1000
"""An ordinary user."""

CLONE_FS = 0x200


class Kernel:
    """What the kernel does: it remembers what it was given and walks paths name by name."""

    def __init__(self, backing: Path, mode: int = 0o777, gid: int = 0) -> None:
        self.inodes = InodeTable()
        self.backing = backing
        self.volume = EmptyDirVolume(self.inodes, str(backing), mode, gid)
        self.root = self.volume.root
        self.inodes.remember(self.root)

    def look_up(self, path: str) -> EmptyDirNode:
        node: Node = self.root
        for name in path.split("/"):
            node = self.known(node.lookup(name, ME))
        assert isinstance(node, EmptyDirNode)
        return node

    def known(self, node: Node) -> Node:
        self.inodes.remember(node)
        return node

    def forget(self, node: Node) -> None:
        self.inodes.forget(node.nodeid, node.lookups)

    def names(self, node: Node) -> list[str]:
        handle = node.opendir(ME)
        try:
            return sorted(entry.name for entry in handle.read(0) if entry.name not in (".", ".."))
        finally:
            handle.release()

    def content(self, node: Node) -> bytes:
        handle = node.open(os.O_RDONLY, ME)
        try:
            return bytes(handle.read(0, 1 << 20))
        finally:
            handle.release()


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The operation inside fails with this errno."""
    with pytest.raises(FileSystemError) as raised:
        yield
    assert errno.errorcode[raised.value.errno] == errno.errorcode[number]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Volume:
    """An emptyDir of a served mount: `path` over `backing`, which is made."""

    def __init__(self, server: ServerUnderTest, name: str, backing: Path) -> None:
        backing.mkdir(exist_ok=True)
        backing.chmod(0o777)
        self.ref = VolumeRef("uid-1", "kubernetes.io/empty-dir", name)
        self.backing = backing
        server.control.expect(messages.PublishEmptyDir(self.ref, str(backing), 0o777, 0, META), messages.Done)
        self.path = server.mount / self.ref.path


def as_user(volume: Volume, function: Callable[[], object], uid: int = USER, gid: int = USER) -> str:
    """Calls `function` as an ordinary user whose working directory is the volume: the tree above it is for root.

    `ok`, or the errno's name. Working directory, umask and (fs)uid are those of a thread that ends with the call.
    """
    answer: list[str] = []

    def user() -> None:
        checked(libc.unshare, CLONE_FS)
        os.chdir(volume.path)
        libc.setfsgid(gid)
        libc.setfsuid(uid)
        answer.append(errno_of(function))
        os.chdir("/")  # the thread may end after join() has returned, and the volume be busy until then

    thread = threading.Thread(target=user)
    thread.start()
    thread.join(60)
    (result,) = answer
    return result
