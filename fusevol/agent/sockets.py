"""Unix sockets for trio, whatever the length of their path."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from fusevol.protocol import instance

CONNECT_TIMEOUT = 2.0
"""Seconds: the keeper's sockets listen always, so connecting waits only where 64 others do already."""


def open_unix_socket(path: str) -> trio.SocketStream:
    """A connected stream; trio's own function takes 107 bytes at most. Raises OSError."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(CONNECT_TIMEOUT)
        instance.connect(client, Path(path))
        return trio.SocketStream(trio.socket.from_stdlib_socket(client))
    except BaseException:
        client.close()
        raise
