"""The operations of the file system, as an engine calls them: one method each, synchronous, of a few lines.

A nodeid finds its node, the node does the work (`Node`), and what the kernel was given is counted. Failures are
FileSystemError or OSError; an engine turns them into an errno. Names are str, decoded with surrogateescape.
"""

from __future__ import annotations

from collections.abc import Callable

from fusevol.model.errors import FileSystemError, NoSuchAttribute, ReadOnlyVolume
from fusevol.model.objects import display_name
from fusevol.model.volume import VolumeMeta
from fusevol.server.handles import DirectoryHandle, FileHandle, HandleTable
from fusevol.server.inodes import ROOT, Attr, Caller, Node, SetAttr, Statfs
from fusevol.server.volumes import Volumes

PREFIX = "user.fusevol."

Emit = Callable[[str, Attr, int], bool]
"""Takes an entry, its attributes and its offset into a reply; False if there is no room for it."""


class FileSystem:
    """What the kernel sees of `volumes`. Belongs to one thread, but for the methods of `blocking` handles."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._inodes = volumes.inodes
        self._files: HandleTable[FileHandle] = HandleTable()
        self._directories: HandleTable[DirectoryHandle] = HandleTable()

    # ---------------------------------------------------------------------------------------- names

    def lookup(self, parent: int, name: str, caller: Caller) -> Attr:
        return self._entry(self._inodes.get(parent).lookup(name, caller))

    def forget(self, nodeid: int, count: int) -> None:
        self._inodes.forget(nodeid, count)

    def mkdir(self, parent: int, name: str, mode: int, caller: Caller) -> Attr:
        return self._entry(self._inodes.get(parent).mkdir(name, mode, caller))

    def mknod(self, parent: int, name: str, mode: int, rdev: int, caller: Caller) -> Attr:
        return self._entry(self._inodes.get(parent).mknod(name, mode, rdev, caller))

    def symlink(self, parent: int, name: str, target: str, caller: Caller) -> Attr:
        return self._entry(self._inodes.get(parent).symlink(name, target, caller))

    def link(self, nodeid: int, parent: int, name: str, caller: Caller) -> Attr:
        return self._entry(self._inodes.get(parent).link(self._inodes.get(nodeid), name, caller))

    def unlink(self, parent: int, name: str, caller: Caller) -> None:
        self._inodes.get(parent).unlink(name, caller)

    def rmdir(self, parent: int, name: str, caller: Caller) -> None:
        self._inodes.get(parent).rmdir(name, caller)

    def rename(self, parent: int, name: str, new_parent: int, new_name: str, flags: int, caller: Caller) -> None:
        self._inodes.get(parent).rename(name, self._inodes.get(new_parent), new_name, flags, caller)

    # ---------------------------------------------------------------------------------------- nodes

    def getattr(self, nodeid: int) -> Attr:
        return self._inodes.get(nodeid).attributes()

    def setattr(self, nodeid: int, changes: SetAttr, fh: int | None, caller: Caller) -> Attr:
        node = self._inodes.get(nodeid)
        node.setattr(changes, None if fh is None else self._files.get(fh), caller)
        return node.attributes()

    def readlink(self, nodeid: int) -> str:
        return self._inodes.get(nodeid).readlink()

    def statfs(self, nodeid: int = ROOT) -> Statfs:
        return self._inodes.get(nodeid).statfs()

    # ---------------------------------------------------------------------------------------- extended attributes

    def getxattr(self, nodeid: int, name: str) -> bytes:
        node = self._inodes.get(nodeid)
        meta = self._volumes.meta(node) if name.startswith(PREFIX) else None
        if meta is None:
            return node.getxattr(name)
        try:
            return _described(meta)[name]
        except KeyError:
            raise NoSuchAttribute(name) from None

    def listxattr(self, nodeid: int) -> list[str]:
        node = self._inodes.get(nodeid)
        meta = self._volumes.meta(node)
        if meta is None:
            return node.listxattr()
        return [*_described(meta), *(name for name in node.listxattr() if not name.startswith(PREFIX))]

    def setxattr(self, nodeid: int, name: str, value: bytes) -> None:
        self._changeable(nodeid, name).setxattr(name, value)

    def removexattr(self, nodeid: int, name: str) -> None:
        self._changeable(nodeid, name).removexattr(name)

    def _changeable(self, nodeid: int, name: str) -> Node:
        node = self._inodes.get(nodeid)
        if name.startswith(PREFIX) and self._volumes.meta(node) is not None:
            raise ReadOnlyVolume(name)
        return node

    # ---------------------------------------------------------------------------------------- files

    def open(self, nodeid: int, flags: int, caller: Caller) -> tuple[int, FileHandle]:
        """fh and handle. The handle's `direct_io` and `keep_cache` are for the reply."""
        return self._opened(self._inodes.get(nodeid).open(flags, caller))

    def create(self, parent: int, name: str, mode: int, flags: int, caller: Caller) -> tuple[Attr, int, FileHandle]:
        node, handle = self._inodes.get(parent).create(name, mode, flags, caller)
        fh, handle = self._opened(handle)
        try:
            return self._entry(node), fh, handle
        except BaseException:
            self.release(fh)
            raise

    def file(self, fh: int) -> FileHandle:
        """For read, write and fsync."""
        return self._files.get(fh)

    def release(self, fh: int) -> None:
        handle = self._files.release(fh)
        try:
            handle.release()
        finally:
            self._inodes.closed(handle.node)

    # ---------------------------------------------------------------------------------------- directories

    def opendir(self, nodeid: int, caller: Caller) -> int:
        handle = self._inodes.get(nodeid).opendir(caller)
        self._inodes.opened(handle.node)
        return self._directories.allocate(handle)

    def directory(self, fh: int) -> DirectoryHandle:
        """For fsyncdir."""
        return self._directories.get(fh)

    def readdir(self, fh: int, offset: int, emit: Emit) -> None:
        """Each entry that `emit` takes is also a lookup of its node, but `.` and `..` (READDIRPLUS)."""
        for name, node, after in self._directories.get(fh).read(offset):
            if name in (".", ".."):
                if not emit(name, node.attributes(), after):
                    return
                continue
            try:
                attr = self._entry(node)
            except (FileSystemError, OSError):
                continue  # it went between the listing and now
            if not emit(name, attr, after):
                self._inodes.forget(node.nodeid, 1)
                return

    def releasedir(self, fh: int) -> None:
        handle = self._directories.release(fh)
        try:
            handle.release()
        finally:
            self._inodes.closed(handle.node)

    # ---------------------------------------------------------------------------------------- counting

    def _entry(self, node: Node) -> Attr:
        """The reply that gives `node` to the kernel. Counted first: a node without attributes is forgotten again."""
        self._inodes.remember(node)
        try:
            return node.attributes()
        except BaseException:
            self._inodes.forget(node.nodeid, 1)
            raise

    def _opened(self, handle: FileHandle) -> tuple[int, FileHandle]:
        self._inodes.opened(handle.node)
        return self._files.allocate(handle), handle


def _described(meta: VolumeMeta) -> dict[str, bytes]:
    """The extended attributes of a volume's root."""
    objects = "\n".join(
        f"{shown.ref.kind}/{shown.ref.namespace}/{display_name(shown.ref)}@{shown.version}" for shown in meta.objects
    )
    values = {
        "namespace": meta.namespace,
        "pod": meta.pod,
        "objects": objects,
        "generation": str(meta.generation),
        "updated": meta.updated,
    }
    return {PREFIX + name: value.encode("utf-8", "surrogateescape") for name, value in values.items()}
