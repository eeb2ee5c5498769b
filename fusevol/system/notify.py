"""sd_notify(3): telling the service manager how it stands, where there is one."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str, address: str | None = None) -> bool:
    """Sends `READY=1`, `STATUS=...` and the like to `address` (default: $NOTIFY_SOCKET, `@` for an abstract one).

    Returns whether it was sent. Never raises and never waits: a manager that does not listen must not stop us.
    """
    path = os.environ.get("NOTIFY_SOCKET") if address is None else address
    if not path:
        return False
    if path.startswith("@"):
        path = "\0" + path[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        try:
            client.sendto("\n".join(assignments).encode(), path)
        except OSError:
            return False
    return True
