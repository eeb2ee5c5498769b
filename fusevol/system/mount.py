"""Mounting and unmounting: mount(2) for root, fusermount3 for an ordinary user.

Both give the descriptor of /dev/fuse, so that one path serves all engines. Nothing here asks the mounted file system:
whoever would answer has not started yet. Standard library only: the keeper imports it.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fusevol.model.errors import FusevolError, UserError
from fusevol.system.libc import MNT_DETACH, MS_NODEV, MS_NOSUID, mount, umount2
from fusevol.system.mounts import FSTYPE

DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
SOURCE = "fusevol"

_FUSERMOUNT_TIMEOUT = 10.0
"""Seconds."""


class MountBusy(FusevolError):
    """Something stands on the mount; nothing was done."""


def sharing_allowed(conf: Path = FUSE_CONF) -> bool:
    """Whether others than who mounts may be let in (`allow_other`): root may, others where fuse.conf says so."""
    if os.geteuid() == 0:
        return True
    try:
        return any(line.strip() == "user_allow_other" for line in conf.read_text(errors="replace").splitlines())
    except OSError:
        return False


def open_device(device: Path = DEVICE) -> int:
    """/dev/fuse. Raises UserError: exit code 1 where there is none, 4 where it may not be opened."""
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise UserError(f"{device} may not be opened by this user (usually its mode is 0666)", 4) from None
    except OSError as error:
        raise UserError(f"{device}: {error.strerror}: the kernel's fuse module is needed", 1) from None


def fusermount() -> str:
    """The setuid helper for ordinary users. Raises UserError."""
    program = shutil.which("fusermount3")
    if program is None:
        raise UserError("fusermount3 is needed to mount as an ordinary user: install fuse3", 1)
    return program


def mount_fuse(mountpoint: Path, options: Sequence[str]) -> int:
    """Mounts on the directory `mountpoint` and returns the connection's descriptor. Raises UserError.

    Requests wait in the kernel until somebody serves the descriptor; when all its copies are closed, the mount answers
    ENOTCONN until it is unmounted.
    """
    return _mount_directly(mountpoint, options) if os.geteuid() == 0 else _mount_by_helper(mountpoint, options)


def _mount_directly(mountpoint: Path, options: Sequence[str]) -> int:
    fd = open_device()
    # rootmode: the root is a directory before the server has said so
    data = ",".join([f"fd={fd}", "rootmode=40000", "user_id=0", "group_id=0", *options])
    try:
        mount(SOURCE, mountpoint, FSTYPE, MS_NOSUID | MS_NODEV, data)
    except OSError as error:
        os.close(fd)
        refused = error.errno in (errno.EPERM, errno.EACCES)
        needs = " (mounting needs CAP_SYS_ADMIN)" if refused else ""
        raise UserError(f"cannot mount on {mountpoint}: {error.strerror}{needs}", 4 if refused else 1) from None
    return fd


def _mount_by_helper(mountpoint: Path, options: Sequence[str]) -> int:
    kind = FSTYPE.removeprefix("fuse.")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        result = _fusermount(
            [
                "-o",
                ",".join(["nosuid", "nodev", f"fsname={SOURCE}", f"subtype={kind}", *options]),
                "--",
                str(mountpoint),
            ],
            commfd=theirs.fileno(),
        )
        if result.returncode:
            raise UserError(f"cannot mount on {mountpoint}: {_complaint(result)}", 1)
        ours.settimeout(_FUSERMOUNT_TIMEOUT)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise UserError(f"cannot mount on {mountpoint}: fusermount3 handed no descriptor over", 1)
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount(mountpoint: Path, detach: bool) -> None:
    """Removes the topmost mount at `mountpoint`; with `detach` at once, though others may stand on it and stay there.

    Never forced: that would abort the connection. Raises MountBusy, or UserError where it is no mount or not ours.
    """
    if os.geteuid() != 0:
        result = _fusermount(["-u", *(["-z"] if detach else []), "--", str(mountpoint)])
        if result.returncode:
            complaint = _complaint(result)
            busy = os.strerror(errno.EBUSY) in complaint
            raise MountBusy(str(mountpoint)) if busy else UserError(f"cannot unmount {mountpoint}: {complaint}", 1)
        return
    try:
        umount2(mountpoint, MNT_DETACH if detach else 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise MountBusy(str(mountpoint)) from None
        refused = 4 if error.errno == errno.EPERM else 1
        raise UserError(f"cannot unmount {mountpoint}: {error.strerror}", refused) from None


def _fusermount(arguments: Sequence[str], commfd: int | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C"}
    if commfd is not None:
        environment["_FUSE_COMMFD"] = str(commfd)
    try:
        return subprocess.run(
            [fusermount(), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=() if commfd is None else (commfd,),
            env=environment,
            timeout=_FUSERMOUNT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"fusermount3 did not end within {_FUSERMOUNT_TIMEOUT:g} s", 1) from None


def _complaint(result: subprocess.CompletedProcess[bytes]) -> str:
    """The helper's last line, without its name in front."""
    lines = os.fsdecode(result.stderr).strip().splitlines() or [f"fusermount3 failed ({result.returncode})"]
    return lines[-1].rpartition("fusermount3: ")[2]
