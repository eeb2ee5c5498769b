"""Real containers on the volumes of a real API server's Pods, mounted as a container runtime mounts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import containers
from tests.support.cluster import Cluster
from tests.support.containers import Container, ContainerError, Mount
from tests.support.instance import eventually
from tests.support.node import Node, Pod, Tenant, current

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(containers.available()), reason=containers.available() or "there are containers"),
]

VOLUMES: dict[str, dict[str, Any]] = {
    "config": {"configMap": {"name": "settings"}},
    "secret": {"secret": {"secretName": "credentials", "defaultMode": 0o400}},
    "scratch": {"emptyDir": {}},
}


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One fusevol for the tests that do not kill it."""
    with Node(cluster, "containers", tmp_path_factory.mktemp("containers")) as node:
        node.instance.wait()
        yield node


@pytest.fixture
def tenant(served: Node, namespace: str) -> Tenant:
    return with_objects(served.tenant(namespace))


def with_objects(tenant: Tenant) -> Tenant:
    tenant.config_map("settings", {"greeting": "hello", "gone": "x"})
    tenant.secret("credentials", {"password": "geheim"})
    return tenant


def mounts(pod: Pod) -> list[Mount]:
    """A directory read-only, one file of it (subPath), a Secret, an emptyDir."""
    return [
        Mount(pod.path("config"), "/etc/config", readonly=True),
        # kubelet resolves a subPath before it is mounted, and so it never changes
        Mount((pod.path("config") / "greeting").resolve(), "/etc/greeting", readonly=True),
        Mount(pod.path("secret"), "/etc/secret", readonly=True),
        Mount(pod.path("scratch"), "/scratch"),
    ]


def test_a_container_reads_and_sees_updates(tenant: Tenant, tmp_path: Path) -> None:
    pod = tenant.pod("web", VOLUMES)
    with Container(tmp_path / "c", mounts(pod)) as container:
        assert container.read("/etc/config/greeting") == "hello"
        assert container.read("/etc/greeting") == "hello"
        assert container.read("/etc/secret/password") == "geheim"
        assert container.exec("readlink", "/etc/config/greeting").stdout == "..data/greeting\n"
        old = current(pod.path("config"))
        tenant.instance.wait(tenant.patch("ConfigMap", "settings", data={"greeting": "hi", "new": "y", "gone": None}))
        assert container.read("/etc/config/greeting") == "hi"
        assert container.exec("ls", "/etc/config").stdout.split() == ["greeting", "new"]
        eventually(lambda: not (pod.path("config") / old).exists())
        assert container.read("/etc/config/greeting") == "hi"
        assert container.read("/etc/greeting") == "hello", "a file that is mounted stays as it was mounted"


def test_what_a_container_may_write(tenant: Tenant, tmp_path: Path) -> None:
    pod = tenant.pod("web", VOLUMES)
    with Container(tmp_path / "c", mounts(pod)) as container:
        for command in (
            "echo x >/etc/config/greeting",
            "echo x >/etc/config/new",
            "rm /etc/config/greeting",
            "echo x >/etc/greeting",
            "mkdir /etc/secret/new",
        ):
            done = container.exec("sh", "-c", command)
            assert done.returncode != 0
            assert "Read-only file system" in done.stderr, command
        done = container.exec("sh", "-c", "mkdir /scratch/dir && echo hello >/scratch/dir/file && ln -s dir /scratch/l")
        assert (done.returncode, done.stderr) == (0, "")
        assert container.read("/scratch/l/file") == "hello\n"
        assert (pod.path("scratch") / "dir/file").read_text() == "hello\n"
        assert (pod.backing("scratch") / "dir/file").read_text() == "hello\n"
        (pod.path("scratch") / "from-outside").write_text("hi")
        assert container.read("/scratch/from-outside") == "hi"


def test_even_a_writable_mount_of_an_api_volume_is_read_only(tenant: Tenant, tmp_path: Path) -> None:
    pod = tenant.pod("web", VOLUMES)
    with Container(tmp_path / "c", [Mount(pod.path("config"), "/etc/config")]) as container:
        for command in ("echo x >/etc/config/greeting", "echo x >/etc/config/new", "rm /etc/config/greeting"):
            assert "Read-only file system" in container.exec("sh", "-c", command).stderr
        assert container.read("/etc/config/greeting") == "hello"


def test_a_user_that_is_not_root(tenant: Tenant, tmp_path: Path) -> None:
    """It reads what modes allow; what it writes is its own; fsGroup opens the Secret to it."""
    pod = tenant.pod("web", VOLUMES)
    with Container(tmp_path / "c", mounts(pod), user=1234, group=2345) as container:
        assert container.read("/etc/config/greeting") == "hello"
        with pytest.raises(ContainerError, match="Permission denied"):
            container.read("/etc/secret/password")
        assert container.exec("sh", "-c", "echo mine >/scratch/file").returncode == 0
    found = (pod.backing("scratch") / "file").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2345)
    grouped = tenant.pod("grouped", VOLUMES, securityContext={"fsGroup": 3456})
    with Container(tmp_path / "g", mounts(grouped), user=1234, group=2345, supplementary=[3456]) as container:
        assert container.read("/etc/secret/password") == "geheim"
        assert container.exec("sh", "-c", "echo ours >/scratch/file").returncode == 0
    found = (grouped.backing("scratch") / "file").stat()
    assert (found.st_uid, found.st_gid) == (1234, 3456)


@pytest.mark.parametrize("agent_dies", [False, True])
def test_a_pod_deleted_by_force_keeps_what_its_container_uses(tenant: Tenant, tmp_path: Path, agent_dies: bool) -> None:
    """Its volumes stay readable until the container leaves, and go then; a new Pod of the name is another one."""
    instance = tenant.instance
    pod = tenant.pod("web", VOLUMES)
    held = [Mount(pod.path("config"), "/etc/config", readonly=True), Mount(pod.path("scratch"), "/scratch")]
    with Container(tmp_path / "c", held) as container:
        container.exec("sh", "-c", "echo data >/scratch/file")
        tenant.delete("Pod", "web", grace_seconds=0)
        instance.wait()  # which does not wait for what is held
        if agent_dies:
            dead = instance.kill("agent")
            eventually(lambda: instance.status()["processes"]["agent"]["pid"] not in (None, dead))
            instance.wait()
        assert container.read("/etc/config/greeting") == "hello"
        assert container.read("/scratch/file") == "data\n"
        eventually(lambda: not pod.path("secret").exists())
        for name, where in (("config", "/etc/config"), ("scratch", "/scratch")):
            status = eventually(lambda name=name: (told := pod.status(name)) and told["error"] and told)
            assert status["phase"] == "TearingDown"
            assert status["error"].startswith("mounted at ")
            assert where in status["error"]
        second = tenant.pod("web", VOLUMES)
        assert second.uid != pod.uid
        by_name = instance.mountpoint / "by-name" / tenant.namespace / "web"
        assert by_name.resolve() == second.directory
        tenant.patch("ConfigMap", "settings", data={"greeting": "hi"})
        eventually(lambda: (second.path("config") / "greeting").read_text() == "hi")
        assert container.read("/etc/config/greeting") == "hello"
        assert container.exec("sh", "-c", "echo more >>/scratch/file").returncode == 0
        assert (pod.backing("scratch") / "file").read_text() == "data\nmore\n"
    eventually(lambda: not pod.directory.exists())
    assert not pod.backing("scratch").exists()
    assert (second.path("config") / "greeting").read_text() == "hi"


def test_one_mounted_file_keeps_its_volume(tenant: Tenant, tmp_path: Path) -> None:
    pod = tenant.pod("web", VOLUMES)
    file = (pod.path("config") / "greeting").resolve()
    with Container(tmp_path / "c", [Mount(file, "/etc/greeting", readonly=True)]) as container:
        tenant.phase(pod, "Succeeded")
        eventually(lambda: pod.standing() == ["config"])
        tenant.instance.wait()
        assert container.read("/etc/greeting") == "hello"
        assert (pod.path("config") / "greeting").read_text() == "hello"
    eventually(lambda: pod.standing() == [])


def test_a_container_cannot_lead_us_out_of_its_volume(tenant: Tenant, tmp_path: Path) -> None:
    """Links that it makes are followed in its own world only; taking the volume away follows none."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    pod = tenant.pod("web", VOLUMES)
    with Container(tmp_path / "c", mounts(pod)) as container:
        script = f"ln -s {precious} /scratch/out && ln -s ../../../../../.. /scratch/up && mkdir -p /scratch/d/d/d"
        assert container.exec("sh", "-c", script).returncode == 0
        assert container.exec("ls", "/scratch/out").returncode != 0
    assert os.readlink(pod.path("scratch") / "out") == str(precious)
    tenant.delete("Pod", "web", grace_seconds=0)
    eventually(lambda: not pod.directory.exists())
    assert not pod.backing("scratch").exists()
    assert (precious / "file").read_text() == "kept"
    assert (tenant.instance.state / "identity.json").exists()


def test_the_servers_death_is_told_to_containers_and_new_ones_are_served(
    cluster: Cluster, node: str, namespace: str, tmp_path: Path
) -> None:
    """The limit of this engine (README): a container keeps the dead mount until it is started again."""
    with Node(cluster, node, tmp_path / "f") as served:
        tenant = with_objects(served.tenant(namespace))
        pod = tenant.pod("web", VOLUMES)
        with Container(tmp_path / "old", mounts(pod)) as old:
            old.exec("sh", "-c", "echo data >/scratch/file")
            served.instance.kill("server")
            eventually(lambda: (pod.path("config") / "greeting").read_text() == "hello")
            tenant.instance.wait()
            for path in ("/etc/config/greeting", "/etc/greeting", "/scratch/file"):
                with pytest.raises(ContainerError, match=r"Socket not connected|Transport endpoint is not connected"):
                    old.read(path)
        with Container(tmp_path / "new", mounts(pod)) as new:
            assert new.read("/etc/config/greeting") == "hello"
            assert new.read("/etc/secret/password") == "geheim"
            assert new.read("/scratch/file") == "data\n"
