"""Pods' directories, by-name links and objects are put right as a whole."""

from fusevol.agent.volumemanager.inventory import Inventory
from fusevol.model.refs import ObjectRef
from fusevol.protocol.messages import AddPod, DropObject, RemovePod, SetName

OBJECT = ObjectRef("ConfigMap", "default", "cm")


def test_what_is_missing_is_made_and_what_is_not_wanted_goes() -> None:
    actual = Inventory({"old"}, {("default", "gone"): "old", ("default", "web"): "old"}, {OBJECT})
    wanted = Inventory({"new"}, {("default", "web"): "new"}, set())
    requests = actual.plan(wanted, may_remove_pods=True)
    assert requests == [
        AddPod("new"),
        SetName("default", "web", "new"),
        SetName("default", "gone", None),
        RemovePod("old"),
        DropObject(OBJECT),
    ]
    for request in requests:
        actual.done(request)
    assert actual == wanted
    assert actual.plan(wanted, may_remove_pods=True) == []


def test_before_the_first_sync_no_pod_goes() -> None:
    actual = Inventory({"old"}, {("default", "web"): "old"}, set())
    assert actual.plan(Inventory(), may_remove_pods=False) == []
