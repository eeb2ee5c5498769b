"""Events: what is written, counted and dropped."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import trio
import trio.testing

from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected
from fusevol.agent.sources.kubernetes.events import (
    BURST,
    QUEUE,
    REFILL,
    REMEMBERED,
    Correlator,
    EventRecorder,
    Occurrence,
    event_name,
)
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.model.refs import PodRef
from tests.unit.kubernetes.scripted import ScriptedClient

EPOCH = 1_700_000_000.0
POD = PodRef("ns", "p", "uid")
DONE = {"metadata": {"name": "e"}}


def occurrence(message: str = "m", at: float = EPOCH, pod: PodRef = POD) -> Occurrence:
    return Occurrence(pod, "Warning", "FailedMount", message, at)


def test_equal_occurrences_are_one_series():
    correlator = Correlator()
    first = correlator.count(occurrence())
    second = correlator.count(occurrence(at=EPOCH + 5))
    assert first is second
    assert (second.count, second.first, second.last) == (2, EPOCH, EPOCH + 5)
    assert correlator.count(occurrence("other")).count == 1
    assert correlator.count(occurrence(pod=PodRef("ns", "p", "its successor"))).count == 1


def test_a_pod_has_a_burst_and_then_a_rate_and_nothing_is_miscounted():
    correlator = Correlator()
    written = [correlator.count(occurrence(at=EPOCH + n)) for n in range(100)]
    assert sum(series is not None for series in written) == BURST
    assert correlator.count(occurrence(at=EPOCH + 100, pod=PodRef("ns", "other", "x"))) is not None
    later = correlator.count(occurrence(at=EPOCH + 100 + REFILL))
    assert later is not None
    assert later.count == 101


def test_memory_is_bounded():
    correlator = Correlator()
    for number in range(REMEMBERED + 10):
        correlator.count(occurrence(pod=PodRef("ns", "p", str(number))))
    assert len(correlator._series) == REMEMBERED
    assert len(correlator._rates) == REMEMBERED


def test_a_name_fits_and_is_a_name():
    assert event_name(occurrence()) == f"p.{int(EPOCH * 1e9):x}"
    long = event_name(occurrence(pod=PodRef("ns", "a" * 235 + "-" * 18, "u")))
    assert len(long) <= 253
    assert "-." not in long


@asynccontextmanager
async def recording(client: ScriptedClient):
    recorder = EventRecorder(client, "n", Timing(), random.Random(1), now=lambda: EPOCH + trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        yield recorder
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_created_once_then_patched_with_the_count(autojump_clock):
    client = ScriptedClient(posts=[DONE])
    async with recording(client) as recorder:
        recorder.emit(POD, "Warning", "FailedMount", "no such thing")
        await trio.sleep(2)
        recorder.emit(POD, "Warning", "FailedMount", "no such thing")
    create, patch = client.bodies
    assert [call.split()[0] for call in client.calls] == ["POST", "PATCH"]
    assert create["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "ns",
        "name": "p",
        "uid": "uid",
    }
    assert create["source"] == {"component": "fusevol", "host": "n"}
    assert (create["count"], create["message"], create["type"]) == (1, "no such thing", "Warning")
    assert patch["count"] == 2
    assert patch["lastTimestamp"] > create["lastTimestamp"]
    assert client.calls[1].endswith(create["metadata"]["name"])


async def test_an_event_whose_life_is_over_is_created_anew_with_its_count(autojump_clock):
    client = ScriptedClient(posts=[DONE, ApiError(404, "NotFound", "gone"), DONE])
    async with recording(client) as recorder:
        recorder.emit(POD, "Warning", "FailedMount", "m")
        await trio.sleep(4000)
        recorder.emit(POD, "Warning", "FailedMount", "m")
    assert [call.split()[0] for call in client.calls] == ["POST", "PATCH", "POST"]
    assert client.bodies[2]["count"] == 2
    assert client.bodies[2]["metadata"]["name"] != client.bodies[0]["metadata"]["name"]


async def test_what_may_have_been_written_is_not_written_twice(autojump_clock):
    lost, exists = Disconnected("cut"), ApiError(409, "AlreadyExists", "exists")
    client = ScriptedClient(posts=[lost, exists, DONE])
    async with recording(client) as recorder:
        recorder.emit(POD, "Warning", "FailedMount", "m")
        await trio.sleep(5)
        recorder.emit(POD, "Warning", "FailedMount", "m")
    assert [call.split()[0] for call in client.calls] == ["POST", "POST", "PATCH"]
    assert client.bodies[0]["metadata"]["name"] == client.bodies[1]["metadata"]["name"]


async def test_a_refused_event_is_dropped_and_the_next_is_tried(autojump_clock):
    client = ScriptedClient(posts=[ApiError(403, "Forbidden", "namespace is terminating"), DONE])
    async with recording(client) as recorder:
        recorder.emit(POD, "Warning", "FailedMount", "m")
        recorder.emit(POD, "Warning", "FailedMount", "m")
    assert recorder.dropped == 1
    assert client.bodies[-1]["count"] == 2


async def test_emit_never_waits_and_a_full_queue_drops(autojump_clock):
    client = ScriptedClient(posts=[DONE])
    recorder = EventRecorder(client, "n", Timing(), random.Random(1))
    for _ in range(QUEUE + 7):
        recorder.emit(POD, "Warning", "FailedMount", "m")
    assert recorder.dropped == 7
