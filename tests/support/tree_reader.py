"""A process that reads volumes all the time, as containers do, and remembers what it should not have met.

    with TreeReader() as reader:
        reader.watch([Expected(root, candidates)], {})      # what may be read from here on
        ...
        violations = reader.watch([], {})                   # what was wrong until now

Of each volume it reads the files that all candidates have, by their paths as containers know them, and then everything
below `..data`, opened once: that must be one of the candidates as a whole.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RETIRED = 0.8
"""Seconds: an old version is removed a second after it was replaced. A reader that was held up for as long as that may
miss what it set out for, so it tries again."""

PAUSE = 0.002  # seconds between two rounds, and for a word from the parent

Files = dict[str, str]  # content (latin-1, so that any byte is a character) by path


@dataclass(frozen=True, slots=True)
class Expected:
    """A volume that stays for as long as it is watched, and what its files may be."""

    root: Path
    candidates: tuple[Mapping[str, bytes], ...]


class TreeReader:
    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.tree_reader"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.rounds = 0  # complete ones, until the last watch()
        self.reads = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()  # it ends at the end of its input
        self._process.wait(10)

    def watch(self, volumes: Iterable[Expected], files: Mapping[Path, bytes]) -> list[str]:
        """From now on these volumes, and these files with this content. Returns what was wrong until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "volumes": [
                (
                    str(volume.root),
                    [{path: data.decode("latin-1") for path, data in c.items()} for c in volume.candidates],
                )
                for volume in volumes
            ],
            "files": {str(path): data.decode("latin-1") for path, data in files.items()},
        }
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.rounds += answer["rounds"]
        self.reads += answer["reads"]
        violations: list[str] = answer["violations"]
        return violations


# -- in the process ---------------------------------------------------------------------------------------------


class _Reading:
    """One order's."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.volumes: list[tuple[str, list[Files]]] = order["volumes"]
        self.files: Files = order["files"]
        self.rounds = self.reads = 0
        self.violations: list[str] = []

    def round(self) -> None:
        for path, content in self.files.items():
            if (data := self._read(path)) != content and data is not None:
                self._wrong(path, f"{data!r} instead of {content!r}")
        for root, candidates in self.volumes:
            first, *others = candidates
            for path in first:
                allowed = [candidate[path] for candidate in others if path in candidate]
                if len(allowed) == len(others):
                    data = self._read(f"{root}/{path}")
                    if data is not None and data not in (first[path], *allowed):
                        self._wrong(f"{root}/{path}", f"{data!r} is none of {[first[path], *allowed]}")
            self._whole(root, candidates)
        self.rounds += 1

    def _read(self, path: str) -> str | None:
        """None where it was wrong, which is noted."""
        while True:
            began = time.monotonic()
            self.reads += 1
            try:
                with open(path, "rb") as file:
                    return file.read().decode("latin-1")
            except FileNotFoundError:
                if time.monotonic() - began > RETIRED:
                    continue
                self._wrong(path, "not found")
                return None
            except OSError as error:
                self._wrong(path, str(error))
                return None

    def _whole(self, root: str, candidates: list[Files]) -> None:
        while True:
            began = time.monotonic()
            try:
                top = os.open(f"{root}/..data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    found = self._below(top)
                finally:
                    os.close(top)
            except OSError as error:
                found, problem = None, str(error)
            if found in candidates:
                return
            if time.monotonic() - began > RETIRED:
                continue
            self._wrong(f"{root}/..data", problem if found is None else f"{found} is none of {candidates}")
            return

    def _below(self, top: int) -> Files:
        found: Files = {}
        directories = [""]
        while directories:
            above = directories.pop()
            descriptor = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
            try:
                entries = [(entry.name, entry.is_dir()) for entry in os.scandir(descriptor)]
            finally:
                os.close(descriptor)
            for name, is_directory in entries:
                if is_directory:
                    directories.append(f"{above}{name}/")
                    continue
                self.reads += 1
                file = os.open(above + name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=top)
                try:
                    found[above + name] = os.read(file, 1 << 20).decode("latin-1")
                finally:
                    os.close(file)
        return found

    def _wrong(self, path: str, what: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(f"{time.time():.3f} {path}: {what}")


def main() -> None:
    reading = _Reading({"volumes": [], "files": {}})
    while True:
        if select.select([0], [], [], PAUSE)[0]:
            order = sys.stdin.buffer.readline()
            if not order:
                return
            answer = {"rounds": reading.rounds, "reads": reading.reads, "violations": reading.violations}
            reading = _Reading(json.loads(order))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        reading.round()


if __name__ == "__main__":
    main()
