"""How long to wait before a process that died is started again."""

from __future__ import annotations


class Backoff:
    """0, then `first`, doubled each time up to `cap` (seconds); one that lived for `cap` seconds starts over."""

    def __init__(self, first: float = 0.5, cap: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self._next = 0.0

    def after(self, lived: float) -> float:
        """Seconds to wait after a life of `lived` seconds."""
        if lived >= self._cap:
            self._next = 0.0
        delay = self._next
        self._next = min(max(delay * 2, self._first), self._cap)
        return delay
