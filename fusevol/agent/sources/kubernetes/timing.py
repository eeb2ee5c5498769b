"""How long the API client waits for what, and its back-off."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """All times in seconds."""

    connect: float = 10.0
    """For TCP, TLS and the API server's first SETTINGS together."""
    request: float = 30.0
    """For a whole answer; for a watch until its headers."""
    ping_after: float = 15.0
    """Without a byte from the API server a PING is sent."""
    ping_answer: float = 10.0
    """A connection that does not answer it is given up."""
    unused: float = 60.0
    """A connection without streams is closed."""
    backoff_first: float = 0.8
    backoff_cap: float = 30.0
    retry_after_cap: float = 30.0
    """What a Retry-After may ask for at most."""
    watch_shortest: float = 300.0
    """Watches end after a random time between this and twice this (timeoutSeconds)."""
    watch_idle: float = 180.0
    """A watch that not even a bookmark came from (the API server sends one a minute) is begun anew."""
    watch_settled: float = 10.0
    """A watch that lasted as long, or brought an event, is begun anew without a pause when it ends."""
    forbidden: float = 1.0
    """For this long after a Pod's arrival the node authorizer may not know it yet: its 403 is retried quickly."""
    grace: float = 15.0
    """An object that could be read before is told to fail after this long only: a restarted API server says 403 until
    its authorizer has read all Pods. The same for broken connections, at any time."""
    credentials_poll: float = 20.0
    """Files of credentials are looked at."""
    credentials_helper: float = 60.0
    """For the helper, exec plugins included."""
    refresh: float = 30.0
    """For the barrier of `fusevol wait`."""


QUICK_RETRIES = (0.01, 0.02, 0.05)
"""Seconds before the first retries of an early 403; the last and all later ones wait QUICK_RETRY."""

QUICK_RETRY = 0.1


def quick_retries() -> Iterator[float]:
    """Pauses in seconds: 10, 20, 50, 100, 100, ... ms."""
    yield from QUICK_RETRIES
    while True:
        yield QUICK_RETRY


class Backoff:
    """Pauses of `first` × 2ⁿ seconds up to `cap`, each shortened by up to a half at random, so that a cluster's nodes
    do not come back all at once."""

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._first = timing.backoff_first
        self._cap = timing.backoff_cap
        self._rng = rng
        self._next = self._first

    def reset(self) -> None:
        self._next = self._first

    def pause(self, at_least: float | None = None) -> float:
        """Seconds to wait now. `at_least` is the API server's Retry-After."""
        base, self._next = self._next, min(self._cap, self._next * 2)
        return max(at_least or 0.0, base * self._rng.uniform(0.5, 1.0))
