"""The keeper's log on stderr: one line an event, as text or as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

from fusevol.system.timestamps import timestamp


class Log:
    """`verbosity` 0 shows info and above, 1 shows debug."""

    def __init__(self, style: str = "text", verbosity: int = 0, stream: TextIO | None = None) -> None:
        self._json = style == "json"
        self._verbose = verbosity > 0
        self._stream = stream or sys.stderr

    def debug(self, event: str) -> None:
        if self._verbose:
            self._write("debug", event)

    def info(self, event: str) -> None:
        self._write("info", event)

    def warning(self, event: str) -> None:
        self._write("warning", event)

    def error(self, event: str) -> None:
        self._write("error", event)

    def _write(self, level: str, event: str) -> None:
        now = timestamp(time.time())
        if self._json:
            line = json.dumps({"timestamp": now, "level": level, "logger": "keeper", "event": event})
        else:
            line = f"{now} [{level.upper()}] keeper: {event}"
        try:
            print(line, file=self._stream, flush=True)
        except OSError:
            pass  # nobody reads it any more; that is no reason to stop serving
