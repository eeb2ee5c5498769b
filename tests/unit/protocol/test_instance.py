"""Sockets at paths longer than sun_path (108 bytes)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fusevol.protocol.instance import connect, listen


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    path = tmp_path / ("deep" * 20) / ("deeper" * 20) / "agent.sock"
    path.parent.mkdir(parents=True)
    with listen(path) as listener:
        yield listener


@pytest.fixture
def path(listener: socket.socket, tmp_path: Path) -> Path:
    (path,) = tmp_path.rglob("agent.sock")
    assert len(str(path)) > 200
    return path


async def test_a_connected_socket_can_be_wrapped_in_trio(listener: socket.socket, path: Path) -> None:
    client = socket.socket(socket.AF_UNIX)
    connect(client, path)
    there, _ = listener.accept()
    with there:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
            there.sendall(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.send_all(b"you")
        assert there.recv(10) == b"you"


def test_a_non_blocking_socket_is_connected_at_once_or_not_at_all(listener: socket.socket, path: Path) -> None:
    clients = []
    try:
        for _ in range(1000):  # the backlog is shorter
            clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            try:
                connect(clients[-1], path)
            except BlockingIOError:
                break
        assert 1 < len(clients) < 1000
        assert not clients[0].getblocking()
        there, _ = listener.accept()
        with there:
            there.sendall(b"x")
            assert clients[0].recv(1) == b"x"
    finally:
        for client in clients:
            client.close()


def test_where_nobody_listens(tmp_path: Path, path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(FileNotFoundError):
            connect(client, tmp_path / "none/agent.sock")
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            connect(client, path)
