"""Lines in the same layout as those of keeper and agent."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from fusevol.server.log import JsonFormatter, TextFormatter


@pytest.fixture
def record() -> logging.LogRecord:
    record = logging.LogRecord("fusevol.server.x", logging.WARNING, "x.py", 1, "%s is late", ("it",), None)
    record.created = 1700000000.1239
    return record


def test_text(record: logging.LogRecord) -> None:
    assert TextFormatter().format(record) == "2023-11-14T22:13:20.123Z [WARNING] server: it is late"


def test_json(record: logging.LogRecord) -> None:
    assert list(json.loads(JsonFormatter().format(record)).items()) == [
        ("timestamp", "2023-11-14T22:13:20.123Z"),
        ("level", "warning"),
        ("logger", "server"),
        ("event", "it is late"),
    ]


def test_a_traceback_comes_along(record: logging.LogRecord) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert json.loads(JsonFormatter().format(record))["exception"].endswith("ValueError: x")
    first, *more = TextFormatter().format(record).splitlines()
    assert re.fullmatch(r".*Z \[WARNING\] server: it is late", first)
    assert more[-1] == "ValueError: x"
