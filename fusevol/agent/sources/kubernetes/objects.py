"""One ConfigMap, Secret or Node, kept delivered by a GET and a watch.

The node authorizer allows no wider watch than one of a single name (KUBELET.md 12.11). The cycle: GET (consistent),
deliver, watch from its resourceVersion; a watch that ends is resumed where it was; where the API server has forgotten
that point (410) the cycle begins anew, and what has not changed is not delivered again. A name that does not exist is
watched from resourceVersion 0, and delivered when it is created. The watch of an immutable object goes on too: it costs
little and shows when the object is deleted and made anew (unlike KUBELET.md 12.8).
"""

from __future__ import annotations

import random
from typing import Any

import structlog
import trio

from fusevol.agent.sources.kubernetes.client import Client, Watch
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, KubernetesError, Undecodable
from fusevol.agent.sources.kubernetes.keeper import Interrupted, Interruption, Teller
from fusevol.agent.sources.kubernetes.schema import RESOURCES, Event, Resource, older
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing, quick_retries
from fusevol.agent.sources.source import Sink
from fusevol.model.errors import FusevolError
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)

FROM_NOTHING = "0"
"""Any state: the watch begins with an ADDED for what exists."""


class ObjectKeeper:
    """A Keeper of one object of RESOURCES."""

    def __init__(self, client: Client, sink: Sink, ref: ObjectRef, timing: Timing, rng: random.Random) -> None:
        self._client = client
        self._teller = Teller(sink, ref)
        self._ref = ref
        self._resource: Resource[Any] = RESOURCES[ref.kind]
        self._timing = timing
        self._backoff = Backoff(timing, rng)
        self._interruption = Interruption()
        self._lock = trio.Lock()  # held from the asking (GET) or taking (event) of a state to its delivery
        self._stopped = False
        self._version: str | None = None  # where a watch goes on; None: with a GET. Under _lock
        self._seen = ""  # the version of the last GET: what a watch says of it or of before is old. Under _lock

    def stop(self) -> None:
        self._stopped = True
        self._interruption.interrupt()

    def redeliver(self) -> None:
        self._teller.forget()
        self._version = None
        self._interruption.interrupt()

    async def refresh(self) -> None:
        async with self._lock:
            try:
                await self._get(self._client)
            except (ApiError, Undecodable) as error:
                self._teller.failed(str(error))

    async def run(self) -> None:
        while not self._stopped:
            pause: float | None = None
            try:
                await self._cycle()
            except Interrupted:
                continue
            except ApiError as error:
                self._version = None
                if not error.gone:
                    self._teller.failed(error.message)
                pause = self._backoff.pause(error.retry_after)
            except KubernetesError as error:
                log.debug("watch_failed", object=str(self._ref), error=str(error))
                if isinstance(error, Undecodable) or not self._teller.known:
                    self._teller.failed(str(error))
                pause = self._backoff.pause()
