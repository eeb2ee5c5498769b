"""As many connections as the streams need, opened one at a time; the place where the API server is reachable or not.

A request waits here, without a bound, while the API server cannot be reached: who must not wait sets a deadline. So
however many watches there are, only one of them knocks, with back-off.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from fusevol.agent.sources.kubernetes.errors import Disconnected
from fusevol.agent.sources.kubernetes.http2 import Connection, Header, Response, reason
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing

Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens a transport. May raise OSError (TLS' errors are), trio.BrokenResourceError, trio.TooSlowError, Disconnected."""

ATTEMPTS = 3
"""How often a request is sent at most, as long as that is harmless."""


class Pool:
    """`run` it in a nursery. `report` is told why the API server cannot be reached, and None when it can again."""

    def __init__(
        self, connect: Connect, report: Callable[[str | None], None], timing: Timing, rng: random.Random
    ) -> None:
        self._connect = connect
        self._report = report
        self._timing = timing
        self._connections: list[Connection] = []
        self._nursery: trio.Nursery | None = None
        self._opening = trio.Lock()
        self._backoff = Backoff(timing, rng)
        self._not_before = 0.0  # trio's clock; under _opening
        self.unreachable: str | None = None
        """Why there is no connection; None if there is one or none was needed yet."""

    @property
    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._connections)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def renew(self) -> None:
        """New requests take new connections; old connections end with their last stream."""
        for connection in self._connections:
            connection.retire()
        self._not_before = 0.0

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, headers: Callable[[], Sequence[Header]], body: bytes, within: float
    ) -> AsyncIterator[Response]:
        """As Connection.exchange, with a bound: Disconnected if there are no headers `within` so many seconds from the
        moment that there is a connection. Then too the request's `headers` are asked for. What was certainly not
        processed, and a GET that got no headers, is sent again."""
        attempt = 0
        while True:
            attempt += 1
            connection = await self._connection()  # no checkpoint between this and the opening of the stream
            entered = False
            deadline = trio.CancelScope(deadline=trio.current_time() + within)
            try:
                with deadline:
                    async with connection.exchange(method, target, headers(), body) as response:
                        entered = True
                        deadline.deadline = float("inf")
                        yield response
            except Disconnected as error:
                # a connection that has just gone shows only when it is used: reading may be done twice
                if entered or attempt >= ATTEMPTS or (error.processed and method != "GET"):
                    raise
                continue
            if not entered:
                raise Disconnected(f"no answer within {within:g} s")
            return

    async def _connection(self) -> Connection:
        while True:
            for connection in self._connections:
                if connection.room > 0:
                    return connection
            async with self._opening:
                # checkpoint: who held the lock before us has probably opened one with room for us too
                if not any(connection.room > 0 for connection in self._connections):
                    await self._open()

    async def _open(self) -> None:
        """One attempt, not before the back-off allows it."""
        await trio.sleep_until(self._not_before)
        assert self._nursery is not None, "the pool is not running"
        try:
            transport = await self._connect()
            with trio.fail_after(self._timing.connect):
                await self._nursery.start(self._serve, Connection(transport, self._timing))
        except trio.TooSlowError:
            self._failed(f"no connection within {self._timing.connect:g} s")
        except (OSError, trio.BrokenResourceError, Disconnected) as error:
            self._failed(reason(error))
        else:
            self._backoff.reset()
            self._not_before = 0.0
            if self.unreachable is not None:
                self.unreachable = None
                self._report(None)

    def _failed(self, message: str) -> None:
        self._not_before = trio.current_time() + self._backoff.pause()
        if message != self.unreachable:
            self.unreachable = message
            self._report(message)

    async def _serve(self, connection: Connection, *, task_status: trio.TaskStatus[None]) -> None:
        self._connections.append(connection)
        try:
            await connection.run(task_status=task_status)
        finally:
            self._connections.remove(connection)
