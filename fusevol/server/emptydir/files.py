"""Open files and directories of an emptyDir, each with a descriptor of the backing file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusevol.server.emptydir.descriptors import Descriptor
from fusevol.server.handles import DirectoryHandle, Entry, FileHandle
from fusevol.system import paths

if TYPE_CHECKING:
    from fusevol.server.emptydir.node import EmptyDirNode


class EmptyDirFile(FileHandle):
    """An open file. Its methods use nothing but the descriptor: they may run in any thread, several at a time."""

    __slots__ = ("descriptor", "writable")

    blocking = True
    keep_cache = True  # all changes come through this mount

    node: EmptyDirNode

    def __init__(self, node: EmptyDirNode, descriptor: Descriptor, flags: int) -> None:
        super().__init__(node)
        self.descriptor = descriptor
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY

    def read(self, offset: int, size: int) -> bytes:
        fd = self.descriptor.fd
        data = os.pread(fd, size, offset)
        # a short answer means the end of the file to the kernel: ask again whether it is that or an error of the disk
        while data and len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data += more
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Fewer bytes than `data` has if the rest failed: the next write then tells why, as on any file system."""
        fd = self.descriptor.fd
        written = os.pwrite(fd, data, offset)
        rest = memoryview(data)
        while written < len(rest):
            try:
                written += os.pwrite(fd, rest[written:], offset + written)
            except OSError:
                break
        return written

    def fsync(self, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(self.descriptor.fd)

    def release(self) -> None:
        del self.descriptor


class EmptyDirDirectory(DirectoryHandle):
    """An open directory. Offsets are the backing file system's own, so what telldir(3) said stays right for as long as
    it would there, and no more than one buffer of names is held."""

    __slots__ = ("_descriptor", "_names", "_next")

    blocking = True

    node: EmptyDirNode

    def __init__(self, node: EmptyDirNode, descriptor: Descriptor) -> None:
        super().__init__(node)
        self._descriptor = descriptor
        self._names: list[tuple[str, int]] = []  # what was read last, each with the offset behind it
        self._next = {0: 0}  # offset → index in _names of what stands behind it; len(_names): not read yet

    def read(self, offset: int) -> Iterator[Entry]:
        if offset == 0 or offset not in self._next:
            os.lseek(self._descriptor.fd, offset, os.SEEK_SET)
            self._hold([], offset)
        index = self._next[offset]
        while True:
            if index == len(self._names):
                self._hold(paths.read_directory(self._descriptor.fd), offset)
                index = 0
                if not self._names:
                    return
            name, offset = self._names[index]
            index += 1
            if name in (".", ".."):
                yield Entry(name, self.node, offset)
                continue
            try:
                child = self.node.volume.child(self._descriptor, name, self.node)
            except FileNotFoundError:
                continue  # removed since it was read
            yield Entry(name, child, offset)

    def _hold(self, names: list[tuple[str, int]], offset: int) -> None:
        """`names` are what stands behind `offset`."""
        self._names = names
        self._next = {offset: 0} | {behind: index for index, (_, behind) in enumerate(names, 1)}

    def fsync(self, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(self._descriptor.fd)

    def release(self) -> None:
        del self._descriptor
