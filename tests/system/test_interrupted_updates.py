"""An agent that dies between an update and the removal of what it replaced: found by random histories."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.instance import eventually, running

pytestmark = pytest.mark.root

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "pod", "namespace": "default"},
    "spec": {
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
    },
}


def config_map(**data: str) -> str:
    metadata = {"name": "cm", "namespace": "default"}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def test_what_an_update_replaced_goes_even_if_the_object_is_gone_by_then(tmp_path: Path) -> None:
    """It may hold what was taken back. The volume itself keeps its last content, as ever."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "pod.json").write_text(json.dumps(POD))
    (manifests / "cm.json").write_text(config_map(key="old", gone="x"))
    with running(tmp_path, "--manifests", manifests) as instance:
        instance.wait("pod/default/pod")
        root, agent = instance.path("v"), instance.pid("agent")
        (tmp_path / "new").write_text(config_map(key="new", added="y"))
        (tmp_path / "new").rename(manifests / "cm.json")
        eventually(lambda: (root / "key").read_text() == "new", interval=0.001)
        os.kill(agent, signal.SIGKILL)  # within a second the old version would have gone
        (manifests / "cm.json").unlink()
        eventually(lambda: "not found" in (instance.volume("v")["error"] or ""), 30)
        current = os.readlink(root / "..data")
        eventually(lambda: sorted(os.listdir(root)) == sorted([current, "..data", "added", "key"]), 15)
        assert (root / "key").read_text() == "new"
