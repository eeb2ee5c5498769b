"""The reflector of the node's Pods, its API server scripted."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from fusevol.agent.sources.kubernetes.credentials import InCluster
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected
from fusevol.agent.sources.kubernetes.pods import PodReflector
from fusevol.agent.sources.kubernetes.source import KubernetesSource
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.agent.sources.source import SourceUnavailable
from tests.kubernetes.recording import RecordingSink
from tests.unit.kubernetes.scripted import ScriptedClient, expired, pod
from tests.unit.kubernetes.test_client import Identity, Network


def pods(version: int, *items: dict) -> dict:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items) or None}


@asynccontextmanager
async def keeping(client: ScriptedClient, sink: RecordingSink, reports: list | None = None):
    told = [] if reports is None else reports
    reflector = PodReflector(client, sink, "n", lambda *report: told.append(report), Timing(), random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reflector.run)
        await trio.testing.wait_all_tasks_blocked()
        yield reflector
        nursery.cancel_scope.cancel()


async def test_list_and_watch(autojump_clock):
    client, sink = ScriptedClient([pods(10, pod("a", 4))]), RecordingSink()
    async with keeping(client, sink):
        assert sink.synced == 1
        assert client.watches[0].query == {"fieldSelector": "spec.nodeName=n", "resourceVersion": "10"}
        client.watches[0].event("ADDED", pod("b", 11))
        client.watches[0].event("MODIFIED", pod("b", 12, "Failed"))
        client.watches[0].event("MODIFIED", pod("b", 12, "Failed"))
        client.watches[0].event("DELETED", pod("a", 13))
        client.watches[0].event("DELETED", pod("a", 13))
        await trio.testing.wait_all_tasks_blocked()
    assert sink.pod_changes == ["a", "b", "b"]
    assert sink.pods_gone == ["a"]
    assert [p.terminal for p in sink.pods.values()] == [True]


async def test_an_empty_node_is_synced(autojump_clock):
    sink = RecordingSink()
    async with keeping(ScriptedClient([pods(10)]), sink):
        assert sink.synced == 1


async def test_a_list_after_410_deletes_only_what_is_gone(autojump_clock):
    client = ScriptedClient([pods(10, pod("stays", 4), pod("goes", 5)), pods(20, pod("stays", 4), pod("new", 15))])
    sink = RecordingSink()
    async with keeping(client, sink):
        client.watches[0].bookmark(11)
        client.watches[0].fail(expired())
        await trio.testing.wait_all_tasks_blocked()
        assert client.watches[1].query["resourceVersion"] == "20"
    assert sink.pods_gone == ["goes"]
    assert sink.pod_changes == ["stays", "goes", "new"]
    assert sink.synced == 1


async def test_a_list_that_fails_deletes_nothing_and_says_why(autojump_clock):
    client, sink, reports = ScriptedClient([pods(10, pod("a", 4))]), RecordingSink(), []
    async with keeping(client, sink, reports):
        client.gets[:] = [ApiError(500, "InternalError", "etcd is full")]
        client.watches[0].fail(expired())
        await trio.sleep(10)
        assert ("pods", "etcd is full") in reports
        client.gets[:] = [pods(11, pod("a", 4))]
        await trio.sleep(31)
        assert [why for topic, why in reports if topic == "pods"][-1] is None
    assert sink.pods_gone == []
    assert sink.pod_changes == ["a"]


async def test_a_lost_watch_is_resumed_without_a_list(autojump_clock):
    client, sink = ScriptedClient([pods(10, pod("a", 4))]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].event("MODIFIED", pod("a", 12))
        client.watches[0].fail(Disconnected("cut"))
        await trio.testing.wait_all_tasks_blocked()
        assert client.watches[1].query["resourceVersion"] == "12"
        assert [call.split()[0] for call in client.calls] == ["GET", "WATCH", "WATCH"]


async def test_a_watch_that_lags_behind_a_refresh_undoes_nothing(autojump_clock):
    client, sink = ScriptedClient([pods(10, pod("a", 4)), pods(20, pod("b", 15))]), RecordingSink()
    async with keeping(client, sink) as reflector:
        await reflector.refresh()
        client.watches[0].event("MODIFIED", pod("a", 11))
        client.watches[0].event("ADDED", pod("b", 14))
        client.watches[0].event("DELETED", pod("a", 16))
        client.watches[0].event("MODIFIED", pod("b", 21))
        await trio.testing.wait_all_tasks_blocked()
    assert sink.pod_changes == ["a", "b", "b"]
    assert sink.pods_gone == ["a"]


async def test_a_pod_that_is_not_understood_hides_no_other(autojump_clock):
    strange = pod("strange", 5) | {"spec": {"volumes": "many"}}
    client, sink = ScriptedClient([pods(10, strange, pod("a", 4))]), RecordingSink()
    async with keeping(client, sink):
        assert sink.pod_changes == ["a"]
        assert sink.synced == 0  # its volumes would be torn down as nobody's
        client.watches[0].event("MODIFIED", pod("strange", 11))
        await trio.testing.wait_all_tasks_blocked()
        assert sink.synced == 1
    assert sink.pod_changes == ["a", "strange"]


async def test_a_pod_that_was_never_understood_holds_nothing_up_when_it_is_gone(autojump_clock):
    strange = pod("strange", 5) | {"spec": {"volumes": "many"}}
    client, sink = ScriptedClient([pods(10, strange)]), RecordingSink()
    async with keeping(client, sink):
        assert sink.synced == 0
        client.watches[0].event("DELETED", pod("strange", 11))
        await trio.testing.wait_all_tasks_blocked()
        assert sink.synced == 1


STRANGE = "the Pod with the uid uid-a cannot be understood"
NOBODY = "a Pod without a uid cannot be understood"


async def test_a_pod_that_is_not_understood_is_a_problem_until_it_is(autojump_clock):
    client, sink, reports = ScriptedClient([pods(10, pod("a", 4))]), RecordingSink(), []
    async with keeping(client, sink, reports):
        client.watches[0].event("MODIFIED", pod("a", 11) | {"spec": {"volumes": "many"}})
        await trio.testing.wait_all_tasks_blocked()
        topic, why = reports[-1]
        assert topic == STRANGE
        assert why.startswith("ns/a: ")
        assert "$.spec.volumes" in why
        assert sink.pods_gone == []
        client.watches[0].event("MODIFIED", pod("a", 12))
        await trio.testing.wait_all_tasks_blocked()
        assert reports[-1] == (STRANGE, None)
        client.watches[0].event("MODIFIED", pod("a", 13) | {"spec": 5})
        client.watches[0].event("DELETED", pod("a", 14) | {"spec": 5})
        await trio.testing.wait_all_tasks_blocked()
        assert [why is None for topic, why in reports if topic == STRANGE] == [True, False, True, False, True]
    assert sink.pod_changes == ["a", "a"]
    assert sink.pods_gone == ["a"]


async def test_an_item_that_is_nobody_may_be_any_of_those_that_seem_gone(autojump_clock):
    client, sink, reports = ScriptedClient(), RecordingSink(), []
    nobody = {"metadata": None, "spec": {}}
    client.gets[:] = [pods(10, pod("a", 4), pod("b", 5)), pods(20, nobody, pod("a", 14)), pods(30, pod("a", 14))]
    async with keeping(client, sink, reports) as reflector:
        await reflector.refresh()
        assert sink.pod_changes == ["a", "b", "a"]
        assert sink.pods_gone == []
        assert [topic for topic, why in reports if why] == [NOBODY]
        await reflector.refresh()
        assert sink.pods_gone == ["b"]
        assert [why is None for topic, why in reports if topic == NOBODY] == [False, True]


async def test_an_event_without_a_version_is_followed_by_a_list(autojump_clock):
    client, sink = ScriptedClient([pods(10, pod("a", 4)), pods(20)]), RecordingSink()
    async with keeping(client, sink):
        client.watches[0].event("MODIFIED", {"metadata": {}})
        await trio.sleep(60)
        assert client.watches[-1].query["resourceVersion"] == "20"
    assert sink.pods_gone == ["a"]


async def test_the_source_tells_of_a_pod_that_is_not_understood(autojump_clock):
    items = [pod("strange", 5) | {"spec": {"volumes": "many"}}, pod("a", 4)]

    async def answer(server, stream, headers, body):
        if headers[":method"] == "GET" and "watch" not in headers[":path"]:
            await server.answer(stream, msgspec.json.encode(pods(10, *items)))

    sink = RecordingSink()
    async with trio.open_nursery() as nursery:
        network = Network(nursery, answer)

        async def load():
            await trio.lowlevel.checkpoint()
            return Identity(network, "one")

        source = KubernetesSource(sink, "n", InCluster(), loader=load, rng=random.Random(1))
        nursery.start_soon(source.run)
        await trio.testing.wait_all_tasks_blocked()
        (problem,) = sink.told
        assert problem.message.startswith(
            "the Pod with the uid uid-strange cannot be understood: ns/strange: the API server's answer: "
        )
        items[0] = pod("strange", 6)
        await source.refresh()
        assert sink.told == ()
        assert set(sink.pod_changes) == {"a", "strange"}
        nursery.cancel_scope.cancel()


async def test_a_barrier_that_is_asked_too_early_may_be_asked_again():
    source = KubernetesSource(RecordingSink(), "n", InCluster())
    with pytest.raises(SourceUnavailable, match="only starting"):
        await source.refresh()
