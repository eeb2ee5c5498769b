"""Pods, volumes and objects for the plugins' tests, as short as a table row."""

from __future__ import annotations

from typing import Any

import msgspec

from fusevol.agent.plugins.plugin import Absent, Objects, Unavailable
from fusevol.agent.plugins.registry import default_registry
from fusevol.model.objects import CONFIG_MAP, SECRET, KeyInfo, ObjectInfo, node_ref
from fusevol.model.pod import Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import ContentRef, EmptyDir, File, Tree

NODE = "node1"
ALLOCATABLE = {"cpu": "2", "memory": "24581684Ki", "ephemeral-storage": "243497856212"}

CM1 = ObjectRef(CONFIG_MAP, "ns", "cm1")
S1 = ObjectRef(SECRET, "ns", "s1")


def pod(volume: dict[str, Any] | None = None, **spec: Any) -> Pod:
    """A Pod that mounts the one volume `v`."""
    container = {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    metadata = spec.pop("metadata", {})
    return msgspec.convert(
        {
            "metadata": {"name": "p", "namespace": "ns", "uid": "uid-1", **metadata},
            "spec": {
                "serviceAccountName": "default",
                "containers": [container],
                "volumes": [{"name": "v", **(volume or {})}],
                **spec,
            },
        },
        Pod,
    )


def known(ref: ObjectRef, *keys: str, version: str = "7", content_version: str = "5", **literals: str) -> ObjectInfo:
    infos = {key: KeyInfo(len(key), f"digest of {key}") for key in keys}
    return ObjectInfo(ref, f"uid of {ref.name}", version, content_version, False, infos, literals)


def objects(
    *found: ObjectInfo, absent: tuple[ObjectRef, ...] = (), failed: dict[ObjectRef, str] | None = None
) -> Objects:
    node = node_ref(NODE)
    return Objects(
        {
            node: ObjectInfo(node, "n", "1", "1", False, {}, ALLOCATABLE),
            **{info.ref: info for info in found},
            **{ref: Absent() for ref in absent},
            **{ref: Unavailable(message) for ref, message in (failed or {}).items()},
        }
    )


def plan(subject: Pod, known_objects: Objects) -> Tree | EmptyDir:
    volume: Volume = (subject.spec.volumes or [])[0]
    return default_registry().find_by_spec(volume).plan(subject, volume, known_objects, NODE)


def plan_tree(subject: Pod, known_objects: Objects) -> Tree:
    planned = plan(subject, known_objects)
    assert isinstance(planned, Tree)
    return planned


def plan_directory(subject: Pod, known_objects: Objects) -> EmptyDir:
    planned = plan(subject, known_objects)
    assert isinstance(planned, EmptyDir)
    return planned


def references(subject: Pod) -> frozenset[ObjectRef]:
    volume: Volume = (subject.spec.volumes or [])[0]
    return default_registry().find_by_spec(volume).references(subject, volume, NODE)


def shown(tree: Tree) -> dict[str, tuple[str, int]]:
    """path → (where the content comes from, mode)."""
    return {file.path: (content(file), file.mode) for file in tree.files}


def content(file: File) -> str:
    if isinstance(file.content, ContentRef):
        return f"{file.content.object.name}/{file.content.key}"
    return file.content.data.decode()
