"""The Pods of the node: a list and a watch with `spec.nodeName=<node>`, the one selector that a node may use
(KUBELET.md 12.12).

A Pod is gone when the watch says DELETED or when a list, which is always consistent, has it no longer; so a list after
410 removes what is gone and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, KubernetesError, Undecodable
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing
from fusevol.agent.sources.source import Sink
from fusevol.model.pod import Pod

log = structlog.get_logger(__name__)

PODS = "/api/v1/pods"

PODS_TOPIC = "pods"


def strange(uid: str) -> str:
    """The topic of a Pod that is not understood."""
    return f"the Pod with the uid {uid} cannot be understood" if uid else "a Pod without a uid cannot be understood"


class PodReflector:
    """`report` is told, by topic, what is wrong, and None when it is no more: the topic `pods` while they cannot be
    read, and one of its own for each Pod that is not understood."""

    def __init__(
        self,
        client: Client,
        sink: Sink,
        node: str,
        report: Callable[[str, str | None], None],
        timing: Timing,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._sink = sink
        self._selector = {"fieldSelector": f"spec.nodeName={node}"}
        self._report = report
        self._timing = timing
        self._backoff = Backoff(timing, rng)
        self._lock = trio.Lock()  # held from the asking (list) or taking (event) of a state to its delivery
        self._versions: dict[str, str] = {}  # resourceVersion told, by uid. Under _lock
        self._listed = ""  # the resourceVersion of the last list: what a watch says up to it is old. Under _lock
        self._synced = False
        self._strange: set[str] = set()  # uids of the Pods of the last list that were not understood. Under _lock
        self._version: str | None = None  # where the watch goes on; None: with a list. Of run()'s task
        self._fruitful = False  # the current watch has brought something

    async def run(self) -> None:
        while True:
            await self._attempt()

    async def refresh(self) -> None:
        """A consistent list; returns when it has been told. Raises KubernetesError."""
        async with self._lock:
            await self._list()

    async def _attempt(self) -> None:
        """One cycle of list and watch, and the pause behind it where it failed."""
        resumed = self._version is not None
        began = trio.current_time()
        self._fruitful = False
        try:
            if self._version is None:
                async with self._lock:
                    self._version = await self._list()
            await self._watch(self._version)
        except Disconnected as error:
            log.debug("pod_watch_lost", error=str(error))
            if self._version is None:
                self._report(PODS_TOPIC, str(error))  # a list; a watch that is lost is resumed
        except KubernetesError as error:
            self._version = None
            if not (isinstance(error, ApiError) and error.gone and (resumed or self._fruitful)):
                self._report(PODS_TOPIC, str(error))
                await self._pause(error)
            return
        if self._fruitful or trio.current_time() - began >= self._timing.watch_settled:
            self._backoff.reset()
        else:
            await self._pause(None)

    async def _list(self) -> str:
        """Under _lock."""
        found = await self._client.get(PODS, schema.pod_list, self._selector)
        self._listed = found.version
        uids = {pod.metadata.uid for pod in found.pods}
        for pod in found.pods:
            self._changed(pod)
        if "" not in uids:  # else that may be any of those that are missing
            for uid in self._versions.keys() - uids:
                self._gone(uid)
        self._strange = {pod.metadata.uid for pod in found.pods if isinstance(pod, schema.Misunderstood)}
        self._sync()
        return found.version

    def _sync(self) -> None:
        """Tells it once all Pods of the first list were understood or have gone: else the volumes of one that was not
        would be torn down as nobody's."""
        if not (self._synced or self._strange):
            self._synced = True
            self._sink.pods_synced()

    async def _watch(self, version: str) -> None:
        async with self._client.watch(PODS, {**self._selector, "resourceVersion": version}) as watch:
            self._report(PODS_TOPIC, None)
            async for event in watch:
                async with self._lock:
                    # checkpoint: refresh() may have listed meanwhile, _listed is read below
                    self._version = self._take(event)
                self._fruitful = True

    def _take(self, event: schema.Event) -> str:
        """Tells what the event says; returns its resourceVersion. Under _lock. Raises Undecodable."""
        meta = schema.identified(event.object).metadata
        if not meta.resource_version:
            raise Undecodable("the API server's answer: an event without a resourceVersion")
        if schema.older(meta.resource_version, self._listed):
            return meta.resource_version
        if event.type in ("ADDED", "MODIFIED"):
            self._changed(schema.pod(event.object))
        elif event.type == "DELETED":
            self._gone(meta.uid)
        return meta.resource_version

    def _changed(self, pod: Pod | schema.Misunderstood) -> None:
        meta = pod.metadata
        if self._versions.get(meta.uid) == meta.resource_version:
            return
        self._versions[meta.uid] = meta.resource_version
        if isinstance(pod, schema.Misunderstood):  # what was told of it before stays
            self._report(strange(meta.uid), f"{meta.namespace}/{meta.name}: {pod.message}" if meta.uid else pod.message)
        else:
            self._report(strange(meta.uid), None)
            self._sink.pod_changed(pod)
            if meta.uid in self._strange:
                self._strange.discard(meta.uid)
                self._sync()

    def _gone(self, uid: str) -> None:
        if self._versions.pop(uid, None) is None:
            return
        self._report(strange(uid), None)
        if uid:
            self._sink.pod_gone(uid)
        if uid in self._strange:
            self._strange.discard(uid)
            self._sync()

    async def _pause(self, error: KubernetesError | None) -> None:
        await trio.sleep(self._backoff.pause(error.retry_after if isinstance(error, ApiError) else None))
