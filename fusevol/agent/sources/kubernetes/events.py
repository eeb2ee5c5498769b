"""Events of Pods (core/v1), as kubelet's recorder writes them: what repeats is counted in one Event.

A node may create and patch Events but not read them, so what has been written is remembered here, within bounds. The
caller never waits: what does not fit into the queue, or is more than the rate of a Pod, is dropped and counted.
"""

from __future__ import annotations

import random
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, KubernetesError
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing
from fusevol.model.refs import PodRef

log = structlog.get_logger(__name__)

COMPONENT = "fusevol"
REMEMBERED = 4096
"""Events, and Pods with a rate (client-go's EventCorrelator: maxLruCacheEntries)."""

BURST = 25
"""Writes of one Pod's Events at once (client-go: defaultSpamBurst)."""

REFILL = 300.0
"""Seconds for one more write (client-go: defaultSpamQPS)."""

QUEUE = 1000
ATTEMPTS = 5
MAX_MESSAGE = 1024
"""Characters."""

MAX_NAME = 253


class Occurrence(NamedTuple):
    """Something that happened to a Pod. `type` is `Normal` or `Warning`, `at` seconds since the epoch."""

    pod: PodRef
    type: str
    reason: str
    message: str
    at: float


@dataclass(slots=True)
class Series:
    """Equal occurrences. `name` is the Event's; `written` is false until the API server has it."""

    name: str
    first: float
    last: float
    count: int = 0
    written: bool = False


class Correlator:
    """What has been written, and how much more of each Pod may be. Pure but for its memory."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[PodRef, str, str, str], Series] = OrderedDict()  # the newest last
        self._rates: OrderedDict[PodRef, tuple[float, float]] = OrderedDict()  # writes left, at which time

    def count(self, occurrence: Occurrence) -> Series | None:
        """The series with this occurrence counted; None if the Pod has had enough writes for now: it is counted all
        the same and told with the next write."""
        key = occurrence[:4]
        series = self._series.get(key)
        if series is None:
            series = Series(event_name(occurrence), occurrence.at, occurrence.at)
            self._series[key] = series
        self._series.move_to_end(key)
        series.count += 1
        series.last = max(series.last, occurrence.at)
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)
        return series if self._allowed(occurrence.pod, occurrence.at) else None

    def _allowed(self, pod: PodRef, at: float) -> bool:
        left, since = self._rates.pop(pod, (float(BURST), at))
        left = min(float(BURST), left + max(0.0, at - since) / REFILL)
        allowed = left >= 1
        self._rates[pod] = (left - allowed, at)
        while len(self._rates) > REMEMBERED:
            self._rates.popitem(last=False)
        return allowed


def event_name(occurrence: Occurrence) -> str:
    """`<pod>.<hex of the time in ns>`, as client-go names it, within a name's length."""
    suffix = f".{int(occurrence.at * 1e9):x}"
    return occurrence.pod.name[: MAX_NAME - len(suffix)].rstrip("-.") + suffix


def event_object(occurrence: Occurrence, series: Series, node: str) -> dict[str, object]:
    """The body of the Event's creation."""
    pod = occurrence.pod
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": series.name, "namespace": pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
        },
        "type": occurrence.type,
        "reason": occurrence.reason,
        "message": occurrence.message,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": timestamp(series.first),
        "lastTimestamp": timestamp(series.last),
        "count": series.count,
    }


def event_patch(series: Series) -> dict[str, object]:
    return {"count": series.count, "lastTimestamp": timestamp(series.last)}


def timestamp(at: float) -> str:
    """RFC 3339 in seconds, as metav1.Time is written."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class EventRecorder:
    """`emit` from anywhere in the loop, while `run` runs or before."""

    def __init__(
        self,
        client: Client,
        node: str,
        timing: Timing,
        rng: random.Random,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._node = node
        self._timing = timing
        self._rng = rng
        self._now = now
        self._correlator = Correlator()
        self._send, self._receive = trio.open_memory_channel[Occurrence](QUEUE)
        self.dropped = 0
        """Occurrences that did not fit into the queue or that the API server would not take."""

    def emit(self, pod: PodRef, type: str, reason: str, message: str) -> None:
        """Never blocks and never fails."""
        try:
            self._send.send_nowait(Occurrence(pod, type, reason, message[:MAX_MESSAGE], self._now()))
        except trio.WouldBlock:
            self.dropped += 1

    async def run(self) -> None:
        async for occurrence in self._receive:
            series = self._correlator.count(occurrence)
            if series is not None:
                await self._write(occurrence, series)

    async def _write(self, occurrence: Occurrence, series: Series) -> None:
        """Tries a few times; what cannot be written is told with the next occurrence's count."""
        backoff = Backoff(self._timing, self._rng)
        for _ in range(ATTEMPTS):
            try:
                await self._put(occurrence, series)
                return
            except ApiError as error:
                if error.code < 500 and error.code != 429:
                    log.warning("event_refused", pod=str(occurrence.pod), reason=occurrence.reason, error=error.message)
                    break
                pause = backoff.pause(error.retry_after)
            except KubernetesError as error:
                log.debug("event_not_written", pod=str(occurrence.pod), error=str(error))
                pause = backoff.pause()
            await trio.sleep(pause)
        self.dropped += 1

    async def _put(self, occurrence: Occurrence, series: Series) -> None:
        collection = f"/api/v1/namespaces/{urllib.parse.quote(occurrence.pod.namespace, safe='')}/events"
        if series.written:
            try:
                path = f"{collection}/{urllib.parse.quote(series.name, safe='')}"
                await self._client.patch(path, event_patch(series), schema.identified)
                return
            except ApiError as error:
                if not error.not_found:
                    raise
            # Events live for an hour; this one has gone
            series.written = False
            series.name = event_name(occurrence)
        try:
            await self._client.post(collection, event_object(occurrence, series, self._node), schema.identified)
        except ApiError as error:
            if error.reason != "AlreadyExists":  # our own, whose answer was lost
                raise
        series.written = True
