"""Modes and owners (KUBELET.md 6.6, 10; KUBELET-MEASURED.md 3)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol.agent.plugins.ownership import fs_user
from fusevol.model.objects import SERVICE_ACCOUNT_TOKEN
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef
from tests.unit.plugins.builders import CM1, S1, known, objects, plan_directory, plan_tree, pod, references

CONFIG_MAP = {"configMap": {"name": "cm1", "defaultMode": 0o644}}
SECRET = {"secret": {"secretName": "s1", "defaultMode": 0o644}}
PROJECTED = {"projected": {"sources": [{"configMap": {"name": "cm1"}}], "defaultMode": 0o644}}
DOWNWARD = {"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "metadata.name"}}], "defaultMode": 0o644}}
OBJECTS = objects(known(CM1, "a"), known(S1, "a"))
GROUP = {"securityContext": {"fsGroup": 2000}}


@pytest.mark.parametrize(
    ("volume", "root"), [(CONFIG_MAP, 0o777), (SECRET, 0o1777), (PROJECTED, 0o1777), (DOWNWARD, 0o1777)]
)
def test_roots_and_directories(volume: dict[str, Any], root: int) -> None:
    plain = plan_tree(pod(volume), OBJECTS)
    assert (plain.root_mode, plain.directory_mode, plain.gid) == (root, 0o755, 0)
    owned = plan_tree(pod(volume, **GROUP), OBJECTS)
    assert (owned.root_mode, owned.directory_mode, owned.gid) == (root | 0o2000, 0o2755, 2000)
    assert {file.gid for file in owned.files} == {2000}


@pytest.mark.parametrize(
    ("mode", "owned"),
    [
        (0o000, 0o440),
        (0o400, 0o440),
        (0o600, 0o640),
        (0o700, 0o740),
        (0o644, 0o644),
        (0o755, 0o755),
        (0o777, 0o777),
        (0o111, 0o551),
    ],
)
def test_files_of_an_fs_group(mode: int, owned: int) -> None:
    volume = {"configMap": {"name": "cm1", "defaultMode": mode}}
    assert plan_tree(pod(volume), OBJECTS).files[0].mode == mode
    assert plan_tree(pod(volume, **GROUP), OBJECTS).files[0].mode == owned


def test_fs_group_zero_is_a_group() -> None:
    tree = plan_tree(pod(CONFIG_MAP, securityContext={"fsGroup": 0}), OBJECTS)
    assert (tree.root_mode, tree.directory_mode, tree.gid) == (0o2777, 0o2755, 0)


@pytest.mark.parametrize(("medium", "plain", "owned"), [("", 0o777, 0o2777), ("Memory", 0o1777, 0o3777)])
def test_empty_dirs(medium: str, plain: int, owned: int) -> None:
    volume = {"emptyDir": {"medium": medium}}
    assert plan_directory(pod(volume), OBJECTS).mode == plain
    directory = plan_directory(pod(volume, **GROUP), OBJECTS)
    assert (directory.mode, directory.gid) == (owned, 2000)


def containers(*users: int | None) -> dict[str, Any]:
    def container(number: int, user: int | None) -> dict[str, Any]:
        return {"name": f"c{number}"} | ({} if user is None else {"securityContext": {"runAsUser": user}})

    return {"containers": [container(number, user) for number, user in enumerate(users)]}


@pytest.mark.parametrize(
    ("subject", "user"),
    [
        (pod(**containers(None)), None),
        (pod(**containers(1000)), 1000),
        (pod(**containers(0)), 0),
        (pod(**containers(1000, 1000)), 1000),
        (pod(**containers(1000, 1001)), None),
        (pod(**containers(1000, None)), None),
        (pod(**containers(None, None), securityContext={"runAsUser": 5}), 5),
        (pod(**containers(7, None), securityContext={"runAsUser": 5}), None),
        (pod(**containers(7), securityContext={"runAsUser": 5}), 7),
        (pod(**containers(7), initContainers=[{"name": "i"}]), None),
        (pod(**containers(7), ephemeralContainers=[{"name": "e", "securityContext": {"runAsUser": 8}}]), 7),
        (pod(**containers(7), ephemeralContainers=[{"name": "e"}]), 7),
        (pod(**containers(None), ephemeralContainers=[{"name": "e", "securityContext": {"runAsUser": 8}}]), None),
        (pod(containers=[]), None),
    ],
)
def test_the_user_that_all_containers_share(subject: Pod, user: int | None) -> None:
    assert fs_user(subject) == user


TOKEN = {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "cm1"}}]}


@pytest.mark.parametrize(
    ("default", "spec", "mode", "uid", "gid"),
    [
        (0o644, {}, 0o644, 0, 0),
        (0o400, {}, 0o400, 0, 0),
        (0o644, containers(1000), 0o600, 1000, 0),
        (0o644, containers(0), 0o600, 0, 0),
        (0o644, containers(1000, 1001), 0o644, 0, 0),
        (0o644, {"securityContext": {"fsGroup": 2000}}, 0o640, 0, 2000),
        (0o777, {"securityContext": {"fsGroup": 2000}}, 0o640, 0, 2000),
        (0o644, {"securityContext": {"fsGroup": 2000, "runAsUser": 1000}}, 0o640, 1000, 2000),
    ],
)
def test_tokens(default: int, spec: dict[str, Any], mode: int, uid: int, gid: int) -> None:
    subject = pod({"projected": {**TOKEN, "defaultMode": default}}, **spec)
    (ref,) = (ref for ref in references(subject) if ref.kind == SERVICE_ACCOUNT_TOKEN)
    tree = plan_tree(subject, objects(known(CM1, "a"), known(ref, "token")))
    files = {file.path: file for file in tree.files}
    assert (files["token"].mode, files["token"].uid, files["token"].gid) == (mode, uid, gid)
    assert files["a"].uid == 0
    assert tree.links() == {"a": 0, "token": uid}


@pytest.mark.parametrize(
    ("sources", "uids"),
    [
        ([{"serviceAccountToken": {"path": "d/e/token"}}], {"d": 1000}),
        ([{"serviceAccountToken": {"path": "d/token"}}, {"configMap": {"name": "cm1"}}], {"d": 1000, "a": 0}),
        (
            [
                {"serviceAccountToken": {"path": "d/token"}},
                {"configMap": {"name": "cm1", "items": [{"key": "a", "path": "d/a"}]}},
            ],
            {"d": 0},
        ),
    ],
)
def test_the_link_of_a_directory_belongs_to_whom_its_files_belong_to(
    sources: list[dict[str, Any]], uids: dict[str, int]
) -> None:
    subject = pod({"projected": {"sources": sources, "defaultMode": 0o644}}, **containers(1000))
    (ref,) = (ref for ref in references(subject) if ref.kind == SERVICE_ACCOUNT_TOKEN)
    assert plan_tree(subject, objects(known(CM1, "a"), known(ref, "token"))).links() == uids


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_only_tokens_belong_to_the_user(kind: str) -> None:
    volume = CONFIG_MAP if kind == "ConfigMap" else SECRET
    file = plan_tree(pod(volume, **containers(1000)), OBJECTS).files[0]
    assert (file.uid, file.mode) == (0, 0o644)
    assert isinstance(file.content.object, ObjectRef)  # type: ignore[union-attr]
