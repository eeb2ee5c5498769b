"""The pool and the client against in-process HTTP/2 servers over memory streams."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, Undecodable
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.model.objects import SecretBytes
from tests.unit.kubernetes.h2server import Server

CONFIG_MAP = schema.RESOURCES["ConfigMap"]


@dataclass(eq=False)
class Network:
    """Where connections lead: each is a new in-process server. `down` is the error of connecting."""

    nursery: trio.Nursery
    answer: Callable[..., Any]
    settings: dict[SettingCodes, int] | None = None
    servers: list[Server] = field(default_factory=list)
    attempts: list[float] = field(default_factory=list)
    down: str | None = None

    async def connect(self) -> trio.abc.Stream:
        self.attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.down:
            raise ConnectionRefusedError(111, self.down)
        ours, theirs = trio.testing.memory_stream_pair()
        self.servers.append(Server(theirs, self.answer, self.settings))
        self.nursery.start_soon(self.servers[-1].run)
        return ours


class Identity:
    """Credentials whose connections lead into the Network."""

    authority = "api"
    expires = None

    def __init__(self, network: Network, token: str, transport: bytes = b"same") -> None:
        self.files: dict[str, list[int]] = {}
        self.network = network
        self.transport = transport
        self.authorization = SecretBytes(f"Bearer {token}".encode())

    async def connect(self, within: float) -> trio.abc.Stream:
        return await self.network.connect()


@asynccontextmanager
async def client_of(answer, *, settings=None, tokens=("one",), transports=(b"same",)):
    reports: list[tuple[str, str | None]] = []
    async with trio.open_nursery() as nursery:
        network = Network(nursery, answer, settings)
        loads = iter(range(1000))

        async def load():
            number = next(loads)
            pick = lambda values: values[min(number, len(values) - 1)]  # noqa: E731
            return Identity(network, pick(tokens), pick(transports))

        client = Client(load, lambda topic, why: reports.append((topic, why)), Timing(), random.Random(1))
        await nursery.start(client.run)
        yield client, network, reports
        nursery.cancel_scope.cancel()


def reply(body: Any, status: int = 200, headers: tuple = ()):
    async def answer(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        server.http.send_headers(stream, [(":status", str(status)), *headers])
        await server.send(stream, json.dumps(body).encode(), end=True)

    return answer


async def hang(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
    await trio.sleep_forever()


FOUND = {"metadata": {"name": "c", "uid": "u", "resourceVersion": "7"}, "data": {"k": "v"}}


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "Status", "metadata": {}, "code": code, "reason": reason, "message": message}


async def test_get_decodes_and_a_refusal_is_an_exception(autojump_clock):
    async with client_of(reply(FOUND)) as (client, network, _):
        assert (await client.get("/x", CONFIG_MAP.decode)).data == {"k": "v"}
        (headers,) = network.servers[0].requests
        assert headers["authorization"] == "Bearer one"
        assert headers[":authority"] == "api"
        network.servers[0].on_request = reply(status(404, "NotFound", 'configmaps "c" not found'), 404)
        with pytest.raises(ApiError, match='configmaps "c" not found') as caught:
            await client.get("/x", CONFIG_MAP.decode)
        assert (caught.value.code, caught.value.reason, caught.value.not_found) == (404, "NotFound", True)
        network.servers[0].on_request = reply("plain text of some proxy", 502)
        with pytest.raises(ApiError, match="plain text") as caught:
            await client.get("/x", CONFIG_MAP.decode)
        assert caught.value.code == 502
        network.servers[0].on_request = reply({"metadata": 5})
        with pytest.raises(Undecodable, match="metadata"):
            await client.get("/x", CONFIG_MAP.decode)


async def test_401_looks_for_other_credentials_once(autojump_clock):
    async def answer(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        if request["authorization"] == "Bearer two":
            await reply(FOUND)(server, stream, request, sent)
        else:
            await reply(status(401, "Unauthorized", "Unauthorized"), 401)(server, stream, request, sent)

    async with client_of(answer, tokens=("one", "two")) as (client, network, _):
        await trio.sleep(15)
        assert (await client.get("/x", CONFIG_MAP.decode)).metadata.uid == "u"
        assert [r["authorization"] for r in network.servers[0].requests] == ["Bearer one", "Bearer two"]
    async with client_of(answer) as (client, network, _):
        await trio.sleep(15)
        with pytest.raises(ApiError) as caught:
            await client.get("/x", CONFIG_MAP.decode)
        assert caught.value.code == 401
        assert len(network.servers[0].requests) == 2


async def test_retry_after_is_honoured_a_few_times(autojump_clock):
    times: list[float] = []

    async def answer(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        times.append(trio.current_time())
        if len(times) < 3:
            too_many = status(429, "TooManyRequests", "slow down")
            await reply(too_many, 429, (("retry-after", "2"),))(server, stream, request, sent)
        else:
            await reply(FOUND)(server, stream, request, sent)

    async with client_of(answer) as (client, _, _):
        await client.get("/x", CONFIG_MAP.decode)
        assert [2 <= later - earlier <= 2.5 for earlier, later in itertools.pairwise(times)] == [True, True]


async def test_retry_after_is_not_honoured_for_ever(autojump_clock):
    too_many = reply(status(429, "TooManyRequests", "slow down"), 429, (("retry-after", "1"),))
    async with client_of(too_many) as (client, network, _):
        with pytest.raises(ApiError, match="slow down") as caught:
            await client.get("/x", CONFIG_MAP.decode)
        assert caught.value.retry_after == 1
        assert len(network.servers[0].requests) == 5


async def test_more_streams_than_a_connection_takes_open_another(autojump_clock):
    limit = {SettingCodes.MAX_CONCURRENT_STREAMS: 10}
    async with client_of(hang, settings=limit) as (client, network, _), trio.open_nursery() as nursery:
        for _ in range(25):
            nursery.start_soon(client.get, "/x", CONFIG_MAP.decode)
        await trio.testing.wait_all_tasks_blocked()
        assert [len(server.requests) for server in network.servers] == [10, 10, 5]
        nursery.cancel_scope.cancel()


async def test_an_api_server_that_is_down_is_knocked_at_by_one_and_told_once(autojump_clock):
    async with client_of(reply(FOUND)) as (client, network, reports):
        network.down = "Connection refused"
        done: list[str] = []

        async def ask() -> None:
            done.append((await client.get("/x", CONFIG_MAP.decode)).metadata.uid)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
            await trio.sleep(120)
            assert len(network.attempts) <= 14
            gaps = [b - a for a, b in zip(network.attempts, network.attempts[1:], strict=False)]
            assert gaps[0] <= 0.8
            assert max(gaps) <= 30
            network.down = None
        assert done == ["u"] * 50
        assert [r for r in reports if r[0] == "api_server"] == [
            ("api_server", "Connection refused"),
            ("api_server", None),
        ]


async def test_an_answer_that_does_not_come_is_given_up(autojump_clock):
    async with client_of(hang) as (client, _, _):
        began = trio.current_time()
        with pytest.raises(Disconnected, match="30 s"):
            await client.get("/x", CONFIG_MAP.decode)
        assert trio.current_time() - began == pytest.approx(30, abs=1)


async def test_a_body_that_does_not_end_is_given_up(autojump_clock):
    async def half(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        await server.answer(stream, b'{"metadata', end=False)

    async with client_of(half) as (client, _, _):
        with pytest.raises(Disconnected, match="no complete answer"):
            await client.get("/x", CONFIG_MAP.decode)


async def test_what_was_not_processed_is_sent_again_on_a_new_connection(autojump_clock):
    calls = Counter()

    async def refuse_first(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        calls["all"] += 1
        if calls["all"] == 1:
            await server.goaway(0)
        else:
            await reply(FOUND)(server, stream, request, sent)

    async with client_of(refuse_first) as (client, network, _):
        await client.post("/x", {"k": "v"}, schema.identified)
        assert len(network.servers) == 2


async def test_new_credentials_for_connections_drain_the_old_ones(autojump_clock):
    go = trio.Event()

    async def watch_or_get(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        if "watch=true" in request[":path"]:
            await server.answer(stream, b"", end=False)
            await go.wait()
            event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
            await server.send(stream, json.dumps(event).encode() + b"\n", end=True)
        else:
            await reply(FOUND)(server, stream, request, sent)

    async with client_of(watch_or_get, tokens=("one", "two"), transports=(b"a", b"b")) as (client, network, _):
        async with client.watch("/w", {}) as watch:
            await trio.sleep(15)
            await client.credentials.replace(client.credentials.value)
            await client.get("/x", CONFIG_MAP.decode)
            assert [len(server.requests) for server in network.servers] == [1, 1]
            go.set()
            assert [event.type async for event in watch] == ["BOOKMARK"]
        await trio.testing.wait_all_tasks_blocked()
        assert len(client.pool.connections) == 1


def watch_server(*chunks: bytes | float, end: bool = True):
    """Sends the chunks; a number is a pause in seconds."""

    async def answer(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        await server.answer(stream, b"", end=False)
        for chunk in chunks:
            if isinstance(chunk, bytes):
                await server.send(stream, chunk)
            else:
                await trio.sleep(chunk)
        if end:
            server.http.end_stream(stream)
            await server.flush()
        else:
            await trio.sleep_forever()

    return answer


def line(kind: str, version: str) -> bytes:
    return json.dumps({"type": kind, "object": {"metadata": {"resourceVersion": version}}}).encode() + b"\n"


async def collected(client: Client) -> list[str]:
    async with client.watch("/w", {"fieldSelector": "metadata.name=c"}) as watch:
        return [schema.identified(event.object).metadata.resource_version async for event in watch]


async def test_a_watch_however_its_lines_are_cut(autojump_clock):
    whole = line("ADDED", "1") + line("MODIFIED", "2") + line("BOOKMARK", "3")
    for size in (1, 7, 64, len(whole)):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        async with client_of(watch_server(*pieces)) as (client, network, _):
            assert await collected(client) == ["1", "2", "3"]
            path = network.servers[0].requests[0][":path"]
            assert "watch=true" in path
            assert "allowWatchBookmarks=true" in path
            assert "fieldSelector=metadata.name%3Dc" in path


async def test_watches_last_for_different_times():
    seconds = set()

    async def note(server: Server, stream: int, request: dict[str, str], sent: bytes) -> None:
        seconds.add(int(request[":path"].partition("timeoutSeconds=")[2].partition("&")[0]))
        await server.answer(stream, line("BOOKMARK", "1"))

    async with client_of(note) as (client, _, _):
        for _ in range(20):
            await collected(client)
    assert len(seconds) > 10
    assert min(seconds) >= 300
    assert max(seconds) <= 600


async def test_a_watch_that_hangs_is_given_up(autojump_clock):
    async with client_of(watch_server(line("ADDED", "1"), end=False)) as (client, network, _):
        began = trio.current_time()
        with pytest.raises(Disconnected, match="silent"):
            await collected(client)
        assert trio.current_time() - began == pytest.approx(180, abs=2)
        await trio.testing.wait_all_tasks_blocked()
        assert network.servers[0].resets == [1]


async def test_a_watch_that_never_ends_is_ended(autojump_clock):
    beats = [part for number in range(100) for part in (line("BOOKMARK", str(number)), 60.0)]
    async with client_of(watch_server(*beats)) as (client, _, _):
        began = trio.current_time()
        with pytest.raises(Disconnected):
            await collected(client)
        assert 300 <= trio.current_time() - began <= 640


async def test_an_error_event_is_an_exception(autojump_clock):
    gone = {"type": "ERROR", "object": status(410, "Expired", "too old resource version")}
    async with client_of(watch_server(line("ADDED", "1"), json.dumps(gone).encode() + b"\n")) as (client, _, _):
        with pytest.raises(ApiError, match="too old") as caught:
            await collected(client)
        assert caught.value.gone


async def test_no_error_shows_a_secret(autojump_clock):
    secret = {"metadata": {"uid": "u"}, "data": {"password": "not base64 hunter2!"}}
    async with client_of(reply(secret)) as (client, _, _):
        with pytest.raises(Undecodable) as caught:
            await client.get("/x", schema.RESOURCES["Secret"].decode)
        assert "hunter2" not in str(caught.value)
