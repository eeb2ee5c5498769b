"""What the reflectors of referenced objects have in common: what was told of an object last, and being interrupted.

A reflector is one task that keeps one object delivered. All that it tells of its object passes through its Teller under
the reflector's lock, in the order in which it learned it: a newer version is never overtaken by an older.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
import trio

from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing
from fusevol.agent.sources.source import Sink
from fusevol.model.objects import DeliveredObject
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)


class Interruption:
    """Cancels what a task does, but for what it holds: a delivery under way is finished first."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._holding = False
        self._pending = False

    def interrupt(self) -> None:
        self._pending = True
        if not self._holding:
            self._scope.cancel()

    async def run(self, function: Callable[[], Awaitable[None]]) -> None:
        """Until the function returns or `interrupt` is called; at once if it has been called since the last time."""
        with trio.CancelScope() as self._scope:
            if not self._pending:
                await function()
        self._pending = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            if self._pending:
                self._scope.cancel()


@dataclass(frozen=True, slots=True)
class Present:
    uid: str
    version: str


@dataclass(frozen=True, slots=True)
class Missing:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    message: str


class Teller:
    """Tells the sink what is new of one object, and nothing twice."""

    def __init__(self, sink: Sink, ref: ObjectRef) -> None:
        self._sink = sink
        self.ref = ref
        self.told: Present | Missing | Failed | None = None

    @property
    def known(self) -> bool:
        """Whether the object has been answered for: it was there or certainly not."""
        return isinstance(self.told, Present | Missing)

    def forget(self) -> None:
        """What is told next is new, whatever it is."""
        self.told = None

    async def present(self, delivered: DeliveredObject) -> None:
        """Returns when the sink has it; its values are wiped then."""
        told = Present(delivered.uid, delivered.version)
        try:
            if told != self.told:
                await self._sink.deliver_object(delivered)
                self.told = told
        finally:
            for value in delivered.data.values():
                value.wipe()

    def missing(self) -> None:
        if self.told != Missing():
            self.told = Missing()
            self._sink.object_missing(self.ref)

    def failed(self, message: str) -> None:
        if self.told != Failed(message):
            self.told = Failed(message)
            log.warning("object_failed", object=str(self.ref), error=message)
            self._sink.object_failed(self.ref, message)


class Reflector(ABC):
    """One task that keeps one referenced object delivered: `run`, again and again `_attempt`, until `stop`."""

    def __init__(self, client: Client, sink: Sink, ref: ObjectRef, timing: Timing, rng: random.Random) -> None:
        self._client = client
        self._teller = Teller(sink, ref)
        self._ref = ref
        self._timing = timing
        self._rng = rng
        self._backoff = Backoff(timing, rng)
        self._interruption = Interruption()
        self._lock = trio.Lock()  # held from the asking for a state, or the taking of an event, to its delivery
        self._stopped = False

    async def run(self) -> None:
        """Keeps the object delivered until `stop`."""
        while not self._stopped:
            await self._interruption.run(self._attempt)

    def stop(self) -> None:
        """The end of `run`, soon: a delivery under way is finished."""
        self._stopped = True
        self._interruption.interrupt()

    @abstractmethod
    def redeliver(self) -> None:
        """The object is to be delivered again, even if unchanged, as soon as it can be had."""

    @abstractmethod
    async def refresh(self) -> None:
        """Returns when the newest state is delivered. Raises Disconnected where it cannot be had for now; what the API
        server refuses is told to the sink."""

    @abstractmethod
    async def _attempt(self) -> None:
        """One cycle, and the pause behind it where it failed. Cancelled by `stop` and `redeliver`."""
