"""The plan of a pass: exclusivity, order, and nothing torn down before the first sync."""

import pytest

from fusevol.agent.volumemanager.backoff import Backoff
from fusevol.agent.volumemanager.reconciler import Action, Operation, plan
from fusevol.agent.volumemanager.standing import stands_on
from fusevol.model.refs import VolumeRef

A, B, C = (VolumeRef("uid", "kubernetes.io/configmap", name) for name in "abc")


@pytest.mark.parametrize(
    ("marked", "desired", "actual", "busy", "may_tear_down", "expected"),
    [
        pytest.param({A}, {A}, set(), set(), False, [(Action.SET_UP, A)], id="set up before the first sync"),
        pytest.param({A}, {A}, {A}, set(), True, [(Action.SET_UP, A)], id="set up again what changed"),
        pytest.param({A}, set(), {A}, set(), False, [], id="nothing torn down before the first sync"),
        pytest.param({A}, set(), {A}, set(), True, [(Action.TEAR_DOWN, A)], id="torn down after it"),
        pytest.param({A}, set(), set(), set(), True, [], id="neither wanted nor there"),
        pytest.param({A}, {A}, {A}, {A}, True, [], id="one operation at a time"),
        pytest.param(set(), {A}, {B}, set(), True, [], id="only what is marked is looked at"),
        pytest.param(
            {A, B, C},
            {A, C},
            {B, C},
            set(),
            True,
            [(Action.TEAR_DOWN, B), (Action.SET_UP, A), (Action.SET_UP, C)],
            id="unmounts before mounts",
        ),
    ],
)
def test_plan(marked, desired, actual, busy, may_tear_down, expected) -> None:  # type: ignore[no-untyped-def]
    assert plan(marked, desired, actual, busy, may_tear_down) == [Operation(*pair) for pair in expected]


def test_backoff_is_kubelets_series() -> None:
    backoff = Backoff()
    assert [backoff.failed(A) for _ in range(11)] == [0.5, 1, 2, 4, 8, 16, 32, 64, 122, 122, 122]
    assert backoff.failed(B) == 0.5
    backoff.succeeded(A)
    assert backoff.failed(A) == 0.5


VOLUME = "/pods/uid/volumes/kubernetes.io~configmap/a"


@pytest.mark.parametrize(
    ("root", "stands"),
    [
        (VOLUME, True),
        (f"{VOLUME}/..2026_11_22_19_35_31.1/key", True),
        ("/pods/uid", True),
        ("/pods/uid/volumes", True),
        ("/pods/uid/volumes/kubernetes.io~configmap", True),
        ("/pods/uid/volumes/kubernetes.io~configmap/ab", False),
        ("/pods/uid2", False),
        ("/pods", False),
        ("/", False),
    ],
)
def test_what_stands_on_a_volume(root: str, stands: bool) -> None:
    assert stands_on(root, A) is stands
