"""Reading a file only when nobody is writing it.

A read lease is refused (EAGAIN) while some process has the file open for writing, and holds off whoever opens it for
writing for the moment of our reading (fcntl(2), "Leases"). Where there are no leases (another's file without CAP_LEASE,
a file system without them) the file must not have changed for a while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path
from typing import NamedTuple

import trio

MAX_FILE = 16 << 20
"""Bytes. The largest object is 1 MiB."""

SUFFIXES = (".yaml", ".yml", ".json")

# A lease is told of a waiting writer by a signal; SIGURG is ignored by default, SIGIO would end the process.
_BREAK_SIGNAL = signal.SIGURG
_F_SETSIG = 10  # linux/fcntl.h; the fcntl module does not name it


class Busy(Exception):
    """Somebody is writing the file, or has just done so: try again in a moment."""


class TooLarge(Exception):
    """No manifest is that large."""


class Stamp(NamedTuple):
    """A file as it was when it was looked at."""

    device: int
    inode: int
    size: int
    changed_ns: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns)


def manifests_in(directory: Path) -> dict[str, Stamp | None]:
    """The manifests by name, in order. Hidden files (`..data`, editors' own) and directories are none; a link counts
    as what it leads to, and has no stamp if it leads nowhere. Raises OSError."""
    found: dict[str, Stamp | None] = {}
    for name in sorted(os.listdir(directory)):
        if name.startswith((".", "#")) or not name.endswith(SUFFIXES):
            continue
        try:
            status = os.stat(directory / name)
        except OSError:
            found[name] = None
            continue
        if stat.S_ISREG(status.st_mode):
            found[name] = Stamp.of(status)
    return found


async def read_settled(path: Path, still: float) -> tuple[bytes, Stamp]:
    """The whole file. `still`: seconds without change that are enough where leases are refused.
    Raises Busy, TooLarge, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = Stamp.of(os.fstat(descriptor))
        if not _leased(descriptor):
            await trio.sleep(still)
        data = _read(descriptor)
        after = Stamp.of(os.fstat(descriptor))
        if after != before or len(data) != after.size:
            raise Busy(path.name)
        return data, after
    finally:
        os.close(descriptor)  # and the lease with it


def _leased(descriptor: int) -> bool:
    """Raises Busy if the file is open for writing."""
    try:
        fcntl.fcntl(descriptor, _F_SETSIG, _BREAK_SIGNAL)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise Busy from None
        return False
    return True


def _read(descriptor: int) -> bytes:
    """Without waiting: manifests are small."""
    chunks = []
    size = 0
    while chunk := os.read(descriptor, 1 << 20):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_FILE:
            raise TooLarge
    return b"".join(chunks)
