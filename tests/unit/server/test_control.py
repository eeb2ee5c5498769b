"""The control socket without a mount: every request has its answer, and no peer can end the server."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fusevol.model.refs import VolumeRef
from fusevol.model.tree import ContentRef, File, Tree
from fusevol.protocol import framing, messages
from fusevol.protocol.messages import Done, Failed
from fusevol.server.control import REUSED, ControlServer
from fusevol.server.nodes import Owner
from fusevol.server.notifications import Notification, NotificationThread, Notify
from fusevol.server.volumes import Volumes
from tests.support.core import FIRST, META, VOLUME, WRITER, config_map, digest

CM = config_map("cm")


class Server:
    """A ControlServer on a Unix socket, whose kernel is `send`."""

    def __init__(self, directory: Path, volumes: type[Volumes] = Volumes) -> None:
        self.path = str(directory / "server.sock")
        self.notifications = NotificationThread()
        self.volumes = volumes(self.notifications, Owner(0, 0))
        self.control = ControlServer(self.volumes, self.notifications)
        self.peers: list[Peer] = []

    async def connect(self) -> Peer:
        peer = Peer(await trio.open_unix_socket(self.path))
        self.peers.append(peer)
        return peer


class Peer:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def ask(self, request: messages.Request) -> messages.Reply:
        return await self.send(framing.encode(request))

    async def send(self, data: bytes | bytearray) -> messages.Reply:
        await self.stream.send_all(data)
        header = await self._exactly(framing.HEADER.size)
        return framing.decode_reply(await self._exactly(framing.length(header)))

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await self.stream.receive_some(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    async def closed(self) -> bool:
        with trio.fail_after(5):
            try:
                return await self.stream.receive_some(1) == b""
            except trio.BrokenResourceError:
                return True


@asynccontextmanager
async def serving(
    directory: Path, volumes: type[Volumes] = Volumes, send: Notify = lambda _: None
) -> AsyncIterator[Server]:
    server = Server(directory, volumes)
    server.notifications.start(send)
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(server.path)
    listening.listen(8)
    async with trio.SocketListener(listening) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(server.control.serve, listener)
        try:
            yield server
        finally:
            for peer in server.peers:
                await trio.aclose_forcefully(peer.stream)
            nursery.cancel_scope.cancel()
            server.notifications.stop()


@asynccontextmanager
async def agent(directory: Path, volumes: type[Volumes] = Volumes) -> AsyncIterator[tuple[Server, Peer]]:
    async with serving(directory, volumes) as server:
        peer = await server.connect()
        assert isinstance(await peer.ask(messages.Hello()), messages.Welcome)
        yield server, peer


def put(version: str, **data: bytes) -> messages.PutObject:
    return messages.PutObject(CM, version, {key: memoryview(value) for key, value in data.items()})


def tree(version: str, *keys: str) -> Tree:
    return Tree(tuple(File(key, 0o644, ContentRef(CM, version, key, version)) for key in keys))


def publish(shown: Tree, volume: VolumeRef = VOLUME) -> messages.Publish:
    return messages.Publish(volume, FIRST, shown, digest(shown), META)


async def test_every_request_of_the_protocol_is_answered(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.mkdir()
    empty = VolumeRef("uid-1", "kubernetes.io/empty-dir", "e")
    second = tree("2", "a")
    async with agent(tmp_path) as (server, peer):
        conversation: list[tuple[messages.Request, type[messages.Reply]]] = [
            (put("1", a=b"1"), Done),
            (messages.AddPod("uid-1"), Done),
            (messages.AddPlugin("uid-1", "kubernetes.io/secret"), Done),
            (publish(tree("1", "a")), Done),
            (publish(tree("1", "a")), Failed),
            (put("2", a=b"2"), Done),
            (messages.Stage(VOLUME, "..2", second, digest(second), META), messages.View),
            (messages.Annotate(VOLUME, META), Done),
            (messages.PublishEmptyDir(empty, str(backing), 0o777, 0, META), Done),
            (messages.SetName("shop", "cart", "uid-1"), Done),
            (messages.ListVolumes(), messages.Volumes),
            (messages.RegisterWriter("..n"), Done),
            (messages.ConfirmWriter(), Failed),
            (messages.Unpublish(empty), Done),
            (messages.RemovePod("uid-1"), Done),
            (messages.SetName("shop", "cart", None), Done),
            (messages.DropObject(CM), Done),
            (messages.Hello(), messages.Welcome),
        ]
        kinds = {type(request) for request, _ in conversation}
        assert kinds == set(messages.Request.__args__), "this test leaves a request out"
        for request, expected in conversation:
            assert isinstance(await peer.ask(request), expected), request
        assert server.volumes.states() == ()


async def test_welcome_tells_what_stands_and_an_agent_that_comes_back_finds_the_same_state(tmp_path: Path) -> None:
    async with agent(tmp_path) as (server, peer):
        first = await peer.ask(messages.Hello())
        await peer.ask(put("1", a=b"1"))
        await peer.ask(messages.AddPod("uid-1"))
        await peer.ask(messages.SetName("shop", "cart", "uid-1"))
        await peer.stream.aclose()
        welcome = await (await server.connect()).ask(messages.Hello())
        assert isinstance(first, messages.Welcome)
        assert isinstance(welcome, messages.Welcome)
        assert (welcome.digest_key, welcome.incarnation) == (first.digest_key, first.incarnation)
        assert (welcome.pods, welcome.names, welcome.objects) == (("uid-1",), {("shop", "cart"): "uid-1"}, (CM,))


async def test_another_version_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        peer = await server.connect()
        assert isinstance(await peer.ask(messages.Hello(version=messages.VERSION + 1)), Failed)
        assert isinstance(await peer.ask(messages.ListVolumes()), Failed)


async def test_the_newest_hello_wins_and_the_older_ones_writer_is_forgotten(tmp_path: Path) -> None:
    async with agent(tmp_path) as (server, older):
        await older.ask(messages.RegisterWriter("..n"))
        server.volumes.writer.looked_up("..n", WRITER)
        assert isinstance(await older.ask(messages.ConfirmWriter()), Done)
        newer = await server.connect()
        assert isinstance(await newer.ask(messages.Hello()), messages.Welcome)
        assert await older.closed()
        assert not server.volumes.writer.confirmed
        assert isinstance(await newer.ask(messages.ListVolumes()), messages.Volumes)


async def test_the_writer_is_forgotten_with_its_connection(tmp_path: Path) -> None:
    async with agent(tmp_path) as (server, peer):
        await peer.ask(messages.RegisterWriter("..n"))
        server.volumes.writer.looked_up("..n", WRITER)
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not server.volumes.writer.confirmed


async def test_the_connection_of_a_stranger_does_not_touch_the_agents_writer(tmp_path: Path) -> None:
    async with agent(tmp_path) as (server, peer):
        await peer.ask(messages.RegisterWriter("..n"))
        server.volumes.writer.looked_up("..n", WRITER)
        stranger = await server.connect()
        assert isinstance(await stranger.ask(messages.RegisterWriter("..m")), Failed)
        await stranger.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.volumes.writer.is_writer(WRITER)


HOSTILE = {
    "a frame too long": struct.pack(">I", framing.MAX_FRAME + 1),
    "half a header": b"\0\0",
    "half a message": struct.pack(">I", 100) + b"x",
    "a long message that never comes": struct.pack(">I", framing.MAX_FRAME) + b"x",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
async def test_a_broken_peer_loses_its_connection_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    async with agent(tmp_path) as (server, peer):
        hostile = await server.connect()
        await hostile.stream.send_all(data)
        await hostile.stream.send_eof()
        assert await hostile.closed()
        assert isinstance(await peer.ask(messages.ListVolumes()), messages.Volumes)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x92\xa5Nobody\x01", os.urandom(200)])
async def test_what_is_no_request_is_answered_failed(tmp_path: Path, body: bytes) -> None:
    async with agent(tmp_path) as (_, peer):
        assert isinstance(await peer.send(framing.HEADER.pack(len(body)) + body), Failed)
        assert isinstance(await peer.ask(messages.ListVolumes()), messages.Volumes)


class BrokenVolumes(Volumes):
    def add_pod(self, uid: str) -> None:
        raise ZeroDivisionError(uid)


async def test_an_unexpected_error_is_an_answer_and_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with agent(tmp_path, BrokenVolumes) as (_, peer):
        assert await peer.ask(messages.AddPod("uid-1")) == Failed("ZeroDivisionError in the server")
        assert "a request of the agent's failed" in caplog.text
        assert isinstance(await peer.ask(messages.ListVolumes()), messages.Volumes)


@pytest.mark.parametrize("size", [10, REUSED * 3], ids=["in the reused buffer", "in one of its own"])
async def test_contents_arrive_whole_and_are_the_servers_own(tmp_path: Path, size: int) -> None:
    async with agent(tmp_path) as (server, peer):
        assert isinstance(await peer.ask(put("1", a=b"\x07" * size)), Done)
        assert isinstance(await peer.ask(put("2", b=b"\x08" * size, a=b"\x07" * size)), Done)
        content = server.volumes.contents.acquire(ContentRef(CM, "2", "a", ""))
        assert bytes(content.view) == b"\x07" * size


async def test_an_answer_comes_after_the_kernel_knows(tmp_path: Path) -> None:
    taken = threading.Event()
    sent = []

    def slow_kernel(notification: Notification) -> None:
        assert taken.wait(10)
        sent.append(notification)

    async with serving(tmp_path, send=slow_kernel) as server, trio.open_nursery() as nursery:
        peer = await server.connect()
        await peer.ask(messages.Hello())
        server.volumes.inodes.remember(server.volumes.root.child("pods"))
        answered = trio.Event()

        async def ask() -> None:
            await peer.ask(messages.AddPod("uid-1"))
            answered.set()

        nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert server.volumes.pods == ("uid-1",), "the state first"
        assert not answered.is_set(), "the kernel second, the answer last"
        taken.set()
        with trio.fail_after(5):
            await answered.wait()
        assert sent
