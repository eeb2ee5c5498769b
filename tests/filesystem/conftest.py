"""A server on a real mount, and an emptyDir that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.emptydir import Volume
from tests.support.server import ServerUnderTest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerUnderTest]:
    with ServerUnderTest(tmp_path) as server:
        yield server


@pytest.fixture
def volume(server: ServerUnderTest, tmp_path: Path) -> Volume:
    return Volume(server, "scratch", tmp_path / "backing")
