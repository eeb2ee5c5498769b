"""After each test nothing of it may be left: no FUSE mount, no process, not even an orphaned one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support import processes

LEFTOVERS_GRACE = 3.0  # seconds: a process that was told to end may take a moment


def pytest_configure() -> None:
    processes.adopt_orphans()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test that leaves a FUSE mount or a process behind, and removes both for the tests that follow.

    Mounts elsewhere than below pytest's temporary directory are somebody else's.
    """
    base = f"{tmp_path_factory.getbasetemp()}/"
    mounts, pids = processes.fuse_mounts(), set(processes.children())
    yield
    deadline = time.monotonic() + LEFTOVERS_GRACE
    while True:
        left_mounts = {mount for mount in processes.fuse_mounts() - mounts if mount.startswith(base)}
        left = {pid: command for pid, command in processes.children().items() if pid not in pids}
        if not (left_mounts or left):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for mount in sorted(left_mounts, reverse=True):
        subprocess.run(["fusermount3", "-u", "-z", "--", mount], check=False, timeout=10)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pytest.fail(f"left behind: mounts {sorted(left_mounts)}, processes {left}")
