"""The status as `fusevol status -o json` prints it: a stable interface (docs/status.md)."""

from __future__ import annotations

from typing import Any


def assemble(
    *,
    engine: str,
    source_kind: str,
    keeper: dict[str, Any],
    server: dict[str, Any],
    agent: dict[str, Any],
    told: dict[str, Any] | None,
    stale: bool,
) -> dict[str, Any]:
    """`told` is the agent's last state, None before the first one ever told any."""
    state = told or {}
    return {
        "engine": engine,
        "locked": server["lockedBytes"] > 0 and agent["lockedBytes"] > 0,
        "stale": stale,
        "processes": {"keeper": keeper, "server": server, "agent": agent},
        "source": state.get("source", {"kind": source_kind, "synced": False, "errors": []}),
        "volumes": state.get("volumes", []),
    }
