"""API volumes through a real mount: what they look like, how they change, and that nobody else changes them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.agent.publisher.atomic_writer import plan_update
from fusevol.model.refs import VolumeRef
from fusevol.model.tree import Tree
from fusevol.model.volume import ObjectVersion, VolumeMeta
from fusevol.protocol import messages
from tests.support.server import Control, ServerUnderTest, Writer, config_map, errno_of, literal_tree

pytestmark = pytest.mark.root

VOLUME = VolumeRef("uid-1", "kubernetes.io/configmap", "vol")
FIRST, NEXT = "..2026_11_22_19_35_31.3068194639", "..2026_11_22_19_35_35.4203523368"
CM = config_map("cm")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerUnderTest]:
    tmp_path.chmod(0o755)
    with ServerUnderTest(tmp_path) as server:
        yield server
        assert "ERROR" not in server.logged()


def shape(root: Path) -> dict[str, str]:
    """Path → mode, owner, and target or content."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(directory, name)
            status = path.lstat()
            what = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
            if path.is_symlink():
                what += f" -> {os.readlink(path)}"
            elif path.is_file():
                what += f" {path.read_text()}"
            found[str(path.relative_to(root))] = what
    return found


def test_a_published_volume_looks_as_kubelet_makes_it(server: ServerUnderTest) -> None:
    server.put(CM, {"a": b"va", "b": b"vb"})
    files = (server.file("a", CM, "a", 0o440, uid=7, gid=9), server.file("dir/sub/b", CM, "b", 0o600))
    root = server.publish(VOLUME, Tree(files, root_mode=0o3777, directory_mode=0o2755, gid=55, mountpoints=("m/n",)))
    assert shape(root) == {
        FIRST: "drwxr-sr-x 0:55",
        f"{FIRST}/a": "-r--r----- 7:9 va",
        f"{FIRST}/dir": "drwxr-sr-x 0:55",
        f"{FIRST}/dir/sub": "drwxr-sr-x 0:55",
        f"{FIRST}/dir/sub/b": "-rw------- 0:0 vb",
        "..data": f"lrwxrwxrwx 0:55 -> {FIRST}",
        "a": "lrwxrwxrwx 7:55 -> ..data/a",
        "dir": "lrwxrwxrwx 0:55 -> ..data/dir",
        "m": "drwxr-sr-x 0:55",
        "m/n": "drwxr-sr-x 0:55",
    }
    assert stat.filemode(root.stat().st_mode) == "drwxrwsrwt"
    assert root.stat().st_nlink == 4
    assert root.stat().st_mtime == pytest.approx(server.log.stat().st_mtime, abs=60)


def test_the_tree_above_a_volume_and_the_names(server: ServerUnderTest) -> None:
    server.publish(VOLUME, literal_tree({"k": b"v"}))
    server.control.expect(messages.SetName("shop", "cart", "uid-1"), messages.Done)
    above = ("", "pods", "pods/uid-1", "pods/uid-1/volumes", "pods/uid-1/volumes/kubernetes.io~configmap", "by-name")
    modes = [stat.S_IMODE((server.mount / path).stat().st_mode) for path in above]
    assert modes == [0o755, 0o750, 0o750, 0o750, 0o755, 0o755]
    link = server.mount / "by-name/shop/cart"
    assert os.readlink(link) == "../../pods/uid-1"
    assert (link / "volumes/kubernetes.io~configmap/vol/k").read_text() == "v"
    server.control.expect(messages.AddPod("uid-2"), messages.Done)
    server.control.expect(messages.SetName("shop", "cart", "uid-2"), messages.Done)
    assert os.listdir(link / "volumes") == []
    server.control.expect(messages.SetName("shop", "cart", None), messages.Done)
    assert os.listdir(server.mount / "by-name") == []
    assert not os.path.lexists(link)


def test_many_keys_odd_names_and_large_contents(server: ServerUnderTest) -> None:
    data = {f"key-{number:03}": f"value {number}".encode() for number in range(300)}
    data |= {"ünï/cödé/日本.txt": "€".encode(), "with space\n": b"x", "n" * 255: b"", "large": os.urandom(1 << 20)}
    root = server.publish(VOLUME, literal_tree(data))
    tops = {path.partition("/")[0] for path in data}
    assert set(os.listdir(root)) == {FIRST, "..data"} | tops
    for path, content in data.items():
        assert (root / path).read_bytes() == content
        assert (root / path).stat().st_size == len(content)
    assert (root / "large").stat().st_blocks == 2048
    with (root / "large").open("rb") as file:
        file.seek(1 << 19)
        assert file.read() == data["large"][1 << 19 :]
        assert os.pread(file.fileno(), 100, 1 << 20) == b""


def test_names_that_are_not_utf8_are_found_by_their_bytes(server: ServerUnderTest) -> None:
    root = server.publish(VOLUME, literal_tree({"k": b"v"}))
    assert errno_of(lambda: os.stat(os.fsencode(root) + b"/\xff\xfe")) == "ENOENT"


def test_extended_attributes_of_the_root(server: ServerUnderTest) -> None:
    meta = VolumeMeta("shop", "cart", 3, "2026-11-22T19:35:35Z", (ObjectVersion(CM, "17"),))
    root = server.publish(VOLUME, literal_tree({"k": b"v"}), meta=meta)
    told = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    assert told == {
        "user.fusevol.namespace": b"shop",
        "user.fusevol.pod": b"cart",
        "user.fusevol.objects": b"ConfigMap/shop/cm@17",
        "user.fusevol.generation": b"3",
        "user.fusevol.updated": b"2026-11-22T19:35:35Z",
    }
    server.control.expect(messages.Annotate(VOLUME, VolumeMeta("shop", "cart", 4, "later")), messages.Done)
    assert os.getxattr(root, "user.fusevol.generation") == b"4"
    assert errno_of(lambda: os.getxattr(root, "user.other")) == "ENODATA"
    assert os.listxattr(root / "k") == []


# -------------------------------------------------------------------------------------------- updates


def test_an_update_through_the_mount_is_seen_at_once_by_who_had_the_old_version_cached(server: ServerUnderTest) -> None:
    server.put(CM, {"a": b"before", "gone": b"x", "dir/b": b"y"})
    root = server.publish(VOLUME, server.tree(CM))
    assert shape(root)["..data"].endswith(FIRST)
    mtime = root.stat().st_mtime_ns
    server.put(CM, {"a": b"after", "new": b"z", "dir/b": b"y"})
    server.update(VOLUME, server.tree(CM), NEXT)
    assert (root / "a").read_text() == "after"
    assert (root / "new").read_text() == "z"
    assert not os.path.lexists(root / "gone")
    assert sorted(os.listdir(root)) == [NEXT, "..data", "a", "dir", "new"]
    assert stat.filemode((root / NEXT).stat().st_mode) == "drwxr-xr-x"
    assert root.stat().st_mtime_ns > mtime
    state = server.volumes()[VOLUME]
    assert (state.settled, state.digest) == (True, server.digest(server.tree(CM)))


def test_each_step_is_refused_to_another_thread_and_taken_from_the_writer(server: ServerUnderTest) -> None:
    server.put(CM, {"a": b"1", "gone": b"x"})
    root = server.publish(VOLUME, server.tree(CM))
    assert server.writer is not None
    server.put(CM, {"a": b"2", "new": b"z"})
    tree = server.tree(CM)
    plan = plan_update(server.stage(VOLUME, tree, NEXT).view, NEXT, tree)
    other = Writer()
    try:
        for step in [*plan.steps, *plan.removals[FIRST]]:
            with pytest.raises(OSError, match="Read-only file system"):
                server.write(VOLUME, [step], other)
            server.write(VOLUME, [step])
    finally:
        other.stop()
    assert (root / "a").read_text() == "2"
    assert server.volumes()[VOLUME].settled


def test_a_thread_that_never_looked_the_nonce_up_is_no_writer(server: ServerUnderTest) -> None:
    root = server.publish(VOLUME, literal_tree({"k": b"1"}))
    server.control.expect(messages.RegisterWriter("..nonce-x"), messages.Done)
    server.control.expect(messages.ConfirmWriter(), messages.Failed)
    server.stage(VOLUME, literal_tree({"k": b"2"}), NEXT)
    assert errno_of(lambda: os.mkdir(root / NEXT)) == "EROFS"


def test_a_caller_that_the_mounters_pid_namespace_does_not_know_is_no_writer(tmp_path: Path) -> None:
    with ServerUnderTest(tmp_path, foreign_pid_namespace=True) as server:
        root = server.publish(VOLUME, literal_tree({"k": b"1"}))
        server.control.expect(messages.RegisterWriter("..nonce-x"), messages.Done)
        assert not (server.mount / "..nonce-x").exists()
        server.control.expect(messages.ConfirmWriter(), messages.Failed)
        server.stage(VOLUME, literal_tree({"k": b"2"}), NEXT)
        with pytest.raises(OSError, match="Read-only file system"):
            os.mkdir(root / NEXT)


def test_the_writer_goes_when_another_agent_comes(server: ServerUnderTest) -> None:
    server.publish(VOLUME, literal_tree({"k": b"1"}))
    tree = literal_tree({"k": b"2"})
    plan = plan_update(server.stage(VOLUME, tree, NEXT).view, NEXT, tree)
    server.write(VOLUME, plan.steps[:1])
    newer = Control(server.socket_path)
    newer.hello()
    with pytest.raises(OSError, match="Read-only file system"):
        server.write(VOLUME, plan.steps[1:])
    newer.close()


def test_an_open_file_reads_its_own_version_to_the_end(server: ServerUnderTest) -> None:
    server.put(CM, {"a": b"1" * 300_000})
    root = server.publish(VOLUME, server.tree(CM))
    with (root / "a").open("rb", buffering=0) as file:
        assert file.read(10) == b"1" * 10
        server.put(CM, {"a": b"2" * 300_000})
        server.update(VOLUME, server.tree(CM), NEXT)
        server.unpublish(VOLUME)
        server.control.expect(messages.DropObject(CM), messages.Done)
        assert not root.exists()
        assert file.seek(299_990) == 299_990
        assert file.read(100) == b"1" * 10
        assert os.fstat(file.fileno()).st_nlink == 0


def test_a_reader_never_sees_a_mix_within_one_version_and_never_nothing(server: ServerUnderTest) -> None:
    server.put(CM, {"a": b"0", "b": b"0"})
    root = server.publish(VOLUME, server.tree(CM))
    stop, faults, reads = threading.Event(), [], [0]

    def read() -> None:
        while not stop.is_set():
            try:
                data = os.open(root / "..data", os.O_PATH | os.O_DIRECTORY)
                try:
                    values = [_content(name, data) for name in ("a", "b")]
                finally:
                    os.close(data)
                if values[0] != values[1]:
                    faults.append(values)
            except OSError as error:
                faults.append(error)
            reads[0] += 1

    reader = threading.Thread(target=read)
    reader.start()
    leftovers = []
    for number in range(1, 101):
        server.put(CM, {"a": str(number).encode(), "b": str(number).encode()})
        tree = server.tree(CM)
        plan = plan_update(server.stage(VOLUME, tree, f"..2026.{number}").view, f"..2026.{number}", tree)
        server.write(VOLUME, plan.steps)
        # as the agent does: what was replaced goes a moment later, not at once
        leftovers.append(plan.removals)
        if number > 20:
            for name, steps in leftovers.pop(0).items():
                if (root / name).exists():
                    server.write(VOLUME, steps)
    stop.set()
    reader.join()
    assert faults == []
    assert reads[0] > 50


def _content(name: str, directory: int) -> bytes:
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------- removal


def test_what_is_removed_is_gone_at_once_for_those_who_had_it_cached(server: ServerUnderTest) -> None:
    root = server.publish(VOLUME, literal_tree({"k": b"v", "dir/l": b"w"}))
    # another process, which stands in the volume and has all of it cached
    look = """
import os, sys
paths = sys.argv[1:]
for _ in range(2):
    print(sum(os.path.lexists(path) for path in paths), flush=True)
    sys.stdin.readline()
"""
    paths = ["k", "dir/l", "..data", FIRST, f"{FIRST}/k", str(root), str(server.mount / "pods/uid-1")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", look, *paths], cwd=root, **pipes) as other:
        assert other.stdout.readline() == "7\n"
        server.control.expect(messages.RemovePod("uid-1"), messages.Done)
        assert other.communicate("\n\n", timeout=10)[0] == "0\n"
    assert os.listdir(server.mount / "pods") == []
    assert (server.mount / "pods").stat().st_nlink == 2


def test_a_mount_below_a_neighbour_survives_a_removal(server: ServerUnderTest) -> None:
    other = VolumeRef("uid-1", VOLUME.plugin, "other")
    root = server.publish(other, literal_tree({"k": b"v"}, mountpoints=("m",)))
    server.publish(VOLUME, literal_tree({"k": b"v"}))
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "m"], check=True)
    try:
        (root / "m/file").write_text("kept")
        (server.mount / VOLUME.path / "k").read_text()
        server.unpublish(VOLUME)
        assert (root / "m/file").read_text() == "kept"
        assert os.listdir(root.parent) == ["other"]
    finally:
        subprocess.run(["umount", root / "m"], check=True)


def test_a_volume_that_comes_back_is_found_again(server: ServerUnderTest) -> None:
    for number in range(5):
        root = server.publish(VOLUME, literal_tree({"k": str(number).encode()}))
        assert (root / "k").read_text() == str(number)
        server.unpublish(VOLUME)
        assert not root.exists()
