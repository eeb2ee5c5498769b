"""A tmpfs of its own for each emptyDir of medium Memory (KUBELET.md 5.2, 5.5, 4.5)."""

from __future__ import annotations

import errno
from pathlib import Path

from fusevol.system.libc import MNT_DETACH, MS_NODEV, MS_NOSUID, mount, umount2
from fusevol.system.mounts import find_mount


def mount_tmpfs(path: Path, size: int | None) -> None:
    """Mounts one of at most `size` bytes (None: the kernel's default of half the memory). Never swapped out where the
    kernel can promise that (6.4 and later). Raises OSError."""
    size_option = f"size={size}" if size else ""
    try:
        _mount_with(path, size_option, "noswap")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount_with(path, size_option)  # an older kernel, or a user namespace


def _mount_with(path: Path, *options: str) -> None:
    mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, ",".join(filter(None, options)))


def is_tmpfs(path: Path) -> bool:
    """Whether a tmpfs is mounted at this very path."""
    found = find_mount(path)
    return found is not None and found.fstype == "tmpfs"


def detach_tmpfs(path: Path) -> None:
    """Unmounts it; its contents go with the last descriptor that somebody has in it. Raises OSError."""
    umount2(path, MNT_DETACH)
