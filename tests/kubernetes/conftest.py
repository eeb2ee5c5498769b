"""One fusevol for all tests of a module, as the node that is called like the module; a namespace for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.node import Node, Tenant


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    name = request.module.__name__.rpartition("test_")[2].replace("_", "-")
    with Node(cluster, name, tmp_path_factory.mktemp(name)) as node:
        node.instance.wait()
        yield node


@pytest.fixture
def tenant(served: Node, namespace: str) -> Tenant:
    return served.tenant(namespace)
