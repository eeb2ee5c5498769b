"""The versions of an API volume: timestamped directories with files that never change."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from fusevol.model.errors import FusevolError, ReadOnlyVolume
from fusevol.model.objects import SECRET_KINDS
from fusevol.model.refs import DATA_LINK, DATA_LINK_TMP
from fusevol.model.tree import ContentRef, File, Tree
from fusevol.model.volume import VolumeMeta
from fusevol.server.content import Content, ContentStore
from fusevol.server.handles import FileHandle
from fusevol.server.inodes import Attr, Caller, InodeTable, Node, SetAttr
from fusevol.server.nodes import Directory, MemoryNode, Owner
from fusevol.server.notifications import EntryGone, Notify, PagesStale
from fusevol.server.writer import Writer

if TYPE_CHECKING:
    from fusevol.server.projected import ProjectedVolume


class Rejected(FusevolError):
    """What the agent asks for cannot be served, or does not fit what is there."""


class Surroundings(NamedTuple):
    """What every API volume needs of its server. `clock` gives nanoseconds since the epoch."""

    inodes: InodeTable
    contents: ContentStore
    writer: Writer
    owner: Owner
    notify: Notify
    clock: Callable[[], int]


def is_entry_name(name: str) -> bool:
    """Whether `name` can be one component of a path."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and len(os.fsencode(name)) <= 255


class ProjectedFile(MemoryNode):
    """A file of one version. `secret` files leave nothing in the page cache."""

    __slots__ = ("content", "notify", "secret")

    def __init__(
        self, nodeid: int, mode: int, owner: Owner, time_ns: int, content: Content, secret: bool, notify: Notify
    ) -> None:
        super().__init__(nodeid, mode, owner, time_ns)
        self.content = content  # one reference is the node's
        self.secret = secret
        self.notify = notify

    def attributes(self) -> Attr:
        return self._attr(stat.S_IFREG, 1, len(self.content))

    def open(self, flags: int, caller: Caller) -> FileHandle:
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise ReadOnlyVolume
        return SecretHandle(self) if self.secret else ContentHandle(self)

    def dispose(self) -> None:
        self.content.release()


class ContentHandle(FileHandle):
    """Reads the version that was opened to its end, whatever is published meanwhile."""

    __slots__ = ()

    node: ProjectedFile
    keep_cache = True

    def read(self, offset: int, size: int) -> memoryview:
        return self.node.content.view[offset : offset + size]


class SecretHandle(ContentHandle):
    """Past the page cache."""

    __slots__ = ()

    direct_io = True
    keep_cache = False

    def release(self) -> None:
        # a private mapping leaves its pages in the page cache, direct_io or not (FUSE.md 5). At every close, not at the
        # last one only: somebody may keep the file open for ever
        self.node.notify(PagesStale(self.node.nodeid))


class VersionDirectory(Directory):
    """A timestamped directory (`top` is itself) or one below it. What may happen to it is its volume's to say."""

    __slots__ = ("top", "volume")

    def __init__(
        self, nodeid: int, parent: Directory, mode: int, owner: Owner, time_ns: int, volume: ProjectedVolume
    ) -> None:
        super().__init__(nodeid, parent, mode, owner, time_ns)
        self.volume = volume
        self.top: VersionDirectory = parent.top if isinstance(parent, VersionDirectory) else self

    def setattr(self, changes: SetAttr, handle: FileHandle | None, caller: Caller) -> None:
        self.volume.check_writer(caller)
        self.volume.chmod(self, changes)

    def unlink(self, name: str, caller: Caller) -> None:
        self.volume.check_writer(caller)
        self.volume.check_retired(self.top)
        self.volume.remove(self, name, directory=False)

    def rmdir(self, name: str, caller: Caller) -> None:
        self.volume.check_writer(caller)
        self.volume.check_retired(self.top)
        self.volume.remove(self, name, directory=True)


class Version:
    """One version of a volume's tree, built whole before anybody sees it."""

    __slots__ = ("digest", "directory", "links", "meta", "name", "placed", "tree")

    def __init__(self, name: str, tree: Tree, digest: str, meta: VolumeMeta, directory: VersionDirectory) -> None:
        self.name = name
        self.tree = tree
        self.links = tree.links()
        self.digest = digest
        self.meta = meta
        self.directory = directory
        self.placed = False  # whether the directory stands in the volume's root


def build(volume: ProjectedVolume, name: str, tree: Tree, digest: str, meta: VolumeMeta) -> Version:
    """All nodes of a version. Raises Rejected, ContentMissing: then nothing of it is left."""
    if not name.startswith("..") or not is_entry_name(name) or name in (DATA_LINK, DATA_LINK_TMP):
        raise Rejected(f"{volume.ref}: {name!r} is no name for a version's directory")
    around = volume.around
    owner = around.owner.of(0, tree.gid)
    top = VersionDirectory(around.inodes.allocate(), volume.root, tree.directory_mode, owner, around.clock(), volume)
    try:
        for file in tree.files:
            _add(volume, top, file)
    except BaseException:
        detach(top)
        raise
    return Version(name, tree, digest, meta, top)


def _add(volume: ProjectedVolume, top: VersionDirectory, file: File) -> None:
    around = volume.around
    *directories, last = file.path.split("/")
    if file.path.startswith("..") or not all(map(is_entry_name, (*directories, last))):
        raise Rejected(f"{volume.ref}: {file.path!r} is no path for a file")
    parent: Directory = top
    for name in directories:
        below = parent.children.get(name)
        if below is None:
            nodeid = around.inodes.allocate()
            below = VersionDirectory(nodeid, parent, top.mode, top.owner, top.time_ns, volume)
            parent.insert(name, below, top.time_ns)
        if not isinstance(below, Directory):
            raise Rejected(f"{volume.ref}: {file.path!r} stands below a file")
        parent = below
    if last in parent.children:
        raise Rejected(f"{volume.ref}: {file.path!r} is there twice")
    secret = isinstance(file.content, ContentRef) and file.content.object.kind in SECRET_KINDS
    content = around.contents.acquire(file.content)
    owner = around.owner.of(file.uid, file.gid)
    node = ProjectedFile(around.inodes.allocate(), file.mode, owner, top.time_ns, content, secret, around.notify)
    parent.insert(last, node, top.time_ns)


def detach(node: Node, notify: Notify | None = None) -> None:
    """Takes a node that has left its parent out of the tree for ever, with all below it. With `notify` the kernel is
    told of what it knows below `node`, deepest first."""
    if isinstance(node, Directory):
        for name in list(node.children):
            child = node.take(name, node.time_ns)
            detach(child, notify)
            if notify is not None and child.lookups:
                notify(EntryGone(node.nodeid, name, child.nodeid))
    if isinstance(node, MemoryNode):
        node.detach()


def paths(directory: Directory, prefix: str = "") -> Iterator[str]:
    """All paths below, those of directories with a `/` at their end."""
    for name, child in directory.children.items():
        if isinstance(child, Directory):
            yield f"{prefix}{name}/"
            yield from paths(child, f"{prefix}{name}/")
        else:
            yield prefix + name
