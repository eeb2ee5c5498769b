"""Pods and references that come and go while the inventory is busy: found by random histories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fusevol.protocol.messages import AddPod, DropObject, RemovePod, Request, Welcome
from tests.unit.volumemanager.test_manager import CONFIG, Bench, NotedPublisher, pod


class SlowInventory(NotedPublisher):
    """Answers AddPod of the Pod `slow` when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = trio.Event()

    async def send(self, request: Request) -> None:
        if request == AddPod("slow"):
            await self.answer.wait()
        await super().send(request)

    def sent(self, kind: type[Request]) -> list[Request]:
        return [request for _, request in self.done if isinstance(request, kind)]


@asynccontextmanager
async def busy(state: Path) -> AsyncIterator[tuple[Bench, SlowInventory]]:
    publisher = SlowInventory()
    bench = Bench(state, publisher)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.manager.run)
        await bench.connect()
        bench.manager.pods_synced()
        yield bench, publisher
        nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.sleep(0.2)  # not only trio's tasks: emptyDirs are made in threads


async def test_a_pod_that_goes_while_the_inventory_is_busy_leaves_no_directory(tmp_path: Path) -> None:
    """Its volume's publication has made it, not the inventory."""
    async with busy(tmp_path) as (bench, publisher):
        bench.manager.pod_changed(pod(uid="slow", name="q"))
        await settle()
        bench.manager.pod_changed(pod(volume="scratch"))
        await settle()
        assert (tmp_path / "pods" / "u1").exists()
        bench.manager.pod_gone("u1")
        await settle()
        publisher.answer.set()
        await settle()
        assert publisher.sent(RemovePod) == [RemovePod("u1")]
        assert not (tmp_path / "pods" / "u1").exists()
        assert bench.manager.inventory_settled()


async def test_what_an_agent_that_was_killed_left_of_a_pod_is_removed(tmp_path: Path) -> None:
    """It had told the server, and died before it removed the Pod's own directories."""
    (tmp_path / "pods" / "u1" / "volumes" / "kubernetes.io~empty-dir").mkdir(parents=True)
    async with busy(tmp_path):
        await settle()
        assert not (tmp_path / "pods" / "u1").exists()


async def test_an_object_that_is_wanted_again_is_not_dropped(tmp_path: Path) -> None:
    """The dropping was planned while nobody wanted it. Without the object at the server its volumes would fail until
    it is changed."""
    async with busy(tmp_path) as (bench, publisher):
        bench.manager.pod_changed(pod())
        await bench.deliver(a="1")
        await settle()
        bench.manager.pod_changed(pod(uid="slow", name="q", volume="scratch"))
        bench.manager.pod_gone("u1")
        await settle()
        bench.manager.pod_changed(pod(uid="u2"))
        await bench.deliver(a="1")
        publisher.answer.set()
        await settle()
        about = [what for what, detail in publisher.done if detail == DropObject(CONFIG) or what == "put"]
        assert about[-1] == "put"


async def test_the_inventory_of_a_server_that_lost_its_contents_is_made_anew(tmp_path: Path) -> None:
    async with busy(tmp_path) as (bench, publisher):
        publisher.answer.set()
        bench.manager.pod_changed(pod(volume="scratch"))
        await settle()
        await bench.manager.connected(Welcome(1, b"other", "other", (), {}, ()), ())
        await settle()
        assert publisher.sent(AddPod) == [AddPod("u1"), AddPod("u1")]
