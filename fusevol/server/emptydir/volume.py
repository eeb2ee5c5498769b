"""A backing directory, and which of its inodes the kernel knows.

One node per inode for as long as the kernel knows it, hard links included. Where the file system has file handles and
the server may open them, a node is its handle, and a descriptor of it is open only while it is in use. Elsewhere
(overlayfs, the server of an ordinary user) each known node holds an O_PATH descriptor of its own: such a volume is
limited to as many known inodes as the process may have descriptors (RLIMIT_NOFILE), EMFILE beyond.

All but reading, writing and fsync of open files belongs to the one thread that answers the kernel. The process's umask
is to be 0: the kernel has applied the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from weakref import WeakValueDictionary

from fusevol.model.errors import StaleNode
from fusevol.server.emptydir.descriptors import Descriptor, RecentDescriptors
from fusevol.server.emptydir.node import EmptyDirNode, EmptyDirRoot
from fusevol.server.inodes import InodeTable, Node
from fusevol.system import handles, paths

log = logging.getLogger(__name__)


class EmptyDirVolume:
    """The emptyDir over the directory `backing`, an absolute path that containers cannot change.

    If the directory is not there, or is removed later on, it is made anew behind the same root, with `mode`
    (set-group-id bit included) and `gid`. Raises OSError.
    """

    def __init__(self, inodes: InodeTable, backing: str, mode: int, gid: int) -> None:
        self._inodes = inodes
        self._backing = backing
        self._mode = mode
        self._gid = gid
        self._nodes: WeakValueDictionary[bytes | tuple[int, int], EmptyDirNode] = WeakValueDictionary()
        self._top: Descriptor | None = None  # open for reading: open_by_handle_at needs more than O_PATH
        self.recent = RecentDescriptors()
        self._open_top()
        self.root: Node = EmptyDirRoot(inodes.allocate(), self)

    def close(self) -> None:
        """Lets go of the backing directory: all nodes are stale from here on; open files read and write on."""
        self._top = None
        self.recent.clear()
        for node in list(self._nodes.values()):
            node.let_go()

    # ---------------------------------------------------------------------------------------- the directory

    def top(self) -> Descriptor:
        """The backing directory, made anew if it was removed. Raises StaleNode after close(), OSError."""
        if self._top is None:
            raise StaleNode(self._backing)
        if os.fstat(self._top.fd).st_nlink == 0:
            self._open_top()
        return self._top

    def _open_top(self) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            top = self.recent.open(os.open, self._backing, flags)
        except FileNotFoundError:
            log.warning("%s was removed: made anew, empty", self._backing)
            _make_parents(self._backing)
            os.mkdir(self._backing, 0o700)
            top = self.recent.open(os.open, self._backing, flags)
            with contextlib.suppress(PermissionError):  # an ordinary user's server may not give it away
                os.chown(top.fd, -1, self._gid)
            os.chmod(top.fd, self._mode)
        self._top = top
        self._device = os.fstat(top.fd).st_dev
        self._has_handles = handles.available(top.fd)

    # ---------------------------------------------------------------------------------------- its inodes

    def find(self, directory: Descriptor, name: str) -> Descriptor:
        """What stands at `name` in `directory` itself, never what it links to. Raises OSError."""
        return self.recent.open(paths.open_beneath, directory.fd, name, os.O_PATH | os.O_NOFOLLOW)

    def child(self, directory: Descriptor, name: str, parent: EmptyDirNode) -> EmptyDirNode:
        """The node at `name` in `directory`, an open directory of `parent`. Raises OSError."""
        return self.node(self.find(directory, name), parent)

    def node(self, descriptor: Descriptor, parent: EmptyDirNode) -> EmptyDirNode:
        """The node of an O_PATH descriptor that was found in `parent`. Status and handle are taken from the descriptor,
        not from the name: they must be of one inode (TAKEOVER.md 3). Raises OSError."""
        identity, mode = self._identify(descriptor)
        node = self._nodes.get(identity)
        if node is None:
            node = EmptyDirNode(self._inodes.allocate(), self, identity, stat.S_IFMT(mode))
            self._nodes[identity] = node
            node.keep(descriptor)
            self.used(node)
        node.near_root |= parent is self.root
        return node

    def reopen(self, node: EmptyDirNode) -> Descriptor:
        """A descriptor of a node that has none. Raises StaleNode, OSError (ESTALE if the inode is gone)."""
        top = self.top()
        if not isinstance(node.identity, bytes):
            raise StaleNode(node.nodeid)
        descriptor = self.recent.open(handles.open_handle, top.fd, node.identity, os.O_PATH)
        node.keep(descriptor)
        return descriptor

    def used(self, node: EmptyDirNode) -> None:
        """Nodes with a handle keep a descriptor only while they are among those used last."""
        if isinstance(node.identity, bytes):
            self.recent.used(node)

    def removed(self, victim: Descriptor) -> None:
        """A name of this inode was removed: if it was the last, whoever still uses the inode must find it."""
        status = os.fstat(victim.fd)
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 0:
            node = self._nodes.get(self._identify(victim)[0])
            if node is not None and node.known:
                node.removed(victim)

    def forgotten(self, node: EmptyDirNode) -> None:
        """The inode gets another node if the kernel ever asks for it again."""
        self.recent.drop(node)
        if self._nodes.get(node.identity) is node:
            del self._nodes[node.identity]

    def _identify(self, descriptor: Descriptor) -> tuple[bytes | tuple[int, int], int]:
        """What makes an inode the same one, and its mode."""
        status = os.fstat(descriptor.fd)
        if self._has_handles and status.st_dev == self._device:
            return handles.of_descriptor(descriptor.fd), status.st_mode
        # what is mounted below the backing directory has handles of its own, which would lead elsewhere here
        return (status.st_dev, status.st_ino), status.st_mode


def _make_parents(path: str) -> None:
    """As os.makedirs, but all that is missing gets mode 0750: the server has no umask."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_parents(parent)
        os.mkdir(parent, 0o750)
