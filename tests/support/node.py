"""A node that fusevol serves, and what a test makes on it.

    with Node(cluster, "node1", tmp_path) as node:          # fusevol runs, with the node's identity
        tenant = node.tenant(namespace)                     # of one namespace
        tenant.config_map("settings", {"greeting": "hello"})
        pod = tenant.pod("web", {"config": {"configMap": {"name": "settings"}}})
        (pod.path("config") / "greeting").read_text()

There is no kubelet: a Pod is created bound to the node, and its phase is what the test says (`tenant.phase`).
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.cluster import Cluster, Object
from tests.support.instance import Instance

PLUGINS = {
    "configMap": "kubernetes.io~configmap",
    "secret": "kubernetes.io~secret",
    "projected": "kubernetes.io~projected",
    "downwardAPI": "kubernetes.io~downward-api",
    "emptyDir": "kubernetes.io~empty-dir",
}
TIMESTAMPED = re.compile(r"\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.\d+")


class Node:
    """fusevol on the Node `name`, which is made. `server` is the API server's URL, or a proxy's."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        base: Path,
        *,
        server: str | None = None,
        options: Iterable[str | Path] = (),
    ) -> None:
        self.cluster = cluster
        self.name = name
        cluster.create_node(name)
        kubeconfig = cluster.node_kubeconfig(name, server=server)
        self.instance = Instance(base, "--kubeconfig", kubeconfig, "--node", name, options=("-vv", *options))

    def __enter__(self) -> Self:
        self.instance.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.instance.stop()

    def tenant(self, namespace: str) -> Tenant:
        return Tenant(self, namespace)


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod as the API server made it."""

    node: Node
    object: Object

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def goal(self) -> str:
        """For `fusevol wait`."""
        return f"pod/{self.object['metadata']['namespace']}/{self.name}"

    @property
    def directory(self) -> Path:
        return self.node.instance.mountpoint / "pods" / self.uid

    def path(self, volume: str) -> Path:
        return self.directory / "volumes" / self._plugin(volume) / volume

    def backing(self, volume: str) -> Path:
        """Where the data of an emptyDir stand."""
        return self.node.instance.state / "pods" / self.uid / "volumes" / self._plugin(volume) / volume

    def standing(self) -> list[str]:
        """The names of the volumes that can be seen. (Their plugins' directories stay until the Pod is deleted.)"""
        return sorted(path.name for path in self.directory.glob("volumes/*/*"))

    def status(self, volume: str) -> dict[str, Any] | None:
        """The volume in `fusevol status`, if it is there."""
        for known in self.node.instance.status()["volumes"]:
            if (known["podUID"], known["name"]) == (self.uid, volume):
                return dict(known)
        return None

    def _plugin(self, volume: str) -> str:
        (source,) = [v for v in self.object["spec"]["volumes"] if v["name"] == volume]
        return next(PLUGINS[kind] for kind in PLUGINS if kind in source)


class Tenant:
    """The objects of one namespace."""

    def __init__(self, node: Node, namespace: str) -> None:
        self.node = node
        self.instance = node.instance
        self.namespace = namespace
        self._api = node.cluster.admin

    def config_map(
        self, name: str, data: Mapping[str, str], *, binary: Mapping[str, bytes] | None = None, **fields: Any
    ) -> Object:
        encoded = {key: base64.b64encode(value).decode() for key, value in (binary or {}).items()}
        return self.create("ConfigMap", name, data=dict(data), binaryData=encoded, **fields)

    def secret(self, name: str, data: Mapping[str, str], **fields: Any) -> Object:
        return self.create("Secret", name, stringData=dict(data), **fields)

    def create(self, kind: str, name: str, **fields: Any) -> Object:
        return self._api.create({"kind": kind, "metadata": {"name": name, "namespace": self.namespace}, **fields})

    def patch(self, kind: str, name: str, **fields: Any) -> str:
        """A merge patch. Returns the goal of `fusevol wait` that stands for its having arrived."""
        changed = self._api.patch(kind, name, fields, self.namespace)
        return f"object={kind}/{self.namespace}/{name}@{changed['metadata']['resourceVersion']}"

    def delete(self, kind: str, name: str, *, grace_seconds: int | None = None) -> None:
        """`grace_seconds=0` is the forced deletion of a Pod; another number leaves it terminating for ever."""
        self._api.delete(kind, name, self.namespace, grace_seconds=grace_seconds)

    def pod(
        self,
        name: str,
        volumes: Mapping[str, Mapping[str, Any]],
        *,
        wait: bool = True,
        unused: Mapping[str, Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> Pod:
        """A Pod whose only container mounts `volumes` (name → source), but not the `unused` ones. With `wait` they are
        served when this returns."""
        container = {
            "name": "main",
            "image": "image",
            "volumeMounts": [{"name": volume, "mountPath": f"/{volume}"} for volume in volumes],
        }
        sources = {**volumes, **(unused or {})}
        created = self._api.create(
            {
                "kind": "Pod",
                "metadata": {"name": name, "namespace": self.namespace, **(metadata or {})},
                "spec": {
                    "nodeName": self.node.name,
                    "containers": [container],
                    "volumes": [{"name": volume, **source} for volume, source in sources.items()],
                    **spec,
                },
            }
        )
        pod = Pod(self.node, created)
        if wait:
            self.instance.wait(pod.goal)
        return pod

    def phase(self, pod: Pod, phase: str) -> None:
        """As kubelet would report it."""
        status = {"status": {"phase": phase}}
        self._api.patch("Pod", pod.name, status, self.namespace, subresource="status")

    def events(self, pod: Pod, reason: str = "FailedMount") -> list[Object]:
        """The Pod's Events, oldest first."""
        found = self._api.list("Event", self.namespace, field_selector=f"involvedObject.uid={pod.uid},reason={reason}")
        return sorted(found, key=lambda event: str(event["metadata"]["creationTimestamp"]))


def current(volume: Path) -> str:
    """The name of the timestamped directory that a volume shows."""
    return os.readlink(volume / "..data")


def tree(root: Path) -> list[str]:
    """Everything at and below `root`, one line each, the timestamped directory as `..TS`:

    `drwxr-xr-x 0 0 ..TS`, `-rw-r--r-- 0 0 ..TS/key = 'value'`, `lrwxrwxrwx 0 0 key -> ..data/key`.
    """
    lines = []
    for path in [root, *sorted(root.rglob("*"))]:
        found = path.lstat()
        line = f"{stat.filemode(found.st_mode)} {found.st_uid} {found.st_gid} {path.relative_to(root)}"
        if stat.S_ISLNK(found.st_mode):
            line += f" -> {os.readlink(path)}"
        elif stat.S_ISREG(found.st_mode):
            line += f" = {path.read_bytes().decode(errors='backslashreplace')!r}"
        lines.append(TIMESTAMPED.sub("..TS", line))
    return lines
