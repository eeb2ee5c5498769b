"""Items to files, and paths (KUBELET.md 3.4, 3.5, 9.1; golden cases 01, 02, 19-21, 47, 84, 94)."""

from __future__ import annotations

import posixpath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.plugins.payload import PathConflict, WriteFailed
from fusevol.model.errors import ObjectNotKnown, VolumeError
from fusevol.model.tree import ContentRef
from tests.unit.plugins.builders import CM1, S1, known, objects, plan_tree, pod, references, shown

KINDS = [
    (
        "configMap",
        {"name": "cm1"},
        CM1,
        "configmap references non-existent config key: zz",
        'configmap "cm1" not found',
    ),
    ("secret", {"secretName": "s1"}, S1, "references non-existent secret key: zz", 'secret "s1" not found'),
]


def volume(kind: str, source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {kind: {**source, "defaultMode": 0o644, **fields}}


def config_map(*paths: str) -> dict[str, Any]:
    return volume("configMap", {"name": "cm1"}, items=[{"key": "a", "path": path} for path in paths])


def failure(paths: tuple[str, ...]) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        plan_tree(pod(config_map(*paths)), objects(known(CM1, "a")))
    return caught.value


@pytest.mark.parametrize(("kind", "source", "ref", "no_key", "missing"), KINDS)
class TestConfigMapAndSecret:
    def test_every_key_is_a_file(self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str) -> None:
        tree = plan_tree(pod(volume(kind, source)), objects(known(ref, "b", "a")))
        assert shown(tree) == {"a": (f"{ref.name}/a", 0o644), "b": (f"{ref.name}/b", 0o644)}
        assert tree.files[0].content == ContentRef(ref, "5", "a", "digest of a")

    def test_an_empty_list_of_items_is_none(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        tree = plan_tree(pod(volume(kind, source, items=[])), objects(known(ref, "a")))
        assert list(shown(tree)) == ["a"]

    def test_items_choose_name_and_mode(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        items = [{"key": "a", "path": "x//deep/./a/"}, {"key": "b", "path": "b", "mode": 0o400}]
        tree = plan_tree(pod(volume(kind, source, items=items, defaultMode=0o440)), objects(known(ref, "a", "b", "c")))
        assert shown(tree) == {"b": (f"{ref.name}/b", 0o400), "x/deep/a": (f"{ref.name}/a", 0o440)}

    def test_the_later_of_two_items_of_one_path_wins(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        items = [{"key": "a", "path": "x"}, {"key": "b", "path": "x"}]
        tree = plan_tree(pod(volume(kind, source, items=items)), objects(known(ref, "a", "b")))
        assert shown(tree) == {"x": (f"{ref.name}/b", 0o644)}

    def test_a_missing_key_fails_the_volume(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        items = [{"key": "zz", "path": "x"}]
        with pytest.raises(VolumeError, match=rf"^{no_key}$"):
            plan_tree(pod(volume(kind, source, items=items)), objects(known(ref, "a")))

    def test_an_optional_missing_key_is_left_out(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        items = [{"key": "zz", "path": "x"}, {"key": "a", "path": "a"}]
        tree = plan_tree(pod(volume(kind, source, items=items, optional=True)), objects(known(ref, "a")))
        assert list(shown(tree)) == ["a"]

    def test_a_missing_object(self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str) -> None:
        with pytest.raises(VolumeError, match=rf"^{missing}$"):
            plan_tree(pod(volume(kind, source)), objects(absent=(ref,)))

    def test_an_optional_missing_object_is_an_empty_volume(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        items = [{"key": "a", "path": "a"}]
        for fields in ({}, {"items": items}):
            tree = plan_tree(pod(volume(kind, source, optional=True, **fields)), objects(absent=(ref,)))
            assert tree.files == ()

    def test_what_the_source_could_not_get_is_told_as_it_is(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        message = "failed to sync configmap cache: timed out waiting for the condition"
        with pytest.raises(VolumeError, match=rf"^{message}$"):
            plan_tree(pod(volume(kind, source, optional=True)), objects(failed={ref: message}))

    def test_what_is_not_known_yet_is_waited_for(
        self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str
    ) -> None:
        with pytest.raises(ObjectNotKnown):
            plan_tree(pod(volume(kind, source, optional=True)), objects())

    def test_no_default_mode(self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str) -> None:
        with pytest.raises(VolumeError, match=r"^no defaultMode used, not even the default value for it$"):
            plan_tree(pod({kind: source}), objects(known(ref, "a")))

    def test_references(self, kind: str, source: dict[str, Any], ref: Any, no_key: str, missing: str) -> None:
        assert references(pod(volume(kind, source))) == {ref}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", 'invalid path: must not be empty: ""'),
        ("/abs", "invalid path: must be relative path: /abs"),
        ("d/" * 2048 + "x", "invalid path: must be less than or equal to 4096 characters"),
        ("a/../b", "invalid path: must not contain '..': a/../b"),
        ("..", "invalid path: must not contain '..': .."),
        ("a/" + "n" * 256, "invalid path: filenames must be less than or equal to 255 characters"),
        ("ä" * 128, "invalid path: filenames must be less than or equal to 255 characters"),
        ("..data", "invalid path: must not start with '..': ..data"),
        ("...x/y", "invalid path: must not start with '..': ...x/y"),
        ("./..data", "invalid path: must not start with '..': ./..data"),
    ],
)
def test_invalid_paths(path: str, message: str) -> None:
    error = failure((path,))
    assert str(error) == message
    assert isinstance(error, WriteFailed)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("a//b", "a/b"),
        ("./a", "a"),
        ("a/", "a"),
        ("a/..b/c", "a/..b/c"),
        (".hidden", ".hidden"),
        ("with space", "with space"),
        ("ключ/世界", "ключ/世界"),
        ("n" * 255, "n" * 255),
        ("d/" * 2047 + "xx", "d/" * 2047 + "xx"),
    ],
)
def test_accepted_paths(path: str, clean: str) -> None:
    assert list(shown(plan_tree(pod(config_map(path)), objects(known(CM1, "a"))))) == [clean]


@pytest.mark.parametrize(
    ("paths", "where"),
    [
        (("a", "a/b"), "/a"),
        (("a/b", "a"), "/a"),
        (("x/a/b/c", "x/a"), "/x/a"),
        ((".",), ""),
    ],
)
def test_a_file_where_a_directory_is_to_be(paths: tuple[str, ...], where: str) -> None:
    error = failure(paths)
    assert isinstance(error, PathConflict)
    below = "pods/uid-1/volumes/kubernetes.io~configmap/v"
    assert str(error) == f"open {{root}}/{below}/..TS{where}: is a directory"
    directory = "..2026_11_22_19_40_06.3993123954"
    assert error.located("/mnt", directory) == f"open /mnt/{below}/{directory}{where}: is a directory"


def test_a_key_has_no_link_where_a_mount_point_stands() -> None:
    """kubelet makes the mount points before it writes, and leaves what stands in a link's place (KUBELET.md 9.10)."""
    mounts = [
        {"name": "v", "mountPath": "/v"},
        {"name": "w", "mountPath": "/v/a"},
        {"name": "w", "mountPath": "/v/d/deep"},
    ]
    subject = pod(volume("configMap", {"name": "cm1"}), containers=[{"name": "c", "volumeMounts": mounts}])
    tree = plan_tree(subject, objects(known(CM1, "a", "b", "d")))
    assert tree.mountpoints == ("a", "d/deep")
    assert [file.path for file in tree.files] == ["a", "b", "d"]
    assert tree.links() == {"b": 0}


PATHS = st.lists(
    st.text(alphabet="ab./", max_size=7),
    min_size=1,
    max_size=5,
)


@given(PATHS)
def test_any_plan_can_be_written(paths: list[str]) -> None:
    """Whatever the items say: the plan has clean paths, none a parent of another, or it fails with a reason."""
    try:
        tree = plan_tree(pod(config_map(*paths)), objects(known(CM1, "a")))
    except VolumeError:
        return
    planned = [file.path for file in tree.files]
    assert planned == sorted({posixpath.normpath(path) for path in paths})
    for path in planned:
        assert not path.startswith(("/", "..", "./"))
        assert not any(other.startswith(path + "/") for other in planned)
