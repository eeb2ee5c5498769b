"""emptyDir: listing a directory in small steps while it changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from fusevol.server.emptydir.files import EmptyDirDirectory
from fusevol.server.handles import Entry
from tests.support.emptydir import ME, Kernel, refused


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path / "backing")
    yield kernel
    kernel.volume.close()


def step(handle: EmptyDirDirectory, offset: int, count: int) -> list[Entry]:
    """What a kernel with room for `count` entries takes; one more is offered to it and refused."""
    return list(islice(handle.read(offset), count + 1))[:count]


def opened(kernel: Kernel) -> EmptyDirDirectory:
    handle = kernel.root.opendir(ME)
    assert isinstance(handle, EmptyDirDirectory)
    return handle


def fill(kernel: Kernel, count: int) -> set[str]:
    names = {f"file-{number:05}-{'x' * (number % 60)}" for number in range(count)}
    for name in names:
        (kernel.backing / name).touch()
    return names


def test_dot_and_dot_dot_are_listed(kernel: Kernel) -> None:
    handle = opened(kernel)
    assert sorted(entry.name for entry in handle.read(0)) == [".", ".."]
    handle.release()


@pytest.mark.parametrize("count", [1, 7, 100, 5000])
def test_each_name_once_whatever_the_size_of_the_steps(kernel: Kernel, count: int) -> None:
    names = fill(kernel, 4000 if count >= 100 else 300)
    handle = opened(kernel)
    seen: list[str] = []
    offset = 0
    while entries := step(handle, offset, count):
        seen += [entry.name for entry in entries]
        offset = entries[-1].offset
    assert sorted(seen) == sorted(names | {".", ".."})
    assert step(handle, offset, 1) == []
    handle.release()


def test_fixed_names_appear_once_while_others_come_and_go(kernel: Kernel) -> None:
    fixed = fill(kernel, 1500)
    for number in range(300):
        (kernel.backing / f"old-{number}").touch()
    handle = opened(kernel)
    seen: list[str] = []
    offset = number = 0
    while entries := step(handle, offset, 20):
        seen += [entry.name for entry in entries]
        offset = entries[-1].offset
        for _ in range(4):
            (kernel.backing / f"old-{number}").unlink(missing_ok=True)
            (kernel.backing / f"new-{number}").touch()
            number += 1
    handle.release()
    assert sorted(name for name in seen if name.startswith("file")) == sorted(fixed)


def test_rewinding_shows_what_is_there_now(kernel: Kernel) -> None:
    fill(kernel, 10)
    handle = opened(kernel)
    assert len(list(handle.read(0))) == 12
    (kernel.backing / "new").touch()
    assert "new" in {entry.name for entry in handle.read(0)}
    handle.release()


def test_seeking_back_to_an_offset_goes_on_from_there(kernel: Kernel) -> None:
    fill(kernel, 2000)
    handle = opened(kernel)
    everything = [(entry.name, entry.offset) for entry in handle.read(0)]
    for index in (1500, 3, 1999, 700):
        after = [(entry.name, entry.offset) for entry in handle.read(everything[index][1])]
        assert after == everything[index + 1 :]
    handle.release()


def test_a_removed_directory_has_no_entries(kernel: Kernel) -> None:
    directory = kernel.known(kernel.root.mkdir("directory", 0o700, ME))
    handle = directory.opendir(ME)
    kernel.root.rmdir("directory", ME)
    with pytest.raises(FileNotFoundError):
        list(handle.read(0))
    handle.release()


def test_fsync_of_a_directory(kernel: Kernel) -> None:
    handle = opened(kernel)
    handle.fsync(True)
    handle.fsync(False)
    handle.release()


def test_a_file_is_no_directory(kernel: Kernel) -> None:
    (kernel.backing / "file").touch()
    with refused(errno.ENOTDIR):
        kernel.look_up("file").opendir(ME)
    assert os.listdir(kernel.backing) == ["file"]
