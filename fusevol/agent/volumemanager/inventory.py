"""What stands at the server besides volumes: Pods' directories, by-name links, objects. Put right as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusevol.model.refs import ObjectRef
from fusevol.protocol.messages import AddPod, DropObject, RemovePod, Request, SetName


@dataclass(slots=True)
class Inventory:
    """Pods by uid, names (namespace, name) → uid, objects. `remains`: Pods of which something may stand beside what
    `pods` says: made by a publication that AddPod came too late for, or left in the state directory."""

    pods: set[str] = field(default_factory=set)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: set[ObjectRef] = field(default_factory=set)
    remains: set[str] = field(default_factory=set)

    def plan(self, wanted: Inventory, may_remove_pods: bool) -> list[Request]:
        """The requests that make this inventory the wanted one. Objects are only dropped: deliveries put them. Pods and
        names go only once the source has synced."""
        requests: list[Request] = [AddPod(uid) for uid in sorted(wanted.pods - self.pods)]
        requests += [SetName(*name, uid) for name, uid in sorted(wanted.names.items()) if self.names.get(name) != uid]
        if may_remove_pods:
            requests += [SetName(*name, None) for name in sorted(self.names.keys() - wanted.names.keys())]
            requests += [RemovePod(uid) for uid in sorted((self.pods | self.remains) - wanted.pods)]
        return requests + [DropObject(ref) for ref in sorted(self.objects - wanted.objects)]

    def done(self, request: Request) -> None:
        """The server has done it."""
        match request:
            case AddPod(uid):
                self.pods.add(uid)
            case RemovePod(uid):
                self.pods.discard(uid)
                self.remains.discard(uid)
            case SetName(namespace, name, None):
                self.names.pop((namespace, name), None)
            case SetName(namespace, name, str() as uid):
                self.names[namespace, name] = uid
            case DropObject(ref):
                self.objects.discard(ref)
