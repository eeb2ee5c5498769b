"""Processes as /proc shows them. Every one may vanish between two looks; then it is simply not there."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


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
    """The target of one of a process's links (`cwd`, `root`, `ns/mnt`), None where it is gone or may not be read."""
    try:
        return os.readlink(f"{proc}/{pid}/{name}")
    except OSError:
        return None


def text(pid: int | str, name: str, proc: Path = PROC) -> bytes:
    """One of a process's files, b"" where it is gone or may not be read."""
    try:
        with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""
