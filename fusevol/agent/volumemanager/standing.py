"""What is mounted out of our mount, in any visible mount namespace: without kubelet, that is how we know that a
volume's containers have ended (ARCHITECTURE 3)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import trio

from fusevol.model.refs import VolumeRef
from fusevol.system import mounts

Mounts = Callable[[], list[mounts.MountRoot]]
"""Every mount of our file system; raises OSError where it cannot be known."""


class OurMounts:
    """Every mount of the file system at `mountpoint`, even when that was unmounted, or something else stands there now:
    others may have it still. Of a server before the last crash too: its bind mounts are those of running containers.

    Called in a thread. Raises OSError where it cannot be known: that is never taken for "nobody".
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._devices: set[str] = set()
        self.at_their_place()

    def at_their_place(self) -> bool:
        """Whether what stands at the mount point now is ours."""
        mount = mounts.find_mount(self._mountpoint)
        if mount is None or mount.fstype != mounts.FSTYPE:
            return False
        self._devices.add(mount.device)
        return True

    def __call__(self) -> list[mounts.MountRoot]:
        self.at_their_place()
        if not self._devices:
            raise OSError(errno.ENOTCONN, "the mount is not at its place", str(self._mountpoint))
        return [root for device in sorted(self._devices) for root in mounts.roots_on(device)]


def stands_on(root: str, ref: VolumeRef) -> bool:
    """Whether a mount of `root`, a path in our file system, stands at, inside or (within its Pod) above a volume."""
    volume = f"/{ref.path}"
    pod = f"/pods/{ref.pod_uid}"
    inside = root == volume or root.startswith(f"{volume}/")
    above = (root == pod or root.startswith(f"{pod}/")) and volume.startswith(f"{root}/")
    return inside or above


class StandingMounts:
    """Reads /proc in a thread; one look answers everybody who asked before it began."""

    def __init__(self, look: Mounts) -> None:
        self._look = look
        self._seen: list[mounts.MountRoot] = []
        self._seen_at = float("-inf")
        self._looking = trio.Lock()

    async def holder(self, ref: VolumeRef) -> str | None:
        asked = trio.current_time()
        async with self._looking:
            if self._seen_at < asked:
                began = trio.current_time()
                seen = await trio.to_thread.run_sync(self._look)  # if it raises, what was seen before is still old
                self._seen, self._seen_at = seen, began
        for pid, root, where in self._seen:
            if stands_on(root, ref):
                return f"mounted at {where} (pid {pid})"
        return None
