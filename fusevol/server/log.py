"""Logs of the server on stderr, one line each.

The standard library's logging, which trio brings anyway: structlog would import asyncio and rich, 8 MiB in a process
that is locked in memory.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

NAME = "fusevol"


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(levelname)s] server: %(message)s", "%Y-%m-%dT%H:%M:%S%z")


class JsonFormatter(logging.Formatter):
    """The keys that the agent's lines have too: `event`, `level`, `timestamp`, `logger`, and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
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
