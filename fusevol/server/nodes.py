"""Nodes that stand in memory: directories and links, of the tree above the volumes and of API volumes alike."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from fusevol.model.errors import NoSuchEntry
from fusevol.server.handles import SnapshotHandle
from fusevol.server.inodes import FOREVER, Attr, Caller, Node

N = TypeVar("N", bound=Node)


class Owner(NamedTuple):
    """Who owns what a plan gives to root: root, or the ordinary user who mounted."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> Owner:
        return cls(os.geteuid(), os.getegid())

    def of(self, uid: int, gid: int) -> Owner:
        return Owner(uid or self.uid, gid or self.gid)


class MemoryNode(Node):
    """A node whose attributes are at hand. `time_ns` is when its content came to be what it is."""

    __slots__ = ("detached", "mode", "owner", "time_ns")

    def __init__(self, nodeid: int, mode: int, owner: Owner, time_ns: int) -> None:
        super().__init__(nodeid)
        self.mode = mode
        self.owner = owner
        self.time_ns = time_ns
        self.detached = False

    def detach(self) -> None:
        """The node has left the tree for ever. What it holds goes when the kernel holds it no longer."""
        self.detached = True
        if not self.known:
            self.dispose()

    def forgotten(self) -> None:
        if self.detached:
            self.dispose()

    def dispose(self) -> None:
        """Nobody can reach the node any more; called once."""

    def _attr(self, kind: int, nlink: int, size: int, timeout: float = FOREVER) -> Attr:
        return Attr(
            nodeid=self.nodeid,
            mode=kind | self.mode,
            nlink=0 if self.detached else nlink,
            uid=self.owner.uid,
            gid=self.owner.gid,
            size=size,
            atime_ns=self.time_ns,
            mtime_ns=self.time_ns,
            ctime_ns=self.time_ns,
            blocks=(size + 4095) // 4096 * 8 if kind != stat.S_IFLNK else 0,
            entry_timeout=timeout,
            attr_timeout=timeout,
        )


class Link(MemoryNode):
    """A symbolic link. `timeout` in seconds: a link that may lead elsewhere tomorrow is asked for each time."""

    __slots__ = ("target", "timeout")

    def __init__(self, nodeid: int, target: str, owner: Owner, time_ns: int, timeout: float = FOREVER) -> None:
        super().__init__(nodeid, 0o777, owner, time_ns)
        self.target = target
        self.timeout = timeout

    def attributes(self) -> Attr:
        return self._attr(stat.S_IFLNK, 1, len(os.fsencode(self.target)), self.timeout)

    def readlink(self) -> str:
        return self.target


class Directory(MemoryNode):
    """A directory whose entries are at hand. `parent` is None for the root of the mount."""

    __slots__ = ("_children", "parent")

    def __init__(self, nodeid: int, parent: Directory | None, mode: int, owner: Owner, time_ns: int) -> None:
        super().__init__(nodeid, mode, owner, time_ns)
        self.parent = parent
        self._children: dict[str, Node] = {}

    @property
    def children(self) -> Mapping[str, Node]:
        return self._children

    def attributes(self) -> Attr:
        subdirectories = sum(isinstance(child, Directory) for child in self._children.values())
        return self._attr(stat.S_IFDIR, 2 + subdirectories, 4096)

    def lookup(self, name: str, caller: Caller) -> Node:
        return self.child(name)

    def child(self, name: str) -> Node:
        """Raises NoSuchEntry."""
        try:
            return self._children[name]
        except KeyError:
            raise NoSuchEntry(name) from None

    def opendir(self, caller: Caller) -> SnapshotHandle:
        return MemoryDirectoryHandle(self)

    def insert(self, name: str, node: N, time_ns: int) -> N:
        self._children[name] = node
        self.time_ns = time_ns
        return node

    def take(self, name: str, time_ns: int) -> Node:
        """Removes an entry; the caller detaches the node. Raises NoSuchEntry."""
        node = self.child(name)
        del self._children[name]
        self.time_ns = time_ns
        return node


class MemoryDirectoryHandle(SnapshotHandle):
    """What a Directory held when it was last read from its start."""

    __slots__ = ()

    node: Directory

    def list(self) -> list[tuple[str, Node]]:
        return [(".", self.node), ("..", self.node.parent or self.node), *self.node.children.items()]
