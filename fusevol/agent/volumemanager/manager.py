"""The volume manager as a whole: what sources deliver to, and what the publisher tells of its connections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import structlog
import trio

from fusevol.agent.plugins.plugin import Absent, Unavailable
from fusevol.agent.plugins.registry import Registry
from fusevol.agent.publisher.connection import RequestFailed
from fusevol.agent.publisher.publisher import Publisher
from fusevol.agent.sources.source import Source, SourceProblem
from fusevol.agent.volumemanager.actual_state import ActualState
from fusevol.agent.volumemanager.backing import StateDirectory
from fusevol.agent.volumemanager.desired_state import DesiredState
from fusevol.agent.volumemanager.inventory import Inventory
from fusevol.agent.volumemanager.objects import ObjectTable
from fusevol.agent.volumemanager.operations import Operations, Standing
from fusevol.agent.volumemanager.populator import Populator, names
from fusevol.agent.volumemanager.reconciler import Reconciler
from fusevol.model.errors import ServerGone
from fusevol.model.objects import NODE, SERVICE_ACCOUNT_TOKEN, DeliveredObject, ObjectInfo
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef, PodRef, VolumeRef
from fusevol.model.volume import VolumeState
from fusevol.protocol.messages import RemovePod, Request, Welcome

log = structlog.get_logger()

Tell = Callable[[PodRef, str], None]
"""Raises a FailedMount Event with this message for a Pod; never blocks."""


class VolumeManager:
    """The Sink of the sources. `run` reconciles; `connected` is the publisher's call at each new connection."""

    def __init__(
        self,
        *,
        node: str,
        mountpoint: str,
        registry: Registry,
        publisher: Publisher,
        state: StateDirectory,
        standing: Standing,
        now: Callable[[], datetime],
    ) -> None:
        self.source: Source | None = None  # until attach()
        self.desired = DesiredState()
        self.actual = ActualState(now, self._changed)
        self.objects = ObjectTable()
        self.current_problems: tuple[SourceProblem, ...] = ()
        self.synced = False
        self._publisher = publisher
        self._state = state
        self._tell: Tell | None = None
        self._populator = Populator(self.desired, registry, node)
        self._inventory = Inventory()
        self._inventory_wake = trio.Event()
        self._putting_right = False  # a request of the inventory is under way
        self._referenced: dict[ObjectRef, object] = {}  # what the source was asked for; each asking has its own value
        self._incarnation = ""
        self._connected = trio.Event()
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        operations = Operations(
            node=node,
            mountpoint=mountpoint,
            desired=self.desired,
            actual=self.actual,
            objects=self.objects,
            publisher=publisher,
            state=state,
            standing=standing,
            now=now,
        )
        self.reconciler = Reconciler(operations, self.desired, self.actual, failed=self._failed, changed=self._changed)

    # ---------------------------------------------------------------------------------------------- running

    def attach(self, source: Source, tell: Tell) -> None:
        """Before run(): the source, which was made with this manager as its Sink, and who raises Events."""
        self.source, self._tell = source, tell

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.reconciler.run)
            nursery.start_soon(self._keep_inventory)

    async def connected(self, welcome: Welcome, volumes: tuple[VolumeState, ...]) -> None:
        """A server is there. One that lost its contents gets everything again."""
        lost = welcome.incarnation != self._incarnation
        if lost:
            self.objects.reset(welcome.digest_key)
        backed, remains = await trio.to_thread.run_sync(lambda: (self._state.scan(), self._state.pods()))
        self.actual.reconstruct(volumes, backed)
        self._inventory = Inventory(set(welcome.pods), dict(welcome.names), set(welcome.objects), remains)
        if lost and self._incarnation and self._nursery and self.source:
            log.warning("the server lost its contents: everything is published again")
            self._nursery.start_soon(self.source.redeliver)
        self._incarnation = welcome.incarnation
        self._connected.set()
        self.reconciler.mark_all()
        self._inventory_wake.set()

    def disconnected(self) -> None:
        if self._connected.is_set():  # else those who wait on it would wait for ever
            self._connected = trio.Event()

    async def news(self) -> None:
        """Returns at the next change of anything that `status` and `wait` tell."""
        await self._news.wait()

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()
        self._inventory_wake.set()

    def _failed(self, ref: VolumeRef, message: str) -> None:
        if self._tell and (volume := self.desired.volumes.get(ref)):
            self._tell(volume.pod.ref, message)

    # ---------------------------------------------------------------------------------------------- Sink

    def pod_changed(self, pod: Pod) -> None:
        self._take(self._populator.pod_changed(pod))

    def pod_gone(self, uid: str) -> None:
        self._inventory.remains.add(uid)
        self._take(self._populator.pod_gone(uid))

    def _take(self, changed: set[VolumeRef]) -> None:
        """Desired state has changed: ask for what it needs now, drop what it does not, look at the volumes."""
        self._reference()
        self.reconciler.mark(changed)
        self._changed()

    def _reference(self) -> None:
        assert self.source is not None
        wanted = self.desired.objects
        for ref in wanted - self._referenced.keys():
            self._referenced[ref] = object()
            self.source.reference(ref)
        for ref in self._referenced.keys() - wanted:
            del self._referenced[ref]
            self.source.dereference(ref)
            self.objects.forget(ref)

    def pods_synced(self) -> None:
        """From here on what no Pod wants may go."""
        if not self.synced:
            log.info("the source has synced", pods=len(self.desired.pods))
            self.synced = self._populator.synced = self.reconciler.may_tear_down = True
            self.reconciler.mark_all()
        self._changed()

    async def deliver_object(self, delivered: DeliveredObject) -> None:
        """The server has the contents when this returns; here stays what they are called and their digests."""
        ref = delivered.ref
        while True:
            await self._connected.wait()
            key, reference = self.objects.key, self._referenced.get(ref)
            if reference is None:
                return  # nobody wants it any more
            info = self.objects.describe(delivered)
            known = self.objects.get(ref)
            try:
                if ref.kind != NODE and not (isinstance(known, ObjectInfo) and known.keys == info.keys):
                    self._inventory.objects.add(ref)
                    await self._publisher.put_object(ref, info.content_version, delivered.data)
            except ServerGone:
                await trio.sleep(0.01)  # until disconnected() has been told
                continue
            except RequestFailed as error:
                self.object_failed(ref, str(error))
                return
            # checkpoint: the server may have been replaced (other key), the reference dropped, or dropped and made
            # anew: then the server was told to forget what it has just got
            if self.objects.key == key and self._referenced.get(ref) is reference:
                self._learn(ref, info)
                return

    def object_missing(self, ref: ObjectRef) -> None:
        if ref in self._referenced:
            self._learn(ref, Absent())

    def object_failed(self, ref: ObjectRef, message: str) -> None:
        """What is known stays known: it may be old, but it was true. A token that has expired is true no longer: its
        Pod is told, and its file stays all the same."""
        known = isinstance(self.objects.get(ref), ObjectInfo) and ref.kind != SERVICE_ACCOUNT_TOKEN
        if ref in self._referenced and not known:
            self._learn(ref, Unavailable(message))

    def _learn(self, ref: ObjectRef, value: ObjectInfo | Absent | Unavailable) -> None:
        if self.objects.set(ref, value):
            self.reconciler.mark(self.desired.projecting(ref))
            self._changed()

    def problems(self, problems: tuple[SourceProblem, ...]) -> None:
        self.current_problems = problems
        self._changed()

    # ---------------------------------------------------------------------------------------------- inventory

    def _wanted_inventory(self) -> Inventory:
        pods = set(self.desired.pods) | {volume.ref.pod_uid for volume in self.actual}
        return Inventory(pods, names(self.desired.pods.values()), self.desired.objects)

    def inventory_settled(self) -> bool:
        """Whether Pods' directories and links stand as they should."""
        return not self._putting_right and not self._inventory.plan(self._wanted_inventory(), self.synced)

    async def _keep_inventory(self) -> None:
        while True:
            await self._inventory_wake.wait()
            self._inventory_wake = trio.Event()
            await self._connected.wait()
            try:
                # planned anew after each request: what is wanted may have changed while the server answered
                while requests := self._inventory.plan(self._wanted_inventory(), self.synced):
                    self._putting_right = True
                    await self._put_right(requests[0])
            except ServerGone:
                pass  # the next connection wakes us
            if self._putting_right:
                self._putting_right = False
                self._changed()  # somebody may wait for just this

    async def _put_right(self, request: Request) -> None:
        """Raises ServerGone."""
        self._inventory.done(request)  # before it is sent: what is sent after it will be done after it
        try:
            await self._publisher.send(request)
        except RequestFailed as error:
            log.warning("the server refused", request=str(request), error=str(error))
            return
        if isinstance(request, RemovePod):
            await trio.to_thread.run_sync(self._state.remove_pod, request.uid)
