"""Random histories of a namespace: what they are made of, how hypothesis draws them, and doing them.

A history is the life of one namespace, in rounds: operations at the API server, and what happens to the agent and to
the way to the API server meanwhile. All of it is data: it can be printed as JSON and read again (`decode`).
`history_runs` runs them.
"""

from __future__ import annotations

import base64

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.cluster import Client
from tests.support.desired_tree import Item, Key, Namespace, Source, VolumeSpec, decoded

# -- operations -------------------------------------------------------------------------------------------------


class SetObject(msgspec.Struct, frozen=True, tag="set", omit_defaults=True):
    """Creates or replaces a ConfigMap or Secret. An immutable one, or with `anew` any, is deleted first."""

    kind: str
    name: str
    data: dict[str, str]
    binary: dict[str, str] = {}  # base64
    immutable: bool = False
    anew: bool = False


class DeleteObject(msgspec.Struct, frozen=True, tag="delete"):
    kind: str
    name: str


class SetPod(msgspec.Struct, frozen=True, tag="pod", omit_defaults=True):
    """Creates a Pod; one of this name is deleted first."""

    name: str
    volumes: tuple[VolumeSpec, ...]
    labels: dict[str, str] = {}
    group: int | None = None


class LabelPod(msgspec.Struct, frozen=True, tag="label"):
    name: str
    labels: dict[str, str]


class EndPod(msgspec.Struct, frozen=True, tag="end"):
    name: str
    phase: str


class DeletePod(msgspec.Struct, frozen=True, tag="delete-pod"):
    name: str


Operation = SetObject | DeleteObject | SetPod | LabelPod | EndPod | DeletePod


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens `at` seconds after the round has begun: the agent is killed, the API server cannot be reached for
    `outage` seconds (all connections are cut, the agent dies in the middle of it), or both."""

    kill: bool = False
    outage: float = 0.0
    at: float = 0.0


class Round(msgspec.Struct, frozen=True, omit_defaults=True):
    """`pauses` in seconds: before each operation."""

    operations: tuple[Operation, ...]
    pauses: tuple[float, ...]
    fault: Fault = Fault()


class History(msgspec.Struct, frozen=True):
    rounds: tuple[Round, ...]

    def __str__(self) -> str:
        """As JSON, for `decode`."""
        return msgspec.json.encode(self).decode()


def decode(text: str | bytes) -> History:
    """Raises msgspec.DecodeError, which is a ValueError."""
    return msgspec.json.decode(text, type=History)


# -- what hypothesis draws from ---------------------------------------------------------------------------------

OBJECTS = (("ConfigMap", "one"), ("ConfigMap", "two"), ("Secret", "one"), ("Secret", "two"))
KEYS = ["a", "b", "c.txt", "d"]
PATHS = ["a", "b", "d/x", "d/y", "e/f/z", "k"]  # beside a key `d`, `d/x` is a file below a file
FIELDS = ["metadata.labels", "metadata.labels['app']", "metadata.name", "metadata.uid"]
MODES = [None, None, None, 0o400, 0o600, 0o755]
PODS = ("p", "q")

_values = st.sampled_from(["1", "2", "3", "four\n", "x" * 40, "ä→🎉", "", b"\xff\x00", b"\x80" * 100, None, None, None])
_labels = st.dictionaries(st.sampled_from(["app", "example.com/tier"]), st.sampled_from(["x", "y-1", ""]))
_pods = st.sampled_from(PODS)


@st.composite
def _set_object(draw: st.DrawFn, objects: tuple[tuple[str, str], ...] = OBJECTS) -> SetObject:
    kind, name = draw(st.sampled_from(objects))
    values = {key: draw(_values) for key in KEYS}
    rare = draw(st.integers(0, 9))
    return SetObject(
        kind,
        name,
        {key: value for key, value in values.items() if isinstance(value, str)},
        {key: base64.b64encode(value).decode() for key, value in values.items() if isinstance(value, bytes)},
        immutable=rare == 8,
        anew=rare == 9,
    )


@st.composite
def _source(draw: st.DrawFn, paths: list[str], kind: str) -> Source:
    """Takes the paths of its items from `paths`: the API server wants each of them once in a volume."""
    count = draw(st.integers(0, min(3, len(paths)))) if kind != "downwardAPI" else min(2, len(paths))
    keys = FIELDS if kind == "downwardAPI" else KEYS
    items = tuple(
        Item(draw(st.sampled_from(keys)), paths.pop(draw(st.integers(0, len(paths) - 1))), draw(st.sampled_from(MODES)))
        for _ in range(count)
    )
    if kind == "downwardAPI":
        return Source("downwardAPI", items=items)
    name = draw(st.sampled_from(["one", "two"]))
    return Source("configMap" if kind == "configMap" else "secret", name, items, draw(st.booleans()))


@st.composite
def _volume(draw: st.DrawFn) -> VolumeSpec:
    kind = draw(st.sampled_from(["configMap", "secret", "projected", "projected", "downwardAPI", "emptyDir"]))
    paths = list(PATHS)
    if kind == "projected":
        kinds = draw(st.lists(st.sampled_from(["configMap", "secret", "downwardAPI"]), min_size=1, max_size=3))
    else:
        kinds = [] if kind == "emptyDir" else [kind]
    sources = tuple(draw(_source(paths, each)) for each in kinds)
    mode = draw(st.sampled_from(MODES)) if sources else None
    return VolumeSpec(kind, sources, mode, mounted=draw(st.integers(0, 9)) != 9)  # type: ignore[arg-type]


@st.composite
def _set_pod(draw: st.DrawFn, names: tuple[str, ...] = PODS) -> SetPod:
    return SetPod(
        draw(st.sampled_from(names)),
        tuple(draw(st.lists(_volume(), min_size=1, max_size=4))),
        draw(_labels),
        draw(st.sampled_from([None, None, 0, 1234])),
    )


_operation = st.one_of(  # changes of objects are what most of it is about
    _set_object(),
    _set_object(),
    _set_object(),
    st.builds(lambda key: DeleteObject(*key), st.sampled_from(OBJECTS)),
    _set_pod(),
    _set_pod(),
    st.builds(LabelPod, _pods, _labels),
    st.one_of(st.builds(DeletePod, _pods), st.builds(EndPod, _pods, st.sampled_from(["Succeeded", "Failed"]))),
)
_fault = st.one_of(
    st.just(Fault()),
    st.builds(Fault, kill=st.just(True), at=st.sampled_from([0.0, 0.02, 0.1])),
    st.builds(Fault, outage=st.sampled_from([0.05, 0.3, 1.0]), at=st.sampled_from([0.0, 0.05])),
    st.builds(Fault, kill=st.just(True), outage=st.sampled_from([0.05, 0.3, 1.0]), at=st.sampled_from([0.0, 0.05])),
)


@st.composite
def histories(draw: st.DrawFn, rounds: int) -> History:
    """The first round makes objects and Pods, so that the others have something to change."""
    found = []
    for number in range(rounds):
        operations: list[Operation] = []
        if number == 0:
            operations += [draw(_set_object((each,))) for each in OBJECTS]
            operations += [draw(_set_pod((each,))) for each in PODS]
        operations += draw(st.lists(_operation, min_size=1, max_size=6))
        pauses = tuple(draw(st.sampled_from([0.0, 0.0, 0.01, 0.05])) for _ in operations)
        found.append(Round(tuple(operations), pauses, draw(_fault)))
    return History(tuple(found))


SIMPLE = 20
"""hypothesis begins with the simplest histories that there are; so many are left out."""


def generate(count: int, rounds: int, number: int | None) -> list[History]:
    """`count` histories, the same ones for the same seed `number`; None: always the same ones."""
    found: list[History] = []

    @settings(
        max_examples=SIMPLE + count,
        derandomize=number is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(histories(rounds))
    def collect(history: History) -> None:
        found.append(history)

    (collect if number is None else seed(number)(collect))()
    return found[-count:]


# -- doing them ------------------------------------------------------------------------------------------------


def perform(operation: Operation, model: Namespace, api: Client | None, node: str) -> None:
    """Does the operation, as far as it makes sense, and tells the model of it. Without `api` it is only thought of."""
    match operation:
        case SetObject(kind, name):
            _set(operation, model, api)
        case DeleteObject(kind, name):
            key = _key(kind, name)
            if key in model.objects:
                if api:
                    api.delete(kind, name, model.name)
                model.delete_object(key)
        case SetPod(name, volumes, labels, group):
            if name in model.pods:
                perform(DeletePod(name), model, api, node)
            created = api.create(_pod(operation, node), model.name) if api else {"metadata": {"uid": ""}}
            model.create_pod(name, created["metadata"]["uid"], labels, group, volumes)
        case LabelPod(name, labels) if name in model.pods:
            if api:
                old = dict.fromkeys(model.pods[name].labels.keys() - labels.keys())
                api.patch("Pod", name, {"metadata": {"labels": {**old, **labels}}}, model.name)
            model.label_pod(name, labels)
        case EndPod(name, phase) if name in model.pods and not model.pods[name].ended:
            if api:
                api.patch("Pod", name, {"status": {"phase": phase}}, model.name, subresource="status")
            model.end_pod(name)
        case DeletePod(name) if name in model.pods:
            if api:
                api.delete("Pod", name, model.name, grace_seconds=0)
            model.delete_pod(name)


def _set(operation: SetObject, model: Namespace, api: Client | None) -> None:
    kind, name = operation.kind, operation.name
    key = _key(kind, name)
    values = {"data": operation.data, "binaryData": operation.binary}
    if kind == "Secret":
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in operation.data.items()}
        values = {"data": encoded | operation.binary}
    metadata = {"name": name, "namespace": model.name}
    obj = {"kind": kind, "metadata": metadata, "immutable": operation.immutable, **values}
    if key in model.objects and (operation.anew or key in model.immutable):
        perform(DeleteObject(kind, name), model, api, "")
    if api:
        (api.replace if key in model.objects else api.create)(obj)
    model.set_object(key, decoded(operation.data, operation.binary), operation.immutable)


def _key(kind: str, name: str) -> Key:
    return {"ConfigMap": "configMap", "Secret": "secret"}[kind], name


def _pod(operation: SetPod, node: str) -> dict[str, object]:
    volumes = [(f"v{number}", volume) for number, volume in enumerate(operation.volumes)]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name, volume in volumes if volume.mounted]
    security = {} if operation.group is None else {"securityContext": {"fsGroup": operation.group}}
    return {
        "kind": "Pod",
        "metadata": {"name": operation.name, "labels": operation.labels},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "busybox", "volumeMounts": mounts}],
            "volumes": [{"name": name, **volume.api()} for name, volume in volumes],
            **security,
        },
    }
