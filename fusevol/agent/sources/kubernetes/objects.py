"""One ConfigMap, Secret or Node, kept delivered by a GET and a watch.

The node authorizer allows no wider watch than one of a single name (KUBELET.md 12.11). The cycle: GET (consistent),
deliver, watch from its resourceVersion; a watch that ends is resumed where it was; where the API server has forgotten
that point (410) the cycle begins anew, and what has not changed is not delivered again. A name that does not exist is
watched from resourceVersion 0, and delivered when it is created. The watch of an immutable object goes on too: it costs
little and shows when the object is deleted and made anew (unlike KUBELET.md 12.8).

What the API server refuses is the GET's to tell. Where it allows that and no watch, the GET is repeated with back-off.
"""

from __future__ import annotations

import random
from typing import Any

import structlog
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, KubernetesError, Undecodable
from fusevol.agent.sources.kubernetes.reflector import Reflector
from fusevol.agent.sources.kubernetes.timing import Timing, quick_retries
from fusevol.agent.sources.source import Sink
from fusevol.model.errors import FusevolError
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)

FROM_NOTHING = "0"
"""Any state: the watch begins with an ADDED for what exists."""


class ObjectReflector(Reflector):
    """A Reflector of one object of `schema.RESOURCES`."""

    def __init__(self, client: Client, sink: Sink, ref: ObjectRef, timing: Timing, rng: random.Random) -> None:
        super().__init__(client, sink, ref, timing, rng)
        self._resource: schema.Resource[Any] = schema.RESOURCES[ref.kind]
        self._redeliver = False
        self._version: str | None = None  # where a watch goes on; None: with a GET. Of run()'s task
        self._seen = ""  # the version of the last GET: what a watch says up to it is old. Under _lock
        self._failing_since: float | None = None  # trio's clock: the first of the GETs that failed in a row
        self._fruitful = False  # the current watch has brought something

    def redeliver(self) -> None:
        self._redeliver = True
        self._interruption.interrupt()

    async def refresh(self) -> None:
        async with self._lock:
            if self._stopped:
                return
            try:
                await self._get()
            except (ApiError, Undecodable) as error:
                self._failed(error)

    async def _attempt(self) -> None:
        """One cycle, and the pause behind it where it failed."""
        if self._redeliver:
            self._redeliver = False
            self._version = None
            self._teller.forget()
        resumed = self._version is not None
        try:
            if self._version is None:
                async with self._lock:
                    self._version = await self._get()
        except FusevolError as error:  # the API's, or the sink's
            self._failed(error)
            await self._pause(error)
            return
        began = trio.current_time()
        self._fruitful = False
        try:
            await self._watch(self._version)
        except Disconnected as error:
            log.debug("watch_lost", object=str(self._ref), error=str(error))
        except FusevolError as error:
            log.debug("watch_failed", object=str(self._ref), error=str(error))
            self._version = None
            if not (isinstance(error, ApiError) and error.gone and (resumed or self._fruitful)):
                await self._pause(error)
            return
        if self._fruitful or trio.current_time() - began >= self._timing.watch_settled:
            self._backoff.reset()
        else:
            await self._pause(None)

    async def _get(self) -> str:
        """Tells the present state; returns the resourceVersion to watch from. Raises FusevolError. Under _lock."""
        early = quick_retries()
        deadline = trio.current_time() + self._timing.forbidden
        while True:
            try:
                found = await self._client.get(self._resource.path(self._ref), self._resource.decode)
                break
            except ApiError as error:
                if error.not_found:
                    self._failing_since = None
                    self._teller.missing()
                    return FROM_NOTHING
                if not error.forbidden or self._teller.told is not None or trio.current_time() >= deadline:
                    raise
            await trio.sleep(next(early))
        self._failing_since = None
        self._seen = self._resource.meta(found).resource_version
        await self._present(found)
        return self._seen

    async def _watch(self, version: str) -> None:
        """Follows the object from `version` until the watch ends. Raises FusevolError."""
        query = {"fieldSelector": f"metadata.name={self._ref.name}", "resourceVersion": version}
        async with self._client.watch(self._resource.collection(self._ref), query) as watch:
            async for event in watch:
                async with self._lock:
                    self._version = await self._take(event)
                self._fruitful = True
                del event  # it would hold its line until the next one comes

    async def _take(self, event: schema.Event) -> str:
        """Tells what the event says; returns its resourceVersion. Under _lock."""
        if event.type in ("ADDED", "MODIFIED"):
            found = self._resource.decode(event.object)
            version = self._resource.meta(found).resource_version
            # a GET of refresh() may have overtaken the watch
            if not schema.older(version, self._seen):
                await self._present(found)
            return version
        version = schema.identified(event.object).metadata.resource_version
        if event.type == "DELETED" and not schema.older(version, self._seen):
            self._teller.missing()
        return version

    async def _present(self, found: Any) -> None:
        with self._interruption.hold():
            await self._teller.present(self._resource.delivered(self._ref, found))
        await trio.lowlevel.checkpoint_if_cancelled()  # what was put off by holding

    def _failed(self, error: FusevolError) -> None:
        """Tells it, unless the object could be read before and may soon be again, or only the connection broke."""
        if not isinstance(error, KubernetesError):
            return
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        passing = self._teller.known or isinstance(error, Disconnected)
        if not passing or now - self._failing_since >= self._timing.grace:
            self._teller.failed(str(error))

    async def _pause(self, error: FusevolError | None) -> None:
        await trio.sleep(self._backoff.pause(error.retry_after if isinstance(error, ApiError) else None))
