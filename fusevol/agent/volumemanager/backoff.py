"""kubelet's back-off of failed operations: 0.5, 1, 2 … 64, 122, 122 s (KUBELET.md 1.18)."""

from __future__ import annotations

from fusevol.model.refs import VolumeRef

FIRST = 0.5
CAP = 122.0


class Backoff:
    """The delay before the next attempt, per volume. A success forgets the series."""

    def __init__(self) -> None:
        self._delays: dict[VolumeRef, float] = {}

    def failed(self, ref: VolumeRef) -> float:
        """Seconds to wait before the next attempt."""
        delay = min(self._delays.get(ref, FIRST / 2) * 2, CAP)
        self._delays[ref] = delay
        return delay

    def succeeded(self, ref: VolumeRef) -> None:
        self._delays.pop(ref, None)
