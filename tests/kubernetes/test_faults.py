"""The API server fails in every way: what is served stays, and what was missed is caught up with."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.cluster import NODES, Cluster
from tests.support.instance import COMMAND, Instance, eventually
from tests.support.node import Node, Pod, Tenant, current, tree
from tests.support.proxy import (
    Action,
    Drop,
    Duplicate,
    Hang,
    Match,
    Proxy,
    Slow,
    WatchError,
    gone,
    internal_error,
    on,
    too_many_requests,
)

pytestmark = pytest.mark.root

VOLUMES: dict[str, dict[str, Any]] = {
    "c": {"configMap": {"name": "settings"}},
    "other": {"configMap": {"name": "untouched"}},
    "s": {"secret": {"secretName": "credentials"}},
    "e": {"emptyDir": {}},
}


@pytest.fixture
def behind(cluster: Cluster, node: str, proxy: Proxy, tmp_path: Path) -> Node:
    """A fusevol, not started yet, for which the way to the API server is the proxy."""
    return Node(cluster, node, tmp_path, server=proxy.url)


@pytest.fixture
def tenant(behind: Node, namespace: str) -> Tenant:
    return make_objects(behind.tenant(namespace))


def make_objects(tenant: Tenant) -> Tenant:
    """Those that VOLUMES project."""
    tenant.config_map("settings", {"a": "1"})
    tenant.config_map("untouched", {"b": "1"})
    tenant.secret("credentials", {"password": "geheim"})
    return tenant


@pytest.fixture
def pod(behind: Node, tenant: Tenant) -> Iterator[Pod]:
    """All of VOLUMES are served."""
    with behind:
        behind.instance.wait()
        pod = tenant.pod("web", VOLUMES)
        (pod.path("e") / "data").write_text("kept")
        yield pod


def unchanged(pod: Pod) -> dict[Path, int]:
    """Inode numbers in those volumes whose objects no test changes, and of the one root that is updated."""
    volumes = [pod.path(name) for name in VOLUMES if name != "c"]
    paths = [pod.path("c"), *volumes, *(path for volume in volumes for path in volume.rglob("*"))]
    return {path: path.lstat().st_ino for path in paths}


# -- an API server that cannot be reached -------------------------------------------------------------------------


def test_down_at_start_it_waits_and_says_so(behind: Node, tenant: Tenant, proxy: Proxy) -> None:
    pod = tenant.pod("web", VOLUMES, wait=False)
    proxy.refuse()
    with behind:
        instance = behind.instance
        refused = instance.run("wait", "--timeout", "3", check=False)
        assert refused.returncode == 1
        assert "the API server cannot be reached" in refused.stderr
        assert "the source has not synced yet" in refused.stderr
        source = instance.status()["source"]
        assert source["synced"] is False
        (problem,) = source["errors"]
        assert problem["message"].startswith("the API server cannot be reached")
        assert instance.log.count("source_problem") == 1, "once, not with every attempt"
        proxy.refuse(False)
        instance.wait(pod.goal)
        assert (pod.path("c") / "a").read_text() == "1"
        assert instance.status()["source"] == {"kind": "kubeconfig", "synced": True, "errors": []}
        assert "source_recovered" in instance.log


def test_down_later_it_serves_on_and_catches_up_without_rewriting(pod: Pod, tenant: Tenant, proxy: Proxy) -> None:
    before, trees = unchanged(pod), {name: tree(pod.path(name)) for name in VOLUMES}
    proxy.refuse()
    eventually(lambda: tenant.instance.status()["source"]["errors"])
    tenant.patch("ConfigMap", "settings", data={"a": "2"})
    new = tenant.pod("late", VOLUMES, wait=False)
    refused = tenant.instance.run("wait", "--timeout", "1", check=False)
    assert refused.returncode == 1
    assert "the API server cannot be reached" in refused.stderr
    assert {name: tree(pod.path(name)) for name in VOLUMES} == trees
    assert tenant.events(pod) == []
    proxy.refuse(False)
    tenant.instance.wait()
    assert (pod.path("c") / "a").read_text() == "2"
    assert (new.path("c") / "a").read_text() == "2"
    assert unchanged(pod) == before


def test_a_hanging_network(pod: Pod, tenant: Tenant, proxy: Proxy) -> None:
    """Connections stay open and nobody answers: reads do not wait, and what has waited arrives."""
    proxy.hang()
    tenant.patch("ConfigMap", "settings", data={"a": "2"})
    refused = tenant.instance.run("wait", "--timeout", "1", check=False)
    assert refused.returncode == 1
    assert (pod.path("c") / "a").read_text() == "1"
    (pod.path("e") / "more").write_text("written")
    proxy.resume()
    eventually(lambda: (pod.path("c") / "a").read_text() == "2")
    tenant.instance.wait()


def test_a_restarted_api_server_with_a_compacted_store(pod: Pod, tenant: Tenant) -> None:
    """Every watch is cut, and none can be resumed (410): only what changed meanwhile is written."""
    same = [current(pod.path("other")), current(pod.path("s"))]
    tenant.node.cluster.stop_apiserver()
    tenant.node.cluster.start_apiserver()
    tenant.patch("ConfigMap", "settings", data={"a": "2"})
    tenant.node.cluster.compact()
    tenant.instance.wait(timeout=60)
    assert (pod.path("c") / "a").read_text() == "2"
    assert [current(pod.path("other")), current(pod.path("s"))] == same
    assert (pod.path("e") / "data").read_text() == "kept"
    assert tenant.events(pod) == []


# -- one that answers wrongly -------------------------------------------------------------------------------------

# name → rules (which requests, what becomes of them, how many of them)
FAULTS: dict[str, list[tuple[Match, Action, int | None]]] = {
    "watches end in an ERROR event": [(on(watch=True), WatchError(), 6)],
    "watches are refused as expired": [(on(watch=True), gone(), 6)],
    "lists and gets are refused as expired": [(on("GET", watch=False), gone(), 4)],
    "too many requests": [(on(), too_many_requests(1), 6)],
    "internal errors": [(on(), internal_error(), 6)],
    "watches are cut after an event": [(on(watch=True), Drop(events=1), 8)],
    "watches end cleanly after an event": [(on(watch=True), Drop(events=1, clean=True), 8)],
    "connections are cut after an event": [(on(watch=True), Drop(events=1, connection=True), 4)],
    "requests are cut before an answer": [(on(), Drop(), 4)],
    "events come twice": [(on(watch=True), Duplicate(), None)],
    "events come three times": [(on(watch=True), Duplicate(3), None)],
    "slow answers": [(on(), Slow(0.4, per_event=0.1), None)],
}


@pytest.fixture(scope="module")
def faulty(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Proxy]]:
    """One fusevol and its proxy for all faults."""
    name = "faulty"
    base = tmp_path_factory.mktemp(name)
    with (
        Proxy(cluster, f"system:node:{name}", [NODES]) as proxy,
        Node(cluster, name, base, server=proxy.url) as node,
    ):
        node.instance.wait()
        yield node, proxy


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_api_server(faulty: tuple[Node, Proxy], namespace: str, fault: str) -> None:
    node, proxy = faulty
    tenant = make_objects(node.tenant(namespace))
    rules = [proxy.add(*rule) for rule in FAULTS[fault]]
    proxy.drop_all()  # the watch of Pods too begins anew
    try:
        pod = tenant.pod("web", VOLUMES)
        for number in range(2, 5):
            node.instance.wait(tenant.patch("ConfigMap", "settings", data={"a": str(number)}))
            assert (pod.path("c") / "a").read_text() == str(number)
    finally:
        for rule in rules:
            proxy.rules.remove(rule)
    volumes = [volume for volume in node.instance.status()["volumes"] if volume["podUID"] == pod.uid]
    shown = {volume["name"]: (volume["phase"], volume["error"], volume["generation"]) for volume in volumes}
    # whatever was said twice, each version was written once and nothing else
    assert shown == {name: ("Mounted", None, 4 if name == "c" else 1) for name in VOLUMES}
    assert all(rule.used for rule in rules)


def test_every_connection_is_cut_again_and_again(pod: Pod, tenant: Tenant, proxy: Proxy) -> None:
    before = unchanged(pod)
    for number in range(2, 6):
        proxy.drop_all()
        tenant.patch("ConfigMap", "settings", data={"a": str(number)})
        eventually(lambda number=number: (pod.path("c") / "a").read_text() == str(number))
    tenant.instance.wait()
    assert unchanged(pod) == before


def test_a_watch_that_hangs_is_overtaken_by_who_asks(behind: Node, tenant: Tenant, proxy: Proxy) -> None:
    """Its stream stays open and brings nothing: `fusevol wait` reads the object itself."""
    proxy.add(on(watch=True, contains="/configmaps"), Hang(events=0))
    with behind:
        pod = tenant.pod("web", VOLUMES, wait=False)
        behind.instance.wait(pod.goal)
        goal = tenant.patch("ConfigMap", "settings", data={"a": "2"})
        assert (pod.path("c") / "a").read_text() == "1"
        behind.instance.wait(goal)
        assert (pod.path("c") / "a").read_text() == "2"


def test_a_deletion_that_happened_unseen(pod: Pod, tenant: Tenant, proxy: Proxy) -> None:
    """Pods and ConfigMaps that go and come while nobody watches."""
    proxy.refuse()
    tenant.delete("ConfigMap", "untouched")
    tenant.delete("ConfigMap", "settings")
    tenant.config_map("settings", {"a": "another"})
    proxy.refuse(False)
    eventually(lambda: (pod.path("c") / "a").read_text() == "another")
    eventually(lambda: [e for e in tenant.events(pod) if e["message"].endswith('configmap "untouched" not found')])
    assert (pod.path("other") / "b").read_text() == "1"
    proxy.refuse()
    tenant.delete("Pod", "web", grace_seconds=0)
    proxy.refuse(False)
    eventually(lambda: not pod.directory.exists())
    assert not pod.backing("e").exists()


# -- somebody else's state directory ------------------------------------------------------------------------------


def mount_again(instance: Instance, kubeconfig: Path, node: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`fusevol mount` on the instance's directories, which is expected to refuse."""
    directories = ["--state-dir", instance.state, "--runtime-dir", instance.runtime]
    command = [*COMMAND, "mount", instance.mountpoint, "--kubeconfig", kubeconfig, "--node", node, *directories]
    return subprocess.run([*map(str, command), *options], capture_output=True, text=True, timeout=30, check=False)


def with_another_ca(kubeconfig: Path, path: Path) -> Path:
    """The kubeconfig of another cluster."""
    config = json.loads(kubeconfig.read_text())
    another = path.with_suffix(".ca")
    trustme.CA().cert_pem.write_to_path(another)
    config["clusters"][0]["cluster"].pop("certificate-authority-data")
    config["clusters"][0]["cluster"]["certificate-authority"] = str(another)
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def left(cluster: Cluster, node: str, namespace: str, tmp_path: Path) -> Pod:
    """The Pod whose emptyDir is in the state directory of a fusevol that has been stopped."""
    with Node(cluster, node, tmp_path) as stopped:
        pod = stopped.tenant(namespace).pod("web", {"e": {"emptyDir": {}}})
        (pod.path("e") / "data").write_text("precious")
        stopped.instance.run("unmount")
    return pod


def test_another_node_or_cluster_is_refused_and_nothing_deleted(left: Pod, cluster: Cluster, tmp_path: Path) -> None:
    instance, right = left.node.instance, cluster.node_kubeconfig(left.node.name)
    cluster.create_node("mistyped")
    mistakes = {
        "node name": (cluster.node_kubeconfig("mistyped"), "mistyped"),
        "source's identity": (with_another_ca(right, tmp_path / "other.json"), left.node.name),
    }
    for what, (kubeconfig, node) in mistakes.items():
        refused = mount_again(instance, kubeconfig, node)
        assert refused.returncode == 4
        assert f"belongs to something else ({what} " in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert (left.backing("e") / "data").read_text() == "precious"
    with left.node:
        instance.wait(left.goal)
        assert (left.path("e") / "data").read_text() == "precious"


def test_adopting_is_meant(left: Pod, cluster: Cluster, tmp_path: Path) -> None:
    """With another node's name the Pod is another node's, and its data go."""
    with Node(cluster, "adopter", tmp_path, options=["--adopt"]) as adopter:
        adopter.instance.wait()
        assert not left.backing("e").exists()
    with Node(cluster, "adopter", tmp_path) as adopter:
        adopter.instance.wait()


def test_what_is_left_is_found_again(left: Pod, cluster: Cluster, tmp_path: Path) -> None:
    """emptyDirs of living Pods are kept; of those that went meanwhile nothing stays. Nobody decides that without the
    API server."""
    pods = tmp_path / "state/pods"
    unknown = pods / "4e2f0c3e-0000-4000-8000-000000000000"
    shutil.copytree(pods / left.uid, unknown)
    cluster.stop_apiserver()
    with left.node as again:
        try:
            eventually(lambda: again.instance.status()["source"]["errors"])
            assert {path.name for path in pods.iterdir()} == {left.uid, unknown.name}
        finally:
            cluster.start_apiserver()
        again.instance.wait(timeout=60)
        assert (left.path("e") / "data").read_text() == "precious"
        assert [path.name for path in pods.iterdir()] == [left.uid]
