"""What is not there is told apart from what we cannot see. Files stand in for those of /proc."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusevol.system import processes

LOOKS: list[Callable[[Path], object]] = [
    lambda proc: processes.text(1, "maps", proc),
    lambda proc: processes.link(1, "cwd", proc),
    lambda proc: processes.descriptors(1, proc),
]


@pytest.fixture(params=range(len(LOOKS)), ids=["file", "link", "directory"])
def look(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return LOOKS[request.param]


def test_what_has_gone_is_nothing(tmp_path: Path, look: Callable[[Path], object]) -> None:
    assert not look(tmp_path)


def test_what_another_error_hides_is_raised(tmp_path: Path, look: Callable[[Path], object]) -> None:
    """ENOTDIR and ELOOP stand for all that does not say that the process has gone."""
    (tmp_path / "1").touch()
    with pytest.raises(NotADirectoryError):
        look(tmp_path)
    (tmp_path / "1").unlink()
    (tmp_path / "1").symlink_to("1")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        look(tmp_path)


def test_without_descriptors_we_cannot_see() -> None:
    code = """
import resource
from fusevol.system import holders, mounts, processes
mount = mounts.find_mount(processes.Path("/"))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for look in (lambda: processes.text(1, "maps"), lambda: mounts.find_mount(mount), lambda: holders.holders(mount)):
    try:
        print("saw", look())
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [os.strerror(errno.EMFILE)] * 3
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3


def test_a_zombie_is_not_there() -> None:
    with subprocess.Popen(["true"]) as process:
        deadline = time.monotonic() + 10
        while b"State:\tZ" not in Path(f"/proc/{process.pid}/status").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert processes.text(process.pid, "mountinfo") == b""  # EINVAL
        assert processes.link(process.pid, "ns/mnt") is None
        assert processes.descriptors(process.pid) == []
