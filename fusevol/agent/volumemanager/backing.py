"""emptyDirs on disk: backing directories and ready files below the state directory, in the order that kubelet keeps
since v1.20 (KUBELET.md 5.3-5.7, 17: the ready file goes first at tear down, and a set up that finds it without its
directory starts again).

    <state>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>          the data
    <state>/pods/<uid>/plugins/kubernetes.io~empty-dir/<name>/ready    it was set up

What containers wrote in there is not trusted: no link is followed, no mount is crossed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import structlog

from fusevol.model.refs import VolumeRef, escaped
from fusevol.model.tree import EmptyDir
from fusevol.system import tmpfs

log = structlog.get_logger()

PLUGIN = "kubernetes.io/empty-dir"
_DIRECTORY = escaped(PLUGIN)


class StateDirectory:
    """All calls block (a tear down as long as there are files): call them in a thread. They raise OSError."""

    def __init__(self, path: Path) -> None:
        self._pods = path / "pods"

    def data(self, ref: VolumeRef) -> Path:
        return self._pods / ref.pod_uid / "volumes" / _DIRECTORY / ref.name

    def _ready(self, ref: VolumeRef) -> Path:
        return self._pods / ref.pod_uid / "plugins" / _DIRECTORY / ref.name / "ready"

    def set_up(self, ref: VolumeRef, plan: EmptyDir) -> Path:
        """The backing directory, with the planned mode and group. An existing one that was set up is left as it is."""
        data, ready = self.data(ref), self._ready(ref)
        in_memory = plan.medium == "Memory"
        if ready.exists():
            if tmpfs.is_tmpfs(data) if in_memory else data.is_dir():
                return data
            log.warning("the ready file exists, but the volume directory does not: set up again", volume=str(ref))
            ready.unlink()
        for directory in (self._pods / ref.pod_uid, self._pods / ref.pod_uid / "volumes"):
            directory.mkdir(0o750, parents=True, exist_ok=True)
        data.parent.mkdir(0o755, exist_ok=True)
        data.mkdir(exist_ok=True)
        if in_memory and not tmpfs.is_tmpfs(data):
            tmpfs.mount_tmpfs(data, plan.size_limit)
        if plan.gid:
            os.chown(data, -1, plan.gid)
        data.chmod(plan.mode)  # after mkdir because of the umask, after chown because that clears the setgid bit
        for mountpoint in plan.mountpoints:
            (data / mountpoint).mkdir(0o755, parents=True, exist_ok=True)
        ready.parent.mkdir(0o750, parents=True, exist_ok=True)
        ready.touch(0o644)
        return data

    def unset_ready(self, ref: VolumeRef) -> None:
        """The first step of a tear down."""
        remove_tree(self._ready(ref).parent)

    def remove_data(self, ref: VolumeRef) -> None:
        """The last step of a tear down. The medium is seen by what stands there (KUBELET.md 5.8)."""
        data = self.data(ref)
        while tmpfs.is_tmpfs(data):
            tmpfs.detach_tmpfs(data)
        remove_tree(data)

    def remove_pod(self, uid: str) -> None:
        """Removes the Pod's directories, as far as they are empty."""
        pod = self._pods / uid
        for below in (f"volumes/{_DIRECTORY}", "volumes", f"plugins/{_DIRECTORY}", "plugins", ""):
            try:
                (pod / below).rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("left in the state directory", path=str(pod / below), error=error.strerror)
                return

    def pods(self) -> set[str]:
        """The uids of all Pods that have a directory here."""
        return {pod.name for pod in _directories(self._pods)}

    def scan(self) -> list[VolumeRef]:
        """All emptyDirs that stand here, set up or half torn down. What else stands here is reported and left."""
        found = set()
        for pod in _directories(self._pods):
            for kind in ("volumes", "plugins"):
                for plugin in _directories(pod / kind):
                    if plugin.name != _DIRECTORY:
                        log.warning("unknown in the state directory, left alone", path=str(plugin))
                        continue
                    found |= {VolumeRef(pod.name, PLUGIN, volume.name) for volume in _directories(plugin)}
        return sorted(found)


def _directories(path: Path) -> Iterable[Path]:
    try:
        entries = sorted(path.iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield entry
        else:
            log.warning("unknown in the state directory, left alone", path=str(entry))


def remove_tree(path: Path) -> None:
    """rm -r that follows no link and crosses no mount (EXDEV). Missing is fine."""
    try:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove_entry(parent, path.name, os.fstat(parent).st_dev)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


def _remove_entry(parent: int, name: str, device: int) -> None:
    """Iterative, one descriptor a level: a container may have made a tree 4,000 levels deep."""
    levels: list[tuple[int, str, int, list[str]]] = []  # (directory, its entry, the entry opened, names left in it)

    def enter(directory: int, entry: str) -> None:
        status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(entry, dir_fd=directory)
            return
        if status.st_dev != device:
            raise OSError(errno.EXDEV, "a mount stands here", entry)
        opened = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        levels.append((directory, entry, opened, os.listdir(opened)))

    try:
        enter(parent, name)
        while levels:
            directory, entry, opened, names = levels[-1]
            if names:
                enter(opened, names.pop())
            else:
                levels.pop()
                os.close(opened)
                os.rmdir(entry, dir_fd=directory)
    finally:
        for _, _, opened, _ in levels:
            os.close(opened)
