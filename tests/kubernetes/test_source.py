"""The Kubernetes source against a real API server, through a faulty proxy where a fault is wanted."""

from __future__ import annotations

import base64
import json
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.agent.sources.kubernetes.credentials import InCluster, Kubeconfig
from fusevol.agent.sources.kubernetes.source import KubernetesSource
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.agent.sources.source import SourceUnavailable
from fusevol.model.objects import TokenSpec, node_ref, token_ref
from fusevol.model.refs import ObjectRef, PodRef
from tests.kubernetes.recording import RecordingSink, running, until
from tests.support.cluster import ALLOCATABLE, Cluster
from tests.support.proxy import Drop, Duplicate, Hang, Proxy, WatchError, internal_error, on, too_many_requests

QUICK = replace(
    Timing(), ping_after=0.5, ping_answer=0.5, backoff_first=0.2, backoff_cap=1.0, credentials_poll=0.5, grace=20.0
)
"""So that faults are noticed within a test's patience."""


def config_map(name: str, namespace: str) -> ObjectRef:
    return ObjectRef("ConfigMap", namespace, name)


def secret(name: str, namespace: str) -> ObjectRef:
    return ObjectRef("Secret", namespace, name)


class Api:
    """The administrator's side: makes objects, in threads, so that the source under test goes on."""

    def __init__(self, cluster: Cluster, namespace: str, node: str) -> None:
        self.admin = cluster.admin
        self.namespace = namespace
        self.node = node

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        return await trio.to_thread.run_sync(self.admin.create, obj, self.namespace)

    async def config_map(self, name: str, **data: str) -> ObjectRef:
        await self.create({"kind": "ConfigMap", "metadata": {"name": name}, "data": data})
        return config_map(name, self.namespace)

    async def secret(self, name: str, **data: str) -> ObjectRef:
        await self.create({"kind": "Secret", "metadata": {"name": name}, "stringData": data})
        return secret(name, self.namespace)

    async def pod(self, name: str, *refs: ObjectRef, **spec: Any) -> PodRef:
        kinds = {"ConfigMap": ("configMap", "name"), "Secret": ("secret", "secretName")}
        volumes = [
            {"name": f"v{number}", kinds[ref.kind][0]: {kinds[ref.kind][1]: ref.name}}
            for number, ref in enumerate(refs)
        ]
        container = {"name": "c", "image": "i"}
        body = {"nodeName": self.node, "containers": [container], "volumes": volumes, **spec}
        pod = await self.create({"kind": "Pod", "metadata": {"name": name}, "spec": body})
        return PodRef(self.namespace, name, pod["metadata"]["uid"])

    async def change(self, ref: ObjectRef, **data: str) -> None:
        field = "data" if ref.kind == "ConfigMap" else "stringData"
        await trio.to_thread.run_sync(self.admin.patch, ref.kind, ref.name, {field: data}, ref.namespace)

    async def delete(self, ref: ObjectRef) -> None:
        await trio.to_thread.run_sync(self.admin.delete, ref.kind, ref.name, ref.namespace)

    async def delete_pod(self, name: str) -> None:
        await trio.to_thread.run_sync(lambda: self.admin.delete("Pod", name, self.namespace, grace_seconds=0))


@pytest.fixture
def api(cluster: Cluster, namespace: str, node: str) -> Api:
    return Api(cluster, namespace, node)


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


def source_at(path: Path, sink: RecordingSink, node: str, timing: Timing = QUICK) -> KubernetesSource:
    return KubernetesSource(sink, node, Kubeconfig(str(path)), timing=timing, rng=random.Random(1))


@pytest.fixture
def source(cluster: Cluster, node: str, sink: RecordingSink) -> KubernetesSource:
    """As a node, straight to the API server, with the real times."""
    return source_at(cluster.node_kubeconfig(node), sink, node, Timing())


@pytest.fixture
def proxied(cluster: Cluster, proxy: Proxy, node: str, sink: RecordingSink) -> KubernetesSource:
    """As a node, through the proxy."""
    return source_at(cluster.node_kubeconfig(node, server=proxy.url), sink, node)


# -- what is delivered ----------------------------------------------------------------------------------------------


async def test_pods_of_this_node_and_of_no_other(source, sink, api, cluster, node):
    await api.pod("first")
    async with running(source):
        await until(lambda: sink.synced)
        assert sink.pod_changes == ["first"]
        await api.pod("second")
        await api.pod("elsewhere", nodeName="another-node")
        await until(lambda: "second" in sink.pod_changes)
        await api.delete_pod("first")
        await until(lambda: sink.pods_gone == ["first"])
        assert "elsewhere" not in sink.pod_changes
    assert sink.told == ()


async def test_every_kind_of_content(source, sink, api, namespace, node):
    binary = {
        "kind": "ConfigMap",
        "metadata": {"name": "c"},
        "data": {"text": "Größe"},
        "binaryData": {"b": "AAEC/w=="},
    }
    await api.create(binary)
    await api.create({"kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAH/"}, "immutable": True})
    await api.create({"kind": "ConfigMap", "metadata": {"name": "empty"}})
    refs = config_map("c", namespace), secret("s", namespace), config_map("empty", namespace)
    for ref in (*refs, node_ref(node)):
        source.reference(ref)
    await api.pod("p", *refs)
    async with running(source):
        await until(lambda: len(sink.delivered) == 4)
    assert sink.last(refs[0]) == {"text": "Größe".encode(), "b": b"\0\1\2\xff"}
    assert sink.last(refs[1]) == {"k": b"\0\1\xff"}
    assert [sink.delivered[ref][0].immutable for ref in refs] == [False, True, False]
    assert sink.last(refs[2]) == {}
    assert sink.delivered[node_ref(node)][0].literals == ALLOCATABLE
    for carrier in sink.carriers:
        assert all(not any(value.reveal()) for value in carrier.data.values())


async def test_the_nodes_allocatable_is_followed(source, sink, cluster, node):
    source.reference(node_ref(node))
    async with running(source):
        await until(lambda: sink.delivered)
        change = {"status": {"allocatable": {"memory": "1Gi"}}}
        await trio.to_thread.run_sync(lambda: cluster.admin.patch("Node", node, change, subresource="status"))
        await until(lambda: sink.delivered[node_ref(node)][-1].literals["memory"] == "1Gi")


async def test_a_new_pods_objects_come_although_the_authorizer_is_late(source, sink, api):
    """References come with the Pod's own event, before the authorizer has seen it."""
    refs = [await api.secret(f"s{number}", k=str(number)) for number in range(30)]
    sink.on_pod = lambda pod: [
        source.reference(secret(volume.secret.secret_name, pod.metadata.namespace)) for volume in pod.spec.volumes or ()
    ]
    async with running(source):
        await until(lambda: sink.synced)
        for number, ref in enumerate(refs):
            await api.pod(f"p{number}", ref)
        await until(lambda: all(ref in sink.delivered for ref in refs))
    assert sink.failed == []


async def test_a_secret_of_no_pod_of_this_node_is_refused(source, sink, api):
    ref = await api.secret("foreign", k="v")
    source.reference(ref)
    async with running(source):
        await until(lambda: sink.failed)
        ((_, message),) = sink.failed
        assert "no relationship found between node" in message
        await api.pod("p", ref)
        await until(lambda: ref in sink.delivered)


async def test_an_object_that_is_made_late(source, sink, api, namespace):
    ref = config_map("late", namespace)
    await api.pod("p", ref)
    source.reference(ref)
    async with running(source):
        await until(lambda: sink.missing == [ref])
        began = time.perf_counter()
        await api.config_map("late", k="v")
        await until(lambda: ref in sink.delivered)
        assert time.perf_counter() - began < 10, "by polling, not by the watch"
    assert sink.failed == []


async def test_deleted_and_made_anew_although_immutable(source, sink, api, namespace):
    body = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "old"}, "immutable": True}
    await api.create(body)
    ref = config_map("c", namespace)
    await api.pod("p", ref)
    source.reference(ref)
    async with running(source):
        await until(lambda: ref in sink.delivered)
        await api.delete(ref)
        await until(lambda: sink.missing == [ref])
        await api.create(body | {"data": {"k": "new"}})
        await until(lambda: sink.last(ref) == {"k": b"new"})
    first, second = sink.delivered[ref]
    assert first.uid != second.uid


async def test_a_dereferenced_object_is_delivered_no_more(source, sink, api):
    ref, other = await api.config_map("c", k="1"), await api.config_map("other", k="1")
    await api.pod("p", ref, other)
    source.reference(ref)
    source.reference(ref)  # one reference
    source.reference(other)
    async with running(source):
        await until(lambda: len(sink.delivered) == 2)
        source.dereference(ref)
        await api.change(ref, k="2")
        await api.change(other, k="2")
        await until(lambda: sink.last(other) == {"k": b"2"})
        await trio.sleep(0.2)
        assert sink.last(ref) == {"k": b"1"}
        source.reference(ref)
        await until(lambda: sink.last(ref) == {"k": b"2"})


async def test_a_megabyte(source, sink, api):
    large = "x" * (1000 * 1000)
    ref = await api.secret("large", k=large)
    await api.pod("p", ref)
    source.reference(ref)
    async with running(source):
        await until(lambda: ref in sink.delivered)
        assert sink.last(ref) == {"k": large.encode()}
        await api.change(ref, k=large[::-1] + "y")
        await until(lambda: sink.last(ref) == {"k": large.encode() + b"y"})


async def test_redelivery(source, sink, api):
    refs = [await api.config_map("c", k="v"), await api.secret("s", k="v")]
    await api.pod("p", *refs)
    for ref in refs:
        source.reference(ref)
    async with running(source):
        await until(lambda: len(sink.delivered) == 2)
        await source.redeliver()
        await until(lambda: all(len(sink.delivered[ref]) == 2 for ref in refs))
        assert all(first.version == second.version for first, second in sink.delivered.values())


# -- the barrier ----------------------------------------------------------------------------------------------------


async def test_after_a_refresh_everything_is_there(proxied, proxy, sink, api):
    """With every watch hanging: what comes, comes by the refresh."""
    ref = await api.config_map("c", k="1")
    await api.pod("p", ref)
    proxied.reference(ref)
    proxy.add(on(watch=True), Hang(events=0))
    async with running(proxied):
        await until(lambda: ref in sink.delivered)
        await api.change(ref, k="2")
        await api.pod("q")
        await api.delete_pod("p")
        await api.pod("keeps-access", ref)
        await trio.sleep(0.3)
        assert sink.pod_changes == ["p"]
        await proxied.refresh()
        assert sink.last(ref) == {"k": b"2"}
        assert sink.pods_gone == ["p"]
        assert set(sink.pod_changes) == {"p", "q", "keeps-access"}


async def test_a_refresh_without_an_api_server_says_why(cluster, proxy, node, sink):
    source = source_at(cluster.node_kubeconfig(node, server=proxy.url), sink, node, replace(QUICK, refresh=1.0))
    async with running(source):
        await until(lambda: sink.synced)
        proxy.refuse()
        with pytest.raises(SourceUnavailable, match="the API server cannot be reached"):
            await source.refresh()


# -- faults ---------------------------------------------------------------------------------------------------------


async def test_watches_over_several_connections_and_a_get_beside_them(source, sink, api):
    refs = [await api.config_map(f"c{number}", k="0") for number in range(220)]
    for number in range(11):
        await api.pod(f"p{number}", *refs[number * 20 : number * 20 + 20])
    for ref in refs:
        source.reference(ref)
    async with running(source):
        await until(lambda: len(sink.delivered) == 220, 30)
        client = source._client
        await until(lambda: sum(connection.streams for connection in client.pool.connections) == 221)
        assert len(client.pool.connections) == 3
        times = []
        for _ in range(20):
            began = time.perf_counter()
            await source._reflectors[refs[0]].refresh()
            times.append(time.perf_counter() - began)
        assert sorted(times)[10] < 1, "the watches are in its way"
        for ref in (refs[0], refs[110], refs[219]):
            await api.change(ref, k="1")
            await until(lambda ref=ref: sink.last(ref) == {"k": b"1"}, 2)
    assert sink.failed == []


async def test_dropped_watches_resume_without_delivering_again(proxied, proxy, sink, api):
    refs = [await api.config_map(f"c{number}", k="0") for number in range(5)]
    await api.pod("p", *refs)
    for ref in refs:
        proxied.reference(ref)
    async with running(proxied):
        await until(lambda: len(proxy.seen(on(watch=True))) == 6)
        for _ in range(3):
            proxy.drop_all()
            await trio.sleep(0.3)
        await until(lambda: sum(request.open for request in proxy.seen(on(watch=True))) == 6)
        await api.change(refs[0], k="1")
        await until(lambda: sink.last(refs[0]) == {"k": b"1"})
    assert [len(sink.versions(ref)) for ref in refs] == [2, 1, 1, 1, 1]
    assert sink.pod_changes == ["p"]
    assert len(proxy.seen(on("GET", watch=False))) == 6  # nothing was read anew
    assert sink.failed == []


async def test_a_watch_that_is_reset_or_ended_after_each_event(proxied, proxy, sink, api):
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    proxied.reference(ref)
    proxy.add(on(contains="/configmaps", watch=True), Drop(events=1), times=2)
    proxy.add(on(contains="/configmaps", watch=True), Drop(events=1, clean=True), times=2)
    proxy.add(on(contains="/configmaps", watch=True), Drop(events=1, connection=True), times=2)
    async with running(proxied):
        await until(lambda: ref in sink.delivered)
        for number in range(1, 8):
            await api.change(ref, k=str(number))
            await until(lambda number=number: sink.last(ref) == {"k": str(number).encode()})
    versions = [int(version) for version in sink.versions(ref)]
    assert versions == sorted(set(versions))


async def test_a_network_that_is_silent_is_noticed(proxied, proxy, sink, api):
    """Half-open connections: no FIN, nothing."""
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    proxied.reference(ref)
    async with running(proxied):
        await until(lambda: ref in sink.delivered and len(proxy.seen(on(watch=True))) == 2)
        proxy.hang()
        await api.change(ref, k="1")
        await trio.sleep(1.5)
        assert proxied._client.pool.connections == ()
        proxy.resume()
        await until(lambda: sink.last(ref) == {"k": b"1"}, 20)


async def test_a_watch_that_hangs_while_its_connection_lives(cluster, proxy, node, sink, api):
    source = source_at(cluster.node_kubeconfig(node, server=proxy.url), sink, node, replace(QUICK, watch_idle=1.0))
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    source.reference(ref)
    proxy.add(on(contains="/configmaps", watch=True), Hang(events=0), times=1)
    async with running(source):
        await until(lambda: proxy.seen(on(contains="/configmaps", watch=True)))
        await api.change(ref, k="1")
        await until(lambda: sink.last(ref) == {"k": b"1"}, 5)


async def test_duplicate_events_are_harmless(proxied, proxy, sink, api):
    ref = await api.config_map("c", k="0")
    proxied.reference(ref)
    proxy.add(on(watch=True), Duplicate(3))
    async with running(proxied):
        await until(lambda: sink.synced)
        await api.pod("p", ref)
        await until(lambda: ref in sink.delivered)
        await api.change(ref, k="1")
        await until(lambda: sink.last(ref) == {"k": b"1"})
        await api.delete_pod("p")
        await until(lambda: sink.pods_gone)
        await trio.sleep(0.2)
    assert len(sink.versions(ref)) == 2
    assert sink.pods_gone == ["p"]


async def test_an_expired_version_reads_anew_and_removes_nothing(proxied, proxy, sink, api):
    refs = [await api.config_map(f"c{number}", k="0") for number in range(3)]
    await api.pod("stays", *refs)
    await api.pod("goes")
    for ref in refs:
        proxied.reference(ref)
    async with running(proxied):
        await until(lambda: len(sink.delivered) == 3 and len(proxy.seen(on(watch=True))) == 4)
        proxy.add(on(watch=True), WatchError(), times=4)
        proxy.refuse()
        await api.change(refs[1], k="1")
        await api.delete_pod("goes")
        proxy.refuse(False)
        await until(lambda: sink.last(refs[1]) == {"k": b"1"} and sink.pods_gone)
        await until(lambda: sum(request.open for request in proxy.seen(on(watch=True))) == 4)
    assert sink.pods_gone == ["goes"]
    assert sink.missing == []
    assert [len(sink.versions(ref)) for ref in refs] == [1, 2, 1]


async def test_429_and_500_are_waited_out(proxied, proxy, sink, api):
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    proxied.reference(ref)
    proxy.add(on(contains="/pods", watch=False), too_many_requests(1), times=1)
    proxy.add(on(contains="/pods", watch=True), internal_error(), times=2)
    proxy.add(on(contains="/configmaps/c"), internal_error(), times=2)
    async with running(proxied):
        await until(lambda: sink.synced and ref in sink.delivered)
        assert sink.failed == [(ref, "Internal error occurred: injected by the proxy")]
        await api.pod("q")
        await until(lambda: "q" in sink.pod_changes)
        await until(lambda: sink.told == ())


async def test_an_api_server_that_is_down_at_the_start(proxied, proxy, sink, api):
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    proxied.reference(ref)
    proxy.refuse()
    async with running(proxied):
        await until(lambda: sink.told)
        await trio.sleep(3)
        assert sink.all_problems == ["the API server cannot be reached: Connection refused"]
        assert not sink.synced
        proxy.refuse(False)
        await until(lambda: sink.synced and ref in sink.delivered)
    assert sink.told == ()
    assert sink.failed == []


async def test_an_api_server_that_restarts_rewrites_nothing(source, sink, api, cluster):
    refs = [await api.config_map("c", k="0"), await api.secret("s", k="0")]
    await api.pod("p", *refs)
    for ref in refs:
        source.reference(ref)
    async with running(source):
        await until(lambda: len(sink.delivered) == 2)
        await trio.to_thread.run_sync(cluster.stop_apiserver)
        await until(lambda: any("cannot be reached" in problem.message for problem in sink.told), 20)
        await trio.to_thread.run_sync(cluster.start_apiserver)
        await api.change(refs[0], k="1")
        await until(lambda: sink.last(refs[0]) == {"k": b"1"}, 40)
        await until(lambda: not sink.told, 40)
        await trio.sleep(1)
    assert [len(sink.versions(ref)) for ref in refs] == [2, 1]
    assert sink.pod_changes == ["p"]
    assert sink.failed == []
    assert sink.missing == []
    assert sink.pods_gone == []


async def test_a_compacted_history_is_read_anew(source, sink, api, cluster):
    refs = [await api.config_map("c", k="0"), await api.secret("s", k="0")]
    await api.pod("p", *refs)
    for ref in refs:
        source.reference(ref)
    async with running(source):
        await until(lambda: len(sink.delivered) == 2)
        for number in range(5):
            await api.config_map(f"noise{number}")
        await trio.to_thread.run_sync(cluster.compact)
        await api.change(refs[1], k="1")
        await until(lambda: sink.last(refs[1]) == {"k": b"1"}, 40)
    assert [len(sink.versions(ref)) for ref in refs] == [1, 2]
    assert sink.pods_gone == []
    assert sink.failed == []


# -- credentials ----------------------------------------------------------------------------------------------------


async def test_rotated_certificate_files(cluster, node, sink, api):
    """New connections use the new certificate; the old connection goes when its watches have gone."""
    path = cluster.kubeconfig(f"system:node:{node}", ["system:nodes"], files=True)
    source = source_at(path, sink, node)
    ref = await api.config_map("c", k="0")
    await api.pod("p", ref)
    source.reference(ref)
    async with running(source):
        await until(lambda: ref in sink.delivered)
        (old,) = source._client.pool.connections
        cluster.kubeconfig(f"system:node:{node}", ["system:nodes"], path, files=True)
        await until(lambda: old.room == 0)
        assert old.streams == 2  # they go on
        await source.refresh()
        assert len(source._client.pool.connections) == 2
        await api.change(ref, k="1")
        await until(lambda: sink.last(ref) == {"k": b"1"})
    assert sink.failed == []
    assert sink.told == ()


async def test_a_certificate_that_is_not_accepted_is_said(cluster, node, sink):
    source = source_at(cluster.kubeconfig("nobody"), sink, node)
    async with running(source):
        await until(lambda: sink.told)
        assert sink.told[0].message.startswith("the Pods cannot be read: pods is forbidden")


def exec_kubeconfig(cluster: Cluster, plugin: Path) -> Path:
    """A kubeconfig whose user is who `plugin` says."""
    path = cluster.kubeconfig("nobody", token="replaced below")
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    text = path.read_text().replace('"token": "replaced below"', f'"exec": {json.dumps(command)}')
    path.write_text(text)
    return path


async def test_an_exec_plugins_token_is_renewed_when_it_is_refused(cluster, node, sink, api, tmp_path):
    """The first token is one that the API server does not know."""
    admin = cluster.admin
    await trio.to_thread.run_sync(
        admin.create, {"kind": "ServiceAccount", "metadata": {"name": "agent"}}, api.namespace
    )
    grant(cluster, api.namespace, "agent")
    answers = tmp_path / "token"
    answers.write_text("nonsense")
    plugin = tmp_path / "plugin"
    answer = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'
    plugin.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\nprintf '{answer}' \"$(cat {answers})\"\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    source = source_at(exec_kubeconfig(cluster, plugin), sink, node)
    await api.pod("p")
    async with running(source):
        await until(lambda: any("Unauthorized" in problem.message for problem in sink.told))
        answers.write_text(cluster.service_account_token(api.namespace, "agent"))
        await until(lambda: sink.pod_changes == ["p"], 20)
        await until(lambda: sink.told == ())
    assert len((tmp_path / "runs").read_text().split()) <= 4


def grant(cluster: Cluster, namespace: str, account: str) -> None:
    """What docs/ lists for a ServiceAccount."""
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["configmaps", "secrets", "nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    ]
    name = f"{namespace}-{account}"
    admin = cluster.admin
    admin.create({"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
    admin.create(
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": account}],
        }
    )


async def test_in_cluster_with_a_rotated_token(cluster, node, sink, api, tmp_path):
    await api.create({"kind": "ServiceAccount", "metadata": {"name": "agent"}})
    grant(cluster, api.namespace, "agent")
    (tmp_path / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    (tmp_path / "token").write_text(cluster.service_account_token(api.namespace, "agent", seconds=600))
    os.environ.update(KUBERNETES_SERVICE_HOST="127.0.0.1", KUBERNETES_SERVICE_PORT=str(cluster.port))
    try:
        source = KubernetesSource(sink, node, InCluster(str(tmp_path)), timing=QUICK, rng=random.Random(1))
        assert source.kind == "in-cluster"
        ref = await api.secret("s", k="0")
        source.reference(ref)
        async with running(source):
            await until(lambda: sink.synced and ref in sink.delivered)
            used = source._client.credentials.value
            new = tmp_path / "token.new"
            new.write_text(cluster.service_account_token(api.namespace, "agent", seconds=3600))
            new.rename(tmp_path / "token")
            await until(lambda: source._client.credentials.value is not used)
            assert bytes(source._client.credentials.value.authorization.reveal()).endswith(
                (tmp_path / "token").read_bytes()
            )
            await source.refresh()
            assert len(source._client.pool.connections) == 1  # a token is no matter of the connection
    finally:
        del os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    assert sink.failed == []


# -- tokens and Events ----------------------------------------------------------------------------------------------


async def token_pod(api: Api, audience: str) -> PodRef:
    await api.create({"kind": "ServiceAccount", "metadata": {"name": "builder"}})
    projection = {"serviceAccountToken": {"path": "token", "audience": audience, "expirationSeconds": 600}}
    volume = {"name": "t", "projected": {"sources": [projection]}}
    return await api.pod("p", serviceAccountName="builder", volumes=[volume])


async def test_a_token_is_fetched_as_the_node_and_renewed(cluster, node, sink, api):
    clock = [0.0]
    path = cluster.node_kubeconfig(node)
    source = KubernetesSource(
        sink, node, Kubeconfig(str(path)), timing=QUICK, rng=random.Random(1), now=lambda: time.time() + clock[0]
    )
    refs: list[ObjectRef] = []

    def refer(pod: Any) -> None:
        if pod.metadata.name == "p" and not refs:
            refs.append(token_ref(api.namespace, TokenSpec("builder", "vault", 600, "p", pod.metadata.uid)))
            source.reference(refs[0])

    sink.on_pod = refer
    async with running(source):
        await until(lambda: sink.synced)
        await token_pod(api, "vault")
        await until(lambda: refs and refs[0] in sink.delivered)
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": sink.last(refs[0])["token"].decode(), "audiences": ["vault"]},
        }
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        status = (await trio.to_thread.run_sync(cluster.admin.request, "POST", path, review))["status"]
        assert status["authenticated"]
        assert status["user"]["username"] == f"system:serviceaccount:{api.namespace}:builder"
        assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
        clock[0] = 490.0
        source._reflectors[refs[0]]._interruption.interrupt()  # wakes it, as its longest sleep of a minute would
        await until(lambda: len(sink.delivered[refs[0]]) == 2)
    assert sink.failed == []
    assert len({delivery.data["token"] for delivery in sink.delivered[refs[0]]}) == 2


async def test_a_token_of_an_account_that_is_missing(source, sink, api):
    pod = await api.pod("p", serviceAccountName="nobody")
    ref = token_ref(api.namespace, TokenSpec("nobody", "", 600, "p", pod.uid))
    source.reference(ref)
    async with running(source):
        await until(lambda: sink.failed)
    ((_, message),) = sink.failed
    assert message.startswith("failed to fetch token: ")
    assert "nobody" in message


async def test_events_are_written_once_and_counted_by_a_node(source, sink, api, cluster, node):
    pod = await api.pod("p")
    text = 'MountVolume.SetUp failed for volume "v" : configmap "c" not found'

    def events() -> list[dict[str, Any]]:
        selector = f"involvedObject.uid={pod.uid}"
        return cluster.admin.list("Event", api.namespace, field_selector=selector)

    async with running(source):
        await until(lambda: sink.synced)
        for _ in range(5):
            source.recorder.emit(pod, "Warning", "FailedMount", text)
        source.recorder.emit(pod, "Warning", "FailedMount", "another")
        await until(lambda: len(events()) == 2)
        await until(lambda: max(event["count"] for event in events()) == 5)
        assert source.recorder.dropped == 0
    (event,) = [event for event in events() if event["message"] == text]
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "FailedMount", 5)
    assert event["source"] == {"component": "fusevol", "host": node}
    assert event["involvedObject"] == {
        "kind": "Pod",
        "namespace": api.namespace,
        "name": "p",
        "uid": pod.uid,
        "apiVersion": "v1",
    }


# -- cost -----------------------------------------------------------------------------------------------------------


async def test_a_write_is_delivered_by_the_watch(source, sink, api):
    ref = await api.secret("s", k="0")
    await api.pod("p", ref)
    source.reference(ref)
    latencies = []
    async with running(source):
        await until(lambda: ref in sink.delivered)
        for number in range(1, 51):
            value = f"{number}".encode()
            await api.change(ref, k=str(number))
            written = time.perf_counter()
            await until(lambda value=value: sink.last(ref) == {"k": value})
            latencies.append(max(0.0, sink.delivered[ref][-1].at - written))
    print(f"write to delivery: median {sorted(latencies)[25] * 1000:.1f} ms")
    assert sorted(latencies)[25] < 1, "by polling, not by the watch"


MEASURE = """
import os, random, sys, time, trio
from fusevol.agent.sources.kubernetes.credentials import Kubeconfig
from fusevol.agent.sources.kubernetes.source import KubernetesSource
from fusevol.model.refs import ObjectRef
class Sink:
    count = 0
    def __getattr__(self, name): return lambda *_: None
    async def deliver_object(self, delivered): Sink.count += 1
def rss(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
async def main(path, namespace, node):
    source = KubernetesSource(Sink(), node, Kubeconfig(path))
    before = rss()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        for number in range(200): source.reference(ObjectRef("ConfigMap", namespace, f"c{number}"))
        with trio.fail_after(60):
            while Sink.count < 200: await trio.sleep(0.05)
        await trio.sleep(1)
        cpu = time.process_time()
        await trio.sleep(5)
        print(before, rss(), (time.process_time() - cpu) / 5 * 100)
        nursery.cancel_scope.cancel()
trio.run(main, *sys.argv[1:])
"""


@pytest.mark.slow
async def test_what_two_hundred_watches_cost(cluster, api, node, capsys):
    refs = [await api.config_map(f"c{number}", k="0") for number in range(200)]
    for number in range(10):
        await api.pod(f"p{number}", *refs[number * 20 : number * 20 + 20])
    command = [sys.executable, "-c", MEASURE, str(cluster.node_kubeconfig(node)), api.namespace, node]
    done = await trio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    before, after, cpu = map(float, done.stdout.split()[-3:])
    with capsys.disabled():
        print(f"\n200 watches: RSS {after:.1f} MiB ({before:.1f} MiB before), idle CPU {cpu:.2f} %")
    assert after < 60
    assert cpu < 1


SCAN = """
import base64, re, sys, trio
from fusevol.agent.sources.kubernetes.credentials import Kubeconfig
from fusevol.agent.sources.kubernetes.source import KubernetesSource
from fusevol.model.refs import ObjectRef
class Sink:
    delivered = 0
    def __getattr__(self, name): return lambda *_: None
    async def deliver_object(self, delivered): Sink.delivered += 1
def copies(hidden):
    found = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if not line.split()[1].startswith("rw") or "[v" in line: continue
            try: memory.seek(start); block = bytearray(memory.read(end - start))
            except OSError: continue
            for one in hidden:
                for match in re.finditer(re.escape(one[:3]), block):  # three bytes: too short to be the marker itself
                    at = match.start()
                    found += all(block[at + i] ^ 0x55 == byte for i, byte in enumerate(hidden[one]))
            block[:] = bytes(len(block))
    return found
async def main(path, namespace, node, *markers):
    hidden = {}
    for marker in markers:  # each byte xor 0x55, in hex
        veiled = bytes.fromhex(marker)
        hidden[bytes(byte ^ 0x55 for byte in veiled[:3])] = veiled
    source = KubernetesSource(Sink(), node, Kubeconfig(path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        source.reference(ObjectRef("Secret", namespace, "s"))
        with trio.fail_after(30):
            while Sink.delivered < 1: await trio.sleep(0.01)
            print("delivered", flush=True)
            while Sink.delivered < 2: await trio.sleep(0.01)
        await trio.sleep(0.5)
        print(copies(hidden))
        nursery.cancel_scope.cancel()
trio.run(main, *sys.argv[1:])
"""

AGENT_ENVIRONMENT = {
    "PYTHONMALLOC": "malloc",
    "GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0",
    "MALLOC_ARENA_MAX": "1",
}
"""As the keeper starts the agent (ARCHITECTURE.md)."""


@pytest.mark.parametrize("size", [40, 300_000])
async def test_no_copy_of_a_secret_stays_in_memory(cluster, api, node, size):
    """By GET and by watch; in plain and in base64."""
    first, second = "mARk3r-one-" + os.urandom(12).hex(), "wATch3d-two-" + os.urandom(12).hex()
    ref = await api.secret("s", k=first.ljust(size, "."))
    await api.pod("p", ref)
    markers = [first, second, *(base64.b64encode(text.encode()).decode()[:32] for text in (first, second))]
    veiled = [bytes(byte ^ 0x55 for byte in marker.encode()).hex() for marker in markers]
    command = [sys.executable, "-c", SCAN, str(cluster.node_kubeconfig(node)), api.namespace, node, *veiled]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            environment = os.environ | AGENT_ENVIRONMENT
            start = partial(trio.run_process, command, stdout=subprocess.PIPE, env=environment)
            process = await nursery.start(start)
            assert await line_of(process) == "delivered"
            await api.change(ref, k=second.ljust(size, "."))
            assert await line_of(process) == "0"


async def line_of(process: trio.Process) -> str:
    line = b""
    while not line.endswith(b"\n") and (more := await process.stdout.receive_some(1)):
        line += more
    return line.decode().strip()
