"""The manifests directory as a source: what its files hold together, delivered."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
import trio

from fusevol.agent.sources.manifests.contents import Invalid
from fusevol.agent.sources.manifests.files import Files, Timing, manifest_of
from fusevol.agent.sources.manifests.node import machine_allocatable
from fusevol.agent.sources.manifests.objects import Manifest
from fusevol.agent.sources.manifests.reading import Busy, TooLarge
from fusevol.agent.sources.manifests.watching import watch_directory
from fusevol.agent.sources.source import Sink, SourceProblem, SourceUnavailable
from fusevol.model.errors import ServerGone
from fusevol.model.objects import (
    CLUSTER_TRUST_BUNDLE,
    CONFIG_MAP,
    NODE,
    SECRET,
    SERVICE_ACCOUNT_TOKEN,
    DeliveredObject,
    SecretBytes,
)
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef

Watch = Callable[[Path, Callable[[], None]], Awaitable[None]]

NOT_IN_MANIFESTS = {
    SERVICE_ACCOUNT_TOKEN: "failed to fetch token: cannot use TokenManager when kubelet is in standalone mode",
    CLUSTER_TRUST_BUNDLE: "ClusterTrustBundle projection is not supported in static kubelet mode",
}
"""What only a cluster can give, with the text of a kubelet without one (KUBELET.md 2.8)."""

_log = structlog.get_logger(__name__)


class ManifestSource:
    """Every Pod of the directory is this node's, whatever its nodeName: the directory is the node's own.

    A file that cannot be taken keeps what it held; nobody is told that all Pods are known (`pods_synced`) before every
    file has been good once, since what a broken one holds after a restart nobody knows.
    """

    kind = "manifests"

    def __init__(
        self,
        directory: Path,
        sink: Sink,
        node: str,
        *,
        allocatable: Mapping[str, str] | None = None,
        digest_key: bytes | None = None,
        timing: Timing | None = None,
        watch: Watch = watch_directory,
    ) -> None:
        """`allocatable` is that of the Node where no manifest says it (this machine's by default). `digest_key`: random
        bytes; contents are compared by digests with it."""
        self._directory = directory
        self._sink = sink
        self._node = node
        self._allocatable = machine_allocatable(Path("/")) if allocatable is None else dict(allocatable)
        self._timing = timing or Timing()
        self._watch = watch
        self._files = Files(directory, self._timing, digest_key or secrets.token_bytes(32), trio.current_time)
        self._working = trio.Lock()  # held while the directory is read and what follows is delivered
        self._wake = trio.Event()
        self._synced = False
        self._problems: tuple[SourceProblem, ...] = ()
        self._pods: dict[str, Pod] = {}  # delivered, by uid
        self._objects: dict[ObjectRef, tuple[str, Manifest]] = {}  # with the file that each comes from
        self._references: set[ObjectRef] = set()
        self._due: set[ObjectRef] = set()  # referenced and to be delivered
        self._failed: set[ObjectRef] = set()  # referenced and told to be failed: due again when its file is good

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self._directory, self._changed)
            while True:
                self._wake = trio.Event()
                async with self._working:
                    await self._work()
                waiting = self._files.unsettled or self._due
                with trio.move_on_after(self._timing.retry if waiting else self._timing.rescan):
                    await self._wake.wait()

    def reference(self, ref: ObjectRef) -> None:
        if ref not in self._references:
            self._references.add(ref)
            self._due.add(ref)
            self._changed()

    def dereference(self, ref: ObjectRef) -> None:
        self._references.discard(ref)
        self._due.discard(ref)
        self._failed.discard(ref)

    async def refresh(self) -> None:
        with trio.move_on_after(self._timing.patience):
            while True:
                async with self._working:
                    await self._work()
                if self._files.unreadable is not None:
                    raise SourceUnavailable(f"{self._directory}: {self._files.unreadable}")
                if not self._files.unsettled and not self._due:
                    return
                await trio.sleep(self._timing.retry)
        waiting = self._files.unsettled or sorted(map(str, self._due))
        raise SourceUnavailable(f"{', '.join(waiting)}: still changing after {self._timing.patience:g} s")

    async def redeliver(self) -> None:
        self._due |= self._references
        self._changed()

    def _changed(self) -> None:
        self._wake.set()

    async def _work(self) -> None:
        await self._files.scan()
        self._tell()
        # checkpoints: references come and go while objects are being delivered
        for ref in sorted(self._due):
            if ref in self._due:
                self._due.discard(ref)
                await self._deliver(ref)

    def _tell(self) -> None:
        """Delivers Pods, marks changed objects as due, tells problems."""
        problems = self._files.problems()
        pods = self._merged_pods(problems)
        for uid in self._pods.keys() - pods.keys():
            self._sink.pod_gone(uid)
        for uid, pod in pods.items():
            if self._pods.get(uid) != pod:
                self._sink.pod_changed(pod)
        self._pods = pods
        self._mark_changed(manifest_of(self._files.held()))
        self._tell_problems((*problems, *self._repeated_objects()))
        if self._files.complete and not self._synced:
            self._synced = True
            self._sink.pods_synced()

    def _merged_pods(self, problems: list[SourceProblem]) -> dict[str, Pod]:
        """By uid. Of two of the same name, or uid, the one of the first file counts."""
        pods: dict[str, Pod] = {}
        places: dict[str | tuple[str, str], str] = {}
        for file, contents in self._files.held():
            for pod, line in contents.pods:
                name = (pod.metadata.namespace, pod.metadata.name)
                first = places.get(name) or places.get(pod.metadata.uid)
                if first:
                    problems.append(SourceProblem(f"Pod {pod.ref}: the one of {first} counts", file, line))
                    continue
                places[name] = places[pod.metadata.uid] = file
                pods[pod.metadata.uid] = pod
        return pods

    def _repeated_objects(self) -> list[SourceProblem]:
        return [
            SourceProblem(f"{ref}: the one of {first} counts", file, manifest.line)
            for file, contents in self._files.held()
            for ref, manifest in contents.objects.items()
            if (first := self._objects[ref][0]) != file
        ]

    def _mark_changed(self, objects: dict[ObjectRef, tuple[str, Manifest]]) -> None:
        for ref in self._references:
            before, now = self._objects.get(ref), objects.get(ref)
            known = self._files.is_valid(now[0]) if now else self._files.complete
            mended = ref in self._failed and known
            if mended or _identity(before) != _identity(now):
                self._due.add(ref)
        self._objects = objects

    def _tell_problems(self, problems: tuple[SourceProblem, ...]) -> None:
        if problems == self._problems:
            return
        for problem in problems:
            if problem not in self._problems:
                _log.warning("invalid manifest", file=problem.file, line=problem.line, problem=problem.message)
        self._problems = problems
        self._sink.problems(problems)

    async def _deliver(self, ref: ObjectRef) -> None:
        self._failed.discard(ref)
        file, manifest = self._objects.get(ref, (None, None))
        if ref.kind in NOT_IN_MANIFESTS:
            self._sink.object_failed(ref, NOT_IN_MANIFESTS[ref.kind])
        elif ref.kind == NODE:
            await self._deliver_node(ref, manifest)
        elif file is None or manifest is None:
            self._miss(ref)
        elif manifest.values is not None:
            await self._hand_over(manifest, manifest.values)
        else:
            await self._deliver_secret(file, manifest)

    def _miss(self, ref: ObjectRef) -> None:
        if self._synced:
            self._sink.object_missing(ref)
            return
        # it may stand in a file that has been broken since before the start: say so, and empty nothing
        self._failed.add(ref)
        kind = {CONFIG_MAP: "configmap", SECRET: "secret"}.get(ref.kind, ref.kind)
        self._sink.object_failed(ref, f'{kind} "{ref.name}" not found in the manifests that could be read')

    async def _deliver_node(self, ref: ObjectRef, manifest: Manifest | None) -> None:
        if manifest is None and ref.name != self._node:
            self._sink.object_missing(ref)
            return
        found = manifest or Manifest(ref, "", "0", False, "", 0, {})
        literals = {**self._allocatable, **found.literals}
        await self._send(DeliveredObject(ref, found.uid, found.version, False, {}, literals))

    async def _deliver_secret(self, file: str, manifest: Manifest) -> None:
        """Its values are not kept: they are read again."""
        try:
            values = await self._files.values(file, manifest)
        except Busy:
            self._due.add(manifest.ref)
            return
        except (Invalid, TooLarge, OSError):
            values = None
        if values is not None:
            await self._hand_over(manifest, values)
        elif self._files.is_valid(file):
            self._due.add(manifest.ref)  # the file has just changed: the next scan reads it
        else:
            self._failed.add(manifest.ref)
            message = f'secret "{manifest.ref.name}" cannot be had while its manifest {file} is invalid'
            self._sink.object_failed(manifest.ref, message)

    async def _hand_over(self, manifest: Manifest, values: Mapping[str, bytes]) -> None:
        data = {key: SecretBytes(value) for key, value in values.items()}
        try:
            await self._send(DeliveredObject(manifest.ref, manifest.uid, manifest.version, manifest.immutable, data))
        finally:
            for value in data.values():
                value.wipe()

    async def _send(self, delivered: DeliveredObject) -> None:
        try:
            await self._sink.deliver_object(delivered)
        except ServerGone:
            if delivered.ref in self._references:
                self._due.add(delivered.ref)


def _identity(place: tuple[str, Manifest] | None) -> tuple[str, str, str, str, bool, dict[str, str]] | None:
    """What must differ for an object to be delivered again."""
    if place is None:
        return None
    file, manifest = place
    return file, manifest.uid, manifest.version, manifest.digest, manifest.immutable, dict(manifest.literals)
