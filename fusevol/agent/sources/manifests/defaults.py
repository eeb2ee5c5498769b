"""The API server's defaults of a Pod's fields (apis/core/v1/defaults.go), on the plain values of a manifest."""

from __future__ import annotations

from typing import Any

DEFAULT_NAMESPACE = "default"
DEFAULT_MODE = 0o644
DEFAULT_EXPIRATION = 3600

_WITH_MODE = ("configMap", "secret", "projected", "downwardAPI")


def default_pod(raw: dict[str, Any]) -> None:
    """Fills in place. What has the wrong type is left for the conversion to refuse."""
    spec = _mapping(raw.setdefault("spec", {}))
    if isinstance(spec, dict):
        spec.setdefault("serviceAccountName", spec.get("serviceAccount", "default"))
    for volume in _mappings(spec.get("volumes")):
        if volume.keys() <= {"name"}:
            volume["emptyDir"] = {}
        for kind in _WITH_MODE:
            if isinstance(source := volume.get(kind), dict):
                source.setdefault("defaultMode", DEFAULT_MODE)
        for source in _mappings(_mapping(volume.get("projected")).get("sources")):
            if isinstance(token := source.get("serviceAccountToken"), dict):
                token.setdefault("expirationSeconds", DEFAULT_EXPIRATION)
    for kind in ("containers", "initContainers"):
        for container in _mappings(spec.get(kind)):
            _default_requests(container)


def _default_requests(container: dict[str, Any]) -> None:
    """What has a limit and no request requests its limit."""
    resources = container.get("resources")
    if not isinstance(resources, dict) or not isinstance(limits := resources.get("limits"), dict):
        return
    requests = resources.setdefault("requests", {})
    if isinstance(requests, dict):
        for name, limit in limits.items():
            requests.setdefault(name, limit)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
