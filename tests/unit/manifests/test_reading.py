"""Files are read when nobody writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from fusevol.agent.sources.manifests.reading import MAX_FILE, Busy, Stamp, TooLarge, manifests_in, read_settled


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text("whole")
    return path


async def test_a_file_at_rest_is_read_at_once(file: Path) -> None:
    at_rest = Stamp.of(os.stat(file))
    with trio.fail_after(1):
        data, stamp = await read_settled(file, still=100)
    assert data == b"whole"
    assert stamp == at_rest


async def test_a_file_that_is_being_written_is_not_read(file: Path) -> None:
    with file.open("a") as writer:
        writer.write(" and more")
        writer.flush()
        with pytest.raises(Busy):
            await read_settled(file, still=0)
    assert (await read_settled(file, still=0))[0] == b"whole and more"


async def test_another_process_writes(file: Path) -> None:
    program = "import sys; f = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read(); f.write('new')"
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        writer: trio.Process = await nursery.start(start, [sys.executable, "-c", program, str(file)])
        assert writer.stdin
        assert writer.stdout
        await writer.stdout.receive_some()
        with pytest.raises(Busy):
            await read_settled(file, still=0)
        await writer.stdin.aclose()
    assert (await read_settled(file, still=0))[0] == b"new"


async def test_readers_do_not_matter(file: Path) -> None:
    with file.open():
        assert (await read_settled(file, still=0))[0] == b"whole"


async def test_a_writer_waits_for_the_reading_and_nobody_dies_of_it(file: Path) -> None:
    """The signal that breaks a lease is ignored: many writers during many readings."""
    writing = True

    def write() -> None:
        for number in range(300):
            with file.open("w") as writer:
                writer.write(f"{number}")

    async def read() -> None:
        while writing:
            try:
                data, _ = await read_settled(file, still=0)
            except Busy:
                data = b"0"
            assert data.isdigit() or data == b"whole"
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.to_thread.run_sync(write)
        writing = False
    assert (await read_settled(file, still=0))[0] == b"299"


async def test_an_unprivileged_reader_of_anothers_file(tmp_path: Path) -> None:
    """CAP_LEASE is missing and the file is another's: read when it has not changed for a while."""
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    path = tmp_path / "a.yaml"
    path.write_text("whole")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    program = (
        "import os, sys, trio, pathlib\n"
        "from fusevol.agent.sources.manifests.reading import read_settled, Busy\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "async def main():\n"
        "    try: print((await read_settled(pathlib.Path(sys.argv[1]), 0.3))[0].decode())\n"
        "    except Busy: print('busy')\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    still = await trio.run_process(command, capture_stdout=True)
    assert still.stdout == b"whole\n"

    async def disturb() -> None:
        while True:
            with path.open("a") as writer:
                writer.write("x")
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        moving = await trio.run_process(command, capture_stdout=True)
        nursery.cancel_scope.cancel()
    assert moving.stdout == b"busy\n"


async def test_what_cannot_be_a_manifest(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(TooLarge):
        await read_settled(large, still=0)
    with pytest.raises(FileNotFoundError):
        await read_settled(tmp_path / "none", still=0)


def test_which_files_are_manifests(tmp_path: Path) -> None:
    for name in (
        "b.yml",
        "a.yaml",
        "c.json",
        ".hidden.yaml",
        ".a.yaml.swp",
        "a.yaml~",
        "#a.yaml#",
        "README",
        "a.yaml.bak",
    ):
        (tmp_path / name).write_text("x")
    (tmp_path / "directory.yaml").mkdir()
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "link.yaml").symlink_to("README")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    found = manifests_in(tmp_path)
    assert list(found) == ["a.yaml", "b.yml", "c.json", "dangling.yaml", "link.yaml"]
    assert found["dangling.yaml"] is None
    assert found["link.yaml"] == Stamp.of((tmp_path / "README").stat())
    with pytest.raises(FileNotFoundError):
        manifests_in(tmp_path / "none")
