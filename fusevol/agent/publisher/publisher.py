"""What the reconciler decides is made visible here: contents, first set-ups and removals over the control socket,
updates staged there and then made through the mount by the writer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

import structlog
import trio

from fusevol.agent.publisher.atomic_writer import Step, Update, directory_name, perform, plan_finish, plan_update
from fusevol.agent.publisher.connection import Connection, RequestFailed, connect
from fusevol.agent.publisher.writer import Writer
from fusevol.model.errors import ServerGone
from fusevol.model.objects import SecretBytes
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeMeta, VolumeState, VolumeView
from fusevol.protocol import messages

log = structlog.get_logger()

REMOVAL_DELAY = 1.0
"""Seconds from an update to the removal of the directory it replaced, so that a reader in the middle of a path finds
what it set out for (FUSE.md 4)."""

FIRST_DELAY = 0.02
"""Seconds before the second attempt to connect; doubled up to 1 s."""

Connected = Callable[[messages.Welcome, tuple[VolumeState, ...]], Awaitable[None]]


class Publisher:
    """The connection to the server and the writer. `run` keeps both up; without them every call raises ServerGone."""

    def __init__(self, socket_path: str, mountpoint: str, removal_delay: float = REMOVAL_DELAY) -> None:
        self._socket_path = socket_path
        self._mountpoint = mountpoint
        self._removal_delay = removal_delay
        self._connection: Connection | None = None
        self._nursery: trio.Nursery | None = None
        self._writer: Writer | None = None
        self._delay = FIRST_DELAY  # seconds until the next attempt to connect
        self._mount: int | None = None  # descriptor of the mount's root, for the writer only
        self._retired: dict[tuple[VolumeRef, str], list[Step]] = {}  # directories whose removal is under way

    async def run(self, connected: Connected, disconnected: Callable[[], None]) -> None:
        """Connects again and again until cancelled; tells of each connection and of its loss."""
        told = ""
        self._delay = FIRST_DELAY
        while True:
            try:
                async with connect(self._socket_path) as connection:
                    await self._serve(connection, connected, disconnected)
            except* ServerGone as errors:
                log.debug("no server", error=_words(errors))
            except* (OSError, RequestFailed) as errors:
                if _words(errors) != told:
                    told = _words(errors)
                    log.error("cannot work with the server", error=told)
            await trio.sleep(self._delay)
            self._delay = min(self._delay * 2, 1.0)

    async def _serve(self, connection: Connection, connected: Connected, disconnected: Callable[[], None]) -> None:
        try:
            welcome = await connection.request(messages.Hello(), messages.Welcome)
            await self._introduce_writer(connection)
            listed = await connection.request(messages.ListVolumes(), messages.Volumes)
            async with trio.open_nursery() as nursery:
                await connected(welcome, listed.volumes)
                # not before: what was published while the state was taken over would be unknown
                self._connection, self._nursery, self._delay = connection, nursery, FIRST_DELAY
                log.info("connected to the server", volumes=len(listed.volumes))
                await connection.closed.wait()
                log.warning("the connection to the server is lost")
                nursery.cancel_scope.cancel()
        finally:
            self._connection = self._nursery = None
            disconnected()
            self._retired.clear()
            self._dismiss_writer()

    async def _introduce_writer(self, connection: Connection) -> None:
        """The server learns the writer's thread id from a lookup of a name that nobody else can know."""
        nonce = f"..writer-{secrets.token_hex(16)}"
        self._writer = Writer()
        await connection.request(messages.RegisterWriter(nonce), messages.Done)
        self._mount = await self._writer.run(_look_up, self._mountpoint, nonce)
        await connection.request(messages.ConfirmWriter(), messages.Done)

    def _dismiss_writer(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        if self._mount is not None:
            os.close(self._mount)
            self._mount = None

    async def send(self, message: messages.Request) -> None:
        """Any request whose answer is Done. Raises RequestFailed, ServerGone."""
        if self._connection is None:
            raise ServerGone("not connected to the server")
        await self._connection.request(message, messages.Done)

    async def put_object(self, ref: ObjectRef, version: str, data: Mapping[str, SecretBytes]) -> None:
        await self.send(messages.PutObject(ref, version, {key: value.reveal() for key, value in data.items()}))

    async def publish(self, ref: VolumeRef, tree: Tree, digest: str, meta: VolumeMeta) -> None:
        """A first set-up, visible in one step. Raises RequestFailed, ServerGone."""
        await self.send(messages.Publish(ref, _new_directory(), tree, digest, meta))

    async def update(self, ref: VolumeRef, tree: Tree, digest: str, meta: VolumeMeta) -> None:
        """Another version of a published volume. Returns when it is visible; what it replaced goes a moment later.
        Raises RequestFailed, ServerGone, and OSError where the mount refuses."""
        directory = _new_directory()
        view = await self._stage(messages.Stage(ref, directory, tree, digest, meta))
        await self._make(ref, plan_update(view, directory, tree))

    async def finish(self, ref: VolumeRef, meta: VolumeMeta) -> None:
        """Puts right what an interrupted update left of the version that is served. Raises as `update`."""
        view = await self._stage(messages.Stage(ref, "", Tree(()), "", meta))
        await self._make(ref, plan_finish(view))

    async def _stage(self, request: messages.Stage) -> VolumeView:
        if self._connection is None:
            raise ServerGone("not connected to the server")
        return (await self._connection.request(request, messages.View)).view

    async def _make(self, ref: VolumeRef, update: Update) -> None:
        if self._nursery is None:
            raise ServerGone("not connected to the server")
        await self._write(ref, update.steps)
        for name, steps in update.removals.items():
            if (ref, name) not in self._retired:
                self._retired[ref, name] = steps
                self._nursery.start_soon(self._remove, ref, name)

    async def _remove(self, ref: VolumeRef, directory: str) -> None:
        await trio.sleep(self._removal_delay)
        steps = self._retired[ref, directory]
        try:
            await self._write(ref, steps)
        except FileNotFoundError:
            pass  # the volume went meanwhile
        except (OSError, ServerGone) as error:
            log.warning("an old version was not removed", volume=str(ref), directory=directory, error=str(error))
        finally:
            self._retired.pop((ref, directory), None)

    async def _write(self, ref: VolumeRef, steps: list[Step]) -> None:
        if self._writer is None or self._mount is None:
            raise ServerGone("not connected to the server")
        if steps:
            await self._writer.run(perform, self._mount, ref.path, steps)


def _look_up(mountpoint: str, nonce: str) -> int:
    """In the writer's thread: a descriptor of the mount's root. The nonce is never found; looking is what counts."""
    mount = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.stat(nonce, dir_fd=mount, follow_symlinks=False)
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(mount)
        raise
    return mount


def _words(errors: BaseExceptionGroup[BaseException]) -> str:
    return "; ".join(_words(e) if isinstance(e, BaseExceptionGroup) else str(e) for e in errors.exceptions)


def _new_directory() -> str:
    return directory_name(datetime.now(UTC), secrets.randbelow(1 << 32))
