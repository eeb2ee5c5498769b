from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fusevol.keeper.backoff import Backoff
from fusevol.keeper.child import how_it_ended
from fusevol.keeper.config import Config
from fusevol.keeper.log import Log
from fusevol.keeper.status import assemble
from fusevol.system.timestamps import timestamp


def test_quick_deaths_wait_longer_each_time() -> None:
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_long_life_starts_over() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after(0.1)
    assert [backoff.after(31), backoff.after(1)] == [0, 0.5]


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-63, "signal 63")]
)
def test_how_it_ended(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_the_configuration_comes_back_as_it_was() -> None:
    config = Config(
        mountpoint=Path("/mnt"),
        runtime_dir=Path("/run/x"),
        state_dir=Path("/state"),
        node="n",
        source={"kind": "kubeconfig", "file": "/k", "context": None},
        events=False,
        require_locked_memory=True,
        log_format="json",
        verbosity=2,
        lock_fd=7,
    )
    assert Config.from_json(config.to_json()) == config


def test_locked_is_both() -> None:
    locked = {"pid": 1, "startedAt": None, "restarts": 0, "rssBytes": 1, "lockedBytes": 1}
    unlocked = {**locked, "lockedBytes": 0}
    for server, agent, expected in (
        (locked, locked, True),
        (locked, unlocked, False),
        (unlocked, locked, False),
    ):
        status = assemble(
            engine="pyfuse3",
            source_kind="manifests",
            keeper=unlocked,
            server=server,
            agent=agent,
            told=None,
            stale=False,
        )
        assert status["locked"] is expected


def test_times_are_rfc_3339_in_utc() -> None:
    assert timestamp(1700000000.5) == "2023-11-14T22:13:20.500Z"


def test_log_lines() -> None:
    text, lines = io.StringIO(), io.StringIO()
    Log("text", 0, text).debug("hidden")
    Log("text", 0, text).warning("shown")
    assert text.getvalue().endswith(" [WARNING] keeper: shown\n")
    Log("json", 1, lines).debug("shown")
    line = json.loads(lines.getvalue())
    assert (line["level"], line["logger"], line["event"]) == ("debug", "keeper", "shown")
