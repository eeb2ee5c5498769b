"""System calls on paths that Python lacks: openat2 below a directory, renameat2, utimensat, getdents64."""

from __future__ import annotations

import ctypes
import os
import struct

from fusevol.system.libc import checked, libc

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_SYS_OPENAT2 = 437  # the same on every architecture but alpha
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
_OPEN_HOW = struct.Struct("QQQ")  # flags, mode, resolve

_DIRENT = struct.Struct(
    "=QqH"
)  # the head of struct linux_dirent64: inode, offset behind the entry, bytes of the record
_DIRENT_NAME = 19  # bytes before d_name: the head and one of type

_AT_FDCWD = -100
_UTIME_OMIT = (1 << 30) - 2
_TIMESPECS = struct.Struct("qqqq" if ctypes.sizeof(ctypes.c_long) == 8 else "llll")

_syscall = ctypes.CFUNCTYPE(
    ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, use_errno=True
)(("syscall", libc))
_renameat2 = libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_utimensat = libc.utimensat
_utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_getdents64 = libc.getdents64
_getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_getdents64.restype = ctypes.c_ssize_t


def open_beneath(directory_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Opens `path` without leaving the directory and without following any link; close-on-exec.

    `mode` counts only with O_CREAT. Raises OSError: EXDEV for a path that leads out, ELOOP for a link (unless O_PATH |
    O_NOFOLLOW asks for the link itself).
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE)
    return checked(_syscall, _SYS_OPENAT2, directory_fd, os.fsencode(path), how, len(how), path=path)


def rename(source_fd: int, source: str, target_fd: int, target: str, flags: int = 0) -> None:
    """renameat2(2) of names in two open directories. `flags`: RENAME_NOREPLACE, RENAME_EXCHANGE. Raises OSError."""
    checked(_renameat2, source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags, path=source)


def set_times(path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Sets access and modification time, nanoseconds since the epoch; None leaves one as it is. Raises OSError."""
    times = _TIMESPECS.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    checked(_utimensat, _AT_FDCWD, os.fsencode(path), times, 0, path=path)


def _timespec(nanoseconds: int | None) -> tuple[int, int]:
    return (0, _UTIME_OMIT) if nanoseconds is None else divmod(nanoseconds, 1_000_000_000)


def read_directory(fd: int, size: int = 32768) -> list[tuple[str, int]]:
    """The next names of an open directory, `.` and `..` among them, each with the offset behind it; [] at the end.

    An offset is for lseek(2) on the same descriptor. `size` in bytes bounds what is read. Raises OSError.
    """
    buffer = ctypes.create_string_buffer(size)
    length = checked(_getdents64, fd, buffer, size)
    names = []
    position = 0
    while position < length:
        _, offset, record = _DIRENT.unpack_from(buffer, position)
        name = ctypes.string_at(ctypes.addressof(buffer) + position + _DIRENT_NAME)
        names.append((os.fsdecode(name), offset))
        position += record
    return names
