"""Pods that are gone before the inventory has heard of them: found by random histories."""

from __future__ import annotations

from pathlib import Path

import trio

from fusevol.protocol.messages import AddPod, RemovePod, Request, Welcome
from tests.unit.volumemanager.test_manager import Bench, NotedPublisher, pod


class SlowInventory(NotedPublisher):
    """Answers AddPod when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = trio.Event()

    async def send(self, request: Request) -> None:
        if isinstance(request, AddPod):
            await self.answer.wait()
        await super().send(request)


async def test_a_pod_that_goes_while_the_inventory_is_busy_leaves_no_directory(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    publisher = SlowInventory()
    bench.manager._publisher = bench.manager.reconciler._operations._publisher = publisher  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.manager.run)
        await bench.connect()
        bench.manager.pods_synced()
        bench.manager.pod_changed(pod(uid="other", name="q", volume="scratch"))
        await bench.rest()  # the inventory waits for its answer
        bench.manager.pod_changed(pod(volume="scratch"))
        while not [True for what, _ in publisher.done if what == "PublishEmptyDir"]:
            await bench.rest()
        bench.manager.pod_gone("u1")
        await trio.sleep(1)
        publisher.answer.set()
        await trio.sleep(1)
        removed = [request.uid for _, request in publisher.done if isinstance(request, RemovePod)]
        assert removed == ["u1"]  # whose directory the publication has made
        assert not (tmp_path / "pods" / "u1").exists()
        nursery.cancel_scope.cancel()


async def test_what_an_agent_that_was_killed_left_of_a_pod_is_removed(tmp_path: Path) -> None:
    """It had told the server, and died before it removed the Pod's directories."""
    bench = Bench(tmp_path)
    (tmp_path / "pods" / "u1" / "volumes" / "kubernetes.io~empty-dir").mkdir(parents=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.manager.run)
        await bench.manager.connected(Welcome(1, b"key", "first", (), {}, ()), ())
        bench.manager.pods_synced()
        await trio.sleep(1)
        assert not (tmp_path / "pods" / "u1").exists()
        nursery.cancel_scope.cancel()
