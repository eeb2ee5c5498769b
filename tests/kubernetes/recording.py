"""A Sink that remembers what it was told, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from fusevol.agent.sources.kubernetes.source import KubernetesSource
from fusevol.agent.sources.source import SourceProblem
from fusevol.model.objects import DeliveredObject
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef


@dataclass(frozen=True, slots=True)
class Delivery:
    """A DeliveredObject with copies of its values, and when it came (time.perf_counter)."""

    uid: str
    version: str
    immutable: bool
    data: dict[str, bytes]
    literals: dict[str, str]
    at: float


@dataclass(eq=False)
class RecordingSink:
    pods: dict[str, Pod] = field(default_factory=dict)
    pod_changes: list[str] = field(default_factory=list)
    pods_gone: list[str] = field(default_factory=list)
    synced: int = 0
    delivered: dict[ObjectRef, list[Delivery]] = field(default_factory=dict)
    carriers: list[DeliveredObject] = field(default_factory=list)  # as they came: to see that they were wiped
    missing: list[ObjectRef] = field(default_factory=list)
    failed: list[tuple[ObjectRef, str]] = field(default_factory=list)
    told: tuple[SourceProblem, ...] = ()
    all_problems: list[str] = field(default_factory=list)
    on_pod: Callable[[Pod], None] = lambda pod: None
    slowness: float = 0.0  # seconds that a delivery takes
    faults: list[Exception] = field(default_factory=list)  # raised by the next deliveries

    def pod_changed(self, pod: Pod) -> None:
        self.pods[pod.metadata.uid] = pod
        self.pod_changes.append(pod.metadata.name)
        self.on_pod(pod)

    def pod_gone(self, uid: str) -> None:
        gone = self.pods.pop(uid, None)  # None: one that was never understood
        self.pods_gone.append(gone.metadata.name if gone else uid)

    def pods_synced(self) -> None:
        self.synced += 1

    async def deliver_object(self, delivered: DeliveredObject) -> None:
        await trio.sleep(self.slowness)
        if self.faults:
            raise self.faults.pop(0)
        data = {key: bytes(value.reveal()) for key, value in delivered.data.items()}
        self.carriers.append(delivered)
        self.delivered.setdefault(delivered.ref, []).append(
            Delivery(
                delivered.uid,
                delivered.version,
                delivered.immutable,
                data,
                dict(delivered.literals),
                time.perf_counter(),
            )
        )

    def object_missing(self, ref: ObjectRef) -> None:
        self.missing.append(ref)

    def object_failed(self, ref: ObjectRef, message: str) -> None:
        self.failed.append((ref, message))

    def problems(self, problems: tuple[SourceProblem, ...]) -> None:
        self.told = problems
        self.all_problems += [problem.message for problem in problems]

    # -- for the tests

    def last(self, ref: ObjectRef) -> dict[str, bytes] | None:
        return self.delivered[ref][-1].data if ref in self.delivered else None

    def versions(self, ref: ObjectRef) -> list[str]:
        return [delivery.version for delivery in self.delivered.get(ref, [])]


async def until(condition: Callable[[], Any], within: float = 10.0) -> None:
    """Waits until `condition` holds; AssertionError after `within` seconds."""
    deadline = trio.current_time() + within
    while not condition():
        assert trio.current_time() < deadline, f"not within {within} s"
        await trio.sleep(0.005)


@asynccontextmanager
async def running(source: KubernetesSource) -> Any:
    """The source runs inside of the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        yield source
        nursery.cancel_scope.cancel()
