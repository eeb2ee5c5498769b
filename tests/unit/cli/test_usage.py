"""The command line without an instance: help, versions, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.protocol.instance import Instance, listen

ROOT = Path(__file__).parents[3]


def fusevol(*arguments: str | Path, timeout: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusevol", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fusevol: ")
    return line


MOUNT_OPTIONS = """
    --manifests --kubeconfig --context --in-cluster --node --state-dir --runtime-dir --engine auto|pyfuse3 --adopt
    --no-events --require-locked-memory --log-format text|json -v
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "mount wait status unmount --version Exit codes"),
        (["mount"], MOUNT_OPTIONS),
        (["wait"], "--for --timeout --runtime-dir synced|pod/NAMESPACE/NAME|object=KIND/NAMESPACE/NAME"),
        (["status"], "--output -o table|json --runtime-dir"),
        (["unmount"], "--runtime-dir"),
    ],
)
def test_help_is_complete(command: list[str], words: str) -> None:
    result = fusevol(*command, "--help", COLUMNS="200")
    assert result.returncode == 0
    assert result.stderr == ""
    assert [word for word in words.split() if word not in result.stdout] == []


def test_version() -> None:
    result = fusevol("--version")
    assert (result.returncode, result.stdout) == (0, "fusevol 0.1.0\n")


SOURCES = "exactly one of --manifests, --kubeconfig and --in-cluster"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command"),
        (["serve"], "No such command 'serve'"),
        (["mount"], "Missing argument 'mountpoint'"),
        (["mount", "/mnt"], SOURCES),
        (["mount", "/mnt", "--manifests", "/a", "--in-cluster"], SOURCES),
        (["mount", "/mnt", "--in-cluster", "--context", "x"], "--context goes with --kubeconfig"),
        (["mount", "/mnt", "--in-cluster", "--engine", "other"], "'other'"),
        (["mount", "/mnt", "--in-cluster", "--log-format", "xml"], "'xml'"),
        (["mount", "/mnt", "--nonsense"], "No such option"),
        (["status", "/mnt", "-o", "yaml"], "'yaml'"),
        *(
            (["wait", "/mnt", "--timeout", bad], "--timeout")
            for bad in ("-1", "nan", "inf", "-inf", "1e300", "86400.1")
        ),
        (["wait", "/mnt", "--timeout", "soon"], "'--timeout'"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    result = fusevol(*arguments)
    assert result.returncode == 2
    assert words in one_line(result)


@pytest.mark.parametrize(
    "what",
    [
        "",
        "sync",
        "pod/web",
        "pod/default/web/x",
        "pod/Default/web",
        "object=ConfigMap/c",
        "object=Pod/default/c",
        "object=Secret/default/c@",
        "object=Secret/default/../c",
    ],
)
def test_wait_for_what_nobody_knows(tmp_path: Path, what: str) -> None:
    result = fusevol("wait", tmp_path, "--for", what, "--runtime-dir", tmp_path)
    assert result.returncode == 2
    assert "is none of synced, pod/NAMESPACE/NAME, object=" in one_line(result)


@pytest.mark.parametrize(
    "what", ["synced", "pod/default/web-0", "object=Secret/kube-system/a.b", "object=configmap/d/c@7"]
)
def test_no_instance(tmp_path: Path, what: str) -> None:
    result = fusevol("wait", tmp_path, "--for", what, "--timeout", "0.1", "--runtime-dir", tmp_path)
    assert result.returncode == 3
    assert one_line(result) == f"fusevol: no fusevol serves {tmp_path}"


@pytest.mark.parametrize("command", ["status", "unmount"])
def test_no_instance_to_ask(tmp_path: Path, command: str) -> None:
    result = fusevol(command, tmp_path, "--runtime-dir", tmp_path)
    assert result.returncode == 3
    assert one_line(result) == f"fusevol: no fusevol serves {tmp_path}"


def test_an_interrupted_wait_ends_without_a_word(tmp_path: Path) -> None:
    instance = Instance(tmp_path, tmp_path)
    instance.directory.mkdir()
    with listen(instance.agent_socket) as agent:
        agent.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-m", "fusevol", "wait", str(tmp_path), "--runtime-dir", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        client, _ = agent.accept()
        with client:
            assert json.loads(client.recv(4096))["for"] == "synced"
            process.send_signal(signal.SIGINT)
            process.wait(10)
    assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 130


def test_the_user_is_told_his_own_number_of_seconds(tmp_path: Path) -> None:
    """Not what was left of it, nor what the agent is granted beyond it."""
    instance = Instance(tmp_path, tmp_path)
    instance.directory.mkdir()
    with listen(instance.agent_socket):  # and nobody answers
        result = fusevol("wait", tmp_path, "--timeout", "0.25", "--runtime-dir", tmp_path)
    assert result.returncode == 1
    assert one_line(result) == f"fusevol: {tmp_path}: no answer within 0.25 s"


@pytest.mark.parametrize("what", ["mount point", "state directory", "runtime directory"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, what: str) -> None:
    names = {name: tmp_path / name for name in ("mount point", "state directory", "runtime directory")}
    names[what] = tmp_path / os.fsdecode(b"caf\xe9")
    for path in (tmp_path / "manifests", *names.values()):
        path.mkdir()
    result = fusevol(
        "mount",
        names["mount point"],
        "--manifests",
        tmp_path / "manifests",
        "--state-dir",
        names["state directory"],
        "--runtime-dir",
        names["runtime directory"],
    )
    assert result.returncode == 2
    assert one_line(result) == f"fusevol: the {what} '{tmp_path}/caf\\udce9' has a name that is not UTF-8"
    assert list(names["state directory"].iterdir()) == []


def test_output_that_nobody_reads_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "fusevol", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 1


def test_importing_the_command_line_takes_nothing_heavy() -> None:
    heavy = ["rich", "yaml", "trio", "kubernetes", "structlog", "ssl", "msgspec", "pyfuse3"]
    code = f"import sys, fusevol.cli.main; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
