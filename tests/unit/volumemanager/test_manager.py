"""The volume manager with a source and a publisher that only take notes; trio's clock jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from fusevol.agent.barrier import Barrier, parse_goal
from fusevol.agent.plugins.registry import default_registry
from fusevol.agent.volumemanager.actual_state import Phase
from fusevol.agent.volumemanager.backing import StateDirectory
from fusevol.agent.volumemanager.manager import VolumeManager
from fusevol.model.errors import ServerGone
from fusevol.model.objects import DeliveredObject, SecretBytes
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef, PodRef, VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeMeta, VolumeState
from fusevol.protocol.messages import Annotate, Request, Unpublish, Welcome

CONFIG = ObjectRef("ConfigMap", "default", "cm")
VOLUME = VolumeRef("u1", "kubernetes.io/configmap", "config")
SCRATCH = VolumeRef("u1", "kubernetes.io/empty-dir", "scratch")
NOW = datetime(2026, 11, 22, tzinfo=UTC)


class NotedSource:
    """Remembers what it was asked for."""

    kind = "noted"

    def __init__(self) -> None:
        self.referenced: set[ObjectRef] = set()
        self.redelivered = 0

    async def run(self) -> None:
        await trio.sleep_forever()

    def reference(self, ref: ObjectRef) -> None:
        assert ref not in self.referenced
        self.referenced.add(ref)

    def dereference(self, ref: ObjectRef) -> None:
        self.referenced.remove(ref)

    async def refresh(self) -> None:
        await trio.lowlevel.checkpoint()

    async def redeliver(self) -> None:
        await trio.lowlevel.checkpoint()
        self.redelivered += 1


class NotedPublisher:
    """Remembers what was published, as (what, ref)."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self.gone = False
        self.fail: Exception | None = None

    async def _note(self, what: str, detail: object) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise ServerGone
        if self.fail and what == "update":
            raise self.fail
        self.done.append((what, detail))

    async def send(self, request: Request) -> None:
        await self._note(type(request).__name__, request)

    async def put_object(self, ref: ObjectRef, version: str, data: Mapping[str, SecretBytes]) -> None:
        await self._note("put", (ref, version, sorted(data)))

    async def publish(self, ref: VolumeRef, tree: Tree, digest: str, meta: VolumeMeta) -> None:
        await self._note("publish", ref)

    async def update(self, ref: VolumeRef, tree: Tree, digest: str, meta: VolumeMeta) -> None:
        await self._note("update", ref)

    async def finish(self, ref: VolumeRef, meta: VolumeMeta) -> None:
        await self._note("finish", ref)

    def of_volume(self) -> list[str]:
        return [what for what, detail in self.done if detail == VOLUME]


class Bench:
    """A volume manager with everything round it."""

    def __init__(self, state: Path, publisher: NotedPublisher | None = None) -> None:
        self.source = NotedSource()
        self.publisher = publisher or NotedPublisher()
        self.held: str | None = None
        self.events: list[tuple[float, str]] = []
        self.manager = VolumeManager(
            node="node1",
            mountpoint="/mnt",
            registry=default_registry(),
            publisher=self.publisher,  # type: ignore[arg-type]
            state=StateDirectory(state),
            standing=self,
            now=lambda: NOW,
        )
        self.manager.attach(self.source, self.tell)

    async def holder(self, ref: VolumeRef) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.held

    def tell(self, pod: PodRef, message: str) -> None:
        self.events.append((trio.current_time(), message))

    async def connect(self, incarnation: str = "first", *volumes: VolumeState) -> None:
        await self.manager.connected(Welcome(1, incarnation.encode(), incarnation, (), {}, ()), volumes)

    async def deliver(self, version: str = "1", **data: str) -> None:
        values = {key: SecretBytes(value.encode()) for key, value in data.items()}
        await self.manager.deliver_object(DeliveredObject(CONFIG, "uid", version, False, values))

    async def rest(self) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)

    def phase(self, ref: VolumeRef = VOLUME) -> Phase | None:
        volume = self.manager.actual.get(ref)
        return volume.phase if volume else None


def pod(phase: str = "Running", volume: str = "config", **metadata: object) -> Pod:
    return msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "default", "uid": "u1", **metadata},
            "spec": {
                "volumes": [
                    {"name": "config", "configMap": {"name": "cm", "defaultMode": 0o644}},
                    {"name": "scratch", "emptyDir": {}},
                ],
                "containers": [{"name": "c", "volumeMounts": [{"name": volume, "mountPath": "/x"}]}],
            },
            "status": {"phase": phase},
        },
        Pod,
    )


@asynccontextmanager
async def bench(state: Path) -> AsyncIterator[Bench]:
    made = Bench(state)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.manager.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_volume_is_published_when_its_object_arrives(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.rest()
        assert b.phase() is Phase.PENDING
        assert b.events == []
        await b.deliver(a="1")
        await b.rest()
        assert b.publisher.of_volume() == ["publish"]
        assert b.phase() is Phase.MOUNTED


async def test_a_missing_object_is_told_at_each_attempt_but_the_first_and_picked_up_at_once(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        start = trio.current_time()
        b.manager.pod_changed(pod())
        b.manager.object_missing(CONFIG)
        await trio.sleep(400)
        assert b.phase() is Phase.FAILED
        times = [round(at - start) for at, _ in b.events]
        assert times == [0, 2, 4, 8, 16, 32, 64, 128, 250, 372]  # after 0.5, 1, 2, 4 … 122 s, summed up
        assert {text for _, text in b.events} == {
            'MountVolume.SetUp failed for volume "config" : configmap "cm" not found'
        }
        await b.deliver(a="1")
        await b.rest()
        assert b.phase() is Phase.MOUNTED
        await trio.sleep(400)
        assert len(b.events) == len(times)


async def test_an_object_that_comes_right_behind_its_pod_raises_no_event(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        b.manager.object_missing(CONFIG)
        await trio.sleep(0.4)
        assert b.phase() is Phase.FAILED
        await b.deliver(a="1")
        await b.rest()
        assert b.phase() is Phase.MOUNTED
        assert b.events == []


async def test_what_is_wrong_anew_is_told_soon_and_only_if_it_stays(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        b.manager.object_missing(CONFIG)
        await trio.sleep(200)
        b.events.clear()
        b.manager.object_failed(CONFIG, "forbidden")
        await trio.sleep(0.4)
        assert b.events == []
        await trio.sleep(0.2)
        assert [text for _, text in b.events] == ['MountVolume.SetUp failed for volume "config" : forbidden']


async def test_only_a_change_of_content_is_an_update(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver("1", a="1")
        await b.rest()
        await b.deliver("2", a="1")
        await b.rest()
        assert b.publisher.of_volume() == ["publish"]
        assert [r.meta.objects[0].version for _, r in b.publisher.done if isinstance(r, Annotate)] == ["2"]
        await b.deliver("3", a="2")
        await b.rest()
        assert b.publisher.of_volume() == ["publish", "update"]
        assert [detail[1] for what, detail in b.publisher.done if what == "put"] == ["1", "3"]


async def test_the_last_good_content_stays(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        b.manager.object_missing(CONFIG)
        await b.rest()
        volume = b.manager.actual.get(VOLUME)
        assert volume is not None
        assert volume.phase is Phase.MOUNTED
        assert volume.error == 'configmap "cm" not found'
        assert b.events == []
        await trio.sleep(0.6)
        assert len(b.events) == 1
        b.manager.object_failed(CONFIG, "forbidden")  # no news about what is known to be missing
        await b.deliver("2", a="1")
        await b.rest()
        assert volume.error is None
        assert b.publisher.of_volume() == ["publish"]


async def test_nothing_is_torn_down_before_the_source_has_synced(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        meta = VolumeMeta("default", "p", 3, "2026-11-22T00:00:00.000Z")
        await b.connect("first", VolumeState(VOLUME, "digest", meta, True))
        await trio.sleep(10)
        assert b.phase() is Phase.MOUNTED
        b.manager.pods_synced()
        await b.rest()
        assert b.phase() is None
        assert [r.volume for _, r in b.publisher.done if isinstance(r, Unpublish)] == [VOLUME]


async def test_a_volume_that_somebody_has_mounted_stays_until_it_is_not(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pods_synced()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        b.held = "mounted at /c (pid 7)"
        b.manager.pod_gone("u1")
        await trio.sleep(60)
        assert b.phase() is Phase.TEARING_DOWN
        b.held = None
        await trio.sleep(1.5)
        assert b.phase() is None
        assert b.source.referenced == set()


async def test_an_emptydir_goes_with_its_data(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pods_synced()
        b.manager.pod_changed(pod(volume="scratch"))
        data = tmp_path / "pods/u1/volumes/kubernetes.io~empty-dir/scratch"
        while b.phase(SCRATCH) is not Phase.MOUNTED:
            await b.manager.news()
        (data / "file").touch()
        b.manager.pod_changed(pod("Succeeded", volume="scratch"))
        while b.phase(SCRATCH) is not None:
            await b.manager.news()
        assert not data.exists()


async def test_an_emptydir_of_an_unknown_pod_is_kept_until_the_sync(tmp_path: Path, autojump_clock: object) -> None:
    data = tmp_path / "pods/u1/volumes/kubernetes.io~empty-dir/scratch"
    data.mkdir(parents=True)
    (data / "precious").touch()
    async with bench(tmp_path) as b:
        await b.connect()
        await trio.sleep(300)
        assert (data / "precious").exists()
        b.manager.pod_changed(pod(volume="scratch"))
        b.manager.pods_synced()
        while b.phase(SCRATCH) is not Phase.MOUNTED:
            await b.manager.news()
        assert (data / "precious").exists()


async def test_a_server_that_lost_everything_gets_everything(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        b.publisher.gone = True
        b.manager.disconnected()
        await b.rest()
        b.publisher.gone = False
        b.publisher.done.clear()
        await b.connect("second")
        await b.rest()
        assert b.source.redelivered == 1
        assert b.phase() is Phase.PENDING
        await b.deliver(a="1")
        await b.rest()
        assert b.publisher.of_volume() == ["publish"]
        assert [what for what, _ in b.publisher.done if what == "put"] == ["put"]


async def test_a_delivery_waits_for_the_server(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b, trio.open_nursery() as nursery:
        b.manager.pod_changed(pod())
        nursery.start_soon(lambda: b.deliver(a="1"))
        await b.rest()
        assert b.publisher.done == []
        await b.connect()
        await b.rest()
        assert b.phase() is Phase.MOUNTED


async def test_an_interrupted_update_is_finished_by_the_next_agent(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        volume = b.manager.actual.get(VOLUME)
        assert volume is not None
        assert volume.meta is not None
        await b.connect("first", VolumeState(VOLUME, volume.digest, volume.meta, settled=False))
        await b.rest()
        assert b.publisher.of_volume() == ["publish", "finish"]


async def test_a_terminating_pods_volume_is_not_updated(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        b.manager.pod_changed(pod(deletionTimestamp="2026-11-22T00:00:00Z"))
        await b.deliver("2", a="2")
        await b.rest()
        assert b.publisher.of_volume() == ["publish"]


async def test_an_update_that_fails_is_tried_again_and_told(tmp_path: Path, autojump_clock: object) -> None:
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pod_changed(pod())
        await b.deliver(a="1")
        await b.rest()
        b.publisher.fail = OSError(5, "Input/output error")
        await b.deliver("2", a="2")
        await trio.sleep(1.6)
        assert [text for _, text in b.events] == [
            'MountVolume.SetUp failed for volume "config" : [Errno 5] Input/output error'
        ] * 3
        assert b.phase() is Phase.MOUNTED  # the version before is served
        b.publisher.fail = None
        await trio.sleep(2)
        volume = b.manager.actual.get(VOLUME)
        assert volume is not None
        assert volume.error is None
        assert b.publisher.of_volume() == ["publish", "update"]


async def test_a_barrier_returns_when_directories_and_links_are_right(tmp_path: Path) -> None:
    """Nothing else changes after that, so it must be told by itself. (On a real clock: a mock one would jump while a
    thread removes directories.)"""
    async with bench(tmp_path) as b:
        await b.connect()
        b.manager.pods_synced()
        b.manager.pod_changed(pod(volume="none"))
        start = trio.current_time()
        assert await Barrier(b.manager, lambda: True).wait(parse_goal("synced"), 30) == []
        b.manager.pod_gone("u1")
        assert await Barrier(b.manager, lambda: True).wait(parse_goal("synced"), 30) == []
        assert trio.current_time() - start < 1


async def test_what_the_server_was_told_to_forget_meanwhile_is_delivered_again(
    tmp_path: Path, autojump_clock: object
) -> None:
    """The last Pod goes and another comes while the contents are on their way."""

    class Slow(NotedPublisher):
        async def put_object(self, ref: ObjectRef, version: str, data: Mapping[str, SecretBytes]) -> None:
            await super().put_object(ref, version, data)
            await trio.sleep(1)

    async with bench(tmp_path) as b, trio.open_nursery() as nursery:
        slow = Slow()
        b.manager._publisher = b.manager.reconciler._operations._publisher = slow  # type: ignore[assignment]
        await b.connect()
        b.manager.pods_synced()
        b.manager.pod_changed(pod())
        nursery.start_soon(lambda: b.deliver(a="1"))
        await trio.sleep(0.5)
        b.manager.pod_gone("u1")
        await trio.sleep(0.1)
        b.manager.pod_changed(pod())
        await trio.sleep(5)
        about = [what for what, detail in slow.done if what in ("put", "DropObject", "publish")]
        assert about == ["put", "DropObject", "put", "publish"]
