"""What a volume is to look like: the plan of a plugin, the message to the server.

A file's content is a reference into an object (object, version, key) or literal bytes: values of Secrets never stand in
a tree. Directories are implied by the paths of files. Modes are octal permission bits, uid and gid numbers.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from fusevol.model.refs import ObjectRef


class ContentRef(msgspec.Struct, frozen=True, tag="ref"):
    """The content of `key` in the object's `version`. `digest` is keyed (HMAC); it tells changes, not contents."""

    object: ObjectRef
    version: str
    key: str
    digest: str


class Literal(msgspec.Struct, frozen=True, tag="literal"):
    """Bytes that stand in the tree itself: downwardAPI."""

    data: bytes


class File(msgspec.Struct, frozen=True):
    """A file at `path` (clean, relative, `/` separated) below the timestamped directory.

    `uid` is also the owner of its user-visible top-level link (KUBELET.md 6.6).
    """

    path: str
    mode: int
    content: ContentRef | Literal
    uid: int = 0
    gid: int = 0


class Tree(msgspec.Struct, frozen=True):
    """A projected volume: its files and the modes of everything that is not a file.

    `mountpoints` are directories made in the volume's root for nested mounts (KUBELET.md 14.8). `gid` owns the root,
    all directories and links: the fsGroup, or 0 (KUBELET.md 10.3, 10.5).
    """

    files: tuple[File, ...]
    root_mode: int = 0o777
    directory_mode: int = 0o755
    gid: int = 0
    mountpoints: tuple[str, ...] = ()

    def links(self) -> dict[str, int]:
        """The user-visible top-level links and their uids.

        The link of a directory belongs to whom all its files belong to, else to root (kubelet: to the owner of a random
        one). Where a mount point stands there is no link: kubelet makes mount points first, and leaves what it finds.
        """
        owners: dict[str, set[int]] = {}
        for file in self.files:
            owners.setdefault(file.path.partition("/")[0], set()).add(file.uid)
        taken = {path.partition("/")[0] for path in self.mountpoints}
        return {top: uids.pop() if len(uids) == 1 else 0 for top, uids in owners.items() if top not in taken}

    def digest(self, key: bytes) -> str:
        """Equal for trees that look alike. Versions do not count: a change of metadata is no change."""
        described = [
            (file.path, file.mode, file.uid, file.gid, content_digest(key, file.content))
            for file in sorted(self.files, key=lambda file: file.path)
        ]
        whole = msgspec.msgpack.encode((described, self.root_mode, self.directory_mode, self.gid, self.mountpoints))
        return keyed_digest(key, whole)


class EmptyDir(msgspec.Struct, frozen=True):
    """An emptyDir as planned. `size_limit` in bytes or None; `medium` as in the API (`""` is the default medium)."""

    medium: str = ""
    mode: int = 0o777
    gid: int = 0
    size_limit: int | None = None
    mountpoints: tuple[str, ...] = ()


def keyed_digest(key: bytes, data: bytes | bytearray | memoryview) -> str:
    """HMAC-SHA256 with the server's key, hex. A plain digest of a Secret could be guessed."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def content_digest(key: bytes, content: ContentRef | Literal) -> str:
    return content.digest if isinstance(content, ContentRef) else keyed_digest(key, content.data)
