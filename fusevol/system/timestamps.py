"""How a moment is written, in the logs and in the status. Standard library only: the keeper imports it."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """A moment in UTC, to the millisecond: `2026-11-22T19:35:35.420Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def timestamp(seconds: float) -> str:
    """The same from seconds since the epoch."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC))
