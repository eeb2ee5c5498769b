"""One connection to the server's control socket: requests are pipelined, replies come in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import outcome
import trio

from fusevol.agent.sockets import open_unix_socket
from fusevol.model.errors import ProtocolError, ServerGone
from fusevol.protocol import framing
from fusevol.protocol.messages import Failed, PutObject, Reply, Request

AnyReply = TypeVar("AnyReply", bound=Reply)


class RequestFailed(Exception):
    """The server answered Failed; str() is its message."""


class _Waiter:
    __slots__ = ("arrived", "result")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.result: outcome.Maybe[Reply] = outcome.Error(ServerGone("the control connection was lost"))


class Connection:
    """A connected control socket. `closed` is set when it is lost; then every request raises ServerGone."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.closed = trio.Event()
        self._stream = stream
        self._sending = trio.StrictFIFOLock()
        self._waiting: deque[_Waiter] = deque()  # in the order of the requests; appended under _sending

    async def request(self, message: Request, expected: type[AnyReply]) -> AnyReply:
        """Raises RequestFailed, ServerGone. Cancelled while sending, the connection is closed: half a frame is on its
        way. Cancelled while waiting, the request may still be done."""
        if self.closed.is_set():
            raise ServerGone("the control connection was lost")
        frame = framing.encode(message)
        waiter = _Waiter()
        try:
            async with self._sending:
                self._waiting.append(waiter)
                try:
                    await self._stream.send_all(frame)
                except trio.Cancelled:
                    await trio.aclose_forcefully(self._stream)
                    raise
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ServerGone("the control connection was lost") from None
        finally:
            if isinstance(message, PutObject):
                frame[:] = bytes(len(frame))  # it carried contents
        await waiter.arrived.wait()
        reply = waiter.result.unwrap()
        if isinstance(reply, Failed):
            raise RequestFailed(reply.message)
        if not isinstance(reply, expected):
            raise ProtocolError(f"{type(reply).__name__} in answer to {type(message).__name__}")
        return reply

    async def receive(self) -> None:
        """Hands replies to those who wait, until the connection is lost."""
        buffer = bytearray()
        try:
            while True:
                size = framing.HEADER.size
                if len(buffer) >= size and len(buffer) >= (end := size + framing.length(buffer[:size])):
                    reply = framing.decode_reply(buffer[size:end])
                    del buffer[:end]
                    waiter = self._waiting.popleft()
                    waiter.result = outcome.Value(reply)
                    waiter.arrived.set()
                    continue
                chunk = await self._stream.receive_some(65536)
                if not chunk:
                    return
                buffer += chunk
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self.closed.set()
            while self._waiting:
                self._waiting.popleft().arrived.set()


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[Connection]:
    """Raises OSError where nobody listens."""
    stream = open_unix_socket(path)
    async with stream, trio.open_nursery() as nursery:
        connection = Connection(stream)
        nursery.start_soon(connection.receive)
        try:
            yield connection
        finally:
            nursery.cancel_scope.cancel()
