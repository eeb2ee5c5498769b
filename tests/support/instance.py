"""A whole fusevol, as a user starts it: `fusevol mount` in a process, the other commands run against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import processes

COMMAND = (sys.executable, "-m", "fusevol")


class Instance:
    """Directories below `base`: `mnt`, `state`, `run`; what the processes log goes to `log`."""

    def __init__(self, base: Path, *source: str | Path, options: tuple[str | Path, ...] = ()) -> None:
        self.mountpoint = base / "mnt"
        self.state = base / "state"
        self.runtime = base / "run"
        self.log_path = base / "fusevol.log"
        self._source = source
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for directory in (self.mountpoint, self.runtime):
            directory.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------ running

    def start(self) -> Instance:
        """Returns at once; `wait` waits."""
        with self.log_path.open("ab") as log:
            self._process = processes.spawn(
                [
                    *COMMAND,
                    "mount",
                    self.mountpoint,
                    *self._source,
                    "--state-dir",
                    self.state,
                    "--runtime-dir",
                    self.runtime,
                    *self._options,
                ],
                log=log,
            )
        return self

    @property
    def keeper_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Ends everything, whatever state it is in."""
        if self._process is not None:
            for _ in range(2):  # the second signal detaches if somebody stands on the mount
                if self._process.poll() is None:
                    self._process.send_signal(signal.SIGTERM)
                    try:
                        self._process.wait(8)
                    except subprocess.TimeoutExpired:
                        continue
            processes.end(self._process)
            self._process = None
        self.run("unmount", check=False)
        self._end_stragglers()

    def _end_stragglers(self) -> None:
        """The server survives its keeper: here it must not."""
        marker = str(self.mountpoint).encode()
        for pid in processes.children():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"fusevol" in command and marker in command:
                os.kill(pid, signal.SIGKILL)

    def exit_code(self, timeout: float = 15) -> int:
        """Waits for `fusevol mount` to end by itself."""
        assert self._process is not None
        return self._process.wait(timeout)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # ------------------------------------------------------------------------------------------------ commands

    def run(self, command: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the CLI against this instance."""
        done = subprocess.run(
            [*COMMAND, command, self.mountpoint, "--runtime-dir", self.runtime, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"fusevol {command} {arguments}: exit {done.returncode}\n{done.stderr}\nlog:\n{self.log[-6000:]}"
            )
        return done

    def wait(self, goal: str = "synced", timeout: float = 30) -> None:
        """Raises AssertionError with what is missing."""
        self.run("wait", "--for", goal, "--timeout", f"{timeout:g}")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return status

    def pid(self, name: str) -> int:
        """Of `keeper`, `server` or `agent`."""
        return int(self.status()["processes"][name]["pid"])

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def volume(self, name: str, pod: str = "") -> dict[str, Any]:
        """The status of the volume of this name (of this Pod)."""
        found = [v for v in self.status()["volumes"] if v["name"] == name and pod in ("", v["pod"])]
        assert len(found) == 1, found
        return dict(found[0])

    def path(self, name: str, pod: str = "") -> Path:
        return Path(self.volume(name, pod)["path"])


@contextmanager
def running(base: Path, *source: str | Path, options: tuple[str | Path, ...] = ()) -> Iterator[Instance]:
    """A started instance that is stopped at the end; what it logged is shown where the test fails."""
    instance = Instance(base, *source, options=options)
    try:
        yield instance.start()
    except BaseException:
        print(instance.log[-20000:], file=sys.stderr)
        raise
    finally:
        instance.stop()


def eventually(check: Any, timeout: float = 10.0, interval: float = 0.02) -> Any:
    """The first true value of `check()` within `timeout` seconds; AssertionErrors and OSErrors count as not yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if value := check():
                return value
            problem: object = value
        except (AssertionError, OSError) as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {problem}")
        time.sleep(interval)
