"""New objects belong to who asked for them, and writing takes set-user-id bits away: what the backing file system would
do itself if it knew the caller. The server is never the caller (setfsuid): one thread acts for all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from fusevol.model.errors import FileSystemError
from fusevol.server.emptydir.descriptors import Descriptor
from fusevol.server.inodes import Caller

MODE_BITS = 0o7777

_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID


def hand_over(made: Descriptor, directory: Descriptor, mode: int, caller: Caller) -> None:
    """Gives a new inode to the caller; its group is the directory's where that has the set-group-id bit."""
    status = os.fstat(made.fd)
    inherits = os.fstat(directory.fd).st_mode & stat.S_ISGID
    uid = -1 if status.st_uid == caller.uid else caller.uid
    gid = -1 if inherits or status.st_gid == caller.gid else caller.gid
    if uid == gid == -1:
        return
    try:
        os.chown(made.path, uid, gid)
    except PermissionError:
        return  # the server of an ordinary user: all is that user's
    if mode & _SET_ID_BITS and not stat.S_ISDIR(status.st_mode):
        os.chmod(made.path, mode & MODE_BITS)  # chown cleared them


def clear_set_id(opened: Descriptor) -> None:
    """What truncating a file does to its mode where the caller is not root (inode_operations: file_remove_privs)."""
    mode = os.fstat(opened.fd).st_mode
    unwanted = mode & stat.S_ISUID
    if mode & stat.S_IXGRP:
        unwanted |= mode & stat.S_ISGID  # without it the bit means mandatory locking
    if unwanted:
        os.chmod(opened.fd, mode & MODE_BITS & ~unwanted)


@contextlib.contextmanager
def undone(undo: Callable[..., None], directory: Descriptor, name: str) -> Iterator[None]:
    """Takes a new object away again if what has to follow fails: it would belong to the wrong user."""
    try:
        yield
    except (OSError, FileSystemError):
        undo(name, dir_fd=directory.fd)
        raise
