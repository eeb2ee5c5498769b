"""The keeper with the real server, agent and mount: how it ends, and what is left when something dies."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusevol.system.mounts import find_mount
from tests.support import processes
from tests.support.instance import COMMAND, Instance, running

pytestmark = pytest.mark.root

MANIFESTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {greeting: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  containers: [{name: web, image: web, volumeMounts: [{name: config, mountPath: /config}]}]
  volumes: [{name: config, configMap: {name: settings}}]
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "web.yaml").write_text(MANIFESTS)
    return directory


@pytest.fixture
def instance(tmp_path: Path, manifests: Path) -> Iterator[Instance]:
    """One that serves a volume with a file `greeting`."""
    with running(tmp_path, "--manifests", manifests) as instance:
        instance.wait()
        yield instance


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def somebody(*command: str | Path) -> Iterator[int]:
    """A process that says `ready` when it stands where it should; its pid."""
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=10)


def in_directory(directory: Path) -> tuple[str, ...]:
    return ("sh", "-c", f"cd '{directory}' && echo ready && exec sleep 300")


def error_of_reading(file: io.FileIO) -> int | None:
    try:
        os.pread(file.fileno(), 1, 0)
    except OSError as error:
        return error.errno
    return None


def error_of_listing(directory: Path) -> int | None:
    try:
        os.listdir(directory)
    except OSError as error:
        return error.errno
    return None


def is_mounted(instance: Instance) -> bool:
    return find_mount(instance.mountpoint) is not None


def nothing_is_left(instance: Instance) -> bool:
    return not is_mounted(instance) and list(instance.runtime.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_leaves(instance: Instance, number: int) -> None:
    os.kill(instance.keeper_pid, number)
    assert instance.exit_code() == 0
    assert nothing_is_left(instance)
    assert list(instance.mountpoint.iterdir()) == []


def test_unmount_returns_when_the_next_mount_can_begin(instance: Instance) -> None:
    server, agent = instance.pid("server"), instance.pid("agent")
    instance.run("unmount")
    assert nothing_is_left(instance)
    assert not {server, agent} & set(processes.children())
    assert instance.exit_code() == 0
    instance.start()
    instance.wait()
    assert (instance.path("config") / "greeting").read_text() == "hello"


class TestBusy:
    def test_a_working_directory_is_listed_and_a_second_signal_detaches(self, instance: Instance) -> None:
        volume = instance.path("config")
        with somebody(*in_directory(volume)) as pid:
            os.kill(instance.keeper_pid, signal.SIGTERM)
            eventually(lambda: "a second signal detaches" in instance.log)
            assert f"in use by pid {pid} (sleep): {volume}" in instance.log
            assert (volume / "greeting").read_text() == "hello"
            assert instance.status()["stale"] is False
            os.kill(instance.keeper_pid, signal.SIGTERM)
            assert instance.exit_code() == 0
        assert nothing_is_left(instance)

    def test_unmount_lists_an_open_file_and_a_mapping(self, instance: Instance) -> None:
        file = instance.path("config") / "greeting"
        real = file.resolve()
        opened = f"f = open('{file}', 'rb')"
        mapped = f"{opened}; m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()"
        for action in (opened, mapped):
            script = f"import mmap, time; {action}; print('ready', flush=True); time.sleep(300)"
            with somebody("python3", "-c", script) as pid:
                refused = instance.run("unmount", check=False)
                assert refused.returncode == 1
                first, holder, *more = refused.stderr.splitlines()
                assert first == f"fusevol: {instance.mountpoint} is in use by:"
                assert holder == f"  pid {pid} (python3): {real}"
                assert more == []
        instance.run("unmount")

    def test_a_bind_mount_in_another_namespace_is_listed_and_served_on(
        self, instance: Instance, tmp_path: Path
    ) -> None:
        target = tmp_path / "container"
        target.mkdir()
        script = f"mount --bind '{instance.path('config')}' '{target}' && umount -l '{instance.mountpoint}'"
        command = f"{script} && echo ready && exec sleep 300"
        with somebody("unshare", "--mount", "--propagation", "private", "sh", "-c", command) as pid:
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert f"  pid {pid} (sleep): {target}" in refused.stderr.splitlines()
            assert Path(f"/proc/{pid}/root{target}/greeting").read_text() == "hello"
        instance.run("unmount")
        assert nothing_is_left(instance)

    def test_a_mount_inside_is_listed(self, instance: Instance) -> None:
        inside = instance.path("config")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], check=True)
        try:
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert f"  pid 0 (mount): {inside}" in refused.stderr.splitlines()
        finally:
            subprocess.run(["umount", inside], check=True)

    def test_a_namespace_that_unmounts_with_us_does_not_hold_us(self, tmp_path: Path, manifests: Path) -> None:
        """As services of systemd have them: our mount is propagated there, and so is its end."""
        shared = tmp_path / "shared"
        shared.mkdir()
        subprocess.run(["mount", "--bind", shared, shared], check=True)
        try:
            subprocess.run(["mount", "--make-shared", shared], check=True)
            with running(shared, "--manifests", manifests) as instance:
                instance.wait()
                slave = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo ready && exec sleep 300")
                with somebody(*slave) as pid:
                    assert str(instance.mountpoint) in Path(f"/proc/{pid}/mountinfo").read_text()
                    instance.run("unmount")
                    assert str(instance.mountpoint) not in Path(f"/proc/{pid}/mountinfo").read_text()
        finally:
            subprocess.run(["umount", shared], check=True)


def tmpfs(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)


def umount(*arguments: str | Path) -> None:
    subprocess.run(["umount", *arguments], check=True)


class TestTakenFromItsPlace:
    """What somebody else does to our mount; the keeper notices, and does not leave those who stand on it alone."""

    def ends(self, instance: Instance) -> None:
        """When nobody stands on it any more: by itself, or, while the agent does, when told."""
        assert instance.run("unmount", check=False).returncode in (0, 3)
        assert instance.exit_code() == 0
        assert nothing_is_left(instance)

    def test_unmounted_lazily_it_is_served_on_for_a_container(self, instance: Instance, tmp_path: Path) -> None:
        target = tmp_path / "container"
        target.mkdir()
        script = f"mount --bind '{instance.path('config')}' '{target}' && umount -l '{instance.mountpoint}'"
        command = f"{script} && echo ready && exec sleep 300"
        with somebody("unshare", "--mount", "--propagation", "private", "sh", "-c", command) as pid:
            umount("-l", instance.mountpoint)
            eventually(lambda: f"{instance.mountpoint} is not mounted any more; bind mounts" in instance.log)
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert f"  pid {pid} (sleep): {target}" in refused.stderr.splitlines()
            assert Path(f"/proc/{pid}/root{target}/greeting").read_text() == "hello"
        self.ends(instance)

    def test_unmounted_lazily_it_is_served_on_for_an_open_file(self, instance: Instance) -> None:
        real = (instance.path("config") / "greeting").resolve()
        with real.open("rb", buffering=0) as opened:
            umount("-l", instance.mountpoint)
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            (line,) = [line for line in refused.stderr.splitlines() if line.startswith(f"  pid {os.getpid()} ")]
            assert line.endswith(f"): /{real.relative_to(instance.mountpoint)}")
            assert error_of_reading(opened) is None
        self.ends(instance)

    def test_unmounted_lazily_it_is_served_on_for_a_working_directory_that_cannot_be_seen(
        self, instance: Instance
    ) -> None:
        volume = instance.path("config")
        with somebody(*in_directory(volume)) as pid:
            umount("-l", instance.mountpoint)
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert f"  pid 0 (?): {instance.mountpoint}" in refused.stderr.splitlines()
            assert Path(f"/proc/{pid}/cwd/greeting").read_text() == "hello"
        self.ends(instance)

    @pytest.mark.parametrize("over", ["deep/mnt", "deep"], ids=["on it", "above it"])
    def test_below_another_mount_it_stays_and_unmount_says_so_in_one_line(
        self, tmp_path: Path, manifests: Path, over: str
    ) -> None:
        instance = Instance(tmp_path, "--manifests", manifests)
        instance.mountpoint = tmp_path / "deep/mnt"
        instance.mountpoint.mkdir(parents=True)
        why = f"another mount stands over {instance.mountpoint}: unmount that first"
        try:
            instance.start().wait()
            file = instance.path("config") / "greeting"
            tmpfs(tmp_path / over)
            try:
                eventually(lambda: f"{why}; bind mounts and open files of before are served on" in instance.log)
                refused = instance.run("unmount", check=False)
                assert (refused.returncode, refused.stderr) == (1, f"fusevol: {why}\n")
            finally:
                umount(tmp_path / over)
            eventually(lambda: instance.log.endswith(f"{instance.mountpoint} is at its place again\n"))
            assert file.read_text() == "hello"
            assert instance.log.count("bind mounts and open files of before") == 1
            assert instance.status()["processes"]["server"]["restarts"] == 0
            instance.run("unmount")
            assert nothing_is_left(instance)
        finally:
            instance.stop()

    def test_below_another_mount_without_a_keeper(self, instance: Instance, manifests: Path) -> None:
        agent = instance.pid("agent")
        os.kill(instance.keeper_pid, signal.SIGKILL)
        instance.exit_code()
        eventually(lambda: agent not in processes.children())
        tmpfs(instance.mountpoint)
        try:
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert refused.stderr == f"fusevol: another mount stands over {instance.mountpoint}: unmount that first\n"
            again = instance.run("mount", "--manifests", manifests, "--state-dir", instance.state, check=False)
            assert again.returncode == 1
            what = f"a fusevol mount stands on {instance.mountpoint}, below another mount: unmount that first"
            assert again.stderr == f"fusevol: {what}\n"
        finally:
            umount(instance.mountpoint)
        instance.run("unmount")
        assert nothing_is_left(instance)


class TestDeaths:
    def test_the_servers_death_is_an_error_at_once_and_all_is_mounted_and_published_again(
        self, instance: Instance
    ) -> None:
        file = instance.path("config") / "greeting"
        with file.open("rb", buffering=0) as opened:
            server = instance.kill("server")
            eventually(lambda: error_of_reading(opened) == errno.ENOTCONN, 1)
        eventually(lambda: instance.status()["processes"]["server"]["pid"] not in (None, server))
        instance.wait()
        assert file.read_text() == "hello"
        status = instance.status()
        assert status["processes"]["server"]["pid"] != server
        assert status["processes"]["server"]["restarts"] == 1
        assert status["processes"]["agent"]["restarts"] == 0
        (line,) = [line for line in instance.log.splitlines() if "the server died" in line]
        assert "(SIGKILL): all volumes answer ENOTCONN until" in line
        instance.run("unmount")
        assert nothing_is_left(instance)

    def test_the_agents_death_is_not_seen_by_readers(self, instance: Instance) -> None:
        volume = instance.path("config")
        data = os.readlink(volume / "..data")
        instance.kill("agent")
        assert (volume / "greeting").read_text() == "hello"
        eventually(lambda: instance.status()["stale"] is False and instance.status()["processes"]["agent"]["pid"])
        instance.wait()
        assert os.readlink(volume / "..data") == data
        assert instance.status()["processes"]["agent"]["restarts"] == 1
        assert instance.status()["processes"]["server"]["restarts"] == 0

    def test_without_its_keeper_the_server_serves_on_and_unmount_clears_away(
        self, instance: Instance, manifests: Path
    ) -> None:
        file = instance.path("config") / "greeting"
        server, agent = instance.pid("server"), instance.pid("agent")
        os.kill(instance.keeper_pid, signal.SIGKILL)
        instance.exit_code()
        eventually(lambda: agent not in processes.children())
        assert file.read_text() == "hello"
        assert instance.run("status", check=False).returncode == 3

        again = instance.run("mount", "--manifests", manifests, "--state-dir", instance.state, check=False)
        assert again.returncode == 1
        assert "is a fusevol mount whose keeper is dead" in again.stderr
        assert again.stderr.endswith(f"`fusevol unmount {instance.mountpoint}`\n")

        with somebody(*in_directory(file.parent)) as pid:
            refused = instance.run("unmount", check=False)
            assert refused.returncode == 1
            assert f"  pid {pid} (sleep): {file.parent}" in refused.stderr.splitlines()
        instance.run("unmount")
        assert nothing_is_left(instance)
        eventually(lambda: server not in processes.children())
        assert instance.run("unmount", check=False).returncode == 3

    def test_after_the_death_of_all_unmount_clears_away(self, instance: Instance) -> None:
        server = instance.pid("server")
        os.kill(instance.keeper_pid, signal.SIGKILL)
        os.kill(server, signal.SIGKILL)
        instance.exit_code()
        eventually(lambda: server not in processes.children())
        # threads of it that are still ending may have the connection: then a request is aborted (ECONNABORTED)
        eventually(lambda: error_of_listing(instance.mountpoint) == errno.ENOTCONN)
        instance.run("unmount")
        assert nothing_is_left(instance)
        assert instance.exit_code() == -signal.SIGKILL
        instance.start()
        instance.wait()


def test_the_service_manager_is_told(tmp_path: Path, manifests: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        command = ["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", *mount_command(tmp_path, manifests)]
        with (tmp_path / "log").open("wb") as log:
            process = processes.spawn(command, log=log)
        try:
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=serving {tmp_path / 'mnt'}"
            process.send_signal(signal.SIGTERM)
            assert manager.recv(4096).decode() == f"STOPPING=1\nSTATUS=leaving {tmp_path / 'mnt'}"
            assert process.wait(20) == 0
        finally:
            processes.end(process)


def mount_command(base: Path, manifests: Path) -> list[str | Path]:
    (base / "mnt").mkdir()
    options: list[str | Path] = ["--state-dir", base / "state", "--runtime-dir", base / "run"]
    return [*COMMAND, "mount", base / "mnt", "--manifests", manifests, *options]
