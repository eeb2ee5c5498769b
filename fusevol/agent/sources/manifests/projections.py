"""The sources of projected and downwardAPI volumes, validated like the API server does (KUBELET.md 3.7, 6.3, 7.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusevol.agent.plugins import names, quantity, resources
from fusevol.agent.sources.manifests.documents import Path
from fusevol.agent.sources.manifests.fields import Errors, check_mode, check_path
from fusevol.model.pod import (
    ClusterTrustBundleProjection,
    DownwardAPIVolumeFile,
    KeyToPath,
    ObjectFieldSelector,
    ProjectedVolumeSource,
    ResourceFieldSelector,
    ServiceAccountTokenProjection,
    VolumeProjection,
)

FIELDS = frozenset({"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"})
RESOURCES = frozenset(
    f"{where}.{name}" for where in ("limits", "requests") for name in ("cpu", "memory", "ephemeral-storage")
)
CPU_DIVISORS = ("1m", "1")
BYTE_DIVISORS = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
DIVIDED = {
    "cpu": ("cpu", CPU_DIVISORS),
    "memory": ("memory", BYTE_DIVISORS),
    "ephemeral-storage": ("local ephemeral storage", BYTE_DIVISORS),
}

MIN_EXPIRATION = 600
MAX_EXPIRATION = 1 << 32
"""Seconds."""


def check_items(errors: Errors, path: Path, items: Iterable[KeyToPath] | None) -> None:
    for index, item in enumerate(items or ()):
        where = (*path, index)
        if not item.key:
            errors.required((*where, "key"))
        check_path(errors, (*where, "path"), item.path)
        check_mode(errors, (*where, "mode"), item.mode)


def check_downward_file(errors: Errors, path: Path, item: DownwardAPIVolumeFile) -> None:
    check_path(errors, (*path, "path"), item.path)
    check_mode(errors, (*path, "mode"), item.mode)
    if item.field_ref and item.resource_field_ref:
        errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
    if item.field_ref:
        _check_field(errors, (*path, "fieldRef"), item.field_ref)
    elif item.resource_field_ref:
        _check_resource(errors, (*path, "resourceFieldRef"), item.resource_field_ref)
    else:
        errors.required(path, "one of fieldRef and resourceFieldRef is required")


def check_projected(errors: Errors, path: Path, projected: ProjectedVolumeSource) -> None:
    check_mode(errors, (*path, "defaultMode"), projected.default_mode)
    taken: set[str] = set()
    for index, source in enumerate(projected.sources or ()):
        where: Path = (*path, "sources", index)
        _check_projection(errors, where, source)
        for at, explicit in _explicit_paths(where, source):
            if explicit in taken:
                errors.invalid(at, explicit, "conflicting duplicate paths")
            taken.add(explicit)


def _check_projection(errors: Errors, path: Path, source: VolumeProjection) -> None:
    kinds = (
        source.secret,
        source.config_map,
        source.downward_api,
        source.service_account_token,
        source.cluster_trust_bundle,
        source.pod_certificate,
    )
    if sum(kind is not None for kind in kinds) > 1:
        errors.forbidden(path, "may not specify more than 1 volume type per source")
    for field, projection in (("secret", source.secret), ("configMap", source.config_map)):
        if projection:
            if not projection.name:
                errors.required((*path, field, "name"))
            check_items(errors, (*path, field, "items"), projection.items)
    if source.downward_api:
        for index, item in enumerate(source.downward_api.items or ()):
            check_downward_file(errors, (*path, "downwardAPI", "items", index), item)
    if source.service_account_token:
        _check_token(errors, (*path, "serviceAccountToken"), source.service_account_token)
    if source.cluster_trust_bundle:
        _check_bundle(errors, (*path, "clusterTrustBundle"), source.cluster_trust_bundle)


def _explicit_paths(path: Path, source: VolumeProjection) -> Iterable[tuple[Path, str]]:
    """Paths that the author wrote; keys of whole objects and tokens may collide (KUBELET.md 6.3)."""
    written: list[tuple[str, Sequence[KeyToPath | DownwardAPIVolumeFile] | None]] = [
        ("secret", source.secret.items if source.secret else None),
        ("configMap", source.config_map.items if source.config_map else None),
        ("downwardAPI", source.downward_api.items if source.downward_api else None),
    ]
    for field, items in written:
        for index, item in enumerate(items or ()):
            yield (*path, field, "items", index, "path"), item.path
    if source.cluster_trust_bundle:
        yield (*path, "clusterTrustBundle", "path"), source.cluster_trust_bundle.path


def _check_field(errors: Errors, path: Path, selector: ObjectFieldSelector) -> None:
    where = (*path, "fieldPath")
    text = selector.field_path
    base, found, key = text.removesuffix("']").partition("['")
    if not text:
        errors.required(where)
    elif text.endswith("']") and found and base:
        if base == "metadata.annotations":
            errors.each_invalid(where, key, names.qualified_name_errors(key.lower()))
        elif base == "metadata.labels":
            errors.each_invalid(where, key, names.qualified_name_errors(key))
        else:
            errors.invalid(where, base, "does not support subscript")
    elif text not in FIELDS:
        errors.unsupported(where, text, FIELDS)


def _check_resource(errors: Errors, path: Path, selector: ResourceFieldSelector) -> None:
    _, _, resource = selector.resource.partition(".")
    huge = selector.resource.startswith(("limits.", "requests.")) and resource.startswith(resources.HUGE_PAGES)
    if not selector.container_name:
        errors.required((*path, "containerName"))
    elif not selector.resource:
        errors.required((*path, "resource"))
    elif selector.resource not in RESOURCES and not huge:
        errors.unsupported((*path, "resource"), selector.resource, RESOURCES)
    where = (*path, "divisor")
    try:
        divisor = quantity.ZERO if selector.divisor is None else quantity.parse(selector.divisor)
    except quantity.InvalidQuantity as error:
        errors.invalid(where, str(selector.divisor), str(error))
        return
    what, allowed = ("hugepages", BYTE_DIVISORS) if huge else DIVIDED.get(resource, ("", ()))
    if not divisor.is_zero() and allowed and divisor not in map(quantity.parse, allowed):
        listed = "1m and 1" if resource == "cpu" else ", ".join(allowed)
        errors.invalid(
            where, selector.resource, f"only divisor's values {listed} are supported with the {what} resource"
        )


def _check_token(errors: Errors, path: Path, source: ServiceAccountTokenProjection) -> None:
    where = (*path, "expirationSeconds")
    if source.expiration_seconds < MIN_EXPIRATION:
        errors.invalid(where, source.expiration_seconds, "may not specify a duration less than 10 minutes")
    if source.expiration_seconds > MAX_EXPIRATION:
        errors.invalid(where, source.expiration_seconds, "may not specify a duration larger than 2^32 seconds")
    check_path(errors, (*path, "path"), source.path)


def _check_bundle(errors: Errors, path: Path, source: ClusterTrustBundleProjection) -> None:
    if source.name is not None and source.signer_name is not None:
        errors.add(path, "only one of name and signerName may be used")
    elif source.name is None and source.signer_name is None:
        errors.required(path, "either name or signerName must be specified")
    check_path(errors, (*path, "path"), source.path)
