"""projected (KUBELET.md 6, 8; golden cases 39-50)."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol.model.errors import ObjectNotKnown, VolumeError
from fusevol.model.objects import (
    CLUSTER_TRUST_BUNDLE,
    CONFIG_MAP,
    SERVICE_ACCOUNT_TOKEN,
    TokenSpec,
    TrustBundleSpec,
    node_ref,
    signer_bundles_ref,
    signer_bundles_spec,
    token_ref,
    token_spec,
)
from fusevol.model.pod import LabelSelector
from fusevol.model.refs import ObjectRef
from tests.unit.plugins.builders import CM1, NODE, S1, known, objects, plan_tree, pod, references, shown

CM2 = ObjectRef(CONFIG_MAP, "ns", "cm2")
TOKEN = token_ref("ns", TokenSpec("default", "", 3600, "p", "uid-1"))
BUNDLE = ObjectRef(CLUSTER_TRUST_BUNDLE, "", "roots")


def volume(*sources: dict[str, Any], mode: int | None = 0o644) -> dict[str, Any]:
    return {"projected": {"sources": list(sources)} | ({} if mode is None else {"defaultMode": mode})}


def config_map(name: str = "cm1", *items: tuple[str, str], **fields: Any) -> dict[str, Any]:
    listed = {"items": [{"key": key, "path": path} for key, path in items]} if items else {}
    return {"configMap": {"name": name, **listed, **fields}}


def secret(name: str = "s1", **fields: Any) -> dict[str, Any]:
    return {"secret": {"name": name, **fields}}


def bundle(**fields: Any) -> dict[str, Any]:
    return {"clusterTrustBundle": {"path": "ca.pem", **fields}}


SA_TOKEN = {"serviceAccountToken": {"path": "token"}}
NAME = {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o600}]}}


def failure(*sources: dict[str, Any], known_objects: Any = None) -> str:
    with pytest.raises(VolumeError) as caught:
        plan_tree(pod(volume(*sources)), known_objects or objects())
    return str(caught.value)


def test_all_sources_in_one_volume() -> None:
    found = objects(known(CM1, "a"), known(S1, "user"), known(TOKEN, "token"), known(BUNDLE, "trustBundle"))
    tree = plan_tree(pod(volume(config_map(), secret(), NAME, SA_TOKEN, bundle(name="roots"), mode=0o440)), found)
    assert shown(tree) == {
        "a": ("cm1/a", 0o440),
        "user": ("s1/user", 0o440),
        "name": ("p", 0o600),
        "token": (f"{TOKEN.name}/token", 0o440),
        "ca.pem": ("roots/trustBundle", 0o440),
    }


def test_no_sources_are_an_empty_volume() -> None:
    assert plan_tree(pod(volume()), objects()).files == ()
    assert plan_tree(pod({"projected": {"defaultMode": 0o644}}), objects()).files == ()


def test_no_default_mode() -> None:
    with pytest.raises(VolumeError, match=r"^no defaultMode used, not even the default value for it$"):
        plan_tree(pod(volume(config_map(), mode=None)), objects(known(CM1, "a")))


@pytest.mark.parametrize(("first", "second"), [("cm1", "cm2"), ("cm2", "cm1")])
def test_the_later_source_wins(first: str, second: str) -> None:
    found = objects(known(CM1, "k", "only1"), known(CM2, "k", "only2"))
    tree = plan_tree(pod(volume(config_map(first), config_map(second))), found)
    assert {path: where for path, (where, _) in shown(tree).items()} == {
        "k": f"{second}/k",
        "only1": "cm1/only1",
        "only2": "cm2/only2",
    }


def test_the_later_source_wins_over_a_token_too() -> None:
    found = objects(known(CM1, "token"), known(TOKEN, "token"))
    assert shown(plan_tree(pod(volume(SA_TOKEN, config_map())), found))["token"][0] == "cm1/token"
    assert shown(plan_tree(pod(volume(config_map(), SA_TOKEN)), found))["token"][0] == f"{TOKEN.name}/token"


def test_all_errors_are_told_each_once() -> None:
    found = objects(known(CM1, "a"), absent=(CM2, S1))
    assert failure(config_map("cm2"), secret(), known_objects=found) == (
        '[configmap "cm2" not found, secret "s1" not found]'
    )
    assert failure(config_map("cm2"), config_map("cm2"), known_objects=found) == 'configmap "cm2" not found'
    both = config_map("cm1", ("zz", "x"))
    assert failure(both, known_objects=found) == "configmap references non-existent config key: zz"


def test_errors_of_downward_api_stand_among_the_others() -> None:
    items = [{"path": str(number), "fieldRef": {"fieldPath": f"spec.{number}"}} for number in (1, 2)]
    message = failure({"downwardAPI": {"items": items}}, config_map(), known_objects=objects(absent=(CM1,)))
    assert message == '[unsupported fieldPath: spec.1, unsupported fieldPath: spec.2, configmap "cm1" not found]'


def test_optional_sources_may_be_missing() -> None:
    found = objects(known(CM1, "a"), absent=(CM2, S1))
    tree = plan_tree(pod(volume(config_map("cm2", optional=True), secret(optional=True), config_map())), found)
    assert list(shown(tree)) == ["a"]


def test_a_source_that_is_not_known_yet_is_waited_for() -> None:
    with pytest.raises(ObjectNotKnown):
        plan_tree(pod(volume(config_map("cm2"), config_map())), objects(absent=(CM2,)))


def test_a_file_where_a_directory_is_to_be() -> None:
    found = objects(known(CM1, "a"), known(CM2, "k"))
    assert failure(config_map(), config_map("cm2", ("k", "a/b")), known_objects=found) == (
        "open {root}/pods/uid-1/volumes/kubernetes.io~projected/v/..TS/a: is a directory"
    )


def test_what_a_token_is_asked_for() -> None:
    source = {"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}}
    (ref,) = references(pod(volume(source), serviceAccountName="robot"))
    assert (ref.kind, ref.namespace) == (SERVICE_ACCOUNT_TOKEN, "ns")
    assert token_spec(ref) == TokenSpec("robot", "vault", 600, "p", "uid-1")


def test_a_token_that_cannot_be_had() -> None:
    assert failure(SA_TOKEN, known_objects=objects(absent=(TOKEN,))) == (
        'failed to fetch token: serviceaccounts "default" not found'
    )
    message = "failed to fetch token: the server is busy"
    assert failure(SA_TOKEN, known_objects=objects(failed={TOKEN: message})) == message


@pytest.mark.parametrize(
    ("fields", "ref", "message"),
    [
        (
            {"name": "roots"},
            BUNDLE,
            'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "roots" not found',
        ),
        (
            {"signerName": "x.io/s", "labelSelector": {"matchLabels": {"a": "b"}}},
            signer_bundles_ref(TrustBundleSpec("x.io/s", LabelSelector({"a": "b"}))),
            "combination of signerName and labelSelector matched zero ClusterTrustBundles",
        ),
        (
            {"signerName": "x.io/s"},
            signer_bundles_ref(TrustBundleSpec("x.io/s")),
            "combination of signerName and labelSelector matched zero ClusterTrustBundles",
        ),
    ],
)
def test_trust_bundles(fields: dict[str, Any], ref: ObjectRef, message: str) -> None:
    assert references(pod(volume(bundle(**fields)))) == {ref}
    assert failure(bundle(**fields), known_objects=objects(absent=(ref,))) == message
    empty = plan_tree(pod(volume(bundle(**fields, optional=True))), objects(absent=(ref,)))
    assert shown(empty) == {"ca.pem": ("", 0o644)}
    owned = pod(volume(bundle(**fields)), securityContext={"runAsUser": 9, "fsGroup": 8})
    file = plan_tree(owned, objects(known(ref, "trustBundle"))).files[0]
    assert (file.mode, file.uid, file.gid) == (0o640, 9, 8)


def test_trust_bundle_of_nothing() -> None:
    assert references(pod(volume(bundle()))) == frozenset()
    assert failure(bundle()) == "ClusterTrustBundle projection requires either name or signerName to be set"


def test_trust_bundle_references_tell_their_selector() -> None:
    spec = TrustBundleSpec("x.io/s", LabelSelector({}))
    assert signer_bundles_spec(signer_bundles_ref(spec)) == spec
    assert signer_bundles_spec(BUNDLE) is None
    one, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    assert signer_bundles_ref(TrustBundleSpec("s", LabelSelector(one))) == signer_bundles_ref(
        TrustBundleSpec("s", LabelSelector(other))
    )


def test_pod_certificates_are_not_served() -> None:
    source = {"podCertificate": {"signerName": "x.io/s", "keyType": "ED25519"}}
    assert failure(source) == "podCertificate: Pod certificates are not served by fusevol"
    assert failure(source, config_map(), known_objects=objects(absent=(CM1,))) == (
        '[podCertificate: Pod certificates are not served by fusevol, configmap "cm1" not found]'
    )


def test_references() -> None:
    resource = {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}
    downward = {"downwardAPI": {"items": [resource]}}
    sources = (config_map(), config_map("cm2", optional=True), secret(), SA_TOKEN, downward, bundle(name="roots"))
    assert references(pod(volume(*sources))) == {CM1, CM2, S1, TOKEN, node_ref(NODE), BUNDLE}
