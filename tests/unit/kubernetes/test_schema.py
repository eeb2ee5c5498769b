"""Pods as Go may write them: null wherever a field need not be set."""

from __future__ import annotations

import types
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.sources.kubernetes import schema
from fusevol.model.pod import Pod

Path = tuple[str | int, ...]


def full(kind: Any) -> Any:
    """A value of the type with every field set, as JSON has it."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if (first := kinds[0]) is str:
        return "1"
    if first in (int, bool):
        return first(1)
    if get_args(first):
        *_, inner = get_args(first)
        return [full(inner)] if first.__origin__ is list else {"k": full(inner)}
    return {field.encode_name: full(field.type) for field in msgspec.structs.fields(first)}


def optional(kind: Any, path: Path = ()) -> list[Path]:
    """The paths of all fields that need not be set."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    first = kinds[0]
    if get_args(first):
        return optional(get_args(first)[-1], (*path, 0 if first.__origin__ is list else "k"))
    if not issubclass(first, msgspec.Struct):
        return []
    found: list[Path] = []
    for field in msgspec.structs.fields(first):
        if not field.required:
            found.append((*path, field.encode_name))
        found += optional(field.type, (*path, field.encode_name))
    return found


POD = full(Pod)
OPTIONAL = [path for path in optional(Pod) if path != ("metadata", "uid")]


def with_nulls(value: Any, paths: set[Path], at: Path = ()) -> Any:
    if at in paths:
        return None
    if isinstance(value, dict):
        return {key: with_nulls(item, paths, (*at, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nulls(item, paths, (*at, index)) for index, item in enumerate(value)]
    return value


def without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without(item) for key, item in value.items() if item is not None}
    return [without(item) for item in value] if isinstance(value, list) else value


def decoded(raw: Any) -> Pod | schema.Misunderstood:
    return schema.pod(msgspec.json.encode(raw))


def test_the_sample_has_everything() -> None:
    assert len(OPTIONAL) > 100
    assert decoded(POD) == msgspec.convert(POD, Pod)


@pytest.mark.parametrize("path", OPTIONAL, ids=lambda path: ".".join(map(str, path)))
def test_a_null_is_a_field_that_is_not_set(path: Path) -> None:
    raw = with_nulls(POD, {path})
    assert decoded(raw) == msgspec.convert(without(raw), Pod)


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_any_number_of_nulls(paths: set[Path]) -> None:
    raw = with_nulls(POD, paths)
    assert decoded(raw) == msgspec.convert(without(raw), Pod)


def test_a_null_in_a_map_of_strings_is_the_empty_string() -> None:
    found = decoded({"metadata": {"uid": "u", "labels": {"a": None, "limits": None}, "annotations": {"b": None}}})
    assert isinstance(found, Pod)
    assert (found.metadata.labels, found.metadata.annotations) == ({"a": "", "limits": ""}, {"b": ""})


@pytest.mark.parametrize(
    "item",
    [None, 5, [], {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"uid": None}}, {"metadata": {"uid": 5}}],
)
def test_an_item_that_is_nobody_hides_no_other(item: Any) -> None:
    raw = {"metadata": {"resourceVersion": "7"}, "items": [item, {"metadata": {"uid": "u"}}]}
    nobody, found = schema.pod_list(msgspec.json.encode(raw)).pods
    assert isinstance(nobody, schema.Misunderstood)
    assert nobody.metadata.uid == ""
    assert nobody.message
    assert isinstance(found, Pod)


def test_a_pod_that_is_not_understood_says_who_it_is_and_no_value() -> None:
    metadata = {"name": "web", "namespace": "ns", "uid": "u", "annotations": None}
    found = decoded({"metadata": metadata, "spec": {"volumes": "hunter2"}})
    assert isinstance(found, schema.Misunderstood)
    assert (found.metadata.namespace, found.metadata.name, found.metadata.uid) == ("ns", "web", "u")
    assert "$.spec.volumes" in found.message
    assert "hunter2" not in found.message
