"""An update as system calls through the mount, in kubelet's order (KUBELET.md 9; KUBELET-MEASURED.md 2).

The plans are pure and start from whatever stands in the volume's root: so an update also completes one that was
interrupted, and where nothing is to do nothing is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from fusevol.model.refs import DATA_LINK, DATA_LINK_TMP
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeView


class Step(NamedTuple):
    """One system call on a name in the volume's root: `mkdir`, `chmod`, `symlink`, `rename`, `unlink`, `rmdir`.

    `argument` is a mode for chmod, the target for symlink, the new name for rename."""

    call: str
    path: str
    argument: str | int = 0


class Update(NamedTuple):
    """`steps` make the version visible; `removals` (directory → its steps) take away what it leaves behind."""

    steps: list[Step]
    removals: dict[str, list[Step]]


def directory_name(now: datetime, number: int) -> str:
    """`..YYYY_MM_DD_hh_mm_ss.<random decimal digits>`; `now` in UTC."""
    return f"{now:..%Y_%m_%d_%H_%M_%S}.{number}"


def plan_update(view: VolumeView, directory: str, tree: Tree) -> Update:
    """From the root as it stands to one that shows `directory` as `tree`.

    A key's link is made after `..data` names its file and removed only then, so that a reader finds what both versions
    have at every moment.
    """
    steps = _without_leftover(view)
    if view.data != directory:
        if directory not in view.directories:
            steps.append(Step("mkdir", directory))
        steps += [
            Step("chmod", directory, tree.directory_mode),
            Step("symlink", DATA_LINK_TMP, directory),
            Step("rename", DATA_LINK_TMP, DATA_LINK),
        ]
    return Update(steps + _links(view, tree.links()), _removals(view, directory))


def plan_finish(view: VolumeView) -> Update:
    """What an interrupted update left undone of the version that is current."""
    return Update(_without_leftover(view) + _links(view, view.current_links), _removals(view, view.data))


def _without_leftover(view: VolumeView) -> list[Step]:
    # EEXIST would block every later update
    return [Step("unlink", DATA_LINK_TMP)] if view.data_tmp is not None else []


def _links(view: VolumeView, wanted: Iterable[str]) -> list[Step]:
    links, there = set(wanted), set(view.links)
    made = [Step("symlink", name, f"{DATA_LINK}/{name}") for name in sorted(links - there)]
    return made + [Step("unlink", name) for name in sorted(there - links)]


def _removals(view: VolumeView, current: str | None) -> dict[str, list[Step]]:
    return {name: removal(name, view.directories) for name in view.directories if name != current}


def removal(directory: str, directories: Mapping[str, Iterable[str]]) -> list[Step]:
    """Takes a timestamped directory away, deepest entries first."""
    below = sorted(directories[directory], key=lambda path: (-path.rstrip("/").count("/"), path))
    steps = [
        Step("rmdir", f"{directory}/{path[:-1]}") if path.endswith("/") else Step("unlink", f"{directory}/{path}")
        for path in below
    ]
    return [*steps, Step("rmdir", directory)]


def _rename(old: str, new: str, root: int) -> None:
    os.rename(old, new, src_dir_fd=root, dst_dir_fd=root)


_CALLS: dict[str, Callable[[Step, int], None]] = {
    "mkdir": lambda step, root: os.mkdir(step.path, 0o700, dir_fd=root),
    "chmod": lambda step, root: os.chmod(step.path, int(step.argument), dir_fd=root),
    "symlink": lambda step, root: os.symlink(str(step.argument), step.path, dir_fd=root),
    "rename": lambda step, root: _rename(step.path, str(step.argument), root),
    "unlink": lambda step, root: os.unlink(step.path, dir_fd=root),
    "rmdir": lambda step, root: os.rmdir(step.path, dir_fd=root),
}


def perform(mount: int, volume_path: str, steps: Iterable[Step]) -> None:
    """Makes the calls, one after the other. `mount` is a descriptor of the mount's root. Raises OSError."""
    # O_PATH: opening the directory for reading would be an OPEN event for inotify watchers
    root = os.open(volume_path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=mount)
    try:
        for step in steps:
            _CALLS[step.call](step, root)
    finally:
        os.close(root)
