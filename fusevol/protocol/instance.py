"""How an instance is found by its mount point, and the JSON lines spoken on the keeper's and the agent's sockets.

Standard library only: the keeper imports it. Below the runtime directory each instance has a directory named by a
digest of its mount point's absolute path, mode 0700:

    instance.json   {"mountpoint", "stateDir", "keeper": pid}
    keeper.sock     status, stop; the agent's state is told here
    server.sock     the control socket (messages.py)
    agent.sock      wait

All three sockets listen for as long as the keeper lives: it makes them and hands the last two to its children, so that
a client of a process that is being restarted waits instead of failing.

A request is one JSON object on one line, answered by one JSON object on one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from fusevol.model.errors import UserError

MAX_LINE = 64 << 20


class NoAnswer(UserError):
    """Whoever should answer is there, but has not answered within `seconds`."""

    def __init__(self, mountpoint: Path, seconds: float) -> None:
        super().__init__(f"{mountpoint}: no answer within {seconds:.10g} s", 1)


def default_runtime_dir() -> Path:
    """/run/fusevol, or $XDG_RUNTIME_DIR/fusevol for an ordinary user."""
    if os.geteuid() == 0:
        return Path("/run/fusevol")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/fusevol-{os.geteuid()}") / "fusevol"


def default_state_dir() -> Path:
    """/var/lib/fusevol, or $XDG_STATE_HOME/fusevol for an ordinary user."""
    if os.geteuid() == 0:
        return Path("/var/lib/fusevol")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "fusevol"


class Instance:
    """The paths of the instance that serves `mountpoint`; whether it runs is another question."""

    def __init__(self, runtime_dir: Path, mountpoint: Path) -> None:
        self.mountpoint = canonical(mountpoint)
        digest = hashlib.sha256(os.fsencode(self.mountpoint)).hexdigest()[:16]
        self.directory = runtime_dir.absolute() / digest
        self.description = self.directory / "instance.json"
        self.keeper_socket = self.directory / "keeper.sock"
        self.server_socket = self.directory / "server.sock"
        self.agent_socket = self.directory / "agent.sock"

    def ask_keeper(self, request: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
        """Raises UserError (exit code 3) where no keeper answers."""
        return self._ask(self.keeper_socket, request, timeout)

    def ask_agent(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Raises UserError: exit code 3 where no instance is; NoAnswer where none answers within `timeout` seconds."""
        return self._ask(self.agent_socket, request, timeout)

    def _ask(self, path: Path, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout)
            try:
                connect(client, path)
                client.sendall(json.dumps(request).encode() + b"\n")
                line = read_line(client)
            except TimeoutError:
                raise NoAnswer(self.mountpoint, timeout) from None
            except (FileNotFoundError, ConnectionRefusedError):
                raise UserError(f"no fusevol serves {self.mountpoint}", 3) from None
            except OSError as error:
                raise UserError(f"{self.mountpoint}: {error.strerror or error}", 1) from None
        if not line:
            raise UserError(f"{self.mountpoint}: the connection was closed without an answer", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


def canonical(mountpoint: Path) -> Path:
    """The absolute path with links resolved above the mount point only: the mount itself is not asked."""
    absolute = Path(os.path.normpath(mountpoint.absolute()))
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def connect(client: socket.socket, path: Path) -> None:
    """connect(2) for paths longer than sun_path as well. Raises OSError.

    Afterwards the socket is like any other: it may be made non-blocking and wrapped. A socket that is non-blocking
    before does not wait here either: BlockingIOError where the listener's backlog is full.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` (replacing a dead one), mode 0600."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    path.chmod(0o600)
    server.listen(64)
    return server


def read_line(client: socket.socket) -> bytes:
    """Up to and without the newline; b"" if the other side closed before one."""
    buffer = bytearray()
    while len(buffer) < MAX_LINE:
        chunk = client.recv(65536)
        if not chunk:
            return b""
        buffer += chunk
        if chunk.endswith(b"\n"):
            return bytes(buffer[:-1])
    return b""
