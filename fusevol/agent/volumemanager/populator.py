"""The populator: Pods become desired state (KUBELET.md 1.4-1.6, 15.1; KUBELET-MEASURED 3)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from fusevol.agent.plugins.registry import Registry
from fusevol.agent.volumemanager.desired_state import DesiredState, DesiredVolume
from fusevol.model.errors import VolumeError
from fusevol.model.pod import Pod, PodStatus
from fusevol.model.refs import VolumeRef

log = structlog.get_logger()


class Populator:
    """Keeps the desired state equal to the Pods that a source has delivered."""

    def __init__(self, desired: DesiredState, registry: Registry, node: str) -> None:
        self.desired = desired
        self.synced = False
        self._registry = registry
        self._node = node

    def pod_changed(self, pod: Pod) -> set[VolumeRef]:
        """Returns the volumes to be looked at."""
        uid = pod.metadata.uid
        known = self.desired.pods.get(uid)
        if pod.mirror or (known is None and self.synced and pod.terminating and not pod.terminal):
            return set()  # its containers never started here (KUBELET.md 1.5)
        self.desired.pods[uid] = pod
        if pod.terminal:
            return self.desired.replace_volumes(uid, ())
        if known is not None and pod.terminating:
            stays = [_frozen(volume) for volume in self.desired.of_pod(uid)]
            return self.desired.replace_volumes(uid, stays)
        return self.desired.replace_volumes(uid, self._volumes(pod))

    def pod_gone(self, uid: str) -> set[VolumeRef]:
        """Returns the volumes to be torn down."""
        self.desired.pods.pop(uid, None)
        return self.desired.replace_volumes(uid, ())

    def _volumes(self, pod: Pod) -> Iterable[DesiredVolume]:
        still = msgspec.structs.replace(
            pod, status=PodStatus(), metadata=msgspec.structs.replace(pod.metadata, resource_version="")
        )
        for volume in pod.used_volumes:
            try:
                plugin = self._registry.find_by_spec(volume)
            except VolumeError as error:
                log.info("not served", pod=str(pod.ref), volume=volume.name, reason=str(error))
                continue  # hostPath, CSI and the like: somebody else's
            yield DesiredVolume(
                ref=VolumeRef(pod.metadata.uid, plugin.name, volume.name),
                pod=still,
                volume=volume,
                plugin=plugin,
                objects=plugin.references(pod, volume, self._node),
                frozen=pod.terminating,
            )


def _frozen(volume: DesiredVolume) -> DesiredVolume:
    return DesiredVolume(volume.ref, volume.pod, volume.volume, volume.plugin, volume.objects, frozen=True)


def names(pods: Iterable[Pod]) -> dict[tuple[str, str], str]:
    """`by-name`: (namespace, name) → uid of the newest Pod of that name that is not terminal."""
    newest: dict[tuple[str, str], Pod] = {}
    for pod in pods:
        if not pod.terminal:
            key = (pod.metadata.namespace, pod.metadata.name)
            other = newest.get(key)
            if other is None or _created(other) <= _created(pod):
                newest[key] = pod
    return {key: pod.metadata.uid for key, pod in newest.items()}


def _created(pod: Pod) -> str:
    return pod.metadata.creation_timestamp or ""
