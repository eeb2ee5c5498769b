"""emptyDir: what containers and people do to it that it must stand, and the load of many clients."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from fusevol.protocol import messages
from tests.support.emptydir import Volume, as_user
from tests.support.server import ServerUnderTest, errno_of, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and acts as other users"),
]

JUDGE = Path(__file__).resolve().parents[3] / "shared/judges/load.py"


# ------------------------------------------------------------------------------------------------ links that lead out


def test_the_server_follows_no_link(volume: Volume, tmp_path: Path) -> None:
    """The link leads to a file seen from the backing directory, and to nothing seen from the mount."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "outside").mkdir()
    (volume.path / "link").symlink_to("../secret")
    (volume.path / "up").symlink_to("../outside")
    assert errno_of(lambda: (volume.path / "link").read_text()) == "ENOENT"
    assert errno_of(lambda: (volume.path / "link").open("r+").close()) == "ENOENT"
    assert errno_of(lambda: (volume.path / "up/new").touch()) == "ENOENT"
    assert errno_of(lambda: os.mkdir(volume.path / "up/new")) == "ENOENT"
    assert errno_of(lambda: os.chmod(volume.path / "link", 0o777)) == "ENOENT"
    assert errno_of(lambda: os.truncate(volume.path / "link", 0)) == "ENOENT"
    os.chown(volume.path / "link", 5, 6, follow_symlinks=False)
    os.utime(volume.path / "link", ns=(5, 6), follow_symlinks=False)
    os.link(volume.path / "link", volume.path / "hard", follow_symlinks=False)
    os.rename(volume.path / "hard", volume.path / "up")
    os.unlink(volume.path / "up")
    secret = (tmp_path / "secret").stat()
    assert (secret.st_uid, secret.st_nlink, (tmp_path / "secret").read_text()) == (0, 1, "secret")
    assert os.listdir(tmp_path / "outside") == []


def test_a_directory_that_became_a_link_is_not_followed(volume: Volume, tmp_path: Path) -> None:
    """The kernel still believes in the directory when it asks."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (volume.path / "directory").mkdir()
    directory = os.open(volume.path / "directory", os.O_PATH)
    (volume.path / "directory/file").write_text("x")
    shutil.rmtree(volume.backing / "directory")
    (volume.backing / "directory").symlink_to("../outside")
    for name in ("secret", "file"):
        assert errno_of(lambda name=name: os.close(os.open(name, os.O_RDONLY, dir_fd=directory))) in (
            "ENOENT",
            "ESTALE",
        )
        assert errno_of(lambda name=name: (volume.path / "directory" / name).read_text()) == "ENOENT"
    assert errno_of(lambda: os.mkdir("new", dir_fd=directory)) in ("ENOENT", "ESTALE")
    os.close(directory)
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_swapping_a_directory_and_a_link_never_leads_out(volume: Volume, tmp_path: Path) -> None:
    """A container swaps them as fast as it can while another works below the name."""
    (tmp_path / "outside").mkdir()
    (volume.path / "swap").mkdir()
    (volume.path / "link").symlink_to("../outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (volume.path / "swap").rename(volume.path / "tmp")
            (volume.path / "link").rename(volume.path / "swap")
            (volume.path / "swap").rename(volume.path / "link")
            (volume.path / "tmp").rename(volume.path / "swap")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        made = sum(
            errno_of(lambda number=number: (volume.path / f"swap/{number}").touch()) == "ok" for number in range(400)
        )
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(tmp_path / "outside") == []
    assert len(os.listdir(volume.backing / "swap")) == made > 0


# ------------------------------------------------------------------------------------------------ behind our back


def test_an_emptied_backing_directory_goes_on(volume: Volume) -> None:
    (volume.path / "file").write_text("x")
    (volume.path / "directory").mkdir()
    (volume.path / "directory/inner").write_text("x")
    shutil.rmtree(volume.backing / "directory")
    (volume.backing / "file").unlink()
    assert os.listdir(volume.path) == []
    assert errno_of(lambda: (volume.path / "file").read_text()) == "ENOENT"
    assert errno_of(lambda: (volume.path / "directory/inner").read_text()) == "ENOENT"
    (volume.path / "file").write_text("again")
    (volume.path / "directory").mkdir()
    (volume.path / "directory/inner").write_text("again")
    assert (volume.backing / "directory/inner").read_text() == (volume.backing / "file").read_text() == "again"


def test_a_removed_backing_directory_is_made_anew_below_a_bind_mount(volume: Volume, tmp_path: Path) -> None:
    (volume.path / "file").write_text("x")
    bind = tmp_path / "bind"
    bind.mkdir()
    subprocess.run(["mount", "--bind", volume.path, bind], check=True)
    try:
        for _ in range(2):
            shutil.rmtree(volume.backing)
            assert eventually(lambda: not (bind / "file").exists(), 3)
            assert volume.backing.is_dir()
            (bind / "file").write_text("again")
            (bind / "directory").mkdir()
            assert (volume.backing / "file").read_text() == "again"
            assert sorted(os.listdir(volume.path)) == ["directory", "file"]
    finally:
        subprocess.run(["umount", bind], check=True)


def test_a_mount_below_an_empty_dir_stays_while_the_volume_is_used(volume: Volume, tmp_path: Path) -> None:
    """A container's configMap inside its emptyDir."""
    (volume.path / "nested").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/key").write_text("value")
    subprocess.run(["mount", "--bind", tmp_path / "other", volume.path / "nested"], check=True)
    try:
        for number in range(30):
            (volume.path / f"file{number}").write_text("x")
            assert (volume.path / "nested/key").read_text() == "value"
        assert eventually(lambda: (volume.path / "nested/key").exists(), 2)
    finally:
        subprocess.run(["umount", volume.path / "nested"], check=True)


def test_unpublished_volumes_leave_their_data_and_their_open_files(server: ServerUnderTest, volume: Volume) -> None:
    (volume.path / "file").write_text("x")
    with (volume.path / "file").open("r+") as opened:
        server.control.expect(messages.Unpublish(volume.ref), messages.Done)
        assert errno_of(volume.path.stat) == "ENOENT"
        opened.write("still")
        opened.flush()
    assert (volume.backing / "file").read_text() == "still"


def test_an_ordinary_user_cannot_make_the_server_open_a_device(volume: Volume) -> None:
    (volume.path / "directory").mkdir()
    (volume.path / "directory").chmod(0o777)
    assert as_user(volume, lambda: os.mknod("directory/null", 0o020666, os.makedev(1, 3))) == "EPERM"
    os.mknod(volume.path / "null", 0o020666, os.makedev(1, 3))
    assert errno_of(lambda: (volume.path / "null").read_bytes()) == "EACCES"  # the mount is nodev


# ------------------------------------------------------------------------------------------------ load


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_many_clients_find_every_operation_as_natively(volume: Volume, seed: str) -> None:
    if not JUDGE.exists():
        pytest.skip(f"the load judge is not beside the repository ({JUDGE.name})")
    with tempfile.TemporaryDirectory() as directory:  # ordinary users may pass neither the mount's tree nor pytest's
        os.chmod(directory, 0o755)
        bind = Path(directory, "bind")
        bind.mkdir()
        subprocess.run(["mount", "--bind", volume.path, bind], check=True)
        command = [sys.executable, JUDGE, bind, "--also", volume.backing, "--seed", seed, "--seconds", "8"]
        command += ["--clients", "8", "--binds", "4", "--users", "2", "--signals"]
        try:
            judged = subprocess.run(command, capture_output=True, text=True, timeout=200, umask=0)
        finally:
            subprocess.run(["umount", "-l", bind], check=True)
    report = json.loads(judged.stdout)
    assert report["ok"], json.dumps({key: report[key] for key in report if key != "operations"}, indent=1)[:5000]
