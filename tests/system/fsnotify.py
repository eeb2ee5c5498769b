"""The Go program of tests/fsnotify, built when it is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "tests" / "fsnotify"
BUILT = REPOSITORY / ".cache" / "bin" / "fsnotify-watch"


def watcher() -> Path:
    """The program's path. Skips the test where there is no Go: scripts/binaries installs one where it has to build."""
    newest = max(path.stat().st_mtime for path in SOURCE.iterdir())
    if not BUILT.exists() or BUILT.stat().st_mtime < newest:
        go = shutil.which("go") or shutil.which("go", path=REPOSITORY / ".venv" / "bin")
        if go is None:
            pytest.skip("there is no Go")
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        new = BUILT.with_name(f"{BUILT.name}.{os.getpid()}")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}  # static: for a container
        command = [go, "build", "-C", str(SOURCE), "-trimpath", "-o", str(new), "."]
        subprocess.run(command, env=environment, check=True, timeout=240)
        new.replace(BUILT)
    return BUILT
