"""The server process: its beginning, its end, and what a bug in a handler does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusevol.model.refs import VolumeRef
from fusevol.server.main import main
from tests.support.server import ServerUnderTest, errno_of, eventually, literal_tree

VOLUME = VolumeRef("uid-1", "kubernetes.io/configmap", "vol")
TREE = literal_tree({"bad": b"b", "good": b"g"})


@pytest.mark.root
@pytest.mark.parametrize("operation", ["lookup", "open", "read"])
def test_an_exception_in_a_handler_is_eio_and_a_log_line_and_no_more(tmp_path: Path, operation: str) -> None:
    with ServerUnderTest(tmp_path, env={"FUSEVOL_FAULT": f"{operation}:bad"}) as server:
        root = server.publish(VOLUME, TREE)
        for _ in range(3):
            assert errno_of((root / "bad").read_text) == "EIO"
            assert (root / "good").read_text() == "g"
        assert f"{operation} failed" in server.logged()
        assert "a fault in" in server.logged()


@pytest.mark.root
def test_json_logs_are_one_object_per_line(tmp_path: Path) -> None:
    with ServerUnderTest(tmp_path, env={"FUSEVOL_FAULT": "read:bad"}, logFormat="json") as server:
        root = server.publish(VOLUME, TREE)
        assert errno_of((root / "bad").read_text) == "EIO"
        lines = [json.loads(line) for line in server.logged().splitlines()]
    assert lines  # the kernel may ask twice: for pages ahead, then for the one it needs
    for line in lines:
        assert (line["level"], line["event"]) == ("error", "read failed")
        assert "a fault in read" in line["exception"]


@pytest.mark.root
def test_sigterm_ends_the_server_in_order_and_the_mount_says_so_at_once(tmp_path: Path) -> None:
    with ServerUnderTest(tmp_path) as server:
        root = server.publish(VOLUME, TREE)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert errno_of(lambda: os.stat(root)) == "ENOTCONN"


@pytest.mark.root
def test_a_terminals_interrupt_is_not_the_servers_business(tmp_path: Path) -> None:
    with ServerUnderTest(tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        assert (server.publish(VOLUME, TREE) / "good").read_text() == "g"


@pytest.mark.root
def test_requests_that_are_taken_back_do_not_freeze_the_server(tmp_path: Path) -> None:
    """FUSE.md 3: a client is killed after its request made /dev/fuse readable and before it was read."""
    with ServerUnderTest(tmp_path) as server:
        root = server.publish(VOLUME, literal_tree({f"k{number}": b"x" * 1000 for number in range(20)}))
        hammer = f"while :; do cat {root}/k* >/dev/null; done"
        for _ in range(60):
            crowd = [subprocess.Popen(["sh", "-c", hammer], start_new_session=True) for _ in range(3)]
            time.sleep(0.03)
            server.process.send_signal(signal.SIGSTOP)
            for process in crowd:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)
            server.process.send_signal(signal.SIGCONT)
            # not asked through the mount: another request would wake a server that waits for one
            server.control.socket.settimeout(5)
            server.volumes()
            for process in crowd:
                process.wait(10)


def config(**options: object) -> str:
    return json.dumps({"fuseFd": 0, "controlFd": 0, "readyFd": 0, "mountpoint": "/nowhere", **options})


@pytest.mark.root
def test_what_must_be_locked_and_cannot_be_is_refused(tmp_path: Path) -> None:
    code = "import sys; from fusevol.server.main import main; sys.exit(main(sys.argv[1:], lambda: 'no such luck'))"
    command = [sys.executable, "-c", code, config(requireLockedMemory=True)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (4, "fusevol server: memory cannot be locked: no such luck\n")


@pytest.mark.parametrize("arguments", [[], ["{"], ["{}"], [config(engine="none")], [config(), "more"]])
def test_a_configuration_that_is_none_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.root
def test_the_server_ends_with_its_mount_even_while_clients_are_busy(tmp_path: Path) -> None:
    with ServerUnderTest(tmp_path) as server:
        root = server.publish(VOLUME, TREE)
        held = (root / "good").open()
        subprocess.run(["umount", "-l", server.mount], check=True)
        assert held.read() == "g", "what was opened goes on while the mount is only detached"
        assert server.process.poll() is None
        held.close()
        assert eventually(lambda: server.process.poll() == 0)
        subprocess.run(["mount", "-t", "tmpfs", "none", server.mount], check=True)  # for the harness to unmount
