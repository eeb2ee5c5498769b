"""What the keeper is told, as JSON in its one argument, and what it tells the two processes that it starts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINE = "pyfuse3"


@dataclass(frozen=True, slots=True)
class Config:
    """Paths are absolute. `lock_fd` is the locked file of the state directory, inherited from the command line."""

    mountpoint: Path
    runtime_dir: Path
    state_dir: Path
    node: str
    source: Mapping[str, Any]
    """{"kind": "manifests", "directory"} | {"kind": "kubeconfig", "file", "context"} | {"kind": "in-cluster"}."""
    engine: str = ENGINE
    events: bool = True
    require_locked_memory: bool = False
    log_format: str = "text"
    verbosity: int = 0
    lock_fd: int | None = None

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises KeyError or ValueError for what to_json did not write."""
        told = json.loads(text)
        return cls(
            mountpoint=Path(told["mountpoint"]),
            runtime_dir=Path(told["runtimeDir"]),
            state_dir=Path(told["stateDir"]),
            node=told["node"],
            source=told["source"],
            engine=told.get("engine", ENGINE),
            events=told.get("events", True),
            require_locked_memory=told.get("requireLockedMemory", False),
            log_format=told.get("logFormat", "text"),
            verbosity=told.get("verbosity", 0),
            lock_fd=told.get("lockFd"),
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "mountpoint": str(self.mountpoint),
                "runtimeDir": str(self.runtime_dir),
                "stateDir": str(self.state_dir),
                "node": self.node,
                "source": dict(self.source),
                "engine": self.engine,
                "events": self.events,
                "requireLockedMemory": self.require_locked_memory,
                "logFormat": self.log_format,
                "verbosity": self.verbosity,
                "lockFd": self.lock_fd,
            }
        )


def module(name: str) -> tuple[str, ...]:
    """The command line that runs one of fusevol's modules: -P, so that the current directory cannot put in its own."""
    return (sys.executable, "-P", "-m", name)


@dataclass(frozen=True, slots=True)
class Programs:
    """What is started; each gets its configuration as one more argument."""

    server: tuple[str, ...] = module("fusevol.server")
    agent: tuple[str, ...] = module("fusevol.agent")


def server_config(config: Config, *, fuse_fd: int, control_fd: int, ready_fd: int) -> str:
    return json.dumps(
        {
            "fuseFd": fuse_fd,
            "controlFd": control_fd,
            "readyFd": ready_fd,
            "mountpoint": str(config.mountpoint),
            "engine": config.engine,
            "requireLockedMemory": config.require_locked_memory,
            "logFormat": config.log_format,
            "verbosity": config.verbosity,
        }
    )


def agent_config(config: Config, *, agent_fd: int, server_socket: Path, keeper_socket: Path) -> str:
    return json.dumps(
        {
            "agentFd": agent_fd,
            "serverSocket": str(server_socket),
            "keeperSocket": str(keeper_socket),
            "mountpoint": str(config.mountpoint),
            "stateDir": str(config.state_dir),
            "lockFd": config.lock_fd,
            "node": config.node,
            "source": dict(config.source),
            "events": config.events,
            "requireLockedMemory": config.require_locked_memory,
            "logFormat": config.log_format,
            "verbosity": config.verbosity,
        }
    )


def child_environment(name: str) -> dict[str, str]:
    """Freed memory goes back to malloc at once, and the agent's is overwritten when it is freed (FUSE.md 8).

    The service manager's socket stays with the keeper: it alone knows when all is ready.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    environment["PYTHONMALLOC"] = "malloc"
    environment["MALLOC_ARENA_MAX"] = "1"
    if name == "agent":
        environment["GLIBC_TUNABLES"] = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
    return environment
