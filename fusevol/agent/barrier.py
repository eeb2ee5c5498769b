"""`fusevol wait`: everything read anew, then what is not yet as it should be, until nothing is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import trio

from fusevol.agent.sources.source import SourceProblem, SourceUnavailable
from fusevol.agent.volumemanager.actual_state import ActualVolume, Phase
from fusevol.agent.volumemanager.desired_state import DesiredVolume
from fusevol.agent.volumemanager.manager import VolumeManager
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef

RETRY = 0.5
"""Seconds between attempts to read a source that is not available."""


class Goal(NamedTuple):
    """What is waited for: everything, one Pod's volumes, or those that project an object (at least in `version`)."""

    pod: tuple[str, str] | None = None
    object: ObjectRef | None = None
    version: str | None = None


KINDS = {"configmap": "ConfigMap", "secret": "Secret"}


def parse_goal(text: str) -> Goal:
    """`synced`, `pod/NAMESPACE/NAME` or `object=KIND/NAMESPACE/NAME[@RESOURCEVERSION]`. Raises ValueError."""
    if text == "synced":
        return Goal()
    if text.startswith("pod/") and text.count("/") == 2:
        _, namespace, name = text.split("/")
        if namespace and name:
            return Goal(pod=(namespace, name))
    if text.startswith("object="):
        path, _, version = text.removeprefix("object=").partition("@")
        kind, *rest = path.split("/")
        if len(rest) == 2 and all(rest) and kind.lower() in KINDS and bool(version) == ("@" in text):
            return Goal(object=ObjectRef(KINDS[kind.lower()], *rest), version=version or None)
    raise ValueError(
        f"{text!r} is none of synced, pod/NAMESPACE/NAME, object=KIND/NAMESPACE/NAME[@RESOURCEVERSION]"
        " (KIND: ConfigMap or Secret)"
    )


class Barrier:
    """Waits for goals. `at_its_place` tells whether our mount stands where users look for it; it raises
    OSError where that cannot be known."""

    def __init__(self, manager: VolumeManager, at_its_place: Callable[[], bool]) -> None:
        self._manager = manager
        self._at_its_place = at_its_place

    async def wait(self, goal: Goal, seconds: float) -> list[str]:
        """What is missing after at most `seconds`; nothing on success."""
        refreshed: str | None = "the source has not been read"
        with trio.move_on_after(seconds):
            while refreshed is not None:
                refreshed = await self._refresh()
            while list(self.missing(goal)):
                await self._manager.news()
        return ([refreshed] if refreshed else []) + list(self.missing(goal))

    async def _refresh(self) -> str | None:
        assert self._manager.source is not None
        try:
            await self._manager.source.refresh()
        except SourceUnavailable as error:
            await trio.sleep(RETRY)
            return str(error)
        return None

    def missing(self, goal: Goal) -> Iterator[str]:
        """What is not yet as the goal has it, one line each."""
        manager = self._manager
        try:
            if not self._at_its_place():
                yield "the mount is not at its place: somebody unmounted it, or mounted something over it"
        except OSError as error:
            yield f"whether the mount is at its place cannot be told: {error.strerror}"
        if goal == Goal():
            if not manager.synced:
                yield "the source has not synced yet"
            yield from (_problem(problem) for problem in manager.current_problems)
            yield from self._leftovers()
        volumes = [volume for volume in manager.desired.volumes.values() if _concerns(goal, volume)]
        if goal.pod and not any(_named(pod.metadata.namespace, pod.metadata.name, goal) for pod in self._live_pods()):
            yield f"pod {'/'.join(goal.pod)}: no such Pod on this node"
        if goal.object and not volumes:
            yield f"{goal.object}: no volume projects it"
        for volume in sorted(volumes, key=lambda volume: volume.ref):
            if why := self._why_not(volume, goal):
                yield f"pod {volume.pod.ref}: volume {volume.volume.name}: {why}"

    def _live_pods(self) -> Iterator[Pod]:
        return (pod for pod in self._manager.desired.pods.values() if not pod.terminal)

    def _leftovers(self) -> Iterator[str]:
        """What should be gone and can go."""
        for volume in self._manager.actual:
            if volume.ref not in self._manager.desired.volumes and volume.held is None:
                yield f"volume {volume.ref}: is being torn down"
        if not self._manager.inventory_settled():
            yield "the Pods' directories are being put right"

    def _why_not(self, desired: DesiredVolume, goal: Goal) -> str | None:
        actual = self._manager.actual.get(desired.ref)
        if actual is None or actual.phase is not Phase.MOUNTED:
            return (actual.error if actual else None) or f"{actual.phase if actual else Phase.PENDING}"
        if desired.frozen:
            return None
        if actual.error:
            return actual.error
        if self._manager.reconciler.working(desired.ref):
            return "is being updated"
        return self._outdated(desired, actual, goal)

    def _outdated(self, desired: DesiredVolume, actual: ActualVolume, goal: Goal) -> str | None:
        shown = {version.ref: version.version for version in (actual.meta.objects if actual.meta else ())}
        for newest in self._manager.objects.versions(desired.objects):
            if shown.get(newest.ref) != newest.version:
                return f"{newest.ref} is shown at {shown.get(newest.ref)}, not yet at {newest.version}"
        if goal.object and goal.version and not _reached(shown.get(goal.object), goal.version):
            return f"{goal.object} is shown at {shown.get(goal.object)}, not at {goal.version}"
        return None


def _concerns(goal: Goal, volume: DesiredVolume) -> bool:
    if goal.pod:
        return _named(volume.pod.metadata.namespace, volume.pod.metadata.name, goal)
    return goal.object is None or goal.object in volume.objects


def _named(namespace: str, name: str, goal: Goal) -> bool:
    return (namespace, name) == goal.pod


def _problem(problem: SourceProblem) -> str:
    where = f"{problem.file}:{problem.line}: " if problem.line else f"{problem.file}: " if problem.file else ""
    return where + problem.message


def _reached(shown: str | None, wanted: str) -> bool:
    """resourceVersions of one object are numbers that grow (KEP-5504); others are compared for equality."""
    if shown is not None and shown.isdecimal() and wanted.isdecimal():
        return int(shown) >= int(wanted)
    return shown == wanted
