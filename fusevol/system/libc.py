"""The C library through ctypes: one handle, and one way to call it that turns errno into OSError.

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)


def checked(function: Callable[..., int], *arguments: object, path: object = None) -> int:
    """Calls a function that reports failure as a negative result and errno. Repeated where a signal interrupted it.

    Returns the result; raises OSError with `path` as its file name.
    """
    while True:
        result = function(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), path)


MS_NOSUID = 2
MS_NODEV = 4
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount2 = libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def mount(source: str, target: Path, fstype: str, flags: int, data: str) -> None:
    """mount(2). Raises OSError."""
    checked(_mount, source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode(), path=str(target))


def umount2(target: Path, flags: int) -> None:
    """umount2(2), never following a link. Raises OSError."""
    checked(_umount2, os.fsencode(target), flags | UMOUNT_NOFOLLOW, path=str(target))
