"""API objects as the agent keeps them: names, sizes, keyed digests and versions, never a Secret's value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fusevol.model.pod import LabelSelector
from fusevol.model.refs import ObjectRef

CONFIG_MAP = "ConfigMap"
SECRET = "Secret"
SERVICE_ACCOUNT_TOKEN = "ServiceAccountToken"
CLUSTER_TRUST_BUNDLE = "ClusterTrustBundle"
NODE = "Node"

SECRET_KINDS = frozenset({SECRET, SERVICE_ACCOUNT_TOKEN})
"""Kinds whose contents stand in locked memory only and are served direct_io."""

TOKEN_KEY = "token"
"""The one key of a ServiceAccountToken."""

TRUST_BUNDLE_KEY = "trustBundle"
"""The one key of a ClusterTrustBundle: its PEM blocks, normalised by the source (KUBELET.md 8.2)."""


class SecretBytes:
    """Bytes that no repr, log line or exception shows. `wipe()` overwrites them when they have been handed over."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytearray(data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"<secret, {len(self._data)} bytes>"

    def reveal(self) -> memoryview:
        """The bytes themselves; the caller keeps no copy."""
        return memoryview(self._data)

    def wipe(self) -> None:
        self._data[:] = bytes(len(self._data))


class DeliveredObject(NamedTuple):
    """An object on its way from a source to the server; its values live no longer than this.

    `version` is the resourceVersion (opaque; for manifests the file's time of change). `uid` tells a recreated object
    from a changed one. `literals` holds values that planning needs (a Node's allocatable), never a Secret's.
    """

    ref: ObjectRef
    uid: str
    version: str
    immutable: bool
    data: Mapping[str, SecretBytes]
    literals: Mapping[str, str] = {}


class KeyInfo(msgspec.Struct, frozen=True):
    """What planning knows of one key: its size in bytes and its keyed digest (HMAC with the server's key)."""

    size: int
    digest: str


class ObjectInfo(msgspec.Struct, frozen=True):
    """What the agent knows of an object. `content_version` is the version under which the server holds the content:
    it stays behind `version` when only metadata changed."""

    ref: ObjectRef
    uid: str
    version: str
    content_version: str
    immutable: bool
    keys: Mapping[str, KeyInfo]
    literals: Mapping[str, str] = {}


class TokenSpec(msgspec.Struct, frozen=True, order=True):
    """What a ServiceAccountToken is requested with (KUBELET.md 8.1). Its ObjectRef's name carries all of it."""

    service_account: str
    audience: str
    expiration_seconds: int
    pod_name: str
    pod_uid: str


def token_ref(namespace: str, spec: TokenSpec) -> ObjectRef:
    return ObjectRef(SERVICE_ACCOUNT_TOKEN, namespace, msgspec.json.encode(spec).decode())


def token_spec(ref: ObjectRef) -> TokenSpec:
    return msgspec.json.decode(ref.name, type=TokenSpec)


class TrustBundleSpec(msgspec.Struct, frozen=True):
    """The ClusterTrustBundles of a signer that match a selector (KUBELET.md 8.2): no selector matches nothing, an empty
    one everything. Their ObjectRef's name carries both; a bundle chosen by name is known by that name."""

    signer_name: str
    label_selector: LabelSelector | None = None


def signer_bundles_ref(spec: TrustBundleSpec) -> ObjectRef:
    return ObjectRef(CLUSTER_TRUST_BUNDLE, "", msgspec.json.encode(spec, order="deterministic").decode())


def signer_bundles_spec(ref: ObjectRef) -> TrustBundleSpec | None:
    """None if the reference is to one bundle by its name."""
    return msgspec.json.decode(ref.name, type=TrustBundleSpec) if ref.name.startswith("{") else None


def display_name(ref: ObjectRef) -> str:
    """What to call an object before people: of a token its ServiceAccount, of a signer's bundles the signer."""
    if ref.kind == SERVICE_ACCOUNT_TOKEN:
        return token_spec(ref).service_account
    bundles = signer_bundles_spec(ref) if ref.kind == CLUSTER_TRUST_BUNDLE else None
    return bundles.signer_name if bundles else ref.name


def node_ref(name: str) -> ObjectRef:
    """The Node, whose allocatable resources are the default of unset limits (KUBELET.md 7.3)."""
    return ObjectRef(NODE, "", name)
