"""A client of the keeper's socket: JSON lines in and out, never waiting for either."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from fusevol.protocol.instance import MAX_LINE

_UCRED = struct.Struct("3i")


class Connection:
    """Registered with the keeper's selector; `pid` is the process that connected."""

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        self.socket = client
        self.pid, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._outgoing)

    def receive(self) -> list[dict[str, Any]] | None:
        """The requests that have arrived whole; None when the client has gone or does not speak JSON objects."""
        try:
            chunk = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not chunk or len(self._incoming) > MAX_LINE:
            return None
        self._incoming += chunk
        if b"\n" not in chunk:
            return []
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = rest
        try:
            requests = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return requests if all(isinstance(request, dict) for request in requests) else None

    def answer(self, message: dict[str, Any]) -> None:
        self._outgoing += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Sends what the socket takes. False when the client has gone."""
        while self._outgoing:
            try:
                sent = self.socket.send(self._outgoing)
            except BlockingIOError:
                return True
            except OSError:
                self._outgoing.clear()
                return False
            del self._outgoing[:sent]
        return True

    def close(self) -> None:
        self.socket.close()
