"""When tokens are renewed, and what happens when they cannot be."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.sources.kubernetes.errors import ApiError
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.agent.sources.kubernetes.tokens import TokenReflector, renewal, token_request
from fusevol.model.objects import TokenSpec, token_ref
from tests.kubernetes.recording import RecordingSink
from tests.unit.kubernetes.scripted import ScriptedClient, forbidden

HOUR = 3600
EPOCH = 1_700_000_000.0
SPEC = TokenSpec("builder", "vault", HOUR, "p", "pod-uid")
REF = token_ref("ns", SPEC)


def test_renewal_after_four_fifths_of_its_life():
    assert renewal(EPOCH + HOUR, HOUR, 0) == EPOCH + 0.8 * HOUR
    assert renewal(EPOCH + HOUR, HOUR, 9) == EPOCH + 0.8 * HOUR - 9


def test_renewal_after_a_day_at_the_latest():
    assert renewal(EPOCH + 7 * 24 * HOUR, 7 * 24 * HOUR, 0) == EPOCH + 24 * HOUR


@given(st.integers(600, 2**32), st.integers(0, 9))
def test_renewal_is_always_within_the_tokens_life(seconds: int, jitter: int):
    assert EPOCH < renewal(EPOCH + seconds, seconds, jitter) < EPOCH + seconds


def test_the_request_is_bound_to_the_pod():
    assert token_request(SPEC)["spec"] == {
        "audiences": ["vault"],
        "expirationSeconds": HOUR,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod-uid"},
    }
    assert token_request(TokenSpec("s", "", 600, "p", "u"))["spec"]["audiences"] == []


def wall() -> float:
    return EPOCH + trio.current_time()


def issued(token: str, seconds: int = HOUR) -> dict:
    expires = datetime.fromtimestamp(wall() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {"creationTimestamp": None},
        "spec": {"expirationSeconds": seconds},
        "status": {"token": token, "expirationTimestamp": expires},
    }


@asynccontextmanager
async def keeping(client: ScriptedClient, sink: RecordingSink):
    reflector = TokenReflector(client, sink, REF, Timing(), random.Random(1), wall)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reflector.run)
        await trio.testing.wait_all_tasks_blocked()
        yield reflector
        nursery.cancel_scope.cancel()


async def test_fetched_delivered_wiped_and_renewed_in_time(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("one")]), RecordingSink()
    async with keeping(client, sink):
        assert client.calls == ["POST /api/v1/namespaces/ns/serviceaccounts/builder/token"]
        assert sink.last(REF) == {"token": b"one"}
        assert bytes(sink.carriers[0].data["token"].reveal()) == b"\0\0\0"
        client.posts[:] = [issued("two", 2 * HOUR)]
        await trio.sleep(0.8 * HOUR - 11)
        assert len(client.calls) == 1
        await trio.sleep(12)
    assert sink.last(REF) == {"token": b"two"}
    assert len(set(sink.versions(REF))) == 2
    assert sink.delivered[REF][0].uid == "pod-uid"


async def test_a_valid_token_is_kept_in_silence_until_it_expires(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("one")]), RecordingSink()
    async with keeping(client, sink):
        client.posts[:] = [ApiError(500, "InternalError", "no signer")]
        await trio.sleep(HOUR - 1)
        assert sink.failed == []
        assert len(client.calls) > 10
        await trio.sleep(32)
        assert sink.failed == [(REF, "token ns/builder expired and refresh failed: no signer")]
        client.posts[:] = [issued("two")]
        await trio.sleep(31)
    assert sink.last(REF) == {"token": b"two"}


async def test_the_first_fetch_says_that_it_failed(autojump_clock):
    error = ApiError(500, "InternalError", "no signer")
    client, sink = ScriptedClient(posts=[error]), RecordingSink()
    async with keeping(client, sink):
        assert sink.failed == [(REF, "failed to fetch token: no signer")]
        client.posts[:] = [issued("one")]
        await trio.sleep(31)
    assert sink.last(REF) == {"token": b"one"}


async def test_a_service_account_that_is_missing_is_told_after_a_second(autojump_clock):
    error = ApiError(404, "NotFound", 'serviceaccounts "builder" not found')
    client, sink = ScriptedClient(posts=[error]), RecordingSink()
    async with keeping(client, sink):
        assert sink.failed == []
        await trio.sleep(1.5)
    assert sink.failed == [(REF, 'failed to fetch token: serviceaccounts "builder" not found')]


async def test_the_authorizers_early_403_is_retried(autojump_clock):
    client, sink = ScriptedClient(posts=[forbidden(), forbidden(), issued("one")]), RecordingSink()
    async with keeping(client, sink):
        await trio.sleep(0.2)
    assert sink.failed == []
    assert sink.last(REF) == {"token": b"one"}


async def test_a_refresh_waits_for_the_first_token_and_asks_for_no_second(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("one")], slowness=0.5), RecordingSink()
    async with keeping(client, sink) as reflector:
        await reflector.refresh()
        assert sink.last(REF) == {"token": b"one"}
        await reflector.refresh()
        assert len(client.calls) == 1


async def test_redelivery_asks_for_a_new_token(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("one"), issued("two")]), RecordingSink()
    async with keeping(client, sink) as reflector:
        reflector.redeliver()
        await trio.testing.wait_all_tasks_blocked()
    assert [delivery.data["token"] for delivery in sink.delivered[REF]] == [b"one", b"two"]


async def test_redelivery_in_the_middle_of_a_delivery_is_not_lost(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("one"), issued("two")]), RecordingSink(slowness=1.0)
    async with keeping(client, sink) as reflector:
        reflector.redeliver()
        await trio.sleep(3)
    assert [delivery.data["token"] for delivery in sink.delivered[REF]] == [b"one", b"two"]


async def test_redelivery_is_tried_until_it_succeeds(autojump_clock):
    failure = ApiError(500, "InternalError", "no signer")
    client, sink = ScriptedClient(posts=[issued("one"), failure, issued("two")]), RecordingSink()
    async with keeping(client, sink) as reflector:
        reflector.redeliver()
        await trio.sleep(5)
    assert [delivery.data["token"] for delivery in sink.delivered[REF]] == [b"one", b"two"]


async def test_a_clock_that_is_ahead_does_not_ask_all_the_time(autojump_clock):
    client, sink = ScriptedClient(posts=[issued("old already", seconds=-1)]), RecordingSink()
    async with keeping(client, sink):
        await trio.sleep(600)
    assert 2 <= len(client.calls) <= 11
