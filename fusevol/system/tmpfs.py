"""A tmpfs of its own for each emptyDir of medium Memory (KUBELET.md 5.2, 5.5, 4.5)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from fusevol.system.libc import checked, libc
from fusevol.system.mounts import find_mount

_MS_NOSUID = 2
_MS_NODEV = 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount2 = libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


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
    data = ",".join(filter(None, options)).encode()
    checked(_mount, b"tmpfs", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, data, path=str(path))


def is_tmpfs(path: Path) -> bool:
    """Whether a tmpfs is mounted at this very path."""
    mount = find_mount(path)
    return mount is not None and mount.fstype == "tmpfs"


def detach_tmpfs(path: Path) -> None:
    """Unmounts it; its contents go with the last descriptor that somebody has in it. Raises OSError."""
    checked(_umount2, os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW, path=str(path))
