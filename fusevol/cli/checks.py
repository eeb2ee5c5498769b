"""What must be so before anything is started: each mistake is told in one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance
from fusevol.system import mount as mounting
from fusevol.system.mounts import FSTYPE, find_mount


def check_mountpoint(instance: Instance) -> None:
    """An empty directory that no fusevol serves. Raises UserError."""
    mountpoint = instance.mountpoint
    # looked up before anything else: a mount of ours may be dead, and asking it may wait
    found = find_mount(mountpoint)
    if found is not None and found.fstype == FSTYPE:
        try:
            keeper = instance.ask_keeper({"op": "status"})["processes"]["keeper"]["pid"]
        except UserError:
            raise UserError(
                f"{mountpoint} is a fusevol mount whose keeper is dead (or has another --runtime-dir): "
                f"remove it with `fusevol unmount {mountpoint}`"
            ) from None
        raise UserError(f"{mountpoint} is already served by fusevol (keeper pid {keeper})")
    try:
        if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
            raise UserError(f"{mountpoint} is not a directory")
        with os.scandir(mountpoint) as entries:
            if next(entries, None) is not None:
                raise UserError(f"{mountpoint} is not empty: a mount would hide what is in it")
    except OSError as error:
        raise UserError(f"{mountpoint}: {error.strerror}") from None


def check_directories(mountpoint: Path, directories: dict[str, Path]) -> None:
    """Nothing that fusevol itself needs may lie below its own mount. Raises UserError."""
    for what, directory in directories.items():
        if directory == mountpoint or mountpoint in directory.parents:
            raise UserError(f"{what} {directory} lies below the mount point {mountpoint}")


def check_fuse() -> None:
    """This user can mount FUSE file systems. Raises UserError."""
    os.close(mounting.open_device())
    if os.geteuid() != 0:
        mounting.fusermount()
