"""What is done to one volume at a time: set up (first or again) and tear down. Deciding when is the reconciler's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from fusevol.agent.plugins.payload import PathConflict, WriteFailed
from fusevol.agent.publisher.publisher import Publisher
from fusevol.agent.volumemanager.actual_state import ActualState, ActualVolume
from fusevol.agent.volumemanager.backing import PLUGIN as EMPTY_DIR
from fusevol.agent.volumemanager.backing import StateDirectory
from fusevol.agent.volumemanager.desired_state import DesiredState, DesiredVolume
from fusevol.agent.volumemanager.objects import ObjectTable
from fusevol.model.errors import VolumeError
from fusevol.model.refs import VolumeRef
from fusevol.model.tree import EmptyDir, Tree
from fusevol.model.volume import ObjectVersion, VolumeMeta
from fusevol.protocol import messages
from fusevol.system.timestamps import rfc3339


class Held(Exception):
    """A volume cannot be torn down yet: mounts stand on it; str() names one."""


class Standing(Protocol):
    """Knows what is mounted out of our mount."""

    async def holder(self, ref: VolumeRef) -> str | None:
        """A mount that stands at, above (from the Pod's directory on) or inside the volume, or None."""


class Operations:
    """Each is one operation. They raise VolumeError, ObjectNotKnown, Held, RequestFailed, ServerGone, OSError."""

    def __init__(
        self,
        *,
        node: str,
        mountpoint: str,
        desired: DesiredState,
        actual: ActualState,
        objects: ObjectTable,
        publisher: Publisher,
        state: StateDirectory,
        standing: Standing,
        now: Callable[[], datetime],
    ) -> None:
        self._node = node
        self._mountpoint = mountpoint
        self._desired = desired
        self._actual = actual
        self._objects = objects
        self._publisher = publisher
        self._state = state
        self._standing = standing
        self._now = now

    async def set_up(self, ref: VolumeRef) -> None:
        """The volume as desired now becomes the volume as served; nothing is written where nothing changed."""
        desired = self._desired.volumes.get(ref)
        if desired is None:
            return  # its Pod went between the plan and now
        actual = self._actual.ensure(ref)
        if actual.meta is not None and (desired.frozen or ref.plugin == EMPTY_DIR):
            await self._finish(actual, actual.meta)
            self._actual.published(ref, actual.digest, actual.meta)
            return
        try:
            plan = desired.plugin.plan(desired.pod, desired.volume, self._objects.view(), self._node)
        except VolumeError as error:
            if actual.meta is not None:
                await self._finish(actual, actual.meta)  # no later update may come to do it
            if not isinstance(error, WriteFailed):
                raise
            # kubelet fails while it writes: its plugin directory is there, and its text has the volume's path
            await self._publisher.send(messages.AddPlugin(ref.pod_uid, ref.plugin))
            if isinstance(error, PathConflict):
                raise VolumeError(error.located(self._mountpoint, "..TS")) from None
            raise
        if isinstance(plan, EmptyDir):
            await self._set_up_empty_dir(desired, plan)
        else:
            await self._set_up_tree(desired, actual, plan)

    async def _set_up_tree(self, desired: DesiredVolume, actual: ActualVolume, tree: Tree) -> None:
        digest = tree.digest(self._objects.key)
        known = actual.meta
        objects = self._objects.versions(desired.objects)
        if known is None:
            meta = self._meta(desired, 1, objects)
            await self._publisher.publish(desired.ref, tree, digest, meta)
        elif actual.digest != digest:
            meta = self._meta(desired, known.generation + 1, objects)
            self._actual.unsettled(desired.ref)
            await self._publisher.update(desired.ref, tree, digest, meta)
        else:
            await self._finish(actual, known)
            meta = msgspec.structs.replace(known, objects=objects)
            if meta != known:
                await self._publisher.send(messages.Annotate(desired.ref, meta))
        self._actual.published(desired.ref, digest, meta)

    async def _finish(self, actual: ActualVolume, meta: VolumeMeta) -> None:
        """What an interrupted update left is put right; the version that is served stays."""
        if not actual.settled:
            await self._publisher.finish(actual.ref, meta)
            actual.settled = True

    async def _set_up_empty_dir(self, desired: DesiredVolume, plan: EmptyDir) -> None:
        backing: Path = await trio.to_thread.run_sync(self._state.set_up, desired.ref, plan)
        meta = self._meta(desired, 1, ())
        await self._publisher.send(messages.PublishEmptyDir(desired.ref, str(backing), plan.mode, plan.gid, meta))
        self._actual.published(desired.ref, "", meta)

    def _meta(self, desired: DesiredVolume, generation: int, objects: tuple[ObjectVersion, ...]) -> VolumeMeta:
        pod = desired.pod.metadata
        return VolumeMeta(pod.namespace, pod.name, generation, rfc3339(self._now()), objects)

    async def tear_down(self, ref: VolumeRef) -> None:
        """Removes the volume, and an emptyDir's data, once nothing stands on it any more."""
        self._actual.tearing_down(ref)
        if holder := await self._standing.holder(ref):
            self._actual.tearing_down(ref, held=holder)
            raise Held(holder)
        if ref in self._desired.volumes:
            return  # checkpoint: the Pod came back while we looked
        if ref.plugin == EMPTY_DIR:
            await trio.to_thread.run_sync(self._state.unset_ready, ref)
            await self._publisher.send(messages.Unpublish(ref))
            self._actual.unpublished(ref)  # should the data stay, and the Pod come back, it is published again
            await trio.to_thread.run_sync(self._state.remove_data, ref)
        else:
            await self._publisher.send(messages.Unpublish(ref))
        self._actual.remove(ref)
