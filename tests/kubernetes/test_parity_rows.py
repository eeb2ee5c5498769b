"""What mismatches with a real kubelet's trees taught, on a real API server (KUBELET.md 9, 10, 14.8)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.instance import eventually
from tests.support.node import Pod, Tenant, tree

pytestmark = pytest.mark.root

TOKEN = {"serviceAccountToken": {"path": "a/b/token"}}


def container(name: str, mounts: dict[str, str], **fields: Any) -> dict[str, Any]:
    """`mounts`: where → the volume."""
    where = [{"name": volume, "mountPath": path} for path, volume in mounts.items()]
    return {"name": name, "image": "image", "volumeMounts": where, **fields}


def debug(tenant: Tenant, pod: Pod, mounts: dict[str, str]) -> None:
    """Adds an ephemeral container, as `kubectl debug` does."""
    spec = {"ephemeralContainers": [container("debugger", mounts)]}
    tenant.node.cluster.admin.patch(
        "Pod", pod.name, {"spec": spec}, tenant.namespace, subresource="ephemeralcontainers"
    )


def token_owners(pod: Pod) -> list[tuple[str, int]]:
    root = pod.path("token")
    found = [(path, (root / path).lstat()) for path in ("a", "..data/a", "..data/a/b/token")]
    return [(f"{status.st_mode & 0o7777:04o} {path}", status.st_uid) for path, status in found]


def test_a_token_keeps_its_owner_while_somebody_debugs_its_pod(tenant: Tenant) -> None:
    """An ephemeral container brings a volume that no other mounts; that it has no runAsUser changes no token."""
    tenant.create("ServiceAccount", "robot")
    tenant.config_map("settings", {"key": "1"})
    pod = tenant.pod(
        "debugged",
        {"token": {"projected": {"sources": [TOKEN, {"configMap": {"name": "settings"}}]}}},
        unused={"tools": {"configMap": {"name": "settings"}}},
        serviceAccountName="robot",
        automountServiceAccountToken=False,
        containers=[container("main", {"/token": "token"}, securityContext={"runAsUser": 1000})],
    )
    owners = [("0777 a", 1000), ("0755 ..data/a", 0), ("0600 ..data/a/b/token", 1000)]
    assert token_owners(pod) == owners
    assert pod.standing() == ["token"]
    debug(tenant, pod, {"/tools": "tools"})
    eventually(lambda: pod.standing() == ["token", "tools"])
    tenant.instance.wait(tenant.patch("ConfigMap", "settings", data={"key": "2"}))
    assert (pod.path("token") / "key").read_text() == (pod.path("tools") / "key").read_text() == "2"
    assert token_owners(pod) == owners


def test_a_key_that_comes_where_a_mount_point_stands_holds_no_update_up(tenant: Tenant) -> None:
    """It has no link, its file stands behind `..data` (AtomicWriter leaves what it finds in a link's place)."""
    tenant.config_map("settings", {"first": "1"})
    pod = tenant.pod(
        "nested",
        {"config": {"configMap": {"name": "settings"}}, "scratch": {"emptyDir": {}}},
        containers=[container("main", {"/etc/app": "config", "/etc/app/cache/deep": "scratch"})],
    )
    tenant.instance.wait(tenant.patch("ConfigMap", "settings", data={"cache": "2", "last": "3"}))
    shown = [
        "drwxr-xr-x 0 0 ..TS",
        "drwxr-xr-x 0 0 cache",
        "drwxr-xr-x 0 0 cache/deep",
        "drwxrwxrwx 0 0 .",
        "-rw-r--r-- 0 0 ..TS/cache = '2'",
        "-rw-r--r-- 0 0 ..TS/first = '1'",
        "-rw-r--r-- 0 0 ..TS/last = '3'",
        "lrwxrwxrwx 0 0 ..data -> ..TS",
        "lrwxrwxrwx 0 0 first -> ..data/first",
        "lrwxrwxrwx 0 0 last -> ..data/last",
    ]
    # the version before goes a moment later
    eventually(lambda: sorted(tree(pod.path("config"))) == sorted(shown))
    assert (pod.status("config") or {})["error"] is None
