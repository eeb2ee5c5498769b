"""One real API server for the whole session; a namespace and a node of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.proxy import Proxy

_numbers = itertools.count(1)


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
