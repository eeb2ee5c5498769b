"""downwardAPI (KUBELET.md 7; golden cases 51-58)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol.agent.plugins.plugin import Objects
from fusevol.model.errors import ObjectNotKnown, VolumeError
from fusevol.model.objects import node_ref
from tests.unit.plugins.builders import NODE, content, known, objects, plan_tree, pod, references, shown

METADATA = {
    "labels": {"app": "web", "B": "2", "a.b/c": 'quoted "x"'},
    "annotations": {"one": "a\nb", "Two.Example/X": "grüße 😀 \x07"},
}


def field(path: str) -> dict[str, Any]:
    return {"path": "f", "fieldRef": {"fieldPath": path}}


def resource(name: str, divisor: str | None = None, container: str = "c") -> dict[str, Any]:
    selector = {"resource": name, "containerName": container} | ({"divisor": divisor} if divisor else {})
    return {"path": "f", "resourceFieldRef": selector}


def volume(*items: dict[str, Any], mode: int = 0o644) -> dict[str, Any]:
    return {"downwardAPI": {"items": list(items), "defaultMode": mode}}


def text(item: dict[str, Any], **spec: Any) -> str:
    return content(plan_tree(pod(volume(item), **spec), objects()).files[0])


def failure(item: dict[str, Any], **spec: Any) -> str:
    with pytest.raises(VolumeError) as caught:
        text(item, **spec)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "uid-1"),
        ("metadata.labels", 'B="2"\na.b/c="quoted \\"x\\""\napp="web"'),
        ("metadata.annotations", 'Two.Example/X="grüße 😀 \\a"\none="a\\nb"'),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['a.b/c']", 'quoted "x"'),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['Two.Example/X']", "grüße 😀 \x07"),
        ("metadata.annotations['none']", ""),
    ],
)
def test_fields(path: str, shown: str) -> None:
    assert text(field(path), metadata=METADATA) == shown


def test_no_labels_are_an_empty_file() -> None:
    assert text(field("metadata.labels")) == ""
    assert text(field("metadata.annotations['x']")) == ""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("spec.nodeName", "unsupported fieldPath: spec.nodeName"),
        ("status.podIP", "unsupported fieldPath: status.podIP"),
        ('metadata.labels["a"]', 'unsupported fieldPath: metadata.labels["a"]'),
        ("['a']", "unsupported fieldPath: ['a']"),
        ("metadata.name['a']", 'fieldPath "metadata.name" does not support subscript'),
        (
            "metadata.labels['-x']",
            "invalid key subscript in metadata.labels['-x']: name part must consist of alphanumeric characters, "
            "'-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or "
            "'123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ),
        (
            "metadata.labels['Up/x']",
            "invalid key subscript in metadata.labels['Up/x']: prefix part a lowercase RFC 1123 "
            "subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an "
            "alphanumeric character (e.g. 'example.com', regex used for validation is "
            r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
    ],
)
def test_unsupported_fields(path: str, message: str) -> None:
    assert failure(field(path)) == message


def container(limits: dict[str, str] | None = None, requests: dict[str, str] | None = None) -> dict[str, Any]:
    resources = {"limits": limits or {}, "requests": requests or {}}
    return {"containers": [{"name": "c", "resources": resources}]}


SET = container(
    {"cpu": "1250m", "memory": "100000001", "ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi"},
    {"cpu": "250m", "memory": "64Mi"},
)


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (resource("limits.cpu"), "2"),
        (resource("limits.cpu", "1"), "2"),
        (resource("limits.cpu", "0"), "2"),
        (resource("limits.cpu", "1m"), "1250"),
        (resource("requests.cpu", "1m"), "250"),
        (resource("requests.cpu"), "1"),
        (resource("limits.memory"), "100000001"),
        (resource("limits.memory", "1Ki"), "97657"),
        (resource("limits.memory", "1Mi"), "96"),
        (resource("limits.memory", "1m"), "100000001"),
        (resource("requests.memory", "1Mi"), "64"),
        (resource("limits.ephemeral-storage", "1Mi"), "1024"),
        (resource("requests.ephemeral-storage"), "0"),
        (resource("limits.hugepages-2Mi", "1Mi"), "4"),
        (resource("requests.hugepages-2Mi"), "0"),
    ],
)
def test_resources(item: dict[str, Any], shown: str) -> None:
    assert text(item, **SET) == shown


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (resource("limits.cpu"), "2"),
        (resource("limits.cpu", "1m"), "2000"),
        (resource("requests.cpu"), "0"),
        (resource("limits.memory"), "25171644416"),
        (resource("limits.memory", "1G"), "26"),
        (resource("limits.memory", "1Gi"), "24"),
        (resource("limits.memory", "1M"), "25172"),
        (resource("limits.ephemeral-storage", "1Gi"), "227"),
        (resource("limits.ephemeral-storage", "1k"), "243497857"),
        (resource("requests.memory"), "0"),
        (resource("limits.hugepages-1Gi"), "0"),
    ],
)
@pytest.mark.parametrize("limits", [{}, {"cpu": "0", "memory": "0", "ephemeral-storage": "0"}])
def test_unset_and_zero_limits_are_the_nodes(item: dict[str, Any], shown: str, limits: dict[str, str]) -> None:
    assert text(item, **container(limits)) == shown


def test_init_containers_have_resources_too() -> None:
    init = {"name": "i", "resources": {"limits": {"memory": "5"}}}
    assert text(resource("limits.memory", container="i"), initContainers=[init]) == "5"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (resource("limits.cpu", container="nosuch"), "container nosuch not found"),
        (resource("limits.foo"), "unsupported container resource : limits.foo"),
        (resource("wishes.cpu"), "unsupported container resource : wishes.cpu"),
        (
            resource("limits.cpu", "1x"),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ],
)
def test_resources_that_are_not_there(item: dict[str, Any], message: str) -> None:
    assert failure(item) == message


def test_all_errors_are_told() -> None:
    items = [field("spec.x"), field("metadata.name"), resource("limits.cpu", container="d"), field("spec.x")]
    with pytest.raises(VolumeError) as caught:
        plan_tree(pod(volume(*items)), objects())
    assert str(caught.value) == "[unsupported fieldPath: spec.x, container d not found]"


def test_modes_and_clean_paths() -> None:
    items = [
        {"path": "d//name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o400},
        {"path": "./uid", "fieldRef": {"fieldPath": "metadata.uid"}},
    ]
    assert shown(plan_tree(pod(volume(*items, mode=0o444)), objects())) == {
        "d/name": ("p", 0o400),
        "uid": ("uid-1", 0o444),
    }


def test_no_items_are_an_empty_volume() -> None:
    assert plan_tree(pod(volume()), objects()).files == ()


def test_no_default_mode() -> None:
    with pytest.raises(VolumeError, match=r"^no defaultMode used, not even the default value for it$"):
        plan_tree(pod({"downwardAPI": {}}), objects())


def test_only_resources_ask_for_the_node() -> None:
    assert references(pod(volume(field("metadata.name")))) == frozenset()
    assert references(pod(volume(resource("limits.cpu")))) == {node_ref(NODE)}


def test_without_the_node() -> None:
    node = node_ref(NODE)
    subject = pod(volume(resource("limits.cpu")))
    with pytest.raises(VolumeError, match=r'^error retrieving node: node "node1" not found$'):
        plan_tree(subject, objects(absent=(node,)))
    with pytest.raises(VolumeError, match=r"^error retrieving node: forbidden$"):
        plan_tree(subject, objects(failed={node: "forbidden"}))
    with pytest.raises(ObjectNotKnown):
        plan_tree(subject, Objects({}))
    assert plan_tree(subject, objects(known(node, cpu="7"))).files[0].content.data == b"7"  # type: ignore[union-attr]
