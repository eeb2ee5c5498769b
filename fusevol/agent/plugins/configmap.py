"""kubernetes.io/configmap (KUBELET.md 3)."""

from __future__ import annotations

from fusevol.agent.plugins import payload
from fusevol.agent.plugins.ownership import DISK_ROOT
from fusevol.agent.plugins.plugin import Objects
from fusevol.model.objects import CONFIG_MAP
from fusevol.model.pod import ConfigMapProjection, ConfigMapVolumeSource, Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import Tree


class ConfigMapPlugin:
    name = "kubernetes.io/configmap"

    def can_support(self, volume: Volume) -> bool:
        return volume.config_map is not None

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        return frozenset({config_map_ref(pod, volume.config_map)}) if volume.config_map else frozenset()

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> Tree:
        source = volume.config_map or ConfigMapVolumeSource()
        files = config_map_payload(pod, source, source.default_mode, objects)
        return payload.tree(pod, volume, self.name, files, DISK_ROOT)


def config_map_ref(pod: Pod, source: ConfigMapVolumeSource | ConfigMapProjection) -> ObjectRef:
    return ObjectRef(CONFIG_MAP, pod.metadata.namespace, source.name)


def config_map_payload(
    pod: Pod, source: ConfigMapVolumeSource | ConfigMapProjection, default_mode: int | None, objects: Objects
) -> payload.Payload:
    """Raises VolumeError with kubelet's text, or ObjectNotKnown."""
    optional = bool(source.optional)
    missing = f'configmap "{source.name}" not found'
    found = payload.fetched(objects, config_map_ref(pod, source), optional, missing)
    unknown_key = "configmap references non-existent config key: "
    return payload.of_object(found, source.items, default_mode, optional, unknown_key)
