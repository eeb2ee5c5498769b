"""The C library through ctypes: one handle, and one way to call it that turns errno into OSError.

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

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
