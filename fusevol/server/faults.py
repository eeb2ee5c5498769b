"""Faults for tests of what a bug in a handler does.

With FUSEVOL_FAULT=OPERATION:NAME in its environment the server raises a RuntimeError in OPERATION (lookup, getattr,
open, read or release) of every file called NAME.
"""

from __future__ import annotations

from fusevol.server.filesystem import Emit, FileSystem
from fusevol.server.handles import FileHandle
from fusevol.server.inodes import Attr, Caller
from fusevol.server.volumes import Volumes

VARIABLE = "FUSEVOL_FAULT"


class FaultyFileSystem(FileSystem):
    """`fault` is OPERATION:NAME."""

    def __init__(self, volumes: Volumes, fault: str) -> None:
        super().__init__(volumes)
        self._operation, _, self._name = fault.partition(":")
        self._nodes: set[int] = set()
        self._fhs: set[int] = set()

    def _fail(self, operation: str, here: bool) -> None:
        if here and operation == self._operation:
            raise RuntimeError(f"a fault in {operation}, as ordered")

    def lookup(self, parent: int, name: str, caller: Caller) -> Attr:
        self._fail("lookup", name == self._name)
        attr = super().lookup(parent, name, caller)
        self._note(name, attr)
        return attr

    def readdir(self, fh: int, offset: int, emit: Emit) -> None:
        def noting(name: str, attr: Attr, after: int) -> bool:
            self._note(name, attr)
            return emit(name, attr, after)

        super().readdir(fh, offset, noting)

    def _note(self, name: str, attr: Attr) -> None:
        if name == self._name:
            self._nodes.add(attr.nodeid)

    def getattr(self, nodeid: int) -> Attr:
        self._fail("getattr", nodeid in self._nodes)
        return super().getattr(nodeid)

    def open(self, nodeid: int, flags: int, caller: Caller) -> tuple[int, FileHandle]:
        self._fail("open", nodeid in self._nodes)
        fh, handle = super().open(nodeid, flags, caller)
        if nodeid in self._nodes:
            self._fhs.add(fh)
        return fh, handle

    def file(self, fh: int) -> FileHandle:
        self._fail("read", fh in self._fhs)
        return super().file(fh)

    def release(self, fh: int) -> None:
        super().release(fh)
        self._fail("release", fh in self._fhs)
