"""The keeper's mount: made, made afresh after its server's death, looked at from outside, removed."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fusevol.keeper.log import Log
from fusevol.system import mount as mounting
from fusevol.system.holders import Holder, holders
from fusevol.system.mounts import MountInfo, find_mount, mounts_at


class Place(enum.Enum):
    """Where the mount that was made last is now."""

    TOP = "at its place, alive or dead"
    COVERED = "at its place, below a mount of somebody else's"
    GONE = "not there: unmounted, perhaps lazily, or moved. In other namespaces it may stand"


def covered(mountpoint: Path) -> str:
    """What is to be said of a COVERED mount."""
    return f"another mount stands over {mountpoint}: unmount that first"


class Mount(Protocol):
    """What the keeper needs of a mount."""

    def make(self) -> int:
        """Mounts and returns the descriptor of the connection. Raises UserError, or OSError."""

    def place(self) -> Place:
        """GONE before the first was made. Raises OSError where it cannot be seen."""

    def holders(self, exclude: Iterable[int]) -> list[Holder]:
        """Who else stands on it, wherever it is. Raises OSError where it cannot be seen."""

    def remove(self, detach: bool) -> None:
        """Unmounts what is at TOP. Raises MountBusy, or UserError."""


class FuseMount:
    """The real one."""

    def __init__(self, mountpoint: Path, log: Log) -> None:
        self._mountpoint = mountpoint
        self._made: MountInfo | None = None  # the last
        self._options = ["default_permissions"]
        if mounting.sharing_allowed():
            self._options.append("allow_other")
        else:
            log.warning(
                f"only this user can enter {mountpoint}, not even root: "
                f"allow_other needs `user_allow_other` in {mounting.FUSE_CONF}"
            )

    def make(self) -> int:
        fd = mounting.mount_fuse(self._mountpoint, self._options)
        try:
            self._made = find_mount(self._mountpoint)
        except OSError:
            os.close(fd)
            mounting.unmount(self._mountpoint, detach=True)
            raise
        return fd

    def place(self) -> Place:
        if self._is_made(find_mount(self._mountpoint)):
            return Place.TOP
        return Place.COVERED if any(map(self._is_made, mounts_at(self._mountpoint))) else Place.GONE

    def holders(self, exclude: Iterable[int]) -> list[Holder]:
        return holders(self._made, exclude) if self._made is not None else []

    def remove(self, detach: bool) -> None:
        mounting.unmount(self._mountpoint, detach)

    def _is_made(self, mount: MountInfo | None) -> bool:
        # both: the kernel gives either to another mount when this one has gone
        made = self._made
        return mount is not None and made is not None and (mount.id, mount.device) == (made.id, made.device)
