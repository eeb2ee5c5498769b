"""The keeper itself: what it does when something starts, dies, asks or tells it to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from fusevol.keeper.child import Child, how_it_ended, process_status
from fusevol.keeper.clients import Clients
from fusevol.keeper.config import Config, Programs, agent_config, server_config
from fusevol.keeper.connection import Connection
from fusevol.keeper.log import Log
from fusevol.keeper.loop import Loop
from fusevol.keeper.mounting import Mount
from fusevol.keeper.status import assemble
from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance, listen
from fusevol.system.holders import Holder
from fusevol.system.mount import MountBusy
from fusevol.system.notify import notify

REFUSED = 4
"""Exit code of a child that may not do what it must: trying again would not help."""

EARLY_DEATHS = 3
"""So often may the server die without ever having served, until it is given up."""

READY_WITHIN = 30.0
"""Seconds that the server may take to serve; then it is killed and started again."""

GRACE = 5.0
"""Seconds that a process may take to leave when it is told to, before it is killed."""

SHOWN_HOLDERS = 50


class Keeper:
    """Runs in one thread, the main one of its process.

    `signals` is a descriptor from which the numbers of signals are read, one byte each. When `run` returns or raises
    UserError, children, mount and runtime directory are gone. A keeper that is killed leaves all of them, and the
    server serves on.
    """

    def __init__(self, config: Config, programs: Programs, mount: Mount, signals: int, log: Log) -> None:
        self._config = config
        self._programs = programs
        self._mount = mount
        self._signals = signals
        self._log = log
        self._loop = Loop()
        self._instance = Instance(config.runtime_dir, config.mountpoint)
        self._server = Child("server")
        self._agent = Child("agent")
        self._lock_fd = config.lock_fd
        self._started_at = time.time()

        self._server_socket: socket.socket
        self._agent_socket: socket.socket
        self._clients: Clients
        self._ready_fd: int | None = None  # the server has not said yet that it serves
        self._served = False  # a server has said so at least once
        self._early_deaths = 0

        self._told: dict[str, Any] | None = None  # the agent's last state
        self._fresh = False  # told by the agent that lives now

        self._signalled = False  # somebody wants us to stop by signal,
        self._waiting: list[Connection] = []  # and these clients, who want to know how it went
        self._busy_said = False  # to whoever sent a signal: the next one means it
        self._forced = False
        self._leaving = False
        self._left = False
        self._exit_code: int | None = None
        self._failure: str | None = None

    def run(self) -> int:
        """Until it is told to stop. Returns the exit code; raises UserError where it could not begin or go on."""
        self._open()
        try:
            self._start_server()
        except (UserError, OSError) as error:
            self._fail(error.exit_code if isinstance(error, UserError) else 1, str(error))
        while self._exit_code is None:
            self._loop.turn(self._next_deadline())
            self._do_what_is_due()
            if (self._signalled or self._waiting) and self._exit_code is None:
                self._try_to_stop()
        if not self._left:
            self._leave(detach=True)
        self._close()
        if self._failure is not None:
            raise UserError(self._failure, self._exit_code)
        return self._exit_code

    # -------------------------------------------------------------------------------------------- opening, closing

    def _open(self) -> None:
        instance = self._instance
        self._config.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        instance.directory.mkdir(mode=0o700, exist_ok=True)
        instance.description.write_text(
            json.dumps(
                {
                    "mountpoint": str(instance.mountpoint),
                    "stateDir": str(self._config.state_dir),
                    "keeper": os.getpid(),
                }
            )
        )
        self._server_socket = listen(instance.server_socket)
        self._agent_socket = listen(instance.agent_socket)
        self._clients = Clients(self._loop, listen(instance.keeper_socket), self._handle)
        self._loop.watch(self._signals, self._receive_signals)

    def _close(self) -> None:
        self._clients.close()
        self._server_socket.close()
        self._agent_socket.close()
        self._loop.close()

    # -------------------------------------------------------------------------------------------- server and agent

    def _start_server(self) -> None:
        """Mounts, after the remains of a dead server if there are any, and hands the connection over. Raises UserError.

        The keeper keeps no copy of the connection: the server's death is an error at once for everybody, not a hang.
        """
        if self._mount.stands():
            self._mount.remove(detach=True)
        fuse_fd = self._mount.make()
        control_fd = self._server_socket.fileno()
        ready, ready_fd = os.pipe()
        try:
            told = server_config(self._config, fuse_fd=fuse_fd, control_fd=control_fd, ready_fd=ready_fd)
            pidfd = self._server.start([*self._programs.server, told], [fuse_fd, control_fd, ready_fd])
        finally:
            os.close(fuse_fd)
            os.close(ready_fd)
        self._ready_fd = ready
        self._loop.watch(ready, self._server_ready)
        self._loop.watch(pidfd, self._server_ended)

    def _server_ready(self) -> None:
        assert self._ready_fd is not None
        ready = os.read(self._ready_fd, 1)
        self._forget_ready()
        if not ready:
            return  # it ends, and its end is told otherwise
        where = self._config.mountpoint
        self._log.info(f"serving {where} (engine {self._config.engine}, pid {self._server.pid})")
        notify("READY=1", f"STATUS=serving {where}")
        if not self._served:
            self._served = True
            self._start_again(self._agent, self._start_agent)

    def _forget_ready(self) -> None:
        if self._ready_fd is not None:
            self._loop.forget(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = None

    def _server_ended(self) -> None:
        lived, code = self._server.lived, self._reap(self._server)
        self._forget_ready()
        if self._leaving:
            return
        if not self._served:
            self._early_deaths += 1
        if code == REFUSED:
            self._fail(REFUSED, None)
        elif code == 0 and not self._mount.stands():
            self._log.warning(f"{self._config.mountpoint} was unmounted by somebody else: leaving")
            self._exit_code = 0
        elif not self._served and self._early_deaths >= EARLY_DEATHS:
            what = f"the server died {EARLY_DEATHS} times before it ever served {self._config.mountpoint}"
            self._fail(1, f"{what} (the last time: {how_it_ended(code)})")
        else:
            delay = self._start_later(self._server, lived)
            self._log.error(
                f"the server died ({how_it_ended(code)}): all volumes answer ENOTCONN until {self._config.mountpoint} "
                f"is mounted afresh, {_in(delay)}; containers keep the dead mount until they are started again"
            )

    def _start_agent(self) -> None:
        instance, agent_fd = self._instance, self._agent_socket.fileno()
        told = agent_config(
            self._config,
            agent_fd=agent_fd,
            server_socket=instance.server_socket,
            keeper_socket=instance.keeper_socket,
        )
        # the state directory's lock lives as long as either of us: nobody else may work on it
        fds = [agent_fd] if self._lock_fd is None else [agent_fd, self._lock_fd]
        self._fresh = False
        self._loop.watch(self._agent.start([*self._programs.agent, told], fds), self._agent_ended)

    def _agent_ended(self) -> None:
        lived, code = self._agent.lived, self._reap(self._agent)
        self._fresh = False
        if self._leaving:
            return
        if code == REFUSED:
            self._fail(REFUSED, None)
            return
        delay = self._start_later(self._agent, lived)
        how = how_it_ended(code)
        self._log.error(f"the agent died ({how}): volumes stay as they are; it is started again {_in(delay)}")

    def _reap(self, child: Child) -> int:
        assert child.pidfd is not None
        self._loop.forget(child.pidfd)
        return child.reap()

    def _start_later(self, child: Child, lived: float) -> float:
        delay = child.backoff.after(lived)
        child.due = time.monotonic() + delay
        return delay

    def _next_deadline(self) -> float | None:
        deadlines = [child.due for child in (self._server, self._agent) if child.due is not None]
        if self._ready_fd is not None:
            deadlines.append(time.monotonic() + READY_WITHIN - self._server.lived)
        return min(deadlines, default=None)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for child, start in ((self._server, self._start_server), (self._agent, self._start_agent)):
            if child.due is not None and child.due <= now and self._exit_code is None:
                self._start_again(child, start)
        if self._ready_fd is not None and self._server.lived > READY_WITHIN:
            self._log.error(f"the server does not serve after {READY_WITHIN:g} s: killing it")
            self._forget_ready()
            self._server.signal(signal.SIGKILL)

    def _start_again(self, child: Child, start: Callable[[], None]) -> None:
        try:
            start()
        except (UserError, OSError) as error:
            delay = self._start_later(child, 0.0)
            self._log.error(f"the {child.name} cannot be started: {error}; the next attempt comes {_in(delay)}")

    def _fail(self, exit_code: int, message: str | None) -> None:
        """`message` None: the child has said it."""
        self._exit_code, self._failure = exit_code, message

    # -------------------------------------------------------------------------------------------- clients

    def _handle(self, client: Connection, request: dict[str, Any]) -> None:
        match request.get("op"):
            case "status":
                self._clients.answer(client, self.status())
            case "stop":
                self._waiting.append(client)
            case "state" if client.pid == self._agent.pid and isinstance(request.get("state"), dict):
                self._told, self._fresh = request["state"], True
            case _:
                self._clients.answer(client, {"error": "no such operation"})

    def status(self) -> dict[str, Any]:
        """docs/status.md."""
        return assemble(
            engine=self._config.engine,
            source_kind=self._config.source["kind"],
            keeper=process_status(os.getpid(), self._started_at, 0),
            server=self._server.status(),
            agent=self._agent.status(),
            told=self._told,
            stale=not self._fresh,
        )

    # -------------------------------------------------------------------------------------------- stopping

    def _receive_signals(self) -> None:
        for number in os.read(self._signals, 64):
            if number in (signal.SIGTERM, signal.SIGINT):
                # also while we are leaving: whoever sends a second one does not want to wait
                self._forced = self._busy_said or self._leaving
                self._signalled = True

    def _try_to_stop(self) -> None:
        """Leaves if nobody stands on the mount, or if that is what a second signal wants."""
        if not self._forced:
            holding = self._mount.holders(self._own_processes())
            if holding:
                self._say_busy(holding)
                return
        notify("STOPPING=1", f"STATUS=leaving {self._config.mountpoint}")
        if self._forced:
            self._log.warning(f"detaching {self._config.mountpoint}: who still stands on it gets ENOTCONN")
        try:
            self._leave(detach=self._forced)
        except MountBusy:
            # somebody came in after we had looked
            self._say_busy(self._mount.holders(self._own_processes()) or [Holder(0, "?", str(self._config.mountpoint))])
            self._start_again(self._agent, self._start_agent)
            return
        self._exit_code = 0

    def _say_busy(self, holding: list[Holder]) -> None:
        for client in self._waiting:
            self._clients.answer(client, {"busy": [holder._asdict() for holder in holding]})
        for holder in holding[:SHOWN_HOLDERS]:
            self._log.warning(f"in use by pid {holder.pid} ({holder.command}): {holder.path}")
        more = f" ({len(holding) - SHOWN_HOLDERS} more)" if len(holding) > SHOWN_HOLDERS else ""
        advice = "; a second signal detaches it and leaves" if self._signalled else ""
        self._log.warning(f"{self._config.mountpoint} is in use{more} and stays mounted{advice}")
        notify(f"STATUS={self._config.mountpoint} is in use and stays mounted")
        self._busy_said = self._busy_said or self._signalled
        self._signalled, self._waiting = False, []

    def _own_processes(self) -> list[int]:
        return [pid for pid in (self._server.pid, self._agent.pid) if pid is not None]

    def _leave(self, detach: bool) -> None:
        """Agent, mount, server, in this order. Raises MountBusy: the mount is still there and only the agent gone."""
        self._leaving = True
        self._server.due = self._agent.due = None
        self._end(self._agent, by_itself=False)
        detach = detach or self._forced or self._server.pid is None
        if self._mount.stands():
            try:
                self._mount.remove(detach)
            except MountBusy:
                self._leaving = False
                raise
            except UserError as error:
                self._log.error(str(error))
                detach = True
        # without a mount the server leaves by itself, but not while somebody stands on what was detached
        self._end(self._server, by_itself=not detach)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        shutil.rmtree(self._instance.directory, ignore_errors=True)
        for client in self._waiting:
            self._clients.answer(client, {"stopped": True})
        self._clients.flush(1.0)
        self._left = True

    def _end(self, child: Child, *, by_itself: bool) -> None:
        """Waits until it has gone: by itself, when told, killed. A signal that comes meanwhile shortens the waiting."""
        forced = self._forced

        def gone_or_hurry() -> bool:
            return child.pid is None or self._forced is not forced

        if not (by_itself and self._loop.until(gone_or_hurry, GRACE)):
            child.signal(signal.SIGTERM)
            self._loop.until(gone_or_hurry, GRACE)
        if child.pid is not None:
            self._log.warning(f"the {child.name} does not leave: killing it")
            child.signal(signal.SIGKILL)
            self._loop.until(lambda: child.pid is None, GRACE)


def _in(delay: float) -> str:
    return f"in {delay:g} s" if delay else "at once"
