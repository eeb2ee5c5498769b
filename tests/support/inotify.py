"""inotify watchers for tests: inotifywait in a process, here or in another mount namespace.

with Watch(volume) as watch:
    ...
    assert watch.modifying() == ["..NEW CREATE,ISDIR", ...]
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

READING = {"OPEN", "ACCESS", "CLOSE_NOWRITE", "CLOSE", "ISDIR"}
TIMESTAMPED = re.compile(r"\.\.\d{4}(_\d\d){5}\.\d+")
READ_ONLY_BIND = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
START_TIMEOUT = 20.0  # seconds


class Lines:
    """A process and the lines that it has printed so far, of both streams. Its input stays open until the end."""

    def __init__(self, command: Sequence[str | Path], ready: str) -> None:
        """Returns when a line with `ready` has come."""
        self.lines: list[str] = []  # written by the thread; appending is atomic
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        self._thread = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not any(ready in line for line in self.lines):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise AssertionError(f"{command} did not start: {self.lines}")
            time.sleep(0.01)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._thread.join(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class Watch(Lines):
    """`inotifywait -m` on a directory or on `name` in it. With `bound_at` it looks from another mount namespace,
    through a read-only bind mount of the directory at that place."""

    def __init__(self, directory: Path, name: str = "", *, bound_at: Path | None = None) -> None:
        wait: list[str | Path] = ["inotifywait", "--monitor", "--format", "%f|%e", (bound_at or directory) / name]
        unshare: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY_BIND, "sh"]
        super().__init__(wait if bound_at is None else [*unshare, directory, bound_at, *wait], "Watches established")

    def modifying(self) -> list[str]:
        """The events that do not tell of mere reading, as `name EVENTS` (no name for the watched thing itself). The
        timestamped directories are called `..NEW1`, `..NEW2` in the order of their creation, others `..OLD`."""
        names: dict[str, str] = {}
        found = []
        for line in list(self.lines):
            name, bar, flags = line.partition("|")
            if not bar or not set(flags.split(",")) - READING:
                continue
            if TIMESTAMPED.fullmatch(name):
                if flags == "CREATE,ISDIR":
                    names[name] = f"..NEW{len(names) + 1}"
                name = names.get(name, "..OLD")
            found.append(f"{name} {flags}".strip())
        return found
