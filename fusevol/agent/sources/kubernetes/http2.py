"""One HTTP/2 connection to the API server, as a client, on trio and h2.

Streams are independent: one task reads the connection and gives every answer its bytes; one task writes, so that a
cancelled request never leaves half a frame on the wire. A request is cancelled by leaving its `exchange`: RST_STREAM.

Flow control: each stream may have STREAM_WINDOW bytes under way that nobody has taken yet; the connection's window is
larger than all streams' together, so that a consumer that waits never holds up the others.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio

from fusevol.agent.sources.kubernetes.errors import Disconnected
from fusevol.agent.sources.kubernetes.goaway import GoAway, GoAwayFilter
from fusevol.agent.sources.kubernetes.timing import Timing

STREAM_WINDOW = 1 << 20
"""Bytes. A Secret of 1 MiB is 1.4 MiB of JSON; larger answers go on as they are read."""

CONNECTION_WINDOW = (1 << 31) - 1
"""Bytes: the protocol's largest."""

MAX_STREAMS = 250
"""What is used of a server's limit; kube-apiserver's is 100 unless told otherwise."""

Header = tuple[str, str | bytes]


class Response:
    """An answer as it arrives. `status` and `headers` are set when `exchange` yields it."""

    def __init__(self, connection: Connection, stream: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._connection = connection
        self.stream = stream
        # written by the connection's reader, taken by receive()
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._changed = trio.Event()
        self._ended = False
        self._failure: Disconnected | None = None

    def __repr__(self) -> str:
        return f"<response {self.status} on stream {self.stream}>"

    async def receive(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Disconnected. Waits without a bound."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            await self._wait()
        chunk, window = self._chunks.popleft()
        self._connection.taken(self.stream, window)
        return chunk

    async def head(self) -> None:
        """Returns when the headers are there. Raises Disconnected."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    # called by the connection

    def arrived(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        self._changed.set()

    def add(self, chunk: bytes, window: int) -> None:
        self._chunks.append((chunk, window))
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        if not self.status:
            self._failure = Disconnected("the answer ended before it began")
        self._changed.set()

    def fail(self, failure: Disconnected) -> None:
        if not self._ended and self._failure is None:
            self._failure = failure
        self._changed.set()

    @property
    def over(self) -> bool:
        """The server will send nothing more."""
        return self._ended or self._failure is not None

    def drop(self) -> int:
        """Forgets what nobody will take; returns its size for flow control."""
        left = sum(window for _, window in self._chunks)
        self._chunks.clear()
        return left


class Connection:
    """`run` it in a nursery; `exchange` from any task while `room` is positive."""

    def __init__(self, stream: trio.abc.Stream, timing: Timing) -> None:
        self._transport = stream
        self._timing = timing
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.local_settings = h2.settings.Settings(
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            }
        )
        self._goaway = GoAwayFilter()
        self._responses: dict[int, Response] = {}
        self._settled = trio.Event()  # the server's SETTINGS are known
        self._retired = False  # takes no new streams; ends with the last one
        self._wanted = trio.Event()  # set when there is something to write or to end; replaced by the writer
        self._window = trio.Event()  # set when a window for request bodies may have grown; replaced by who waits
        self._heard = trio.current_time()  # when the server was last heard of
        self._used = trio.current_time()  # when a stream was last open

    @property
    def room(self) -> int:
        """How many more streams can be opened now."""
        if self._retired or not self._settled.is_set():
            return 0
        return min(self._h2.remote_settings.max_concurrent_streams, MAX_STREAMS) - len(self._responses)

    @property
    def streams(self) -> int:
        return len(self._responses)

    def retire(self) -> None:
        """No new streams; the connection ends when those that are open have ended."""
        self._retired = True
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the connection until it ends, for whatever reason, and closes it. Started when requests may be sent.

        Raises Disconnected only if it ends before that.
        """
        failure = Disconnected("the connection was closed")
        served = False
        try:
            self._h2.initiate_connection()
            self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65535)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                await self._settled.wait()
                served = True
                task_status.started()
                await self._keep_alive()
        except* Disconnected as group:
            failure = first(group)
        finally:
            self._retired = True
            for response in self._responses.values():
                response.fail(failure)
            self._window.set()
            await trio.aclose_forcefully(self._transport)
        if not served:
            raise failure

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, headers: Sequence[Header], body: bytes = b""
    ) -> AsyncIterator[Response]:
        """Sends a request, yields when the answer's headers are there. Raises Disconnected. No bound of its own."""
        response = self._open(method, target, headers, end=not body)
        try:
            await self._send(response, body)
            await response.head()
            yield response
        finally:
            self._close(response)

    def _open(self, method: str, target: str, headers: Sequence[Header], *, end: bool) -> Response:
        if self._retired:
            raise Disconnected("the connection was closed", processed=False)
        stream = self._h2.get_next_available_stream_id()
        try:
            self._h2.send_headers(stream, [(":method", method), (":path", target), *headers], end_stream=end)
        except h2.exceptions.ProtocolError as error:
            raise Disconnected(f"HTTP/2: {error}", processed=False) from None
        response = self._responses[stream] = Response(self, stream)
        self._wanted.set()
        return response

    async def _send(self, response: Response, body: bytes) -> None:
        rest = memoryview(body)
        while rest:
            response.check()
            if response.over:
                return  # the server has answered without reading on
            try:
                room = min(self._h2.local_flow_control_window(response.stream), self._h2.max_outbound_frame_size)
                if room > 0:
                    self._h2.send_data(response.stream, bytes(rest[:room]), end_stream=room >= len(rest))
            except h2.exceptions.ProtocolError as error:
                raise Disconnected(f"HTTP/2: {error}") from None
            if room > 0:
                rest = rest[room:]
                self._wanted.set()
            else:
                if self._window.is_set():
                    self._window = trio.Event()
                await self._window.wait()

    def _close(self, response: Response) -> None:
        self._responses.pop(response.stream, None)
        self._used = trio.current_time()
        try:
            if not response.over:
                self._h2.reset_stream(response.stream, h2.errors.ErrorCodes.CANCEL)
            if left := response.drop():
                self._h2.acknowledge_received_data(left, response.stream)
        except h2.exceptions.ProtocolError:
            pass  # the connection has just ended
        self._wanted.set()

    def taken(self, stream: int, window: int) -> None:
        """The consumer has taken `window` bytes: the server may send as many more."""
        try:
            self._h2.acknowledge_received_data(window, stream)
        except h2.exceptions.ProtocolError:
            return  # the connection has just ended
        self._wanted.set()

    async def _write(self) -> None:
        while True:
            self._wanted = trio.Event()
            if data := self._h2.data_to_send():
                try:
                    await self._transport.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise Disconnected(f"the connection broke: {reason(error)}") from None
            elif self._retired and not self._responses:
                raise Disconnected("the connection was closed", processed=False)
            else:
                await self._wanted.wait()

    async def _read(self) -> None:
        while True:
            try:
                # no variable: it would hold the last bytes, perhaps a Secret's, until the next ones come
                self._received(await self._transport.receive_some())
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Disconnected(f"the connection broke: {reason(error)}") from None

    def _received(self, data: bytes | bytearray) -> None:
        if not data:
            raise Disconnected("the API server closed the connection")
        self._heard = trio.current_time()
        passed, farewells = self._goaway.feed(data)
        try:
            for event in self._h2.receive_data(passed):
                self._handle(event)
        except h2.exceptions.ProtocolError as error:
            raise Disconnected(f"HTTP/2: {error}") from None
        for farewell in farewells:
            self._leave(farewell)
        self._wanted.set()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=size):
                if response := self._responses.get(stream):
                    response.add(data, size)
                else:
                    self._h2.acknowledge_received_data(size, stream)
            case h2.events.ResponseReceived(stream_id=stream, headers=headers):
                if response := self._responses.get(stream):
                    fields = {str(name): str(value) for name, value in headers}
                    response.arrived(int(fields[":status"]), fields)
            case h2.events.StreamEnded(stream_id=stream):
                if response := self._responses.get(stream):
                    response.end()
            case h2.events.StreamReset(stream_id=stream, error_code=code):
                if response := self._responses.get(stream):
                    refused = code == h2.errors.ErrorCodes.REFUSED_STREAM
                    response.fail(Disconnected(f"the API server reset the stream (code {code})", processed=not refused))
                self._window.set()
            case h2.events.WindowUpdated():
                self._window.set()
            case h2.events.RemoteSettingsChanged():
                self._settled.set()
                self._window.set()

    def _leave(self, farewell: GoAway) -> None:
        self._retired = True
        if farewell.code:
            raise Disconnected(f"the API server ended the connection (code {farewell.code})")
        for stream, response in self._responses.items():
            if stream > farewell.last_stream:
                response.fail(Disconnected("the API server is going away", processed=False))

    async def _keep_alive(self) -> None:
        """Notices a connection that is dead without being closed, and closes one that nobody uses."""
        timing = self._timing
        while True:
            silence = trio.current_time() - self._heard
            if not self._responses and trio.current_time() - self._used >= timing.unused:
                self.retire()
            if silence < timing.ping_after:
                await trio.sleep(timing.ping_after - silence)
                continue
            asked = trio.current_time()
            self._h2.ping(b"fusevol.")
            self._wanted.set()
            await trio.sleep(timing.ping_answer)
            if self._heard < asked:
                raise Disconnected(f"the API server was silent for {timing.ping_after + timing.ping_answer:g} s")


def first(group: BaseExceptionGroup[Disconnected]) -> Disconnected:
    """Of several tasks that noticed the same end one speaks for all."""
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, Disconnected)
    return leaf


def reason(error: BaseException) -> str:
    """The innermost cause: trio wraps the operating system's and TLS' errors."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # one per address of the API server's name
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", None) or (error.reason or "TLS").lower().replace("_", " ")
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # its own text is trio's, with an address
    if isinstance(error, OSError) and error.strerror:  # of name resolution
        return error.strerror
    return str(error) or "it was closed"
