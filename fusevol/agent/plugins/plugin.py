"""What a volume plugin is (KUBELET.md 2.1, 2.2, without what only block and remote volumes need)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from fusevol.model.errors import ObjectNotKnown
from fusevol.model.objects import ObjectInfo
from fusevol.model.pod import Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import EmptyDir, Tree


class Unavailable(msgspec.Struct, frozen=True):
    """The source tried to get an object and failed; `message` is the error that kubelet would tell."""

    message: str


class Absent(msgspec.Struct, frozen=True):
    """The object does not exist."""


class Objects:
    """What is known of objects at the moment of planning."""

    def __init__(self, known: Mapping[ObjectRef, ObjectInfo | Absent | Unavailable]) -> None:
        self._known = known

    def get(self, ref: ObjectRef) -> ObjectInfo | Absent | Unavailable:
        """Raises ObjectNotKnown if the source has not answered for it yet."""
        try:
            return self._known[ref]
        except KeyError:
            raise ObjectNotKnown(str(ref)) from None


class Plugin(Protocol):
    """One kind of volume. All methods are pure."""

    name: str
    """With `/`: `kubernetes.io/configmap`."""

    def can_support(self, volume: Volume) -> bool:
        """Whether this plugin is the one for the volume (KUBELET.md 2.5)."""

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        """Every object that planning may ask for."""

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> Tree | EmptyDir:
        """What the volume is to look like. Raises VolumeError with kubelet's text, or ObjectNotKnown."""
