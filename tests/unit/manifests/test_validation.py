"""What is refused, in which words, at which line (KUBELET.md 3.7, 4.7; golden cases 16, 17, 45, 52, 56, 84, 85)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from fusevol.agent.sources.manifests.contents import FileContents, Invalid, decode
from fusevol.model.objects import CONFIG_MAP, NODE, SECRET
from fusevol.model.refs import ObjectRef
from tests.unit.manifests.recording import CONFIG, CREDENTIALS, config_map, pod, secret, text


def taken(*documents: dict[str, Any], before: FileContents | None = None) -> FileContents:
    return decode("a.yaml", text(*documents).encode(), "77", b"key", before)


def refused(*documents: dict[str, Any], before: FileContents | None = None) -> list[str]:
    with pytest.raises(Invalid) as caught:
        taken(*documents, before=before)
    return [problem.message for problem in caught.value.problems]


def lines(written: str) -> list[tuple[int | None, str]]:
    with pytest.raises(Invalid) as caught:
        decode("a.yaml", written.encode(), "77", b"key")
    assert {problem.file for problem in caught.value.problems} == {"a.yaml"}
    return [(problem.line, problem.message) for problem in caught.value.problems]


KEY = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
MODE = "must be a number between 0 and 0777 (octal), both inclusive"


@pytest.mark.parametrize(
    ("key", "messages"),
    [
        ("", [f'data[]: Invalid value: "": {KEY}']),
        (".", ["data[.]: Invalid value: \".\": must not be '.'"]),
        ("..", ["data[..]: Invalid value: \"..\": must not be '..'"]),
        ("..data", ["data[..data]: Invalid value: \"..data\": must not start with '..'"]),
        ("...x", ["data[...x]: Invalid value: \"...x\": must not start with '..'"]),
        ("a/b", [f'data[a/b]: Invalid value: "a/b": {KEY}']),
        ("a b", [f'data[a b]: Invalid value: "a b": {KEY}']),
        ("ключ", [f'data[ключ]: Invalid value: "ключ": {KEY}']),
        ("x" * 254, [f'data[{"x" * 254}]: Invalid value: "{"x" * 254}": must be no more than 253 bytes']),
    ],
)
def test_keys(key: str, messages: list[str]) -> None:
    assert refused(config_map({key: "1"})) == [f"ConfigMap config: {message}" for message in messages]


def test_keys_that_are_taken() -> None:
    keys = [".hidden", "-dash", "_under", "a..b", "A.B-c_d", "x" * 253]
    assert set(taken(config_map(dict.fromkeys(keys, "1"))).objects[CONFIG].values or ()) == set(keys)


def test_size() -> None:
    assert taken(config_map({"a": "x" * 1048575, "b": "y"})).objects
    assert refused(config_map({"a": "x" * 1048576, "b": "y"})) == [
        "ConfigMap config: []: Too long: may not be more than 1048576 bytes"
    ]
    assert refused(secret({"a": "ü" * 524289})) == [
        "Secret credentials: data: Too long: may not be more than 1048576 bytes"
    ]


def test_data_and_binary_data() -> None:
    both = config_map({"a": "text", "n": ""}, binaryData={"b": "AAH/"})
    assert taken(both).objects[CONFIG].values == {"a": b"text", "n": b"", "b": b"\x00\x01\xff"}
    assert refused(config_map({"a": "1"}, binaryData={"a": "Mg=="})) == [
        'ConfigMap config: data[a]: Invalid value: "a": duplicate of key present in binaryData'
    ]


def test_secret_data() -> None:
    written = {**secret({"both": "string", "a": "1"}), "data": {"both": "b2xk", "c": "bXVs\ndGk=\n"}}
    values = taken(written).objects[CREDENTIALS].values
    assert values == {"both": b"string", "a": b"1", "c": b"multi"}


@pytest.mark.parametrize("value", ["not base64!", "YQ", "YQ===", "Y Q==", "YQ==x", "日本"])
def test_base64_that_is_not(value: str) -> None:
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": value}}
    assert refused(manifest) == ["Secret s: data: illegal base64 data"]
    assert refused(config_map({}, binaryData={"k": value})) == ["ConfigMap config: binaryData: illegal base64 data"]


@pytest.mark.parametrize("value", [5, 1.5, True, [], {}])
def test_values_must_be_strings(value: Any) -> None:
    assert refused(config_map({"k": value})) == ["ConfigMap config: data: values must be strings: quote them"]


def test_null_is_the_empty_string() -> None:
    assert taken(config_map({"k": None})).objects[CONFIG].values == {"k": b""}  # type: ignore[dict-item]


MARK = "hunter2"


@pytest.mark.parametrize(
    "manifest",
    [
        {**secret({"k": MARK}), "data": {"k": f"{MARK}!"}},
        secret({f"{MARK} is a key": "x"}),
        secret({"k": [MARK]}),  # type: ignore[dict-item]
        {**secret({"k": MARK}), "hunter2": "x"},
        secret({"k": MARK * 200_000}),
        {**secret({}), "stringData": MARK},
        {**secret({"k": MARK}), "immutable": MARK},
    ],
)
def test_no_message_tells_a_secret(manifest: dict[str, Any]) -> None:
    messages = refused(manifest)
    assert messages
    assert MARK not in repr(messages)


def test_no_repr_tells_a_secret() -> None:
    contents = taken(secret({"k": MARK}), pod())
    assert MARK not in repr(contents)
    assert MARK not in repr(contents.kept())
    assert contents.kept().objects[CREDENTIALS].values is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"apiVersion": "v1", "metadata": {}}, "document: kind: Required value"),
        (
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}},
            "document: kind: not a kind that is served: Pod, ConfigMap, Secret, Node are",
        ),
        ({"apiVersion": "v2", "kind": "Pod", "metadata": {"name": "p"}}, "document: apiVersion: must be v1"),
        ({"kind": "Pod", "metadata": {"name": "p"}}, "document: apiVersion: must be v1"),
        ({"apiVersion": "v1", "kind": "Pod"}, "document: metadata: Required value"),
        (config_map({}, name=""), "ConfigMap: metadata.name: Required value: name or generateName is required"),
        ({**config_map({}), "metadata": {"name": 5}}, "document: metadata.name: must be a string"),
        (
            {**config_map({}), "metadata": {"name": "x", "labels": {"a": 1}}},
            "document: metadata.labels[a]: must be a string",
        ),
        (
            {**config_map({}), "spec": {}},
            "ConfigMap config: []: unknown field: apiVersion, binaryData, data, immutable, kind, metadata are known",
        ),
        (
            {**pod(), "metadata": {"name": "p", "uid": "../x"}},
            "Pod p: metadata.uid: Invalid value: \"../x\": must consist of alphanumeric characters, '-', '_' or '.'",
        ),
    ],
)
def test_documents(document: dict[str, Any], message: str) -> None:
    assert refused(document) == [message]


@pytest.mark.parametrize("document", ["just text", "[]", "5"])
def test_what_is_no_mapping(document: str) -> None:
    assert lines(document) == [(1, "document: []: must be a mapping")]


@pytest.mark.parametrize("name", ["Upper", "under_score", "-x", "x.", "a" * 254])
def test_names(name: str) -> None:
    for manifest in (config_map({}, name=name), secret({}, name=name), pod(name)):
        assert any("metadata.name: Invalid value" in message for message in refused(manifest))
    assert any("metadata.namespace" in message for message in refused(pod(namespace="a.b")))


def with_volume(**volume: Any) -> dict[str, Any]:
    manifest = pod()
    manifest["spec"]["volumes"] = [{"name": "v", **volume}]
    return manifest


def item(path: str = "p", **fields: Any) -> dict[str, Any]:
    return with_volume(configMap={"name": "c", "items": [{"key": "k", "path": path, **fields}]})


def downward(**fields: Any) -> dict[str, Any]:
    return with_volume(downwardAPI={"items": [{"path": "p", **fields}]})


def projected(*sources: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return with_volume(projected={"sources": list(sources), **fields})


def resource(name: str, **fields: Any) -> dict[str, Any]:
    return downward(resourceFieldRef={"resource": name, "containerName": "c", **fields})


BYTES = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the"
FORMAT = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (
            with_volume(configMap={"name": "c", "defaultMode": 0o1000}),
            f"configMap.defaultMode: Invalid value: 512: {MODE}",
        ),
        (with_volume(secret={"secretName": "s", "defaultMode": -1}), f"secret.defaultMode: Invalid value: -1: {MODE}"),
        (with_volume(downwardAPI={"defaultMode": 4096}), f"downwardAPI.defaultMode: Invalid value: 4096: {MODE}"),
        (projected(defaultMode=512), f"projected.defaultMode: Invalid value: 512: {MODE}"),
        (item(mode=0o1000), f"configMap.items[0].mode: Invalid value: 512: {MODE}"),
        (item("/abs"), 'configMap.items[0].path: Invalid value: "/abs": must be a relative path'),
        (item("a/../b"), "configMap.items[0].path: Invalid value: \"a/../b\": must not contain '..'"),
        (item(".."), "configMap.items[0].path: Invalid value: \"..\": must not contain '..'"),
        (item("..x/y"), "configMap.items[0].path: Invalid value: \"..x/y\": must not start with '..'"),
        (item(""), "configMap.items[0].path: Required value"),
        (item(key=""), "configMap.items[0].key: Required value"),
        (with_volume(configMap={}), "configMap.name: Required value"),
        (with_volume(secret={}), "secret.secretName: Required value"),
        (
            with_volume(configMap={"name": "c"}, emptyDir={}),
            "emptyDir: Forbidden: may not specify more than 1 volume type",
        ),
        (with_volume(configmap={"name": "c"}), "configmap: unknown field"),
        (
            with_volume(emptyDir={"sizeLimit": "-1"}),
            "emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (with_volume(emptyDir={"sizeLimit": "lots"}), f'emptyDir.sizeLimit: Invalid value: "lots": {FORMAT}'),
        (downward(), "downwardAPI.items[0]: Required value: one of fieldRef and resourceFieldRef is required"),
        (
            downward(fieldRef={"fieldPath": "spec.nodeName"}),
            'downwardAPI.items[0].fieldRef.fieldPath: Unsupported value: "spec.nodeName": supported values: '
            '"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"',
        ),
        (downward(fieldRef={"fieldPath": ""}), "downwardAPI.items[0].fieldRef.fieldPath: Required value"),
        (
            downward(fieldRef={"fieldPath": "metadata.name['x']"}),
            'downwardAPI.items[0].fieldRef.fieldPath: Invalid value: "metadata.name": does not support subscript',
        ),
        (
            downward(
                fieldRef={"fieldPath": "metadata.name"},
                resourceFieldRef={"resource": "limits.cpu", "containerName": "c"},
            ),
            'downwardAPI.items[0]: Invalid value: "resource": fieldRef and resourceFieldRef can not be specified '
            "simultaneously",
        ),
        (
            downward(resourceFieldRef={"resource": "limits.cpu"}),
            "downwardAPI.items[0].resourceFieldRef.containerName: Required value",
        ),
        (
            resource("limits.foo"),
            'downwardAPI.items[0].resourceFieldRef.resource: Unsupported value: "limits.foo": supported values: '
            '"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", '
            '"requests.memory"',
        ),
        (
            resource("limits.cpu", divisor="3m"),
            'downwardAPI.items[0].resourceFieldRef.divisor: Invalid value: "limits.cpu": only divisor\'s values '
            "1m and 1 are supported with the cpu resource",
        ),
        (
            resource("requests.memory", divisor="2Ki"),
            f'downwardAPI.items[0].resourceFieldRef.divisor: Invalid value: "requests.memory": {BYTES} memory resource',
        ),
        (
            resource("limits.hugepages-2Mi", divisor="1m"),
            'downwardAPI.items[0].resourceFieldRef.divisor: Invalid value: "limits.hugepages-2Mi": '
            f"{BYTES} hugepages resource",
        ),
        (
            resource("limits.cpu", divisor="x"),
            f'downwardAPI.items[0].resourceFieldRef.divisor: Invalid value: "x": {FORMAT}',
        ),
        (
            projected({"configMap": {"name": "c"}, "secret": {"name": "s"}}),
            "projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
        ),
        (projected({"configMap": {}}), "projected.sources[0].configMap.name: Required value"),
        (
            projected(
                {"configMap": {"name": "c", "items": [{"key": "k", "path": "same"}]}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}},
            ),
            'projected.sources[1].secret.items[0].path: Invalid value: "same": conflicting duplicate paths',
        ),
        (
            projected({"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}),
            "projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a "
            "duration less than 10 minutes",
        ),
        (
            projected({"serviceAccountToken": {"path": "t", "expirationSeconds": 2**32 + 1}}),
            "projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not specify a "
            "duration larger than 2^32 seconds",
        ),
        (
            projected({"serviceAccountToken": {"path": "../t"}}),
            "projected.sources[0].serviceAccountToken.path: Invalid value: \"../t\": must not contain '..'",
        ),
        (
            projected({"clusterTrustBundle": {"path": "t"}}),
            "projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
        ),
        (
            projected({"clusterTrustBundle": {"path": "t", "name": "a", "signerName": "b"}}),
            "projected.sources[0].clusterTrustBundle: only one of name and signerName may be used",
        ),
        (with_volume(configMap={"name": 5}), "configMap.name: Expected `str`, got `int`"),
        (
            with_volume(configMap={"name": "c", "defaultMode": "0644"}),
            "configMap.defaultMode: Expected `int | null`, got `str`",
        ),
    ],
)
def test_volumes(manifest: dict[str, Any], message: str) -> None:
    found = refused(manifest)
    assert found == [f"Pod web: spec.volumes[0].{message}"]


def containers(**fields: Any) -> dict[str, Any]:
    manifest = pod()
    manifest["spec"]["containers"] = [{"name": "c", **fields}]
    return manifest


def mount(**fields: Any) -> dict[str, Any]:
    return containers(volumeMounts=[{"name": "v", "mountPath": "/v", **fields}])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (mount(name="zz"), 'spec.containers[0].volumeMounts[0].name: Not found: "zz"'),
        (mount(mountPath=""), "spec.containers[0].volumeMounts[0].mountPath: Required value"),
        (
            mount(subPath="../x"),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            mount(subPath="/x"),
            'spec.containers[0].volumeMounts[0].subPath: Invalid value: "/x": must be a relative path',
        ),
        (
            mount(subPath="x", subPathExpr="y"),
            'spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: "y": subPathExpr and subPath are mutually '
            "exclusive",
        ),
        (
            containers(volumeMounts=[{"name": "v", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]),
            'spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/x": must be unique',
        ),
        (
            containers(resources={"limits": {"memory": "much"}, "requests": {"memory": "1"}}),
            f'spec.containers[0].resources.limits[memory]: Invalid value: "much": {FORMAT}',
        ),
        (
            containers(resources={"requests": {"cpu": "-1"}}),
            'spec.containers[0].resources.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0',
        ),
        ({**pod(), "spec": {}}, "spec.containers: Required value"),
    ],
)
def test_containers(manifest: dict[str, Any], message: str) -> None:
    assert refused(manifest) == [f"Pod web: {message}"]


def test_repeated_names() -> None:
    manifest = pod()
    manifest["spec"]["volumes"] *= 2
    manifest["spec"]["containers"].append({"name": "c"})
    assert refused(manifest) == [
        'Pod web: spec.volumes[1].name: Duplicate value: "v"',
        'Pod web: spec.containers[1].name: Duplicate value: "c"',
    ]
    assert refused(pod(), pod()) == ['Pod web: metadata.name: Duplicate value: "web"']
    assert refused(config_map({}), config_map({})) == ['ConfigMap config: metadata.name: Duplicate value: "config"']


def test_volume_names() -> None:
    manifest = with_volume(emptyDir={})
    manifest["spec"]["volumes"][0]["name"] = "../up"
    assert any(
        message.startswith('Pod web: spec.volumes[0].name: Invalid value: "../up"') for message in refused(manifest)
    )


def test_paths_that_are_taken() -> None:
    for path in ("a//b", "./a", "a/", "a/..b/c", "ключ", "with space"):
        assert taken(item(path)).pods


def test_defaults_are_the_api_servers() -> None:
    manifest = projected({"serviceAccountToken": {"path": "t"}})
    manifest["spec"]["volumes"] += [{"name": "n"}, {"name": "s", "secret": {"secretName": "s", "defaultMode": None}}]
    manifest["spec"]["containers"][0]["resources"] = {"limits": {"cpu": 2}}
    ((decoded, _),) = taken(manifest).pods
    assert decoded.metadata.namespace == "default"
    assert decoded.metadata.resource_version == "77"
    assert decoded.spec.service_account_name == "default"
    first, none, from_secret = decoded.spec.volumes or []
    assert first.projected
    assert first.projected.default_mode == 0o644
    assert first.projected.sources
    assert first.projected.sources[0].service_account_token
    assert first.projected.sources[0].service_account_token.expiration_seconds == 3600
    assert none.empty_dir is not None
    assert from_secret.secret
    assert from_secret.secret.default_mode == 0o644
    resources = (decoded.spec.containers or [])[0].resources
    assert resources
    assert resources.requests == {"cpu": 2}


def test_versions_and_uids() -> None:
    given = {"resourceVersion": "12", "uid": "u-1", "name": "given"}
    contents = taken(
        pod("given", resourceVersion="12", uid="u-1"), {**config_map({}), "metadata": given}, config_map({})
    )
    assert contents.pods[0][0].metadata.uid == "u-1"
    by_name = {manifest.ref.name: manifest for manifest in contents.objects.values()}
    assert (by_name["given"].version, by_name["given"].uid) == ("12", "u-1")
    assert (by_name["config"].version, len(by_name["config"].uid)) == ("77", 36)


def test_a_pods_uid_comes_from_its_place() -> None:
    def uid(file: str, manifest: dict[str, Any]) -> str:
        return decode(file, text(manifest).encode(), "1", b"key").pods[0][0].metadata.uid

    first = uid("a.yaml", pod())
    assert uid("a.yaml", pod(labels={"other": "label"})) == first
    assert uid("a.yaml", pod(namespace="default")) == first
    assert len({first, uid("b.yaml", pod()), uid("a.yaml", pod("other")), uid("a.yaml", pod(namespace="ns"))}) == 4


def test_phase_and_deletion_are_taken_as_written() -> None:
    manifest = {**pod(deletionTimestamp="2026-01-01T00:00:00Z"), "status": {"phase": "Succeeded"}}
    ((decoded, _),) = taken(manifest).pods
    assert decoded.terminal
    assert decoded.terminating


def test_nodes() -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "status": {"allocatable": {"cpu": 3}}}
    assert taken(node).objects[ObjectRef(NODE, "", "node1")].literals == {"cpu": "3"}
    node["status"] = {"capacity": {"memory": "x"}}
    assert refused(node) == [f'Node node1: status.capacity.memory: Invalid value: "x": {FORMAT}']


@pytest.mark.parametrize("make", [config_map, secret])
def test_immutable_objects_do_not_change(make: Any) -> None:
    before = taken(make({"a": "1"}, immutable=True))
    name = "ConfigMap config" if make is config_map else "Secret credentials"
    message = "Forbidden: field is immutable when `immutable` is set"
    assert taken(make({"a": "1"}, immutable=True), before=before.kept())
    assert refused(make({"a": "2"}, immutable=True), before=before.kept()) == [f"{name}: data: {message}"]
    assert refused(make({"a": "1"}), before=before.kept()) == [f"{name}: immutable: {message}"]
    assert taken(make({"a": "2"}, immutable=True), before=taken(make({"a": "1"})))
    assert taken(pod(), before=before)


def test_lines_of_problems() -> None:
    written = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: config
data:
  good: "1"
  b@d: "2"
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Pod
    metadata: {name: web}
    spec:
      containers:
        - name: c
      volumes:
        - name: v
          secret:
            secretName: s
            defaultMode: 01000
        - name: w
          configMap: {name: c, defaultMode: text}
"""
    assert lines(written) == [
        (7, f'ConfigMap config: data[b@d]: Invalid value: "b@d": {KEY}'),
        (24, "Pod web: spec.volumes[1].configMap.defaultMode: Expected `int | null`, got `str`"),
    ]
    mended = written.replace("text", "0644").replace("b@d", "bad")
    assert lines(mended) == [(22, f"Pod web: spec.volumes[0].secret.defaultMode: Invalid value: 512: {MODE}")]


@pytest.mark.parametrize("written", ["", "\n\n", "# nothing\n", "---\n---\n"])
def test_an_emptied_file(written: str) -> None:
    assert lines(written) == [(1, "no manifest in it; what it held before is kept until the file is deleted")]


def test_binary_values_keep_their_bytes() -> None:
    data = bytes(range(256))
    contents = taken(config_map({}, binaryData={"bin": base64.b64encode(data).decode()}))
    assert (contents.objects[CONFIG].values or {})["bin"] == data


def test_kinds_of_lists() -> None:
    listed = {"apiVersion": "v1", "kind": "ConfigMapList", "items": [config_map({}), config_map({}, name="other")]}
    assert {ref.kind for ref in taken(listed, secret({})).objects} == {CONFIG_MAP, SECRET}
    assert refused({"apiVersion": "v1", "kind": "List"}) == [
        "document: kind: not a kind that is served: Pod, ConfigMap, Secret, Node are"
    ]


def with_security(field: str, value: Any, container: bool = False) -> dict[str, Any]:
    manifest = pod()
    holder = manifest["spec"]["containers"][0] if container else manifest["spec"]
    holder["securityContext"] = {field: value}
    return manifest


IDS = "must be between 0 and 2147483647, inclusive"


@pytest.mark.parametrize("value", [-5, -1, 2147483648, 99999999999])
def test_user_and_group_ids(value: int) -> None:
    for field in ("fsGroup", "runAsUser"):
        assert refused(with_security(field, value)) == [
            f"Pod web: spec.securityContext.{field}: Invalid value: {value}: {IDS}"
        ]
    assert refused(with_security("supplementalGroups", [0, value])) == [
        f"Pod web: spec.securityContext.supplementalGroups[1]: Invalid value: {value}: {IDS}"
    ]
    assert refused(with_security("runAsUser", value, container=True)) == [
        f"Pod web: spec.containers[0].securityContext.runAsUser: Invalid value: {value}: {IDS}"
    ]


@pytest.mark.parametrize("value", [0, 1000, 2147483647])
def test_ids_that_are_taken(value: int) -> None:
    for manifest in (
        with_security("fsGroup", value),
        with_security("runAsUser", value, container=True),
        with_security("supplementalGroups", [value]),
    ):
        assert taken(manifest).pods


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda manifest: manifest.update(volumes=[]), "volumes"),
        (lambda manifest: manifest["metadata"].update(label={}), "metadata.label"),
        (lambda manifest: manifest["spec"].update(volume=[]), "spec.volume"),
        (lambda manifest: manifest["spec"].update(securityContext={"fsgroup": 5}), "spec.securityContext.fsgroup"),
        (lambda manifest: manifest["spec"]["containers"][0].update(mounts=[]), "spec.containers[0].mounts"),
        (
            lambda manifest: manifest["spec"]["containers"][0]["volumeMounts"][0].update(subpath="x"),
            "spec.containers[0].volumeMounts[0].subpath",
        ),
        (lambda manifest: manifest["spec"]["volumes"][0].update(configmap={}), "spec.volumes[0].configmap"),
        (
            lambda manifest: manifest["spec"]["volumes"][0]["configMap"].update(defaultmode=5),
            "spec.volumes[0].configMap.defaultmode",
        ),
        (
            lambda manifest: manifest["spec"]["volumes"][0]["configMap"].update(
                items=[{"key": "k", "path": "p", "Mode": 5}]
            ),
            "spec.volumes[0].configMap.items[0].Mode",
        ),
    ],
)
def test_unknown_fields(change: Any, path: str) -> None:
    manifest = pod()
    change(manifest)
    assert refused(manifest) == [f"Pod web: {path}: unknown field"]


def test_unknown_fields_deep_in_a_projection() -> None:
    reference = {"resource": "limits.cpu", "containerName": "c", "unit": "1"}
    manifest = projected({"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": reference}]}}, {"token": {}})
    where = "Pod web: spec.volumes[0].projected.sources"
    assert refused(manifest) == [
        f"{where}[0].downwardAPI.items[0].resourceFieldRef.unit: unknown field",
        f"{where}[1].token: unknown field",
    ]


def test_fields_that_volumes_do_not_depend_on_are_known() -> None:
    manifest = pod(generateName="w-", finalizers=["f"], ownerReferences=[{"any": "thing"}])
    manifest["spec"] |= {"restartPolicy": "Never", "affinity": {"any": "thing"}, "hostNetwork": True}
    manifest["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    manifest["spec"]["containers"][0] |= {
        "image": "i",
        "env": [{"name": "A", "value": "b"}],
        "livenessProbe": {"exec": {}},
        "securityContext": {"privileged": True, "capabilities": {"add": ["ALL"]}},
        "resources": {"claims": [{"name": "c"}], "limits": {"example.com/anything": 1}},
        "volumeDevices": [{"name": "d", "devicePath": "/dev/x"}],
    }
    manifest["spec"]["volumes"] += [{"name": "d", "persistentVolumeClaim": {"claimName": "c", "any": "thing"}}]
    manifest["spec"]["ephemeralContainers"] = [{"name": "debug", "targetContainerName": "c"}]
    manifest["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    assert taken(manifest).pods


def typed(kind: Any, data: dict[str, str], **metadata: Any) -> dict[str, Any]:
    manifest = secret(data, type=kind)
    manifest["metadata"] |= metadata
    return manifest


@pytest.mark.parametrize(
    ("kind", "data", "problems"),
    [
        ("kubernetes.io/tls", {}, ["data[tls.crt]: Required value", "data[tls.key]: Required value"]),
        ("kubernetes.io/tls", {"tls.crt": ""}, ["data[tls.key]: Required value"]),
        ("kubernetes.io/dockercfg", {".dockerconfigjson": "{}"}, ["data[.dockercfg]: Required value"]),
        ("kubernetes.io/dockerconfigjson", {".dockercfg": "{}"}, ["data[.dockerconfigjson]: Required value"]),
        (
            "kubernetes.io/dockerconfigjson",
            {".dockerconfigjson": MARK},
            ['data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": must be a JSON object'],
        ),
        (
            "kubernetes.io/dockercfg",
            {".dockercfg": f'["{MARK}"]'},
            ['data[.dockercfg]: Invalid value: "<secret contents redacted>": must be a JSON object'],
        ),
        ("kubernetes.io/ssh-auth", {"ssh-privatekey": ""}, ["data[ssh-privatekey]: Required value"]),
        ("kubernetes.io/ssh-auth", {"key": MARK}, ["data[ssh-privatekey]: Required value"]),
        ("kubernetes.io/basic-auth", {}, ["data[username]: Required value", "data[password]: Required value"]),
        (
            "kubernetes.io/service-account-token",
            {"token": MARK},
            ["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        ),
        (5, {"k": MARK}, ["type: must be a string"]),
    ],
)
def test_typed_secrets(kind: Any, data: dict[str, str], problems: list[str]) -> None:
    assert refused(typed(kind, data)) == [f"Secret credentials: {problem}" for problem in problems]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (None, {}),
        ("", {}),
        ("Opaque", {}),
        ("example.com/own", {}),
        ("kubernetes.io/tls", {"tls.crt": "", "tls.key": "", "ca.crt": "x"}),
        ("kubernetes.io/dockercfg", {".dockercfg": "{}"}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": '{"auths": {}}'}),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": "null"}),
        ("kubernetes.io/ssh-auth", {"ssh-privatekey": "x"}),
        ("kubernetes.io/basic-auth", {"password": ""}),
        ("bootstrap.kubernetes.io/token", {}),
    ],
)
def test_typed_secrets_that_are_taken(kind: str | None, data: dict[str, str]) -> None:
    assert taken(typed(kind, data)).objects
    if kind == "kubernetes.io/tls":
        split = {**typed(kind, {"tls.crt": "x"}), "data": {"tls.key": "eA=="}}
        assert taken(split).objects


def test_a_token_of_a_service_account() -> None:
    annotations = {"kubernetes.io/service-account.name": "default"}
    assert taken(typed("kubernetes.io/service-account-token", {}, annotations=annotations)).objects
