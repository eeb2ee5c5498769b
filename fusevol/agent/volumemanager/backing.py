"""emptyDirs on disk: backing directories and ready files below the state directory, in the order that kubelet keeps
since v1.20 (KUBELET.md 5.3-5.7, 17: the ready file goes first at tear down, and a set up that finds it without its
directory starts again).

    <state>/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>          the data
    <state>/pods/<uid>/plugins/kubernetes.io~empty-dir/<name>/ready    it was set up

What containers wrote in there is not trusted: no link is followed, no mount is crossed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import structlog

from fusevol.agent.plugins.emptydir import MEMORY, EmptyDirPlugin
from fusevol.model.refs import VolumeRef, escaped
from fusevol.model.tree import EmptyDir
from fusevol.system import tmpfs

log = structlog.get_logger()

PLUGIN = EmptyDirPlugin.name
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
        in_memory = plan.medium == MEMORY
        if ready.exists():
            if tmpfs.is_tmpfs(data) if in_memory else data.is_dir():
                return data
            log.warning("the ready file exists, but the volume directory does not: set up again", volume=str(ref))
            ready.unlink()
        pod = self._pods / ref.pod_uid
        for directory in (self._pods, pod, pod / "volumes", pod / "plugins", ready.parent.parent, ready.parent):
            directory.mkdir(0o750, exist_ok=True)
        data.parent.mkdir(0o755, exist_ok=True)
        data.mkdir(exist_ok=True)
        if in_memory and not tmpfs.is_tmpfs(data):
            tmpfs.mount_tmpfs(data, plan.size_limit)
        if plan.gid:
            os.chown(data, -1, plan.gid)
        data.chmod(plan.mode)  # after mkdir because of the umask, after chown because that clears the setgid bit
        for mountpoint in plan.mountpoints:
            _make_below(data, mountpoint)
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
        try:
            with os.scandir(self._pods) as entries:  # what else stands there is scan()'s to tell
                return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            return set()

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
    """rm -r that follows no link and crosses no mount (EXDEV). Missing is fine. Raises OSError."""
    try:
        parent = _open_directory(path.parent)
        try:
            _Removal(parent, os.fstat(parent).st_dev).run(path.name)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return


class _Removal:
    """Iterative and with one descriptor at a time: a container may have made a tree of any depth."""

    def __init__(self, parent: int, device: int) -> None:
        self._current = os.dup(parent)
        self._device = device
        self._levels: list[
            tuple[str, tuple[int, int], list[str]]
        ] = []  # (entry, inode of its parent, names left in it)

    def run(self, name: str) -> None:
        try:
            self._remove(name)
            while self._levels:
                names = self._levels[-1][2]
                if names:
                    self._remove(names.pop())
                else:
                    self._leave()
        finally:
            os.close(self._current)

    def _remove(self, entry: str) -> None:
        """A file goes; a directory is entered."""
        status = os.stat(entry, dir_fd=self._current, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(entry, dir_fd=self._current)
            return
        if status.st_dev != self._device:
            raise OSError(errno.EXDEV, "a mount stands here", entry)
        parent = _inode(self._current)
        self._move_to(entry)
        self._levels.append((entry, parent, os.listdir(self._current)))

    def _leave(self) -> None:
        """Up again, and the empty directory goes."""
        entry, parent, _ = self._levels.pop()
        self._move_to("..")
        if _inode(self._current) != parent:
            raise OSError(errno.ESTALE, "moved while it was removed", entry)
        os.rmdir(entry, dir_fd=self._current)

    def _move_to(self, name: str) -> None:
        opened = _open_directory(name, self._current)
        os.close(self._current)
        self._current = opened


def _inode(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino


def _open_directory(path: str | Path, directory: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _make_below(top: Path, path: str) -> None:
    """`path` below `top`, a component at a time: links that a container made there lead nowhere (ELOOP, ENOTDIR)."""
    current = _open_directory(top)
    try:
        for name in path.split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=current)
            below = _open_directory(name, current)
            os.close(current)
            current = below
    finally:
        os.close(current)
