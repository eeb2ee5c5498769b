"""What must be so before anything is started: each mistake is told in one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance
from fusevol.system import mount as mounting
from fusevol.system.mounts import FSTYPE, find_mount, mounts_at

USAGE = 2


def check_mountpoint(instance: Instance) -> None:
    """An empty directory with a name in UTF-8 that no fusevol serves. Raises UserError."""
    mountpoint = instance.mountpoint
    _check_name("the mount point", mountpoint)
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
    if any(mount.fstype == FSTYPE for mount in mounts_at(mountpoint)):
        raise UserError(f"a fusevol mount stands on {mountpoint}, below another mount: unmount that first")
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
        _check_name(what, directory)
        if directory == mountpoint or mountpoint in directory.parents:
            raise UserError(f"{what} {directory} lies below the mount point {mountpoint}")


def _check_name(what: str, path: Path) -> None:
    """The processes tell each other paths in JSON, which has no other names than those in UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} {str(path)!a} has a name that is not UTF-8", USAGE) from None


def check_fuse() -> None:
    """This user can mount FUSE file systems. Raises UserError."""
    os.close(mounting.open_device())
    if os.geteuid() != 0:
        mounting.fusermount()
