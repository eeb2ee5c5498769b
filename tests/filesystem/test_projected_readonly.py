"""Every operation that would change an API volume, by root and by an ordinary user, on every kind of node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.model.refs import VolumeRef
from fusevol.protocol import messages
from tests.support.server import META, ServerUnderTest, literal_tree

pytestmark = pytest.mark.root

VOLUME = VolumeRef("uid-1", "kubernetes.io/configmap", "vol")
EMPTY = VolumeRef("uid-1", "kubernetes.io/empty-dir", "scratch")

# Runs in a process of its own: prints {operation: errno's name}. argv: volume root, emptyDir root
ATTEMPTS = """
import ctypes, errno, json, os, sys

root, empty = sys.argv[1:]
name = root + "/k"
file = os.path.realpath(name)
directory = os.path.dirname(file)
libc = ctypes.CDLL(None, use_errno=True)

def exchange():
    if libc.renameat2(-100, name.encode(), -100, (root + "/l").encode(), 2):
        raise OSError(ctypes.get_errno(), "")

attempts = {
    "create": lambda: os.open(root + "/x", os.O_CREAT | os.O_WRONLY, 0o644),
    "create below": lambda: os.open(directory + "/x", os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": lambda: os.mkdir(root + "/x"),
    "mknod": lambda: os.mknod(root + "/x"),
    "mkfifo": lambda: os.mkfifo(root + "/x"),
    "symlink": lambda: os.symlink("y", root + "/x"),
    "symlink ..data_tmp": lambda: os.symlink(os.path.basename(directory), root + "/..data_tmp"),
    "link": lambda: os.link(file, root + "/x"),
    "link out": lambda: os.link(file, empty + "/x"),
    "link in": lambda: os.link(empty + "/e", root + "/x"),
    "rename": lambda: os.rename(name, root + "/x"),
    "rename file": lambda: os.rename(file, directory + "/x"),
    "rename out": lambda: os.rename(file, empty + "/x"),
    "rename in": lambda: os.rename(empty + "/e", root + "/x"),
    "exchange": exchange,
    "unlink": lambda: os.unlink(name),
    "unlink file": lambda: os.unlink(file),
    "unlink ..data": lambda: os.unlink(root + "/..data"),
    "rmdir": lambda: os.rmdir(directory),
    "open to write": lambda: os.open(name, os.O_WRONLY),
    "open to append": lambda: os.open(name, os.O_RDWR | os.O_APPEND),
    "open to truncate": lambda: os.open(name, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate(name, 0),
    "chmod file": lambda: os.chmod(file, 0o777),
    "chmod directory": lambda: os.chmod(directory, 0o777),
    "chmod root": lambda: os.chmod(root, 0o755),
    "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
    "chown link": lambda: os.lchown(name, os.getuid(), os.getgid()),
    "utime": lambda: os.utime(file, (0, 0)),
    "utime now": lambda: os.utime(root),
    "setxattr": lambda: os.setxattr(root, "user.fusevol.pod", b"x"),
    "setxattr file": lambda: os.setxattr(file, "user.x", b"x"),
    "removexattr": lambda: os.removexattr(root, "user.fusevol.pod"),
}
found = {}
for what, attempt in attempts.items():
    try:
        attempt()
        found[what] = "ok"
    except OSError as error:
        found[what] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def attempts(server: ServerUnderTest, root: Path, *prefix: str) -> dict[str, str]:
    command = [*prefix, sys.executable, "-c", ATTEMPTS, str(root), str(server.mount / EMPTY.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_root_gets_erofs_for_whatever_would_change_a_volume(server: ServerUnderTest, tmp_path: Path) -> None:
    root = published(server, tmp_path)
    before = listing(root)
    found = attempts(server, root)
    # from one volume to another is EXDEV wherever the other side is asked first
    across = {what: found.pop(what) for what in ("link out", "rename in")}
    assert across == {"link out": "EXDEV", "rename in": "EXDEV"}
    assert set(found.values()) == {"EROFS"}, found
    assert listing(root) == before
    assert os.listdir(server.mount / EMPTY.path) == ["e"]


def test_an_ordinary_user_changes_nothing_either(server: ServerUnderTest, tmp_path: Path) -> None:
    # a bind mount in a namespace of its own stands for the container: above it no user may pass (0750)
    root = published(server, tmp_path)
    before = listing(root)
    inner = (
        f"mkdir -p /mnt/v /mnt/e && mount --bind {root} /mnt/v && mount --bind {server.mount / EMPTY.path} /mnt/e && "
        'exec setpriv --reuid 1000 --regid 1000 --clear-groups "$0" -c "$1" /mnt/v /mnt/e'
    )
    command = ["unshare", "--mount", "sh", "-ec", f"mount -t tmpfs none /mnt; {inner}", sys.executable, ATTEMPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found.values()) <= {"EROFS", "EACCES", "EPERM", "EXDEV"}, found
    assert {found[what] for what in ("create", "mkdir", "symlink", "unlink", "rename")} == {"EROFS"}
    assert found["create below"] == found["open to write"] == "EACCES"
    assert listing(root) == before


def published(server: ServerUnderTest, tmp_path: Path) -> Path:
    backing = tmp_path / "backing"
    backing.mkdir()
    backing.chmod(0o777)
    (backing / "e").write_text("")
    request = messages.PublishEmptyDir(EMPTY, str(backing), 0o777, 0, META)
    server.control.expect(request, messages.Done)
    root = server.publish(VOLUME, literal_tree({"k": b"v", "l": b"w"}))
    root.parent.stat()
    return root


def listing(root: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files]:
            status = os.lstat(os.path.join(directory, name))
            found.append((os.path.join(directory, name), status.st_mode, status.st_uid, status.st_mtime_ns))
    return found
