"""The Kubernetes API as a Source: the node's Pods, and the objects that they reference."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from fusevol.agent.sources.kubernetes.bundles import BundleReflector
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.credentials import Credentials, InCluster, Kubeconfig, load
from fusevol.agent.sources.kubernetes.errors import KubernetesError
from fusevol.agent.sources.kubernetes.events import EventRecorder
from fusevol.agent.sources.kubernetes.objects import ObjectReflector
from fusevol.agent.sources.kubernetes.pods import PodReflector
from fusevol.agent.sources.kubernetes.reflector import Reflector
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.agent.sources.kubernetes.tokens import TokenReflector
from fusevol.agent.sources.source import Sink, SourceProblem, SourceUnavailable
from fusevol.model.objects import CLUSTER_TRUST_BUNDLE, SERVICE_ACCOUNT_TOKEN, signer_bundles_spec
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)


class KubernetesSource:
    """A Source. `recorder` writes Events of Pods through the same connections, while `run` runs.

    `origin` says where credentials come from. `timing`, `rng`, `now` (seconds since the epoch) and `loader` are for
    tests.
    """

    def __init__(
        self,
        sink: Sink,
        node: str,
        origin: Kubeconfig | InCluster,
        *,
        timing: Timing = Timing(),  # noqa: B008  # frozen
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
        loader: Callable[[], Awaitable[Credentials]] | None = None,
    ) -> None:
        self.kind = "kubeconfig" if isinstance(origin, Kubeconfig) else "in-cluster"
        self._sink = sink
        self._timing = timing
        self._rng = rng or random.Random()
        self._now = now
        loader = loader or partial(load, origin, timing.credentials_helper)
        self._client = Client(loader, self._report, timing, self._rng)
        self._pods = PodReflector(self._client, sink, node, self._report, timing, self._rng)
        self.recorder = EventRecorder(self._client, node, timing, self._rng, now=now)
        self._reflectors: dict[ObjectRef, Reflector] = {}
        self._nursery: trio.Nursery | None = None  # of run()
        self._problems: dict[str, SourceProblem] = {}  # by topic

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._client.run)
            self._nursery = nursery
            for reflector in self._reflectors.values():
                nursery.start_soon(reflector.run)
            nursery.start_soon(self._pods.run)
            nursery.start_soon(self.recorder.run)

    def reference(self, ref: ObjectRef) -> None:
        if ref in self._reflectors:
            return
        reflector = self._reflectors[ref] = self._reflector(ref)
        if self._nursery is not None:
            self._nursery.start_soon(reflector.run)

    def dereference(self, ref: ObjectRef) -> None:
        if reflector := self._reflectors.pop(ref, None):
            reflector.stop()

    async def redeliver(self) -> None:
        await trio.lowlevel.checkpoint()
        for reflector in self._reflectors.values():
            reflector.redeliver()

    async def refresh(self) -> None:
        if self._nursery is None:
            raise SourceUnavailable("the source is only starting")
        failures: list[KubernetesError] = []

        async def attempt(refresh: Callable[[], Awaitable[None]]) -> None:
            try:
                await refresh()
            except KubernetesError as error:
                failures.append(error)

        with trio.move_on_after(self._timing.refresh) as bound:
            await attempt(self._pods.refresh)
            # the Pods that are new have been told, and what they reference with them
            async with trio.open_nursery() as nursery:
                for reflector in self._reflectors.values():
                    nursery.start_soon(attempt, reflector.refresh)
        if bound.cancelled_caught:
            why = self._problems.get("api_server") or self._problems.get("credentials")
            raise SourceUnavailable(why.message if why else f"no answer within {self._timing.refresh:g} s")
        if failures:
            raise SourceUnavailable(str(failures[0]))

    def _reflector(self, ref: ObjectRef) -> Reflector:
        if ref.kind == CLUSTER_TRUST_BUNDLE and (spec := signer_bundles_spec(ref)):
            return BundleReflector(self._client, self._sink, ref, spec, self._timing, self._rng)
        if ref.kind == SERVICE_ACCOUNT_TOKEN:
            return TokenReflector(self._client, self._sink, ref, self._timing, self._rng, self._now)
        return ObjectReflector(self._client, self._sink, ref, self._timing, self._rng)

    def _report(self, topic: str, why: str | None) -> None:
        """Tells a problem once, in the log and to the sink, and once that it is over."""
        before = self._problems.pop(topic, None)
        if why is not None:
            message = f"{TOPICS.get(topic, topic)}: {why}"
            self._problems[topic] = SourceProblem(message)
            if before is None or before.message != message:
                log.warning("source_problem", topic=topic, error=why)
        elif before is not None:
            log.info("source_recovered", topic=topic)
        if before != self._problems.get(topic):
            self._sink.problems(tuple(self._problems.values()))


TOPICS = {
    "api_server": "the API server cannot be reached",
    "credentials": "the credentials cannot be loaded",
    "pods": "the Pods cannot be read",
}
"""What a SourceProblem begins with, where its topic is not that itself."""
