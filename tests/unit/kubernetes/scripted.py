"""A Client without an API server: tests say what each request is answered with, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.errors import ApiError, KubernetesError

Object = dict[str, Any]


def not_found() -> ApiError:
    return ApiError(404, "NotFound", 'configmaps "c" not found')


def forbidden() -> ApiError:
    return ApiError(403, "Forbidden", "no relationship found between node 'n' and this object")


def expired() -> ApiError:
    return ApiError(410, "Expired", "too old resource version")


def config_map(version: int, value: str = "v", uid: str = "u") -> Object:
    return {"metadata": {"name": "c", "uid": uid, "resourceVersion": str(version)}, "data": {"k": value}}


def pod(name: str, version: int, phase: str = "Running") -> Object:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "creationTimestamp": None}, "spec": {"volumes": None}, "status": {"phase": phase}}


class OpenWatch:
    """A watch that the code under test has opened; the test feeds it."""

    def __init__(self, path: str, query: Mapping[str, str]) -> None:
        self.path = path
        self.query = dict(query)
        self._send, self._receive = trio.open_memory_channel[Any](1000)

    def event(self, kind: str, obj: Object) -> None:
        self._send.send_nowait(msgspec.json.encode({"type": kind, "object": obj}))

    def bookmark(self, version: int) -> None:
        self.event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})

    def fail(self, error: KubernetesError) -> None:
        self._send.send_nowait(error)

    def end(self) -> None:
        self._send.close()

    def __aiter__(self) -> OpenWatch:
        return self

    async def __anext__(self) -> schema.Event:
        try:
            line = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(line, Exception):
            raise line
        return schema.event(line)


@dataclass
class ScriptedClient:
    """`gets` and `posts` are taken in order, the last one again and again: an object, or an exception."""

    gets: list[Object | KubernetesError] = field(default_factory=list)
    posts: list[Object | KubernetesError] = field(default_factory=list)
    refused_watches: list[KubernetesError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    watches: list[OpenWatch] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    slowness: float = 0.0  # seconds between a GET's snapshot and its answer

    async def get(self, path: str, decode: Callable[[bytes], Any], query: Mapping[str, str] | None = None) -> Any:
        self._note(f"GET {path}")
        return await self._answer(self.gets, decode)

    async def post(self, path: str, body: Any, decode: Callable[[bytes], Any]) -> Any:
        self._note(f"POST {path}")
        self.bodies.append(body)
        return await self._answer(self.posts, decode)

    async def patch(self, path: str, body: Any, decode: Callable[[bytes], Any]) -> Any:
        self._note(f"PATCH {path}")
        self.bodies.append(body)
        return await self._answer(self.posts, decode)

    @asynccontextmanager
    async def watch(self, path: str, query: Mapping[str, str]) -> Any:
        self._note(f"WATCH {path}")
        await trio.lowlevel.checkpoint()
        if self.refused_watches:
            raise self.refused_watches.pop(0)
        self.watches.append(OpenWatch(path, query))
        yield self.watches[-1]

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.times.append(trio.current_time())

    async def _answer(self, script: list[Object | KubernetesError], decode: Callable[[bytes], Any]) -> Any:
        answer = script.pop(0) if len(script) > 1 else script[0]
        await trio.sleep(self.slowness)
        await trio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        return decode(msgspec.json.encode(answer))
