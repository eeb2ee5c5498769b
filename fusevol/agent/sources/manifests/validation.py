"""What the API server would refuse of a Pod, as far as volumes depend on it (apis/core/validation/validation.go)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from fusevol.agent.plugins import names, quantity
from fusevol.agent.sources.manifests.documents import Path
from fusevol.agent.sources.manifests.fields import Errors, check_descending, check_metadata, check_mode
from fusevol.agent.sources.manifests.projections import check_downward_file, check_items, check_projected
from fusevol.agent.sources.manifests.unknown import VOLUME_TYPES, check_unknown
from fusevol.model.pod import Container, Pod, Volume

MAX_ID = 2**31 - 1
"""Of users and groups."""

_WHERE = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$")
_PART = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>[0-9]+)\]")


def decode_pod(errors: Errors, raw: dict[str, Any]) -> Pod | None:
    """The Pod, or None if something has a wrong type. What is wrong goes to `errors`."""
    try:
        pod = msgspec.convert(raw, Pod)
    except msgspec.ValidationError as error:
        message, path = _type_error(error)
        errors.add(path, message)
        return None
    check_metadata(errors, raw, namespaced=True)
    check_unknown(errors, (), raw)
    _check_pod_security(errors, pod)
    _check_volumes(errors, raw["spec"].get("volumes") or [], pod.spec.volumes or [])
    _check_containers(errors, pod)
    return pod


def _type_error(error: msgspec.ValidationError) -> tuple[str, Path]:
    """msgspec tells types and field names, never a value."""
    text = str(error)
    where = _WHERE.search(text)
    parts = _PART.finditer(where["path"]) if where else ()
    path = tuple(int(part["index"]) if part["index"] else part["name"] for part in parts)
    return text[: where.start()] if where else text, path


def _check_volumes(errors: Errors, raw: list[dict[str, Any]], volumes: list[Volume]) -> None:
    seen: set[str] = set()
    for index, (fields, volume) in enumerate(zip(raw, volumes, strict=True)):
        path: Path = ("spec", "volumes", index)
        types = [field for field in fields if field in VOLUME_TYPES]
        for field in types[1:]:
            errors.forbidden((*path, field), "may not specify more than 1 volume type")
        if not volume.name:
            errors.required((*path, "name"))
        else:
            errors.each_invalid((*path, "name"), volume.name, names.label_errors(volume.name))
        if volume.name in seen:
            errors.duplicate((*path, "name"), volume.name)
        seen.add(volume.name)
        _check_source(errors, path, volume)


def _check_source(errors: Errors, path: Path, volume: Volume) -> None:
    if volume.config_map:
        _check_object_source(errors, (*path, "configMap"), "name", volume.config_map.name, volume.config_map)
    if volume.secret:
        _check_object_source(errors, (*path, "secret"), "secretName", volume.secret.secret_name, volume.secret)
    if volume.downward_api:
        path = (*path, "downwardAPI")
        check_mode(errors, (*path, "defaultMode"), volume.downward_api.default_mode)
        for index, item in enumerate(volume.downward_api.items or ()):
            check_downward_file(errors, (*path, "items", index), item)
    if volume.projected:
        check_projected(errors, (*path, "projected"), volume.projected)
    if volume.empty_dir and volume.empty_dir.size_limit is not None:
        where = (*path, "emptyDir", "sizeLimit")
        limit = _quantity(errors, where, volume.empty_dir.size_limit)
        if limit and limit < quantity.ZERO:
            errors.forbidden(where, "SizeLimit field must be a valid resource quantity")


def _check_object_source(errors: Errors, path: Path, field: str, name: str, source: Any) -> None:
    if not name:
        errors.required((*path, field))
    check_mode(errors, (*path, "defaultMode"), source.default_mode)
    check_items(errors, (*path, "items"), source.items)


def _check_containers(errors: Errors, pod: Pod) -> None:
    spec = pod.spec
    volumes = {volume.name for volume in spec.volumes or ()}
    seen: set[str] = set()
    if not spec.containers:
        errors.required(("spec", "containers"))
    for kind, containers in (
        ("initContainers", spec.init_containers),
        ("containers", spec.containers),
        ("ephemeralContainers", spec.ephemeral_containers),
    ):
        for index, container in enumerate(containers or ()):
            path: Path = ("spec", kind, index)
            if not container.name:
                errors.required((*path, "name"))
            else:
                errors.each_invalid((*path, "name"), container.name, names.label_errors(container.name))
            if container.name in seen:
                errors.duplicate((*path, "name"), container.name)
            seen.add(container.name)
            _check_mounts(errors, path, container, volumes)
            _check_resources(errors, path, container)
            if container.security_context:
                _check_id(errors, (*path, "securityContext", "runAsUser"), container.security_context.run_as_user)
    if spec.resources:
        _check_amounts(errors, ("spec", "resources", "limits"), (spec.resources.limits or {}).items())
        _check_amounts(errors, ("spec", "resources", "requests"), (spec.resources.requests or {}).items())


def _check_pod_security(errors: Errors, pod: Pod) -> None:
    context = pod.spec.security_context
    if context is None:
        return
    path: Path = ("spec", "securityContext")
    _check_id(errors, (*path, "fsGroup"), context.fs_group)
    _check_id(errors, (*path, "runAsUser"), context.run_as_user)
    for index, group in enumerate(context.supplemental_groups or ()):
        _check_id(errors, (*path, "supplementalGroups", index), group)


def _check_id(errors: Errors, path: Path, number: int | None) -> None:
    if number is not None and not 0 <= number <= MAX_ID:
        errors.invalid(path, number, f"must be between 0 and {MAX_ID}, inclusive")


def _check_mounts(errors: Errors, path: Path, container: Container, volumes: set[str]) -> None:
    places: set[str] = set()
    for index, mount in enumerate(container.volume_mounts or ()):
        where = (*path, "volumeMounts", index)
        if not mount.name:
            errors.required((*where, "name"))
        if mount.name not in volumes:
            errors.add((*where, "name"), f'Not found: "{mount.name}"')
        if not mount.mount_path:
            errors.required((*where, "mountPath"))
        if mount.mount_path in places:
            errors.invalid((*where, "mountPath"), mount.mount_path, "must be unique")
        places.add(mount.mount_path)
        if mount.sub_path and mount.sub_path_expr:
            message = "subPathExpr and subPath are mutually exclusive"
            errors.invalid((*where, "subPathExpr"), mount.sub_path_expr, message)
        for field, value in (("subPath", mount.sub_path), ("subPathExpr", mount.sub_path_expr)):
            if value:
                check_descending(errors, (*where, field), value)


def _check_resources(errors: Errors, path: Path, container: Container) -> None:
    if container.resources:
        _check_amounts(errors, (*path, "resources", "limits"), (container.resources.limits or {}).items())
        _check_amounts(errors, (*path, "resources", "requests"), (container.resources.requests or {}).items())


def _check_amounts(errors: Errors, path: Path, amounts: Iterable[tuple[str, str | int | float]]) -> None:
    for name, amount in amounts:
        parsed = _quantity(errors, (*path, name), amount)
        if parsed and parsed < quantity.ZERO:
            errors.invalid((*path, name), str(amount), "must be greater than or equal to 0")


def _quantity(errors: Errors, path: Path, text: str | int | float) -> quantity.Quantity | None:
    try:
        return quantity.parse(text)
    except quantity.InvalidQuantity as error:
        errors.invalid(path, str(text), str(error))
        return None
