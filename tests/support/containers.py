"""Real containers: runc (or crun) with a root of nothing but a static busybox.

    with Container(tmp_path / "c", [Mount(volume, "/etc/config", readonly=True)]) as container:
        container.exec("cat", "/etc/config/key").stdout

Mounts are made as kubelet and containerd make them: recursive binds, private, in a mount namespace of the container's
own. A container has no network and ends with this process, killed or not, because its first process then reads the end
of its input.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RUNTIMES = ("runc", "crun")
COMMAND_TIMEOUT = 30.0  # seconds

# containerd's default, without those that only a network makes use of
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    )
]

_numbers = itertools.count(1)


class ContainerError(Exception):
    """The runtime could not do it; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Mount:
    """`source` (a file or a directory of the host) at the absolute path `destination` of the container."""

    source: Path
    destination: str
    readonly: bool = False

    def config(self) -> dict[str, Any]:
        options = ["rbind", "rprivate", "ro" if self.readonly else "rw"]
        return {"destination": self.destination, "type": "bind", "source": str(self.source), "options": options}


def available() -> str:
    """Why there can be no containers here, or ""."""
    if os.geteuid() != 0:
        return "containers need root"
    try:
        find_runtime(), _busybox()
    except ContainerError as error:
        return str(error)
    return ""


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def find_runtime() -> str:
    """The path of the OCI runtime. Raises ContainerError."""
    for name in RUNTIMES:
        if path := _find(name):
            return path
    raise ContainerError(f"there is no {' and no '.join(RUNTIMES)}")


def _busybox() -> str:
    path = _find("busybox")
    if path is None:
        raise ContainerError("there is no busybox")
    with open(path, "rb") as file:
        if b"/ld-" in file.read(4096):  # the program headers' interpreter, which the container's root does not have
            raise ContainerError(f"{path} is not static: install busybox-static")
    return path


class Container:
    """A container whose processes run as `user` and `group`. Its files are below `base`, which is made."""

    def __init__(
        self,
        base: Path,
        mounts: Sequence[Mount] = (),
        *,
        user: int = 0,
        group: int = 0,
        supplementary: Sequence[int] = (),
    ) -> None:
        self._bundle = base
        self._mounts = mounts
        self._user = {"uid": user, "gid": group, "additionalGids": list(supplementary)}
        # the runtime's state is below `base`, but the cgroup is named by this alone
        self.name = f"fusevol-test-{os.getpid()}-{next(_numbers)}"
        self.pid = 0  # of its first process, as the host sees it; 0 while it does not run
        self._input: int | None = None  # its first process ends when this is closed

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Returns when it runs. Raises ContainerError."""
        assert self._input is None, "it runs already"
        self._make_bundle()
        pid_file = self._bundle / "pid"
        theirs, self._input = os.pipe()
        try:
            self._call("run", "--detach", "--bundle", self._bundle, "--pid-file", pid_file, self.name, stdin=theirs)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(theirs)
        self.pid = int(pid_file.read_text())
        return self

    def exec(
        self, *command: str, input: bytes | None = None, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in it. Any exit code is returned; `timeout` in seconds."""
        arguments = [*self._runtime_command(), "exec", self.name, *command]
        done = subprocess.run(arguments, input=input or b"", capture_output=True, timeout=timeout, check=False)
        out, err = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def read(self, path: str) -> str:
        """What a file of the container holds. Raises ContainerError."""
        done = self.exec("cat", path)
        if done.returncode:
            raise ContainerError(done.stderr.strip())
        return done.stdout

    def mountinfo(self) -> str:
        """/proc/PID/mountinfo of its first process, which is there before anything is run in it."""
        return Path(f"/proc/{self.pid}/mountinfo").read_text()

    def stop(self) -> None:
        """Ends it, and returns when its processes, mounts and cgroup are gone. May be called twice."""
        if self._input is None:
            return
        os.close(self._input)
        self._input = None
        try:
            self._call("delete", "--force", self.name)
        finally:
            if self.pid:
                with contextlib.suppress(ChildProcessError):  # where orphans are another process's to reap
                    os.waitpid(self.pid, 0)
            self.pid = 0
            shutil.rmtree(self._bundle / "root", ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------------------

    def _runtime_command(self) -> list[str]:
        return [find_runtime(), "--root", str(self._bundle / "state")]

    def _call(self, *arguments: str | Path, stdin: int = subprocess.DEVNULL) -> None:
        # to a file, not a pipe: the container keeps what it was started with, and a pipe would never end
        with (self._bundle / "log").open("w+b") as log:
            command = [*self._runtime_command(), *map(str, arguments)]
            done = subprocess.run(command, stdin=stdin, stdout=log, stderr=log, timeout=COMMAND_TIMEOUT, check=False)
            if done.returncode:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()
                raise ContainerError(f"{arguments[0]}: exit {done.returncode}: {said}")

    def _make_bundle(self) -> None:
        busybox, bin_ = _busybox(), self._bundle / "root" / "bin"
        bin_.mkdir(parents=True)
        shutil.copy(busybox, bin_ / "busybox")
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in set(applets) - {"busybox"}:
            (bin_ / applet).symlink_to("busybox")
        (self._bundle / "config.json").write_text(json.dumps(self._config(), indent=2))

    def _config(self) -> dict[str, Any]:
        sets = ("bounding", "effective", "permitted")
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": self._user,
                "args": ["cat"],
                "env": ["PATH=/bin", "HOME=/"],
                "cwd": "/",
                "capabilities": dict.fromkeys(sets, CAPABILITIES),
            },
            "root": {"path": "root"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
                },
                *(mount.config() for mount in self._mounts),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")],
                "rootfsPropagation": "rprivate",
            },
        }
