"""What a source is, and what it delivers to.

A source delivers every Pod of the node, and objects by reference: only those that were asked for with `reference`. It
never decides anything; desired state does. All calls of `Sink` but `deliver_object` are synchronous and cheap.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from fusevol.model.objects import DeliveredObject
from fusevol.model.pod import Pod
from fusevol.model.refs import ObjectRef


class SourceProblem(msgspec.Struct, frozen=True):
    """Something that a person must mend: an invalid manifest (with file and line), an API server that refuses."""

    message: str
    file: str | None = None
    line: int | None = None


class Sink(Protocol):
    """The side that a source delivers to."""

    def pod_changed(self, pod: Pod) -> None:
        """The Pod is there, new or changed. Delivering an equal one again is harmless."""

    def pod_gone(self, uid: str) -> None:
        """The source has this Pod no longer."""

    def pods_synced(self) -> None:
        """All Pods that exist have been delivered at least once: from now on what was not delivered may be removed."""

    async def deliver_object(self, delivered: DeliveredObject) -> None:
        """A referenced object is there, new or changed. Returns when the server has its contents; the caller then wipes
        them. An unchanged one is harmless."""

    def object_missing(self, ref: ObjectRef) -> None:
        """A referenced object does not exist (any more). What volumes show of it stays."""

    def object_failed(self, ref: ObjectRef, message: str) -> None:
        """A referenced object cannot be had; `message` is told to the Pod as a FailedMount Event. The source goes on
        trying."""

    def problems(self, problems: tuple[SourceProblem, ...]) -> None:
        """All current problems, replacing those told before."""


class Source(Protocol):
    """Delivers to the Sink that it was made with."""

    kind: str
    """`manifests`, `kubeconfig` or `in-cluster`."""

    async def run(self) -> None:
        """Delivers until cancelled. Faults of the API server or of a file never end it."""

    def reference(self, ref: ObjectRef) -> None:
        """From now on the object is delivered, at once and at each change. Asking twice is one reference."""

    def dereference(self, ref: ObjectRef) -> None:
        """The object is not needed any more; its delivery stops soon."""

    async def refresh(self) -> None:
        """The barrier of `fusevol wait`: reads everything anew (the directory; a list of Pods and a GET of each
        referenced object) and has delivered what is newer when it returns. Raises SourceUnavailable."""

    async def redeliver(self) -> None:
        """The server has lost its contents: every referenced object is to be delivered again, even if unchanged.
        Returns at once or after a while; what cannot be had now is delivered when it can."""


class SourceUnavailable(Exception):
    """The source cannot be read now; str() says why in one line."""
