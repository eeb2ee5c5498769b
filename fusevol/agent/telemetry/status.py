"""The agent's half of `fusevol status`: source and volumes, told to the keeper whenever they change."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
import trio

from fusevol.agent.sockets import open_unix_socket
from fusevol.agent.volumemanager.actual_state import ActualVolume
from fusevol.agent.volumemanager.manager import VolumeManager
from fusevol.model.objects import display_name
from fusevol.model.refs import escaped
from fusevol.system.timestamps import rfc3339

log = structlog.get_logger()

COALESCE = 0.25
"""Seconds in which changes are told together."""


def describe(manager: VolumeManager, mountpoint: str, kind: str) -> dict[str, Any]:
    """`source` and `volumes` as docs/status.md describes them."""
    errors = [
        {"file": problem.file, "line": problem.line, "message": problem.message} for problem in manager.current_problems
    ]
    volumes = sorted(manager.actual, key=lambda volume: volume.ref)
    return {
        "source": {"kind": kind, "synced": manager.synced, "errors": errors},
        "volumes": [_describe_volume(manager, mountpoint, volume) for volume in volumes],
    }


def _describe_volume(manager: VolumeManager, mountpoint: str, volume: ActualVolume) -> dict[str, Any]:
    ref, meta = volume.ref, volume.meta
    pod = manager.desired.pods.get(ref.pod_uid)
    return {
        "namespace": pod.metadata.namespace if pod else meta.namespace if meta else None,
        "pod": pod.metadata.name if pod else meta.pod if meta else None,
        "podUID": ref.pod_uid,
        "plugin": escaped(ref.plugin),
        "name": ref.name,
        "path": f"{mountpoint}/{ref.path}",
        "phase": volume.phase.value,
        "phaseSince": rfc3339(volume.since),
        "generation": meta.generation if meta else 0,
        "objects": [
            {"kind": shown.ref.kind, "name": display_name(shown.ref), "resourceVersion": shown.version}
            for shown in (meta.objects if meta else ())
        ],
        "error": volume.error or volume.held,
        "updatedAt": meta.updated if meta else None,
    }


class StatusReporter:
    """Tells the keeper over a connection of its own. `run` returns when the keeper is gone."""

    def __init__(self, manager: VolumeManager, keeper_socket: str, mountpoint: str, kind: str) -> None:
        self._manager = manager
        self._keeper_socket = keeper_socket
        self._mountpoint = mountpoint
        self._kind = kind
        self._stream: trio.SocketStream | None = None
        self._sending = trio.Lock()

    async def run(self) -> None:
        async with open_unix_socket(self._keeper_socket) as self._stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_changes)
            try:
                while await self._stream.receive_some(4096):
                    pass  # the keeper has nothing to say
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            log.warning("the keeper is gone: leaving")
            nursery.cancel_scope.cancel()

    async def _tell_changes(self) -> None:
        while True:
            await self.flush()
            await self._manager.news()
            await trio.sleep(COALESCE)

    async def flush(self) -> None:
        """The keeper has been told the present state when this returns."""
        if self._stream is None:
            return
        async with self._sending:
            state = describe(self._manager, self._mountpoint, self._kind)
            line = msgspec.json.encode({"op": "state", "state": state}) + b"\n"
            try:
                await self._stream.send_all(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # run() notices
