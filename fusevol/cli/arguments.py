"""Arguments that several commands share, and what their values mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance, canonical, default_runtime_dir

_MAX_LINKS = 40

Mountpoint = Annotated[Path, typer.Argument(help="The directory that is mounted on.")]

RuntimeDir = Annotated[
    Path | None,
    typer.Option(
        "--runtime-dir",
        metavar="DIR",
        help="Where the sockets are. Default: /run/fusevol, or, not as root, $XDG_RUNTIME_DIR/fusevol.",
        show_default=False,
    ),
]


def mountpoint_at(path: Path) -> Path:
    """Absolute and without links. The mount itself is never asked: readlink(2) on it ends before the file system."""
    for _ in range(_MAX_LINKS):
        path = canonical(path)
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return path
    raise UserError(f"{path}: too many links")


def instance_at(mountpoint: Path, runtime_dir: Path | None) -> Instance:
    return Instance(runtime_dir or default_runtime_dir(), mountpoint_at(mountpoint))
