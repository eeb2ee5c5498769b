"""CPython's settings for a process with one busy thread, and others that must not wait for it."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the GIL while others want it; 5 ms by default, as long as a whole update takes."""

YOUNG_OBJECTS = 20_000
"""Allocations between two collections of the youngest: with 700 collecting was a quarter of the CPU time in a burst of
Pods, and found nothing, since hardly anything here refers to itself."""


def tune_interpreter() -> None:
    """Called once, when everything is imported: what stands now is never looked at again by the collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 50)
    sys.setswitchinterval(SWITCH_INTERVAL)
