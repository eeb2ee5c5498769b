"""The keeper's event loop: descriptors that became readable or writable, and deadlines."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

Handler = Callable[[], None]


class Loop:
    """One thread; handlers are short and never wait."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, readable: Handler, writable: Handler | None = None) -> None:
        """Calls `readable` when there is something to read, `writable` (if given) when there is room."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        try:
            self._selector.modify(fd, events, (readable, writable))
        except KeyError:
            self._selector.register(fd, events, (readable, writable))

    def forget(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        self._selector.unregister(fd)

    def turn(self, deadline: float | None) -> None:
        """Handles what has happened; waits for something to happen until `deadline` (monotonic; None: for ever)."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        for key, events in self._selector.select(timeout):
            # a handler earlier in this round may have forgotten a descriptor of a later one
            if self._selector.get_map().get(key.fd) is not key:
                continue
            readable, writable = key.data
            if events & selectors.EVENT_READ:
                readable()
            elif writable is not None:
                writable()

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Turns until `condition` holds, at most for `seconds`; returns whether it does."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline:
                return False
            self.turn(deadline)
        return True

    def close(self) -> None:
        self._selector.close()
