"""The agent's log on stderr: structlog, one line an event, in the layout that keeper and server have too."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = (logging.INFO, logging.DEBUG)
"""By number of -v."""


def configure(log_format: str = "text", verbosity: int = 0) -> None:
    """`log_format`: `text` or `json`. Called once, before the first line is logged."""
    processors: tuple[Processor, ...] = (
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("iso", utc=True),
        structlog.processors.format_exc_info,
    )
    if log_format == "json":
        processors += (_name, structlog.processors.JSONRenderer())
    else:
        processors += (_text,)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[min(verbosity, len(LEVELS) - 1)]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**event, "logger": "agent"}


def _text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """`2026-11-22T19:35:35.420Z [INFO] agent: the source has synced pods=2`; a traceback on lines of its own."""
    moment, level, message = event.pop("timestamp"), event.pop("level"), event.pop("event")
    exception = event.pop("exception", None)
    pairs = "".join(f" {key}={value!r}" for key, value in event.items())
    tail = f"\n{exception}" if exception else ""
    return f"{moment[:23]}Z [{level.upper()}] agent: {message}{pairs}{tail}"
