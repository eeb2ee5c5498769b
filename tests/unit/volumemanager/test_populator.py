"""Pods become desired state (KUBELET.md 1.4-1.6, KUBELET-MEASURED 3)."""

import msgspec
import pytest

from fusevol.agent.plugins.registry import default_registry
from fusevol.agent.volumemanager.desired_state import DesiredState
from fusevol.agent.volumemanager.populator import Populator, names
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef, VolumeRef

CONFIG = ObjectRef("ConfigMap", "default", "cm")
VOLUME = VolumeRef("u1", "kubernetes.io/configmap", "config")


def pod(uid: str = "u1", *, phase: str = "Running", mounts: tuple[str, ...] = ("config",), **metadata: object) -> Pod:
    return msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "default", "uid": uid, **metadata},
            "spec": {
                "volumes": [
                    {"name": "config", "configMap": {"name": "cm", "defaultMode": 0o644}},
                    {"name": "host", "hostPath": {"path": "/"}},
                ],
                "containers": [{"name": "c", "volumeMounts": [{"name": name, "mountPath": "/x"} for name in mounts]}],
            },
            "status": {"phase": phase},
        },
        Pod,
    )


@pytest.fixture
def populator() -> Populator:
    return Populator(DesiredState(), default_registry(), "node1")


def test_a_used_volume_is_desired_and_its_object_referenced(populator: Populator) -> None:
    assert populator.pod_changed(pod()) == {VOLUME}
    assert populator.desired.objects == {CONFIG}
    assert populator.desired.projecting(CONFIG) == {VOLUME}


def test_a_volume_that_no_container_mounts_is_not_set_up(populator: Populator) -> None:
    assert populator.pod_changed(pod(mounts=())) == set()


def test_a_volume_of_another_plugin_is_somebody_elses(populator: Populator) -> None:
    assert populator.pod_changed(pod(mounts=("host",))) == set()


def test_the_same_pod_again_and_a_status_change_are_no_news(populator: Populator) -> None:
    populator.pod_changed(pod(phase="Pending"))
    assert populator.pod_changed(pod(phase="Running", resourceVersion="7")) == set()
    assert populator.pod_changed(pod(labels={"a": "b"})) == {VOLUME}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_volumes_of_a_terminal_pod_go_and_the_pod_stays(populator: Populator, phase: str) -> None:
    populator.pod_changed(pod())
    assert populator.pod_changed(pod(phase=phase)) == {VOLUME}
    assert not populator.desired.volumes
    assert not populator.desired.objects
    assert set(populator.desired.pods) == {"u1"}


def test_a_terminating_pods_volumes_stay_as_they_are(populator: Populator) -> None:
    populator.pod_changed(pod())
    populator.pod_changed(pod(deletionTimestamp="2026-11-22T00:00:00Z", labels={"new": "label"}))
    (volume,) = populator.desired.volumes.values()
    assert volume.frozen
    assert volume.pod.metadata.labels is None
    assert populator.pod_gone("u1") == {VOLUME}


def test_a_pod_first_seen_terminating_is_taken_before_the_sync_only(populator: Populator) -> None:
    populator.synced = True
    assert populator.pod_changed(pod(deletionTimestamp="2026-11-22T00:00:00Z")) == set()
    populator.synced = False
    assert populator.pod_changed(pod(deletionTimestamp="2026-11-22T00:00:00Z")) == {VOLUME}


def test_mirror_pods_are_ignored(populator: Populator) -> None:
    assert populator.pod_changed(pod(annotations={"kubernetes.io/config.mirror": "hash"})) == set()
    assert not populator.desired.pods


def test_an_object_is_referenced_until_its_last_volume_goes(populator: Populator) -> None:
    populator.pod_changed(pod("u1"))
    populator.pod_changed(pod("u2"))
    populator.pod_gone("u1")
    assert populator.desired.objects == {CONFIG}
    populator.pod_gone("u2")
    assert not populator.desired.objects


def test_by_name_is_the_newest_pod_that_is_not_terminal() -> None:
    pods = [
        pod("old", creationTimestamp="2026-11-22T00:00:00Z"),
        pod("new", creationTimestamp="2026-11-22T00:00:09Z"),
        pod("done", creationTimestamp="2026-11-22T00:00:19Z", phase="Succeeded"),
    ]
    assert names(pods) == {("default", "p"): "new"}
    assert names(reversed(pods)) == {("default", "p"): "new"}
    assert names(pods[2:]) == {}
