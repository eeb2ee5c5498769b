"""A source may be quicker than the connection to the server."""

from __future__ import annotations

from pathlib import Path

import trio

from fusevol.agent.volumemanager.actual_state import Phase
from tests.unit.volumemanager.test_manager import CONFIG, VOLUME, Bench, pod


async def test_what_was_missing_before_the_first_connection_is_still_missing(
    tmp_path: Path, autojump_clock: object
) -> None:
    """Nothing tells it again: the volume would wait for ever, an optional one too."""
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.manager.run)
        bench.manager.pod_changed(pod())
        bench.manager.object_missing(CONFIG)
        bench.manager.pods_synced()
        await bench.rest()
        await bench.connect()
        await bench.rest()
        assert bench.phase() is Phase.FAILED
        volume = bench.manager.actual.get(VOLUME)
        assert volume is not None
        assert volume.error == 'configmap "cm" not found'
        nursery.cancel_scope.cancel()
