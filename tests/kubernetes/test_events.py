"""What cannot be set up: kubelet's Events, what `status` and `wait` say, and that nothing waits longer than it must."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.instance import eventually
from tests.support.node import Node, Pod, Tenant

pytestmark = pytest.mark.root


def failed(pod: Pod, volume: str) -> dict[str, Any]:
    """The volume's status, as soon as it tells an error: the keeper hears of it a moment after the API server."""
    found: dict[str, Any] = eventually(lambda: (told := pod.status(volume)) and told["error"] and told)
    return found


def missing(tenant: Tenant, goal: str) -> list[str]:
    """What `fusevol wait` says is missing after an instant."""
    done = tenant.instance.run("wait", "--for", goal, "--timeout", "0.5", check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()


# name → (the volume's source, what the Event says after `MountVolume.SetUp failed for volume "v" : `)
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "a missing ConfigMap": ({"configMap": {"name": "nope"}}, 'configmap "nope" not found'),
    "a missing Secret": ({"secret": {"secretName": "nope"}}, 'secret "nope" not found'),
    "a missing key": (
        {"configMap": {"name": "settings", "items": [{"key": "nokey", "path": "p"}]}},
        "configmap references non-existent config key: nokey",
    ),
    "a missing key of a Secret": (
        {"secret": {"secretName": "credentials", "items": [{"key": "zz", "path": "p"}]}},
        "references non-existent secret key: zz",
    ),
    "two missing sources": (
        {"projected": {"sources": [{"configMap": {"name": "nope"}}, {"secret": {"name": "nopes"}}]}},
        '[configmap "nope" not found, secret "nopes" not found]',
    ),
    "a container that is not there": (
        {
            "downwardAPI": {
                "items": [{"path": "p", "resourceFieldRef": {"containerName": "no", "resource": "limits.cpu"}}]
            }
        },
        "container no not found",
    ),
    "a name that is too long": (
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "p" * 256}]}},
        "invalid path: filenames must be less than or equal to 255 characters",
    ),
    "a medium that is not known": ({"emptyDir": {"medium": "Bogus"}}, 'unknown storage medium "Bogus"'),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_event_is_kubelets(tenant: Tenant, case: str) -> None:
    source, reason = FAILURES[case]
    tenant.config_map("settings", {"a": "1"})
    tenant.secret("credentials", {"a": "1"})
    good = {"configMap": {"name": "settings"}}
    pod = tenant.pod("web", {"v": source, "good": good}, wait=False)
    (event,) = eventually(lambda: tenant.events(pod))
    assert (event["type"], event["reason"]) == ("Warning", "FailedMount")
    assert event["message"] == f'MountVolume.SetUp failed for volume "v" : {reason}'
    involved = {key: event["involvedObject"][key] for key in ("kind", "namespace", "name", "uid")}
    assert involved == {"kind": "Pod", "namespace": tenant.namespace, "name": "web", "uid": pod.uid}
    assert event["source"] == {"component": "fusevol", "host": tenant.node.name}
    status = failed(pod, "v")
    assert (status["phase"], status["error"], status["generation"]) == ("Failed", reason, 0)
    assert missing(tenant, pod.goal) == [f"fusevol: pod {tenant.namespace}/web: volume v: {reason}"]
    assert f"volume v: {reason}" in "".join(missing(tenant, "synced"))
    assert (pod.path("good") / "a").read_text() == "1", "the Pod's other volumes are served meanwhile"
    assert not os.path.lexists(pod.path("v"))


def test_what_repeats_is_counted_and_what_comes_late_is_mounted_at_once(tenant: Tenant) -> None:
    pod = tenant.pod("web", {"v": {"configMap": {"name": "late"}}}, wait=False)
    (first,) = eventually(lambda: tenant.events(pod))
    # after 0.5, 1 and 2 s; the next attempt would come 4 s after the fourth
    (last,) = eventually(lambda: [event for event in tenant.events(pod) if event["count"] >= 4], timeout=8)
    assert last["metadata"]["uid"] == first["metadata"]["uid"]
    assert last["firstTimestamp"] == first["firstTimestamp"]
    assert last["lastTimestamp"] > first["lastTimestamp"]
    assert not pod.path("v").parent.exists()
    tenant.config_map("late", {"a": "1"})
    began = time.monotonic()
    eventually(lambda: (pod.path("v") / "a").read_text() == "1", timeout=10, interval=0.002)
    assert time.monotonic() - began < 3, "only at the next attempt"
    tenant.instance.wait(pod.goal)
    status = pod.status("v")
    assert status is not None
    assert (status["phase"], status["error"]) == ("Mounted", None)
    assert len(tenant.events(pod)) == 1


def test_a_key_that_comes_late_is_mounted_at_once(tenant: Tenant) -> None:
    tenant.config_map("settings", {"a": "1"})
    items = [{"key": "a", "path": "a"}, {"key": "late", "path": "late"}]
    pod = tenant.pod("web", {"v": {"configMap": {"name": "settings", "items": items}}}, wait=False)
    eventually(lambda: [event for event in tenant.events(pod) if event["count"] >= 3])
    tenant.patch("ConfigMap", "settings", data={"late": "2"})
    eventually(lambda: (pod.path("v") / "late").read_text() == "2", timeout=1)


def test_an_optional_object_that_comes_late_appears(tenant: Tenant) -> None:
    pod = tenant.pod("web", {"v": {"configMap": {"name": "late", "optional": True}}})
    assert [name for name in os.listdir(pod.path("v")) if not name.startswith("..")] == []
    tenant.config_map("late", {"a": "1"})
    eventually(lambda: (pod.path("v") / "a").read_text() == "1", timeout=1)
    tenant.delete("ConfigMap", "late")
    eventually(lambda: not os.path.lexists(pod.path("v") / "a"), timeout=1)
    assert tenant.events(pod) == []


def test_a_pod_that_goes_before_it_was_ever_served_leaves_nothing(tenant: Tenant) -> None:
    pod = tenant.pod("web", {"v": {"configMap": {"name": "nope"}}}, wait=False)
    assert failed(pod, "v")["phase"] == "Failed"
    tenant.delete("Pod", "web", grace_seconds=0)
    tenant.instance.wait()
    assert pod.status("v") is None
    assert not pod.directory.exists()


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ("pod/{namespace}/nobody", "pod {namespace}/nobody: no such Pod on this node"),
        ("object=ConfigMap/{namespace}/unused", "ConfigMap/{namespace}/unused: no volume projects it"),
    ],
)
def test_waiting_for_what_is_not_there(tenant: Tenant, goal: str, said: str) -> None:
    tenant.config_map("unused", {"a": "1"})
    names = {"namespace": tenant.namespace}
    assert missing(tenant, goal.format(**names)) == [f"fusevol: {said.format(**names)}"]


def test_without_events_only_the_log_tells(cluster: Cluster, node: str, namespace: str, tmp_path: Path) -> None:
    with Node(cluster, node, tmp_path, options=["--no-events"]) as silent:
        tenant = silent.tenant(namespace)
        pod = tenant.pod("web", {"v": {"configMap": {"name": "nope"}}}, wait=False)
        eventually(lambda: silent.instance.log.count('configmap "nope" not found') >= 3)
        assert tenant.events(pod) == []


def test_no_value_of_a_secret_is_told_anywhere(cluster: Cluster, node: str, namespace: str, tmp_path: Path) -> None:
    """Not by the log at its most verbose, not by `status`, not by an Event; through an update, failures, the death of
    agent and server."""
    canaries = ["canary-one-7391", "canary-two-7391", "canary-three-7391"]
    with Node(cluster, node, tmp_path) as talkative:
        tenant, instance = talkative.tenant(namespace), talkative.instance
        tenant.secret("credentials", {"password": canaries[0], "pin": canaries[1]})
        items = {"items": [{"key": "pin", "path": "pin"}]}
        volumes = {
            "whole": {"secret": {"secretName": "credentials"}},
            "strict": {"secret": {"secretName": "credentials", **items}},
            "broken": {"projected": {"sources": [{"secret": {"name": "credentials"}}, {"secret": {"name": "nope"}}]}},
        }
        pod = tenant.pod("web", volumes, wait=False)
        eventually(lambda: (pod.path("strict") / "pin").read_text() == canaries[1])
        tenant.patch("Secret", "credentials", data={"pin": None}, stringData={"password": canaries[2]})
        eventually(lambda: (pod.path("whole") / "password").read_text() == canaries[2])
        eventually(lambda: len(tenant.events(pod)) == 2)
        told = [json.dumps(instance.status()), json.dumps(tenant.events(pod))]
        for victim in ("agent", "server"):
            instance.kill(victim)
            eventually(lambda: (pod.path("whole") / "password").read_text() == canaries[2], timeout=20)
        told += [json.dumps(instance.status()), json.dumps(tenant.events(pod))]
        told += [instance.run("wait", "--timeout", "1", check=False).stderr, instance.run("status").stdout]
        instance.stop()
        told.append(instance.log)
    for canary in canaries:
        encoded = base64.b64encode(canary.encode()).decode().rstrip("=")
        assert [text for text in told if canary in text or encoded in text] == []
