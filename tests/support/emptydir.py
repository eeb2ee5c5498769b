"""An emptyDir over a directory, without a mount: the kernel's side of it is played here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusevol.model.errors import FileSystemError
from fusevol.server.emptydir import EmptyDirVolume
from fusevol.server.emptydir.node import EmptyDirNode
from fusevol.server.inodes import Caller, InodeTable, Node

ME = Caller(uid=os.geteuid(), gid=os.getegid(), pid=1)


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
