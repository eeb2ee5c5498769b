"""Files that nobody foresaw end nothing but their own delivery."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from fusevol.agent.sources.manifests.contents import FileContents, Invalid, decode
from fusevol.agent.sources.manifests.files import Files
from fusevol.agent.sources.source import SourceProblem
from tests.unit.manifests.recording import CREDENTIALS, QUICK, RecordingSink, config_map, secret, source_of, write


def stumbling(file: str, data: bytes, *rest: Any) -> FileContents:
    """A decoder with a bug: it stumbles over whatever says `hunter2`."""
    if b"hunter2" in data:
        int(data)
    return decode(file, data, *rest)


async def test_an_error_that_nobody_foresaw(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", secret({"k": "hunter2"}))
    write(tmp_path / "b.yaml", config_map({"k": "1"}))
    files = Files(tmp_path, QUICK, b"k", trio.current_time, decode=stumbling)
    with structlog.testing.capture_logs() as logs:
        await files.scan()
    assert files.problems() == [SourceProblem("cannot be understood: ValueError", "a.yaml")]
    assert [name for name, _ in files.held()] == ["b.yaml"]
    (line,) = logs
    assert (line["log_level"], line["file"], line["error"]) == ("error", "a.yaml", "ValueError")
    assert "in stumbling" in line["exception"]
    assert "hunter2" not in repr(logs)


async def test_what_it_held_before_stays(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", secret({"k": "old"}))
    files = Files(tmp_path, QUICK, b"k", trio.current_time, decode=stumbling)
    await files.scan()
    held = files.held()
    write(tmp_path / "a.yaml", secret({"k": "hunter2"}))
    await files.scan()
    assert files.held() == held
    assert not files.is_valid("a.yaml")
    with pytest.raises(Invalid):
        await files.values("a.yaml", held[0][1].objects[CREDENTIALS])


async def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}))
    (tmp_path / os.fsdecode(b"\xff.yaml")).write_text("kind: Pod")
    sink = RecordingSink()
    source = source_of(tmp_path, sink)
    await source.refresh()
    assert sink.messages == [("\\xff.yaml", None, "its name is not UTF-8")]
    (tmp_path / os.fsdecode(b"\xff.yaml")).unlink()
    await source.refresh()
    await trio.sleep(QUICK.gone)
    await source.refresh()
    assert sink.messages == []
