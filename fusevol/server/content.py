"""The contents of files: each object's values once, however many volumes project them, wiped when nobody needs them.

The process's memory is locked as a whole (`fusevol.system.memory`), so a plain bytearray is locked memory. Readers get
views of it: no copy is made on the way to the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fusevol.model.errors import FusevolError
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import ContentRef, Literal


class ContentMissing(FusevolError):
    """A tree refers to a content that the store does not have."""


class Content:
    """The bytes of one key of one or more versions of an object. They never change until they are wiped."""

    __slots__ = ("_data", "references")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytearray(data)
        self.references = 1

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<content, {len(self)} bytes, {self.references} references>"

    @property
    def view(self) -> memoryview:
        """Good for as long as the caller holds a reference."""
        return memoryview(self._data).toreadonly()

    def equals(self, data: bytes | bytearray | memoryview) -> bool:
        return self._data == data

    def acquire(self) -> Content:
        assert self.references > 0, "wiped already"
        self.references += 1
        return self

    def release(self) -> None:
        """Gives one reference back; the last one overwrites the bytes."""
        self.references -= 1
        if self.references == 0:
            self._data[:] = bytes(len(self._data))


class _Stored(NamedTuple):
    version: str
    keys: dict[str, Content]  # each holds one reference


class ContentStore:
    """The newest version of each object; older contents live for as long as nodes show them."""

    def __init__(self) -> None:
        self._objects: dict[ObjectRef, _Stored] = {}

    @property
    def refs(self) -> tuple[ObjectRef, ...]:
        """The objects that are here."""
        return tuple(self._objects)

    def put(self, ref: ObjectRef, version: str, data: Mapping[str, memoryview]) -> None:
        """Copies the values. A key whose bytes are those of the version before shares its memory."""
        before = self._objects.get(ref, _Stored("", {}))
        keys = {}
        for key, value in data.items():
            old = before.keys.get(key)
            keys[key] = old.acquire() if old is not None and old.equals(value) else Content(value)
        self._objects[ref] = _Stored(version, keys)
        for old in before.keys.values():
            old.release()

    def drop(self, ref: ObjectRef) -> None:
        """Harmless if the object is not there."""
        for content in self._objects.pop(ref, _Stored("", {})).keys.values():
            content.release()

    def acquire(self, wanted: ContentRef | Literal) -> Content:
        """One reference, which is the caller's to release. Raises ContentMissing."""
        if isinstance(wanted, Literal):
            return Content(wanted.data)
        stored = self._objects.get(wanted.object)
        if stored is None:
            raise ContentMissing(f"{wanted.object} is not here")
        if stored.version != wanted.version:
            raise ContentMissing(f"{wanted.object} is here in version {stored.version}, not {wanted.version}")
        try:
            return stored.keys[wanted.key].acquire()
        except KeyError:
            raise ContentMissing(f"{wanted.object} has no key {wanted.key!r}") from None
