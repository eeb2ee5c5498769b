"""`fusevol status`: what the keeper knows, as tables or as JSON (docs/status.md)."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from fusevol.cli.arguments import Mountpoint, RuntimeDir, instance_at


class Output(StrEnum):
    table = "table"
    json = "json"


def status(
    mountpoint: Mountpoint,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print it.")] = Output.table,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Show processes, source and volumes.

    Answered by the keeper: with a dead agent it is the last known state, marked as stale. The JSON form is a stable
    interface (docs/status.md).
    """
    answer = instance_at(mountpoint, runtime_dir).ask_keeper({"op": "status"})
    if output is Output.json:
        print(json.dumps(answer, indent=2))
        return
    from fusevol.cli.tables import print_tables

    print_tables(_summary(answer), [_processes(answer), *_errors(answer), _volumes(answer)], sys.stdout)


def _summary(answer: dict[str, Any]) -> str:
    source = answer["source"]
    parts = [
        f"engine {answer['engine']}",
        "memory locked" if answer["locked"] else "memory NOT locked",
        f"source {source['kind']}, {'synced' if source['synced'] else 'not synced yet'}",
    ]
    if answer["stale"]:
        parts.append("STALE: the agent has not told its state")
    return "; ".join(parts)


def _processes(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            name,
            str(process["pid"] or "dead"),
            process["startedAt"] or "-",
            str(process["restarts"]),
            _mebibytes(process["rssBytes"]),
            _mebibytes(process["lockedBytes"]),
        ]
        for name, process in answer["processes"].items()
    ]
    return ["PROCESS", "PID", "STARTED", "RESTARTS", "RSS", "LOCKED"], rows


def _errors(answer: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    rows = [
        [f"{error['file'] or '-'}{':' + str(error['line']) if error['line'] else ''}", error["message"]]
        for error in answer["source"]["errors"]
    ]
    return [(["SOURCE ERROR", "MESSAGE"], rows)] if rows else []


def _volumes(answer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{volume['namespace']}/{volume['pod']}" if volume["pod"] else volume["podUID"],
            volume["name"],
            volume["plugin"],
            volume["phase"],
            str(volume["generation"]),
            volume["updatedAt"] or "-",
            volume["error"] or "",
        ]
        for volume in answer["volumes"]
    ]
    return ["POD", "VOLUME", "PLUGIN", "PHASE", "GENERATION", "UPDATED", "ERROR"], rows


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
