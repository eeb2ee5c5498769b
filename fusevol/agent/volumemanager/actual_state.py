"""Actual state: what is published, what failed, what is being torn down; the volumes of `fusevol status`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fusevol.model.refs import VolumeRef
from fusevol.model.volume import VolumeMeta, VolumeState


class Phase(StrEnum):
    PENDING = "Pending"
    MOUNTED = "Mounted"
    FAILED = "Failed"
    TEARING_DOWN = "TearingDown"


@dataclass(slots=True)
class ActualVolume:
    """A volume as it stands. `meta` is None until it is published; `settled` is false while leftovers of an update
    that was interrupted stand in its root; `held` says what keeps it from being torn down."""

    ref: VolumeRef
    since: datetime
    phase: Phase = Phase.PENDING
    digest: str = ""
    meta: VolumeMeta | None = None
    settled: bool = True
    error: str | None = None
    held: str | None = None

    @property
    def published(self) -> bool:
        return self.meta is not None


class ActualState:
    """Written by operations and reconstruction. `changed` is called after every change."""

    def __init__(self, now: Callable[[], datetime], changed: Callable[[], None]) -> None:
        self._volumes: dict[VolumeRef, ActualVolume] = {}
        self._now = now
        self._changed = changed

    def __iter__(self) -> Iterator[ActualVolume]:
        return iter(self._volumes.values())

    @property
    def refs(self) -> Collection[VolumeRef]:
        return self._volumes.keys()

    def get(self, ref: VolumeRef) -> ActualVolume | None:
        return self._volumes.get(ref)

    def ensure(self, ref: VolumeRef) -> ActualVolume:
        """The volume's record, a new one in phase Pending if there was none."""
        if ref not in self._volumes:
            self._volumes[ref] = ActualVolume(ref, self._now())
            self._changed()
        return self._volumes[ref]

    def published(self, ref: VolumeRef, digest: str, meta: VolumeMeta) -> None:
        """The volume shows what was planned."""
        volume = self.ensure(ref)
        volume.digest, volume.meta, volume.settled, volume.error, volume.held = digest, meta, True, None, None
        self._enter(volume, Phase.MOUNTED)

    def failed(self, ref: VolumeRef, error: str) -> None:
        """What is served stays served; what never was is Failed."""
        volume = self.ensure(ref)
        volume.error = error
        self._enter(volume, Phase.MOUNTED if volume.published else Phase.FAILED)

    def tearing_down(self, ref: VolumeRef, held: str | None = None) -> None:
        volume = self.ensure(ref)
        volume.held, volume.error = held, None
        self._enter(volume, Phase.TEARING_DOWN)

    def unsettled(self, ref: VolumeRef) -> None:
        """An update is being made: until it has succeeded nobody knows which version is served, and what it leaves."""
        volume = self.ensure(ref)
        volume.settled, volume.digest = False, ""

    def unpublished(self, ref: VolumeRef) -> None:
        """The server shows it no longer; what is left of it is not removed yet."""
        self.ensure(ref).meta = None

    def remove(self, ref: VolumeRef) -> None:
        if self._volumes.pop(ref, None) is not None:
            self._changed()

    def reconstruct(self, states: Iterable[VolumeState], backed: Iterable[VolumeRef]) -> None:
        """From a server that was there before this agent, or before its last connection: `states`. `backed` are the
        emptyDirs of the state directory, which may have to be published again."""
        before, self._volumes = self._volumes, {}
        for state in states:
            volume = self.ensure(state.ref)
            volume.digest, volume.meta, volume.settled = state.digest, state.meta, state.settled
            volume.phase = Phase.MOUNTED
        for ref in backed:
            self.ensure(ref)
        for ref, volume in self._volumes.items():
            if (known := before.get(ref)) and known.phase is volume.phase:
                volume.since = known.since
        self._changed()

    def _enter(self, volume: ActualVolume, phase: Phase) -> None:
        if volume.phase is not phase:
            volume.phase, volume.since = phase, self._now()
        self._changed()
