"""Memory and CPU time of a process and of all that it started, from /proc."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass

from fusevol.system import memory, processes

_TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `pss` and `rss` in bytes, `cpu` in seconds of user and system time since its start."""

    name: str
    pid: int
    pss: int
    rss: int
    cpu: float


def descendants(root: int) -> list[int]:
    """`root` and the living processes below it, parents first."""
    children: dict[int, list[int]] = {}
    for pid in processes.pids():
        if fields := _stat(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def sample(pids: list[int]) -> list[Process]:
    """What each of them uses now. Processes that have ended are left out."""
    found = []
    for pid in pids:
        try:
            used = memory.usage(pid)
        except OSError:
            continue
        if used.pss is None:
            raise PermissionError(f"/proc/{pid}/smaps_rollup may not be read")
        found.append(Process(_name(pid), pid, used.pss, used.rss, cpu_seconds(pid)))
    return found


def cpu_seconds(pid: int) -> float:
    """utime + stime (proc_pid_stat(5), fields 14 and 15); 0 for a process that is gone. Precise to two ticks."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * _TICK if fields else 0.0


def idle_cpu(pids: list[int], seconds: float) -> dict[int, float]:
    """Percent of one core that each process uses over the next `seconds`."""
    before, start = {pid: cpu_seconds(pid) for pid in pids}, time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - start
    return {pid: max(0.0, cpu_seconds(pid) - used) / elapsed * 100 for pid, used in before.items()}


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, from the third (state) on; none where it is gone."""
    return processes.text(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _name(pid: int) -> str:
    """`keeper`, `server`, `agent`: the last part of the module that it runs, else the short name."""
    arguments = processes.text(pid, "cmdline").decode(errors="replace").split("\0")
    for option, module in itertools.pairwise(arguments):
        if option == "-m":
            return module.rpartition(".")[2]
    return processes.command(pid)
