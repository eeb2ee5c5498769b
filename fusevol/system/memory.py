"""Memory that is neither swapped out nor dumped, and what a process uses of it (FUSE.md 8).

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from fusevol.system.libc import checked, libc

_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_PR_SET_DUMPABLE = 4

_mlockall = libc.mlockall
_mlockall.argtypes = [ctypes.c_int]
_prctl = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, *[ctypes.c_ulong] * 4, use_errno=True)(("prctl", libc))


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes. `pss` is the process's share of what it maps together with others, None where it may not be read."""

    rss: int
    locked: int
    pss: int | None


def lock_memory() -> str | None:
    """Locks all memory of this process, pages that come later too. Returns None, or why it could not be.

    MCL_ONFAULT: pages are locked when they are used; without it each thread's whole stack would be resident.
    """
    try:
        checked(_mlockall, _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError as error:
        return f"mlockall: {error.strerror} (needs CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK)"
    return None


def make_undumpable() -> None:
    """No core dump, and no ordinary process may read this one's memory. Raises OSError."""
    checked(_prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


def usage(pid: int, proc: Path = Path("/proc")) -> Usage:
    """What a process uses. Raises OSError: ENOENT or ESRCH where it is gone."""
    directory = proc / str(pid)
    status = _kibibytes(directory / "status", ("VmRSS", "VmLck"))
    try:
        pss = _kibibytes(directory / "smaps_rollup", ("Pss",)).get("Pss")
    except PermissionError:
        pss = None
    return Usage(rss=status.get("VmRSS", 0), locked=status.get("VmLck", 0), pss=pss)


def _kibibytes(path: Path, fields: tuple[str, ...]) -> dict[str, int]:
    """The fields of a /proc file whose lines look like `VmRSS:   1234 kB`, in bytes; a zombie has none of them."""
    found = {}
    for line in os.fsdecode(path.read_bytes()).splitlines():
        name, _, value = line.partition(":")
        if name in fields:
            found[name] = int(value.split()[0]) << 10
    return found
