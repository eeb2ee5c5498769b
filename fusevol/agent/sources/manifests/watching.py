"""Being told of changes in a directory (watchfiles), from when it exists and anew when it is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import trio
import watchfiles

STEP = 25
"""Milliseconds between two looks at what the kernel told; a change is told when one look brought nothing new."""

RETRY = 1.0
"""Seconds until a directory that cannot be watched is tried again."""


async def watch_directory(directory: Path, changed: Callable[[], None]) -> None:
    """Calls `changed` after each burst of changes of the directory's own entries, until cancelled. What no event tells
    (a file that a link leads to, a network file system) is for the caller's regular look."""
    while True:
        try:
            await _watch(directory, changed)
        except* (OSError, RuntimeError):
            pass  # not there, or no inotify instance to be had: the caller looks by itself meanwhile
        await trio.sleep(RETRY)
        changed()


async def _watch(directory: Path, changed: Callable[[], None]) -> None:
    """Returns when another directory stands at the path, or none."""
    identity = _identity(directory)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set_when_cancelled, stop)
        changes = watchfiles.awatch(
            directory,
            watch_filter=None,
            debounce=4 * STEP,
            step=STEP,
            stop_event=stop,
            rust_timeout=1000,
            yield_on_timeout=True,
            recursive=False,
            ignore_permission_denied=True,
        )
        async with aclosing(changes):
            async for events in changes:
                if events:
                    changed()
                if _identity(directory) != identity:
                    break
        nursery.cancel_scope.cancel()


async def _set_when_cancelled(stop: trio.Event) -> None:
    """The thread that waits for events cannot be cancelled; it looks at this."""
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino
