"""What is decoded of the API server's answers: partial structs, and for each kind of object where it stands.

A Secret's values go from base64 straight to bytes. Metadata is decoded without annotations: `kubectl apply` keeps a
whole Secret in one. What Go may send as null has None as a type.
"""

from __future__ import annotations

import base64
import re
import ssl
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from fusevol.agent.sources.kubernetes.errors import ApiError, Undecodable
from fusevol.model.nulls import without_nulls
from fusevol.model.objects import (
    CLUSTER_TRUST_BUNDLE,
    CONFIG_MAP,
    NODE,
    SECRET,
    TRUST_BUNDLE_KEY,
    DeliveredObject,
    SecretBytes,
)
from fusevol.model.pod import Api, Pod
from fusevol.model.refs import ObjectRef

T = TypeVar("T")

Bytes = bytes | bytearray


class Meta(Api, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class ListMeta(Api, frozen=True):
    resource_version: str = ""


class ConfigMap(Api, frozen=True):
    metadata: Meta
    data: dict[str, str] | None = None
    binary_data: dict[str, bytes] | None = None
    immutable: bool | None = None


class Secret(Api, frozen=True):
    metadata: Meta
    data: dict[str, bytes] | None = None
    immutable: bool | None = None

    def __repr__(self) -> str:
        return f"<Secret {self.metadata.name}>"


class ClusterTrustBundleSpec(Api, frozen=True):
    trust_bundle: str = ""


class ClusterTrustBundle(Api, frozen=True):
    """Of certificates.k8s.io/v1beta1."""

    metadata: Meta
    spec: ClusterTrustBundleSpec = ClusterTrustBundleSpec()


class ClusterTrustBundleList(Api, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[ClusterTrustBundle] | None = None


class NodeStatus(Api, frozen=True):
    allocatable: dict[str, str | int | float] | None = None


class Node(Api, frozen=True):
    metadata: Meta
    status: NodeStatus = NodeStatus()


class Identified(Api, frozen=True):
    """Any object as far as its metadata."""

    metadata: Meta = Meta()


class RawPodList(Api, frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


@dataclass(frozen=True, slots=True)
class Misunderstood:
    """A Pod that does not decode: who it is, as far as that can be read, and why."""

    metadata: Meta
    message: str


@dataclass(frozen=True, slots=True)
class PodList:
    """Pods are decoded one by one: one that is not understood must not hide the others."""

    version: str
    pods: list[Pod | Misunderstood]


class StatusDetails(Api, frozen=True):
    retry_after_seconds: int | None = None


class Status(Api, frozen=True):
    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: StatusDetails | None = None

    def error(self, code: int, retry_after: float | None = None) -> ApiError:
        """As an exception; `code` is the HTTP status where the object has none."""
        if retry_after is None and self.details is not None:
            retry_after = self.details.retry_after_seconds or None
        message = self.message or self.reason or f"the API server answered {code}"
        return ApiError(self.code or code, self.reason or "", message, retry_after)


class Event(msgspec.Struct, frozen=True):
    """A line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR (whose object is a Status)."""

    type: str
    object: msgspec.Raw

    def __repr__(self) -> str:
        return f"<{self.type} event, {len(bytes(self.object))} bytes>"


class TokenStatus(Api, frozen=True):
    token: str
    expiration_timestamp: str

    def __repr__(self) -> str:
        return f"<token until {self.expiration_timestamp}>"


class TokenRequestSpec(Api, frozen=True):
    expiration_seconds: int | None = None


class TokenRequest(Api, frozen=True):
    """The answer to a token request."""

    status: TokenStatus
    spec: TokenRequestSpec = TokenRequestSpec()


def decode(decoder: msgspec.json.Decoder[T], data: Bytes | msgspec.Raw) -> T:
    """Raises Undecodable, which names the field and never a value."""
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:  # its str() quotes a byte
        raise Undecodable("the API server's answer is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise Undecodable(f"the API server's answer: {error}") from None


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind of object that volumes project: the collection it stands in, and how it is delivered."""

    plural: str
    namespaced: bool
    decode: Callable[[Bytes | msgspec.Raw], T]
    meta: Callable[[T], Meta]
    content: Callable[[T], tuple[dict[str, SecretBytes], Mapping[str, str]]]
    immutable: Callable[[T], bool]
    group: str = "/api/v1"

    def collection(self, ref: ObjectRef) -> str:
        """The path of the collection, percent-encoded."""
        if self.namespaced:
            return f"{self.group}/namespaces/{urllib.parse.quote(ref.namespace, safe='')}/{self.plural}"
        return f"{self.group}/{self.plural}"

    def path(self, ref: ObjectRef) -> str:
        return f"{self.collection(ref)}/{urllib.parse.quote(ref.name, safe='')}"

    def delivered(self, ref: ObjectRef, found: T) -> DeliveredObject:
        meta = self.meta(found)
        data, literals = self.content(found)
        return DeliveredObject(ref, meta.uid, meta.resource_version, self.immutable(found), data, literals)


def _config_map_content(found: ConfigMap) -> tuple[dict[str, SecretBytes], Mapping[str, str]]:
    data = {key: SecretBytes(value.encode()) for key, value in (found.data or {}).items()}
    data |= {key: SecretBytes(value) for key, value in (found.binary_data or {}).items()}
    return data, {}


def _secret_content(found: Secret) -> tuple[dict[str, SecretBytes], Mapping[str, str]]:
    return {key: SecretBytes(value) for key, value in (found.data or {}).items()}, {}


def normalised_pem(*bundles: str) -> SecretBytes:
    """Their certificates, each once, in one order whatever the order of the bundles (KUBELET.md 8.2: kubelet shuffles
    them). What stands between the blocks, and what is not base64, is left out."""
    certificates = set()
    for block in PEM_CERTIFICATE.findall("\n".join(bundles)):
        try:
            certificates.add(base64.b64decode("".join(block.split()), validate=True))
        except ValueError:
            continue
    return SecretBytes("".join(ssl.DER_cert_to_PEM_cert(der) for der in sorted(certificates)).encode())


PEM_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)

CERTIFICATES_API = "/apis/certificates.k8s.io/v1beta1"


def _trust_bundle_content(found: ClusterTrustBundle) -> tuple[dict[str, SecretBytes], Mapping[str, str]]:
    return {TRUST_BUNDLE_KEY: normalised_pem(found.spec.trust_bundle)}, {}


def _node_content(found: Node) -> tuple[dict[str, SecretBytes], Mapping[str, str]]:
    return {}, {name: str(quantity) for name, quantity in (found.status.allocatable or {}).items()}


RESOURCES: Mapping[str, Resource[Any]] = {
    CONFIG_MAP: Resource(
        plural="configmaps",
        namespaced=True,
        decode=partial(decode, msgspec.json.Decoder(ConfigMap)),
        meta=lambda found: found.metadata,
        content=_config_map_content,
        immutable=lambda found: bool(found.immutable),
    ),
    SECRET: Resource(
        plural="secrets",
        namespaced=True,
        decode=partial(decode, msgspec.json.Decoder(Secret)),
        meta=lambda found: found.metadata,
        content=_secret_content,
        immutable=lambda found: bool(found.immutable),
    ),
    NODE: Resource(
        plural="nodes",
        namespaced=False,
        decode=partial(decode, msgspec.json.Decoder(Node)),
        meta=lambda found: found.metadata,
        content=_node_content,
        immutable=lambda found: False,
    ),
    CLUSTER_TRUST_BUNDLE: Resource(
        plural="clustertrustbundles",
        namespaced=False,
        decode=partial(decode, msgspec.json.Decoder(ClusterTrustBundle)),
        meta=lambda found: found.metadata,
        content=_trust_bundle_content,
        immutable=lambda found: False,
        group=CERTIFICATES_API,
    ),
}
"""The kinds that are read by GET and watch."""

_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_pods: msgspec.json.Decoder[Pod] = msgspec.json.Decoder(Pod)
_pod_lists: msgspec.json.Decoder[RawPodList] = msgspec.json.Decoder(RawPodList)

# what answers and events are decoded with; all raise Undecodable
identified = partial(decode, msgspec.json.Decoder(Identified))
status = partial(decode, msgspec.json.Decoder(Status))
event = partial(decode, msgspec.json.Decoder(Event))
token_request = partial(decode, msgspec.json.Decoder(TokenRequest))
trust_bundles = partial(decode, msgspec.json.Decoder(ClusterTrustBundleList))


def pod(data: Bytes | msgspec.Raw) -> Pod | Misunderstood:
    """A Pod has a uid. What a Misunderstood without one is of, nobody knows."""
    try:
        found = _pod(data)
        return found if found.metadata.uid else Misunderstood(Meta(), "it has no metadata.uid")
    except Undecodable as error:
        message = str(error)
    try:
        return Misunderstood(identified(data).metadata, message)
    except Undecodable:
        return Misunderstood(Meta(), message)


def _pod(data: Bytes | msgspec.Raw) -> Pod:
    """Raises Undecodable."""
    try:
        return decode(_pods, data)
    except Undecodable:
        # nulls are seldom where the structs do not have them: only then is the whole Pod read
        raw = without_nulls(decode(_anything, data))
    try:
        return msgspec.convert(raw, Pod)
    except msgspec.ValidationError as error:
        raise Undecodable(f"the API server's answer: {error}") from None


def pod_list(data: Bytes) -> PodList:
    found = decode(_pod_lists, data)
    return PodList(found.metadata.resource_version, [pod(item) for item in found.items or ()])


def older(version: str, than: str) -> bool:
    """Whether resourceVersion `version` is `than` or one before it. What is not a number is not compared: False.

    Kubernetes orders the resourceVersions of one resource as numbers (KEP-5504).
    """
    return version.isdecimal() and than.isdecimal() and int(version) <= int(than)
