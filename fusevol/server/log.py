"""Logs of the server on stderr, one line each.

The standard library's logging, which trio brings anyway: structlog would import asyncio and rich, 8 MiB in a process
that is locked in memory.
"""

from __future__ import annotations

import json
import logging
import sys

from fusevol.system.timestamps import timestamp

NAME = "fusevol"


class TextFormatter(logging.Formatter):
    """`2026-11-22T19:35:35.420Z [INFO] server: ...`, as keeper and agent write; a traceback on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(levelname)s] server: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return timestamp(record.created)


class JsonFormatter(logging.Formatter):
    """The keys that keeper and agent write too: `timestamp`, `level`, `logger`, `event`, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": "server",
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(log_format: str, verbosity: int) -> None:
    """`log_format` is `text` or `json`; with `verbosity` above 0 debug lines too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.getLogger().addHandler(handler)  # what libraries have to say: warnings
    logging.getLogger(NAME).setLevel(logging.DEBUG if verbosity > 0 else logging.INFO)
