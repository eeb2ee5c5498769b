"""Errors of the domain, on one page.

`FileSystemError` and what stands below it carry the errno that an engine answers with; nothing else in the core knows
errno. `VolumeError` carries the text of kubelet's FailedMount Event (KUBELET.md 3-7, 16.1). `UserError` is a mistake
of the person at the command line: one line, no traceback, an exit code.
"""

from __future__ import annotations

import errno
import os


class FusevolError(Exception):
    """Everything that fusevol raises on purpose."""


class UserError(FusevolError):
    """Told to the user in one line. `exit_code`: 1 failed, 2 usage, 3 no such instance, 4 refused."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class VolumeError(FusevolError):
    """A volume cannot be set up or refreshed; str() is what kubelet's FailedMount Event has behind its last ` : `."""


class ObjectNotKnown(FusevolError):
    """An object that a volume projects has not been delivered by the source yet: wait, without an Event."""


class ProtocolError(FusevolError):
    """The other side of a socket said something that the protocol does not have."""


class ServerGone(FusevolError):
    """The connection to the server broke; what was asked may or may not have been done."""


class FileSystemError(FusevolError):
    """An operation of the file system failed; `errno` is the answer to the kernel."""

    errno = errno.EIO

    def __init__(self, detail: object = "", number: int | None = None) -> None:
        super().__init__(detail)
        if number is not None:
            self.errno = number

    def __str__(self) -> str:
        return f"{os.strerror(self.errno)}: {self.args[0]}" if self.args[0] else os.strerror(self.errno)


class NoSuchEntry(FileSystemError):
    errno = errno.ENOENT


class NotADirectory(FileSystemError):
    errno = errno.ENOTDIR


class IsADirectory(FileSystemError):
    errno = errno.EISDIR


class ReadOnlyVolume(FileSystemError):
    """Only the agent's writer changes API volumes, and only as staged."""

    errno = errno.EROFS


class NoSuchAttribute(FileSystemError):
    errno = errno.ENODATA


class StaleNode(FileSystemError):
    errno = errno.ESTALE


class InvalidArgument(FileSystemError):
    errno = errno.EINVAL


class NotSupported(FileSystemError):
    """EOPNOTSUPP, never ENOSYS: ENOSYS is sticky in the kernel for the whole connection (FUSE.md 3)."""

    errno = errno.EOPNOTSUPP


class Backing(FileSystemError):
    """The backing directory's file system refused; its errno is passed on unchanged."""

    @classmethod
    def of(cls, error: OSError) -> Backing:
        return cls(error.strerror, error.errno)
