"""The publisher against a server that is played: connections that fail, and what must not happen meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fusevol.agent.publisher.publisher import Publisher
from fusevol.model.errors import ServerGone
from fusevol.protocol import framing, instance
from fusevol.protocol.messages import (
    AddPod,
    ConfirmWriter,
    Done,
    Failed,
    Hello,
    ListVolumes,
    Reply,
    Request,
    Volumes,
    Welcome,
)

WELCOME = Welcome(1, b"key", "incarnation", (), {}, ())


def obliging(request: Request) -> Reply:
    match request:
        case Hello():
            return WELCOME
        case ListVolumes():
            return Volumes(())
    return Done()


@asynccontextmanager
async def server(path: Path, answer: Callable[[Request], Reply]) -> AsyncIterator[list[Request]]:
    """Notes every request; `answer` gives the reply."""
    asked: list[Request] = []

    async def converse(stream: trio.SocketStream) -> None:
        async with stream:
            buffer = bytearray()
            while chunk := await stream.receive_some(65536):
                buffer += chunk
                while len(buffer) >= 4 and len(buffer) >= (end := 4 + framing.length(buffer[:4])):
                    request = framing.decode_request(bytes(buffer[4:end]))
                    del buffer[:end]
                    asked.append(request)
                    await stream.send_all(framing.encode(answer(request)))

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(instance.listen(path)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, converse, [listener])
        yield asked
        nursery.cancel_scope.cancel()


async def test_nothing_is_published_before_the_state_is_taken_over(tmp_path: Path) -> None:
    """What is published in between would be missing in the state that was listed before."""
    publisher = Publisher(str(tmp_path / "s"), str(tmp_path))
    refused = connected = False

    async def take_over(welcome: Welcome, volumes: tuple[object, ...]) -> None:
        nonlocal refused
        try:
            await publisher.send(AddPod("early"))
        except ServerGone:
            refused = True

    async with server(tmp_path / "s", obliging) as asked, trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run, take_over, lambda: None)
        with trio.fail_after(5):
            while not connected:
                try:
                    await publisher.send(AddPod("late"))
                    connected = True
                except ServerGone:
                    await trio.sleep(0.005)
        assert refused
        assert [request for request in asked if isinstance(request, AddPod)] == [AddPod("late")]
        nursery.cancel_scope.cancel()


async def test_a_writer_that_the_server_does_not_know_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Failed("nobody looked") if isinstance(request, ConfirmWriter) else obliging(request)

    async def never(*_: object) -> None:
        pytest.fail("connected without a writer")

    publisher = Publisher(str(tmp_path / "s"), str(tmp_path))
    async with server(tmp_path / "s", answer) as asked, trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run, never, lambda: None)
        with trio.fail_after(10):
            while sum(isinstance(request, Hello) for request in asked) < 5:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        while any(thread.name == "writer" for thread in threading.enumerate()):
            await trio.sleep(0.01)
    held = [path for fd in Path("/proc/self/fd").iterdir() if (path := _target(fd)) == str(tmp_path)]
    assert held == []


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:
        return ""


async def test_a_socket_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    publisher = Publisher(str(directory / "server.sock"), str(tmp_path))
    connected = trio.Event()

    async def take_over(*_: object) -> None:
        connected.set()

    async with server(directory / "server.sock", obliging), trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run, take_over, lambda: None)
        with trio.fail_after(5):
            await connected.wait()
        nursery.cancel_scope.cancel()


async def test_a_lost_connection_is_told_and_made_again(tmp_path: Path) -> None:
    publisher = Publisher(str(tmp_path / "s"), str(tmp_path))
    told: list[str] = []
    changed = trio.Event()

    def note(what: str) -> None:
        nonlocal changed
        told.append(what)
        changed.set()
        changed = trio.Event()

    async def take_over(*_: object) -> None:
        note("connected")

    async with trio.open_nursery() as nursery:
        async with server(tmp_path / "s", obliging):
            nursery.start_soon(publisher.run, take_over, lambda: note("disconnected"))
            with trio.fail_after(5):
                while told != ["connected"]:
                    await changed.wait()
        with trio.fail_after(5):
            while told[-1] != "disconnected":
                await changed.wait()
        with pytest.raises(ServerGone):
            await publisher.send(AddPod("nobody"))
        async with server(tmp_path / "s", obliging):
            with trio.fail_after(5):
                while told[-1] != "connected":
                    await changed.wait()
        nursery.cancel_scope.cancel()
