"""kubernetes.io/projected: several sources in one volume (KUBELET.md 6, 8)."""

from __future__ import annotations

from fusevol.agent.plugins import payload
from fusevol.agent.plugins.configmap import config_map_payload, config_map_ref
from fusevol.agent.plugins.downwardapi import downward_payload, node_references
from fusevol.agent.plugins.messages import NO_DEFAULT_MODE, aggregate
from fusevol.agent.plugins.ownership import TMPFS_ROOT, fs_user, token_mode
from fusevol.agent.plugins.plugin import Objects
from fusevol.agent.plugins.secret import secret_payload, secret_ref
from fusevol.model.errors import VolumeError
from fusevol.model.objects import (
    CLUSTER_TRUST_BUNDLE,
    TOKEN_KEY,
    TRUST_BUNDLE_KEY,
    TokenSpec,
    TrustBundleSpec,
    signer_bundles_ref,
    token_ref,
)
from fusevol.model.pod import (
    ClusterTrustBundleProjection,
    Pod,
    ProjectedVolumeSource,
    ServiceAccountTokenProjection,
    Volume,
    VolumeProjection,
)
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import Literal, Tree


class ProjectedPlugin:
    name = "kubernetes.io/projected"

    def can_support(self, volume: Volume) -> bool:
        return volume.projected is not None

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        sources = volume.projected.sources if volume.projected else None
        return frozenset().union(*(_references(pod, source, node) for source in sources or ()))

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> Tree:
        """Later sources replace earlier ones' files. The texts of all errors are joined, and any of them fails the
        whole volume (KUBELET.md 6.2)."""
        projected = volume.projected or ProjectedVolumeSource()
        if projected.default_mode is None:
            raise VolumeError(NO_DEFAULT_MODE)
        files: payload.Payload = {}
        errors: list[str] = []
        for source in projected.sources or ():
            try:
                files.update(_files(pod, source, projected.default_mode, objects, node, errors))
            except VolumeError as error:
                errors.append(str(error))
        if errors:
            raise VolumeError(aggregate(errors))
        return payload.tree(pod, volume, self.name, files, TMPFS_ROOT)


def _references(pod: Pod, source: VolumeProjection, node: str) -> frozenset[ObjectRef]:
    if source.secret:
        return frozenset({secret_ref(pod, source.secret)})
    if source.config_map:
        return frozenset({config_map_ref(pod, source.config_map)})
    if source.downward_api:
        return node_references(source.downward_api.items, node)
    if source.service_account_token:
        return frozenset({_token_ref(pod, source.service_account_token)})
    if source.cluster_trust_bundle and (bundle := _bundle_ref(source.cluster_trust_bundle)):
        return frozenset({bundle})
    return frozenset()


def _files(
    pod: Pod, source: VolumeProjection, default_mode: int, objects: Objects, node: str, errors: list[str]
) -> payload.Payload:
    """One source's files, asked in kubelet's order (collectData). Raises VolumeError; several errors go to `errors`."""
    if source.secret:
        return secret_payload(pod, source.secret, default_mode, objects)
    if source.config_map:
        return config_map_payload(pod, source.config_map, default_mode, objects)
    if source.downward_api:
        files, found = downward_payload(pod, source.downward_api.items, default_mode, objects, node)
        errors += found
        return files
    if source.service_account_token:
        return _token(pod, source.service_account_token, default_mode, objects)
    if source.cluster_trust_bundle:
        return _bundle(pod, source.cluster_trust_bundle, default_mode, objects)
    if source.pod_certificate:
        raise VolumeError("podCertificate: Pod certificates are not served by fusevol")
    return {}


def _token_ref(pod: Pod, source: ServiceAccountTokenProjection) -> ObjectRef:
    spec = TokenSpec(
        service_account=pod.spec.service_account_name,
        audience=source.audience,
        expiration_seconds=source.expiration_seconds,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
    )
    return token_ref(pod.metadata.namespace, spec)


def _token(pod: Pod, source: ServiceAccountTokenProjection, default_mode: int, objects: Objects) -> payload.Payload:
    missing = f'failed to fetch token: serviceaccounts "{pod.spec.service_account_name}" not found'
    found = payload.fetched(objects, _token_ref(pod, source), False, missing)
    if found is None or TOKEN_KEY not in found.keys:
        raise VolumeError(missing)
    mode = token_mode(pod, default_mode)
    return {source.path: payload.Projection(payload.key_content(found, TOKEN_KEY), mode, fs_user(pod) or 0)}


def _bundle_ref(source: ClusterTrustBundleProjection) -> ObjectRef | None:
    if source.name is not None:
        return ObjectRef(CLUSTER_TRUST_BUNDLE, "", source.name)
    if source.signer_name is not None:
        return signer_bundles_ref(TrustBundleSpec(source.signer_name, source.label_selector))
    return None


def _bundle(pod: Pod, source: ClusterTrustBundleProjection, default_mode: int, objects: Objects) -> payload.Payload:
    """An optional bundle that does not exist is an empty file, not a missing one (KUBELET.md 8.2)."""
    ref = _bundle_ref(source)
    if ref is None:
        raise VolumeError("ClusterTrustBundle projection requires either name or signerName to be set")
    missing = "combination of signerName and labelSelector matched zero ClusterTrustBundles"
    if source.name is not None:
        missing = f'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "{source.name}" not found'
    found = payload.fetched(objects, ref, bool(source.optional), missing)
    content = payload.key_content(found, TRUST_BUNDLE_KEY) if found else Literal(b"")
    return {source.path: payload.Projection(content, token_mode(pod, default_mode), fs_user(pod) or 0)}
