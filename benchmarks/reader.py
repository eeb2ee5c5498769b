"""Who waits for content as a container would: open, read, close, and a pause of 0.2 ms where it is not there yet.

Run as a process of its own it waits for many Pods: on each line of its input are the files of one, and it answers with
the time of CLOCK_MONOTONIC at which the last of them was read. There the pause is 10 ms between two rounds, so that the
bench does not keep the server busy; what it measures is late by up to a round.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

PAUSE = 0.0002  # seconds
ROUND_PAUSE = 0.01  # seconds: between rounds over many Pods


class TimedOut(Exception):
    """The content did not come."""


def read(path: str) -> bytes | None:
    """What stands in the file, by the path through `..data`; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, 4096)  # a larger buffer costs the reader of a direct_io file 0.5 ms
    except OSError:
        return None
    finally:
        os.close(descriptor)


def wait_for(path: str, content: bytes, timeout: float = 30.0) -> float:
    """The time (CLOCK_MONOTONIC, seconds) at which the file was read with this content. TimedOut after `timeout`."""
    deadline = time.monotonic() + timeout
    while read(path) != content:
        if time.monotonic() > deadline:
            raise TimedOut(f"{path} did not show {content!r} within {timeout:g} s")
        time.sleep(PAUSE)
    return time.monotonic()


class Reader:
    """The reader as a process: for what is waited for while this one is busy posting."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def expect(self, name: str, files: dict[str, str]) -> None:
        """Waits from now on until each file (by path) has its content."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, list(files.items())]) + "\n")

    def finish(self, timeout: float = 60.0) -> dict[str, float]:
        """When the last file of each name was read (CLOCK_MONOTONIC, seconds). TimedOut after `timeout` seconds."""
        try:
            answer, _ = self._process.communicate(timeout=timeout)  # closes its input: no more will come
        except subprocess.TimeoutExpired:
            raise TimedOut(f"not all files were readable within {timeout:g} s") from None
        return dict(map(json.loads, answer.splitlines()))


def main() -> None:
    waiting: dict[str, list[tuple[str, str]]] = {}
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    buffer, ended = b"", False
    while waiting or not ended:
        if ended:
            time.sleep(ROUND_PAUSE)
        elif selector.select(ROUND_PAUSE if waiting else None):
            chunk = os.read(0, 1 << 16)
            ended = not chunk
            *lines, buffer = (buffer + chunk).split(b"\n")
            waiting.update(map(json.loads, lines))
        for name, files in list(waiting.items()):
            # only the first one that is missing is tried: the others' turn comes
            while files and read(files[0][0]) == files[0][1].encode():
                del files[0]
            if not files:
                del waiting[name]
                print(json.dumps([name, time.monotonic()]), flush=True)


if __name__ == "__main__":
    main()
