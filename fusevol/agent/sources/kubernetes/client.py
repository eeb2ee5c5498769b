"""The verbs of the API, as few as are used: get, watch, post, patch.

Every answer but success is an exception. 401 has the credentials looked at once; 429 and 503 with a Retry-After are
waited for and asked again a few times. All waits are bounded, but for the one for a connection (pool.py).
"""

from __future__ import annotations

import itertools
import random
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import trio

from fusevol import __version__
from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.credentials import Credentials, CredentialStore
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, Undecodable
from fusevol.agent.sources.kubernetes.http2 import Header, Response
from fusevol.agent.sources.kubernetes.pool import Pool
from fusevol.agent.sources.kubernetes.timing import Timing

T = TypeVar("T")

JSON = "application/json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"

RETRIES = 4
"""How often a request is sent again because of Retry-After."""

MAX_BODY = 64 << 20
"""Bytes of one answer, or of one line of a watch: far more than the Pods of a node."""


class Watch:
    """Events of an open watch, in order: `async for event in watch`. It ends when the API server ends it.

    Raises Disconnected, also when nothing came for `idle` seconds; ApiError for an ERROR event; Undecodable.
    """

    def __init__(self, response: Response, idle: float, deadline: float) -> None:
        self._response = response
        self._idle = idle
        self._deadline = deadline  # trio's clock: when the API server should have ended it long ago
        self._buffer = bytearray()  # received, not yet decoded
        self._searched = 0  # bytes of it without a newline

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> schema.Event:
        line = await self._line()
        event = schema.event(line)
        if event.type == "ERROR":
            raise schema.status(event.object).error(500)
        return event

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > MAX_BODY:
                raise Undecodable("a line of a watch without an end")
            with trio.move_on_at(min(trio.current_time() + self._idle, self._deadline)):
                if not (chunk := await self._response.receive()):
                    raise StopAsyncIteration
                self._buffer += chunk
                continue
            raise Disconnected("the watch was silent for too long")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


class Client:
    """`run` it in a nursery (it runs its pool and its credentials), call it from any task.

    `report` is told why the API server cannot be reached or why there are no credentials (`topic` tells which), and
    None when that is over.
    """

    def __init__(
        self,
        loader: Callable[[], Awaitable[Credentials]],
        report: Callable[[str, str | None], None],
        timing: Timing,
        rng: random.Random,
    ) -> None:
        self._timing = timing
        self._rng = rng
        self.pool = Pool(self._connect, lambda why: report("api_server", why), timing, rng)
        self.credentials = CredentialStore(loader, self.pool.renew, lambda why: report("credentials", why), timing, rng)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.credentials.run)
            await nursery.start(self.pool.run)
            task_status.started()

    async def get(self, path: str, decode: Callable[[schema.Bytes], T], query: Mapping[str, str] | None = None) -> T:
        """Without a resourceVersion in the query it is consistent (quorum). Raises KubernetesError."""
        return await self._call("GET", path, decode, query=query)

    async def post(self, path: str, body: object, decode: Callable[[schema.Bytes], T]) -> T:
        """Raises KubernetesError."""
        return await self._call("POST", path, decode, body=msgspec.json.encode(body))

    async def patch(self, path: str, body: object, decode: Callable[[schema.Bytes], T]) -> T:
        """A strategic merge patch. Raises KubernetesError."""
        body_bytes = msgspec.json.encode(body)
        return await self._call("PATCH", path, decode, body=body_bytes, content_type=STRATEGIC_MERGE)

    @asynccontextmanager
    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Watch]:
        """A watch of a random length, with bookmarks. Yields when the API server took it. Raises KubernetesError."""
        seconds = int(self._timing.watch_shortest * self._rng.uniform(1.0, 2.0))
        whole = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(seconds, 1))}
        async with self._answered("GET", path, whole, b"", JSON) as response:
            deadline = trio.current_time() + seconds + self._timing.request
            yield Watch(response, self._timing.watch_idle, deadline)

    async def _call(
        self,
        method: str,
        path: str,
        decode: Callable[[schema.Bytes], T],
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = JSON,
    ) -> T:
        async with self._answered(method, path, query, body, content_type) as response:
            answer = await self._body(response)
            try:
                return decode(answer)
            finally:
                answer[:] = bytes(len(answer))  # what was decoded holds copies

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, query: Mapping[str, str] | None, body: bytes, content_type: str
    ) -> AsyncIterator[Response]:
        """Yields a successful answer."""
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        used: Credentials | None = None
        replaced = False

        def headers() -> Sequence[Header]:
            nonlocal used
            used = self.credentials.value
            assert used is not None, "a connection without credentials"
            return self._headers(used, content_type if body else None)

        for attempt in itertools.count():
            async with self.pool.exchange(method, target, headers, body, self._timing.request) as response:
                if response.status < 400:
                    yield response
                    return
                error = api_error(response, await self._body(response))
            if error.code == 401 and not replaced and used is not None:
                replaced = True
                await self.credentials.replace(used)
            elif error.retry_after is not None and attempt < RETRIES:
                await trio.sleep(min(error.retry_after, self._timing.retry_after_cap) * self._rng.uniform(1.0, 1.2))
            else:
                raise error

    def _headers(self, credentials: Credentials, content_type: str | None) -> list[Header]:
        headers: list[Header] = [
            (":scheme", "https"),
            (":authority", f"{credentials.authority}"),
            ("accept", JSON),
            ("user-agent", f"fusevol/{__version__}"),
        ]
        if content_type is not None:
            headers.append(("content-type", content_type))
        if credentials.authorization is not None:
            headers.append(("authorization", bytes(credentials.authorization.reveal())))
        return headers

    async def _body(self, response: Response) -> bytearray:
        body = bytearray()
        with trio.move_on_after(self._timing.request):
            while chunk := await response.receive():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Undecodable(f"an answer of more than {MAX_BODY} bytes")
            return body
        raise Disconnected(f"no complete answer within {self._timing.request:g} s")

    async def _connect(self) -> trio.abc.Stream:
        credentials = await self.credentials.current()
        return await credentials.connect(self._timing.connect)


def api_error(response: Response, body: bytearray) -> ApiError:
    """What a refusal says: its Status object, or its text where it is none."""
    retry_after = response.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdecimal() else None
    try:
        status = schema.status(body)
    except Undecodable:
        status = schema.Status(message=body[:500].decode(errors="replace").strip())
    return status.error(response.status, seconds)
