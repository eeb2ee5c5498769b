"""An inode of a backing directory, and what is done to it.

Nothing is reached by a path: a name is one component below an open directory and never followed if it is a link, and
an inode is reached by a descriptor of itself. So links that containers make lead nowhere from here, and an operation
finds its inode whatever it is called by now.

Whether the caller may is the kernel's decision (default_permissions); the server acts as itself. Therefore new objects
are handed over to the caller at once, and set-user-id bits are cleared where the backing would do it for the caller.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fusevol.model.errors import (
    Backing,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotSupported,
    StaleNode,
)
from fusevol.server.emptydir.descriptors import Descriptor, refuse_reserved
from fusevol.server.emptydir.files import EmptyDirDirectory, EmptyDirFile
from fusevol.server.emptydir.ownership import MODE_BITS, clear_set_id, hand_over, undone
from fusevol.server.handles import FileHandle
from fusevol.server.inodes import FOREVER, Attr, Caller, CrossVolume, Node, SetAttr, Statfs
from fusevol.system import paths

if TYPE_CHECKING:
    from fusevol.server.emptydir.volume import EmptyDirVolume

P = ParamSpec("P")
R = TypeVar("R")

NEAR_ROOT_TIMEOUT = 1.0
"""Seconds for which the kernel may trust the attributes of the volume's root and of what stands directly in it: so it
notices when they were removed behind our back. Further down it trusts for ever, as all changes come through it."""


def of_backing(operation: Callable[P, R]) -> Callable[P, R]:
    """Turns the OSErrors of an operation on the backing directory into errors of the domain."""

    @functools.wraps(operation)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return operation(*args, **kwargs)
        except OSError as error:
            raise Backing.of(error) from None

    return wrapper


def component(name: str) -> str:
    """`name` if it is one component of a path. Raises InvalidArgument."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidArgument(name)
    return name


class EmptyDirNode(Node):
    """An inode below the volume's root, or the root itself (`EmptyDirRoot`)."""

    __slots__ = ("__weakref__", "_descriptor", "_removed", "identity", "kind", "near_root", "volume")

    def __init__(self, nodeid: int, volume: EmptyDirVolume, identity: bytes | tuple[int, int], kind: int) -> None:
        super().__init__(nodeid)
        self.volume = volume
        self.identity = identity
        self.kind = kind  # the S_IFMT bits: an inode never changes them
        self.near_root = False
        self._descriptor: Descriptor | None = None
        self._removed = False

    # ---------------------------------------------------------------------------------------- finding the inode

    def keep(self, descriptor: Descriptor) -> None:
        """Keeps a descriptor of the inode for the next operations."""
        self._descriptor = descriptor

    def let_go(self) -> None:
        """The descriptor is closed: there are too many, or the volume is gone."""
        self._descriptor = None

    def removed(self, descriptor: Descriptor) -> None:
        """The last name went, at the kernel's request. Who has the inode as working directory, or by a descriptor of
        /proc/self/fd, may still use it (TAKEOVER.md 6), and no handle finds it: it keeps its descriptor to the end.

        The price: its space is free when the kernel's FORGET has come, some milliseconds after the removal."""
        self._removed = True
        self._descriptor = descriptor
        self.volume.recent.drop(self)

    def forgotten(self) -> None:
        # said outright, since something may refer to the node for longer: its space is to be free by now
        self.volume.forgotten(self)
        self._descriptor = None

    def descriptor(self) -> Descriptor:
        """An O_PATH descriptor of the inode. Raises StaleNode if it was removed behind our back, OSError."""
        descriptor = self._descriptor or self.volume.reopen(self)
        if self._removed:
            return descriptor
        if not self.opens and os.fstat(descriptor.fd).st_nlink == 0:
            # ESTALE makes the kernel look the name up again
            raise StaleNode(self.nodeid)
        self.volume.used(self)
        return descriptor

    def _directory(self) -> Descriptor:
        if self.kind != stat.S_IFDIR:
            raise NotADirectory
        return self.descriptor()

    def _sibling(self, node: Node) -> EmptyDirNode:
        """`node` as one of this volume. Raises CrossVolume."""
        if not isinstance(node, EmptyDirNode) or node.volume is not self.volume:
            raise CrossVolume
        return node

    # ---------------------------------------------------------------------------------------- every inode

    @of_backing
    def attributes(self) -> Attr:
        status = os.fstat(self.descriptor().fd)
        return Attr(
            nodeid=self.nodeid,
            mode=status.st_mode,
            nlink=status.st_nlink,
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size,
            atime_ns=status.st_atime_ns,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            blocks=status.st_blocks,
            rdev=status.st_rdev,
            block_size=status.st_blksize,
            attr_timeout=NEAR_ROOT_TIMEOUT if self.near_root else FOREVER,
        )

    @of_backing
    def setattr(self, changes: SetAttr, handle: FileHandle | None, caller: Caller) -> None:
        descriptor = self.descriptor()
        if changes.size is not None:
            # by the handle: it may be writable where the file is not any more
            if isinstance(handle, EmptyDirFile) and handle.writable:
                os.ftruncate(handle.descriptor.fd, changes.size)
            else:
                os.truncate(descriptor.path, changes.size)
        if changes.uid is not None or changes.gid is not None:
            os.chown(descriptor.path, _or_unchanged(changes.uid), _or_unchanged(changes.gid))
        if changes.mode is not None:  # after chown, which clears set-user-id bits
            os.chmod(descriptor.path, changes.mode & MODE_BITS)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            paths.set_times(descriptor.path, changes.atime_ns, changes.mtime_ns)

    @of_backing
    def getxattr(self, name: str) -> bytes:
        return os.getxattr(self.descriptor().path, name)

    @of_backing
    def listxattr(self) -> list[str]:
        return os.listxattr(self.descriptor().path)

    @of_backing
    def setxattr(self, name: str, value: bytes) -> None:
        os.setxattr(self.descriptor().path, name, value)

    @of_backing
    def removexattr(self, name: str) -> None:
        os.removexattr(self.descriptor().path, name)

    @of_backing
    def statfs(self) -> Statfs:
        status = os.fstatvfs(self.descriptor().fd)
        return Statfs(
            block_size=status.f_frsize,
            blocks=status.f_blocks,
            blocks_free=status.f_bfree,
            blocks_available=status.f_bavail,
            files=status.f_files,
            files_free=status.f_ffree,
            name_max=status.f_namemax,
        )

    # ---------------------------------------------------------------------------------------- links and files

    @of_backing
    def readlink(self) -> str:
        return os.readlink("", dir_fd=self.descriptor().fd)

    @of_backing
    def open(self, flags: int, caller: Caller) -> EmptyDirFile:
        """Only access mode and O_TRUNC reach the backing: offsets of O_APPEND are the kernel's (TAKEOVER.md 14), and it
        sends FSYNC for O_SYNC."""
        if self.kind == stat.S_IFDIR:
            raise IsADirectory
        if self.kind != stat.S_IFREG:
            raise NotSupported  # the kernel opens fifos, sockets and devices itself
        wanted = flags & (os.O_ACCMODE | os.O_TRUNC) | os.O_CLOEXEC
        opened = self.volume.recent.open(os.open, self.descriptor().path, wanted)
        refuse_reserved(opened)
        if flags & os.O_TRUNC and caller.uid != 0:
            clear_set_id(opened)
        return EmptyDirFile(self, opened, flags)

    # ---------------------------------------------------------------------------------------- directories

    @of_backing
    def opendir(self, caller: Caller) -> EmptyDirDirectory:
        opened = self.volume.recent.open(os.open, self._directory().path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        refuse_reserved(opened)
        return EmptyDirDirectory(self, opened)

    @of_backing
    def lookup(self, name: str, caller: Caller) -> EmptyDirNode:
        return self.volume.child(self._directory(), component(name), self)

    @of_backing
    def create(self, name: str, mode: int, flags: int, caller: Caller) -> tuple[EmptyDirNode, EmptyDirFile]:
        directory = self._directory()
        how = flags & os.O_ACCMODE | os.O_CREAT | os.O_EXCL
        try:
            opened = self.volume.recent.open(paths.open_beneath, directory.fd, component(name), how, mode & MODE_BITS)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            node = self.lookup(name, caller)  # the kernel did not know of it
            return node, node.open(flags, caller)
        with undone(os.unlink, directory, name):
            refuse_reserved(opened)
            hand_over(opened, directory, mode, caller)
            descriptor = self.volume.recent.open(os.open, opened.path, os.O_PATH | os.O_CLOEXEC)
            return (node := self.volume.node(descriptor, self)), EmptyDirFile(node, opened, flags)

    @of_backing
    def mkdir(self, name: str, mode: int, caller: Caller) -> EmptyDirNode:
        directory = self._directory()
        os.mkdir(component(name), mode & MODE_BITS, dir_fd=directory.fd)
        return self._made(directory, name, mode, caller, os.rmdir)

    @of_backing
    def mknod(self, name: str, mode: int, rdev: int, caller: Caller) -> EmptyDirNode:
        if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and caller.uid != 0:
            raise Backing(os.strerror(errno.EPERM), errno.EPERM)  # the kernel asked for CAP_MKNOD already
        directory = self._directory()
        os.mknod(component(name), mode, rdev, dir_fd=directory.fd)
        return self._made(directory, name, mode, caller, os.unlink)

    @of_backing
    def symlink(self, name: str, target: str, caller: Caller) -> EmptyDirNode:
        directory = self._directory()
        os.symlink(target, component(name), dir_fd=directory.fd)
        return self._made(directory, name, 0, caller, os.unlink)

    def _made(
        self, directory: Descriptor, name: str, mode: int, caller: Caller, undo: Callable[..., None]
    ) -> EmptyDirNode:
        with undone(undo, directory, name):
            descriptor = self.volume.find(directory, name)
            hand_over(descriptor, directory, mode, caller)
            return self.volume.node(descriptor, self)

    @of_backing
    def link(self, node: Node, name: str, caller: Caller) -> EmptyDirNode:
        source = self._sibling(node)
        os.link(source.descriptor().path, component(name), dst_dir_fd=self._directory().fd, follow_symlinks=True)
        return source

    @of_backing
    def unlink(self, name: str, caller: Caller) -> None:
        directory = self._directory()
        victim = self.volume.find(directory, component(name))
        os.unlink(name, dir_fd=directory.fd)
        self.volume.removed(victim)

    @of_backing
    def rmdir(self, name: str, caller: Caller) -> None:
        directory = self._directory()
        victim = self.volume.find(directory, component(name))
        os.rmdir(name, dir_fd=directory.fd)
        self.volume.removed(victim)

    @of_backing
    def rename(self, name: str, new_parent: Node, new_name: str, flags: int, caller: Caller) -> None:
        if flags & ~(paths.RENAME_NOREPLACE | paths.RENAME_EXCHANGE):
            raise InvalidArgument(flags)
        target = self._sibling(new_parent)
        source_directory, target_directory = self._directory(), target._directory()
        try:
            victim = None if flags else self.volume.find(target_directory, component(new_name))
        except FileNotFoundError:
            victim = None
        paths.rename(source_directory.fd, component(name), target_directory.fd, component(new_name), flags)
        if victim is not None:
            self.volume.removed(victim)


class EmptyDirRoot(EmptyDirNode):
    """The volume's root: the same node whatever becomes of the backing directory."""

    __slots__ = ()

    def __init__(self, nodeid: int, volume: EmptyDirVolume) -> None:
        super().__init__(nodeid, volume, b"", stat.S_IFDIR)
        self.near_root = True

    def descriptor(self) -> Descriptor:
        return self.volume.top()


def _or_unchanged(number: int | None) -> int:
    return -1 if number is None else number
