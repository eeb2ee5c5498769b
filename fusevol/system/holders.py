"""Who stands on a mount, found without touching it: it may be dead, or busy with us.

`umount` tells EBUSY only of what stands on it in its own namespace; bind mounts in containers, who would get ENOTCONN
when the server leaves, are seen in /proc/*/mountinfo only (FUSE.md 9).

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fusevol.system import processes
from fusevol.system.mounts import MountInfo, Namespace, is_below, mounts_at, mounts_on, namespaces, parsed
from fusevol.system.processes import PROC


class Holder(NamedTuple):
    """`pid` is 0 for a mount in our own namespace: no process in particular holds it."""

    pid: int
    command: str
    path: str


def holders(mount: MountInfo, exclude: Iterable[int] = (), proc: Path = PROC) -> list[Holder]:
    """Mounts of the same file system and mounts inside of it; open files, directories and mappings of processes.

    Not `mount` itself, not the copies of it that mount propagation made and will remove with it, and nothing of the
    processes `exclude` (fusevol's own) and of this one. Paths are those of the holder's own namespace.

    `mount` may have been taken from its place (`umount -l`): then every other mount of its file system counts. Of the
    processes that stay on a mount which no namespace has any more, open files are found on `mount` itself only.
    Raises OSError where we lack the means to look.
    """
    views = list(namespaces(proc))
    on_device = [(view, found) for view in views for found in mounts_on(mount.device, view)]
    in_place = any(
        (other.id, other.device) == (mount.id, mount.device) for other in mounts_at(Path(mount.mountpoint), proc)
    )
    going = {mount.id, *_copies(mount, [found for _, found in on_device], views)} if in_place else set()
    found = {_of_mount(other, view, proc) for view, other in on_device if other.id not in going}
    if any(other.id == mount.id for _, other in on_device):  # else the id may be another's by now
        found.update(_mounts_inside(mount, views, proc))
    places = _places(mount, [found for _, found in on_device], views)
    own = {*exclude, os.getpid()}
    for pid in processes.pids(proc):
        if pid not in own:
            found.update(Holder(pid, processes.command(pid, proc), path) for path in _paths(pid, places, views, proc))
    return sorted(found)


class _Places(NamedTuple):
    """Where a file system can be met: the ids of its mounts and their mount points, in any namespace."""

    device: str
    ids: frozenset[int]
    prefixes: tuple[str, ...]


def _places(mount: MountInfo, on_device: list[MountInfo], views: list[Namespace]) -> _Places:
    ids, prefixes = {found.id for found in on_device}, {found.mountpoint for found in on_device}
    if mount.id not in ids and not any(other.id == mount.id for view in views for other in parsed(view.lines)):
        # no namespace has it, and no other mount has got its id: paths on it begin at its own root
        ids.add(mount.id)
        prefixes.add("/")
    return _Places(mount.device, frozenset(ids), tuple(prefixes))


def _of_mount(mount: MountInfo, view: Namespace, proc: Path) -> Holder:
    if view.own:
        return Holder(0, "mount", mount.mountpoint)
    return Holder(view.pid, processes.command(view.pid, proc), mount.mountpoint)


def _mounts_inside(mount: MountInfo, views: list[Namespace], proc: Path) -> Iterator[Holder]:
    """Other file systems that are mounted below `mount`."""
    for view in views:
        for inside in parsed(view.lines if view.own else ()):
            if inside.parent == mount.id and inside.device != mount.device:
                yield _of_mount(inside, view, proc)


def _copies(mount: MountInfo, on_device: list[MountInfo], views: list[Namespace]) -> set[int]:
    """Ids of the mounts that propagation made of `mount` in other namespaces: they go when it goes.

    Services with a namespace of their own have them on every systemd machine. They stand at the same place of the same
    file system, on a mount that is a peer or a (distant) slave of the one that ours stands on.
    """
    candidates = [other for other in on_device if other.root == "/" and other.id != mount.id]
    if not candidates:
        return set()
    mounts = {listed.id: listed for view in views for listed in parsed(view.lines)}
    parent = mounts.get(mount.parent)
    if parent is None or parent.shared is None:
        return set()
    groups = {parent.shared}
    while more := {m.shared for m in mounts.values() if m.master in groups and m.shared is not None} - groups:
        groups |= more
    place = _place(mount, parent)
    return {
        other.id
        for other in candidates
        if (below := mounts.get(other.parent)) is not None
        and below.device == parent.device
        and (below.shared in groups or below.master in groups)
        and _place(other, below) == place
    }


def _place(mount: MountInfo, parent: MountInfo) -> str:
    """Where a mount stands within the file system of its parent."""
    return posixpath.normpath(posixpath.join(parent.root, posixpath.relpath(mount.mountpoint, parent.mountpoint)))


def _paths(pid: int, places: _Places, views: list[Namespace], proc: Path) -> Iterator[str]:
    """What a process has of the file system. Its links are only read, which asks no file system."""
    yield from _open_files(pid, places, proc)
    for name in ("cwd", "root"):
        target = processes.link(pid, name, proc)
        if target is not None and any(is_below(target, prefix) for prefix in places.prefixes):
            namespace = processes.link(pid, "ns/mnt", proc)
            if _stands_on(target, places.device, [view for view in views if view.name == namespace]):
                yield target
    major, minor = map(int, places.device.split(":"))
    sign = b"%02x:%02x" % (major, minor)
    maps = processes.text(pid, "maps", proc)
    if sign in maps:
        for line in maps.split(b"\n"):
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[3] == sign:
                yield os.fsdecode(fields[5])


def _open_files(pid: int, places: _Places, proc: Path) -> Iterator[str]:
    """The link's text chooses (cheap), the id of the mount decides: a path may be hidden by another mount."""
    for descriptor in processes.descriptors(pid, proc):
        target = processes.link(pid, f"fd/{descriptor}", proc)
        if target is not None and target.startswith(places.prefixes):
            for line in processes.text(pid, f"fdinfo/{descriptor}", proc).splitlines():
                if line.startswith(b"mnt_id:") and int(line[7:]) in places.ids:
                    yield target


def _stands_on(path: str, device: str, views: list[Namespace]) -> bool:
    """Whether the mount next above `path` in that namespace is of this device."""
    above = [mount for view in views for mount in parsed(view.lines) if is_below(path, mount.mountpoint)]
    # of mounts stacked on one mount point the last stands on top
    return bool(above) and max(reversed(above), key=lambda mount: len(mount.mountpoint)).device == device
