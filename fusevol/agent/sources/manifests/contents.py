"""What one file holds: all of its documents decoded, or all that is wrong with them."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from fusevol.agent.sources.manifests.defaults import DEFAULT_NAMESPACE, default_pod
from fusevol.agent.sources.manifests.documents import Document, Malformed, Path, items_of, parse
from fusevol.agent.sources.manifests.fields import Errors
from fusevol.agent.sources.manifests.objects import Manifest, check_unchanged, decode_node, decode_object
from fusevol.agent.sources.manifests.validation import decode_pod
from fusevol.agent.sources.source import SourceProblem
from fusevol.model.nulls import without_nulls
from fusevol.model.objects import CONFIG_MAP, NODE, SECRET
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef

KINDS = ("Pod", CONFIG_MAP, SECRET, NODE)

_NAMESPACE = uuid.UUID("6f0a5d0e-7c5b-5f0e-9d52-3f0d1f7e6a11")
"""Of the uids that fusevol gives to Pods and objects of manifests (RFC 4122, version 5)."""


class Invalid(Exception):
    """The file is not taken; `problems` says why, with lines."""

    def __init__(self, problems: list[SourceProblem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = tuple(problems)


class FileContents(msgspec.Struct, frozen=True):
    """Pods with the lines that they begin at, and objects."""

    pods: tuple[tuple[Pod, int], ...]
    objects: dict[ObjectRef, Manifest]

    def kept(self) -> FileContents:
        """Without the values of Secrets."""
        return FileContents(self.pods, {ref: manifest.kept() for ref, manifest in self.objects.items()})


def decode(file: str, data: bytes, version: str, key: bytes, before: FileContents | None = None) -> FileContents:
    """`file` is the name that uids are made of, `version` that of objects that have none, `before` what the file held.
    Raises Invalid."""
    try:
        documents = [item for document in parse(data, json=file.endswith(".json")) for item in items_of(document)]
    except Malformed as error:
        raise Invalid([SourceProblem(str(error), file, error.line)]) from None
    if not documents:
        emptied = "no manifest in it; what it held before is kept until the file is deleted"
        raise Invalid([SourceProblem(emptied, file, 1)])
    decoder = _Decoder(file, version, key, before)
    for document in documents:
        decoder.add(document)
    if decoder.problems:
        raise Invalid(decoder.problems)
    return FileContents(tuple(decoder.pods.values()), decoder.objects)


class _Decoder:
    """Collects a file's documents and problems."""

    def __init__(self, file: str, version: str, key: bytes, before: FileContents | None) -> None:
        self._file = file
        self._version = version
        self._key = key
        self._before = before
        self.pods: dict[tuple[str, str], tuple[Pod, int]] = {}
        self.objects: dict[ObjectRef, Manifest] = {}
        self.problems: list[SourceProblem] = []

    def add(self, document: Document) -> None:
        errors = Errors()
        raw = without_nulls_at_top(document.value)
        what = "document"
        if raw is None:
            errors.add((), "must be a mapping")
        elif self._check_header(errors, raw):
            what = f"{raw['kind']} {raw['metadata'].get('name', '')}".rstrip()
            self._add(errors, raw, document.line())
        for path, message in errors.found:
            self.problems.append(SourceProblem(f"{what}: {message}", self._file, document.line(path)))

    def _check_header(self, errors: Errors, raw: dict[str, Any]) -> bool:
        """Kind, version and types of metadata: what everything else relies on."""
        kind = raw.get("kind")
        if not isinstance(kind, str) or not kind:
            errors.required(("kind",))
            return False
        if kind not in KINDS:
            errors.add(("kind",), f"not a kind that is served: {', '.join(KINDS)} are")
            return False
        if raw.get("apiVersion") != "v1":
            errors.add(("apiVersion",), "must be v1")
            return False
        metadata = raw.get("metadata")
        if not isinstance(metadata, dict):
            errors.required(("metadata",))
            return False
        wrong = _wrong_metadata(metadata)
        if wrong:
            errors.add(wrong, "must be a string" if wrong[-1] not in ("labels", "annotations") else "must be a mapping")
        return not wrong

    def _add(self, errors: Errors, raw: dict[str, Any], line: int) -> None:
        metadata = raw["metadata"]
        namespace = "" if raw["kind"] == NODE else metadata.setdefault("namespace", DEFAULT_NAMESPACE)
        name = metadata.get("name", "")
        uid = metadata.get("uid") or self._uid(raw["kind"], namespace, name)
        version = metadata.get("resourceVersion") or self._version
        if raw["kind"] == "Pod":
            self._add_pod(errors, raw, uid, version, line)
        elif raw["kind"] == NODE:
            self._add_object(errors, decode_node(errors, raw, uid, version, line))
        else:
            self._add_object(errors, decode_object(errors, raw, uid, version, line, self._key))

    def _add_pod(self, errors: Errors, raw: dict[str, Any], uid: str, version: str, line: int) -> None:
        raw = without_nulls(raw)
        raw["metadata"] |= {"uid": uid, "resourceVersion": version}
        default_pod(raw)
        pod = decode_pod(errors, raw)
        if pod is None:
            return
        name = (pod.metadata.namespace, pod.metadata.name)
        if name in self.pods:
            errors.duplicate(("metadata", "name"), pod.metadata.name)
        self.pods[name] = (pod, line)

    def _add_object(self, errors: Errors, manifest: Manifest) -> None:
        if manifest.ref in self.objects:
            errors.duplicate(("metadata", "name"), manifest.ref.name)
        old = self._before.objects.get(manifest.ref) if self._before else None
        if old and not errors.found:
            check_unchanged(errors, old, manifest)
        self.objects[manifest.ref] = manifest

    def _uid(self, kind: str, namespace: str, name: str) -> str:
        """Of where it stands, not of what it says: editing a label must not make another Pod of it."""
        parts = [self._file, namespace, name] if kind == "Pod" else [self._file, kind, namespace, name]
        return str(uuid.uuid5(_NAMESPACE, "\0".join(parts)))


def without_nulls_at_top(value: Any) -> dict[str, Any] | None:
    """A document's fields, with those of its metadata, that are not null; None if it is not a mapping."""
    if not isinstance(value, dict):
        return None
    fields = {key: item for key, item in value.items() if item is not None}
    if isinstance(fields.get("metadata"), dict):
        fields["metadata"] = without_nulls(fields["metadata"])
    return fields


def _wrong_metadata(metadata: dict[str, Any]) -> Path | None:
    for field in ("name", "namespace", "uid", "resourceVersion"):
        if not isinstance(metadata.get(field, ""), str):
            return ("metadata", field)
    for field in ("labels", "annotations"):
        values = metadata.get(field, {})
        if not isinstance(values, dict):
            return ("metadata", field)
        for key, value in values.items():
            if not isinstance(value, str):
                return ("metadata", field, key)
    return None
