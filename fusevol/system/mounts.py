"""What is mounted where, read from /proc/<pid>/mountinfo (proc(5)) and never by asking a mount.

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fusevol.system import processes
from fusevol.system.processes import PROC

FSTYPE = "fuse.fusevol"

_DELETED = "//deleted"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of mountinfo. `root` is the path within the file system that stands at `mountpoint`, which is a path in
    the namespace (and below the root directory) of the process whose mountinfo it is."""

    id: int
    parent: int
    device: str
    """`major:minor`, decimal."""
    root: str
    deleted: bool
    """The kernel has dropped the root's name since: it was removed, or only forgotten."""
    mountpoint: str
    shared: int | None
    """The peer group that mounts made below it are propagated to."""
    master: int | None
    """The peer group that mounts are propagated from."""
    fstype: str
    source: str


class MountRoot(NamedTuple):
    """A mount of a file system, seen by `pid`: `root` of it stands at `mountpoint`."""

    pid: int
    root: str
    mountpoint: str


class Namespace(NamedTuple):
    """A mount namespace as one process in it sees it."""

    pid: int
    name: str
    own: bool
    lines: list[str]


def parse(line: str) -> MountInfo:
    """Raises ValueError for what is not a line of mountinfo."""
    left, _, right = line.partition(" - ")
    number, parent, device, root, mountpoint, _options, *tags = left.split(" ")
    fstype, source, *_ = right.split(" ")
    groups = dict(tag.split(":", 1) for tag in tags if ":" in tag)
    root = _unescaped(root)
    return MountInfo(
        id=int(number),
        parent=int(parent),
        device=device,
        root=root.removesuffix(_DELETED) or "/",
        deleted=root.endswith(_DELETED),
        mountpoint=_unescaped(mountpoint),
        shared=int(groups["shared"]) if "shared" in groups else None,
        master=int(groups["master"]) if "master" in groups else None,
        fstype=fstype,
        source=_unescaped(source),
    )


def parsed(lines: Iterable[str]) -> Iterator[MountInfo]:
    """The mounts of mountinfo's lines. What is no line of it is skipped without a word: the kernel writes none such,
    and one bad line must not hide the mounts on the others."""
    for line in lines:
        try:
            yield parse(line)
        except ValueError:
            continue


def find_mount(mountpoint: Path, proc: Path = PROC) -> MountInfo | None:
    """The mount whose root a look-up of `mountpoint` (an absolute path without links) ends on, in our own namespace.

    None where nothing is mounted there, or only below a mount that was placed over a directory above it (see
    `mounts_at`). Raises OSError.
    """
    path = str(mountpoint)
    on_the_way = [mount for mount in parsed(_lines("self", proc)) if is_below(path, mount.mountpoint)]
    ids = {mount.id for mount in on_the_way}
    # as the kernel walks: from our root directory into the mount that comes first on the way, and from that into the
    # next. The root's own parent is not listed
    here = [mount for mount in on_the_way if mount.parent not in ids or mount.parent == mount.id]
    entered: MountInfo | None = None
    while here:
        entered = min(reversed(here), key=lambda mount: len(mount.mountpoint))
        on_the_way = [mount for mount in on_the_way if mount.id != entered.id]
        here = [mount for mount in on_the_way if mount.parent == entered.id]
    return entered if entered is not None and entered.mountpoint == path else None


def mounts_at(mountpoint: Path, proc: Path = PROC) -> list[MountInfo]:
    """All mounts at `mountpoint` in our own namespace, those too that others hide. Raises OSError."""
    return [mount for mount in parsed(_lines("self", proc)) if mount.mountpoint == str(mountpoint)]


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or something in it, by their names."""
    return directory == "/" or path == directory or path.startswith(directory + "/")


def roots_on(device: str, proc: Path = PROC) -> list[MountRoot]:
    """Every mount of this device in every visible namespace, our own main mount (root `/`) among them.

    A bind mount of `/pods/<uid>/volumes/...` has that as its root, with or without a name for it left.
    """
    found: dict[int, MountRoot] = {}
    for namespace in namespaces(proc):
        for mount in mounts_on(device, namespace):
            found.setdefault(mount.id, MountRoot(namespace.pid, mount.root, mount.mountpoint))
    return list(found.values())


def namespaces(proc: Path = PROC) -> Iterator[Namespace]:
    """Each visible mount namespace once, by the first of its processes that tells. Processes with a root directory of
    their own see the part below it only, so these count apart."""
    own = processes.link("self", "ns/mnt", proc)
    seen: set[tuple[str, str]] = set()
    for pid in processes.pids(proc):
        name, root = processes.link(pid, "ns/mnt", proc), processes.link(pid, "root", proc)
        if name is None or root is None or (name, root) in seen:
            continue
        lines = _lines(pid, proc)
        if lines:
            seen.add((name, root))
            yield Namespace(pid, name, name == own, lines)


def mounts_on(device: str, namespace: Namespace) -> Iterator[MountInfo]:
    """The mounts of one device; lines of others are not parsed, there may be thousands."""
    sign = f" {device} "
    for mount in parsed(line for line in namespace.lines if sign in line):
        if mount.device == device:
            yield mount


def _lines(pid: int | str, proc: Path) -> list[str]:
    # not splitlines(): names may hold what Python, but not the kernel, takes for the end of a line (\v, \f, U+2028)
    text = processes.text(pid, "mountinfo", proc).decode(errors="surrogateescape")
    return [line for line in text.split("\n") if line]


def _unescaped(field: str) -> str:
    r"""Blanks, backslashes and newlines are written as `\040` and the like, one byte each."""
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
