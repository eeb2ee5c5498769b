"""Processes as /proc shows them. Every one may vanish between two looks; then it is simply not there.

What we cannot see for want of our own means (EMFILE, ENOMEM) is another matter: that is raised.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

PROC = Path("/proc")

# EINVAL: mountinfo of a process that is just ending (mounts_open_common, fs/proc_namespace.c).
_NOT_THERE = frozenset({errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM})


def pids(proc: Path = PROC) -> list[int]:
    """All processes visible here, in ascending order."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdigit())


def command(pid: int, proc: Path = PROC) -> str:
    """The short name (comm), never the command line, whose arguments may be private. "?" if it is gone."""
    try:
        return os.fsdecode((proc / str(pid) / "comm").read_bytes()).rstrip("\n")
    except OSError:
        return "?"


def link(pid: int | str, name: str, proc: Path = PROC) -> str | None:
    """The target of one of a process's links (`cwd`, `root`, `ns/mnt`), None where it is gone or may not be read, or
    is longer than the kernel can tell: anybody can make such a path. Raises OSError where we lack the means to look.
    """
    try:
        return os.readlink(f"{proc}/{pid}/{name}")
    except OSError as error:
        if error.errno in _NOT_THERE or error.errno == errno.ENAMETOOLONG:
            return None
        raise


def text(pid: int | str, name: str, proc: Path = PROC) -> bytes:
    """One of a process's files, b"" where it is gone or may not be read. Raises OSError where we lack the means."""
    try:
        with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        if error.errno in _NOT_THERE:
            return b""
        raise


def descriptors(pid: int, proc: Path = PROC) -> list[str]:
    """The numbers of its open files, [] where it is gone or may not be read. Raises OSError where we lack the means."""
    try:
        return os.listdir(f"{proc}/{pid}/fd")
    except OSError as error:
        if error.errno in _NOT_THERE:
            return []
        raise
