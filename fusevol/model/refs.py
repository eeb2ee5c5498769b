"""References: the names by which Pods, API objects and volumes are known in every process."""

from __future__ import annotations

import msgspec

DATA_LINK = "..data"
"""The link of a projected volume that names its current version (KUBELET.md 9)."""

DATA_LINK_TMP = "..data_tmp"
"""The name under which the next `..data` is made before it is renamed."""


class PodRef(msgspec.Struct, frozen=True, order=True):
    """A Pod: its names are for people, its uid for the tree."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ObjectRef(msgspec.Struct, frozen=True, order=True):
    """An object that volumes project: `ConfigMap`, `Secret`, or one of the kinds of `OBJECT_KINDS`."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


class VolumeRef(msgspec.Struct, frozen=True, order=True):
    """A volume of a Pod. `plugin` is the plugin's name with `/`, e.g. `kubernetes.io/configmap`."""

    pod_uid: str
    plugin: str
    name: str

    @property
    def path(self) -> str:
        """Path below the mount point (KUBELET.md 1.25)."""
        return f"pods/{self.pod_uid}/volumes/{escaped(self.plugin)}/{self.name}"

    def __str__(self) -> str:
        return f"{self.plugin}/{self.pod_uid}-{self.name}"


def escaped(plugin: str) -> str:
    """A plugin's name as the name of a directory: `kubernetes.io~configmap`."""
    return plugin.replace("/", "~")
