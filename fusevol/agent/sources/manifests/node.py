"""What this machine can give to Pods, where no Node manifest says it: the default of unset limits (KUBELET.md 7.3)."""

from __future__ import annotations

import os
from pathlib import Path


def machine_allocatable(storage: Path, meminfo: Path = Path("/proc/meminfo")) -> dict[str, str]:
    """All of its processors and memory, and the file system that `storage` stands on."""
    allocatable = {"cpu": str(os.cpu_count() or 1)}
    for line in meminfo.read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            allocatable["memory"] = f"{amount.split()[0]}Ki"
    sizes = os.statvfs(storage)
    allocatable["ephemeral-storage"] = str(sizes.f_blocks * sizes.f_frsize)
    return allocatable
