"""The server's side of the control socket (`fusevol.protocol.messages`).

Requests of one connection are answered one after the other, each when the kernel knows of what it changed. The newest
connection that says Hello is the agent's: an older one is closed, and its writer is the writer no longer. Whatever a
peer sends, the worst that happens is that its connection is closed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any, TypeAlias

import trio

from fusevol.model.errors import FusevolError, ProtocolError
from fusevol.protocol import framing, messages
from fusevol.protocol.messages import Done, Failed, Reply, Request
from fusevol.server.notifications import NotificationThread
from fusevol.server.volumes import Volumes

log = logging.getLogger(__name__)

REUSED = 256 << 10
"""Bytes of a connection's receive buffer. A message that is longer gets a buffer of its own."""

PATIENCE = 10.0
"""Seconds after which the log tells that the kernel has not taken a notification yet."""

Handler: TypeAlias = Callable[[Any], Reply | None]


class ControlServer:
    """Applies what the agent asks for to `volumes`."""

    def __init__(self, volumes: Volumes, notifications: NotificationThread) -> None:
        self._volumes = volumes
        self._notifications = notifications
        self._agent: trio.SocketStream | None = None  # the connection that said Hello last
        self._digest_key = secrets.token_bytes(32)
        self._incarnation = secrets.token_hex(8)
        self._handlers: dict[type[Request], Handler] = {
            messages.PutObject: lambda m: volumes.contents.put(m.ref, m.version, m.data),
            messages.DropObject: lambda m: volumes.contents.drop(m.ref),
            messages.AddPod: lambda m: volumes.add_pod(m.uid),
            messages.AddPlugin: lambda m: volumes.add_plugin(m.uid, m.plugin),
            messages.RemovePod: lambda m: volumes.remove_pod(m.uid),
            messages.Publish: lambda m: volumes.publish(m.volume, m.directory, m.tree, m.digest, m.meta),
            messages.Stage: lambda m: messages.View(volumes.stage(m.volume, m.directory, m.tree, m.digest, m.meta)),
            messages.Annotate: lambda m: volumes.annotate(m.volume, m.meta),
            messages.PublishEmptyDir: lambda m: volumes.publish_empty_dir(m.volume, m.backing, m.mode, m.gid, m.meta),
            messages.Unpublish: lambda m: volumes.unpublish(m.volume),
            messages.SetName: lambda m: volumes.set_name(m.namespace, m.name, m.uid),
            messages.ListVolumes: lambda _: messages.Volumes(volumes.states()),
            messages.RegisterWriter: lambda m: volumes.writer.register(m.nonce),
            messages.ConfirmWriter: lambda _: self._confirm_writer(),
        }

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serves every connection until cancelled."""
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError):
            pass  # it went, or a newer agent took over
        except ProtocolError as error:
            log.warning("control connection closed: %s", error)
        except Exception:
            log.exception("control connection closed")
        finally:
            if self._agent is stream:
                self._agent = None
                self._volumes.writer.forget()
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        """Raises ProtocolError where the end of the message cannot be known."""
        header = bytearray(framing.HEADER.size)
        reused = bytearray(REUSED)
        while await _receive(stream, memoryview(header)):
            size = framing.length(header)
            buffer = reused if size <= REUSED else bytearray(size)
            body = memoryview(buffer)[:size]
            try:
                if not await _receive(stream, body):
                    return
                # one expression: nothing may keep the decoded request, which has views into the buffer
                reply = await self._answer(stream, body)
            finally:
                body[:] = bytes(size)  # contents of Secrets may stand there
                body.release()
            await stream.send_all(framing.encode(reply))

    async def _answer(self, stream: trio.SocketStream, body: memoryview) -> Reply:
        try:
            reply = await self._obey(stream, framing.decode_request(body))
        except (FusevolError, OSError) as error:
            return Failed(str(error))
        except trio.ClosedResourceError:
            raise
        except Exception as error:
            log.exception("a request of the agent's failed")
            return Failed(f"{type(error).__name__} in the server")
        await self._told()
        return reply

    async def _obey(self, stream: trio.SocketStream, request: Request) -> Reply:
        if isinstance(request, messages.Hello):
            return await self._welcome(stream, request)
        if stream is not self._agent:
            raise ProtocolError("Hello comes first")
        return self._handlers[type(request)](request) or Done()

    async def _welcome(self, stream: trio.SocketStream, hello: messages.Hello) -> Reply:
        if hello.version != messages.VERSION:
            return Failed(f"the server speaks version {messages.VERSION}, not {hello.version}")
        older, self._agent = self._agent, stream
        self._volumes.writer.forget()
        if older is not None and older is not stream:
            log.info("another agent takes over")
            await trio.aclose_forcefully(older)
        volumes = self._volumes
        return messages.Welcome(
            version=messages.VERSION,
            digest_key=self._digest_key,
            incarnation=self._incarnation,
            pods=volumes.pods,
            names=volumes.names,
            objects=volumes.contents.refs,
        )

    def _confirm_writer(self) -> Reply:
        if self._volumes.writer.confirmed:
            return Done()
        return Failed("no thread that the server can identify has looked the nonce up")

    async def _told(self) -> None:
        """Returns when the kernel knows of all changes: a directory that is gone by name is not found any more, and
        what the agent makes next cannot meet a notification of what it removed before."""
        if self._notifications.idle:
            return  # spares most requests a turn through the other thread
        sent = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self._notifications.then(lambda: token.run_sync_soon(sent.set))
        while not sent.is_set():
            with trio.move_on_after(PATIENCE):
                await sent.wait()
            if not sent.is_set():
                log.warning("the kernel has been taking a notification for %g s", PATIENCE)


async def _receive(stream: trio.SocketStream, into: memoryview) -> bool:
    """Fills `into`; False if the connection ends before."""
    filled = 0
    while filled < len(into):
        count = await stream.socket.recv_into(into[filled:])
        if not count:
            return False
        filled += count
    return True
