"""Desired state: the volumes that should be served, per Pod, and which objects they project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fusevol.agent.plugins.plugin import Plugin
from fusevol.model.pod import Pod, Volume
from fusevol.model.refs import ObjectRef, VolumeRef


@dataclass(frozen=True, slots=True)
class DesiredVolume:
    """A volume as its Pod wants it. `pod` is without its status, which no volume shows. `frozen`: the Pod is
    terminating, so the volume stays as it is (KUBELET-MEASURED 3)."""

    ref: VolumeRef
    pod: Pod
    volume: Volume
    plugin: Plugin
    objects: frozenset[ObjectRef]
    frozen: bool = False


@dataclass(slots=True)
class DesiredState:
    """Written by the populator only."""

    pods: dict[str, Pod] = field(default_factory=dict)
    volumes: dict[VolumeRef, DesiredVolume] = field(default_factory=dict)
    _projecting: dict[ObjectRef, set[VolumeRef]] = field(default_factory=dict)

    def of_pod(self, uid: str) -> Iterator[DesiredVolume]:
        return (volume for ref, volume in self.volumes.items() if ref.pod_uid == uid)

    def projecting(self, ref: ObjectRef) -> frozenset[VolumeRef]:
        """The volumes that project the object."""
        return frozenset(self._projecting.get(ref, ()))

    @property
    def objects(self) -> set[ObjectRef]:
        """Every object that some volume projects."""
        return set(self._projecting)

    def replace_volumes(self, uid: str, volumes: Iterable[DesiredVolume]) -> set[VolumeRef]:
        """The Pod's volumes are these now. Returns the volumes that differ from before."""
        before = {volume.ref: volume for volume in self.of_pod(uid)}
        after = {volume.ref: volume for volume in volumes}
        for volume in before.values():
            del self.volumes[volume.ref]
            for ref in volume.objects:
                self._projecting[ref].discard(volume.ref)
                if not self._projecting[ref]:
                    del self._projecting[ref]
        for volume in after.values():
            self.volumes[volume.ref] = volume
            for ref in volume.objects:
                self._projecting.setdefault(ref, set()).add(volume.ref)
        return {ref for ref in before.keys() | after.keys() if before.get(ref) != after.get(ref)}
