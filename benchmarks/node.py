"""A node to measure: a real API server, and a whole fusevol with the node's own identity."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import Cluster, Object
from tests.support.instance import Instance, running

NODE = "bench"
NAMESPACE = "bench"
KEY = "key"


@dataclass(frozen=True, slots=True)
class Pod:
    """A posted Pod: when its POST returned (CLOCK_MONOTONIC, seconds) and what its three volumes must show."""

    name: str
    uid: str
    posted: float
    files: dict[str, str]  # content by path: one file of each volume


class Node:
    """Each Pod has a ConfigMap and a Secret of its own, and three volumes: of the one, of the other, and a projected
    one with both and the Pod's name."""

    def __init__(self, cluster: Cluster, instance: Instance) -> None:
        self.instance = instance
        self._api = cluster.admin

    def create_objects(self, name: str) -> None:
        """What a Pod of this name will project."""
        content = {KEY: f"{name}: first"}
        self._api.create({"kind": "ConfigMap", "metadata": {"name": name}, "data": content}, NAMESPACE)
        self._api.create({"kind": "Secret", "metadata": {"name": name}, "stringData": content}, NAMESPACE)

    def post(self, name: str) -> Pod:
        """Creates the Pod; its objects must be there."""
        created = self._api.create(_pod(name), NAMESPACE)
        posted = time.monotonic()
        uid = created["metadata"]["uid"]
        volumes = self.instance.mountpoint / "pods" / uid / "volumes"
        files = {
            str(volumes / "kubernetes.io~configmap" / "config" / KEY): f"{name}: first",
            str(volumes / "kubernetes.io~secret" / "secret" / KEY): f"{name}: first",
            str(volumes / "kubernetes.io~projected" / "all" / "name"): name,
        }
        return Pod(name, uid, posted, files)

    def write(self, kind: str, name: str, content: str) -> float:
        """Changes the ConfigMap or Secret; returns when the write had returned (CLOCK_MONOTONIC, seconds)."""
        field = "data" if kind == "ConfigMap" else "stringData"
        self._api.patch(kind, name, {field: {KEY: content}}, NAMESPACE)
        return time.monotonic()

    def delete(self, pod: Pod) -> None:
        """By force, and returns when its volumes are gone."""
        self._api.delete("Pod", pod.name, NAMESPACE, grace_seconds=0)
        deadline = time.monotonic() + 30
        directory = self.instance.mountpoint / "pods" / pod.uid
        while directory.exists():
            assert time.monotonic() < deadline, f"the volumes of {pod.name} are not torn down"
            time.sleep(0.01)


@contextmanager
def started() -> Iterator[Node]:
    """The cluster and the instance, synced; both are gone at the end."""
    base = Path(tempfile.mkdtemp(prefix="fusevol-bench-"))
    try:
        with Cluster() as cluster:
            cluster.create_node(NODE)
            cluster.create_namespace(NAMESPACE)
            kubeconfig = cluster.node_kubeconfig(NODE)
            with running(base, "--kubeconfig", kubeconfig, options=("--node", NODE)) as instance:
                instance.wait()
                yield Node(cluster, instance)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _pod(name: str) -> Object:
    volumes = [
        {"name": "config", "configMap": {"name": name}},
        {"name": "secret", "secret": {"secretName": name}},
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"configMap": {"name": name, "items": [{"key": KEY, "path": "config"}]}},
                    {"secret": {"name": name, "items": [{"key": KEY, "path": "secret"}]}},
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                ]
            },
        },
    ]
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    return {
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": NODE,
            "containers": [{"name": "main", "image": "busybox", "volumeMounts": mounts}],
            "volumes": volumes,
        },
    }
