"""Who may change API volumes: one thread of the agent (ARCHITECTURE.md, "How a volume comes to be", 5).

The agent registers a nonce over the control socket, and its writer thread then looks that name up in the mount's root.
From then on the thread id of that request is the writer's, until the connection closes.
"""

from __future__ import annotations

from fusevol.server.inodes import Caller


class Writer:
    """The writer of the one agent that the server listens to."""

    def __init__(self) -> None:
        self._nonce: str | None = None
        self._pid: int | None = None

    def register(self, nonce: str) -> None:
        """The next lookup of `nonce` decides; who was the writer before is it no longer."""
        self._nonce, self._pid = nonce, None

    def forget(self) -> None:
        self._nonce = self._pid = None

    @property
    def confirmed(self) -> bool:
        return self._pid is not None

    def looked_up(self, name: str, caller: Caller) -> None:
        """Told of every name that is looked up in the root."""
        # pid 0 is everybody outside of the mounter's pid namespace
        if self._nonce is not None and name == self._nonce and caller.pid != 0:
            self._nonce, self._pid = None, caller.pid

    def is_writer(self, caller: Caller) -> bool:
        return self._pid is not None and caller.pid == self._pid
