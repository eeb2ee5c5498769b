"""What is known of the objects that volumes project: versions and keyed digests, never a value."""

from __future__ import annotations

from fusevol.agent.plugins.plugin import Absent, Objects, Unavailable
from fusevol.model.objects import DeliveredObject, KeyInfo, ObjectInfo
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import keyed_digest
from fusevol.model.volume import ObjectVersion


class ObjectTable:
    """Owned by the volume manager. `key` is the server's; everything is forgotten with the server's contents."""

    def __init__(self) -> None:
        self.key = b""
        self._known: dict[ObjectRef, ObjectInfo | Absent | Unavailable] = {}

    def reset(self, key: bytes) -> None:
        """The server has no contents (any more): they are not known until they are delivered again. What does not exist
        still does not."""
        self.key = key
        self._known = {ref: known for ref, known in self._known.items() if not isinstance(known, ObjectInfo)}

    def describe(self, delivered: DeliveredObject) -> ObjectInfo:
        """What may be kept of an object. Its content's version is the known one where no byte has changed."""
        keys = {
            name: KeyInfo(len(value), keyed_digest(self.key, value.reveal())) for name, value in delivered.data.items()
        }
        known = self._known.get(delivered.ref)
        same = isinstance(known, ObjectInfo) and known.keys == keys
        return ObjectInfo(
            ref=delivered.ref,
            uid=delivered.uid,
            version=delivered.version,
            content_version=known.content_version if isinstance(known, ObjectInfo) and same else delivered.version,
            immutable=delivered.immutable,
            keys=keys,
            literals=dict(delivered.literals),
        )

    def get(self, ref: ObjectRef) -> ObjectInfo | Absent | Unavailable | None:
        return self._known.get(ref)

    def set(self, ref: ObjectRef, value: ObjectInfo | Absent | Unavailable) -> bool:
        """Returns whether that is news."""
        news = self._known.get(ref) != value
        self._known[ref] = value
        return news

    def forget(self, ref: ObjectRef) -> None:
        self._known.pop(ref, None)

    def view(self) -> Objects:
        """For planning, now."""
        return Objects(self._known)

    def versions(self, refs: frozenset[ObjectRef]) -> tuple[ObjectVersion, ...]:
        """The newest known versions of those that exist."""
        return tuple(
            ObjectVersion(ref, known.version)
            for ref in sorted(refs)
            if isinstance(known := self._known.get(ref), ObjectInfo)
        )
