"""Why the mount may not be taken away now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusevol.keeper.mounting import Mount, Place, covered
from fusevol.system.holders import Holder

SHOWN_HOLDERS = 50


@dataclass(frozen=True, slots=True)
class Obstacle:
    """`reason` in one line; `holders`, if it is they who stand on the mount."""

    reason: str
    holders: tuple[Holder, ...] = ()

    def answer(self) -> dict[str, Any]:
        """To a client of the keeper's socket who wanted it to stop."""
        return {"busy": [holder._asdict() for holder in self.holders]} if self.holders else {"error": self.reason}

    def lines(self) -> Iterator[str]:
        """For the log; the reason comes last."""
        for holder in self.holders[:SHOWN_HOLDERS]:
            yield f"in use by pid {holder.pid} ({holder.command}): {holder.path}"
        yield self.reason


def in_use(mountpoint: Path, holders: Iterable[Holder]) -> Obstacle:
    holders = tuple(holders)
    more = f" ({len(holders) - SHOWN_HOLDERS} more)" if len(holders) > SHOWN_HOLDERS else ""
    return Obstacle(f"{mountpoint} is in use{more} and stays mounted", holders)


def find_obstacle(mount: Mount, mountpoint: Path, own: Iterable[int]) -> Obstacle | None:
    """Looks who but the processes `own` stands on it. Not being able to look is an obstacle too."""
    try:
        if mount.place() is Place.COVERED:
            return Obstacle(covered(mountpoint))
        holders = mount.holders(own)
    except OSError as error:
        return Obstacle(f"cannot see who uses {mountpoint}: {error.strerror}")
    return in_use(mountpoint, holders) if holders else None
