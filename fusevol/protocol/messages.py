"""Messages of the control socket, agent → server, one reply each, in order. msgpack, tagged by the class's name.

Versioned as a whole: a server that gets another `Hello.version` than its own answers `Failed`. Contents are
memoryviews: decoded in place from the receive buffer, copied once into the content store, and the buffer is wiped.
"""

from __future__ import annotations

import msgspec

from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import VolumeMeta, VolumeState, VolumeView

VERSION = 1


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all requests and replies."""


# ------------------------------------------------------------------------------------------------ requests


class Hello(Message, frozen=True):
    """First on every connection → Welcome. A second agent takes over: the older connection is closed."""

    version: int = VERSION


class PutObject(Message, frozen=True):
    """The contents of an object's version → Done. Replaces the object's older version; what volumes still show of that
    stays. Keys whose bytes are those of the version before share its memory."""

    ref: ObjectRef
    version: str
    data: dict[str, memoryview]


class DropObject(Message, frozen=True):
    """No volume references the object any more → Done (also if it is not there)."""

    ref: ObjectRef


class AddPod(Message, frozen=True):
    """Makes `pods/<uid>/volumes` → Done (also if it is there)."""

    uid: str


class AddPlugin(Message, frozen=True):
    """Makes the directory of a plugin in a Pod's `volumes` → Done (also if it is there). It comes with its first volume
    and goes with its Pod; kubelet leaves it too where a volume failed only while it was written."""

    uid: str
    plugin: str


class RemovePod(Message, frozen=True):
    """Removes `pods/<uid>` and whatever of the Pod is still published → Done (also if it is not there)."""

    uid: str


class Publish(Message, frozen=True):
    """A volume's first set-up, visible in one step → Done. `directory` is the `..<timestamp>` name.
    Failed if the volume is there, or if the server lacks a referenced content."""

    volume: VolumeRef
    directory: str
    tree: Tree
    digest: str
    meta: VolumeMeta


class Stage(Message, frozen=True):
    """The next version of a published volume → View. Nothing is visible yet: from here on the writer thread may make
    exactly the changes of an update through the mount (atomic_writer.py). It replaces what was staged before. With
    `directory` = "" nothing is staged (tree, digest and meta are not looked at): only what an interrupted update left
    may be put right (leftovers removed, links made that the current version needs and removed that it lacks)."""

    volume: VolumeRef
    directory: str
    tree: Tree
    digest: str
    meta: VolumeMeta


class Annotate(Message, frozen=True):
    """Other metadata, same content: the extended attributes change → Done."""

    volume: VolumeRef
    meta: VolumeMeta


class PublishEmptyDir(Message, frozen=True):
    """An emptyDir over `backing`, an absolute path of an existing directory → Done (also if it is there).
    `mode` and `gid` are used when a removed backing directory is made anew."""

    volume: VolumeRef
    backing: str
    mode: int
    gid: int
    meta: VolumeMeta


class Unpublish(Message, frozen=True):
    """Removes a volume of any kind from the tree → Done (also if it is not there). Open files of API volumes read on;
    the backing directory of an emptyDir is closed and left."""

    volume: VolumeRef


class SetName(Message, frozen=True):
    """`by-name/<namespace>/<name>` becomes a link to the Pod, or goes if `uid` is None → Done."""

    namespace: str
    name: str
    uid: str | None


class ListVolumes(Message, frozen=True):
    """→ Volumes: all that is published. For reconstruction after the agent's restart."""


class RegisterWriter(Message, frozen=True):
    """The next LOOKUP of `nonce` in the mount's root makes its thread this connection's writer → Done."""

    nonce: str


class ConfirmWriter(Message, frozen=True):
    """→ Done if the registered nonce was looked up by a thread that the server could identify, else Failed."""


Request = (
    Hello
    | PutObject
    | DropObject
    | AddPod
    | AddPlugin
    | RemovePod
    | Publish
    | Stage
    | Annotate
    | PublishEmptyDir
    | Unpublish
    | SetName
    | ListVolumes
    | RegisterWriter
    | ConfirmWriter
)

# ------------------------------------------------------------------------------------------------ replies


class Done(Message, frozen=True):
    """It is so now."""


class Failed(Message, frozen=True):
    """It is not; `message` says why, without any content."""

    message: str


class Welcome(Message, frozen=True):
    """`digest_key` keys all digests for as long as the server's state lives; `incarnation` changes when that state was
    lost (then everything is to be published again). What stands at the server besides volumes: `pods` that have a
    directory, `names` (namespace, name) → uid, and the `objects` that it holds."""

    version: int
    digest_key: bytes
    incarnation: str
    pods: tuple[str, ...]
    names: dict[tuple[str, str], str]
    objects: tuple[ObjectRef, ...]


class Volumes(Message, frozen=True):
    volumes: tuple[VolumeState, ...]


class View(Message, frozen=True):
    view: VolumeView


Reply = Done | Failed | Welcome | Volumes | View
