"""Notices when the mount is taken from its place, or hidden there, and says so."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from fusevol.keeper.log import Log
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounting import Mount, Place, covered

SETTLE = 0.25
"""Seconds from a change of the mount table to the look at it: what changes often is looked at seldom, and a server
whose mount has gone altogether has ended by then."""


class MountTable:
    """`fileno` is readable when something was mounted or unmounted in our namespace since `seen` was called last.

    mountinfo is always readable and tells of a change as POLLPRI (proc(5)), which `selectors` cannot ask for: an epoll
    of its own asks, and is watched in its place.
    """

    def __init__(self) -> None:
        self._file = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def seen(self) -> None:
        """To be called before one looks what has changed."""
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._file)


class PlaceWatch:
    """Warns once when the mount is not at its place any more, and once when it is again."""

    def __init__(self, loop: Loop, mount: Mount, mountpoint: Path, log: Log) -> None:
        self.due: float | None = None
        """When `look` is to be called, on the monotonic clock."""
        self._loop = loop
        self._mount = mount
        self._mountpoint = mountpoint
        self._log = log
        self._in_place = True  # what was said last
        self._table = MountTable()
        loop.watch(self._table.fileno(), self._changed)

    def look(self) -> None:
        self.due = None
        try:
            place = self._mount.place()
        except OSError:
            self._look_soon()
            return
        if self._in_place is (place is Place.TOP):
            return
        self._in_place = place is Place.TOP
        if self._in_place:
            self._log.warning(f"{self._mountpoint} is at its place again")
        else:
            what = (
                covered(self._mountpoint) if place is Place.COVERED else f"{self._mountpoint} is not mounted any more"
            )
            self._log.warning(f"{what}; bind mounts and open files of before are served on")

    def close(self) -> None:
        self._loop.forget(self._table.fileno())
        self._table.close()

    def _changed(self) -> None:
        self._table.seen()
        if self.due is None:
            self._look_soon()

    def _look_soon(self) -> None:
        self.due = time.monotonic() + SETTLE
