"""Counting what the kernel knows."""

from __future__ import annotations

import pytest

from fusevol.model.errors import StaleNode
from fusevol.server.handles import FileHandle, HandleTable
from fusevol.server.inodes import ROOT, InodeTable, Node


class Counted(Node):
    __slots__ = ("forgets",)

    def __init__(self, nodeid: int) -> None:
        super().__init__(nodeid)
        self.forgets = 0

    def forgotten(self) -> None:
        self.forgets += 1


def test_nodeids_are_never_used_twice() -> None:
    table = InodeTable()
    first = Counted(table.allocate())
    table.remember(first)
    table.forget(first.nodeid, 1)
    assert table.allocate() > first.nodeid > ROOT


def test_a_node_is_found_until_all_lookups_are_given_back() -> None:
    table = InodeTable()
    node = Counted(table.allocate())
    table.remember(node)
    table.remember(node)
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is node
    assert node.forgets == 0
    table.forget(node.nodeid, 1)
    assert node.forgets == 1
    with pytest.raises(StaleNode):
        table.get(node.nodeid)


def test_a_forget_that_overtakes_a_release_does_not_free_the_node() -> None:
    table = InodeTable()
    node = Counted(table.allocate())
    table.remember(node)
    table.opened(node)
    table.forget(node.nodeid, 1)
    assert node.forgets == 0
    assert table.get(node.nodeid) is node
    table.closed(node)
    assert node.forgets == 1


def test_a_forgotten_node_of_the_tree_can_be_looked_up_again() -> None:
    table = InodeTable()
    node = Counted(table.allocate())
    for _ in range(2):
        table.remember(node)
        table.forget(node.nodeid, 1)
    assert node.forgets == 2


def test_the_root_is_never_forgotten() -> None:
    table = InodeTable()
    root = Counted(ROOT)
    table.set_root(root)
    table.forget(ROOT, 1 << 40)
    assert table.get(ROOT) is root
    assert root.known


def test_too_many_forgets_and_those_of_unknown_nodes_are_harmless() -> None:
    table = InodeTable()
    node = Counted(table.allocate())
    table.remember(node)
    table.opened(node)
    table.forget(node.nodeid, 99)
    assert node.lookups == 0
    table.forget(4711, 1)


def test_file_handles_are_never_used_twice() -> None:
    table: HandleTable[FileHandle] = HandleTable()
    node = Counted(2)
    first = table.allocate(FileHandle(node))
    table.release(first)
    second = table.allocate(FileHandle(node))
    assert second != first
    for use in (table.get, table.release):
        with pytest.raises(StaleNode):
            use(first)
