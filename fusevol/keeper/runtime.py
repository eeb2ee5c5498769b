"""The runtime directory (protocol/instance.py): made, or taken over if it is ours and private."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance

REFUSED = 4

_OURS = re.compile(r"[0-9a-f]{16}|instance\.json|[a-z]+\.sock")


def prepare(instance: Instance, state_dir: Path) -> None:
    """Makes the instance's directory, and the one of all instances above it, and describes the instance in it.

    Raises UserError: exit code 4 where somebody else could put his own sockets in our sockets' place.
    """
    instance.directory.parent.parent.mkdir(parents=True, exist_ok=True)
    _private_directory(instance.directory.parent)
    _private_directory(instance.directory)
    instance.description.write_text(
        json.dumps({"mountpoint": str(instance.mountpoint), "stateDir": str(state_dir), "keeper": os.getpid()})
    )


def _private_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        _take_over(path)


def _take_over(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise UserError(f"the runtime directory {path} is {kind}", REFUSED)
    if found.st_uid != os.geteuid():
        raise UserError(f"the runtime directory {path} belongs to another user (uid {found.st_uid})", REFUSED)
    mode = stat.S_IMODE(found.st_mode)
    if mode == 0o700:
        return
    # /run or /tmp given by mistake: closing it would lock everybody else out
    others = [name for name in os.listdir(path) if not _OURS.fullmatch(name)]
    if others:
        raise UserError(
            f"the runtime directory {path} is open to others (mode {mode:04o}) and holds other things ({others[0]}): "
            "give fusevol one of its own",
            REFUSED,
        )
    path.chmod(0o700)
