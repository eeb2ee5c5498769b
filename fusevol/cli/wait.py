"""`fusevol wait`: until what is asked for is so, or the time is over."""

from __future__ import annotations

import math
import re
import sys
import time
from typing import Annotated, Any

import typer

from fusevol.cli.arguments import Mountpoint, RuntimeDir, instance_at
from fusevol.model.errors import UserError
from fusevol.protocol.instance import Instance, NoAnswer

USAGE = 2
NO_INSTANCE = 3

MAX_TIMEOUT = 86400.0
"""Seconds: a day."""

_RETRY = 0.05
"""Seconds between two attempts to find the instance."""

_GRACE = 5.0
"""Seconds beyond the time-out for the answer: an agent that has just been started reads the question late."""

_NAME = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_FOR = re.compile(rf"synced|pod/{_NAME}/{_NAME}|object=(?i:ConfigMap|Secret)/{_NAME}/{_NAME}(?:@\S+)?")


def wait(
    mountpoint: Mountpoint,
    for_: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="synced|pod/NAMESPACE/NAME|object=KIND/NAMESPACE/NAME[@RESOURCEVERSION]",
            help="synced: every used volume; pod/...: the volumes of that Pod; object=...: the volumes that project "
            "that ConfigMap or Secret (at that resourceVersion or a newer one).",
        ),
    ] = "synced",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, max=MAX_TIMEOUT, help="How long to wait.")
    ] = 30.0,
    runtime_dir: RuntimeDir = None,
) -> int:
    """Wait until volumes are mounted with the newest version of their objects.

    Waits for the instance first, so it may be called before it has started. What the source says is read anew before
    the answer. Prints nothing when it is so; otherwise what is missing and why, and exits with 1 (3: no instance at
    all). Failed volumes and invalid manifests count as missing.
    """
    if not _FOR.fullmatch(for_):
        forms = "synced, pod/NAMESPACE/NAME, object=ConfigMap|Secret/NAMESPACE/NAME[@RESOURCEVERSION]"
        raise UserError(f"--for {for_!r} is none of {forms}", USAGE)
    if math.isnan(timeout):  # it is neither below nor above any bound
        raise UserError("--timeout nan is no number of seconds", USAGE)
    answer = _ask(instance_at(mountpoint, runtime_dir), for_, timeout)
    if answer.get("ok"):
        return 0
    for line in answer.get("missing") or [answer.get("error", "the agent does not say what is missing")]:
        print(f"fusevol: {line}", file=sys.stderr)
    return 1


def _ask(instance: Instance, for_: str, timeout: float) -> dict[str, Any]:
    """The agent's answer; one that dies meanwhile is asked again when it is back. Raises UserError."""
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return instance.ask_agent({"op": "wait", "for": for_, "timeout": left}, left + _GRACE)
        except NoAnswer:
            raise _explained(instance, NoAnswer(instance.mountpoint, timeout)) from None
        except UserError as error:
            if time.monotonic() + _RETRY >= deadline:
                raise _explained(instance, error) from None
        time.sleep(_RETRY)


def _explained(instance: Instance, error: UserError) -> UserError:
    """Adds what the keeper knows of an agent that does not answer."""
    if error.exit_code == NO_INSTANCE:
        return error
    try:
        agent = instance.ask_keeper({"op": "status"})["processes"]["agent"]
    except UserError:
        return error
    how = "does not run" if agent["pid"] is None else f"is pid {agent['pid']}"
    return UserError(f"{error} (the agent {how}, restarted {agent['restarts']} times)", error.exit_code)
