"""Opening below a directory, renameat2 and omitted times."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.system import paths


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "inside").mkdir()
    fd = os.open(tmp_path / "inside", os.O_PATH)
    yield fd
    os.close(fd)


def refusal(directory: int, path: str, flags: int = os.O_RDONLY) -> int | None:
    try:
        os.close(paths.open_beneath(directory, path, flags))
    except OSError as error:
        return error.errno
    return None


def test_nothing_outside_of_the_directory_is_opened(directory: int, tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "inside/escape").symlink_to("../outside")
    (tmp_path / "inside/absolute").symlink_to(tmp_path / "outside")
    (tmp_path / "inside/up").symlink_to("..")
    assert refusal(directory, "../outside") == errno.EXDEV
    assert refusal(directory, str(tmp_path / "outside")) == errno.EXDEV
    assert refusal(directory, "escape") == errno.ELOOP
    assert refusal(directory, "absolute") == errno.ELOOP
    assert refusal(directory, "up/outside") == errno.ELOOP
    assert refusal(directory, "up/outside", os.O_PATH | os.O_NOFOLLOW) == errno.ELOOP


def test_links_inside_are_not_followed_either_but_can_be_opened_themselves(directory: int, tmp_path: Path) -> None:
    (tmp_path / "inside/file").touch()
    (tmp_path / "inside/link").symlink_to("file")
    assert refusal(directory, "file") is None
    assert refusal(directory, "link") == errno.ELOOP
    fd = paths.open_beneath(directory, "link", os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink("", dir_fd=fd) == "file"
    os.close(fd)


def test_names_that_are_not_utf_8(directory: int, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    fd = paths.open_beneath(directory, name, os.O_CREAT | os.O_WRONLY, 0o600)
    os.close(fd)
    assert os.listdir(os.fsencode(tmp_path / "inside")) == [b"\xff\xfe"]
    paths.rename(directory, name, directory, "plain")
    assert os.listdir(tmp_path / "inside") == ["plain"]


def test_rename_noreplace_and_exchange(directory: int, tmp_path: Path) -> None:
    (tmp_path / "inside/a").write_text("A")
    (tmp_path / "inside/b").write_text("B")
    with pytest.raises(FileExistsError):
        paths.rename(directory, "a", directory, "b", paths.RENAME_NOREPLACE)
    paths.rename(directory, "a", directory, "b", paths.RENAME_EXCHANGE)
    assert [(tmp_path / "inside" / name).read_text() for name in "ab"] == ["B", "A"]
    paths.rename(directory, "a", directory, "c", paths.RENAME_NOREPLACE)
    assert sorted(os.listdir(tmp_path / "inside")) == ["b", "c"]


@pytest.mark.parametrize(
    ("atime", "mtime"),
    [(1_234_567_890_123_456_789, None), (None, 987_654_321_987_654_321), (5, 6), (-1_500_000_000, None), (None, None)],
)
def test_times_have_nanoseconds_and_one_may_stay_as_it_is(tmp_path: Path, atime: int | None, mtime: int | None) -> None:
    file = tmp_path / "file"
    file.touch()
    before = file.stat()
    paths.set_times(str(file), atime, mtime)
    after = file.stat()
    assert after.st_atime_ns == (before.st_atime_ns if atime is None else atime)
    assert after.st_mtime_ns == (before.st_mtime_ns if mtime is None else mtime)


def test_a_directory_is_read_in_buffers_and_goes_on_from_an_offset(tmp_path: Path) -> None:
    names = {f"file-{number}" for number in range(300)}
    for name in names:
        (tmp_path / name).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    read: list[tuple[str, int]] = []
    while some := paths.read_directory(fd, 1024):
        read += some
    assert sorted(name for name, _ in read) == sorted(names | {".", ".."})
    os.lseek(fd, read[150][1], os.SEEK_SET)
    assert paths.read_directory(fd)[0] == read[151]
    os.close(fd)
