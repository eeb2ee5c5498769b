"""emptyDir through a real mount: large directories, trees and files, and what happens when there is no room."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fusevol.protocol import messages
from tests.support.emptydir import Volume
from tests.support.server import ServerUnderTest, errno_of, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and acts as other users"),
]


# ------------------------------------------------------------------------------------------------ trees


def test_a_directory_of_four_thousand_entries(volume: Volume) -> None:
    names = {f"{number:04}-{'n' * (number % 50)}" for number in range(4000)}
    for name in names:
        (volume.backing / name).touch()
    assert set(os.listdir(volume.path)) == names
    with os.scandir(volume.path) as entries:
        assert sum(entry.is_file() and entry.stat().st_size == 0 for entry in entries) == 4000
    listed = subprocess.run(["ls", "-a", volume.path], capture_output=True, text=True, check=True).stdout.split()
    assert set(listed) == names | {".", ".."}
    shutil.rmtree(volume.path, ignore_errors=True)  # its root cannot be removed: it is the volume
    assert os.listdir(volume.backing) == []


def test_a_tree_goes_in_and_out_unchanged(volume: Volume, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(60):
        directory = source / f"d{number % 7}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(os.urandom(number * 700))
        (directory / f"l{number}").symlink_to(f"f{number}")
    os.link(source / "d0/e0/f0", source / "hard")
    subprocess.run(["cp", "-a", f"{source}/.", volume.path], check=True)
    subprocess.run(["tar", "-C", volume.path, "-cf", tmp_path / "archive", "."], check=True)
    (volume.path / "again").mkdir()
    subprocess.run(["tar", "-C", volume.path / "again", "-xf", tmp_path / "archive"], check=True)
    subprocess.run(["diff", "-r", "--no-dereference", source, volume.path / "again"], check=True)
    assert (volume.path / "again/hard").stat().st_nlink == 2
    subprocess.run(["rm", "-rf", volume.path / "again"], check=True)


# ------------------------------------------------------------------------------------------------ size and speed


def test_a_big_file_does_not_keep_others_waiting(volume: Volume) -> None:
    """100 MiB in and out while another client looks at other files."""
    (volume.path / "small").write_text("small")
    stop = threading.Event()
    waits: list[float] = []

    def look() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            start = time.perf_counter()
            assert errno_of(lambda name=number: os.stat(volume.path / f"absent-{name}")) == "ENOENT"  # asks the server
            assert (volume.path / "small").read_text() == "small"
            waits.append(time.perf_counter() - start)
            time.sleep(0.002)

    other = threading.Thread(target=look)
    other.start()
    piece = os.urandom(1 << 20)
    try:
        with (volume.path / "big").open("wb", buffering=0) as big:
            for _ in range(100):
                assert big.write(piece) == len(piece)
            os.fsync(big.fileno())
        with (volume.path / "big").open("rb", buffering=0) as big:
            os.posix_fadvise(big.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(100):
                assert big.read(1 << 20) == piece
    finally:
        stop.set()
        other.join()
    waits.sort()
    assert len(waits) > 20
    assert waits[len(waits) // 2] < 0.5, "it waits for the other's I/O"


def test_a_full_backing_fails_the_writer_and_nobody_else(
    server: ServerUnderTest, volume: Volume, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50", "small", small], check=True)
    try:
        full = Volume(server, "full", small / "backing")
        (full.path / "before").write_text("before")
        (full.path / "moved").write_text("moved")
        fd = os.open(full.path / "big", os.O_CREAT | os.O_RDWR, 0o600)
        written = 0

        def fill() -> None:
            nonlocal written
            for _ in range(100):
                written += os.write(fd, b"x" * 100_000)

        assert errno_of(fill) == "ENOSPC"
        assert os.fstat(fd).st_size == written > 500_000
        assert os.pread(fd, 10, written - 10) == b"x" * 10
        # the rest goes on: reading, removing, renaming, and other volumes altogether
        assert (full.path / "before").read_text() == "before"
        (full.path / "moved").rename(full.path / "renamed")
        (volume.path / "elsewhere").write_text("fits")
        os.ftruncate(fd, 0)
        assert os.pwrite(fd, b"y" * 1000, 0) == 1000
        os.close(fd)

        def many() -> None:
            for number in range(100):
                (full.path / f"inode{number}").touch()

        assert errno_of(many) == "ENOSPC"
        (full.path / "inode0").unlink()
        # the inode is free when the kernel has forgotten it
        assert eventually(lambda: errno_of((full.path / "inode0").mkdir) == "ok", 1)
        server.control.expect(messages.Unpublish(full.ref), messages.Done)
    finally:
        assert eventually(lambda: subprocess.run(["umount", small], check=False, capture_output=True).returncode == 0)


def test_a_read_only_backing_says_so(server: ServerUnderTest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disk", disk], check=True)
    try:
        volume = Volume(server, "volume", disk / "backing")
        (volume.path / "file").write_text("there")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert errno_of(lambda: (volume.path / "new").touch()) == "EROFS"
        assert errno_of(lambda: (volume.path / "file").write_text("x")) == "EROFS"
        assert errno_of(lambda: (volume.path / "file").unlink()) == "EROFS"
        assert errno_of(lambda: (volume.path / "file").chmod(0o600)) == "EROFS"
        assert (volume.path / "file").read_text() == "there"
        server.control.expect(messages.Unpublish(volume.ref), messages.Done)
    finally:
        assert eventually(lambda: subprocess.run(["umount", disk], check=False, capture_output=True).returncode == 0)
