"""An HTTP/2 server for one connection, over any trio stream: the other side of the client under test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame


class Server:
    """`on_request(server, stream, headers, body)` runs in a task of its own when a request is complete."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        on_request: Callable[[Server, int, dict[str, str], bytes], Awaitable[None]],
        settings: dict[h2.settings.SettingCodes, int] | None = None,
    ) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        if settings:
            self.http.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.stream = stream
        self.on_request = on_request
        self.requests: list[dict[str, str]] = []
        self.resets: list[int] = []
        self.pings = 0
        self.acknowledge = True  # gives the client new windows for its bodies
        self._bodies: dict[int, bytearray] = {}
        self._headers: dict[int, dict[str, str]] = {}
        self._sending = trio.Lock()
        self._moved = trio.Event()

    async def run(self) -> None:
        self.http.initiate_connection()
        await self.flush()
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    data = await self.stream.receive_some(65536)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not data:
                    break
                for event in self.http.receive_data(data):
                    self._handle(event, nursery)
                await self.flush()
            nursery.cancel_scope.cancel()

    def _handle(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._headers[stream] = dict(headers)
                self._bodies[stream] = bytearray()
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=size):
                self._bodies[stream] += data
                if self.acknowledge:
                    self.http.acknowledge_received_data(size, stream)
            case h2.events.StreamEnded(stream_id=stream):
                self.requests.append(self._headers[stream])
                nursery.start_soon(self.on_request, self, stream, self._headers[stream], bytes(self._bodies[stream]))
            case h2.events.StreamReset(stream_id=stream):
                self.resets.append(stream)
            case h2.events.PingReceived():
                self.pings += 1
        self._moved.set()
        self._moved = trio.Event()

    async def flush(self) -> None:
        async with self._sending:
            try:
                await self.stream.send_all(self.http.data_to_send())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def answer(self, stream: int, body: bytes = b"", status: int = 200, *, end: bool = True) -> None:
        self.http.send_headers(stream, [(":status", str(status))], end_stream=end and not body)
        await self.flush()
        if body:
            await self.send(stream, body, end=end)

    async def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        while body:
            try:
                room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
                if room:
                    self.http.send_data(stream, body[:room], end_stream=end and room >= len(body))
            except ProtocolError:
                return  # the client has reset the stream
            if room:
                body = body[room:]
                await self.flush()
            else:
                await self._moved.wait()

    async def goaway(self, last_stream: int, code: int = 0) -> None:
        """Not by h2, which would end the connection with it."""
        frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code)
        async with self._sending:
            await self.stream.send_all(frame.serialize())
