"""Open files and directories, and the table by which the kernel's file handles find them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from fusevol.model.errors import NotSupported, ReadOnlyVolume, StaleNode
from fusevol.server.inodes import Node


class FileHandle:
    """An open file. All methods raise FileSystemError or OSError.

    `direct_io`: nothing of it stays in the page cache. `keep_cache`: what an earlier open left there is still right.
    `blocking`: reads, writes and fsync may wait for a disk, so an engine may run them in a thread, several at a time.
    """

    __slots__ = ("node",)

    direct_io = False
    keep_cache = False
    blocking = False

    def __init__(self, node: Node) -> None:
        self.node = node

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Fewer than `size` bytes only at the end of the file."""
        raise NotSupported

    def write(self, offset: int, data: bytes | memoryview) -> int:
        raise ReadOnlyVolume

    def fsync(self, datasync: bool) -> None:
        """Nothing to do where nothing is written."""

    def release(self) -> None:
        """The last descriptor was closed and the last mapping is gone; called once."""


class Entry(NamedTuple):
    """`offset` is where reading goes on after this entry: greater than 0, and ever growing in one directory handle."""

    name: str
    node: Node
    offset: int


class DirectoryHandle:
    """An open directory."""

    __slots__ = ("node",)

    blocking = False

    def __init__(self, node: Node) -> None:
        self.node = node

    def read(self, offset: int) -> Iterator[Entry]:
        """The entries after `offset`, lazily, `.` and `..` first (any node may stand for these: only its attributes
        are shown). 0 starts anew with what the directory holds now (rewinddir)."""
        raise NotSupported

    def fsync(self, datasync: bool) -> None:
        """Nothing to do where nothing is written."""

    def release(self) -> None:
        """Called once."""


class SnapshotHandle(DirectoryHandle):
    """A directory whose entries are at hand. Each reading from 0 lists what was there at that moment."""

    __slots__ = ("_entries",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._entries: list[tuple[str, Node]] = []

    def list(self) -> list[tuple[str, Node]]:
        """All entries with `.` and `..`."""
        raise NotImplementedError

    def read(self, offset: int) -> Iterator[Entry]:
        if offset == 0:
            self._entries = self.list()
        for index in range(offset, len(self._entries)):
            name, node = self._entries[index]
            yield Entry(name, node, index + 1)


H = TypeVar("H", FileHandle, DirectoryHandle)


class HandleTable(Generic[H]):
    """fh → handle. A fh is never used twice: a repeated RELEASE must not close somebody else's file."""

    def __init__(self) -> None:
        self._last = 0
        self._handles: dict[int, H] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def allocate(self, handle: H) -> int:
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def get(self, fh: int) -> H:
        """Raises StaleNode."""
        try:
            return self._handles[fh]
        except KeyError:
            raise StaleNode(fh) from None

    def release(self, fh: int) -> H:
        """Takes the handle out of the table; the caller calls its `release`. Raises StaleNode."""
        try:
            return self._handles.pop(fh)
        except KeyError:
            raise StaleNode(fh) from None
