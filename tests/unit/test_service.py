"""The agent's socket: a client that misbehaves harms nobody but itself."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.agent.barrier import Goal
from fusevol.agent.service import Service
from fusevol.protocol import instance


class NotedBarrier:
    def __init__(self) -> None:
        self.asked: list[tuple[Goal, float]] = []

    async def wait(self, goal: Goal, seconds: float) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append((goal, seconds))
        if goal.pod:
            raise RuntimeError("a fault of ours")
        return ["something"] if goal.object else []


class NotedReporter:
    flushed = 0

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushed += 1


@asynccontextmanager
async def service(tmp_path: Path) -> AsyncIterator[tuple[Path, NotedBarrier, NotedReporter]]:
    barrier, reporter = NotedBarrier(), NotedReporter()
    path = tmp_path / "agent.sock"
    async with trio.open_nursery() as nursery:
        served = Service(barrier, reporter)  # type: ignore[arg-type]
        nursery.start_soon(served.run, instance.listen(path))
        yield path, barrier, reporter
        nursery.cancel_scope.cancel()


async def ask(path: Path, line: bytes) -> Any:
    client = socket.socket(socket.AF_UNIX)
    instance.connect(client, path)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
        await stream.send_all(line + b"\n")
        answer = b""
        while chunk := await stream.receive_some(4096):
            answer += chunk
    return json.loads(answer) if answer else None


async def test_answers_when_status_has_been_told(tmp_path: Path) -> None:
    async with service(tmp_path) as (path, barrier, reporter):
        assert await ask(path, b'{"op":"wait","for":"synced","timeout":3}') == {"ok": True, "missing": []}
        assert barrier.asked == [(Goal(), 3.0)]
        assert reporter.flushed == 1
        missing = await ask(path, b'{"op":"wait","for":"object=Secret/a/b","timeout":0}')
        assert missing == {"ok": False, "missing": ["something"]}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"5",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"op":"dance"}',
        b'{"op":"wait"}',
        b'{"op":"wait","for":5,"timeout":1}',
        b'{"op":"wait","for":["synced"],"timeout":1}',
        b'{"op":"wait","for":"synced","timeout":-1}',
        b'{"op":"wait","for":"synced","timeout":"soon"}',
        b'{"op":"wait","for":"synced","timeout":NaN}',
        b'{"op":"wait","for":"synced","timeout":1e300}',
        b'{"op":"wait","for":"synced","timeout":null}',
        b'{"op":"wait","for":"pod/a/b","timeout":1}',
    ],
)
async def test_what_is_no_request_costs_its_connection_only(tmp_path: Path, line: bytes) -> None:
    async with service(tmp_path) as (path, _, _):
        answer = await ask(path, line)
        assert answer is None or answer["ok"] is False
        assert await ask(path, b'{"op":"wait","for":"synced","timeout":3}') == {"ok": True, "missing": []}
