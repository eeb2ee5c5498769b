"""Thirty random histories (`./scripts/bench histories -n 1000` runs more): see tests/support/history_runs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.histories import generate
from tests.support.history_runs import run

pytestmark = [pytest.mark.slow, pytest.mark.root]

HISTORIES = 30
LANES = 10
ROUNDS = 3


def test_at_rest_the_mount_is_the_model_and_no_reader_misses_a_key(tmp_path: Path) -> None:
    histories = generate(HISTORIES, ROUNDS, None)
    with Cluster() as cluster:
        for first in range(0, HISTORIES, LANES):
            outcome = run(cluster, tmp_path / str(first), histories[first : first + LANES], f"histories-{first}")
            assert not outcome.failed, "\n".join(
                f"{history}\n  " + "\n  ".join(lines) for history, lines in outcome.failed
            )
            assert outcome.reads > 100
