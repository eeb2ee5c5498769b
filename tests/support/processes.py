"""Processes that cannot outlive the tests, and what a test left behind.

`spawn` starts a process that the kernel ends with us, however we end. `children` and `fuse_mounts` are what the
autouse fixture of `tests/conftest.py` compares after each test.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

# PR_SET_PDEATHSIG fires at the death of the *thread* that forked. A worker thread of trio's ends after ten idle
# seconds, so everything is started by one thread that lives as long as the process.
_spawner = ThreadPoolExecutor(1, "spawner")

# Processes that belong to a longer scope than one test: the session's cluster. Written by spawn() and end() only.
_managed: set[int] = set()

PR_SET_CHILD_SUBREAPER = 36


def spawn(
    command: Sequence[str | Path],
    *,
    log: IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
    managed: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts `command` in a process group of its own, its output in `log`.

    It gets SIGKILL when this process dies. With `managed` it may outlive the test that started it.
    """

    def start() -> subprocess.Popen[bytes]:
        # setpriv and not preexec_fn: Python 3.12 warns of a fork among threads, and warnings are errors here
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log is not None else None,
            env=env,
            start_new_session=True,
        )

    process = _spawner.submit(start).result(timeout=30)
    if managed:
        _managed.add(process.pid)
    return process


def end(process: subprocess.Popen[bytes], *, grace: float = 5.0, number: int = signal.SIGTERM) -> int:
    """Ends the process group of `process`: `number` first, SIGKILL after `grace` seconds. Returns its exit code."""
    _signal_group(process, signal.SIGCONT)  # a stopped process would not hear SIGTERM
    _signal_group(process, number)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        process.wait(10)
    _managed.discard(process.pid)
    return process.returncode


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants' orphans, so that `children` sees daemons too."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> dict[int, str]:
    """The living children of this process, command line by pid; without zombies and without managed ones."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids.update(map(int, (task / "children").read_text().split()))
    found = {}
    for pid in pids - _managed:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def fuse_mounts() -> set[str]:
    """Mount points of FUSE file systems in this mount namespace (not of /sys/fs/fuse/connections, which is fusectl)."""
    mounts = set()
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
        fields, _, rest = line.partition(" - ")
        kind = rest.split()[0]
        if kind in ("fuse", "fuseblk") or kind.startswith("fuse."):
            mounts.add(fields.split()[4].replace("\\040", " "))
    return mounts
