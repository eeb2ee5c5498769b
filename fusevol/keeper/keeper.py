"""The keeper itself: what it does when something starts, dies, asks or tells it to stop."""

from __future__ import annotations

import contextlib
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
from fusevol.keeper.mounting import Mount, Place, covered
from fusevol.keeper.obstacle import Obstacle, find_obstacle, in_use
from fusevol.keeper.runtime import prepare
from fusevol.keeper.status import assemble
from fusevol.keeper.watch import PlaceWatch
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

LET_GO = 2.0
"""Seconds that the kernel may take to end a server on whose mount nobody stands any more."""


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
        self._place_watch: PlaceWatch
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
        prepare(instance, self._config.state_dir)
        self._server_socket = listen(instance.server_socket)
        self._agent_socket = listen(instance.agent_socket)
        self._clients = Clients(self._loop, listen(instance.keeper_socket), self._handle)
        self._loop.watch(self._signals, self._receive_signals)
        self._place_watch = PlaceWatch(self._loop, self._mount, self._config.mountpoint, self._log)

    def _close(self) -> None:
        self._clients.close()
        self._server_socket.close()
        self._agent_socket.close()
        self._place_watch.close()
        self._loop.close()

    # -------------------------------------------------------------------------------------------- server and agent

    def _start_server(self) -> None:
        """Mounts, after the remains of a dead server if there are any, and hands the connection over. Raises UserError.

        The keeper keeps no copy of the connection: the server's death is an error at once for everybody, not a hang.
        """
        match self._mount.place():
            case Place.TOP:
                self._mount.remove(detach=True)
            case Place.COVERED:
                raise UserError(covered(self._config.mountpoint))
        control_fd = self._server_socket.fileno()
        with contextlib.ExitStack() as handed_over:
            fuse_fd = self._mount.make()
            handed_over.callback(os.close, fuse_fd)
            ready, ready_fd = os.pipe()
            handed_over.callback(os.close, ready_fd)
            told = server_config(self._config, fuse_fd=fuse_fd, control_fd=control_fd, ready_fd=ready_fd)
            try:
                pidfd = self._server.start([*self._programs.server, told], [fuse_fd, control_fd, ready_fd])
            except BaseException:
                os.close(ready)
                raise
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
        elif code == 0 and self._mount_has_gone():
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

    def _mount_has_gone(self) -> bool:
        try:
            return self._mount.place() is Place.GONE
        except OSError:
            return False  # it is looked at again before the next server is started

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
        deadlines = [due for due in (self._server.due, self._agent.due, self._place_watch.due) if due is not None]
        if self._ready_fd is not None:
            deadlines.append(time.monotonic() + READY_WITHIN - self._server.lived)
        return min(deadlines, default=None)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for child, start in ((self._server, self._start_server), (self._agent, self._start_agent)):
            if child.due is not None and child.due <= now and self._exit_code is None:
                self._start_again(child, start)
        if self._place_watch.due is not None and self._place_watch.due <= now and self._exit_code is None:
            self._place_watch.look()
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
        agent = self._agent.status()
        return assemble(
            engine=self._config.engine,
            source_kind=self._config.source["kind"],
            keeper=process_status(os.getpid(), self._started_at, 0),
            server=self._server.status(),
            agent=agent,
            told=self._told,
            # one that has died just now may not have been reaped yet
            stale=not self._fresh or agent["pid"] is None,
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
        if not self._forced and (obstacle := self._obstacle()):
            self._stay(obstacle)
            return
        notify("STOPPING=1", f"STATUS=leaving {self._config.mountpoint}")
        if self._forced:
            self._log.warning(f"detaching {self._config.mountpoint}: who still stands on it gets ENOTCONN")
        try:
            removed = self._leave(detach=self._forced)
        except MountBusy:
            # by somebody who came in after we had looked, or whom we cannot see
            where = self._config.mountpoint
            self._stay(self._obstacle() or in_use(where, [Holder(0, "?", str(where))]))
            self._start_again(self._agent, self._start_agent)
            return
        self._exit_code = 0 if removed else 1

    def _obstacle(self) -> Obstacle | None:
        own = [pid for pid in (self._server.pid, self._agent.pid) if pid is not None]
        return find_obstacle(self._mount, self._config.mountpoint, own)

    def _stay(self, obstacle: Obstacle) -> None:
        """Tells everybody who wanted us to stop why we do not."""
        for client in self._waiting:
            self._clients.answer(client, obstacle.answer())
        *details, reason = obstacle.lines()
        for line in details:
            self._log.warning(line)
        advice = "; a second signal detaches it and leaves" if self._signalled else ""
        self._log.warning(f"{reason}{advice}")
        notify(f"STATUS={reason}")
        self._busy_said = self._busy_said or self._signalled
        self._signalled, self._waiting = False, []

    def _leave(self, detach: bool) -> bool:
        """Agent, mount, server, in this order. Returns whether the mount is gone from its place.

        Raises MountBusy: the mount is still there, or somewhere, and only the agent gone.
        """
        self._leaving = True
        self._server.due = self._agent.due = None
        self._end(self._agent, by_itself=False)
        detach = detach or self._forced or self._server.pid is None
        removed = True
        try:
            self._remove_mount(detach)
        except MountBusy:
            self._leaving = False
            raise
        except (UserError, OSError) as error:
            self._log.error(f"{self._config.mountpoint} stays mounted: {error}")
            detach, removed = True, False
        # without a mount the server leaves by itself, but not while somebody stands on what was detached
        self._end(self._server, by_itself=not (detach or self._forced))
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        shutil.rmtree(self._instance.directory, ignore_errors=True)
        answer = {"stopped": True} if removed else {"error": f"{self._config.mountpoint} stays mounted"}
        for client in self._waiting:
            self._clients.answer(client, answer)
        self._clients.flush(1.0)
        self._left = True
        return removed

    def _remove_mount(self, detach: bool) -> None:
        """Raises MountBusy; with `detach` UserError or OSError where nothing can be done about it."""
        try:
            place = self._mount.place()
        except OSError:
            if detach:
                raise
            raise MountBusy from None
        match place:
            case Place.TOP:
                self._mount.remove(detach)
            case Place.COVERED:
                raise UserError(covered(self._config.mountpoint)) if detach else MountBusy
            case Place.GONE if not detach:
                # the kernel ends the server when nobody stands on its mount, wherever that may be
                if not self._loop.until(lambda: self._server.pid is None or self._forced, LET_GO):
                    raise MountBusy

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
