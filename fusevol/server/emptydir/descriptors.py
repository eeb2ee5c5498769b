"""Open descriptors that close themselves, and a bounded number of those used last.

A descriptor belongs to whoever refers to it: it is closed with its last reference. So one that leaves the cache in the
middle of an operation stays open until that operation is over.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec

from fusevol.model.errors import Backing

P = ParamSpec("P")

CAPACITY = 64
"""Descriptors that a volume keeps open only because they were used last."""

RESERVE = 512
"""Descriptors of the process that files opened by containers may not take: walking paths needs them."""


class Descriptor:
    """A file descriptor of ours. `path` leads to its inode whatever became of its name, even for a symbolic link."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"


class RecentDescriptors:
    """nodeid → the descriptor of its inode, for the nodes that were used last."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._descriptors: OrderedDict[int, Descriptor] = OrderedDict()  # the one used last at the end

    def __len__(self) -> int:
        return len(self._descriptors)

    def get(self, nodeid: int) -> Descriptor | None:
        descriptor = self._descriptors.get(nodeid)
        if descriptor is not None:
            self._descriptors.move_to_end(nodeid)
        return descriptor

    def put(self, nodeid: int, descriptor: Descriptor) -> None:
        self._descriptors[nodeid] = descriptor
        self._descriptors.move_to_end(nodeid)
        if len(self._descriptors) > self._capacity:
            self._descriptors.popitem(last=False)

    def drop(self, nodeid: int) -> None:
        self._descriptors.pop(nodeid, None)

    def clear(self) -> None:
        self._descriptors.clear()

    def open(self, function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> Descriptor:
        """Calls a function that opens something, once more without what is cached if there are too many. OSError."""
        try:
            return Descriptor(function(*args, **kwargs))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._descriptors:
                raise
        self.clear()
        return Descriptor(function(*args, **kwargs))


def refuse_reserved(opened: Descriptor) -> None:
    """Raises ENFILE for a container's file whose descriptor is one of the last; it closes with its last reference."""
    # numbers are given out from below, so a high one says how many there are
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and opened.fd >= limit - min(RESERVE, limit // 4):
        raise Backing(os.strerror(errno.ENFILE), errno.ENFILE)
