"""The reflector of one object, its API server scripted, on a mock clock."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import trio
import trio.testing

from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected
from fusevol.agent.sources.kubernetes.objects import ObjectReflector
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.model.errors import ServerGone
from fusevol.model.refs import ObjectRef
from tests.kubernetes.recording import RecordingSink
from tests.unit.kubernetes.scripted import ScriptedClient, config_map, expired, forbidden, not_found

REF = ObjectRef("ConfigMap", "ns", "c")
GET = "GET /api/v1/namespaces/ns/configmaps/c"
WATCH = "WATCH /api/v1/namespaces/ns/configmaps"


@asynccontextmanager
async def keeping(client: ScriptedClient, sink: RecordingSink):
    reflector = ObjectReflector(client, sink, REF, Timing(), random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reflector.run)
        await settled()
        yield reflector
        nursery.cancel_scope.cancel()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_a_get_and_a_watch_from_its_version(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        assert client.calls == [GET, WATCH]
        assert client.watches[0].query == {"fieldSelector": "metadata.name=c", "resourceVersion": "5"}
        client.watches[0].event("MODIFIED", config_map(6, "new"))
        await settled()
    assert sink.versions(REF) == ["5", "6"]
    assert sink.last(REF) == {"k": b"new"}


async def test_values_are_wiped_when_they_have_been_delivered(autojump_clock):
    sink = RecordingSink()
    async with keeping(ScriptedClient([config_map(5, "abc")]), sink):
        pass
    assert [bytes(carrier.data["k"].reveal()) for carrier in sink.carriers] == [b"\0\0\0"]


async def test_duplicate_events_are_harmless(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        for _ in range(2):
            client.watches[0].event("ADDED", config_map(5))
            client.watches[0].event("MODIFIED", config_map(6))
            client.watches[0].event("MODIFIED", config_map(6))
        await settled()
    # an API server never repeats 5 after 6; at worst the order of arrival holds
    assert sink.versions(REF) == ["5", "6"]


async def test_a_watch_that_ends_is_resumed_from_the_last_bookmark(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].bookmark(9)
        await settled()
        client.watches[0].end()
        await settled()
        assert client.calls == [GET, WATCH, WATCH]
        assert client.watches[1].query["resourceVersion"] == "9"
    assert sink.versions(REF) == ["5"]


async def test_a_watch_that_breaks_is_resumed_where_it_was(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].event("MODIFIED", config_map(6))
        client.watches[0].fail(Disconnected("cut"))
        await settled()
        assert client.watches[1].query["resourceVersion"] == "6"
    assert sink.failed == []


async def test_an_expired_version_is_read_anew_at_once_and_delivers_only_what_changed(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].end()
        client.refused_watches.append(expired())
        await trio.sleep(5)  # a watch that brings nothing and ends is resumed after a pause
        assert client.calls == [GET, WATCH, WATCH, GET, WATCH]
        assert sink.versions(REF) == ["5"]
        client.gets[:] = [config_map(7, "moved on")]
        client.watches[-1].bookmark(6)
        await settled()
        client.watches[-1].fail(expired())  # as an ERROR event
        await settled()
    assert sink.versions(REF) == ["5", "7"]
    assert sink.failed == []
    assert sink.missing == []


async def test_what_is_always_expired_does_not_spin(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    client.refused_watches = [expired() for _ in range(1000)]
    async with keeping(client, sink):
        await trio.sleep(60)
        assert client.calls.count(GET) < 12


async def test_a_missing_object_is_delivered_when_it_is_made(autojump_clock):
    client, sink = ScriptedClient([not_found()]), RecordingSink()
    async with keeping(client, sink):
        assert sink.missing == [REF]
        assert client.watches[0].query["resourceVersion"] == "0"
        client.watches[0].event("ADDED", config_map(8))
        await settled()
    assert sink.versions(REF) == ["8"]


async def test_deleted_and_made_anew(autojump_clock):
    client, sink = ScriptedClient([config_map(5, uid="first")]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].event("DELETED", config_map(6, uid="first"))
        await settled()
        assert sink.missing == [REF]
        client.watches[0].event("ADDED", config_map(7, uid="second"))
        await settled()
    assert [delivery.uid for delivery in sink.delivered[REF]] == ["first", "second"]


async def test_the_authorizers_early_403_is_retried_within_milliseconds(autojump_clock):
    client, sink = ScriptedClient([forbidden(), forbidden(), forbidden(), forbidden(), config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        await trio.sleep(0.5)
        assert [round(time - client.times[0], 3) for time in client.times[:5]] == [0, 0.01, 0.03, 0.08, 0.18]
    assert sink.failed == []
    assert sink.versions(REF) == ["5"]


async def test_a_lasting_403_is_told_after_a_second_and_tried_on_with_back_off(autojump_clock):
    client, sink = ScriptedClient([forbidden()]), RecordingSink()
    async with keeping(client, sink):
        await trio.sleep(0.9)
        assert sink.failed == []
        await trio.sleep(0.3)
        assert sink.failed == [(REF, forbidden().message)]
        quick = len(client.calls)
        await trio.sleep(60)
        assert 4 <= len(client.calls) - quick <= 9
        assert len(sink.failed) == 1  # told once
        client.gets[:] = [config_map(5)]
        await trio.sleep(31)
    assert sink.versions(REF) == ["5"]


async def test_a_403_of_a_known_object_is_told_only_when_it_lasts(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        client.gets[:] = [forbidden()]
        client.refused_watches = [forbidden()]
        client.watches[0].fail(Disconnected("the API server restarts"))
        await trio.sleep(10)
        assert sink.failed == []
        await trio.sleep(40)
        assert sink.failed == [(REF, forbidden().message)]
        client.gets[:] = [config_map(5)]
        await trio.sleep(31)
    assert sink.versions(REF) == ["5", "5"]  # told again: what was told last was the failure


async def test_an_internal_error_is_told_with_its_message(autojump_clock):
    client, sink = ScriptedClient([ApiError(500, "InternalError", "etcd is full"), config_map(5)]), RecordingSink()
    async with keeping(client, sink):
        await trio.sleep(2)
    assert sink.failed == [(REF, "etcd is full")]
    assert sink.versions(REF) == ["5"]


async def test_where_watching_is_not_allowed_the_get_is_repeated(autojump_clock):
    client, sink = ScriptedClient([config_map(5), config_map(5), config_map(6)]), RecordingSink()
    client.refused_watches = [forbidden() for _ in range(1000)]
    async with keeping(client, sink):
        await trio.sleep(60)
    assert sink.versions(REF) == ["5", "6"]
    assert sink.failed == []


async def test_a_refresh_is_not_undone_by_a_watch_that_lags(autojump_clock):
    client, sink = ScriptedClient([config_map(5), config_map(8)]), RecordingSink()
    async with keeping(client, sink) as reflector:
        await reflector.refresh()
        client.watches[0].event("MODIFIED", config_map(7))
        client.watches[0].event("MODIFIED", config_map(8))
        client.watches[0].event("MODIFIED", config_map(9))
        await settled()
    assert sink.versions(REF) == ["5", "8", "9"]


async def test_an_event_during_a_refresh_waits_for_it(autojump_clock):
    """The GET's answer is older than the event that comes while it is under way."""
    client, sink = ScriptedClient([config_map(5), config_map(6)]), RecordingSink()
    async with keeping(client, sink) as reflector, trio.open_nursery() as nursery:
        client.slowness = 1.0
        nursery.start_soon(reflector.refresh)
        await trio.sleep(0.5)
        client.watches[0].event("MODIFIED", config_map(7))
        await trio.sleep(1)
    assert sink.versions(REF) == ["5", "6", "7"]


async def test_a_slow_delivery_is_not_overtaken(autojump_clock):
    client, sink = ScriptedClient([config_map(5), config_map(9)]), RecordingSink(slowness=1.0)
    async with keeping(client, sink) as reflector, trio.open_nursery() as nursery:
        await trio.sleep(2)
        client.watches[0].event("MODIFIED", config_map(6))
        await settled()
        nursery.start_soon(reflector.refresh)
    assert sink.versions(REF) == ["5", "6", "9"]


async def test_redelivery_of_what_has_not_changed(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink()
    async with keeping(client, sink) as reflector:
        reflector.redeliver()
        await settled()
        assert sink.versions(REF) == ["5", "5"]
        sink.slowness = 1.0
        client.watches[-1].event("MODIFIED", config_map(6))
        await settled()
        client.gets[:] = [config_map(6)]
        reflector.redeliver()  # in the middle of a delivery
        await trio.sleep(3)
    assert sink.versions(REF) == ["5", "5", "6", "6"]


async def test_a_sink_that_fails_gets_it_again(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink(faults=[ServerGone("restarting")])
    async with keeping(client, sink):
        await trio.sleep(2)
    assert sink.versions(REF) == ["5"]
    assert sink.failed == []


async def test_a_sink_that_fails_an_event_gets_the_state_again(autojump_clock):
    client, sink = ScriptedClient([config_map(5), config_map(6)]), RecordingSink()
    async with keeping(client, sink):
        sink.faults.append(ServerGone("restarting"))
        client.watches[0].event("MODIFIED", config_map(6))
        await trio.sleep(2)
    assert sink.versions(REF) == ["5", "6"]


async def test_stop_finishes_the_delivery_under_way(autojump_clock):
    client, sink = ScriptedClient([config_map(5)]), RecordingSink(slowness=1.0)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            reflector = ObjectReflector(client, sink, REF, Timing(), random.Random(1))
            nursery.start_soon(reflector.run)
            await settled()
            reflector.stop()
    assert sink.versions(REF) == ["5"]
    assert client.calls == [GET]


async def test_an_answer_that_does_not_decode_is_told_without_its_values(autojump_clock):
    broken = {"metadata": {"uid": "u", "resourceVersion": "5"}, "data": {"k": 12345}}
    client, sink = ScriptedClient([broken]), RecordingSink()
    async with keeping(client, sink):
        pass
    ((_, message),) = sink.failed
    assert "data" in message
    assert "12345" not in message
