"""What `fusevol wait --for` takes."""

import pytest

from fusevol.agent.barrier import Goal, parse_goal
from fusevol.model.refs import ObjectRef


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("synced", Goal()),
        ("pod/default/web", Goal(pod=("default", "web"))),
        ("object=ConfigMap/default/cm", Goal(object=ObjectRef("ConfigMap", "default", "cm"))),
        ("object=secret/ns/s@123", Goal(object=ObjectRef("Secret", "ns", "s"), version="123")),
    ],
)
def test_goals(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal


@pytest.mark.parametrize(
    "text",
    ["", "sync", "pod/web", "pod//web", "pod/a/b/c", "object=Pod/a/b", "object=ConfigMap/a", "object=Secret/a/b@"],
)
def test_what_is_no_goal_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        parse_goal(text)
