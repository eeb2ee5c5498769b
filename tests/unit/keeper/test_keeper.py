"""The keeper with a mount and children of the tests' own: what it does, without a file system."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusevol.keeper.config import Config, Programs
from fusevol.keeper.keeper import GRACE, Keeper
from fusevol.keeper.log import Log
from fusevol.keeper.mounting import Place
from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance
from fusevol.system.holders import Holder
from fusevol.system.mount import MountBusy

CHILDREN = str(Path(__file__).with_name("children.py"))


class FakeMount:
    """A pipe: whoever serves its reading end sees the end of it when it is removed."""

    def __init__(self) -> None:
        self.made = 0
        self.detached: list[bool] = []
        self.holding: list[Holder] = []
        self.busy_once = False
        self.elsewhere: Place | None = None  # somebody has put something over it, or taken it from its place
        self.failing: int | None = None  # the errno of a look at it
        self._kept: int | None = None

    def make(self) -> int:
        reading, self._kept = os.pipe()
        self.made += 1
        return reading

    def place(self) -> Place:
        if self.failing is not None:
            raise OSError(self.failing, os.strerror(self.failing))
        if self._kept is None:
            return Place.GONE
        return self.elsewhere or Place.TOP

    def holders(self, exclude: Iterable[int]) -> list[Holder]:
        assert all(pid > 1 for pid in exclude)
        return self.holding

    def remove(self, detach: bool) -> None:
        if self.busy_once and not detach:
            self.busy_once = False
            raise MountBusy
        assert self.elsewhere is None
        self.detached.append(detach)
        self.vanish()

    def vanish(self) -> None:
        assert self._kept is not None
        os.close(self._kept)
        self._kept = None


class Running:
    """A keeper in a thread."""

    def __init__(self, directory: Path, server: str | None, agent: str, lock_fd: int | None) -> None:
        self.mount = FakeMount()
        self.log = io.StringIO()
        self.instance = Instance(directory / "run", directory / "mnt")
        config = Config(
            mountpoint=self.instance.mountpoint,
            runtime_dir=directory / "run",
            state_dir=directory / "state",
            node="n",
            source={"kind": "manifests", "directory": str(directory)},
            lock_fd=lock_fd,
        )
        told = str(directory / "told")
        programs = Programs(
            (sys.executable, CHILDREN, server, told) if server else (str(directory / "no such program"),),
            (sys.executable, CHILDREN, agent, told),
        )
        self._signals, self._sender = os.pipe()
        self._keeper = Keeper(config, programs, self.mount, self._signals, Log(stream=self.log))
        self._result: list[int | UserError] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._keeper.run())
        except UserError as error:
            self._result.append(error)

    def signal(self, number: int = signal.SIGTERM) -> None:
        os.write(self._sender, bytes([number]))

    def ended(self, seconds: float = 10.0) -> int | UserError:
        """What `run` returned or raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self.log.getvalue()
        (result,) = self._result
        return result

    def ask(self, op: str) -> dict[str, Any]:
        return self.instance.ask_keeper({"op": op})

    def pid(self, process: str) -> int | None:
        pid = self.ask("status")["processes"][process]["pid"]
        assert pid is None or isinstance(pid, int)
        return pid

    def kill(self, process: str) -> int:
        pid = self.pid(process)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> None:
        """Ends a keeper that a failed test left."""
        for _ in range(3):
            if self._thread.is_alive():
                self.signal()
                self._thread.join(3)
        os.close(self._signals)
        os.close(self._sender)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start(server: str | None = "server", agent: str = "agent", lock_fd: int | None = None) -> Running:
        running.append(Running(tmp_path, server, agent, lock_fd))
        return running[-1]

    yield start
    for keeper in running:
        keeper.close()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except UserError:
            pass  # the socket is not there yet
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(running: Running) -> bool:
    return running.ask("status")["stale"] is False


def test_it_starts_both_and_leaves_nothing_when_told_to_stop(start: Start) -> None:
    running = start()
    eventually(lambda: told(running))
    status = running.ask("status")
    assert status["engine"] == "pyfuse3"
    assert status["volumes"] == [{"name": "v"}]
    assert status["source"]["synced"] is True
    assert status["processes"]["keeper"]["pid"] == os.getpid()
    assert status["processes"]["server"]["rssBytes"] > 1 << 20
    assert status["processes"]["server"]["startedAt"].endswith("Z")

    assert running.ask("stop") == {"stopped": True}
    assert running.ended() == 0
    assert running.mount.detached == [False]
    assert not running.instance.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(start: Start, number: int) -> None:
    running = start()
    eventually(lambda: told(running))
    running.signal(signal.SIGHUP)
    assert told(running)
    running.signal(number)
    assert running.ended() == 0
    assert running.mount.detached == [False]


def test_before_the_agent_has_told_anything_its_state_is_empty_and_stale(start: Start) -> None:
    running = start(agent="silent")
    eventually(lambda: running.pid("agent") is not None)
    status = running.ask("status")
    assert status["stale"] is True
    assert status["source"] == {"kind": "manifests", "synced": False, "errors": []}
    assert status["volumes"] == []
    running.signal()
    assert running.ended() == 0


def test_only_the_agent_may_tell_a_state(start: Start) -> None:
    running = start(agent="silent")
    eventually(lambda: running.pid("agent") is not None)
    answer = running.instance.ask_keeper({"op": "state", "state": {"volumes": [{"name": "forged"}]}})
    assert answer == {"error": "no such operation"}
    assert running.ask("status")["volumes"] == []
    running.signal()
    assert running.ended() == 0


def test_a_dead_agent_is_stale_and_started_again_and_nothing_else_is_touched(start: Start) -> None:
    running = start()
    eventually(lambda: told(running))
    server, agent = running.pid("server"), running.kill("agent")
    eventually(lambda: running.pid("agent") not in (agent, None) and told(running))
    status = running.ask("status")
    assert status["processes"]["agent"]["restarts"] == 1
    assert (status["processes"]["server"]["pid"], status["processes"]["server"]["restarts"]) == (server, 0)
    assert running.mount.made == 1
    status = status_without_agent(running)
    assert status["stale"] is True
    assert status["volumes"] == [{"name": "v"}]
    assert status["processes"]["agent"] == {
        "pid": None,
        "startedAt": None,
        "restarts": status["processes"]["agent"]["restarts"],
        "rssBytes": 0,
        "lockedBytes": 0,
    }
    running.signal()
    assert running.ended() == 0
    assert "the agent died (SIGKILL): volumes stay as they are; it is started again at once" in running.log.getvalue()


def status_without_agent(running: Running) -> dict[str, Any]:
    """Every further quick death waits longer: an agent that is back before we have looked is killed again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = running.ask("status")
        agent = status["processes"]["agent"]["pid"]
        if agent is None:
            return status
        if status["stale"] is False:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)
    raise AssertionError(running.log.getvalue())


def test_a_dead_server_is_told_and_mounted_afresh(start: Start) -> None:
    running = start()
    eventually(lambda: told(running))
    agent, server = running.pid("agent"), running.kill("server")
    eventually(lambda: running.pid("server") not in (server, None))
    assert running.mount.made == 2
    assert running.mount.detached == [True]
    assert running.pid("agent") == agent
    assert running.ask("stop") == {"stopped": True}
    assert running.ended() == 0
    assert "the server died (SIGKILL): all volumes answer ENOTCONN until" in running.log.getvalue()


def test_unmounted_by_somebody_else_is_an_orderly_end(start: Start) -> None:
    running = start()
    eventually(lambda: told(running))
    running.mount.vanish()
    assert running.ended() == 0
    assert not running.instance.directory.exists()


class TestBusy:
    HOLDER = Holder(4711, "cat", "/mnt/pods/u/f")

    def test_a_client_is_told_who_and_all_goes_on(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        agent = running.pid("agent")
        running.mount.holding = [self.HOLDER]
        for _ in range(3):
            assert running.ask("stop") == {"busy": [{"pid": 4711, "command": "cat", "path": "/mnt/pods/u/f"}]}
        assert running.pid("agent") == agent
        running.mount.holding = []
        assert running.ask("stop") == {"stopped": True}
        assert running.ended() == 0
        assert running.mount.detached == [False]

    def test_a_second_signal_detaches(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.holding = [self.HOLDER]
        running.signal()
        eventually(lambda: "in use by pid 4711 (cat): /mnt/pods/u/f" in running.log.getvalue())
        assert told(running)
        assert running.mount.detached == []
        running.signal()
        assert running.ended() == 0
        assert running.mount.detached == [True]

    def test_a_client_that_was_refused_does_not_make_the_first_signal_the_second(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.holding = [self.HOLDER]
        assert "busy" in running.ask("stop")
        running.signal()
        eventually(lambda: "a second signal detaches" in running.log.getvalue())
        assert told(running)
        running.signal()
        assert running.ended() == 0

    def test_who_comes_in_at_the_last_moment_is_respected(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        server = running.pid("server")
        running.mount.busy_once = True
        assert running.ask("stop") == {"busy": [{"pid": 0, "command": "?", "path": str(running.instance.mountpoint)}]}
        eventually(lambda: told(running))  # the agent, that had been stopped, is back
        assert running.pid("server") == server
        assert running.ask("stop") == {"stopped": True}
        assert running.ended() == 0


def test_a_signal_while_it_leaves_shortens_the_waiting(start: Start, tmp_path: Path) -> None:
    running = start(agent="stubborn")
    eventually(lambda: told(running))
    running.signal()
    eventually((tmp_path / "told").exists)  # the agent was told to leave, and does not
    began = time.monotonic()
    running.signal()
    assert running.ended(30) == 0
    assert time.monotonic() - began < GRACE - 1
    assert "the agent does not leave: killing it" in running.log.getvalue()


class TestTakenFromItsPlace:
    """By somebody with `umount -l`, or hidden by a mount over it; the server goes on for who still stands on it."""

    def test_below_another_mount_it_stays(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.elsewhere = Place.COVERED
        why = f"another mount stands over {running.instance.mountpoint}: unmount that first"
        assert running.ask("stop") == {"error": why}
        assert told(running)
        running.mount.elsewhere = None
        assert running.ask("stop") == {"stopped": True}
        assert running.ended() == 0

    def test_below_another_mount_it_is_left_by_force_only_and_that_is_no_success(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.elsewhere = Place.COVERED
        running.signal()
        eventually(lambda: "a second signal detaches" in running.log.getvalue())
        running.signal()
        assert running.ended() == 1
        assert f"{running.instance.mountpoint} stays mounted: another mount stands over" in running.log.getvalue()
        assert running.mount.detached == []

    def test_no_mount_is_made_over_somebody_elses(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.elsewhere = Place.COVERED
        running.kill("server")
        eventually(lambda: "the server cannot be started: another mount stands over" in running.log.getvalue())
        assert running.mount.made == 1
        running.mount.elsewhere = None
        eventually(lambda: running.pid("server") is not None)
        assert (running.mount.made, running.mount.detached) == (2, [True])
        running.signal()
        assert running.ended() == 0

    def test_who_still_stands_on_it_is_respected(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.elsewhere = Place.GONE
        running.mount.holding = [TestBusy.HOLDER]
        assert running.ask("stop") == {"busy": [TestBusy.HOLDER._asdict()]}
        assert told(running)
        running.mount.vanish()  # nobody any more: the kernel ends the server
        assert running.ended() == 0

    def test_also_whom_we_cannot_see(self, start: Start) -> None:
        """While the server lives, somebody does stand on it."""
        running = start()
        eventually(lambda: told(running))
        server = running.pid("server")
        running.mount.elsewhere = Place.GONE
        assert running.ask("stop") == {"busy": [{"pid": 0, "command": "?", "path": str(running.instance.mountpoint)}]}
        eventually(lambda: told(running))
        assert running.pid("server") == server
        running.mount.vanish()
        assert running.ended() == 0


class TestCannotSee:
    def test_that_is_no_leave_to_go(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        running.mount.failing = errno.EMFILE
        why = f"cannot see who uses {running.instance.mountpoint}: Too many open files"
        assert running.ask("stop") == {"error": why}
        assert told(running)
        running.mount.failing = None
        assert running.ask("stop") == {"stopped": True}
        assert running.ended() == 0

    def test_it_does_not_end_the_keeper_when_a_child_dies(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        server = running.pid("server")
        running.mount.failing = errno.EMFILE
        running.kill("server")
        eventually(lambda: "the server cannot be started: [Errno 24] Too many open files" in running.log.getvalue())
        running.mount.failing = None
        eventually(lambda: running.pid("server") not in (server, None))
        running.signal()
        assert running.ended() == 0


def descriptors() -> set[str]:
    return {target for fd in os.listdir("/proc/self/fd") if (target := link(fd)).startswith("pipe:")}


def link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_a_server_that_cannot_be_started_leaves_no_pipe_open(start: Start) -> None:
    before = descriptors()
    running = start(server=None)
    error = running.ended()
    assert isinstance(error, UserError)
    assert "No such file or directory" in str(error)
    assert len(descriptors() - before) == 1  # the one that signals come through


class TestRuntimeDirectory:
    def refusal(self, running: Running) -> str:
        error = running.ended()
        assert isinstance(error, UserError)
        assert error.exit_code == 4
        return str(error)

    def test_one_that_others_could_enter_is_closed(self, start: Start, tmp_path: Path) -> None:
        directory = Instance(tmp_path / "run", tmp_path / "mnt").directory
        directory.mkdir(parents=True)
        for path in (directory.parent, directory):
            path.chmod(0o777)
        running = start()
        eventually(lambda: told(running))
        assert [stat.S_IMODE(path.stat().st_mode) for path in (directory.parent, directory)] == [0o700, 0o700]
        running.signal()
        assert running.ended() == 0

    def test_a_link_is_refused(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "run").symlink_to("elsewhere")
        assert self.refusal(start()) == f"the runtime directory {tmp_path / 'run'} is a link"
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_file_is_refused(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "run").touch()
        assert self.refusal(start()) == f"the runtime directory {tmp_path / 'run'} is not a directory"

    @pytest.mark.root
    def test_another_users_is_refused(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir(mode=0o700)
        os.chown(tmp_path / "run", 65534, 65534)
        said = self.refusal(start())
        assert said == f"the runtime directory {tmp_path / 'run'} belongs to another user (uid 65534)"

    def test_one_that_is_everybodys_is_not_closed(self, start: Start, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o1777)
        (tmp_path / "run/precious").touch()
        assert "is open to others (mode 1777) and holds other things (precious)" in self.refusal(start())
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o1777


class TestFailures:
    def test_a_server_that_is_refused_ends_all_at_once(self, start: Start) -> None:
        running = start(server="refuse")
        assert running.ended() == 4
        assert running.mount.place() is Place.GONE
        assert not running.instance.directory.exists()

    def test_an_agent_that_is_refused_ends_all(self, start: Start) -> None:
        running = start(agent="refuse")
        assert running.ended() == 4
        assert running.mount.place() is Place.GONE

    def test_a_server_that_never_serves_is_given_up_after_three_times(self, start: Start) -> None:
        running = start(server="broken")
        error = running.ended()
        assert isinstance(error, UserError)
        assert error.exit_code == 1
        assert str(error).startswith("the server died 3 times before it ever served ")
        assert running.mount.made == 3
        assert running.mount.place() is Place.GONE


def test_the_agent_gets_the_lock_and_no_other_descriptor(start: Start, tmp_path: Path) -> None:
    lock_fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    running = start(agent="environment", lock_fd=lock_fd)
    eventually((tmp_path / "told").exists)
    said = json.loads((tmp_path / "told").read_bytes())
    assert said["PYTHONMALLOC"] == "malloc"
    assert said["MALLOC_ARENA_MAX"] == "1"
    assert said["GLIBC_TUNABLES"] == "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
    assert said["node"] == "n"
    assert said["stateDir"] == str(tmp_path / "state")
    # 0, 1, 2, the directory that was being listed, and these two
    assert {said["agentFd"], lock_fd} <= set(map(int, said["fds"].split(",")))
    assert len(said["fds"].split(",")) == 6
    running.signal()
    assert running.ended() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock_fd)


class TestClients:
    def test_nonsense_ends_the_connection_only(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        for nonsense in (b"not json\n", b"[1]\n", b"\xff\n"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(running.instance.keeper_socket))
                client.sendall(nonsense)
                assert client.recv(100) == b""
        running.signal()
        assert running.ended() == 0

    def test_one_that_does_not_read_its_answers_does_not_hold_up_others(self, start: Start) -> None:
        running = start()
        eventually(lambda: told(running))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(running.instance.keeper_socket))
            client.sendall(b'{"op": "status"}\n' * 500)
            assert told(running)
            client.settimeout(5)
            received = b""
            while received.count(b"\n") < 500:
                received += client.recv(1 << 20)
        running.signal()
        assert running.ended() == 0
