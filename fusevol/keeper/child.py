"""One process that the keeper starts, and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from fusevol.keeper.backoff import Backoff
from fusevol.keeper.config import child_environment
from fusevol.system import memory
from fusevol.system.timestamps import timestamp


class Child:
    """Server or agent. It runs in a session of its own: a terminal's Ctrl-C is for the keeper to judge.

    It is not ended with the keeper: a server goes on serving, an agent leaves when its connection closes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.backoff = Backoff()
        self.due: float | None = None  # when it is to be started again, on the monotonic clock
        self.pidfd: int | None = None  # readable when it has ended; open while it lives
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._since = 0.0  # monotonic
        self._started_at = 0.0  # seconds since the epoch

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def lived(self) -> float:
        """Seconds since it was started last."""
        return time.monotonic() - self._since

    def start(self, command: Sequence[str], fds: Sequence[int]) -> int:
        """Starts it with the descriptors `fds` and no other; returns its pidfd. Raises OSError."""
        assert self._process is None
        self.due = None
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env=child_environment(self.name),
            start_new_session=True,
        )
        self._process = process
        self._starts += 1
        self._since, self._started_at = time.monotonic(), time.time()
        self.pidfd = os.pidfd_open(process.pid)
        return self.pidfd

    def reap(self) -> int:
        """Its exit code (negative: the signal that ended it). To be called when its pidfd is readable."""
        assert self._process is not None
        assert self.pidfd is not None
        code = self._process.wait()
        os.close(self.pidfd)
        self._process = self.pidfd = None
        return code

    def signal(self, number: int) -> None:
        """Harmless when it is dead."""
        if self._process is not None:
            self._process.send_signal(number)

    def status(self) -> dict[str, Any]:
        return process_status(self.pid, self._started_at, max(0, self._starts - 1))


def process_status(pid: int | None, started_at: float, restarts: int) -> dict[str, Any]:
    """An entry of `processes` in the status (docs/status.md)."""
    usage = None
    if pid is not None:
        try:
            usage = memory.usage(pid)
        except (FileNotFoundError, ProcessLookupError):
            pid = None
    return {
        "pid": pid,
        "startedAt": timestamp(started_at) if pid is not None else None,
        "restarts": restarts,
        "rssBytes": usage.rss if usage is not None else 0,
        "lockedBytes": usage.locked if usage is not None else 0,
    }


def how_it_ended(code: int) -> str:
    """In words: `exit code 1`, `SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
