"""The part of a Pod that volumes depend on, as partial structs of the Kubernetes API (core/v1).

Fields that are not named are not decoded: a Pod event costs microseconds (FUSE.md 8). The same structs are decoded
from the API server's JSON and converted from manifests. Defaults are the API server's.
"""

from __future__ import annotations

import msgspec

from fusevol.model.refs import PodRef

TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})


class Api(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of all API structs: camelCase on the wire; a JSON null is not a value but the default (`model.nulls`)."""


class ObjectMeta(Api, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class KeyToPath(Api, frozen=True):
    key: str
    path: str
    mode: int | None = None


class ConfigMapVolumeSource(Api, frozen=True):
    name: str = ""
    items: list[KeyToPath] | None = None
    default_mode: int | None = None
    optional: bool | None = None


class SecretVolumeSource(Api, frozen=True):
    secret_name: str = ""
    items: list[KeyToPath] | None = None
    default_mode: int | None = None
    optional: bool | None = None


class ObjectFieldSelector(Api, frozen=True):
    field_path: str
    api_version: str = "v1"


class ResourceFieldSelector(Api, frozen=True):
    resource: str
    container_name: str = ""
    divisor: str | int | float | None = None


class DownwardAPIVolumeFile(Api, frozen=True):
    path: str
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    mode: int | None = None


class DownwardAPIVolumeSource(Api, frozen=True):
    items: list[DownwardAPIVolumeFile] | None = None
    default_mode: int | None = None


class ConfigMapProjection(Api, frozen=True):
    name: str = ""
    items: list[KeyToPath] | None = None
    optional: bool | None = None


class SecretProjection(Api, frozen=True):
    name: str = ""
    items: list[KeyToPath] | None = None
    optional: bool | None = None


class DownwardAPIProjection(Api, frozen=True):
    items: list[DownwardAPIVolumeFile] | None = None


class ServiceAccountTokenProjection(Api, frozen=True):
    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class LabelSelectorRequirement(Api, frozen=True):
    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(Api, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class ClusterTrustBundleProjection(Api, frozen=True):
    path: str
    name: str | None = None
    signer_name: str | None = None
    label_selector: LabelSelector | None = None
    optional: bool | None = None


class PodCertificateProjection(Api, frozen=True):
    signer_name: str = ""
    key_type: str = ""


class VolumeProjection(Api, frozen=True):
    config_map: ConfigMapProjection | None = None
    secret: SecretProjection | None = None
    downward_api: DownwardAPIProjection | None = msgspec.field(name="downwardAPI", default=None)
    service_account_token: ServiceAccountTokenProjection | None = None
    cluster_trust_bundle: ClusterTrustBundleProjection | None = None
    pod_certificate: PodCertificateProjection | None = None


class ProjectedVolumeSource(Api, frozen=True):
    sources: list[VolumeProjection] | None = None
    default_mode: int | None = None


class EmptyDirVolumeSource(Api, frozen=True):
    medium: str = ""
    size_limit: str | int | float | None = None


class Volume(Api, frozen=True):
    """A volume of a Pod; one of the sources is set. Sources of other plugins leave all of them None."""

    name: str
    config_map: ConfigMapVolumeSource | None = None
    secret: SecretVolumeSource | None = None
    projected: ProjectedVolumeSource | None = None
    downward_api: DownwardAPIVolumeSource | None = msgspec.field(name="downwardAPI", default=None)
    empty_dir: EmptyDirVolumeSource | None = None


class VolumeMount(Api, frozen=True):
    name: str
    mount_path: str = ""
    read_only: bool | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class ResourceRequirements(Api, frozen=True):
    limits: dict[str, str | int | float] | None = None
    requests: dict[str, str | int | float] | None = None


class SecurityContext(Api, frozen=True):
    run_as_user: int | None = None


class PodSecurityContext(Api, frozen=True):
    run_as_user: int | None = None
    fs_group: int | None = None
    supplemental_groups: list[int] | None = None


class Container(Api, frozen=True):
    """A container of any kind; an ephemeral container has the same fields that matter here."""

    name: str
    volume_mounts: list[VolumeMount] | None = None
    volume_devices: list[VolumeMount] | None = None
    resources: ResourceRequirements | None = None
    security_context: SecurityContext | None = None
    restart_policy: str = ""


class PodSpec(Api, frozen=True):
    node_name: str = ""
    service_account_name: str = ""
    volumes: list[Volume] | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    ephemeral_containers: list[Container] | None = None
    security_context: PodSecurityContext | None = None
    resources: ResourceRequirements | None = None
    overhead: dict[str, str | int | float] | None = None


class PodStatus(Api, frozen=True):
    phase: str = ""


class Pod(Api, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ref(self) -> PodRef:
        return PodRef(self.metadata.namespace, self.metadata.name, self.metadata.uid)

    @property
    def all_containers(self) -> tuple[Container, ...]:
        """Containers of all kinds, init and ephemeral included (KUBELET.md 1.6)."""
        spec = self.spec
        return (*(spec.init_containers or ()), *(spec.containers or ()), *(spec.ephemeral_containers or ()))

    @property
    def used_volumes(self) -> tuple[Volume, ...]:
        """The volumes that some container mounts; others are never set up (KUBELET.md 1.6)."""
        used = {
            mount.name
            for container in self.all_containers
            for mount in (*(container.volume_mounts or ()), *(container.volume_devices or ()))
        }
        return tuple(volume for volume in self.spec.volumes or () if volume.name in used)

    @property
    def terminal(self) -> bool:
        return self.status.phase in TERMINAL_PHASES

    @property
    def terminating(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def mirror(self) -> bool:
        """Mirror Pods stand for static Pods, whose volumes the API server does not feed."""
        return "kubernetes.io/config.mirror" in (self.metadata.annotations or {})
