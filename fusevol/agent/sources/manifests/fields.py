"""Field errors as the API server words them, and what all kinds have in common: metadata, names, modes, paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fusevol.agent.plugins import names
from fusevol.agent.plugins.goquote import quote
from fusevol.agent.sources.manifests.documents import Path

MAX_OBJECT = 1_048_576
"""Bytes of all values of an object (MaxSecretSize)."""

FILE_MODE = "must be a number between 0 and 0777 (octal), both inclusive"
IMMUTABLE = "field is immutable when `immutable` is set"

_MAPS = frozenset({"data", "binaryData", "stringData", "labels", "annotations", "limits", "requests", "overhead"})
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,252}")


class Errors:
    """What is wrong with one document: texts by path. A Secret's values are never shown to it."""

    def __init__(self) -> None:
        self.found: list[tuple[Path, str]] = []

    def add(self, path: Path, message: str) -> None:
        self.found.append((path, f"{shown(path)}: {message}"))

    def add_unnamed(self, path: Path, message: str) -> None:
        """For the line of `path`, without its last name: where a Secret is badly indented, its value becomes a key."""
        self.found.append((path, f"{shown(path[:-1])}: {message}"))

    def invalid(self, path: Path, value: object, message: str) -> None:
        self.add(path, f"Invalid value: {quote(value) if isinstance(value, str) else value}: {message}")

    def each_invalid(self, path: Path, value: str, messages: Iterable[str]) -> None:
        for message in messages:
            self.invalid(path, value, message)

    def required(self, path: Path, message: str = "") -> None:
        self.add(path, f"Required value: {message}" if message else "Required value")

    def duplicate(self, path: Path, value: str) -> None:
        self.add(path, f"Duplicate value: {quote(value)}")

    def forbidden(self, path: Path, message: str) -> None:
        self.add(path, f"Forbidden: {message}")

    def unsupported(self, path: Path, value: str, supported: Iterable[str]) -> None:
        listed = ", ".join(quote(choice) for choice in sorted(supported))
        self.add(path, f"Unsupported value: {quote(value)}: supported values: {listed}")


def shown(path: Path) -> str:
    """`spec.volumes[0].name`, `data[key]`; the whole document is `[]`."""
    text = ""
    previous: str | int = ""
    for part in path:
        if isinstance(part, int) or previous in _MAPS:
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
        previous = part
    return text or "[]"


def check_metadata(errors: Errors, raw: dict[str, Any], namespaced: bool) -> None:
    """Names and keys of `metadata`, which is a mapping with strings in it (checked by the conversion)."""
    metadata = raw.get("metadata") or {}
    name = metadata.get("name") or ""
    if not name:
        errors.required(("metadata", "name"), "name or generateName is required")
    else:
        errors.each_invalid(("metadata", "name"), name, names.subdomain_errors(name))
    if namespaced:
        namespace = metadata.get("namespace") or ""
        errors.each_invalid(("metadata", "namespace"), namespace, names.label_errors(namespace))
    uid = metadata.get("uid") or ""
    if uid and not _UID.fullmatch(uid):
        # it is the name of a directory
        errors.invalid(("metadata", "uid"), uid, "must consist of alphanumeric characters, '-', '_' or '.'")
    for field in ("labels", "annotations"):
        for key in metadata.get(field) or {}:
            lower = key.lower() if field == "annotations" else key
            errors.each_invalid(("metadata", field, key), key, names.qualified_name_errors(lower))


def check_mode(errors: Errors, path: Path, mode: int | None) -> None:
    if mode is not None and not 0 <= mode <= 0o777:
        errors.invalid(path, mode, FILE_MODE)


def check_path(errors: Errors, path: Path, value: str) -> None:
    """ValidateLocalNonReservedPath."""
    if not value:
        errors.required(path)
    check_descending(errors, path, value)
    if value.startswith("..") and not value.startswith("../") and value != "..":
        errors.invalid(path, value, "must not start with '..'")


def check_descending(errors: Errors, path: Path, value: str) -> None:
    if value.startswith("/"):
        errors.invalid(path, value, "must be a relative path")
    if ".." in value.split("/"):
        errors.invalid(path, value, "must not contain '..'")
