"""The state of a volume as the server keeps it for the agent and shows it in extended attributes."""

from __future__ import annotations

import msgspec

from fusevol.model.refs import ObjectRef, VolumeRef


class ObjectVersion(msgspec.Struct, frozen=True, order=True):
    """An object that a volume shows, at its newest known resourceVersion."""

    ref: ObjectRef
    version: str


class VolumeMeta(msgspec.Struct, frozen=True):
    """What `user.fusevol.*` attributes tell. `updated` is RFC 3339 UTC; `generation` counts publications from 1."""

    namespace: str
    pod: str
    generation: int
    updated: str
    objects: tuple[ObjectVersion, ...] = ()


class VolumeView(msgspec.Struct, frozen=True):
    """The root of a projected volume as it stands at the server, for planning an update (atomic_writer.py).

    `data` is the target of `..data` or None; `data_tmp` that of a leftover `..data_tmp`; `directories` all timestamped
    directories with the paths below them (directories end with `/`); `links` the user-visible links; `current_links`
    those that the version which `..data` names is to have.
    """

    data: str | None
    data_tmp: str | None
    directories: dict[str, tuple[str, ...]]
    links: tuple[str, ...]
    current_links: tuple[str, ...]


class VolumeState(msgspec.Struct, frozen=True):
    """A published volume. `digest` is `Tree.digest` of the version that `..data` names; "" for an emptyDir.
    `settled` is false while an update is not finished: leftovers stand in its root."""

    ref: VolumeRef
    digest: str
    meta: VolumeMeta
    settled: bool
