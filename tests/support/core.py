"""The server's core without a mount and without an engine: paths instead of nodeids, as the kernel would walk them."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from fusevol.agent.publisher.atomic_writer import Step
from fusevol.model.objects import CONFIG_MAP
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import ContentRef, File, Tree
from fusevol.model.volume import VolumeMeta
from fusevol.server.filesystem import FileSystem
from fusevol.server.inodes import ROOT, Attr, Caller, SetAttr
from fusevol.server.nodes import Owner
from fusevol.server.notifications import Notification, Notify
from fusevol.server.volumes import Volumes

WRITER = Caller(0, 0, 4711)
OTHER = Caller(0, 0, 4712)
VOLUME = VolumeRef("uid-1", "kubernetes.io/configmap", "vol")
META = VolumeMeta("shop", "cart", 1, "2026-11-22T19:35:35Z")
ROOT_OWNER = Owner(0, 0)
FIRST = "..2026_11_22_19_35_31.1"


def config_map(name: str) -> ObjectRef:
    return ObjectRef(CONFIG_MAP, "shop", name)


class Core:
    """A FileSystem whose writer is the caller WRITER and whose clock advances by one at each reading.

    `when_told` is called with each notification at the moment it is queued.
    """

    def __init__(self, owner: Owner = ROOT_OWNER, when_told: Notify = lambda _: None) -> None:
        self.notifications: list[Notification] = []

        def notify(notification: Notification) -> None:
            self.notifications.append(notification)
            when_told(notification)

        ticks = itertools.count(1)
        self.volumes = Volumes(notify, owner, clock=lambda: next(ticks))
        self.fs = FileSystem(self.volumes)
        self.volumes.writer.register("..nonce")
        self.volumes.writer.looked_up("..nonce", WRITER)

    def put(self, ref: ObjectRef, version: str, data: Mapping[str, bytes]) -> None:
        self.volumes.contents.put(ref, version, {key: memoryview(value) for key, value in data.items()})

    def tree(self, ref: ObjectRef, version: str, data: Mapping[str, bytes], **fields: Any) -> Tree:
        """Puts the object and shows all its keys, as paths."""
        self.put(ref, version, data)
        files = (File(path, 0o644, ContentRef(ref, version, path, data[path].hex())) for path in data)
        return Tree(tuple(files), **fields)

    def publish(self, tree: Tree, volume: VolumeRef = VOLUME, directory: str = FIRST) -> None:
        self.volumes.publish(volume, directory, tree, digest(tree), META)

    # ---------------------------------------------------------------------------------------- paths

    def walk(self, path: str, caller: Caller = OTHER) -> Attr:
        """One lookup per component; links are followed. Raises FileSystemError."""
        names = [name for name in path.split("/") if name]
        above = [ROOT]
        attr = self.fs.getattr(ROOT)
        while names:
            name = names.pop(0)
            if name == "..":
                above.pop()
                continue
            attr = self.fs.lookup(above[-1], name, caller)
            if stat.S_ISLNK(attr.mode):
                names = self.fs.readlink(attr.nodeid).split("/") + names
            else:
                above.append(attr.nodeid)
        return attr if attr.nodeid == above[-1] else self.fs.getattr(above[-1])

    def parent(self, path: str) -> tuple[int, str]:
        directory, _, name = path.rpartition("/")
        return self.walk(directory).nodeid, name

    def read(self, path: str) -> bytes:
        fh, handle = self.fs.open(self.walk(path).nodeid, os.O_RDONLY, OTHER)
        data = bytes(handle.read(0, 1 << 20))
        self.fs.release(fh)
        return data

    def list(self, path: str) -> list[str]:
        names: list[str] = []
        fh = self.fs.opendir(self.walk(path).nodeid, OTHER)
        self.fs.readdir(fh, 0, lambda name, attr, after: names.append(name) is None)
        self.fs.releasedir(fh)
        return [name for name in names if name not in (".", "..")]

    def perform(self, steps: Iterable[Step], caller: Caller = WRITER, volume: VolumeRef = VOLUME) -> None:
        """What `atomic_writer.perform` does through a mount."""
        for step in steps:
            path = f"{volume.path}/{step.path}"
            parent, name = self.parent(path)
            match step.call:
                case "mkdir":
                    self.fs.mkdir(parent, name, 0o700, caller)
                case "chmod":
                    self.fs.setattr(self.walk(path).nodeid, SetAttr(mode=int(step.argument)), None, caller)
                case "symlink":
                    self.fs.symlink(parent, name, str(step.argument), caller)
                case "rename":
                    self.fs.rename(parent, name, parent, str(step.argument), 0, caller)
                case "unlink":
                    self.fs.unlink(parent, name, caller)
                case "rmdir":
                    self.fs.rmdir(parent, name, caller)

    def forget_all(self) -> None:
        """The kernel drops all its caches."""
        table = self.volumes.inodes
        for nodeid in [nodeid for nodeid in table._nodes if nodeid != ROOT]:
            self.fs.forget(nodeid, table.get(nodeid).lookups)


def digest(tree: Tree) -> str:
    return tree.digest(b"key")
