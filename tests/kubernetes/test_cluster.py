"""The tests' own ground: the cluster is a real one, and the proxy's faults are what they say."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

from tests.support.cluster import HOST, NODES, ApiError, Cluster, Object
from tests.support.proxy import (
    Answer,
    Drop,
    Duplicate,
    Hang,
    Proxy,
    Slow,
    WatchError,
    gone,
    internal_error,
    on,
    too_many_requests,
)


def config_map(name: str, namespace: str, **data: str) -> Object:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def pod_with_secret(name: str, namespace: str, node: str, secret: str) -> Object:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "secret": {"secretName": secret}}],
        },
    }


class Lost(Exception):
    """The stream was reset or the connection ended."""


@dataclass
class Connection:
    """A client for one request at a time, as small as HTTP/2 allows."""

    stream: trio.SSLStream[trio.SocketStream]
    http: H2Connection = field(default_factory=lambda: H2Connection(H2Configuration(header_encoding="utf-8")))
    token: str | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    _body: bytes = b""  # received and not yet read
    _ended: bool = False

    async def send(self, path: str, method: str = "GET", body: bytes = b"") -> None:
        number = self.http.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", HOST)]
        if body:
            head.append(("content-type", "application/json"))
        if self.token:
            head.append(("authorization", f"Bearer {self.token}"))
        self._body, self._ended = b"", False
        self.http.send_headers(number, head, end_stream=not body)
        for start in range(0, len(body), 16384):
            self.http.send_data(number, body[start : start + 16384], end_stream=start + 16384 >= len(body))
        await self.stream.send_all(self.http.data_to_send())

    async def event(self) -> Any:
        """The next event of a watch, None at the end."""
        while b"\n" not in self._body and not self._ended:
            await self._receive()
        line, _, self._body = self._body.partition(b"\n")
        return json.loads(line) if line else None

    async def ask(self, path: str, method: str = "GET", body: bytes = b"") -> Any:
        """The whole answer."""
        await self.send(path, method, body)
        while not self._ended:
            await self._receive()
        return json.loads(self._body)

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError as error:
            raise Lost from error
        if not data:
            raise Lost
        for event in self.http.receive_data(data):
            match event:
                case ResponseReceived(headers=headers):
                    self.headers = dict(headers)
                    self.status = int(self.headers[":status"])
                case DataReceived(data=more):
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._body += more
                case StreamReset():
                    raise Lost
                case StreamEnded():
                    self._ended = True
        await self.stream.send_all(self.http.data_to_send())


@asynccontextmanager
async def connected(proxy: Proxy, cluster: Cluster) -> AsyncIterator[Connection]:
    context = ssl.create_default_context(cafile=str(cluster.ca_file))
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream(HOST, proxy.port)
    async with tcp:
        connection = Connection(trio.SSLStream(tcp, context, server_hostname=HOST, https_compatible=True))
        connection.http.initiate_connection()
        yield connection


def watch_of(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets?watch=true&fieldSelector=metadata.name%3D{name}"


@pytest.fixture
def watched(cluster: Cluster, namespace: str, node: str) -> str:
    """The watch of a secret that the node may see, with one ADDED event in it."""
    secret = {"kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "stringData": {"k": "0"}}
    cluster.admin.create(secret)
    cluster.admin.create(pod_with_secret("p", namespace, node, "s"))
    client = cluster.client(f"system:node:{node}", [NODES])
    deadline = time.monotonic() + 5
    while True:  # the Node authorizer learns of the Pod by a watch of its own
        try:
            client.get("Secret", "s", namespace)
            return watch_of(namespace, "s")
        except ApiError as error:
            if error.status != 403 or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# -- the cluster --------------------------------------------------------------------------------------------------


def test_objects_are_created_read_changed_listed_and_deleted(cluster: Cluster, namespace: str) -> None:
    cluster.admin.create(config_map("c", namespace, a="1"))
    read = cluster.admin.get("ConfigMap", "c", namespace)
    assert read["data"] == {"a": "1"}
    read["data"] = {"a": "2"}
    cluster.admin.replace(read)
    assert cluster.admin.patch("ConfigMap", "c", {"data": {"b": "3"}}, namespace)["data"] == {"a": "2", "b": "3"}
    assert [item["metadata"]["name"] for item in cluster.admin.list("ConfigMap", namespace)] == ["c"]
    cluster.admin.delete("ConfigMap", "c", namespace)
    with pytest.raises(ApiError, match='configmaps "c" not found') as raised:
        cluster.admin.get("ConfigMap", "c", namespace)
    assert raised.value.status == 404


def test_a_node_may_read_the_secrets_of_its_pods_only(cluster: Cluster, namespace: str, node: str) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "other", "namespace": namespace}, "stringData": {"k": "v"}}
    cluster.admin.create(secret)
    client = cluster.client(f"system:node:{node}", [NODES])
    with pytest.raises(ApiError, match="no relationship found between node") as raised:
        client.get("Secret", "other", namespace)
    assert raised.value.status == 403


@pytest.mark.usefixtures("watched")
def test_a_node_reads_the_secret_of_its_pod(cluster: Cluster, namespace: str, node: str) -> None:
    read = cluster.client(f"system:node:{node}", [NODES]).get("Secret", "s", namespace)
    assert read["data"] == {"k": "MA=="}


def test_a_deleted_namespace_leaves_no_pod_on_the_node(cluster: Cluster, node: str) -> None:
    cluster.create_namespace("short-lived")
    cluster.admin.create(pod_with_secret("p", "short-lived", node, "s"))
    cluster.delete_namespace("short-lived")
    assert cluster.admin.list("Pod", field_selector=f"spec.nodeName={node}") == []


def test_a_service_account_token_authenticates(cluster: Cluster, namespace: str) -> None:
    cluster.admin.create({"kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": namespace}})
    client = cluster.client("", token=cluster.service_account_token(namespace, "agent"))
    with pytest.raises(ApiError, match=f"system:serviceaccount:{namespace}:agent"):
        client.list("Pod", namespace)


def test_a_restart_keeps_the_port_and_the_objects(cluster: Cluster, namespace: str) -> None:
    cluster.admin.create(config_map("c", namespace))
    cluster.restart_apiserver()
    assert cluster.admin.get("ConfigMap", "c", namespace)["metadata"]["name"] == "c"


def test_compaction_makes_an_old_resource_version_expire(cluster: Cluster, namespace: str) -> None:
    old = cluster.admin.create(config_map("c", namespace))["metadata"]["resourceVersion"]
    for number in range(3):
        cluster.admin.patch("ConfigMap", "c", {"data": {"n": str(number)}}, namespace)
    cluster.compact()
    query = {"watch": "true", "resourceVersion": old, "timeoutSeconds": "1"}
    path = cluster.admin.path("ConfigMap", namespace=namespace)
    try:
        event = cluster.admin.request("GET", path, query=query)
        assert event["object"]["code"] == 410
    except ApiError as error:
        assert error.status == 410  # noqa: PT017  # the server may say it either way


# -- the proxy ----------------------------------------------------------------------------------------------------


async def test_the_proxy_is_the_node_that_it_was_given(proxy: Proxy, cluster: Cluster, node: str) -> None:
    async with connected(proxy, cluster) as connection:
        pods = await connection.ask(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
        refused = await connection.ask("/api/v1/namespaces/default/secrets")
    assert pods["kind"] == "PodList"
    assert (refused["code"], f"system:node:{node}" in refused["message"]) == (403, True)
    assert [request.status for request in proxy.requests] == [200, 403]


async def test_a_bearer_token_goes_before_the_proxys_identity(cluster: Cluster, namespace: str, proxy: Proxy) -> None:
    cluster.admin.create({"kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": namespace}})
    token = cluster.service_account_token(namespace, "agent")
    async with connected(proxy, cluster) as connection:
        connection.token = token
        refused = await connection.ask("/api/v1/nodes")
    assert f"system:serviceaccount:{namespace}:agent" in refused["message"]


async def test_a_large_body_passes_both_ways(proxy: Proxy, cluster: Cluster) -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "nodes", "name": "x" * 60000}},
    }
    async with connected(proxy, cluster) as connection:
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await connection.ask(path, "POST", json.dumps(review).encode())
        large = await connection.ask("/openapi/v2")
    assert answer["spec"] == review["spec"]
    assert large["swagger"] == "2.0"


@pytest.mark.parametrize(
    ("action", "status", "reason"),
    [
        (gone(), 410, "Expired"),
        (too_many_requests(7), 429, "TooManyRequests"),
        (internal_error(), 500, "InternalError"),
        (Answer(503, "ServiceUnavailable"), 503, "ServiceUnavailable"),
    ],
)
async def test_answers_are_injected_as_often_as_asked(
    proxy: Proxy, cluster: Cluster, action: Answer, status: int, reason: str
) -> None:
    rule = proxy.add(on("GET", "/version"), action, times=1)
    async with connected(proxy, cluster) as connection:
        answer = await connection.ask("/version")
        assert (connection.status, answer["code"], answer["reason"]) == (status, status, reason)
        assert connection.headers.get("retry-after") == ("7" if status == 429 else None)
        answer = await connection.ask("/version")
        assert answer["minor"] == "36"
    assert rule.used == 1


async def test_watch_events_are_duplicated(proxy: Proxy, cluster: Cluster, watched: str) -> None:
    proxy.add(on(watch=True), Duplicate())
    async with connected(proxy, cluster) as connection:
        await connection.send(watched + "&timeoutSeconds=1")
        first, second = await connection.event(), await connection.event()
        assert first == second
        assert first["type"] == "ADDED"
        assert await connection.event() is None


async def test_a_watch_reports_an_expired_version(proxy: Proxy, cluster: Cluster, watched: str) -> None:
    proxy.add(on(watch=True), WatchError())
    async with connected(proxy, cluster) as connection:
        event = await connection.ask(watched)
    assert (connection.status, event["type"], event["object"]["code"]) == (200, "ERROR", 410)


async def test_a_watch_is_dropped_after_its_first_event(proxy: Proxy, cluster: Cluster, watched: str) -> None:
    proxy.add(on(watch=True), Drop(events=1), times=1)
    proxy.add(on(watch=True), Drop(events=1, connection=True), times=1)
    for _ in range(2):
        async with connected(proxy, cluster) as connection:
            await connection.send(watched)
            with contextlib.suppress(Lost):  # a reset may overtake the event, as it may anywhere
                assert (await connection.event())["type"] == "ADDED"
            with pytest.raises(Lost):
                await connection.event()


async def test_a_watch_ends_cleanly_after_its_first_event(proxy: Proxy, cluster: Cluster, watched: str) -> None:
    proxy.add(on(watch=True), Drop(events=1, clean=True))
    async with connected(proxy, cluster) as connection:
        await connection.send(watched)
        assert (await connection.event())["type"] == "ADDED"
        assert await connection.event() is None


async def test_a_hanging_watch_is_silent(proxy: Proxy, cluster: Cluster, namespace: str, watched: str) -> None:
    proxy.add(on(watch=True), Hang(events=1))
    async with connected(proxy, cluster) as connection:
        await connection.send(watched)
        assert (await connection.event())["type"] == "ADDED"
        cluster.admin.patch("Secret", "s", {"stringData": {"k": "1"}}, namespace)
        with trio.move_on_after(0.5) as silence:
            await connection.event()
        assert silence.cancelled_caught
        assert proxy.requests[-1].open
    with trio.fail_after(5):
        while proxy.requests[-1].open:  # the proxy's thread notices that the client has left
            await trio.sleep(0.01)


async def test_an_answer_is_slow(proxy: Proxy, cluster: Cluster) -> None:
    proxy.add(on(contains="/version"), Slow(0.3))
    start = trio.current_time()
    async with connected(proxy, cluster) as connection:
        await connection.ask("/version")
    assert trio.current_time() - start >= 0.3


async def test_drop_all_cuts_and_the_next_connection_works(proxy: Proxy, cluster: Cluster, watched: str) -> None:
    async with connected(proxy, cluster) as connection:
        await connection.send(watched)
        await connection.event()
        proxy.drop_all()
        with pytest.raises(Lost):
            await connection.event()
    async with connected(proxy, cluster) as connection:
        await connection.ask("/version")


async def test_a_hanging_network_delivers_late(proxy: Proxy, cluster: Cluster, namespace: str, watched: str) -> None:
    async with connected(proxy, cluster) as connection:
        await connection.send(watched)
        await connection.event()
        proxy.hang()
        cluster.admin.patch("Secret", "s", {"stringData": {"k": "1"}}, namespace)
        with trio.move_on_after(0.3) as silence:
            await connection.event()
        assert silence.cancelled_caught
        proxy.resume()
        assert (await connection.event())["type"] == "MODIFIED"


async def test_connections_are_refused_and_accepted_again(proxy: Proxy, cluster: Cluster) -> None:
    proxy.refuse()
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        await trio.open_tcp_stream(HOST, proxy.port)
    proxy.refuse(False)
    async with connected(proxy, cluster) as connection:
        await connection.ask("/version")


async def test_an_api_server_that_is_down_resets_the_stream(proxy: Proxy, cluster: Cluster) -> None:
    cluster.stop_apiserver()
    try:
        async with connected(proxy, cluster) as connection:
            with pytest.raises(Lost):
                await connection.ask("/version")
    finally:
        await trio.to_thread.run_sync(cluster.start_apiserver)
