"""Whatever stands in a file: it is taken, or refused as Invalid; nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusevol.agent.sources.manifests.contents import Invalid, decode
from fusevol.agent.sources.source import SourceProblem
from tests.unit.manifests.recording import config_map, pod, secret

SCALARS = st.sampled_from(
    [
        *("0x_", "0o_", "0b_", "-0x_", "0_", "1_", "~", ".inf", "-.inf", ".nan", "1e400", "1e300", "-1", "99999999999"),
        *("9" * 1000, "9" * 5000, "0x" + "f" * 5000, "1." + "1" * 5000, "1e9999999999", "1e900", "'1e900'"),
        *("[]", "{}", "[null]", "{a: null}", "yes", "2024-01-01", "<<", "*a", "&a b", "!!binary aGk=", "!x y", "'\\'"),
        *("..", "../x", "''", "\u2028", "\ufeff", "\x85", "\x00", "{<<: {a: 1}}", "? a", "- - -", "|", "ключ"),
    ]
)
TEXT = st.text(max_size=20) | SCALARS


def decoded(data: bytes, file: str = "a.yaml") -> None:
    problems: tuple[SourceProblem, ...] = ()
    try:
        contents = decode(file, data, "77", b"key")
    except Invalid as error:
        contents, problems = None, error.problems
    assert (contents is None) == bool(problems)
    assert all(problem.line and problem.file == file for problem in problems)


def full_pod() -> dict[str, Any]:
    """A Pod with something of everything that is validated."""
    manifest = pod(labels={"a": "b"}, annotations={"c": "d"})
    item = {"key": "k", "path": "p", "mode": 0o400}
    field = {"path": "f", "fieldRef": {"fieldPath": "metadata.labels['a']"}}
    resource = {"resource": "limits.memory", "containerName": "c", "divisor": "1Mi"}
    manifest["spec"] |= {
        "securityContext": {"fsGroup": 5, "runAsUser": 5, "supplementalGroups": [5]},
        "overhead": {"memory": "1Mi"},
        "volumes": [
            {"name": "v", "configMap": {"name": "c", "items": [item], "defaultMode": 420, "optional": True}},
            {"name": "w", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "x", "downwardAPI": {"items": [field, {"path": "r", "resourceFieldRef": resource}]}},
            {
                "name": "y",
                "projected": {
                    "sources": [
                        {"secret": {"name": "s", "items": [item]}},
                        {"serviceAccountToken": {"path": "t", "expirationSeconds": 600, "audience": "a"}},
                        {"clusterTrustBundle": {"path": "b", "signerName": "n", "labelSelector": {"matchLabels": {}}}},
                    ]
                },
            },
        ],
    }
    manifest["spec"]["containers"][0] |= {
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": 1}},
        "securityContext": {"runAsUser": 5},
    }
    return manifest


def node() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"allocatable": {"cpu": 3}}}


MANIFESTS = [full_pod(), config_map({"k": "1"}, binaryData={"b": "AAH/"}), secret({"k": "1"}, type="t"), node()]


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in parts(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    items = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {key: replaced(item, path[1:], by) if key == path[0] else item for key, item in items}
    return changed if isinstance(value, dict) else list(changed.values())


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_they_are_taken_as_they_are(manifest: dict[str, Any]) -> None:
    assert decode("a.yaml", json.dumps(manifest).encode(), "77", b"key")


@given(st.binary(max_size=200) | TEXT.map(lambda text: text.encode()), st.sampled_from(["a.yaml", "a.json"]))
@example(b"a: 0x_", "a.yaml")
@example(b"a: 0o_", "a.yaml")
@example(b"a: 0b_", "a.yaml")
@example(b"a: " + b"9" * 5000, "a.yaml")
@example(b"0x" + b"f" * 5000 + b": 1", "a.yaml")
def test_any_bytes(data: bytes, file: str) -> None:
    decoded(data, file)


@settings(max_examples=300)
@given(st.data())
def test_any_text_at_any_place(data: st.DataObject) -> None:
    """Unquoted, as an author may write it."""
    manifest = data.draw(st.sampled_from(MANIFESTS))
    path = data.draw(st.sampled_from(parts(manifest)))
    written = json.dumps(replaced(manifest, path, "@here@"), indent=1)
    decoded(written.replace('"@here@"', data.draw(TEXT)).encode())


@settings(max_examples=300)
@given(st.data())
def test_any_key_at_any_place(data: st.DataObject) -> None:
    manifest = data.draw(st.sampled_from(MANIFESTS))
    path = data.draw(st.sampled_from(parts(manifest)))
    written = json.dumps(replaced(manifest, path, {"@here@": "x"}), indent=1)
    decoded(written.replace('"@here@"', data.draw(TEXT)).encode())
