"""What the kernel is told without having asked, and the thread that tells it.

A notification may wait for requests in flight (FUSE.md 3, 5), which only the thread that answers the kernel can end.
So that thread never sends one: it changes its state first and then puts what the kernel must learn into a queue.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

log = logging.getLogger(__name__)


class EntryGone(NamedTuple):
    """`name` in directory `parent` led to `nodeid` and leads nowhere now (FUSE_NOTIFY_DELETE).

    What is mounted below it is detached (FUSE.md 5), so it is never sent for a directory above a volume that exists.
    """

    parent: int
    name: str
    nodeid: int


class AttributesChanged(NamedTuple):
    """The attributes of `nodeid` changed otherwise than by a request of the kernel's."""

    nodeid: int


class PagesStale(NamedTuple):
    """Nothing of the content of `nodeid` may stay in the page cache."""

    nodeid: int


Notification: TypeAlias = EntryGone | AttributesChanged | PagesStale
Notify: TypeAlias = Callable[[Notification], None]


class NotificationThread:
    """Sends notifications in their order. Calling it queues one and returns at once."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Notification | Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._queued = 0  # written by the thread that answers the kernel
        self._sent = 0  # written by the notification thread

    def __call__(self, notification: Notification) -> None:
        self._queued += 1
        self._queue.put(notification)

    @property
    def idle(self) -> bool:
        """Whether the kernel knows of all that was queued."""
        return self._sent == self._queued

    def then(self, callback: Callable[[], object]) -> None:
        """`callback` is called in the thread when all that was queued until now has been sent."""
        self._queue.put(callback)

    def start(self, send: Notify) -> None:
        """`send` may wait, and raises OSError where the kernel refuses."""
        # daemonic: a send that waits for a dead connection must not keep the process
        self._thread = threading.Thread(target=self._run, args=(send,), name="notifications", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What is queued is still sent; returns at once."""
        self._queue.put(None)

    def _run(self, send: Notify) -> None:
        while (item := self._queue.get()) is not None:
            if callable(item):
                item()
                continue
            try:
                send(item)
            except FileNotFoundError:
                pass  # the kernel does not hold it (any more)
            except OSError as error:
                log.debug("%s: %s", item, error)
            self._sent += 1
