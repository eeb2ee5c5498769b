"""File handles: an inode's name that survives renames, and does not keep the inode open (name_to_handle_at(2)).

A handle is the kernel's `struct file_handle` as bytes (u32 length of the rest, i32 type, the rest). It holds the
inode's generation: it never names another inode that got the same number later. Not on overlayfs (EOPNOTSUPP), and
only a process with CAP_DAC_READ_SEARCH may open one (open_by_handle_at(2)).
"""

from __future__ import annotations

import ctypes
import os
import struct

from fusevol.system.libc import checked, libc

AT_EMPTY_PATH = 0x1000

_HEADER = struct.Struct("Ii")
_MAX_HANDLE = 128  # bytes: MAX_HANDLE_SZ of linux/exportfs.h
_EMPTY_HEADER = _HEADER.pack(_MAX_HANDLE, 0)

_name_to_handle_at = libc.name_to_handle_at
_name_to_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
_open_by_handle_at = libc.open_by_handle_at
_open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]


def of_descriptor(fd: int) -> bytes:
    """The handle of an open inode; an O_PATH descriptor will do. Raises OSError (EOPNOTSUPP where there are none)."""
    buffer = ctypes.create_string_buffer(_EMPTY_HEADER, _HEADER.size + _MAX_HANDLE)
    mount_id = ctypes.c_int()
    checked(_name_to_handle_at, fd, b"", buffer, ctypes.byref(mount_id), AT_EMPTY_PATH)
    (length, _) = _HEADER.unpack_from(buffer)
    return buffer.raw[: _HEADER.size + length]


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A new descriptor (close-on-exec) of the inode. `mount_fd` is any open file of the same mount, but not O_PATH.

    Raises OSError: ESTALE when the inode is gone, EPERM without CAP_DAC_READ_SEARCH.
    """
    return checked(_open_by_handle_at, mount_fd, handle, flags | os.O_CLOEXEC)


def available(directory_fd: int) -> bool:
    """Whether the directory's file system has handles and this process may open them."""
    try:
        os.close(open_handle(directory_fd, of_descriptor(directory_fd), os.O_PATH))
    except OSError:
        return False
    return True
