"""The agent's socket: answers `fusevol wait` (JSON lines, see protocol/instance.py)."""

from __future__ import annotations

import json
import socket
from typing import Any

import structlog
import trio

from fusevol.agent.barrier import Barrier, parse_goal
from fusevol.agent.telemetry.status import StatusReporter

log = structlog.get_logger()

MAX_REQUEST = 65536
"""Bytes."""

MAX_TIMEOUT = 86400.0
"""Seconds."""


class Service:
    """Serves any number of clients at once."""

    def __init__(self, barrier: Barrier, reporter: StatusReporter) -> None:
        self._barrier = barrier
        self._reporter = reporter

    async def run(self, listener: socket.socket) -> None:
        """Until cancelled. A client that misbehaves loses its own connection only."""
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(
                self._serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))], handler_nursery=nursery
            )

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                request = await _read_line(stream)
                if request:
                    await stream.send_all(json.dumps(await self._answer(request)).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait for the answer
        except Exception:
            log.exception("a client's request failed")

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if request["op"] != "wait":
                raise ValueError(f"unknown op {request['op']!r}")
            goal, timeout = parse_goal(str(request["for"])), float(request["timeout"])
            if not 0 <= timeout <= MAX_TIMEOUT:
                raise ValueError(f"a time-out of {timeout} s")
        except (ValueError, KeyError, TypeError) as error:
            return {"ok": False, "missing": [f"not a request: {error}"]}
        missing = await self._barrier.wait(goal, timeout)
        await self._reporter.flush()
        return {"ok": not missing, "missing": missing}


async def _read_line(stream: trio.SocketStream) -> bytes:
    buffer = bytearray()
    with trio.move_on_after(10):
        while not buffer.endswith(b"\n") and len(buffer) < MAX_REQUEST:
            chunk = await stream.receive_some(4096)
            if not chunk:
                return b""
            buffer += chunk
        return bytes(buffer)
    return b""
