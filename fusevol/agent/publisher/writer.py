"""The writer: one long-lived thread that makes every change of an API volume through the mount.

The server recognises it by its thread id (FUSE.md 4), so a pool of threads would not do. A call that hangs in the mount
hangs this thread only.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

Result = TypeVar("Result")


class Writer:
    """Runs functions one after the other in its thread; `stop` lets the thread end when it is idle."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    def _work(self) -> None:
        while job := self._jobs.get():
            job()

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """The function's result or exception. Cancelled, the caller goes on and the thread finishes what it began."""
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        results: list[outcome.Maybe[Result]] = []

        def job() -> None:
            results.append(outcome.capture(function, *args))
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # the agent is gone, nobody waits

        self._jobs.put(job)
        await done.wait()
        return results[0].unwrap()

    def stop(self) -> None:
        self._jobs.put(None)
