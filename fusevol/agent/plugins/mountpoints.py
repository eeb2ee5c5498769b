"""Directories in a volume's root for what containers mount below it (KUBELET.md 14.8, nested_volumes.go)."""

from __future__ import annotations

import posixpath

from fusevol.model.errors import VolumeError
from fusevol.model.pod import Container, Pod


def nested_mountpoints(pod: Pod, volume: str) -> tuple[str, ...]:
    """Paths below the volume's root, each once, sorted. Raises VolumeError for a mount path that climbs out."""
    found: set[str] = set()
    for container in pod.all_containers:
        found.update(_in_container(container, volume))
    return tuple(sorted(found))


def _in_container(container: Container, volume: str) -> set[str]:
    mounts = [(mount.name, _cleaned(mount.mount_path)) for mount in container.volume_mounts or ()]
    everything = sorted(path for _, path in mounts)
    found: set[str] = set()
    for name, own in mounts:
        if name != volume:
            continue
        if own.startswith("../"):
            raise VolumeError(f"invalid container mount point {own}")
        outermost: list[str] = []
        for path in everything:
            below = path.startswith(own + "/") and path != own
            # what is mounted below another nested mount is that volume's business
            if below and not any(path.startswith(other + "/") for other in outermost):
                outermost.append(path)
                found.add(path[len(own) + 1 :])
    return found


def _cleaned(path: str) -> str:
    """filepath.Clean: unlike normpath it has no special place for `//`."""
    cleaned = posixpath.normpath(path) if path else "."
    return cleaned[1:] if cleaned.startswith("//") else cleaned
