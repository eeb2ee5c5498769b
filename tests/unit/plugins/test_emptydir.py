"""emptyDir and nested mount points (KUBELET.md 5, 14.8; golden cases 59-62, 89)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol.agent.plugins.mountpoints import nested_mountpoints
from fusevol.model.errors import VolumeError
from fusevol.model.objects import node_ref
from fusevol.model.tree import EmptyDir
from tests.unit.plugins.builders import CM1, NODE, known, objects, plan_directory, plan_tree, pod, references

ALLOCATABLE_MEMORY = 24581684 * 1024
MEMORY_128 = {"containers": [{"name": "c", "resources": {"limits": {"memory": "128Mi"}}}]}


def volume(**fields: Any) -> dict[str, Any]:
    return {"emptyDir": fields}


def test_default() -> None:
    assert plan_directory(pod(volume()), objects()) == EmptyDir()


@pytest.mark.parametrize(
    ("limit", "size"), [(None, None), ("0", None), ("1Mi", 1 << 20), ("1500m", 2), ("-1", None), (4096, 4096)]
)
def test_size_limit(limit: str | int | None, size: int | None) -> None:
    fields = {} if limit is None else {"sizeLimit": limit}
    assert plan_directory(pod(volume(**fields)), objects()).size_limit == size


def container(limit: str | None, **fields: Any) -> dict[str, Any]:
    resources = {"resources": {"limits": {"memory": limit}}} if limit else {}
    return {"name": "c", **resources, **fields}


@pytest.mark.parametrize(
    ("limit", "spec", "size"),
    [
        (None, {}, ALLOCATABLE_MEMORY),
        (None, MEMORY_128, 128 << 20),
        ("16Mi", MEMORY_128, 16 << 20),
        ("1Gi", MEMORY_128, 128 << 20),
        ("0", MEMORY_128, 128 << 20),
        ("1Ti", {}, ALLOCATABLE_MEMORY),
        (None, {"containers": [container("1Gi"), container("2Gi")]}, 3 << 30),
        (None, {"containers": [container("1Gi"), container(None)]}, ALLOCATABLE_MEMORY),
        (None, {"containers": [container("1Gi")], "initContainers": [container("3Gi")]}, 3 << 30),
        (None, {"containers": [container("1Gi")], "initContainers": [container(None)]}, ALLOCATABLE_MEMORY),
        (
            None,
            {"containers": [container("1Gi")], "initContainers": [container("2Gi", restartPolicy="Always")]},
            3 << 30,
        ),
        (
            None,
            {
                "containers": [container("1Gi")],
                "initContainers": [container("1Gi", restartPolicy="Always"), container("4Gi")],
            },
            5 << 30,
        ),
        (None, {"containers": [container(None)], "resources": {"limits": {"memory": "2Gi"}}}, 2 << 30),
        (None, {**MEMORY_128, "overhead": {"memory": "32Mi"}}, 160 << 20),
        (None, {"containers": [container("999Ti")]}, ALLOCATABLE_MEMORY),
    ],
)
def test_memory_is_the_least_of_three(limit: str | None, spec: dict[str, Any], size: int) -> None:
    fields = {"medium": "Memory"} | ({} if limit is None else {"sizeLimit": limit})
    directory = plan_directory(pod(volume(**fields), **spec), objects())
    assert (directory.medium, directory.size_limit) == ("Memory", size)


def test_only_memory_asks_for_the_node() -> None:
    assert references(pod(volume())) == frozenset()
    assert references(pod(volume(medium="Memory"))) == {node_ref(NODE)}


def huge(*sizes: str) -> dict[str, Any]:
    requests = {f"hugepages-{size}": "4Mi" for size in sizes}
    return {"containers": [{"name": "c", "resources": {"requests": requests}}]}


@pytest.mark.parametrize(
    ("medium", "spec", "message"),
    [
        ("Bogus", {}, 'unknown storage medium "Bogus"'),
        ("tape\t", {}, r'unknown storage medium "tape\t"'),
        (
            "HugePages",
            {},
            "medium HugePages: hugePages storage requested, but there is no resource request for huge pages",
        ),
        (
            "HugePages",
            huge("2Mi", "1Gi"),
            "medium: HugePages can't be used if container requests multiple huge page sizes",
        ),
        ("HugePages", huge("2Mi", "2048Ki"), "medium HugePages: huge pages are not served by fusevol"),
        ("HugePages-2Mi", huge("2Mi"), "medium HugePages-2Mi: huge pages are not served by fusevol"),
        (
            "HugePages-1Gi",
            huge("2Mi"),
            "medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages",
        ),
        (
            "HugePages-2x",
            huge("2Mi"),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ],
)
def test_media_that_are_not_served(medium: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(VolumeError) as caught:
        plan_directory(pod(volume(medium=medium), **spec), objects())
    assert str(caught.value) == message


def mounts(*paths: tuple[str, str]) -> dict[str, Any]:
    return {"name": "c", "volumeMounts": [{"name": name, "mountPath": path} for name, path in paths]}


@pytest.mark.parametrize(
    ("containers", "nested"),
    [
        ([mounts(("v", "/e"))], ()),
        ([mounts(("v", "/e"), ("a", "/e/nested"), ("b", "/e/nested2/deeper"))], ("nested", "nested2/deeper")),
        ([mounts(("v", "/e"), ("a", "/e/n"), ("b", "/e/n/deeper"))], ("n",)),
        ([mounts(("v", "/e"), ("a", "/e/n-vol"), ("b", "/e/n/double"), ("c", "/e/n"))], ("n", "n-vol")),
        ([mounts(("v", "/e/"), ("a", "/e//n/"))], ("n",)),
        ([mounts(("v", "/e"), ("a", "/elsewhere"))], ()),
        ([mounts(("v", "/e"), ("v", "/e/self"))], ("self",)),
        ([mounts(("v", "/e"), ("a", "/e/x")), mounts(("v", "/f"), ("a", "/f/y"))], ("x", "y")),
        ([mounts(("v", "rel"), ("a", "rel/x"))], ("x",)),
        ([mounts(("a", "/e/x"))], ()),
    ],
)
def test_nested_mountpoints(containers: list[dict[str, Any]], nested: tuple[str, ...]) -> None:
    subject = pod(volume(), containers=containers)
    assert nested_mountpoints(subject, "v") == nested
    assert plan_directory(subject, objects()).mountpoints == nested
    projected = pod({"configMap": {"name": "cm1", "defaultMode": 0o644}}, containers=containers)
    assert plan_tree(projected, objects(known(CM1, "a"))).mountpoints == nested


def test_a_mount_path_that_climbs_out() -> None:
    with pytest.raises(VolumeError, match=r"^invalid container mount point \.\./e$"):
        plan_directory(pod(volume(), containers=[mounts(("v", "x/../../e"))]), objects())
