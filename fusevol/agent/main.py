"""The agent: composition root. Puts source, volume manager and publisher together and takes them down in order."""

from __future__ import annotations

import resource
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog
import trio

from fusevol.agent.barrier import Barrier
from fusevol.agent.config import Config, KubeconfigConfig, ManifestsConfig
from fusevol.agent.plugins.registry import default_registry
from fusevol.agent.publisher.publisher import Publisher
from fusevol.agent.service import Service
from fusevol.agent.sources.source import Source
from fusevol.agent.telemetry import logs
from fusevol.agent.telemetry.status import StatusReporter
from fusevol.agent.volumemanager.backing import StateDirectory
from fusevol.agent.volumemanager.manager import VolumeManager
from fusevol.agent.volumemanager.standing import OurMounts, StandingMounts
from fusevol.model.refs import PodRef
from fusevol.system import memory
from fusevol.system.interpreter import tune_interpreter

log = structlog.get_logger()

REFUSED = 4


def main() -> None:
    """Exit codes: 0 after SIGTERM or when the keeper is gone, 4 when memory must be locked and cannot be."""
    config = msgspec.json.decode(sys.argv[1], type=Config)
    logs.configure(config.log_format, config.verbosity)
    _protect_memory(config.require_locked_memory)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tune_interpreter()
    trio.run(run, config)


def _protect_memory(required: bool) -> None:
    memory.make_undumpable()
    if why := memory.lock_memory():
        if required:
            print(f"fusevol: memory cannot be locked: {why}", file=sys.stderr)
            raise SystemExit(REFUSED)
        log.warning("memory is not locked: Secrets may be swapped out", reason=why)


async def run(config: Config) -> None:
    """Until SIGTERM, or until the keeper is gone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_leave_on_signal, nursery.cancel_scope)
        publisher = Publisher(config.server_socket, config.mountpoint)
        our_mounts = OurMounts(Path(config.mountpoint))
        manager = VolumeManager(
            node=config.node,
            mountpoint=config.mountpoint,
            registry=default_registry(),
            publisher=publisher,
            state=StateDirectory(Path(config.state_dir)),
            standing=StandingMounts(our_mounts),
            now=lambda: datetime.now(UTC),
        )
        source = _attach_source(config, manager)
        reporter = StatusReporter(
            manager, config.keeper_socket, config.mountpoint, str(config.source.__struct_config__.tag)
        )
        service = Service(Barrier(manager, our_mounts.at_their_place), reporter)
        nursery.start_soon(manager.run)
        nursery.start_soon(publisher.run, manager.connected, manager.disconnected)
        nursery.start_soon(source.run)
        nursery.start_soon(service.run, socket.socket(fileno=config.agent_fd))
        await reporter.run()
        nursery.cancel_scope.cancel()


def _attach_source(config: Config, manager: VolumeManager) -> Source:
    # imported here: each source brings libraries that the other does without
    if isinstance(config.source, ManifestsConfig):
        from fusevol.agent.sources.manifests.source import ManifestSource

        manifests = ManifestSource(Path(config.source.directory), manager, config.node)
        manager.attach(manifests, _log_event)
        return manifests
    from fusevol.agent.sources.kubernetes.credentials import InCluster, Kubeconfig
    from fusevol.agent.sources.kubernetes.source import KubernetesSource

    told = config.source
    origin = Kubeconfig(told.file, told.context) if isinstance(told, KubeconfigConfig) else InCluster()
    kubernetes = KubernetesSource(manager, config.node, origin)
    recorder = kubernetes.recorder

    def tell(pod: PodRef, message: str) -> None:
        _log_event(pod, message)
        recorder.emit(pod, "Warning", "FailedMount", message)

    manager.attach(kubernetes, tell if config.events else _log_event)
    return kubernetes


def _log_event(pod: PodRef, message: str) -> None:
    log.warning("FailedMount", pod=str(pod), message=message)


async def _leave_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
