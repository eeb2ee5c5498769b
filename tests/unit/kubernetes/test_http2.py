"""The HTTP/2 connection against an in-process server over a memory stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.sources.kubernetes.errors import Disconnected
from fusevol.agent.sources.kubernetes.goaway import GoAway, GoAwayFilter
from fusevol.agent.sources.kubernetes.http2 import STREAM_WINDOW, Connection, Response
from fusevol.agent.sources.kubernetes.timing import Timing
from tests.kubernetes.recording import until
from tests.unit.kubernetes.h2server import Server

HEADERS = [(":scheme", "https"), (":authority", "api")]


@asynccontextmanager
async def connected(on_request, settings=None) -> AsyncIterator[tuple[Connection, Server]]:
    ours, theirs = trio.testing.memory_stream_pair()
    server = Server(theirs, on_request, settings)
    connection = Connection(ours, Timing())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await nursery.start(connection.run)
        yield connection, server
        nursery.cancel_scope.cancel()


async def read(response: Response) -> bytes:
    body = b""
    while chunk := await response.receive():
        body += chunk
    return body


async def get(connection: Connection, path: str, body: bytes = b"") -> tuple[int, bytes]:
    async with connection.exchange("GET", path, HEADERS, body) as response:
        return response.status, await read(response)


async def echo(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
    await server.answer(stream, headers[":path"].encode() + body)


async def test_answers_reach_who_asked_whatever_their_order():
    async def reversed_order(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await trio.sleep(0.01 / stream)  # the later the sooner
        await echo(server, stream, headers, body)

    answers = {}
    async with connected(reversed_order) as (connection, _):

        async def ask(path: str) -> None:
            answers[path] = await get(connection, path)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, f"/{number}")
    assert answers == {f"/{number}": (200, f"/{number}".encode()) for number in range(20)}


async def test_an_answer_larger_than_the_window_arrives_whole():
    large = bytes(range(256)) * (3 * STREAM_WINDOW // 256)

    async def big(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await server.answer(stream, large)

    async with connected(big) as (connection, _):
        for _ in range(3):
            assert await get(connection, "/") == (200, large)


async def test_a_consumer_that_waits_holds_up_nobody_else():
    """Unread streams fill their own windows only."""

    async def endless(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        if headers[":path"] == "/endless":
            await server.answer(stream, bytes(4 * STREAM_WINDOW))
        else:
            await echo(server, stream, headers, body)

    async with connected(endless) as (connection, server), trio.open_nursery() as nursery:

        async def hold() -> None:
            async with connection.exchange("GET", "/endless", HEADERS) as response:
                assert response.status == 200
                await trio.sleep_forever()

        for _ in range(5):
            nursery.start_soon(hold)
        with trio.fail_after(5):
            await until(lambda: len(server.requests) == 5)
            await until(lambda: not any(server.http.local_flow_control_window(stream) for stream in (1, 3, 5, 7, 9)))
            assert await get(connection, "/quick") == (200, b"/quick")
        nursery.cancel_scope.cancel()


async def test_a_body_larger_than_the_servers_window_is_sent_whole():
    body = bytes(range(256)) * 1024
    async with connected(echo) as (connection, _):
        assert await get(connection, "/", body) == (200, b"/" + body)


async def test_leaving_an_exchange_resets_its_stream():
    async def hang(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await server.answer(stream, b"{}", end=False)

    async with connected(hang) as (connection, server):
        with trio.move_on_after(0.05):
            await get(connection, "/")
        async with connection.exchange("GET", "/", HEADERS) as response:
            assert await response.receive() == b"{}"
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.resets == [1, 3]
        assert connection.streams == 0


async def test_room_follows_the_servers_limit():
    async def hang(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await trio.sleep_forever()

    async with connected(hang, {SettingCodes.MAX_CONCURRENT_STREAMS: 3}) as (connection, _):
        assert connection.room == 3
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(get, connection, "/")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert connection.room == 0
            nursery.cancel_scope.cancel()
        assert connection.room == 3


async def test_a_reset_is_the_streams_own_affair():
    async def reset(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        if headers[":path"] == "/reset":
            server.http.reset_stream(stream, 2)
            await server.flush()
        elif headers[":path"] == "/refused":
            server.http.reset_stream(stream, 7)
            await server.flush()
        else:
            await echo(server, stream, headers, body)

    async with connected(reset) as (connection, _):
        with pytest.raises(Disconnected, match="code 2") as caught:
            await get(connection, "/reset")
        assert caught.value.processed
        with pytest.raises(Disconnected) as caught:
            await get(connection, "/refused")
        assert not caught.value.processed
        assert await get(connection, "/well") == (200, b"/well")


async def test_goaway_lets_open_streams_go_on_and_refuses_new_ones():
    go = trio.Event()

    async def slow(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await server.answer(stream, b"first ", end=False)
        await go.wait()
        await server.send(stream, b"second", end=True)

    async with connected(slow) as (connection, server), connection.exchange("GET", "/", HEADERS) as response:
        assert await response.receive() == b"first "
        await server.goaway(2**31 - 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connection.room == 0
        with pytest.raises(Disconnected) as caught:
            await get(connection, "/late")
        assert not caught.value.processed
        go.set()
        assert await read(response) == b"second"


async def test_goaway_says_which_streams_were_not_processed():
    async def hang(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        if stream == 3:
            await server.goaway(1)

    failures = {}
    async with connected(hang) as (connection, _), trio.open_nursery() as nursery:

        async def ask(name: str) -> None:
            try:
                await get(connection, name)
            except Disconnected as error:
                failures[name] = error.processed

        nursery.start_soon(ask, "/one")
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(ask, "/three")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert failures == {"/three": False}
        nursery.cancel_scope.cancel()


async def test_a_connection_that_ends_fails_its_streams():
    async def close(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await server.stream.aclose()

    async with connected(close) as (connection, _):
        with pytest.raises(Disconnected, match="closed the connection"):
            await get(connection, "/")
        assert connection.room == 0


async def test_a_connection_that_ends_before_its_settings_is_disconnected():
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await theirs.aclose()
        with pytest.raises(Disconnected):
            await nursery.start(Connection(ours, Timing()).run)


async def test_a_dead_connection_is_noticed(autojump_clock):
    """Half-open: no FIN, no RST, only silence."""

    async def hang(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        server.stream.send_stream.send_all_hook = trio.sleep_forever

    async with connected(hang) as (connection, _):
        began = trio.current_time()
        with pytest.raises(Disconnected, match="silent"):
            await get(connection, "/")
        assert 25 <= trio.current_time() - began <= 26


async def test_an_idle_watch_is_kept_alive_by_pings(autojump_clock):
    async def later(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await trio.sleep(600)
        await echo(server, stream, headers, body)

    async with connected(later) as (connection, server):
        assert await get(connection, "/late") == (200, b"/late")
        assert 20 <= server.pings <= 40


async def test_an_unused_connection_ends(autojump_clock):
    async with connected(echo) as (connection, _):
        await get(connection, "/")
        assert connection.room > 0
        await trio.sleep(80)
        assert connection.room == 0


async def test_no_repr_shows_what_was_sent():
    async def secret(server: Server, stream: int, headers: dict[str, str], body: bytes) -> None:
        await server.answer(stream, b"hunter2")

    async with connected(secret) as (connection, _), connection.exchange("GET", "/", HEADERS) as response:
        assert "hunter2" not in repr(response)
        assert await response.receive() == b"hunter2"


FRAMES = st.lists(
    st.one_of(
        st.builds(lambda data: DataFrame(1, data), st.binary(max_size=40)),
        st.builds(lambda: PingFrame(0, b"12345678")),
        st.builds(lambda last, code: GoAwayFrame(0, last, code), st.integers(0, 99), st.integers(0, 13)),
    ),
    max_size=8,
)


@given(FRAMES, st.lists(st.integers(1, 30), min_size=1))
def test_the_filter_takes_goaways_out_however_the_bytes_are_cut(frames, cuts):
    whole = b"".join(frame.serialize() for frame in frames)
    kept = b"".join(frame.serialize() for frame in frames if not isinstance(frame, GoAwayFrame))
    farewells = [GoAway(f.last_stream_id, f.error_code) for f in frames if isinstance(f, GoAwayFrame)]
    found, passed, at, turn = [], b"", 0, 0
    goaways = GoAwayFilter()
    while at < len(whole):
        size = cuts[turn % len(cuts)]
        out, more = goaways.feed(whole[at : at + size])
        passed, found, at, turn = passed + out, found + more, at + size, turn + 1
    assert (passed, found) == (kept, farewells)
