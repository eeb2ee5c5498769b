"""What a node's tree has to look like, from KUBELET.md alone: nothing of fusevol is imported here.

A `Namespace` is a model of one namespace's objects and Pods. Its operations say what they mean for the tree, and
`differences` compares it with a mount. Where objects do not resolve (one is missing, or a key, or paths collide) the
last good content stays, and which one that is depends on what the agent has seen: `Served.candidates` are all that
it may be.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec

import msgspec

TIMESTAMPED = re.compile(r"\.\.\d{4}(_\d\d){5}\.\d+")
MARKER = "marker"
P = ParamSpec("P")

# -- what a Pod asks for ----------------------------------------------------------------------------------------


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key (for downwardAPI a fieldPath) at a path."""

    key: str
    path: str
    mode: int | None = None


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a volume projects; without `items` the whole object."""

    kind: Literal["configMap", "secret", "downwardAPI"]
    name: str = ""
    items: tuple[Item, ...] = ()
    optional: bool = False


class VolumeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `projected` volume has any number of sources, an `emptyDir` none, the others one, of their own kind."""

    kind: Literal["configMap", "secret", "downwardAPI", "projected", "emptyDir"]
    sources: tuple[Source, ...] = ()
    mode: int | None = None
    mounted: bool = True  # by a container: what none mounts is not set up (KUBELET.md 1.6)

    @property
    def plugin(self) -> str:
        """As the name of a directory (KUBELET.md 1.25)."""
        own = {"configMap": "configmap", "downwardAPI": "downward-api", "emptyDir": "empty-dir"}
        return f"kubernetes.io~{own.get(self.kind, self.kind)}"

    def api(self) -> dict[str, object]:
        """The volume's source as the API has it."""
        if self.kind == "emptyDir":
            return {"emptyDir": {}}
        mode = {} if self.mode is None else {"defaultMode": self.mode}
        if self.kind == "projected":
            return {"projected": {**mode, "sources": [{source.kind: _api(source)} for source in self.sources]}}
        (source,) = self.sources
        fields = _api(source)
        if self.kind == "secret" and "name" in fields:
            fields["secretName"] = fields.pop("name")
        return {self.kind: {**fields, **mode}}


def _api(source: Source) -> dict[str, object]:
    if source.kind == "downwardAPI":
        items = [{"path": item.path, "fieldRef": {"fieldPath": item.key}, **_mode(item)} for item in source.items]
        return {"items": items}
    fields: dict[str, object] = {"name": source.name, "optional": source.optional}
    if source.items:
        fields["items"] = [{"key": item.key, "path": item.path, **_mode(item)} for item in source.items]
    return fields


def _mode(item: Item) -> dict[str, int]:
    return {} if item.mode is None else {"mode": item.mode}


# -- objects and Pods -------------------------------------------------------------------------------------------

Key = tuple[str, str]  # kind and name of an object
Data = dict[str, bytes]
Content = tuple[tuple[str, int, bytes], ...]
"""Files of a volume: path, mode before the fsGroup pass, bytes. Sorted, so that equal contents are equal."""


@dataclass(slots=True)
class Served:
    """A volume of a living Pod. `candidates` are the contents that it may show; None: it may not be there."""

    spec: VolumeSpec
    name: str
    candidates: tuple[Content | None, ...] = (None,)
    directory: str | None = None  # the timestamped one, when the tree was at rest last
    marked: bool = False  # emptyDir: the marker file was written
    unchanged: bool = False  # nothing that it projects has changed since


@dataclass(slots=True)
class PodModel:
    name: str
    uid: str
    labels: dict[str, str]
    group: int | None  # fsGroup
    volumes: list[Served]
    ended: bool = False  # Succeeded or Failed
    labels_seen: list[dict[str, str]] = field(default_factory=list)  # of this round, oldest first

    def path(self, volume: Served) -> str:
        return f"pods/{self.uid}/volumes/{volume.spec.plugin}/{volume.name}"


class Namespace:
    """The model of a namespace. `begin` starts a round; the operations are told when the API server has done them,
    or beforehand to a copy, to know what a reader may meet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[Key, Data] = {}
        self.immutable: set[Key] = set()
        self.pods: dict[str, PodModel] = {}  # by name
        self._seen: dict[Key, list[Data | None]] = {}  # all states of this round, oldest first

    def begin(self) -> None:
        self._seen = {}
        for pod in self.pods.values():
            pod.labels_seen = [pod.labels]

    def set_object(self, key: Key, data: Data, immutable: bool) -> None:
        self._saw(key)
        self.objects[key] = data
        self._seen[key].append(data)
        (self.immutable.add if immutable else self.immutable.discard)(key)

    def delete_object(self, key: Key) -> None:
        self._saw(key)
        self.objects.pop(key, None)
        self.immutable.discard(key)
        self._seen[key].append(None)

    def create_pod(
        self, name: str, uid: str, labels: dict[str, str], group: int | None, volumes: Iterable[VolumeSpec]
    ) -> None:
        served = [Served(spec, f"v{number}") for number, spec in enumerate(volumes) if spec.mounted]
        self.pods[name] = PodModel(name, uid, labels, group, served, labels_seen=[labels])

    def label_pod(self, name: str, labels: dict[str, str]) -> None:
        self.pods[name].labels = labels
        self.pods[name].labels_seen.append(labels)

    def end_pod(self, name: str) -> None:
        self.pods[name].ended = True

    def delete_pod(self, name: str) -> None:
        del self.pods[name]

    def _saw(self, key: Key) -> None:
        self._seen.setdefault(key, [self.objects.get(key)])

    # -- what follows for volumes -------------------------------------------------------------------------------

    def living(self) -> Iterator[tuple[PodModel, Served]]:
        """The volumes that are to be served."""
        return ((pod, volume) for pod in self.pods.values() if not pod.ended for volume in pod.volumes)

    def possible(self, pod: PodModel, volume: Served) -> tuple[Content | None, ...]:
        """All that the volume may show in the course of this round, whatever the agent gets to see of it: objects are
        watched one by one, so any of their states may meet."""
        keys = sorted({(source.kind, source.name) for source in volume.spec.sources})
        states = [self._seen.get(key, [self.objects.get(key)]) for key in keys]
        found = dict.fromkeys(volume.candidates)
        for objects in itertools.product(*states):
            for labels in pod.labels_seen:
                content = self._resolve(pod, volume, dict(zip(keys, objects, strict=True)), labels)
                if content is not None:
                    found[content] = None
        return tuple(found)

    def settle(self) -> None:
        """The round is over: what resolves is what is shown."""
        for pod, volume in self.living():
            possible = self.possible(pod, volume)
            volume.unchanged = len(possible) == 1 and volume.directory is not None
            now = self._resolve(pod, volume, self.objects, pod.labels)
            volume.candidates = possible if now is None else (now,)

    def _resolve(
        self, pod: PodModel, volume: Served, objects: Mapping[Key, Data | None], labels: Mapping[str, str]
    ) -> Content | None:
        """The volume's files, None where its set-up fails (KUBELET.md 3.5, 4.3, 6.2, 7)."""
        default = 0o644 if volume.spec.mode is None else volume.spec.mode
        files: dict[str, tuple[int, bytes]] = {}
        for source in volume.spec.sources:
            if source.kind == "downwardAPI":
                for item in source.items:
                    files[item.path] = (_or(item.mode, default), _field(self.name, pod, labels, item.key))
                continue
            data = objects.get((source.kind, source.name))
            if data is None:
                if not source.optional:
                    return None
                data = {}
            if not source.items:
                files.update({key: (default, value) for key, value in data.items()})
            for item in source.items:
                if item.key in data:
                    files[item.path] = (_or(item.mode, default), data[item.key])
                elif not source.optional:
                    return None
        if any(str(parent) in files for path in files for parent in Path(path).parents):
            return None  # a file where a directory is to be
        return tuple(sorted((path, mode, value) for path, (mode, value) in files.items()))


def _or(mode: int | None, default: int) -> int:
    return default if mode is None else mode


def _field(namespace: str, pod: PodModel, labels: Mapping[str, str], path: str) -> bytes:
    """Labels' values need no quoting."""
    values = {"metadata.name": pod.name, "metadata.namespace": namespace, "metadata.uid": pod.uid}
    if path == "metadata.labels":
        return "\n".join(f'{key}="{labels[key]}"' for key in sorted(labels)).encode()
    if path.startswith("metadata.labels['"):
        return labels.get(path.removeprefix("metadata.labels['").removesuffix("']"), "").encode()
    return values[path].encode()


def decoded(data: Mapping[str, str], binary: Mapping[str, str]) -> Data:
    """From a ConfigMap's `data` and `binaryData`."""
    return {key: value.encode() for key, value in data.items()} | {k: b64decode(v) for k, v in binary.items()}


# -- the mount --------------------------------------------------------------------------------------------------


def differences(mount: Path, state: Path, namespaces: Iterable[Namespace]) -> list[str]:
    """What is not as the models have it, one line each; an OSError is a difference too."""
    found: list[str] = []
    pods: set[str] = set()
    for namespace in namespaces:
        for pod in namespace.pods.values():
            pods.add(pod.uid)
            found += _guarded(_pod, mount, pod)
        found += _guarded(_names, mount, namespace)
    found += _guarded(_only_these_pods, mount, pods)
    return found + _guarded(_state, state, [pod for namespace in namespaces for pod in namespace.pods.values()])


def _guarded(check: Callable[P, Iterator[str]], *arguments: P.args, **_: P.kwargs) -> list[str]:
    try:
        return list(check(*arguments, **_))
    except OSError as error:
        return [str(error)]


def _only_these_pods(mount: Path, pods: set[str]) -> Iterator[str]:
    present = set(os.listdir(mount / "pods"))
    if present != pods:
        yield f"pods/: not wanted {sorted(present - pods)}, missing {sorted(pods - present)}"


def _names(mount: Path, namespace: Namespace) -> Iterator[str]:
    wanted = {pod.name: f"../../pods/{pod.uid}" for pod in namespace.pods.values() if not pod.ended}
    directory = mount / "by-name" / namespace.name
    present = {path.name: os.readlink(path) for path in directory.iterdir()} if wanted or directory.exists() else {}
    if present != wanted:
        yield f"by-name/{namespace.name}: {present}, not {wanted}"
    if not wanted and directory.exists():
        yield f"by-name/{namespace.name} is empty and there"


def _state(state: Path, pods: list[PodModel]) -> Iterator[str]:
    """emptyDirs on disk: those of living Pods with all that was written, no others."""
    uids = {pod.uid for pod in pods}
    for path in (state / "pods").iterdir() if (state / "pods").exists() else ():
        if path.name not in uids:
            yield f"state: {path.name} is of no Pod"
    for pod in pods:
        living = {volume.name: volume for volume in pod.volumes if volume.spec.kind == "emptyDir" and not pod.ended}
        for above in ("volumes", "plugins"):
            directory = state / "pods" / pod.uid / above / "kubernetes.io~empty-dir"
            present = set(os.listdir(directory)) if directory.exists() else set()
            if present != living.keys():
                yield f"state: {above} of {pod.uid} are {sorted(present)}, not {sorted(living)}"
            for name, volume in living.items():
                if above == "volumes" and volume.marked and (directory / name / MARKER).read_text() != pod.uid:
                    yield f"state: the marker in {pod.uid}/{name} is another"


def _pod(mount: Path, pod: PodModel) -> Iterator[str]:
    base = mount / "pods" / pod.uid
    yield from _is(base, stat.S_IFDIR | 0o750, 0)
    yield from _is(base / "volumes", stat.S_IFDIR | 0o750, 0)
    present: set[tuple[str, str]] = set()
    for plugin in (base / "volumes").iterdir():
        yield from _is(plugin, stat.S_IFDIR | 0o755, 0)
        if plugin.name not in {volume.spec.plugin for volume in pod.volumes}:
            yield f"{plugin}: no volume of the Pod is of this kind"
        present |= {(plugin.name, path.name) for path in plugin.iterdir()}
    for volume in () if pod.ended else pod.volumes:
        there = (volume.spec.plugin, volume.name) in present
        present.discard((volume.spec.plugin, volume.name))
        if volume.spec.kind == "emptyDir":
            yield from _empty_dir(mount / pod.path(volume), pod, volume) if there else [f"{volume.name}: not there"]
        elif not there:
            if None not in volume.candidates:
                yield f"{pod.path(volume)}: not there"
        else:
            yield from _projected(mount / pod.path(volume), pod, volume)
    if present:
        yield f"{base}: volumes {sorted(present)} are there"


def _empty_dir(root: Path, pod: PodModel, volume: Served) -> Iterator[str]:
    yield from _is(root, stat.S_IFDIR | (0o777 if pod.group is None else 0o2777), pod.group or 0)
    present = {path.name: path.read_text() for path in root.iterdir()}
    if present != ({MARKER: pod.uid} if volume.marked else {}):
        yield f"{root}: has {present}"


def _projected(root: Path, pod: PodModel, volume: Served) -> Iterator[str]:
    """One of the candidates, and in exactly AtomicWriter's layout (KUBELET.md 9), with modes and owners after the
    fsGroup pass (10.3)."""
    group = pod.group or 0
    root_mode = 0o777 if volume.spec.kind == "configMap" else 0o1777
    yield from _is(root, stat.S_IFDIR | root_mode | (0 if pod.group is None else 0o2000), group)
    current = os.readlink(root / "..data")
    if not TIMESTAMPED.fullmatch(current):
        yield f"{root}: ..data -> {current}"
    if volume.unchanged and current != volume.directory:
        yield f"{root}: was written anew, {current} instead of {volume.directory}, and nothing had changed"
    files, directories = scan(root / current)
    content = tuple(sorted((path, mode, data) for path, (mode, data) in files.items()))
    wanted = [_owned(candidate, pod.group) for candidate in volume.candidates if candidate is not None]
    if content not in wanted:
        yield f"{root}: shows {content}, not {' or '.join(map(str, wanted)) or 'nothing'}"
    needed = {str(parent) for path in files for parent in Path(path).parents}
    if directories | {"."} != needed | {"."}:
        yield f"{root}: directories {sorted(directories)}"
    for path in [".", *directories]:
        yield from _is(root / current / path, stat.S_IFDIR | (0o755 if pod.group is None else 0o2755), group)
    for path in files:
        yield from _is(root / current / path, None, group)
    links = {path.partition("/")[0] for path in files}
    if (present := set(os.listdir(root))) != links | {"..data", current}:
        yield f"{root}: has {sorted(present)}, not {sorted(links | {'..data', current})}"
    for name in links | {"..data"}:
        target = current if name == "..data" else f"..data/{name}"
        yield from _is(root / name, stat.S_IFLNK | 0o777, group)
        if (is_target := os.readlink(root / name)) != target:
            yield f"{root}/{name} -> {is_target}, not {target}"


def _owned(content: Content, group: int | None) -> Content:
    return tuple((path, mode | (0 if group is None else 0o440), data) for path, mode, data in content)


def _is(path: Path, mode: int | None, gid: int) -> Iterator[str]:
    """`mode` with the file's type; None where another has looked at it."""
    status = path.lstat()
    if mode is not None and status.st_mode != mode:
        yield f"{path}: mode {status.st_mode:o}, not {mode:o}"
    if (status.st_uid, status.st_gid) != (0, gid):
        yield f"{path}: owner {status.st_uid}:{status.st_gid}, not 0:{gid}"


def scan(directory: Path) -> tuple[dict[str, tuple[int, bytes]], set[str]]:
    """The files below (path → mode, content) and the directories."""
    files: dict[str, tuple[int, bytes]] = {}
    directories: set[str] = set()
    for above, below, names in os.walk(directory, onerror=_raise):
        directories |= {os.path.relpath(os.path.join(above, name), directory) for name in below}
        for name in names:
            path = os.path.join(above, name)
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is no file")
            with open(path, "rb") as file:
                data = file.read()
            if len(data) != status.st_size:
                raise OSError(f"{path} has {len(data)} bytes and says {status.st_size}")
            files[os.path.relpath(path, directory)] = (stat.S_IMODE(status.st_mode), data)
    return files, directories


def _raise(error: OSError) -> None:
    raise error
