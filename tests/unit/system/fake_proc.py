"""A /proc made of files, with just what is read of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class FakeProc:
    """The first process added is `self`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        pid: int,
        mounts: Sequence[str],
        *,
        namespace: int = 1,
        command: str = "sleep",
        root: str = "/",
        cwd: str = "/",
        files: Sequence[tuple[str, int]] = (),
        maps: str = "",
    ) -> None:
        """`mounts` are lines of mountinfo; `files` the paths of open files and the ids of the mounts they are on."""
        directory = self.root / str(pid)
        for name in ("ns", "fd", "fdinfo"):
            (directory / name).mkdir(parents=True)
        os.symlink(f"mnt:[{namespace}]", directory / "ns/mnt")
        os.symlink(root, directory / "root")
        os.symlink(cwd, directory / "cwd")
        (directory / "comm").write_text(command + "\n")
        (directory / "maps").write_text(maps)
        (directory / "mountinfo").write_text("".join(line + "\n" for line in mounts))
        for number, (path, mount) in enumerate(files):
            os.symlink(path, directory / "fd" / str(number))
            (directory / "fdinfo" / str(number)).write_text(f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount}\nino:\t5\n")
        if not (self.root / "self").exists():
            os.symlink(str(pid), self.root / "self")


ROOT = "20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"
MAIN = "40 20 0:50 / /mnt rw,nosuid,nodev,relatime shared:9 - fuse.fusevol fusevol rw,user_id=0"
