"""Secrets: in locked memory only, never in the page cache, and gone when they are gone."""

from __future__ import annotations

import ctypes
import mmap
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.model.objects import SECRET
from fusevol.model.refs import ObjectRef, VolumeRef
from fusevol.protocol import messages
from fusevol.system.libc import libc
from tests.support.server import META, ServerUnderTest, config_map, eventually

pytestmark = pytest.mark.root

VOLUME = VolumeRef("uid-1", "kubernetes.io/secret", "vol")
REF = ObjectRef(SECRET, "shop", "s")
NEXT = "..2026_11_22_19_35_35.4203523368"
SYS_CACHESTAT = 451  # Linux 6.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerUnderTest]:
    with ServerUnderTest(
        tmp_path, requireLockedMemory=True, env={"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    ) as server:
        yield server
        assert "ERROR" not in server.logged()


def cached_pages(fd: int) -> int:
    """Pages of an open file that stand in the page cache, by cachestat(2). The file is opened before they could come
    there: an open without FOPEN_KEEP_CACHE drops what it finds."""
    everything = (ctypes.c_uint64 * 2)(0, 0)
    result = (ctypes.c_uint64 * 5)()
    if libc.syscall(SYS_CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(result), 0):
        pytest.skip("this kernel has no cachestat(2)")
    return int(result[0])


def mapped(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
        return view[:]


def test_a_secret_leaves_nothing_in_the_page_cache(server: ServerUnderTest) -> None:
    value = secrets.token_bytes(50_000)
    server.put(REF, {"k": value})
    path = server.publish(VOLUME, server.tree(REF)) / "k"
    with path.open("rb") as observer:
        assert path.read_bytes() == value
        assert cached_pages(observer.fileno()) == 0
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        assert view[:] == value
        assert cached_pages(observer.fileno()) == 13, "the kernel cannot map what it does not cache"
        view.close()
        assert eventually(lambda: cached_pages(observer.fileno()) == 0)


def test_a_config_map_does_stay_in_the_page_cache(server: ServerUnderTest) -> None:
    ref = config_map("cm")
    server.put(ref, {"k": b"x" * 50_000})
    path = server.publish(VOLUME, server.tree(ref)) / "k"
    with path.open("rb") as observer:
        path.read_bytes()
        path.read_bytes()
        assert cached_pages(observer.fileno()) == 13


def occurrences(pid: int, needle: bytes) -> int:
    """In all readable memory of a process."""
    found = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(group, 16) for group in match.groups())
            try:
                memory.seek(start)
                found += memory.read(end - start).count(needle)
            except OSError:
                continue  # a guard page, or it was unmapped meanwhile
    return found


@pytest.mark.parametrize("size", [100, 600_000], ids=["small", "large"])
def test_a_dropped_secret_is_nowhere_in_the_servers_memory(server: ServerUnderTest, size: int) -> None:
    canary = secrets.token_bytes(24)
    pid = server.process.pid
    server.put(REF, {"k": canary + bytes(size), "l": b"l"})
    path = server.publish(VOLUME, server.tree(REF)) / "k"
    assert path.read_bytes() == canary + bytes(size)
    assert mapped(path)[:24] == canary
    assert occurrences(pid, canary) == 1, "once, whatever was received and read"
    # the next version shares the memory of a key that did not change
    server.put(REF, {"k": canary + bytes(size), "l": b"m"})
    server.update(VOLUME, server.tree(REF), NEXT)
    assert path.read_bytes()[:24] == canary
    assert occurrences(pid, canary) == 1
    with path.open("rb") as file:
        server.unpublish(VOLUME)
        server.control.expect(messages.DropObject(REF), messages.Done)
        assert file.read(24) == canary
        assert occurrences(pid, canary) == 1
    forget()
    assert eventually(lambda: occurrences(pid, canary) == 0)


def forget() -> None:
    """The kernel drops what inodes it holds for nobody."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_all_memory_is_locked_and_cannot_be_dumped(server: ServerUnderTest) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert int(fields["VmLck"].split()[0]) > int(fields["VmRSS"].split()[0])
    # of an undumpable process everything in /proc belongs to root, whoever it runs as; its memory is not written
    assert Path(f"/proc/{server.process.pid}/coredump_filter").exists()
    assert int(fields["CoreDumping"]) == 0


def test_no_log_line_shows_a_secret(server: ServerUnderTest) -> None:
    server.put(REF, {"k": b"open sesame"})
    assert (server.publish(VOLUME, server.tree(REF)) / "k").read_text() == "open sesame"
    wrong = messages.Publish(VOLUME, "no", server.tree(REF), "", META)
    failed = server.control.expect(wrong, messages.Failed)
    assert "sesame" not in failed.message + server.logged()
