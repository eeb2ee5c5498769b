"""JSON's null in API objects: what Go writes for an unset slice, map or pointer, and reads as an unset field."""

from __future__ import annotations

from typing import Any

_MAPS_OF_STRINGS = frozenset({"labels", "annotations", "matchLabels"})


def without_nulls(value: Any, field: str = "") -> Any:
    """`value` without fields that are null; as a value of a map of strings null is the empty string."""
    if isinstance(value, dict):
        if field in _MAPS_OF_STRINGS:
            return {key: "" if item is None else item for key, item in value.items()}
        return {key: without_nulls(item, key) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
