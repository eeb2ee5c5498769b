"""`fusevol unmount`: an orderly stop, or the removal of what a crash left."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fusevol.cli.arguments import Mountpoint, RuntimeDir, instance_at
from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance

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
    return 0


def _clear_away(instance: Instance, error: UserError) -> int:
    """Without a keeper: the mount, if there is one, and the runtime directory."""
    from fusevol.system.holders import holders
    from fusevol.system.mount import MountBusy
    from fusevol.system.mount import unmount as remove
    from fusevol.system.mounts import FSTYPE, find_mount

    found = find_mount(instance.mountpoint)
    if found is not None and found.fstype == FSTYPE:
        deadline = time.monotonic() + AGENT_LEAVES
        while holding := holders(found):
            if time.monotonic() > deadline:
                return _say_busy(instance, [holder._asdict() for holder in holding])
            time.sleep(0.1)
        try:
            remove(instance.mountpoint, detach=False)
        except MountBusy:
            raise UserError(f"{instance.mountpoint} is in use by somebody who cannot be seen from here") from None
    shutil.rmtree(instance.directory, ignore_errors=True)
    if found is None or found.fstype != FSTYPE:
        raise error
    return 0


def _say_busy(instance: Instance, holding: Iterable[Mapping[str, Any]]) -> int:
    print(f"fusevol: {instance.mountpoint} is in use by:", file=sys.stderr)
    for holder in holding:
        print(f"  pid {holder['pid']} ({holder['command']}): {holder['path']}", file=sys.stderr)
    return 1
