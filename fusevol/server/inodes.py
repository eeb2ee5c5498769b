"""Nodes, and the table by which the kernel's nodeids find them.

A node is what a name leads to: it has a nodeid for its whole life, which is never given to another. What an operation
does is decided by the node that it is asked of: each kind of node overrides what it can do, and the defaults here are
the refusals of everything that is read-only.

Two counts keep a node known to the kernel: `lookups`, which the kernel gives back with FORGET, and `opens`, its open
handles. FORGET may overtake RELEASE, so a node is forgotten when both are zero. Being forgotten is not being removed:
a node of the tree may be looked up again.

Everything here belongs to the one thread that answers the kernel.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import msgspec

from fusevol.model.errors import (
    FileSystemError,
    InvalidArgument,
    IsADirectory,
    NoSuchAttribute,
    NotADirectory,
    NotSupported,
    ReadOnlyVolume,
    StaleNode,
)

if TYPE_CHECKING:
    from fusevol.server.handles import DirectoryHandle, FileHandle

ROOT = 1
"""The nodeid of the mount's root (FUSE_ROOT_ID)."""

FOREVER = 1e9
"""Seconds: the time-out of what never changes, or of what a notification invalidates when it does."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks. `pid` is the thread's id in the pid namespace of the mounting process, 0 for callers outside of it
    (FUSE.md 3). The kernel has applied `umask` to modes already."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Attr(msgspec.Struct, frozen=True, gc=False):
    """The attributes of a node: `mode` with the type bits, times in ns since the epoch, `blocks` of 512 bytes.

    The time-outs, in seconds, say how long the kernel may go without asking for the name and the attributes.
    """

    nodeid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    blocks: int = 0
    rdev: int = 0
    block_size: int = 4096
    entry_timeout: float = FOREVER
    attr_timeout: float = FOREVER


class SetAttr(msgspec.Struct, frozen=True, gc=False):
    """What SETATTR asks to change; None stays as it is. `mode` is the permission bits with setuid, setgid, sticky."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Statfs(msgspec.Struct, frozen=True, gc=False):
    """As statvfs(3): blocks of `block_size` bytes."""

    block_size: int = 4096
    blocks: int = 0
    blocks_free: int = 0
    blocks_available: int = 0
    files: int = 0
    files_free: int = 0
    name_max: int = 255


class Node:
    """Base of all nodes. Operations raise FileSystemError; what a subclass does not override is refused.

    Names are str, decoded with surrogateescape. Methods that return a node do not count the lookup: `FileSystem` does.
    """

    __slots__ = ("lookups", "nodeid", "opens")

    def __init__(self, nodeid: int) -> None:
        self.nodeid = nodeid
        self.lookups = 0  # written by InodeTable only
        self.opens = 0  # written by InodeTable only

    @property
    def known(self) -> bool:
        """Whether the kernel may hold this node."""
        return bool(self.lookups or self.opens)

    def forgotten(self) -> None:
        """The kernel holds this node no longer: neither by a name nor by an open file."""

    # ---------------------------------------------------------------------------------------- every node

    def attributes(self) -> Attr:
        raise NotImplementedError

    def setattr(self, changes: SetAttr, handle: FileHandle | None, caller: Caller) -> None:
        """`handle` is the open file that ftruncate(2) and the like came through."""
        raise ReadOnlyVolume

    def getxattr(self, name: str) -> bytes:
        raise NoSuchAttribute(name)

    def listxattr(self) -> list[str]:
        return []

    def setxattr(self, name: str, value: bytes) -> None:
        raise ReadOnlyVolume

    def removexattr(self, name: str) -> None:
        raise ReadOnlyVolume

    def statfs(self) -> Statfs:
        return Statfs()

    # ---------------------------------------------------------------------------------------- links and files

    def readlink(self) -> str:
        raise InvalidArgument

    def open(self, flags: int, caller: Caller) -> FileHandle:
        """`flags` as of open(2); the kernel has dealt with O_CREAT, O_EXCL and O_TRUNC (FUSE.md 7)."""
        if stat.S_ISDIR(self.attributes().mode):
            raise IsADirectory
        raise NotSupported

    # ---------------------------------------------------------------------------------------- directories

    def opendir(self, caller: Caller) -> DirectoryHandle:
        raise NotADirectory

    def lookup(self, name: str, caller: Caller) -> Node:
        raise NotADirectory

    def create(self, name: str, mode: int, flags: int, caller: Caller) -> tuple[Node, FileHandle]:
        raise ReadOnlyVolume

    def mkdir(self, name: str, mode: int, caller: Caller) -> Node:
        raise ReadOnlyVolume

    def mknod(self, name: str, mode: int, rdev: int, caller: Caller) -> Node:
        raise ReadOnlyVolume

    def symlink(self, name: str, target: str, caller: Caller) -> Node:
        raise ReadOnlyVolume

    def link(self, node: Node, name: str, caller: Caller) -> Node:
        """A further `name` in this directory for `node`, which may be of any kind and any volume (then EXDEV)."""
        raise ReadOnlyVolume

    def unlink(self, name: str, caller: Caller) -> None:
        raise ReadOnlyVolume

    def rmdir(self, name: str, caller: Caller) -> None:
        raise ReadOnlyVolume

    def rename(self, name: str, new_parent: Node, new_name: str, flags: int, caller: Caller) -> None:
        """Asked of the old parent; `new_parent` may be of any kind and any volume (then EXDEV). `flags` are
        RENAME_NOREPLACE (1) and RENAME_EXCHANGE (2)."""
        raise ReadOnlyVolume


class CrossVolume(FileSystemError):
    """A link or a rename from one volume to another."""

    errno = errno.EXDEV


class InodeTable:
    """nodeid → node, for all nodes that the kernel may name."""

    def __init__(self) -> None:
        self._last = ROOT
        self._nodes: dict[int, Node] = {}  # those with lookups or opens, and the root

    def allocate(self) -> int:
        """A nodeid that was never used before and never will be again."""
        self._last += 1
        return self._last

    def set_root(self, node: Node) -> None:
        """The root has nodeid 1, and the kernel holds it for as long as the mount lives."""
        assert node.nodeid == ROOT
        self.remember(node)

    def get(self, nodeid: int) -> Node:
        """Raises StaleNode if the kernel was never told of it, or gave it back."""
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise StaleNode(nodeid) from None

    def __len__(self) -> int:
        return len(self._nodes)

    def remember(self, node: Node) -> None:
        """Counts one reply that gives `node` to the kernel."""
        node.lookups += 1
        self._nodes[node.nodeid] = node

    def forget(self, nodeid: int, count: int) -> None:
        """Gives `count` lookups back."""
        node = self._nodes.get(nodeid)
        if node is not None and nodeid != ROOT:
            # clamped: a count that errs upwards leaks a node, one that errs downwards would free a used one
            node.lookups = max(0, node.lookups - count)
            self._dismiss(node)

    def opened(self, node: Node) -> None:
        node.opens += 1
        self._nodes[node.nodeid] = node

    def closed(self, node: Node) -> None:
        node.opens -= 1
        self._dismiss(node)

    def _dismiss(self, node: Node) -> None:
        if not node.known and node.nodeid != ROOT:
            self._nodes.pop(node.nodeid, None)
            node.forgotten()
