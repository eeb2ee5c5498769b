"""ConfigMaps, Secrets and Nodes of manifests: decoded, validated like the API server does (KUBELET.md 3.7, 4.7)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from fusevol.agent.plugins import names, quantity
from fusevol.agent.sources.manifests.documents import Path
from fusevol.agent.sources.manifests.fields import IMMUTABLE, MAX_OBJECT, Errors, check_metadata
from fusevol.model.objects import CONFIG_MAP, NODE, SECRET
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import keyed_digest

_FIELDS = {
    CONFIG_MAP: frozenset({"apiVersion", "kind", "metadata", "immutable", "data", "binaryData"}),
    SECRET: frozenset({"apiVersion", "kind", "metadata", "immutable", "data", "stringData", "type"}),
}

_JSON_KEYS = {"kubernetes.io/dockercfg": ".dockercfg", "kubernetes.io/dockerconfigjson": ".dockerconfigjson"}
_SERVICE_ACCOUNT_NAME = "kubernetes.io/service-account.name"


class Manifest(msgspec.Struct, frozen=True):
    """An object as a file has it. `values` is None where they were dropped: a Secret's are read again for delivery.
    `version` is the given resourceVersion or that of the file. `digest` is keyed; it tells changed contents."""

    ref: ObjectRef
    uid: str
    version: str
    immutable: bool
    digest: str
    line: int
    values: Mapping[str, bytes] | None
    literals: Mapping[str, str] = {}

    def kept(self) -> Manifest:
        """What stays in memory of it: everything but a Secret's values."""
        return msgspec.structs.replace(self, values=None) if self.ref.kind == SECRET else self

    def __repr__(self) -> str:
        return f"<{self.ref} at version {self.version}>"


def decode_object(errors: Errors, raw: dict[str, Any], uid: str, version: str, line: int, key: bytes) -> Manifest:
    """A ConfigMap or Secret. What is wrong goes to `errors`; the result then is not to be used."""
    kind = raw["kind"]
    for field in sorted(raw.keys() - _FIELDS[kind]):
        errors.add_unnamed((field,), f"unknown field: {', '.join(sorted(_FIELDS[kind]))} are known")
    check_metadata(errors, raw, namespaced=True)
    immutable = raw.get("immutable")
    if immutable not in (None, True, False):
        errors.add(("immutable",), "must be true or false")
    values = _config_map_values(errors, raw) if kind == CONFIG_MAP else _secret_values(errors, raw)
    if sum(map(len, values.values())) > MAX_OBJECT:
        where: Path = () if kind == CONFIG_MAP else ("data",)
        errors.add(where, f"Too long: may not be more than {MAX_OBJECT} bytes")
    metadata = raw["metadata"]
    if kind == SECRET:
        _check_type(errors, raw.get("type"), values, metadata.get("annotations") or {})
    ref = ObjectRef(kind, metadata.get("namespace") or "", metadata.get("name") or "")
    return Manifest(ref, uid, version, bool(immutable), _digest(key, values), line, values)


def _check_type(errors: Errors, kind: Any, values: Mapping[str, bytes], annotations: Mapping[str, str]) -> None:
    """What Secrets of some types must have (ValidateSecret). Types that nobody knows need nothing."""
    match kind:
        case "kubernetes.io/tls":
            _require(errors, *(key for key in ("tls.crt", "tls.key") if key not in values))
        case "kubernetes.io/basic-auth" if not {"username", "password"} & values.keys():
            _require(errors, "username", "password")
        case "kubernetes.io/ssh-auth" if not values.get("ssh-privatekey"):
            _require(errors, "ssh-privatekey")
        case "kubernetes.io/service-account-token" if not annotations.get(_SERVICE_ACCOUNT_NAME):
            errors.required(("metadata", "annotations", _SERVICE_ACCOUNT_NAME))
        case str() if kind in _JSON_KEYS:
            _check_json(errors, _JSON_KEYS[kind], values)
        case str() | None:
            pass
        case _:
            errors.add(("type",), "must be a string")


def _require(errors: Errors, *keys: str) -> None:
    for key in keys:
        errors.required(("data", key))


def _check_json(errors: Errors, key: str, values: Mapping[str, bytes]) -> None:
    if key not in values:
        errors.required(("data", key))
        return
    try:
        msgspec.json.decode(values[key], type=dict[str, msgspec.Raw] | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        errors.invalid(("data", key), "<secret contents redacted>", "must be a JSON object")


def decode_node(errors: Errors, raw: dict[str, Any], uid: str, version: str, line: int) -> Manifest:
    """Of a Node only the allocatable resources matter; its capacity where it has none."""
    check_metadata(errors, raw, namespaced=False)
    status = raw.get("status")
    status = status if isinstance(status, dict) else {}
    field = "allocatable" if status.get("allocatable") else "capacity"
    amounts = status.get(field) or {}
    literals: dict[str, str] = {}
    for name, amount in amounts.items() if isinstance(amounts, dict) else ():
        try:
            quantity.parse(amount)
        except quantity.InvalidQuantity as error:
            errors.invalid(("status", field, name), str(amount), str(error))
        literals[name] = str(amount)
    ref = ObjectRef(NODE, "", raw["metadata"].get("name") or "")
    return Manifest(ref, uid, version, False, "", line, {}, literals)


def check_unchanged(errors: Errors, old: Manifest, new: Manifest) -> None:
    """Immutable objects do not change while they exist (KUBELET.md 3.8)."""
    if not old.immutable:
        return
    if not new.immutable:
        errors.forbidden(("immutable",), IMMUTABLE)
    if old.digest != new.digest:
        errors.forbidden(("data",), IMMUTABLE)


def _config_map_values(errors: Errors, raw: dict[str, Any]) -> dict[str, bytes]:
    text = _texts(errors, raw, "data")
    binary = _binaries(errors, raw, "binaryData")
    for key in text.keys() & binary.keys():
        errors.invalid(("data", key), key, "duplicate of key present in binaryData")
    return {**text, **binary}


def _secret_values(errors: Errors, raw: dict[str, Any]) -> dict[str, bytes]:
    """`stringData` replaces `data`, as the API server has it on writing."""
    return {**_binaries(errors, raw, "data"), **_texts(errors, raw, "stringData")}


def _texts(errors: Errors, raw: dict[str, Any], field: str) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    for key, value in _map(errors, raw, field).items():
        if value is not None and not isinstance(value, str):
            errors.add_unnamed((field, key), "values must be strings: quote them")
            continue
        values[key] = (value or "").encode(errors="replace")
    return values


def _binaries(errors: Errors, raw: dict[str, Any], field: str) -> dict[str, bytes]:
    values: dict[str, bytes] = {}
    for key, value in _map(errors, raw, field).items():
        if value is not None and not isinstance(value, str):
            errors.add_unnamed((field, key), "values must be strings: quote them")
            continue
        try:
            # Go's decoder passes over line ends and over nothing else
            values[key] = base64.b64decode((value or "").replace("\n", "").replace("\r", ""), validate=True)
        except (binascii.Error, ValueError):
            errors.add_unnamed((field, key), "illegal base64 data")
    return values


def _map(errors: Errors, raw: dict[str, Any], field: str) -> dict[str, Any]:
    values = raw.get(field)
    if values is None:
        return {}
    if not isinstance(values, dict):
        errors.add((field,), "must be a mapping")
        return {}
    for key in values:
        for message in names.key_errors(key):
            if raw["kind"] == SECRET:
                errors.add_unnamed((field, key), f"Invalid key: {message}")
            else:
                errors.invalid((field, key), key, message)
    return values


def _digest(key: bytes, values: Mapping[str, bytes]) -> str:
    return keyed_digest(key, msgspec.msgpack.encode(sorted((name, keyed_digest(key, values[name])) for name in values)))
