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
from typing import TYPE_CHECKING, ParamSpec
from weakref import ref

from fusevol.model.errors import Backing

if TYPE_CHECKING:
    from fusevol.server.emptydir.node import EmptyDirNode

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
    """The nodes that were used last, which may keep their descriptors open."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._nodes: OrderedDict[int, ref[EmptyDirNode]] = OrderedDict()  # by nodeid, the one used last at the end

    def __len__(self) -> int:
        return len(self._nodes)

    def used(self, node: EmptyDirNode) -> None:
        """`node` keeps its descriptor; the one that was not used for longest lets go of its own."""
        if node.nodeid in self._nodes:
            self._nodes.move_to_end(node.nodeid)
            return
        self._nodes[node.nodeid] = ref(node)
        if len(self._nodes) > self._capacity:
            _let_go(self._nodes.popitem(last=False)[1])

    def drop(self, node: EmptyDirNode) -> None:
        """What becomes of the node's descriptor is the caller's business."""
        self._nodes.pop(node.nodeid, None)

    def clear(self) -> None:
        while self._nodes:
            _let_go(self._nodes.popitem()[1])

    def open(self, function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> Descriptor:
        """Calls a function that opens something, once more without what is cached if there are too many. OSError."""
        try:
            return Descriptor(function(*args, **kwargs))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._nodes:
                raise
        self.clear()
        return Descriptor(function(*args, **kwargs))


def refuse_reserved(opened: Descriptor) -> None:
    """Raises ENFILE for a container's file whose descriptor is one of the last; it closes with its last reference."""
    # numbers are given out from below, so a high one says how many there are
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and opened.fd >= limit - min(RESERVE, limit // 4):
        raise Backing(os.strerror(errno.ENFILE), errno.ENFILE)


def _let_go(reference: ref[EmptyDirNode]) -> None:
    node = reference()
    if node is not None:
        node.let_go()
