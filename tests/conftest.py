"""After each test nothing of it may be left: no FUSE mount, no process, not even an orphaned one.

One real API server serves the whole session; tests that ask for them get a namespace and a node of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support import processes
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy

_numbers = itertools.count(1)

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


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """An API server and its etcd, no controllers. Tests that stop, pause or restart it leave it running and ready."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace. Its Pods are gone when the test is over, the rest is not waited for."""
    name = f"test-{next(_numbers)}"
    cluster.create_namespace(name)
    yield name
    cluster.delete_namespace(name)


@pytest.fixture
def node(cluster: Cluster) -> Iterator[str]:
    """The name of a fresh Node, so that no two tests see each other's Pods."""
    name = f"node-{next(_numbers)}"
    cluster.create_node(name)
    yield name
    cluster.admin.delete("Node", name)


@pytest.fixture
def proxy(cluster: Cluster, node: str) -> Iterator[Proxy]:
    """A faulty way to the API server, which takes whoever comes through it for `node` (unless they bring a token)."""
    with Proxy(cluster, f"system:node:{node}", ["system:nodes"]) as proxy:
        yield proxy
