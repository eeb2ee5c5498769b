"""File handles find their inode again, and never another one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.system import handles


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    if not handles.available(fd):
        os.close(fd)
        pytest.skip("no file handles here: overlayfs, or no CAP_DAC_READ_SEARCH")
    yield fd
    os.close(fd)


def handle_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return handles.of_descriptor(fd)
    finally:
        os.close(fd)


def test_a_handle_finds_its_file_after_a_rename(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    handle = handle_of(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").write_text("another")
    with os.fdopen(handles.open_handle(directory, handle, os.O_RDONLY)) as found:
        assert found.read() == "content"


def test_hard_links_have_one_handle_and_different_files_have_different_ones(directory: int, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    os.link(tmp_path / "a", tmp_path / "link")
    assert handle_of(tmp_path / "a") == handle_of(tmp_path / "link") != handle_of(tmp_path / "b")


def test_the_handle_of_a_link_is_that_of_the_link_itself(directory: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    fd = handles.open_handle(directory, handle_of(tmp_path / "link"), os.O_PATH)
    assert os.readlink("", dir_fd=fd) == "file"
    os.close(fd)


def test_a_removed_file_is_stale_even_when_its_inode_number_is_used_again(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    handle = handle_of(tmp_path / "a")
    (tmp_path / "a").unlink()
    for number in range(50):
        (tmp_path / f"n{number}").touch()
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        handles.open_handle(directory, handle, os.O_PATH)


def test_a_removed_file_that_is_held_is_still_found(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    handle = handle_of(tmp_path / "a")
    held = os.open(tmp_path / "a", os.O_PATH)
    (tmp_path / "a").unlink()
    fd = handles.open_handle(directory, handle, os.O_PATH)
    assert os.fstat(fd).st_ino == os.fstat(held).st_ino
    os.close(fd)
    os.close(held)


def test_descriptors_are_closed_on_exec(directory: int, tmp_path: Path) -> None:
    fd = handles.open_handle(directory, handles.of_descriptor(directory), os.O_PATH)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")
def test_an_ordinary_user_may_not_open_handles() -> None:
    code = "import os; from fusevol.system import handles; print(handles.available(os.open('/', os.O_RDONLY)))"
    command = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
