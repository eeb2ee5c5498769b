"""Locked and undumpable memory: tried in processes of their own, since neither can be taken back for sure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.system import memory


def run(code: str, *prefix: str) -> list[str]:
    command = [*prefix, sys.executable, "-c", "from fusevol.system import memory\nimport os\n" + code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_IPC_LOCK")
def test_memory_that_comes_after_locking_is_locked_as_well() -> None:
    code = """
print(memory.lock_memory())
before = memory.usage(os.getpid()).locked
more = bytearray(50 << 20)
print(before > 1 << 20, memory.usage(os.getpid()).locked - before >= 50 << 20)
"""
    assert run(code) == ["None", "True True"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")
def test_the_reason_is_told_where_memory_cannot_be_locked() -> None:
    user = ["prlimit", "--memlock=65536", "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
    (reason,) = run("print(memory.lock_memory())", *user)
    assert reason.startswith("mlockall: Cannot allocate memory")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")
def test_an_undumpable_process_cannot_be_read_by_its_own_user() -> None:
    code = """
def readable():
    with open("/proc/sys/kernel/core_pattern"): pass
    return os.stat(f"/proc/{os.getpid()}/mem").st_uid
print(readable())
memory.make_undumpable()
print(readable())
"""
    assert run(code, "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups") == ["1000", "0"]


def test_usage_of_this_process_is_plausible() -> None:
    before = memory.usage(os.getpid())
    block = bytearray(os.urandom(16 << 20))
    after = memory.usage(os.getpid())
    assert after.rss - before.rss >= 15 << 20
    assert after.pss is not None
    assert 0 < after.pss <= after.rss + (1 << 20)
    assert len(block) == 16 << 20


def test_usage_reads_kibibytes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text("Name:\tx\nVmLck:\t      16 kB\nVmRSS:\t    2048 kB\nThreads:\t3\n")
    (tmp_path / "7/smaps_rollup").write_text("0-f ---p 0 00:00 0   [rollup]\nRss: 2048 kB\nPss:      1000 kB\n")
    assert memory.usage(7, tmp_path) == memory.Usage(rss=2048 << 10, locked=16 << 10, pss=1000 << 10)


def test_usage_of_a_process_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        memory.usage(7, tmp_path)
