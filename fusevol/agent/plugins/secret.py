"""kubernetes.io/secret (KUBELET.md 4)."""

from __future__ import annotations

from fusevol.agent.plugins import payload
from fusevol.agent.plugins.ownership import TMPFS_ROOT
from fusevol.agent.plugins.plugin import Objects
from fusevol.model.objects import SECRET
from fusevol.model.pod import Pod, SecretProjection, SecretVolumeSource, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import Tree


class SecretPlugin:
    name = "kubernetes.io/secret"

    def can_support(self, volume: Volume) -> bool:
        return volume.secret is not None

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        return frozenset({secret_ref(pod, volume.secret)}) if volume.secret else frozenset()

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> Tree:
        source = volume.secret or SecretVolumeSource()
        files = secret_payload(pod, source, source.default_mode, objects)
        return payload.tree(pod, volume, self.name, files, TMPFS_ROOT)


def secret_ref(pod: Pod, source: SecretVolumeSource | SecretProjection) -> ObjectRef:
    return ObjectRef(SECRET, pod.metadata.namespace, _name(source))


def secret_payload(
    pod: Pod, source: SecretVolumeSource | SecretProjection, default_mode: int | None, objects: Objects
) -> payload.Payload:
    """Raises VolumeError with kubelet's text, or ObjectNotKnown."""
    optional = bool(source.optional)
    found = payload.fetched(objects, secret_ref(pod, source), optional, f'secret "{_name(source)}" not found')
    return payload.of_object(found, source.items, default_mode, optional, "references non-existent secret key: ")


def _name(source: SecretVolumeSource | SecretProjection) -> str:
    return source.secret_name if isinstance(source, SecretVolumeSource) else source.name
