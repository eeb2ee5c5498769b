"""A sink that remembers what a source delivered, and directories of manifests for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from fusevol.agent.sources.manifests.files import Timing
from fusevol.agent.sources.manifests.source import ManifestSource
from fusevol.agent.sources.source import SourceProblem
from fusevol.model.errors import ServerGone
from fusevol.model.objects import CONFIG_MAP, SECRET, DeliveredObject
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef

ALLOCATABLE = {"cpu": "4", "memory": "1024Ki", "ephemeral-storage": "4096"}
CONFIG = ObjectRef(CONFIG_MAP, "default", "config")
CREDENTIALS = ObjectRef(SECRET, "default", "credentials")

QUICK = Timing(still=0.05, gone=0.1, retry=0.01, patience=1.0, rescan=0.2)


class RecordingSink:
    """What has been delivered, newest state; `calls` has the order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pods: dict[str, Pod] = {}
        self.objects: dict[ObjectRef, dict[str, bytes]] = {}
        self.delivered: dict[ObjectRef, DeliveredObject] = {}
        self.missing: set[ObjectRef] = set()
        self.failed: dict[ObjectRef, str] = {}
        self.told: tuple[SourceProblem, ...] = ()
        self.synced = 0
        self.server_gone = False

    def pod_changed(self, pod: Pod) -> None:
        self.calls.append(f"pod {pod.ref}")
        self.pods[pod.metadata.uid] = pod

    def pod_gone(self, uid: str) -> None:
        self.calls.append(f"gone {self.pods[uid].ref}")
        del self.pods[uid]

    def pods_synced(self) -> None:
        self.calls.append("synced")
        self.synced += 1

    async def deliver_object(self, delivered: DeliveredObject) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(f"object {delivered.ref}")
        if self.server_gone:
            raise ServerGone
        self.delivered[delivered.ref] = delivered
        self.objects[delivered.ref] = {key: bytes(value.reveal()) for key, value in delivered.data.items()}
        self.missing.discard(delivered.ref)
        self.failed.pop(delivered.ref, None)

    def object_missing(self, ref: ObjectRef) -> None:
        self.calls.append(f"missing {ref}")
        self.missing.add(ref)

    def object_failed(self, ref: ObjectRef, message: str) -> None:
        self.calls.append(f"failed {ref}")
        self.failed[ref] = message

    def problems(self, problems: tuple[SourceProblem, ...]) -> None:
        self.told = problems

    @property
    def names(self) -> list[str]:
        return sorted(str(pod.ref) for pod in self.pods.values())

    @property
    def messages(self) -> list[tuple[str | None, int | None, str]]:
        return [(problem.file, problem.line, problem.message) for problem in self.told]


def source_of(directory: Path, sink: RecordingSink, timing: Timing = QUICK) -> ManifestSource:
    return ManifestSource(directory, sink, "node1", allocatable=ALLOCATABLE, digest_key=b"k", timing=timing)


@asynccontextmanager
async def running(source: ManifestSource) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not condition():  # what it waits for may be the kernel's work
            await trio.sleep(0.005)


def pod(name: str = "web", namespace: str | None = None, **metadata: Any) -> dict[str, Any]:
    if namespace:
        metadata["namespace"] = namespace
    mount = {"name": "v", "mountPath": "/v"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {
            "containers": [{"name": "c", "volumeMounts": [mount]}],
            "volumes": [{"name": "v", "configMap": {"name": "config"}}],
        },
    }


def config_map(data: dict[str, str], name: str = "config", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data, **fields}


def secret(data: dict[str, str], name: str = "credentials", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data, **fields}


def text(*documents: dict[str, Any]) -> str:
    return "\n---\n".join(json.dumps(document, ensure_ascii=False, indent=1) for document in documents)


def write(path: Path, *documents: dict[str, Any]) -> None:
    path.write_text(text(*documents))
