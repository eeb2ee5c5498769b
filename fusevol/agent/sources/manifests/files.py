"""The files of the directory: what each of them held when it was last good, and what is wrong with it now."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import trio

from fusevol.agent.sources.manifests import reading
from fusevol.agent.sources.manifests.contents import FileContents, Invalid, decode
from fusevol.agent.sources.manifests.objects import Manifest
from fusevol.agent.sources.manifests.reading import Busy, Stamp, TooLarge
from fusevol.agent.sources.source import SourceProblem
from fusevol.model.refs import ObjectRef

Decode = Callable[[str, bytes, str, bytes, FileContents | None], FileContents]
"""`contents.decode`; raises Invalid."""

_log = structlog.get_logger(__name__)


class Timing(msgspec.Struct, frozen=True):
    """Seconds."""

    still: float = 0.2
    """A file that cannot be leased is read when it has not changed for so long."""

    gone: float = 0.3
    """A file is deleted when it has been missing for so long: some editors save by moving the old file away first."""

    retry: float = 0.05
    """Until a file that is being written is tried again."""

    patience: float = 10.0
    """How long a file may be written before that is a problem, and how long `refresh` waits for it."""

    rescan: float = 5.0
    """Between two looks at the directory without any event."""


class _File:
    """One file. `stamp` is that of the content that was last read, good or bad."""

    def __init__(self) -> None:
        self.held: FileContents | None = None
        self.stamp: Stamp | None = None
        self.problems: tuple[SourceProblem, ...] = ()
        self.busy_since: float | None = None
        self.gone_since: float | None = None

    @property
    def unsettled(self) -> bool:
        return self.busy_since is not None or self.gone_since is not None


class Files:
    """All files by name. Nothing here is a Secret's value longer than a call lasts."""

    def __init__(
        self,
        directory: Path,
        timing: Timing,
        digest_key: bytes,
        clock: Callable[[], float],
        decode: Decode = decode,
    ) -> None:
        self._directory = directory
        self._timing = timing
        self._key = digest_key
        self._clock = clock
        self._decode = decode
        self._files: dict[str, _File] = {}
        self.unreadable: str | None = None
        """Why the directory itself cannot be read; its files then count as they were."""

    async def scan(self) -> None:
        """Reads what has changed. Files that are being written are left for the next scan."""
        try:
            found = reading.manifests_in(self._directory)
        except OSError as error:
            self.unreadable = error.strerror or str(error)
            return
        self.unreadable = None
        self._forget_missing(found)
        async with trio.open_nursery() as nursery:
            for name, stamp in found.items():
                file = self._files.setdefault(name, _File())
                file.gone_since = None
                if stamp is None or stamp != file.stamp or file.busy_since is not None:
                    nursery.start_soon(self._read, name, file)

    async def values(self, name: str, manifest: Manifest) -> dict[str, bytes] | None:
        """An object's values, read again; None if the file has changed since, and the next scan will tell.
        Raises Busy, Invalid, OSError."""
        data, stamp = await reading.read_settled(self._directory / name, self._timing.still)
        contents = self._decoded(name, data, stamp, None)
        found = contents.objects.get(manifest.ref)
        if (
            found is None
            or found.values is None
            or (found.digest, found.version) != (manifest.digest, manifest.version)
        ):
            return None
        return dict(found.values)

    def held(self) -> list[tuple[str, FileContents]]:
        """What the files hold, in the order of their names."""
        return [(name, file.held) for name, file in sorted(self._files.items()) if file.held is not None]

    def problems(self) -> list[SourceProblem]:
        problems = [problem for _, file in sorted(self._files.items()) for problem in file.problems]
        if self.unreadable is not None:
            problems.append(SourceProblem(f"the directory cannot be read: {self.unreadable}", str(self._directory)))
        return problems

    def is_valid(self, name: str) -> bool:
        file = self._files.get(name)
        return file is not None and file.held is not None and not file.problems

    @property
    def complete(self) -> bool:
        """Whether it is known what every file holds: since the start each has been good at least once."""
        return self.unreadable is None and all(file.held is not None for file in self._files.values())

    @property
    def unsettled(self) -> list[str]:
        """Files that are being written or have just gone."""
        return [name for name, file in sorted(self._files.items()) if file.unsettled]

    def _forget_missing(self, found: dict[str, Stamp | None]) -> None:
        for name in self._files.keys() - found.keys():
            file = self._files[name]
            file.busy_since = None
            if file.gone_since is None:
                file.gone_since = self._clock()
            elif self._clock() - file.gone_since >= self._timing.gone:
                del self._files[name]

    async def _read(self, name: str, file: _File) -> None:
        if _shown(name) != name:
            file.problems = (SourceProblem("its name is not UTF-8", _shown(name)),)
            return
        try:
            data, stamp = await reading.read_settled(self._directory / name, self._timing.still)
        except Busy:
            self._wait_for(name, file, "some process keeps it open for writing", self._timing.patience)
            return
        except FileNotFoundError:
            # gone since the directory was listed, or a link that leads nowhere, perhaps for a moment only
            self._wait_for(name, file, "a link that leads nowhere", self._timing.gone)
            return
        except TooLarge:
            file.problems = (SourceProblem(f"larger than {reading.MAX_FILE} bytes", name),)
        except OSError as error:
            file.problems = (SourceProblem(f"cannot be read: {error.strerror}", name),)
        else:
            self._take(name, file, data, stamp)
        file.busy_since = None

    def _take(self, name: str, file: _File, data: bytes, stamp: Stamp) -> None:
        file.stamp = stamp
        try:
            contents = self._decoded(name, data, stamp, file.held)
        except Invalid as error:
            file.problems = error.problems
        else:
            file.held = contents.kept()
            file.problems = ()

    def _decoded(self, name: str, data: bytes, stamp: Stamp, before: FileContents | None) -> FileContents:
        """Raises Invalid, also where the decoder has a bug: one file must not end the agent."""
        try:
            return self._decode(name, data, str(stamp.modified_ns), self._key, before)
        except Invalid:
            raise
        except Exception as error:
            # without the exception's text, which may quote a Secret
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("manifest cannot be understood", file=name, error=type(error).__name__, exception=where)
            raise Invalid([SourceProblem(f"cannot be understood: {type(error).__name__}", name)]) from None

    def _wait_for(self, name: str, file: _File, problem: str, patience: float) -> None:
        now = self._clock()
        if file.busy_since is None:
            file.busy_since = now
        if now - file.busy_since >= patience:
            file.problems = (SourceProblem(problem, name),)


def _shown(name: str) -> str:
    """A file's name for people: bytes that are not UTF-8 as `\\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def manifest_of(held: list[tuple[str, FileContents]]) -> dict[ObjectRef, tuple[str, Manifest]]:
    """Objects by reference with the file that each is taken from: the first that has it."""
    objects: dict[ObjectRef, tuple[str, Manifest]] = {}
    for name, contents in held:
        for ref, manifest in contents.objects.items():
            objects.setdefault(ref, (name, manifest))
    return objects
