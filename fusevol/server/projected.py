"""API volumes: what a published tree looks like, and the only changes that it may see.

    <root>/..2026_11_22_19_35_35.4203523368/dir/file     a version's real files
    <root>/..data -> ..2026_11_22_19_35_35.4203523368    the version that is current
    <root>/dir    -> ..data/dir                          what users see

The first version is there at once. Every later one is staged, invisible, and the agent's writer makes it visible
through the mount with kubelet's own system calls (KUBELET.md 9). Exactly these are accepted, everybody else gets EROFS:

    mkdir <staged>                    once; the files appear with it
    chmod <staged> to its mode        before it may become current
    symlink ..data_tmp -> <staged>
    rename ..data_tmp ..data          from here on the staged version is the current one
    symlink <key> -> ..data/<key>     links of the current version
    unlink <key>                      links that the current version lacks
    unlink ..data_tmp                 whenever it is there
    unlink, rmdir below <retired>     a version that is neither current nor staged, and at last itself

The writer may stop for ever after any of them: `view` tells what stands, and another `stage` goes on from there.
"""

from __future__ import annotations

import errno
import stat

from fusevol.model.errors import FileSystemError, IsADirectory, NotADirectory, ReadOnlyVolume
from fusevol.model.refs import DATA_LINK, DATA_LINK_TMP, VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeMeta, VolumeState, VolumeView
from fusevol.server.inodes import Caller, Node, SetAttr
from fusevol.server.nodes import Directory, Link
from fusevol.server.versions import (
    Rejected,
    Surroundings,
    Version,
    VersionDirectory,
    build,
    detach,
    is_entry_name,
    paths,
)


class VolumeRoot(Directory):
    """The root of an API volume. What may happen to it is its volume's to say."""

    __slots__ = ("volume",)

    def __init__(
        self, volume: ProjectedVolume, parent: Directory, tree: Tree, around: Surroundings, time_ns: int
    ) -> None:
        super().__init__(around.inodes.allocate(), parent, tree.root_mode, around.owner.of(0, tree.gid), time_ns)
        self.volume = volume

    def mkdir(self, name: str, mode: int, caller: Caller) -> Node:
        self.volume.check_writer(caller)
        return self.volume.place_staged(name, mode)

    def symlink(self, name: str, target: str, caller: Caller) -> Node:
        self.volume.check_writer(caller)
        return self.volume.symlink(name, target)

    def rename(self, name: str, new_parent: Node, new_name: str, flags: int, caller: Caller) -> None:
        self.volume.check_writer(caller)
        if new_parent is not self or flags or (name, new_name) != (DATA_LINK_TMP, DATA_LINK):
            raise ReadOnlyVolume
        self.volume.switch()

    def unlink(self, name: str, caller: Caller) -> None:
        self.volume.check_writer(caller)
        self.volume.unlink(name)

    def rmdir(self, name: str, caller: Caller) -> None:
        self.volume.check_writer(caller)
        self.volume.rmdir(name)


class ProjectedVolume:
    """One API volume, published when it is made; `name` is that of its first timestamped directory.

    Making it raises Rejected and ContentMissing.
    """

    def __init__(
        self,
        around: Surroundings,
        ref: VolumeRef,
        parent: Directory,
        name: str,
        tree: Tree,
        digest: str,
        meta: VolumeMeta,
    ) -> None:
        self.around = around
        self.ref = ref
        now = around.clock()
        self.root = VolumeRoot(self, parent, tree, around, now)
        self._current = build(self, name, tree, digest, meta)
        self._staged: Version | None = None
        self._placed: dict[str, Version] = {}  # by name: those whose directory stands in the root
        self._place(self._current, tree.directory_mode)
        self.root.insert(DATA_LINK, self._link(name), now)
        for link in self._current.links:
            self.root.insert(link, self._link(f"{DATA_LINK}/{link}", self._current.links[link]), now)
        self._make_mountpoints()

    # ---------------------------------------------------------------------------------------- the agent's side

    @property
    def meta(self) -> VolumeMeta:
        return self._current.meta

    def annotate(self, meta: VolumeMeta) -> None:
        self._current.meta = meta

    def stage(self, name: str, tree: Tree, digest: str, meta: VolumeMeta) -> VolumeView:
        """The version that the writer may make visible next, instead of any staged before. With the name "" there is
        none, and only leftovers may be removed. Raises Rejected, ContentMissing: nothing has changed."""
        before = self._staged
        if name == "":
            self._staged = None
        elif name == self._current.name:
            raise Rejected(f"{self.ref}: {name} is current")
        elif before is not None and before.placed and before.name == name:
            if digest != before.digest:
                raise Rejected(f"{self.ref}: {name} stands there with another content")
            before.meta = meta
        elif name in self._placed:
            raise Rejected(f"{self.ref}: {name} is retired")
        else:
            self._staged = build(self, name, tree, digest, meta)
        if before is not None and before is not self._staged and not before.placed:
            detach(before.directory)
        return self.view()

    def view(self) -> VolumeView:
        leftover = self.root.children.get(DATA_LINK_TMP)
        return VolumeView(
            data=self._current.name,
            data_tmp=leftover.readlink() if leftover is not None else None,
            directories={name: tuple(paths(version.directory)) for name, version in self._placed.items()},
            links=tuple(sorted(self._links())),
            current_links=tuple(sorted(self._current.links)),
        )

    @property
    def state(self) -> VolumeState:
        settled = (
            self._staged is None
            and self._placed.keys() == {self._current.name}
            and DATA_LINK_TMP not in self.root.children
            and self._links() == self._current.links.keys()
        )
        return VolumeState(self.ref, self._current.digest, self._current.meta, settled)

    def close(self) -> None:
        """Takes everything out of the tree, deepest first. The root has left its parent already."""
        if self._staged is not None and not self._staged.placed:
            detach(self._staged.directory)
        detach(self.root, self.around.notify)

    # ---------------------------------------------------------------------------------------- the writer's side

    def check_writer(self, caller: Caller) -> None:
        if not self.around.writer.is_writer(caller):
            raise ReadOnlyVolume

    def check_retired(self, top: VersionDirectory) -> None:
        if top is self._current.directory or (self._staged is not None and top is self._staged.directory):
            raise ReadOnlyVolume

    def place_staged(self, name: str, mode: int) -> Node:
        staged = self._staged
        if staged is None or staged.name != name:
            raise ReadOnlyVolume
        if staged.placed:
            raise FileSystemError(name, errno.EEXIST)
        self._place(staged, mode & 0o7777)
        return staged.directory

    def chmod(self, directory: VersionDirectory, changes: SetAttr) -> None:
        version = next((v for v in (self._staged, self._current) if v is not None and v.directory is directory), None)
        if version is None or changes.mode is None or changes != SetAttr(mode=changes.mode):
            raise ReadOnlyVolume
        # the kernel drops setgid for an ordinary user who is not in the group; the tree has it nevertheless
        if changes.mode | stat.S_ISGID != version.tree.directory_mode | stat.S_ISGID:
            raise ReadOnlyVolume
        directory.mode = version.tree.directory_mode

    def symlink(self, name: str, target: str) -> Node:
        if name == DATA_LINK_TMP:
            allowed = self._staged is not None and self._staged.placed and target == self._staged.name
        else:
            allowed = name in self._current.links and target == f"{DATA_LINK}/{name}"
        if not allowed:
            raise ReadOnlyVolume
        if name in self.root.children:
            raise FileSystemError(name, errno.EEXIST)
        return self.root.insert(name, self._link(target, self._current.links.get(name, 0)), self.around.clock())

    def switch(self) -> None:
        """rename(2) of `..data_tmp` to `..data`."""
        staged = self._staged
        if staged is None or self.root.child(DATA_LINK_TMP).readlink() != staged.name:
            raise ReadOnlyVolume
        if staged.directory.mode != staged.tree.directory_mode:
            raise ReadOnlyVolume  # nobody but its owner could enter the new version yet
        now = self.around.clock()
        replaced = self.root.take(DATA_LINK, now)
        self.root.insert(DATA_LINK, self.root.take(DATA_LINK_TMP, now), now)
        detach(replaced)
        self._current, self._staged = staged, None
        self._make_mountpoints()

    def unlink(self, name: str) -> None:
        """Of a name in the root."""
        if name == DATA_LINK or name in self._current.links:
            raise ReadOnlyVolume
        self.remove(self.root, name, directory=False)

    def rmdir(self, name: str) -> None:
        """Of a name in the root: a retired version that was emptied."""
        version = self._placed.get(name)
        if version is None:
            raise ReadOnlyVolume
        self.check_retired(version.directory)
        self.remove(self.root, name, directory=True)
        del self._placed[name]

    def remove(self, parent: Directory, name: str, *, directory: bool) -> None:
        """What rmdir(2) (`directory`) and unlink(2) do."""
        child = parent.child(name)
        if isinstance(child, Directory):
            if not directory:
                raise IsADirectory(name)
            if child.children:
                raise FileSystemError(name, errno.ENOTEMPTY)
        elif directory:
            raise NotADirectory(name)
        detach(parent.take(name, self.around.clock()))

    # ---------------------------------------------------------------------------------------- parts

    def _links(self) -> set[str]:
        """The user-visible links that stand."""
        return {
            name
            for name, child in self.root.children.items()
            if isinstance(child, Link) and name not in (DATA_LINK, DATA_LINK_TMP)
        }

    def _place(self, version: Version, mode: int) -> None:
        version.placed = True
        version.directory.mode = mode
        self._placed[version.name] = version
        self.root.insert(version.name, version.directory, self.around.clock())

    def _link(self, target: str, uid: int = 0) -> Link:
        owner = self.around.owner.of(uid, self._current.tree.gid)
        return Link(self.around.inodes.allocate(), target, owner, self.around.clock())

    def _make_mountpoints(self) -> None:
        """Those of the current version; those of earlier ones stay, something may be mounted there."""
        around = self.around
        for path in self._current.tree.mountpoints:
            parent: Directory = self.root
            for name in path.split("/"):
                below = parent.children.get(name)
                if below is None and is_entry_name(name):
                    now = around.clock()
                    mode = self._current.tree.directory_mode  # kubelet's fsGroup pass finds these too
                    below = Directory(around.inodes.allocate(), parent, mode, self.root.owner, now)
                    parent.insert(name, below, now)
                if not isinstance(below, Directory):
                    break  # a link's place stays what it is
                parent = below
