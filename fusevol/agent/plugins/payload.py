"""From an object's keys and a volume's items to files, and from files to a tree (KUBELET.md 3.4, 3.5, 9.1)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

import msgspec

from fusevol.agent.plugins.messages import NO_DEFAULT_MODE
from fusevol.agent.plugins.mountpoints import nested_mountpoints
from fusevol.agent.plugins.ownership import DIRECTORY, Ownership
from fusevol.agent.plugins.plugin import Objects, Unavailable
from fusevol.model.errors import VolumeError
from fusevol.model.objects import ObjectInfo
from fusevol.model.pod import KeyToPath, Pod, Volume
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import ContentRef, File, Literal, Tree

MAX_PATH = 4096
MAX_NAME = 255
"""Bytes (atomic_writer.go)."""


class WriteFailed(VolumeError):
    """What kubelet finds out only while it writes: the plugin's directory stands, the volume does not."""


class PathConflict(WriteFailed):
    """A file and a directory of the same path: kubelet tells the path that it tried to make.

    The plan knows neither the mount point nor the timestamped directory; str() has `{root}` and `..TS` in their place.
    """

    def __init__(self, operation: str, volume: VolumeRef, path: str, reason: str) -> None:
        self._parts = (operation, volume.path, path, reason)
        super().__init__(self.located("{root}", "..TS"))

    def located(self, root: str, directory: str) -> str:
        """The text with the mount point's path and the name of the timestamped directory."""
        operation, volume, path, reason = self._parts
        return f"{operation} {posixpath.normpath(posixpath.join(root, volume, directory, path))}: {reason}"


class Projection(msgspec.Struct, frozen=True):
    """A file before it has a path: its mode before the fsGroup pass, and the user that a token belongs to."""

    content: ContentRef | Literal
    mode: int
    uid: int = 0


Payload = dict[str, Projection]
"""Files by path as the Pod's author wrote it; a later file of the same path replaces an earlier one."""


def of_object(
    found: ObjectInfo | None, items: list[KeyToPath] | None, default_mode: int | None, optional: bool, missing_key: str
) -> Payload:
    """MakePayload of configMap and secret. `found` is None for an optional object that does not exist. `missing_key`
    stands before the name of a key that is not there."""
    if default_mode is None:
        raise VolumeError(NO_DEFAULT_MODE)
    if not items:
        return {key: Projection(key_content(found, key), default_mode) for key in found.keys} if found else {}
    payload: Payload = {}
    for item in items:
        if found is None or item.key not in found.keys:
            if optional:
                continue
            raise VolumeError(f"{missing_key}{item.key}")
        mode = default_mode if item.mode is None else item.mode
        payload[item.path] = Projection(key_content(found, item.key), mode)
    return payload


def key_content(found: ObjectInfo, key: str) -> ContentRef:
    return ContentRef(found.ref, found.content_version, key, found.keys[key].digest)


def fetched(objects: Objects, ref: ObjectRef, optional: bool, missing: str) -> ObjectInfo | None:
    """The object, or None if it is optional and does not exist. Raises VolumeError(missing), or with the error that the
    source met."""
    found = objects.get(ref)
    if isinstance(found, ObjectInfo):
        return found
    if isinstance(found, Unavailable):
        raise VolumeError(found.message)
    if optional:
        return None
    raise VolumeError(missing)


def tree(pod: Pod, volume: Volume, plugin: str, payload: Payload, root_mode: int) -> Tree:
    """The payload as AtomicWriter writes it and the fsGroup pass leaves it. Raises VolumeError."""
    mountpoints = nested_mountpoints(pod, volume.name)
    clean: Payload = {}
    for path, projection in payload.items():
        _validate(path)
        clean[posixpath.normpath(path)] = projection
    _refuse_conflicts(VolumeRef(pod.metadata.uid, plugin, volume.name), clean)
    owner = Ownership(pod)
    return Tree(
        files=tuple(
            File(path, owner.file(projection.mode), projection.content, projection.uid, owner.gid)
            for path, projection in sorted(clean.items())
        ),
        root_mode=owner.directory(root_mode),
        directory_mode=owner.directory(DIRECTORY),
        gid=owner.gid,
        mountpoints=mountpoints,
    )


def _validate(path: str) -> None:
    """validatePath of atomic_writer.go, in its order."""
    if not path:
        raise WriteFailed('invalid path: must not be empty: ""')
    if path.startswith("/"):
        raise WriteFailed(f"invalid path: must be relative path: {path}")
    if len(_utf8(path)) > MAX_PATH:
        raise WriteFailed(f"invalid path: must be less than or equal to {MAX_PATH} characters")
    names = path.split("/")
    for name in names:
        if name == "..":
            raise WriteFailed(f"invalid path: must not contain '..': {path}")
        if len(_utf8(name)) > MAX_NAME:
            raise WriteFailed(f"invalid path: filenames must be less than or equal to {MAX_NAME} characters")
    # kubelet looks at the path as written and takes `./..data`, whose link would stand where `..data` is
    if posixpath.normpath(path).startswith(".."):
        raise WriteFailed(f"invalid path: must not start with '..': {path}")


def _refuse_conflicts(volume: VolumeRef, paths: Iterable[str]) -> None:
    """A file where another's directory is to be. kubelet writes in random order and says `is a directory` or, if the
    file came first, `mkdir …/a/: file exists`; here it is always the former."""
    files = set(paths)
    if "." in files:
        raise PathConflict("open", volume, "", "is a directory")
    for path in sorted(files):
        parent = posixpath.dirname(path)
        while parent:
            if parent in files:
                raise PathConflict("open", volume, parent, "is a directory")
            parent = posixpath.dirname(parent)


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
