"""The keeper's socket: accepts clients and passes their requests on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from fusevol.keeper.connection import Connection
from fusevol.keeper.loop import Loop

Handle = Callable[[Connection, dict[str, Any]], None]


class Clients:
    """Calls `handle` for each request; the answer, if there is one, goes through `answer`, now or later."""

    def __init__(self, loop: Loop, listener: socket.socket, handle: Handle) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._handle = handle
        self._connections: set[Connection] = set()
        loop.watch(listener.fileno(), self._accept)

    def answer(self, connection: Connection, message: dict[str, Any]) -> None:
        """Harmless when the client has gone."""
        if connection in self._connections:
            connection.answer(message)
            self._watch(connection)

    def flush(self, seconds: float) -> None:
        """Waits until all answers are sent, at most for `seconds`."""
        self._loop.until(lambda: not any(client.wants_to_write for client in self._connections), seconds)

    def close(self) -> None:
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            self._drop(connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        connection = Connection(client)
        self._connections.add(connection)
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        writable = partial(self._flush, connection) if connection.wants_to_write else None
        self._loop.watch(connection.socket.fileno(), partial(self._receive, connection), writable)

    def _receive(self, connection: Connection) -> None:
        requests = connection.receive()
        if requests is None:
            self._drop(connection)
            return
        for request in requests:
            self._handle(connection, request)

    def _flush(self, connection: Connection) -> None:
        if connection.flush():
            self._watch(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._loop.forget(connection.socket.fileno())
        self._connections.discard(connection)
        connection.close()
