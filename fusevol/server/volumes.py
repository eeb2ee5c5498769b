"""The tree above the volumes, and everything that the agent may do to it over the control socket.

    /pods/<uid>/volumes/<plugin>/<volume>     0755 / 0750 / 0750 / 0755 (KUBELET-MEASURED.md 3)
    /by-name/<namespace>/<pod> -> ../../pods/<uid>

State changes first and the kernel is notified after (`Notify` only queues). A directory is taken out of the tree after
everything in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fusevol.model.errors import FileSystemError
from fusevol.model.refs import VolumeRef, escaped
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeMeta, VolumeState, VolumeView
from fusevol.server.content import ContentStore
from fusevol.server.emptydir import EmptyDirVolume
from fusevol.server.inodes import ROOT, Caller, InodeTable, Node, Statfs
from fusevol.server.nodes import Directory, Link, MemoryNode, Owner
from fusevol.server.notifications import AttributesChanged, EntryGone, Notify
from fusevol.server.projected import ProjectedVolume
from fusevol.server.versions import Rejected, Surroundings, is_entry_name
from fusevol.server.writer import Writer


class PublishedEmptyDir:
    """An emptyDir with what the agent told of it."""

    __slots__ = ("meta", "ref", "volume")

    def __init__(self, ref: VolumeRef, volume: EmptyDirVolume, meta: VolumeMeta) -> None:
        self.ref = ref
        self.volume = volume
        self.meta = meta

    @property
    def root(self) -> Node:
        return self.volume.root

    @property
    def state(self) -> VolumeState:
        return VolumeState(self.ref, "", self.meta, settled=True)

    def annotate(self, meta: VolumeMeta) -> None:
        self.meta = meta

    def close(self) -> None:
        self.volume.close()


class MountRoot(Directory):
    """The root of the mount, where the writer introduces itself."""

    __slots__ = ("_volumes",)

    def __init__(self, volumes: Volumes, owner: Owner, time_ns: int) -> None:
        super().__init__(ROOT, None, 0o755, owner, time_ns)
        self._volumes = volumes

    def lookup(self, name: str, caller: Caller) -> Node:
        self._volumes.writer.looked_up(name, caller)
        return super().lookup(name, caller)

    def statfs(self) -> Statfs:
        return self._volumes.statfs()


class Volumes:
    """All that is published. Methods are synchronous; they raise Rejected, ContentMissing, FileSystemError, OSError."""

    def __init__(self, notify: Notify, owner: Owner, clock: Callable[[], int] = time.time_ns) -> None:
        self.inodes = InodeTable()
        self.contents = ContentStore()
        self.writer = Writer()
        self._notify = notify
        self._owner = owner
        self._clock = clock
        self._around = Surroundings(self.inodes, self.contents, self.writer, owner, notify, clock)
        self._volumes: dict[VolumeRef, ProjectedVolume | PublishedEmptyDir] = {}
        self._by_root: dict[int, ProjectedVolume | PublishedEmptyDir] = {}  # nodeid of the root → volume
        self.root = MountRoot(self, owner, clock())
        self._pods = self._directory(self.root, "pods", 0o750)
        self._names = self._directory(self.root, "by-name", 0o755)
        self.inodes.set_root(self.root)

    # ---------------------------------------------------------------------------------------- Pods and names

    @property
    def pods(self) -> tuple[str, ...]:
        return tuple(self._pods.children)

    @property
    def names(self) -> dict[tuple[str, str], str]:
        """(namespace, name) → uid, as `by-name` shows it."""
        return {
            (namespace, name): link.readlink().rpartition("/")[2]
            for namespace, names in self._names.children.items()
            if isinstance(names, Directory)
            for name, link in names.children.items()
        }

    def add_pod(self, uid: str) -> None:
        self._plugins(uid)

    def add_plugin(self, uid: str, plugin: str) -> None:
        """A plugin's directory without a volume yet. Like all of them it goes with its Pod, as kubelet's does."""
        _check_names(uid, escaped(plugin))
        self._directory(self._plugins(uid), escaped(plugin), 0o755)

    def remove_pod(self, uid: str) -> None:
        for ref in [ref for ref in self._volumes if ref.pod_uid == uid]:
            self.unpublish(ref)
        pod = self._pods.children.get(uid)
        if isinstance(pod, Directory):
            plugins = self._plugins(uid)
            for name in list(plugins.children):
                self._remove(plugins, name)
            self._remove(pod, "volumes")
            self._remove(self._pods, uid)

    def set_name(self, namespace: str, name: str, uid: str | None) -> None:
        names = self._names.children.get(namespace)
        if isinstance(names, Directory) and name in names.children:
            self._remove(names, name)
        if uid is not None:
            _check_names(namespace, name, uid)
            names = self._directory(self._names, namespace, 0o755)
            # time-out 0: the next Pod of this name is another one
            link = Link(self.inodes.allocate(), f"../../pods/{uid}", self._owner, self._clock(), timeout=0)
            self._insert(names, name, link)
        elif isinstance(names, Directory) and not names.children:
            self._remove(self._names, namespace)

    # ---------------------------------------------------------------------------------------- volumes

    def publish(self, ref: VolumeRef, directory: str, tree: Tree, digest: str, meta: VolumeMeta) -> None:
        """A first set-up, visible in one step."""
        if ref in self._volumes:
            raise Rejected(f"{ref} is published already")
        _check_names(ref.pod_uid, escaped(ref.plugin), ref.name)
        before = escaped(ref.plugin) in self._plugins(ref.pod_uid).children
        parent = self._plugin(ref)
        try:
            volume = ProjectedVolume(self._around, ref, parent, directory, tree, digest, meta)
        except BaseException:
            if not before and parent.parent is not None:
                self._remove(parent.parent, escaped(ref.plugin))
            raise
        self._enter(ref, volume, parent)

    def stage(self, ref: VolumeRef, directory: str, tree: Tree, digest: str, meta: VolumeMeta) -> VolumeView:
        volume = self._volumes.get(ref)
        if not isinstance(volume, ProjectedVolume):
            raise Rejected(f"{ref} is not published")
        return volume.stage(directory, tree, digest, meta)

    def publish_empty_dir(self, ref: VolumeRef, backing: str, mode: int, gid: int, meta: VolumeMeta) -> None:
        """Harmless if it is there: then only its metadata change."""
        known = self._volumes.get(ref)
        if known is not None:
            if not isinstance(known, PublishedEmptyDir):
                raise Rejected(f"{ref} is no emptyDir")
            known.annotate(meta)
            return
        volume = EmptyDirVolume(self.inodes, backing, mode, gid)
        try:
            parent = self._plugin(ref)
        except BaseException:
            volume.close()
            raise
        self._enter(ref, PublishedEmptyDir(ref, volume, meta), parent)

    def annotate(self, ref: VolumeRef, meta: VolumeMeta) -> None:
        if ref not in self._volumes:
            raise Rejected(f"{ref} is not published")
        self._volumes[ref].annotate(meta)

    def unpublish(self, ref: VolumeRef) -> None:
        """Harmless if the volume is not there."""
        volume = self._volumes.pop(ref, None)
        if volume is None:
            return
        parent = self._plugin(ref)
        del self._by_root[volume.root.nodeid]
        parent.take(ref.name, self._clock())
        volume.close()
        self._gone(parent, ref.name, volume.root)

    def states(self) -> tuple[VolumeState, ...]:
        return tuple(volume.state for volume in self._volumes.values())

    def meta(self, node: Node) -> VolumeMeta | None:
        """What is told of the volume whose root `node` is, if it is one."""
        volume = self._by_root.get(node.nodeid)
        return volume.meta if volume is not None else None

    def statfs(self) -> Statfs:
        """Of the mount as a whole: the file system that the emptyDirs stand on, or nothing. (libfuse does not tell
        which node statfs(2) was asked of.)"""
        for volume in self._volumes.values():
            if isinstance(volume, PublishedEmptyDir):
                try:
                    return volume.root.statfs()
                except (FileSystemError, OSError):
                    continue  # its backing directory is gone; another's may stand
        return Statfs()

    # ---------------------------------------------------------------------------------------- the tree

    def _plugins(self, uid: str) -> Directory:
        """`pods/<uid>/volumes`, made if it is not there."""
        _check_names(uid)
        return self._directory(self._directory(self._pods, uid, 0o750), "volumes", 0o750)

    def _plugin(self, ref: VolumeRef) -> Directory:
        """The directory of the volume's plugin, made if it is not there."""
        _check_names(ref.pod_uid, escaped(ref.plugin), ref.name)
        return self._directory(self._plugins(ref.pod_uid), escaped(ref.plugin), 0o755)

    def _enter(self, ref: VolumeRef, volume: ProjectedVolume | PublishedEmptyDir, parent: Directory) -> None:
        self._volumes[ref] = self._by_root[volume.root.nodeid] = volume
        self._insert(parent, ref.name, volume.root)

    def _directory(self, parent: Directory, name: str, mode: int) -> Directory:
        known = parent.children.get(name)
        if isinstance(known, Directory):
            return known
        directory = Directory(self.inodes.allocate(), parent, mode, self._owner, self._clock())
        self._insert(parent, name, directory)
        return directory

    def _insert(self, parent: Directory, name: str, node: Node) -> None:
        # the name itself needs no notification: an engine never lets the kernel cache that it was absent
        parent.insert(name, node, self._clock())
        if parent.known:
            self._notify(AttributesChanged(parent.nodeid))

    def _remove(self, parent: Directory, name: str) -> None:
        """A link, or a directory that is empty."""
        node = parent.take(name, self._clock())
        assert isinstance(node, MemoryNode)
        node.detach()
        self._gone(parent, name, node)

    def _gone(self, parent: Directory, name: str, node: Node) -> None:
        if node.lookups:
            self._notify(EntryGone(parent.nodeid, name, node.nodeid))
        if parent.known:
            self._notify(AttributesChanged(parent.nodeid))


def _check_names(*names: str) -> None:
    for name in names:
        if not is_entry_name(name):
            raise Rejected(f"{name!r} cannot be a name")
