"""`fusevol unmount`: an orderly stop, or the removal of what a crash left."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fusevol.cli.arguments import Mountpoint, RuntimeDir, instance_at
from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance

if TYPE_CHECKING:
    from fusevol.system.holders import Holder
    from fusevol.system.mounts import MountInfo

NO_INSTANCE = 3

AGENT_LEAVES = 2.0
"""Seconds that an agent, which stands on the mount too, may take to notice that its keeper has gone."""

_STOP_TIMEOUT = 60.0
"""Seconds; the keeper ends its processes within half of it."""


def unmount(mountpoint: Mountpoint, runtime_dir: RuntimeDir = None) -> int:
    """Stop the instance and unmount it.

    If mounts, open files or working directories of others stand on it, they are listed (pid, command, path), nothing
    is done, and the exit code is 1. Works after a crash too, when no process of the instance is left.
    """
    instance = instance_at(mountpoint, runtime_dir)
    try:
        answer = instance.ask_keeper({"op": "stop"}, timeout=_STOP_TIMEOUT)
    except UserError as error:
        if error.exit_code != NO_INSTANCE:
            raise
        return _clear_away(instance, error)
    if "busy" in answer:
        return _say_busy(instance, answer["busy"])
    if "error" in answer:
        raise UserError(answer["error"])
    return 0


def _clear_away(instance: Instance, error: UserError) -> int:
    """Without a keeper: the mount, if there is one, and the runtime directory."""
    from fusevol.system.mount import MountBusy
    from fusevol.system.mount import unmount as remove
    from fusevol.system.mounts import FSTYPE, find_mount, mounts_at

    where = instance.mountpoint
    removed = False
    while any(mount.fstype == FSTYPE for mount in mounts_at(where)):
        found = find_mount(where)
        if found is None or found.fstype != FSTYPE:
            raise UserError(f"another mount stands over {where}: unmount that first")
        deadline = time.monotonic() + AGENT_LEAVES
        while holding := _holders(found):
            if time.monotonic() > deadline:
                return _say_busy(instance, [holder._asdict() for holder in holding])
            time.sleep(0.1)
        try:
            remove(where, detach=False)
        except MountBusy:
            raise UserError(f"{where} is in use by somebody who cannot be seen from here") from None
        removed = True
    shutil.rmtree(instance.directory, ignore_errors=True)
    if not removed:
        raise error
    return 0


def _holders(mount: MountInfo) -> list[Holder]:
    from fusevol.system.holders import holders

    try:
        return holders(mount)
    except OSError as error:
        raise UserError(f"cannot see who uses {mount.mountpoint}: {error.strerror}") from None


def _say_busy(instance: Instance, holding: Iterable[Mapping[str, Any]]) -> int:
    print(f"fusevol: {instance.mountpoint} is in use by:", file=sys.stderr)
    for holder in holding:
        print(f"  pid {holder['pid']} ({holder['command']}): {holder['path']}", file=sys.stderr)
    return 1
