"""The judge of the random histories: whether it sees what is wrong in a tree, and what readers should not meet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.desired_tree import Item, Namespace, Source, VolumeSpec, differences
from tests.support.tree_reader import Expected, TreeReader

VERSION = "..2026_11_22_19_35_35.4203523368"
ONE = ("configMap", "one")
CONFIG = VolumeSpec("configMap", (Source("configMap", "one"),))


def namespace(*volumes: VolumeSpec) -> Namespace:
    model = Namespace("ns")
    model.begin()
    model.set_object(ONE, {"a": b"1", "b": b"2"}, immutable=False)
    model.create_pod("p", "uid", {"app": "x"}, None, volumes)
    model.settle()
    return model


def mount(base: Path) -> Path:
    """A tree on disk that is as the namespace's with CONFIG has to be."""
    root = base / "mnt" / "pods" / "uid" / "volumes" / "kubernetes.io~configmap" / "v0"
    (root / VERSION).mkdir(parents=True)
    for path, mode in ((root, 0o777), (root.parent, 0o755), (root.parents[1], 0o750), (root.parents[2], 0o750)):
        path.chmod(mode)
    (root / VERSION).chmod(0o755)
    for key, value in (("a", "1"), ("b", "2")):
        (root / VERSION / key).write_text(value)
        (root / VERSION / key).chmod(0o644)
        (root / key).symlink_to(f"..data/{key}")
    (root / "..data").symlink_to(VERSION)
    (base / "mnt" / "by-name" / "ns").mkdir(parents=True)
    (base / "mnt" / "by-name" / "ns" / "p").symlink_to("../../pods/uid")
    return root


def found(base: Path, model: Namespace) -> list[str]:
    return differences(base / "mnt", base / "state", [model])


def test_a_tree_that_is_right(tmp_path: Path) -> None:
    mount(tmp_path)
    assert found(tmp_path, namespace(CONFIG)) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / VERSION / "a").write_text("another"),
        lambda root: (root / VERSION / "a").chmod(0o600),
        lambda root: (root / VERSION / "a").unlink(),
        lambda root: (root / VERSION / "more").touch(),
        lambda root: (root / VERSION / "more").mkdir(),
        lambda root: (root / VERSION).chmod(0o700),
        lambda root: os.chown(root / VERSION, 1, -1),
        lambda root: (root / "a").unlink(),
        lambda root: (root / "more").symlink_to("..data/more"),
        lambda root: (root / "..2026_11_22_19_35_35.1").mkdir(),
        lambda root: (root / "..data_tmp").symlink_to(VERSION),
        lambda root: root.chmod(0o755),
        lambda root: root.rename(root.with_name("v1")),
        lambda root: (root.parents[3] / "another").mkdir(),
        lambda root: (root.parents[4] / "by-name" / "ns" / "p").unlink(),
        lambda root: (root.parents[4] / "by-name" / "ns" / "q").symlink_to("../../pods/uid"),
        lambda root: (root.parents[5] / "state" / "pods" / "another").mkdir(parents=True),
    ],
)
def test_what_is_wrong_is_seen(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(mount(tmp_path))
    assert found(tmp_path, namespace(CONFIG))


def test_a_volume_that_was_written_without_a_change_is_seen(tmp_path: Path) -> None:
    mount(tmp_path)
    model = namespace(CONFIG)
    model.pods["p"].volumes[0].directory = "..2026_11_22_19_35_31.1"
    model.begin()
    model.settle()
    assert "nothing had changed" in found(tmp_path, model)[0]


def contents(model: Namespace) -> list[dict[str, bytes] | None]:
    (volume,) = model.pods["p"].volumes
    return [None if each is None else {path: data for path, _, data in each} for each in volume.candidates]


def test_what_does_not_resolve_stays_what_it_was_at_some_time() -> None:
    model = namespace(CONFIG)
    model.begin()
    model.set_object(ONE, {"a": b"1"}, immutable=False)
    model.delete_object(ONE)
    model.settle()
    assert contents(model) == [{"a": b"1", "b": b"2"}, {"a": b"1"}]
    model.begin()
    model.set_object(ONE, {"c": b"3"}, immutable=False)
    model.settle()
    assert contents(model) == [{"c": b"3"}]


@pytest.mark.parametrize(
    ("source", "resolves"),
    [
        (Source("configMap", "none"), False),
        (Source("configMap", "none", optional=True), True),
        (Source("configMap", "one", (Item("c", "x"),)), False),
        (Source("configMap", "one", (Item("c", "x"),), optional=True), True),
        (Source("configMap", "one", (Item("a", "a/x"), Item("b", "a"))), False),  # a file below a file
    ],
)
def test_what_resolves(source: Source, resolves: bool) -> None:
    assert (contents(namespace(VolumeSpec("projected", (source,)))) != [None]) is resolves


def violations(root: Path, candidates: tuple[dict[str, bytes], ...], spoil: Callable[[], object]) -> list[str]:
    with TreeReader() as reader:
        reader.watch([Expected(root, candidates)], {})
        time.sleep(0.2)
        spoil()
        time.sleep(0.2)
        return reader.watch([], {})


def test_a_reader_of_what_may_be_is_content(tmp_path: Path) -> None:
    root = mount(tmp_path)
    candidates = ({"a": b"1", "b": b"2"}, {"a": b"3"})
    assert violations(root, candidates, lambda: None) == []


def test_a_reader_notices_a_key_that_is_missing_and_a_content_that_never_was(tmp_path: Path) -> None:
    root = mount(tmp_path)
    candidates = ({"a": b"1", "b": b"2"}, {"a": b"3"})
    (missing, *_) = violations(root, candidates, (root / "a").unlink)
    assert missing.endswith("/a: not found")
    (root / "a").symlink_to("..data/a")
    (other, *_) = violations(root, candidates, lambda: (root / VERSION / "b").write_text("4"))
    assert "is none of" in other
