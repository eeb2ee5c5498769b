"""kubernetes.io/downward-api: a Pod's own fields and its containers' resources as files (KUBELET.md 7)."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from fusevol.agent.plugins import payload, resources
from fusevol.agent.plugins.goquote import quote
from fusevol.agent.plugins.messages import NO_DEFAULT_MODE, aggregate
from fusevol.agent.plugins.names import qualified_name_errors
from fusevol.agent.plugins.ownership import TMPFS_ROOT
from fusevol.agent.plugins.plugin import Objects
from fusevol.model.errors import VolumeError
from fusevol.model.objects import node_ref
from fusevol.model.pod import DownwardAPIVolumeFile, DownwardAPIVolumeSource, Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import Literal, Tree


class DownwardAPIPlugin:
    name = "kubernetes.io/downward-api"

    def can_support(self, volume: Volume) -> bool:
        return volume.downward_api is not None

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        return node_references(volume.downward_api.items if volume.downward_api else None, node)

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> Tree:
        source = volume.downward_api or DownwardAPIVolumeSource()
        files, errors = downward_payload(pod, source.items, source.default_mode, objects, node)
        if errors:
            raise VolumeError(aggregate(errors))
        return payload.tree(pod, volume, self.name, files, TMPFS_ROOT)


def node_references(items: list[DownwardAPIVolumeFile] | None, node: str) -> frozenset[ObjectRef]:
    """The Node, if some item names a resource: its allocatable is the default of unset limits."""
    return frozenset({node_ref(node)}) if any(_wants_node(item) for item in items or ()) else frozenset()


def downward_payload(
    pod: Pod, items: list[DownwardAPIVolumeFile] | None, default_mode: int | None, objects: Objects, node: str
) -> tuple[payload.Payload, list[str]]:
    """The files, and the texts of all errors (KUBELET.md 7.5). Raises ObjectNotKnown."""
    if default_mode is None:
        return {}, [NO_DEFAULT_MODE]
    files: payload.Payload = {}
    errors: list[str] = []
    for item in items or ():
        text = ""
        try:
            text = _text(pod, item, objects, node)
        except VolumeError as error:
            errors.append(str(error))
        mode = default_mode if item.mode is None else item.mode
        files[posixpath.normpath(item.path or ".")] = payload.Projection(Literal(text.encode(errors="replace")), mode)
    return files, errors


def _text(pod: Pod, item: DownwardAPIVolumeFile, objects: Objects, node: str) -> str:
    if item.field_ref:
        return field(pod, item.field_ref.field_path)
    if item.resource_field_ref:
        return resources.container_resource(pod, item.resource_field_ref, resources.allocatable(objects, node))
    return ""


def _wants_node(item: DownwardAPIVolumeFile) -> bool:
    return item.field_ref is None and item.resource_field_ref is not None


def field(pod: Pod, path: str) -> str:
    """ExtractFieldPathAsString (fieldpath.go). Raises VolumeError."""
    meta = pod.metadata
    subscripted = _subscript(path)
    if subscripted:
        return _subscripted_field(pod, path, *subscripted)
    match path:
        case "metadata.annotations":
            return format_map(meta.annotations or {})
        case "metadata.labels":
            return format_map(meta.labels or {})
        case "metadata.name":
            return meta.name
        case "metadata.namespace":
            return meta.namespace
        case "metadata.uid":
            return meta.uid
    raise VolumeError(f"unsupported fieldPath: {path}")


def _subscripted_field(pod: Pod, path: str, base: str, key: str) -> str:
    match base:
        case "metadata.annotations":
            values, errors = pod.metadata.annotations, qualified_name_errors(key.lower())
        case "metadata.labels":
            values, errors = pod.metadata.labels, qualified_name_errors(key)
        case _:
            raise VolumeError(f"fieldPath {quote(base)} does not support subscript")
    if errors:
        raise VolumeError(f"invalid key subscript in {path}: {';'.join(errors)}")
    return (values or {}).get(key, "")


def _subscript(path: str) -> tuple[str, str] | None:
    """`metadata.labels['k']` → (`metadata.labels`, `k`)."""
    if not path.endswith("']"):
        return None
    base, found, key = path[:-2].partition("['")
    return (base, key) if found and base else None


def format_map(values: Mapping[str, str]) -> str:
    """`key="value"` lines, sorted by key, without a final newline (KUBELET.md 7.2)."""
    return "\n".join(f"{key}={quote(values[key])}" for key in sorted(values, key=lambda key: key.encode()))
