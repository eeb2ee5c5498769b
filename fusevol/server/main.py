"""Composition of the server process: the core, the control socket, the notification thread and an engine.

Started by the keeper as `python -m fusevol.server '<JSON of Config>'`. Exit codes: 0 the mount is gone or SIGTERM came,
2 a configuration that is none, 4 refused because memory could not be locked; anything else is a crash.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec
import trio

from fusevol.server.control import ControlServer
from fusevol.server.engines.pyfuse3 import Engine
from fusevol.server.faults import VARIABLE, FaultyFileSystem
from fusevol.server.filesystem import FileSystem
from fusevol.server.log import set_up
from fusevol.server.nodes import Owner
from fusevol.server.notifications import NotificationThread
from fusevol.server.volumes import Volumes
from fusevol.system.interpreter import tune_interpreter
from fusevol.system.memory import lock_memory, make_undumpable

log = logging.getLogger(__name__)

THREAD_STACK = 256 << 10
"""Bytes. All of it counts as locked, whether it is used or not."""

STOP_GRACE = 5.0
"""Seconds for requests in flight after SIGTERM."""


class Config(msgspec.Struct, frozen=True, rename="camel"):
    """`fuse_fd`: /dev/fuse, mounted at `mountpoint`. `control_fd`: the listening control socket. `ready_fd`: a pipe
    that gets one byte when requests are answered."""

    fuse_fd: int
    control_fd: int
    ready_fd: int
    mountpoint: str
    engine: Literal["pyfuse3"] = "pyfuse3"
    require_locked_memory: bool = False
    log_format: Literal["text", "json"] = "text"
    verbosity: int = 0


def main(arguments: list[str], locked: Callable[[], str | None] = lock_memory) -> int:
    """The process. Returns its exit code. `locked` locks the memory, or says why it could not."""
    try:
        (text,) = arguments
        config = msgspec.json.decode(text, type=Config)
    except (ValueError, msgspec.MsgspecError) as error:
        print(f"fusevol server: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the keeper's to deal with
    threading.stack_size(THREAD_STACK)
    make_undumpable()
    os.umask(0)  # the kernel has applied the caller's
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    reason = locked()
    if reason is not None and config.require_locked_memory:
        print(f"fusevol server: memory cannot be locked: {reason}", file=sys.stderr)
        return 4
    set_up(config.log_format, config.verbosity)
    if reason is not None:
        log.warning("Secrets stand in memory that may be swapped out: %s", reason)
    tune_interpreter()
    trio.run(_serve, config)
    return 0


async def _serve(config: Config) -> None:
    notifications = NotificationThread()
    volumes = Volumes(notifications, Owner.current())
    fault = os.environ.get(VARIABLE)
    filesystem = FaultyFileSystem(volumes, fault) if fault else FileSystem(volumes)
    engine = Engine(filesystem, config.fuse_fd)
    notifications.start(engine.send)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=config.control_fd)))
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlServer(volumes, notifications).serve, listener)
            nursery.start_soon(_stop_when_told, signals, engine, nursery.cancel_scope)
            nursery.start_soon(_say_ready, config.ready_fd)
            await engine.run()
            log.info("%s is not served any more", config.mountpoint)
            nursery.cancel_scope.cancel()
    notifications.stop()


async def _stop_when_told(signals: AsyncIterator[int], engine: Engine, scope: trio.CancelScope) -> None:
    async for _ in signals:
        engine.stop()
        scope.deadline = trio.current_time() + STOP_GRACE


async def _say_ready(ready_fd: int) -> None:
    """Its turn comes when the other tasks have started."""
    await trio.lowlevel.checkpoint()
    try:
        os.write(ready_fd, b"1")
    except BrokenPipeError:
        pass  # nobody waits for it any more
    os.close(ready_fd)
