"""Every kind of volume on a real API server: what its tree looks like, and how volumes come and go with their Pods."""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.instance import eventually
from tests.support.node import Tenant, tree

pytestmark = pytest.mark.root


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


# name → (the volume's source, its tree)
TREES: dict[str, tuple[dict[str, Any], str]] = {
    "configMap, whole": (
        {"configMap": {"name": "settings"}},
        r"""
        drwxrwxrwx 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        -rw-r--r-- 0 0 ..TS/-._odd.KEY-1 = 'odd'
        -rw-r--r-- 0 0 ..TS/bytes = '\x00\\xff\n'
        -rw-r--r-- 0 0 ..TS/empty = ''
        -rw-r--r-- 0 0 ..TS/greeting = 'grüß dich\n'
        lrwxrwxrwx 0 0 -._odd.KEY-1 -> ..data/-._odd.KEY-1
        lrwxrwxrwx 0 0 bytes -> ..data/bytes
        lrwxrwxrwx 0 0 empty -> ..data/empty
        lrwxrwxrwx 0 0 greeting -> ..data/greeting
        """,
    ),
    "configMap, items with paths and modes": (
        {
            "configMap": {
                "name": "settings",
                "defaultMode": 0o640,
                "items": [
                    {"key": "greeting", "path": "etc/grüße/to whom", "mode": 0o400},
                    {"key": "empty", "path": "etc/none"},
                    {"key": "greeting", "path": "top"},
                ],
            }
        },
        r"""
        drwxrwxrwx 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        drwxr-xr-x 0 0 ..TS/etc
        drwxr-xr-x 0 0 ..TS/etc/grüße
        -r-------- 0 0 ..TS/etc/grüße/to whom = 'grüß dich\n'
        -rw-r----- 0 0 ..TS/etc/none = ''
        -rw-r----- 0 0 ..TS/top = 'grüß dich\n'
        lrwxrwxrwx 0 0 etc -> ..data/etc
        lrwxrwxrwx 0 0 top -> ..data/top
        """,
    ),
    "configMap, optional and missing": (
        {"configMap": {"name": "nope", "optional": True}},
        """
        drwxrwxrwx 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        """,
    ),
    "configMap, an optional key that is missing": (
        {"configMap": {"name": "settings", "optional": True, "items": [{"key": "nope", "path": "nope"}]}},
        """
        drwxrwxrwx 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        """,
    ),
    "secret": (
        {"secret": {"secretName": "credentials", "defaultMode": 0o400}},
        """
        drwxrwxrwt 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        -r-------- 0 0 ..TS/password = 'geheim'
        lrwxrwxrwx 0 0 password -> ..data/password
        """,
    ),
    "projected": (
        {
            "projected": {
                "defaultMode": 0o444,
                "sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "greeting", "path": "a/greeting"}]}},
                    {"secret": {"name": "credentials", "items": [{"key": "password", "path": "p", "mode": 0o400}]}},
                    {"downwardAPI": {"items": [{"path": "a/name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    {"configMap": {"name": "nope", "optional": True}},
                ],
            }
        },
        r"""
        drwxrwxrwt 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        drwxr-xr-x 0 0 ..TS/a
        -r--r--r-- 0 0 ..TS/a/greeting = 'grüß dich\n'
        -r--r--r-- 0 0 ..TS/a/name = 'web'
        -r-------- 0 0 ..TS/p = 'geheim'
        lrwxrwxrwx 0 0 a -> ..data/a
        lrwxrwxrwx 0 0 p -> ..data/p
        """,
    ),
    "downwardAPI": (
        {
            "downwardAPI": {
                "items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "tier", "fieldRef": {"fieldPath": "metadata.labels['tier']"}},
                    {
                        "path": "memory",
                        "resourceFieldRef": {
                            "containerName": "main",
                            "resource": "limits.memory",
                            "divisor": "1Ki",
                        },
                    },
                ]
            }
        },
        r"""
        drwxrwxrwt 0 0 .
        lrwxrwxrwx 0 0 ..data -> ..TS
        drwxr-xr-x 0 0 ..TS
        -rw-r--r-- 0 0 ..TS/labels = 'app="web"\ntier="front"'
        -rw-r--r-- 0 0 ..TS/memory = '24581684'
        -rw-r--r-- 0 0 ..TS/tier = 'front'
        lrwxrwxrwx 0 0 labels -> ..data/labels
        lrwxrwxrwx 0 0 memory -> ..data/memory
        lrwxrwxrwx 0 0 tier -> ..data/tier
        """,
    ),
    "emptyDir": ({"emptyDir": {}}, "drwxrwxrwx 0 0 ."),
}


@pytest.mark.parametrize("case", TREES)
def test_tree(tenant: Tenant, case: str) -> None:
    """As kubelet leaves it (KUBELET-MEASURED 3)."""
    source, expected = TREES[case]
    data = {"greeting": "grüß dich\n", "empty": "", "-._odd.KEY-1": "odd"}
    tenant.config_map("settings", data, binary={"bytes": b"\0\xff\n"})
    tenant.secret("credentials", {"password": "geheim"})
    pod = tenant.pod("web", {"v": source}, metadata={"labels": {"app": "web", "tier": "front"}})
    assert tree(pod.path("v")) == sorted_like_a_tree(lines(expected))


def sorted_like_a_tree(expected: list[str]) -> list[str]:
    """In the order of tree(): by path, where the timestamp stands for `..TS` (digits come before letters)."""
    first, *rest = expected
    return [first, *sorted(rest, key=lambda line: Path(line.split(" ", 3)[3].replace("..TS", "..2")))]


def test_fs_group_and_user(tenant: Tenant) -> None:
    tenant.secret("credentials", {"password": "geheim"})
    volumes = {"s": {"secret": {"secretName": "credentials", "defaultMode": 0o400}}, "e": {"emptyDir": {}}}
    pod = tenant.pod("web", volumes, securityContext={"fsGroup": 2345, "runAsUser": 1234})
    assert tree(pod.path("s")) == lines("""
        drwxrwsrwt 0 2345 .
        drwxr-sr-x 0 2345 ..TS
        -r--r----- 0 2345 ..TS/password = 'geheim'
        lrwxrwxrwx 0 2345 ..data -> ..TS
        lrwxrwxrwx 0 2345 password -> ..data/password
        """)
    assert tree(pod.path("e")) == ["drwxrwsrwx 0 2345 ."]


def test_a_pods_directories(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    pod = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}, "e": {"emptyDir": {}}})
    above = [entry for entry in tree(pod.directory) if entry.count("/") <= 1]
    assert above == lines("""
        drwxr-x--- 0 0 .
        drwxr-x--- 0 0 volumes
        drwxr-xr-x 0 0 volumes/kubernetes.io~configmap
        drwxr-xr-x 0 0 volumes/kubernetes.io~empty-dir
        """)
    assert os.readlink(tenant.instance.mountpoint / "by-name" / tenant.namespace / "web") == f"../../pods/{pod.uid}"
    plugins = tenant.instance.state / "pods" / pod.uid / "plugins"
    assert (plugins / "kubernetes.io~empty-dir/e/ready").is_file()


def test_extended_attributes(tenant: Tenant) -> None:
    version = tenant.config_map("settings", {"a": "1"})["metadata"]["resourceVersion"]
    pod = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}})
    volume = pod.path("c")

    def attributes() -> dict[str, str]:
        return {name: os.getxattr(volume, name).decode() for name in os.listxattr(volume)}

    found = attributes()
    updated = found.pop("user.fusevol.updated")
    assert found == {
        "user.fusevol.namespace": tenant.namespace,
        "user.fusevol.pod": "web",
        "user.fusevol.objects": f"ConfigMap/{tenant.namespace}/settings@{version}",
        "user.fusevol.generation": "1",
    }
    assert abs(time.time() - time.mktime(time.strptime(updated[:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 60
    goal = tenant.patch("ConfigMap", "settings", data={"a": "2"})
    tenant.instance.wait(goal)
    found = attributes()
    assert found["user.fusevol.generation"] == "2"
    assert found["user.fusevol.objects"] == goal.removeprefix("object=")
    assert found["user.fusevol.updated"] > updated


def test_many_keys_and_a_large_one(tenant: Tenant) -> None:
    many = {f"key-{number:03}": f"value {number}" for number in range(300)}
    large = os.urandom(1 << 19).hex()  # 1 MiB, as much as the API takes
    longest = "k" * 253
    tenant.config_map("many", many)
    tenant.config_map("large", {"k": large})
    tenant.config_map("longest", {longest: "v"})
    pod = tenant.pod("web", {name: {"configMap": {"name": name}} for name in ("many", "large", "longest")})
    assert {path.name: path.read_text() for path in pod.path("many").glob("key-*")} == many
    assert (pod.path("large") / "k").read_text() == large
    assert (pod.path("longest") / longest).read_text() == "v"
    many["key-007"] = "another"
    tenant.instance.wait(tenant.patch("ConfigMap", "many", data=many))
    assert {path.name: path.read_text() for path in pod.path("many").glob("key-*")} == many


def test_a_service_account_token_is_bound_to_its_pod(tenant: Tenant) -> None:
    """`kube-api-access-*`, which every ordinary Pod carries."""
    tenant.create("ServiceAccount", "robot")
    tenant.config_map("kube-root-ca.crt", {"ca.crt": "CERTIFICATE"})
    sources: list[dict[str, Any]] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
    ]
    volumes = {"kube-api-access-x": {"projected": {"sources": sources}}}
    pod = tenant.pod("web", volumes, serviceAccountName="robot")
    volume = pod.path("kube-api-access-x")
    assert (volume / "ca.crt").read_text() == "CERTIFICATE"
    assert (volume / "namespace").read_text() == tenant.namespace
    token, vault = (claims((volume / name).read_text()) for name in ("token", "vault"))
    for facts in (token, vault):
        assert facts["sub"] == f"system:serviceaccount:{tenant.namespace}:robot"
        assert facts["kubernetes.io"]["pod"] == {"name": "web", "uid": pod.uid}
    assert vault["aud"] == ["vault"]
    assert vault["exp"] - vault["iat"] == 600
    client = tenant.node.cluster.client("", token=(volume / "token").read_text())
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = client.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    assert answer["status"]["userInfo"]["username"] == facts["sub"]


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


def test_labels_and_annotations_change_live(tenant: Tenant) -> None:
    def field(path: str) -> dict[str, Any]:
        return {"path": path, "fieldRef": {"fieldPath": f"metadata.{path}"}}

    volumes = {"v": {"downwardAPI": {"items": [field("labels"), field("annotations")]}}}
    pod = tenant.pod("web", volumes, metadata={"labels": {"a": "1"}, "annotations": {"note": 'say "hi"\n'}})
    volume = pod.path("v")
    assert (volume / "labels").read_text() == 'a="1"'
    assert 'note="say \\"hi\\"\\n"' in (volume / "annotations").read_text().splitlines()
    tenant.patch("Pod", "web", metadata={"labels": {"a": "2", "b": "3"}, "annotations": {"note": "grün"}})
    eventually(lambda: (volume / "labels").read_text() == 'a="2"\nb="3"')
    assert 'note="grün"' in (volume / "annotations").read_text().splitlines()


def test_an_empty_dir_takes_data_and_shows_where_it_stands(tenant: Tenant) -> None:
    pod = tenant.pod("web", {"e": {"emptyDir": {}}})
    volume, backing = pod.path("e"), pod.backing("e")
    (volume / "dir").mkdir()
    (volume / "dir/file").write_text("hello")
    (volume / "dir/file").rename(volume / "moved")
    os.chown(volume / "moved", 12, 34)
    assert (backing / "moved").read_text() == "hello"
    assert ((backing / "moved").stat().st_uid, (backing / "moved").stat().st_gid) == (12, 34)
    assert sorted(os.listdir(volume)) == ["dir", "moved"]


FORBIDDEN: dict[str, Callable[[Path], Any]] = {
    "write a file": lambda volume: (volume / "a").write_text("x"),
    "make a file": lambda volume: (volume / "new").touch(),
    "make a directory": lambda volume: (volume / "new").mkdir(),
    "remove a link": lambda volume: (volume / "a").unlink(),
    "move ..data": lambda volume: (volume / "..data").rename(volume / "other"),
    "change a mode": lambda volume: (volume / "a").chmod(0o777),
    "change an owner": lambda volume: os.chown(volume / "a", 1, 1),
    "truncate": lambda volume: os.truncate(volume / "a", 0),
    "set an attribute": lambda volume: os.setxattr(volume, "user.fusevol.pod", b"x"),
    "make a directory beside the volumes": lambda volume: (volume.parent / "new").mkdir(),
    "remove the volume": lambda volume: volume.rename(volume.with_name("other")),
    "make something in the mount's root": lambda volume: (volume.parents[4] / "new").touch(),
}


def test_everything_else_is_read_only_for_root_too(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    volume = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}}).path("c")
    before = tree(volume)
    answers = {}
    for what, action in FORBIDDEN.items():
        with pytest.raises(OSError) as raised:  # noqa: PT011  # which one is what the table is about
            action(volume)
        answers[what] = errno.errorcode[raised.value.errno or 0]
    assert answers == dict.fromkeys(FORBIDDEN, "EROFS")
    assert tree(volume) == before


# -- how they come and go -----------------------------------------------------------------------------------------


def test_a_volume_that_no_container_mounts_is_not_set_up(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    sources = {"configMap": {"name": "settings"}}
    pod = tenant.pod("web", {"used": sources}, unused={"unused": sources, "missing": {"secret": {"secretName": "no"}}})
    assert os.listdir(pod.directory / "volumes") == ["kubernetes.io~configmap"]
    assert os.listdir(pod.path("used").parent) == ["used"]
    assert pod.status("unused") is None
    assert tenant.events(pod) == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_terminal_pods_volumes_go_and_its_directory_when_it_is_deleted(tenant: Tenant, phase: str) -> None:
    tenant.config_map("settings", {"a": "1"})
    pod = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}, "e": {"emptyDir": {}}})
    (pod.path("e") / "data").touch()
    by_name = tenant.instance.mountpoint / "by-name" / tenant.namespace
    tenant.phase(pod, phase)
    eventually(lambda: pod.standing() == [])
    assert sorted(os.listdir(pod.directory / "volumes")) == ["kubernetes.io~configmap", "kubernetes.io~empty-dir"]
    eventually(lambda: not pod.backing("e").exists())
    eventually(lambda: not by_name.exists())
    tenant.delete("Pod", "web", grace_seconds=0)
    eventually(lambda: not pod.directory.exists())
    eventually(lambda: not (tenant.instance.state / "pods" / pod.uid).exists())


def test_a_terminating_pods_volumes_stay_and_are_not_updated(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    volumes = {"c": {"configMap": {"name": "settings"}}, "e": {"emptyDir": {}}}
    pod, other = tenant.pod("web", volumes), tenant.pod("other", volumes)
    (pod.path("e") / "data").write_text("kept")
    tenant.delete("Pod", "web", grace_seconds=1000)
    tenant.instance.wait()  # it has been seen as terminating
    before = tree(pod.path("c"))
    goal = tenant.patch("ConfigMap", "settings", data={"a": "2"})
    tenant.instance.wait(goal.partition("@")[0])
    eventually(lambda: (other.path("c") / "a").read_text() == "2")
    tenant.instance.wait()
    assert tree(pod.path("c")) == before
    assert (pod.path("e") / "data").read_text() == "kept"
    tenant.delete("Pod", "web", grace_seconds=0)
    eventually(lambda: not pod.directory.exists())


def test_of_a_deleted_pod_nothing_is_left(tenant: Tenant) -> None:
    tenant.secret("credentials", {"password": "geheim"})
    pod = tenant.pod("web", {"s": {"secret": {"secretName": "credentials"}}, "e": {"emptyDir": {}}})
    (pod.path("e") / "dir").mkdir()
    (pod.path("e") / "dir/file").write_text("data")
    tenant.delete("Pod", "web", grace_seconds=0)
    tenant.instance.wait()
    assert not pod.directory.exists()
    assert not (tenant.instance.mountpoint / "by-name" / tenant.namespace).exists()
    assert not (tenant.instance.state / "pods" / pod.uid).exists()
    assert [v for v in tenant.instance.status()["volumes"] if v["podUID"] == pod.uid] == []


def test_a_mount_in_another_namespace_keeps_a_deleted_pods_volume(tenant: Tenant, tmp_path: Path) -> None:
    """That is how its containers are known to have ended; tests/system/test_containers.py has real ones."""
    tenant.config_map("settings", {"a": "1"})
    pod = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}, "e": {"emptyDir": {}}})
    (pod.path("e") / "data").write_text("kept")
    (tmp_path / "there").mkdir()
    script = 'mount --bind "$1" "$2" && echo ready && exec cat'
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        pod.path("e"),
        tmp_path / "there",
    ]
    with subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        tenant.delete("Pod", "web", grace_seconds=0)
        eventually(lambda: pod.standing() == ["e"])
        tenant.instance.wait()
        status = pod.status("e")
        assert status is not None
        assert status["phase"] == "TearingDown"
        assert status["error"] == f"mounted at {tmp_path}/there (pid {container.pid})"
        assert Path(f"/proc/{container.pid}/root{tmp_path}/there/data").read_text() == "kept"
        assert pod.backing("e").exists()
    eventually(lambda: not pod.directory.exists())
    assert not pod.backing("e").exists()


def test_by_name_follows_the_newest_pod_of_a_name(tenant: Tenant) -> None:
    """(Two at a time are in tests/system/test_containers.py: a container keeps the first.)"""
    first = tenant.pod("web", {"e": {"emptyDir": {}}})
    link = tenant.instance.mountpoint / "by-name" / tenant.namespace / "web"
    assert link.resolve() == first.directory
    tenant.phase(first, "Succeeded")
    eventually(lambda: not os.path.lexists(link))
    tenant.delete("Pod", "web", grace_seconds=0)
    second = tenant.pod("web", {"e": {"emptyDir": {}}})
    assert link.resolve() == second.directory
    assert first.uid != second.uid


def test_status_tells_what_is_served(tenant: Tenant) -> None:
    version = tenant.config_map("settings", {"a": "1"})["metadata"]["resourceVersion"]
    pod = tenant.pod("web", {"c": {"configMap": {"name": "settings"}}})
    status = tenant.instance.status()
    assert status["engine"] == "pyfuse3"
    assert status["stale"] is False
    assert status["source"] == {"kind": "kubeconfig", "synced": True, "errors": []}
    volume = pod.status("c")
    assert volume is not None
    times = {key: volume.pop(key) for key in ("phaseSince", "updatedAt")}
    assert all(moment.endswith("Z") for moment in times.values())
    assert volume == {
        "namespace": tenant.namespace,
        "pod": "web",
        "podUID": pod.uid,
        "plugin": "kubernetes.io~configmap",
        "name": "c",
        "path": str(pod.path("c")),
        "phase": "Mounted",
        "generation": 1,
        "objects": [{"kind": "ConfigMap", "name": "settings", "resourceVersion": version}],
        "error": None,
    }
