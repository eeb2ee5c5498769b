"""A server process on a mount of its own, without keeper and agent: the test speaks the control socket itself.

with ServerUnderTest(tmp_path) as server:
    server.publish(tree, ...)          # a PutObject and a Publish
    (server.mount / ref.path / "key").read_text()
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from fusevol.agent.publisher.atomic_writer import Step, perform, plan_update
from fusevol.model.objects import CONFIG_MAP
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import ContentRef, File, Literal, Tree, keyed_digest
from fusevol.model.volume import VolumeMeta, VolumeState
from fusevol.protocol import framing, messages
from fusevol.protocol.instance import connect, listen
from fusevol.system.libc import checked, libc
from fusevol.system.mounts import FSTYPE

MS_NOSUID, MS_NODEV = 2, 4
START_TIMEOUT = 20.0  # seconds

Result = TypeVar("Result")
Some = TypeVar("Some", bound=messages.Reply)

META = VolumeMeta("shop", "cart", 1, "2026-11-22T19:35:35Z")


class Writer:
    """A long-lived thread, as the agent's writer is one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while job := self._jobs.get():
            job()

    def __call__(self, function: Callable[..., Result], *args: Any) -> Result:
        future: Future[Result] = Future()

        def job() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future.result(timeout=30)

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join(10)


class Control:
    """One connection to the control socket. Requests are answered at once, so everything is synchronous."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        connect(self.socket, path)

    def ask(self, request: messages.Request) -> messages.Reply:
        self.socket.sendall(framing.encode(request))
        return self.receive()

    def receive(self) -> messages.Reply:
        """Raises EOFError where the server closed the connection."""
        return framing.decode_reply(self._exactly(framing.length(self._exactly(framing.HEADER.size))))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def expect(self, request: messages.Request, reply: type[Some]) -> Some:
        answer = self.ask(request)
        assert isinstance(answer, reply), answer
        return answer

    def hello(self) -> messages.Welcome:
        return self.expect(messages.Hello(), messages.Welcome)

    def close(self) -> None:
        self.socket.close()


class ServerUnderTest:
    """`python -m fusevol.server` on `directory`/mnt. Leaving the context unmounts and expects an orderly exit."""

    def __init__(self, directory: Path, **options: Any) -> None:
        """`options` are further keys of the server's configuration; `env` adds to its environment. With
        `foreign_pid_namespace` the mount belongs to a pid namespace that knows none of us."""
        self.mount = directory / "mnt"
        self.socket_path = directory / "server.sock"
        self.log = directory / "server.log"
        self._env: Mapping[str, str] = options.pop("env", {})
        self._foreign: bool = options.pop("foreign_pid_namespace", False)
        self._options = options
        self._writer: Writer | None = None
        self._objects: dict[ObjectRef, tuple[str, dict[str, bytes]]] = {}
        self._versions = 0

    def __enter__(self) -> ServerUnderTest:
        self.mount.mkdir(mode=0o755)
        self.fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fuse_fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        if self._foreign:
            _mount_in_another_pid_namespace(self.mount, options, self.fuse_fd)
        else:
            mount_fuse(str(self.mount), options)
        listener = listen(self.socket_path)
        ready, ready_fd = os.pipe()
        config = {
            "fuseFd": self.fuse_fd,
            "controlFd": listener.fileno(),
            "readyFd": ready_fd,
            "mountpoint": str(self.mount),
            **self._options,
        }
        fds = (self.fuse_fd, listener.fileno(), ready_fd)
        command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "fusevol.server"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, msgspec.json.encode(config).decode()],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1", **self._env},
            )
        for fd in (self.fuse_fd, ready_fd):
            os.close(fd)
        listener.close()
        try:
            os.set_blocking(ready, True)
            with os.fdopen(ready, "rb") as pipe:
                assert pipe.read(1) == b"1", self.log.read_text()
            self.control = Control(self.socket_path)
            self.welcome = self.control.hello()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.control.close()
        if self._writer is not None:
            self._writer.stop()
        self._end()
        if kind is None:
            assert self.process.returncode == 0, (self.process.returncode, self.log.read_text())

    def _end(self) -> None:
        _unmount(self.mount)
        # a mount namespace that somebody made meanwhile may hold a copy of the mount: then SIGTERM has to do
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                self.process.wait(10)
                return
            except subprocess.TimeoutExpired:
                self.process.send_signal(number)
        self.process.wait(10)

    # ---------------------------------------------------------------------------------------- what an agent does

    def put(self, ref: ObjectRef, data: Mapping[str, bytes]) -> None:
        """The object's next version."""
        self._versions += 1
        version = str(self._versions)
        self._objects[ref] = (version, dict(data))
        views = {key: memoryview(value) for key, value in data.items()}
        self.control.expect(messages.PutObject(ref, version, views), messages.Done)

    def file(self, path: str, ref: ObjectRef, key: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> File:
        """A file that shows `key` of the object's newest version."""
        version, data = self._objects[ref]
        digest = keyed_digest(self.welcome.digest_key, data[key])
        return File(path, mode, ContentRef(ref, version, key, digest), uid, gid)

    def tree(self, ref: ObjectRef, **fields: Any) -> Tree:
        """All keys of the object's newest version."""
        return Tree(tuple(self.file(key, ref, key) for key in self._objects[ref][1]), **fields)

    def digest(self, tree: Tree) -> str:
        return tree.digest(self.welcome.digest_key)

    def publish(
        self,
        volume: VolumeRef,
        tree: Tree,
        directory: str = "..2026_11_22_19_35_31.3068194639",
        meta: VolumeMeta = META,
    ) -> Path:
        """The volume's root."""
        request = messages.Publish(volume, directory, tree, self.digest(tree), meta)
        self.control.expect(request, messages.Done)
        return self.mount / volume.path

    def unpublish(self, volume: VolumeRef) -> None:
        self.control.expect(messages.Unpublish(volume), messages.Done)

    def stage(self, volume: VolumeRef, tree: Tree, directory: str, meta: VolumeMeta = META) -> messages.View:
        request = messages.Stage(volume, directory, tree, self.digest(tree), meta)
        return self.control.expect(request, messages.View)

    def update(self, volume: VolumeRef, tree: Tree, directory: str, *, removals: bool = True) -> None:
        """Stages and makes the change through the mount, in the writer's thread."""
        view = self.stage(volume, tree, directory).view
        update = plan_update(view, directory, tree)
        self.write(volume, update.steps)
        for steps in update.removals.values() if removals else ():
            self.write(volume, steps)

    def write(self, volume: VolumeRef, steps: Iterable[Step], thread: Writer | None = None) -> None:
        """Makes the calls in the writer's thread, or in another one."""

        def work() -> None:
            mount = os.open(self.mount, os.O_PATH | os.O_DIRECTORY)
            try:
                perform(mount, volume.path, steps)
            finally:
                os.close(mount)

        (thread or self.writer)(work)

    @property
    def writer(self) -> Writer:
        """The writer's thread, introduced to the server."""
        if self._writer is None:
            self._writer = Writer()
            self.control.expect(messages.RegisterWriter("..nonce-1"), messages.Done)
            assert not self._writer(os.path.exists, self.mount / "..nonce-1")
            self.control.expect(messages.ConfirmWriter(), messages.Done)
        return self._writer

    def volumes(self) -> dict[VolumeRef, VolumeState]:
        listed = self.control.expect(messages.ListVolumes(), messages.Volumes)
        return {state.ref: state for state in listed.volumes}

    def logged(self) -> str:
        return self.log.read_text()


def literal_tree(files: Mapping[str, bytes], **fields: Any) -> Tree:
    return Tree(tuple(File(path, 0o644, Literal(data)) for path, data in files.items()), **fields)


def config_map(name: str) -> ObjectRef:
    return ObjectRef(CONFIG_MAP, "shop", name)


def errno_of(function: Callable[[], object]) -> str:
    """`ok`, or the name of the errno of the OSError that `function` raises."""
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    """Whether `condition` becomes true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mount_fuse(mountpoint: str, options: str) -> None:
    arguments = (b"fusevol", os.fsencode(mountpoint), FSTYPE.encode(), ctypes.c_ulong(MS_NOSUID | MS_NODEV))
    checked(libc.mount, *arguments, options.encode(), path=mountpoint)


def _mount_in_another_pid_namespace(mountpoint: Path, options: str, fuse_fd: int) -> None:
    code = "import sys; from tests.support.server import mount_fuse; mount_fuse(*sys.argv[1:])"
    command = ["unshare", "--pid", "--fork", "--", sys.executable, "-c", code, str(mountpoint), options]
    subprocess.run(command, pass_fds=[fuse_fd], check=True, timeout=30)


def _unmount(mountpoint: Path) -> None:
    checked(libc.umount2, os.fsencode(mountpoint), 0, path=mountpoint)
