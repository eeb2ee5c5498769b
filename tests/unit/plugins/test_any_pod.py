"""Pods that no API server would take: planning refuses with VolumeError, waits with ObjectNotKnown, or plans."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusevol.agent.plugins.configmap import ConfigMapPlugin
from fusevol.agent.plugins.downwardapi import DownwardAPIPlugin
from fusevol.agent.plugins.emptydir import EmptyDirPlugin
from fusevol.agent.plugins.plugin import Absent, Objects, Unavailable
from fusevol.agent.plugins.projected import ProjectedPlugin
from fusevol.agent.plugins.registry import default_registry
from fusevol.agent.plugins.secret import SecretPlugin
from fusevol.model.errors import ObjectNotKnown, VolumeError
from fusevol.model.objects import KeyInfo, ObjectInfo, node_ref
from fusevol.model.pod import Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import EmptyDir, Tree
from tests.unit.plugins.builders import ALLOCATABLE, NODE

REGISTRY = default_registry()
PLUGINS = (ConfigMapPlugin(), DownwardAPIPlugin(), EmptyDirPlugin(), ProjectedPlugin(), SecretPlugin())

NAMES = st.sampled_from(["v", "w", "c", "", "..", "a/b", "cm", "k", "x" * 300, "ü" * 200]) | st.text(max_size=5)
PATHS = NAMES | st.sampled_from(
    ["/v", "/v/w", "//v", "../v", "/v/../w", "a/b", "a/b/c", "..data", "/", ".", "x" * 5000]
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 0, 0o777, 2**31, 99999999999])
AMOUNTS = (
    st.sampled_from(["1", "1Mi", "100m", "-1", "0", "1e900", "-1e900", "1e-900", "100Ei", "9" * 5000, "Ki", "x", ""])
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
)
MAPS = st.dictionaries(NAMES | st.just("x" * 100_000), NAMES | st.just("ü\n" * 50_000), max_size=3)
RESOURCES = st.dictionaries(
    st.sampled_from(["cpu", "memory", "ephemeral-storage", "hugepages-2Mi", "hugepages-", "hugepages-x", ""]),
    AMOUNTS,
    max_size=4,
)


def struct(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, null or with a value, and at times one that nobody knows."""
    values = {name: st.none() | values for name, values in fields.items()}
    return st.fixed_dictionaries({}, optional={**values, "unknownField": st.just({"deep": [1]})})


def with_required(required: dict[str, st.SearchStrategy[Any]], **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda known, more: {**known, **more}, st.fixed_dictionaries(required), struct(**fields))


def listed(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, max_size=3)


ITEMS = listed(with_required({"key": NAMES, "path": PATHS}, mode=NUMBERS))
FIELDS = st.sampled_from(
    [
        "metadata.name",
        "metadata.uid",
        "metadata.labels",
        "metadata.annotations",
        "metadata.labels['k']",
        "['']",
        "spec.x",
    ]
)
RESOURCE = st.sampled_from(
    [
        f"{where}.{what}"
        for where in ("limits", "requests")
        for what in ("cpu", "memory", "hugepages-2Mi", "hugepages-", "x")
    ]
)
DOWNWARD = listed(
    with_required(
        {"path": PATHS},
        mode=NUMBERS,
        fieldRef=with_required({"fieldPath": FIELDS | NAMES}),
        resourceFieldRef=with_required({"resource": RESOURCE | NAMES}, containerName=NAMES, divisor=AMOUNTS),
    )
)
FLAGS = st.booleans()
SELECTORS = struct(
    matchLabels=MAPS, matchExpressions=listed(with_required({"key": NAMES, "operator": NAMES}, values=listed(NAMES)))
)
SOURCES = struct(
    configMap=struct(name=NAMES, items=ITEMS, optional=FLAGS),
    secret=struct(name=NAMES, items=ITEMS, optional=FLAGS),
    downwardAPI=struct(items=DOWNWARD),
    serviceAccountToken=with_required({"path": PATHS}, audience=NAMES, expirationSeconds=NUMBERS),
    clusterTrustBundle=with_required(
        {"path": PATHS}, name=NAMES, signerName=NAMES, labelSelector=SELECTORS, optional=FLAGS
    ),
    podCertificate=struct(signerName=NAMES, keyType=NAMES),
)
VOLUME_SOURCES = [
    ("configMap", struct(name=NAMES, items=ITEMS, defaultMode=NUMBERS, optional=FLAGS)),
    ("secret", struct(secretName=NAMES, items=ITEMS, defaultMode=NUMBERS, optional=FLAGS)),
    ("downwardAPI", struct(items=DOWNWARD, defaultMode=NUMBERS)),
    ("projected", struct(sources=listed(SOURCES), defaultMode=NUMBERS)),
    ("emptyDir", struct(medium=st.sampled_from(["", "Memory", "HugePages", "HugePages-2Mi", "x"]), sizeLimit=AMOUNTS)),
]
VOLUMES = st.one_of(
    [with_required({"name": NAMES, kind: source}) for kind, source in VOLUME_SOURCES]
    + [with_required({"name": NAMES}, **dict(VOLUME_SOURCES))]
)
CONTAINERS = with_required(
    {"name": NAMES},
    volumeMounts=listed(with_required({"name": NAMES}, mountPath=PATHS, subPath=PATHS)),
    resources=struct(limits=RESOURCES, requests=RESOURCES),
    securityContext=struct(runAsUser=NUMBERS),
    restartPolicy=st.sampled_from(["", "Always"]),
)
SPECS = with_required(
    {"volumes": st.lists(VOLUMES, min_size=1, max_size=3)},
    serviceAccountName=NAMES,
    containers=listed(CONTAINERS),
    initContainers=listed(CONTAINERS),
    ephemeralContainers=listed(CONTAINERS),
    securityContext=struct(runAsUser=NUMBERS, fsGroup=NUMBERS),
    resources=struct(limits=RESOURCES, requests=RESOURCES),
    overhead=RESOURCES,
)
PODS = st.builds(
    lambda metadata, spec: {"metadata": {"uid": "u", **metadata}, "spec": spec},
    struct(name=NAMES, namespace=NAMES, labels=MAPS, annotations=MAPS),
    SPECS,
)
KEYS = st.dictionaries(NAMES | st.sampled_from(["token", "trustBundle"]), st.just(KeyInfo(1, "digest")), max_size=4)


def pod_of(raw: dict[str, Any]) -> Pod:
    """As a source delivers it: nulls are fields that are not set."""

    def dropped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: dropped(item) for key, item in value.items() if item is not None}
        return [dropped(item) for item in value] if isinstance(value, list) else value

    return msgspec.convert(dropped(raw), Pod)


def plans(pod: Pod, volume: Volume, objects: Objects) -> bool:
    try:
        planned = REGISTRY.find_by_spec(volume).plan(pod, volume, objects, NODE)
    except (VolumeError, ObjectNotKnown):
        return False
    assert isinstance(planned, Tree | EmptyDir)
    assert msgspec.msgpack.encode(planned)
    return True


def answers(keys: dict[str, KeyInfo], ref: ObjectRef, node: dict[str, str]) -> ObjectInfo:
    if ref == node_ref(NODE):
        return ObjectInfo(ref, "n", "1", "1", False, {}, node)
    return ObjectInfo(ref, "uid", "7", "5", False, keys)


@settings(max_examples=400, deadline=None)
@given(PODS, KEYS, st.just(ALLOCATABLE) | st.dictionaries(st.sampled_from(["cpu", "memory"]), st.text(max_size=5)))
def test_planning_raises_nothing_else(raw: dict[str, Any], keys: dict[str, KeyInfo], node: dict[str, str]) -> None:
    pod = pod_of(raw)
    for volume in pod.spec.volumes or ():
        plugins = [plugin for plugin in PLUGINS if plugin.can_support(volume)]
        refs = {ref for plugin in plugins for ref in plugin.references(pod, volume, NODE)}
        plans(pod, volume, Objects({ref: answers(keys, ref, node) for ref in refs}))
        plans(pod, volume, Objects({ref: Absent() for ref in refs}))
        plans(pod, volume, Objects({ref: Unavailable("not now") for ref in refs}))
        plans(pod, volume, Objects({}))
    assert pod.used_volumes is not None


@given(AMOUNTS, AMOUNTS, RESOURCE)
@example("1e900", "1", "limits.memory")
@example("1", "1e900", "limits.cpu")
@example("1e900", "1e-900", "requests.hugepages-2Mi")
def test_any_amount_and_divisor(amount: str | int | float, divisor: str | int | float, resource: str) -> None:
    container = {
        "name": "c",
        "resources": {where: {resource.partition(".")[2]: amount} for where in ("limits", "requests")},
    }
    item = {"path": "p", "resourceFieldRef": {"resource": resource, "containerName": "c", "divisor": divisor}}
    volume = {"name": "v", "downwardAPI": {"items": [item], "defaultMode": 0o644}}
    pod = pod_of({"metadata": {"uid": "u"}, "spec": {"volumes": [volume], "containers": [container]}})
    node = node_ref(NODE)
    (found,) = pod.spec.volumes or ()
    plans(pod, found, Objects({node: ObjectInfo(node, "n", "1", "1", False, {}, ALLOCATABLE)}))


def test_the_same_name_twice() -> None:
    volumes = [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "nosuch", "mountPath": "/v/n"}]
    pod = pod_of(
        {"metadata": {"uid": "u"}, "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts}]}}
    )
    assert all(
        plans(pod, volume, Objects({node_ref(NODE): Absent()})) is (not index)
        for index, volume in enumerate(pod.used_volumes)
    )
