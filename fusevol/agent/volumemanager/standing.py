"""What is mounted out of our mount, in any visible mount namespace: without kubelet, that is how we know that a
volume's containers have ended (ARCHITECTURE 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from fusevol.model.refs import VolumeRef

Mounts = Callable[[], Iterable[tuple[int, str, str]]]
"""Every mount of our device: (pid of a process that has it, its root within our file system, where it is mounted)."""


def stands_on(root: str, ref: VolumeRef) -> bool:
    """Whether a mount of `root`, a path in our file system, stands at, inside or (within its Pod) above a volume."""
    volume = f"/{ref.path}"
    pod = f"/pods/{ref.pod_uid}"
    inside = root == volume or root.startswith(f"{volume}/")
    above = (root == pod or root.startswith(f"{pod}/")) and volume.startswith(f"{root}/")
    return inside or above


class StandingMounts:
    """Reads /proc in a thread; one look answers everybody who asked before it began."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._seen: list[tuple[int, str, str]] = []
        self._seen_at = float("-inf")
        self._looking = trio.Lock()

    async def holder(self, ref: VolumeRef) -> str | None:
        asked = trio.current_time()
        async with self._looking:
            if self._seen_at < asked:
                self._seen_at = trio.current_time()
                self._seen = list(await trio.to_thread.run_sync(lambda: list(self._mounts())))
        for pid, root, where in self._seen:
            if stands_on(root, ref):
                return f"mounted at {where} (pid {pid})"
        return None
