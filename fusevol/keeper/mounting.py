"""The keeper's mount: made, made afresh after its server's death, looked at from outside, removed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fusevol.keeper.log import Log
from fusevol.system import mount as mounting
from fusevol.system.holders import Holder, holders
from fusevol.system.mounts import find_mount


class Mount(Protocol):
    """What the keeper needs of a mount."""

    def make(self) -> int:
        """Mounts and returns the descriptor of the connection. Raises UserError."""

    def stands(self) -> bool:
        """Whether the mount that was made last is (still) at its place, alive or dead."""

    def holders(self, exclude: Iterable[int]) -> list[Holder]:
        """Who else stands on it."""

    def remove(self, detach: bool) -> None:
        """Unmounts. Raises MountBusy, or UserError."""


class FuseMount:
    """The real one."""

    def __init__(self, mountpoint: Path, log: Log) -> None:
        self._mountpoint = mountpoint
        self._device: str | None = None  # of the mount that was made last
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
        made = find_mount(self._mountpoint)
        self._device = made.device if made is not None else None
        return fd

    def stands(self) -> bool:
        found = find_mount(self._mountpoint)
        return found is not None and found.device == self._device

    def holders(self, exclude: Iterable[int]) -> list[Holder]:
        found = find_mount(self._mountpoint)
        return holders(found, exclude) if found is not None and found.device == self._device else []

    def remove(self, detach: bool) -> None:
        mounting.unmount(self._mountpoint, detach)
