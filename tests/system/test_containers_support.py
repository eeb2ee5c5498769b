"""The tests' own ground: a container is one, sees what it is given, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.containers import Container, ContainerError, Mount

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(containers.available()), reason=containers.available() or "there are containers"),
]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir(0o755)
    (directory / "key").write_text("value")
    return directory


@pytest.fixture
def container(tmp_path: Path, volume: Path) -> Iterator[Container]:
    """With the volume read-only, one file of it, and a directory to write to."""
    (tmp_path / "scratch").mkdir(0o777)
    mounts = [
        Mount(volume, "/etc/config", readonly=True),
        Mount(volume / "key", "/etc/one", readonly=True),
        Mount(tmp_path / "scratch", "/scratch"),
    ]
    with Container(tmp_path / "container", mounts) as container:
        yield container


def cgroups() -> set[Path]:
    return {path for path in Path("/sys/fs/cgroup").rglob("fusevol-test-*") if path.is_dir()}


def mounted_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" {directory}" in line]


def test_a_directory_and_a_file_are_bind_mounted(container: Container, tmp_path: Path) -> None:
    assert container.read("/etc/config/key") == "value"
    assert container.read("/etc/one") == "value"
    assert container.exec("sh", "-c", "echo hello >/scratch/file; exit 3").returncode == 3
    assert (tmp_path / "scratch/file").read_text() == "hello\n"


def test_a_mount_that_is_read_only_cannot_be_written(container: Container) -> None:
    done = container.exec("sh", "-c", "echo x >/etc/config/key")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    with pytest.raises(ContainerError, match="No such file"):
        container.read("/etc/config/other")


def test_it_is_a_container_of_its_own(container: Container, tmp_path: Path) -> None:
    """Its own processes and mounts; what the host mounts later does not come in, what it mounts does not come out."""
    assert os.readlink(f"/proc/{container.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert container.exec("cat", "/proc/1/comm").stdout == "cat\n"
    propagation = [line.partition(" - ")[0].split()[6:] for line in container.mountinfo().splitlines()]
    assert propagation
    assert not any(propagation), "private mounts have no tag"
    assert mounted_below(tmp_path) == []


def test_input_and_user(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    mounts = [Mount(scratch, "/scratch")]
    with Container(tmp_path / "c", mounts, user=1234, group=2345, supplementary=[3456]) as container:
        done = container.exec("sh", "-c", "cat >/scratch/f && id -G", input="grüße".encode())
    assert done.stdout.split() == ["2345", "3456"]
    found = (scratch / "f").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    assert (scratch / "f").read_text() == "grüße"


def test_nothing_is_left(tmp_path: Path, volume: Path) -> None:
    before = cgroups()
    container = Container(tmp_path / "c", [Mount(volume, "/v")])
    with container:
        pid = container.pid
        container.exec("sh", "-c", "sleep 100 </v/key >/dev/null 2>&1 &")
        assert "sleep 100" in container.exec("ps").stdout
    container.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert cgroups() == before
    assert mounted_below(tmp_path) == []
    assert (volume / "key").read_text() == "value"


def test_a_container_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    before = cgroups()
    with pytest.raises(ContainerError, match="no such file or directory"):
        Container(tmp_path / "c", [Mount(tmp_path / "missing", "/v")]).start()
    assert cgroups() == before


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    runtime = containers.find_runtime()
    code = f"""
import time
from pathlib import Path
from tests.support.containers import Container
print(Container(Path({str(tmp_path / "c")!r})).start().pid, flush=True)
time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/root/bin").exists():
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.02)
    state = ["--root", str(tmp_path / "c/state")]
    (name,) = subprocess.run(
        [runtime, *state, "list", "--quiet"], capture_output=True, text=True, check=True
    ).stdout.split()
    subprocess.run([runtime, *state, "delete", "--force", name], check=True)  # of its cgroup, which is empty
