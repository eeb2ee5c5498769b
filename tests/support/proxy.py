"""A faulty way to the real API server: a reverse proxy that speaks TLS and HTTP/2 on both sides.

    with Proxy(cluster, "system:node:node1", ["system:nodes"]) as proxy:
        path = cluster.node_kubeconfig("node1", server=proxy.url)
        rule = proxy.add(on(watch=True, contains="/configmaps"), Duplicate())
        ...
        proxy.rules.remove(rule)

Towards the API server it is the user that it was given, unless a request brings a bearer token. Each request takes the
first of `rules` that matches and is not used up. Beside the rules, `drop_all`, `hang`/`resume` and `refuse` are faults
of the whole network path. It runs in a thread with a trio loop of its own: tests may be synchronous or not.
"""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from tests.support.cluster import HOST, Cluster, free_ports

Headers = list[tuple[str, str]]
Match = Callable[[str, str], bool]  # method, path with query


def on(method: str = "", contains: str = "", *, watch: bool | None = None) -> Match:
    """Matches requests by method, by a part of the path with its query, and by whether they are watches."""

    def match(actual: str, path: str) -> bool:
        is_watch = "watch=1" in path or "watch=true" in path
        return method in ("", actual) and contains in path and watch in (None, is_watch)

    return match


# -- what a rule does ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers with a Status object and does not ask the API server. `headers` as in `{"retry-after": "1"}`."""

    status: int
    reason: str = ""
    message: str = "injected by the proxy"
    headers: tuple[tuple[str, str], ...] = ()


def gone() -> Answer:
    """410, as a list with an expired continue token or resourceVersion gets it."""
    return Answer(410, "Expired", "The provided resource version is too old.")


def too_many_requests(retry_after: int = 1) -> Answer:
    """429 with Retry-After in seconds, as priority and fairness sends it."""
    return Answer(429, "TooManyRequests", "too many requests", (("retry-after", str(retry_after)),))


def internal_error() -> Answer:
    return Answer(500, "InternalError", "Internal error occurred: injected by the proxy")


@dataclass(frozen=True, slots=True)
class WatchError:
    """Answers a watch with 200 and one ERROR event: how the API server says that a resourceVersion has expired."""

    code: int = 410
    reason: str = "Expired"
    message: str = "too old resource version: 1 (2)"


@dataclass(frozen=True, slots=True)
class Slow:
    """Waits `seconds` before it asks the API server, and then `per_event` seconds before each event of a watch."""

    seconds: float = 0.0
    per_event: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Passes `events` lines on and then nothing more, while the stream stays open. None: not even an answer."""

    events: int | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Passes `events` lines on, then resets the stream, or cuts the whole `connection`, or ends the stream as an
    API server does whose time-out for watches is over (`clean`). None: before an answer."""

    events: int | None = None
    connection: bool = False
    clean: bool = False


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Passes each line of the answer (each event of a watch, with its newline) through a function."""

    lines: Callable[[bytes], Iterable[bytes]]


def Duplicate(times: int = 2) -> Rewrite:  # reads like the others
    """Sends each event `times` times."""
    return Rewrite(lambda line: [line] * times)


Action = Answer | WatchError | Slow | Hang | Drop | Rewrite


@dataclass(eq=False, slots=True)
class Rule:
    match: Match
    action: Action
    times: int | None = None  # how many more requests it applies to; None: all. Counted down by the proxy
    used: int = 0  # how many requests it has applied to


@dataclass(eq=False, slots=True)
class Request:
    """A request that the proxy has seen. `status` is the one answered, None as long as there is none."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    at: float = field(default_factory=time.monotonic)
    status: int | None = None
    open: bool = True  # its stream has not ended yet


# -- HTTP/2 -------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """The stream or the connection is gone."""


class _Wire:
    """An HTTP/2 connection: h2's state, the bytes below it, and the waiting for the other side's windows."""

    def __init__(self, stream: trio.abc.Stream, *, client: bool, gate: Callable[[], Awaitable[None]]) -> None:
        self.http = H2Connection(H2Configuration(client_side=client, header_encoding="utf-8"))
        self.stream = stream
        self._gate = gate  # passes at once unless the proxy hangs
        self._sending = trio.Lock()
        self._moved = trio.Event()  # replaced each time a window may have grown

    async def flush(self) -> None:
        async with self._sending:  # the order of bytes is the order of data_to_send()
            await self._gate()
            data = self.http.data_to_send()
            try:
                if data:
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _Broken from error

    async def events(self) -> list[Event]:
        """The next events; none at the end of the connection."""
        try:
            data = await self.stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return []
        await self._gate()
        if not data:
            return []
        try:
            events = self.http.receive_data(data)
        except ProtocolError as error:
            raise _Broken from error
        for event in events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                with contextlib.suppress(ProtocolError):  # the stream may have been reset
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, (WindowUpdated, StreamReset)):
                self._moved.set()
                self._moved = trio.Event()
        await self.flush()
        return events or [Event()]

    async def headers(self, stream: int, headers: Headers, *, end: bool = False) -> None:
        with _broken_by_protocol():
            self.http.send_headers(stream, headers, end_stream=end)
        await self.flush()

    async def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        view = memoryview(data)
        while view:
            with _broken_by_protocol():
                room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
                if room:
                    self.http.send_data(stream, bytes(view[:room]))
            if room:
                view = view[room:]
                await self.flush()
            else:
                await self._moved.wait()
        if end:
            with _broken_by_protocol():
                self.http.end_stream(stream)
            await self.flush()

    async def reset(self, stream: int) -> None:
        with _broken_by_protocol():
            self.http.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
        await self.flush()


@contextlib.contextmanager
def _broken_by_protocol() -> Any:
    try:
        yield
    except ProtocolError as error:
        raise _Broken from error


# -- the proxy ----------------------------------------------------------------------------------------------------


class Proxy:
    """Listens on a free port of 127.0.0.1 with a certificate of the cluster's CA. Every method may be called from any
    thread, in async tests too: none of them waits for longer than an instant."""

    def __init__(self, cluster: Cluster, user: str, groups: Iterable[str] = ()) -> None:
        self._upstream = cluster.port
        (self.port,) = free_ports(1)
        self.rules: list[Rule] = []  # changed by the tests, read by the proxy; the first that matches is taken
        self.requests: list[Request] = []  # every request so far, in the order of arrival
        self._server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        cluster.ca.issue_cert(HOST, "localhost").configure_cert(self._server_context)
        self._server_context.set_alpn_protocols(["h2"])
        self._anonymous = ssl.create_default_context(cafile=str(cluster.ca_file))
        self._anonymous.set_alpn_protocols(["h2"])
        self._identified = ssl.create_default_context(cafile=str(cluster.ca_file))
        self._identified.set_alpn_protocols(["h2"])
        self._identified.load_cert_chain(cluster.certificate_file(user, groups))
        # of the proxy's own thread from here on
        self._cuts: set[trio.CancelScope] = set()  # one per connection
        self._listening: trio.CancelScope | None = None
        self._hung = False
        self._resumed = trio.Event()
        self._stopping = trio.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        if (error := started.get(timeout=10)) is not None:
            raise error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._call(self._stopping.set)
            self._thread.join(10)
        assert not self._thread.is_alive(), "the proxy does not stop"

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def add(self, match: Match, action: Action, times: int | None = None) -> Rule:
        """A new rule behind the others, for the next `times` requests that match it."""
        self.rules.append(rule := Rule(match, action, times))
        return rule

    def seen(self, match: Match) -> list[Request]:
        """The requests so far that match."""
        return [request for request in list(self.requests) if match(request.method, request.path)]

    def drop_all(self) -> None:
        """Cuts every connection; new ones are welcome."""
        self._call(self._drop_all)

    def hang(self) -> None:
        """Lets no byte pass in either direction, as if a cable were pulled: connections stay open, new ones too are
        accepted (by the kernel) and get no answer."""
        self._call(lambda: setattr(self, "_hung", True))

    def resume(self) -> None:
        """Ends `hang`: what has waited passes now."""

        def resume() -> None:
            self._hung = False
            self._resumed.set()
            self._resumed = trio.Event()

        self._call(resume)

    def refuse(self, refusing: bool = True) -> None:
        """Cuts every connection and refuses new ones, as a machine without an API server does; False ends it."""

        def refuse() -> None:
            if refusing:
                if self._listening is not None:
                    self._listening.cancel()
                self._drop_all()
            else:
                self._accepting.set()

        self._call(refuse)
        deadline = time.monotonic() + 5
        while (self._listening is None) != refusing and time.monotonic() < deadline:
            time.sleep(0.001)  # the loop closes or opens its listener in its next turns

    def _drop_all(self) -> None:
        for cut in self._cuts:
            cut.cancel()

    def _call(self, function: Callable[[], object]) -> None:
        """Runs `function` in the proxy's thread and returns when it has run. Not by trio.from_thread, which refuses to
        block another trio loop; this one blocks it for some microseconds."""
        done = threading.Event()

        def call() -> None:
            function()
            done.set()

        self._token.run_sync_soon(call)
        assert done.wait(5), "the proxy's thread does not answer"

    # -- in the proxy's thread from here on -----------------------------------------------------------------------

    def _run(self, started: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            trio.run(self._main, started)
        except BaseException as error:
            started.put(error)
            raise

    async def _main(self, started: queue.SimpleQueue[BaseException | None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._accepting = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen, nursery)
            started.put(None)
            await self._stopping.wait()
            nursery.cancel_scope.cancel()

    async def _listen(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        while True:
            listener = (await trio.open_tcp_listeners(self.port, host=HOST))[0]
            with trio.CancelScope() as self._listening:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                async with listener:
                    while True:
                        nursery.start_soon(self._connection, await listener.accept())
            self._listening = None
            self._accepting = trio.Event()
            await self._accepting.wait()

    async def _pass(self) -> None:
        while self._hung:
            await self._resumed.wait()

    async def _connection(self, tcp: trio.SocketStream) -> None:
        stream = trio.SSLStream(tcp, self._server_context, server_side=True, https_compatible=True)
        with trio.CancelScope() as cut:
            self._cuts.add(cut)
            try:
                await self._pass()
                await stream.do_handshake()
                wire = _Wire(stream, client=False, gate=self._pass)
                wire.http.initiate_connection()
                await wire.flush()
                async with trio.open_nursery() as nursery:
                    await self._serve(wire, nursery, cut)
                    nursery.cancel_scope.cancel()
            except* (_Broken, trio.BrokenResourceError):
                pass  # the client went away
            finally:
                self._cuts.discard(cut)
                await trio.aclose_forcefully(tcp)

    async def _serve(self, wire: _Wire, nursery: trio.Nursery, cut: trio.CancelScope) -> None:
        arriving: dict[int, Request] = {}
        scopes: dict[int, trio.CancelScope] = {}
        while events := await wire.events():
            for event in events:
                match event:
                    case RequestReceived(stream_id=number, headers=headers):
                        fields = dict(headers)
                        arriving[number] = Request(fields[":method"], fields[":path"], fields)
                    case DataReceived(stream_id=number, data=data) if number in arriving:
                        arriving[number].body += data
                    case StreamEnded(stream_id=number) if number in arriving:
                        request, scopes[number] = arriving.pop(number), trio.CancelScope()
                        self.requests.append(request)
                        nursery.start_soon(self._exchange, wire, number, request, scopes[number], cut)
                    case StreamReset(stream_id=number):
                        arriving.pop(number, None)
                        if number in scopes:
                            scopes.pop(number).cancel()
                    case ConnectionTerminated():
                        return

    def _rule(self, request: Request) -> Action | None:
        for rule in self.rules:
            if rule.times != 0 and rule.match(request.method, request.path):
                rule.times = None if rule.times is None else rule.times - 1
                rule.used += 1
                return rule.action
        return None

    async def _exchange(
        self, wire: _Wire, number: int, request: Request, scope: trio.CancelScope, cut: trio.CancelScope
    ) -> None:
        action = self._rule(request)
        try:
            with scope:
                match action:
                    case Answer(status=status, reason=reason, message=message, headers=headers):
                        await self._answer(wire, number, request, status, _status(status, reason, message), headers)
                    case WatchError(code=code, reason=reason, message=message):
                        event = {"type": "ERROR", "object": _status(code, reason, message)}
                        await self._answer(wire, number, request, 200, event)
                    case Hang(events=None):
                        await trio.sleep_forever()
                    case Drop(events=None):
                        raise _Dropped
                    case _:
                        if isinstance(action, Slow):
                            await trio.sleep(action.seconds)
                        await self._forward(wire, number, request, action)
        except _Dropped:
            assert isinstance(action, Drop)
            with contextlib.suppress(_Broken):
                if action.connection:
                    cut.cancel()
                elif action.clean and request.status is not None:
                    await wire.data(number, b"", end=True)
                else:
                    await wire.reset(number)
        except _Broken:
            with contextlib.suppress(_Broken):
                await wire.reset(number)  # unless it was the client who left
        finally:
            request.open = False

    async def _answer(
        self, wire: _Wire, number: int, request: Request, status: int, body: Any, headers: Iterable[Any] = ()
    ) -> None:
        request.status = status
        await wire.headers(number, [(":status", str(status)), ("content-type", "application/json"), *headers])
        await wire.data(number, json.dumps(body).encode() + b"\n", end=True)

    async def _forward(self, wire: _Wire, number: int, request: Request, action: Action | None) -> None:
        """One connection to the API server for each request: simple, and cutting one cuts no other."""
        context = self._anonymous if "authorization" in request.headers else self._identified
        try:
            tcp = await trio.open_tcp_stream(HOST, self._upstream)
        except OSError as error:
            raise _Broken from error
        lines = _Lines(wire, number, action)
        async with tcp:
            stream = trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True)
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError as error:
                raise _Broken from error
            upstream = _Wire(stream, client=True, gate=self._pass)
            upstream.http.initiate_connection()
            await upstream.headers(1, list(request.headers.items()), end=not request.body)
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                if request.body:
                    nursery.start_soon(self._send_body, upstream, request)
                try:
                    await self._receive(upstream, wire, number, request, lines)
                except (_Broken, _Dropped) as error:
                    failure = error  # raised outside of the nursery, which would make a group of it
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure

    async def _send_body(self, upstream: _Wire, request: Request) -> None:
        with contextlib.suppress(_Broken):  # who receives finds out too
            await upstream.data(1, bytes(request.body), end=True)

    async def _receive(self, upstream: _Wire, wire: _Wire, number: int, request: Request, lines: _Lines) -> None:
        while events := await upstream.events():
            for event in events:
                match event:
                    case ResponseReceived(headers=headers):
                        request.status = int(dict(headers)[":status"])
                        dropped = "content-length" if lines.changes_length else None
                        await wire.headers(number, [header for header in headers if header[0] != dropped])
                        await lines.add(b"")  # a limit of no lines is reached now
                    case DataReceived(data=data):
                        await lines.add(data)
                    case StreamEnded():
                        await lines.end()
                        return
                    case StreamReset() | ConnectionTerminated():
                        raise _Broken
        raise _Broken


class _Dropped(Exception):
    """The rule's number of events has passed, and now it drops."""


class _Lines:
    """The answer's body on its way to the client, line by line where the rule wants it so."""

    def __init__(self, wire: _Wire, number: int, action: Action | None) -> None:
        self._wire, self._number, self._action = wire, number, action
        self._rest = b""  # the beginning of a line whose end has not come
        self._passed = 0
        self.changes_length = isinstance(action, (Rewrite, Drop, Hang))

    async def add(self, data: bytes) -> None:
        if self._action is None:
            await self._wire.data(self._number, data)
            return
        *whole, self._rest = (self._rest + data).split(b"\n")
        await self._limit()
        for line in whole:
            await self._line(line + b"\n")

    async def end(self) -> None:
        if self._rest:
            await self._line(self._rest)
        await self._wire.data(self._number, b"", end=True)

    async def _line(self, line: bytes) -> None:
        out: Iterable[bytes] = [line]
        match self._action:
            case Slow(per_event=seconds):
                await trio.sleep(seconds)
            case Rewrite(lines=rewrite):
                out = rewrite(line)
        for each in out:
            await self._wire.data(self._number, each)
        self._passed += 1
        await self._limit()

    async def _limit(self) -> None:
        match self._action:
            case Hang(events=int(events)) if self._passed >= events:
                await trio.sleep_forever()
            case Drop(events=int(events)) if self._passed >= events:
                raise _Dropped


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
