"""`fusevol mount` where it must refuse, and as an ordinary user. Each refusal is one line and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.system.mounts import FSTYPE, find_mount
from tests.support.instance import COMMAND, running

pytestmark = pytest.mark.root

USER = 65534
"""nobody, and nogroup"""


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    return directory


def mount(base: Path, *options: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`fusevol mount` on `base/mnt`, that must end by itself; `before` stands in front of its command line."""
    directories: list[str | Path] = ["--state-dir", base / "state", "--runtime-dir", base / "run"]
    return subprocess.run(
        [*before, *COMMAND, "mount", base / "mnt", *directories, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refusal(result: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fusevol: ")
    return line.removeprefix("fusevol: ")


class TestMountpoint:
    def test_missing(self, tmp_path: Path, manifests: Path) -> None:
        said = refusal(mount(tmp_path, "--manifests", manifests), 1)
        assert said == f"{tmp_path / 'mnt'}: No such file or directory"
        assert not (tmp_path / "state").exists()

    def test_not_a_directory(self, tmp_path: Path, manifests: Path) -> None:
        (tmp_path / "mnt").touch()
        assert refusal(mount(tmp_path, "--manifests", manifests), 1) == f"{tmp_path / 'mnt'} is not a directory"

    def test_not_empty(self, tmp_path: Path, manifests: Path) -> None:
        (tmp_path / "mnt").mkdir()
        (tmp_path / "mnt/precious").touch()
        said = refusal(mount(tmp_path, "--manifests", manifests), 1)
        assert said == f"{tmp_path / 'mnt'} is not empty: a mount would hide what is in it"

    def test_already_a_fusevol_mount(self, tmp_path: Path, manifests: Path) -> None:
        with running(tmp_path, "--manifests", manifests) as instance:
            instance.wait()
            said = refusal(mount(tmp_path, "--manifests", manifests), 1)
            assert said == f"{instance.mountpoint} is already served by fusevol (keeper pid {instance.keeper_pid})"
            # by a link to it as well
            (tmp_path / "other").mkdir()
            (tmp_path / "other/mnt").symlink_to(instance.mountpoint)
            said = refusal(mount(tmp_path / "other", "--manifests", manifests, "--runtime-dir", instance.runtime), 1)
            assert said == f"{instance.mountpoint} is already served by fusevol (keeper pid {instance.keeper_pid})"
            assert instance.status()["processes"]["server"]["restarts"] == 0

    def test_with_something_mounted_on_it(self, tmp_path: Path, manifests: Path) -> None:
        """An empty one is a directory like any other, and is there again afterwards."""
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "mnt"], check=True)
        try:
            with running(tmp_path, "--manifests", manifests, options=("--engine", "auto")) as instance:
                instance.wait()
                assert instance.status()["engine"] == "pyfuse3"
                assert find_mount(instance.mountpoint).fstype == FSTYPE
                instance.run("unmount")
                assert find_mount(instance.mountpoint).fstype == "tmpfs"
            (tmp_path / "mnt/precious").touch()
            said = refusal(mount(tmp_path, "--manifests", manifests), 1)
            assert said == f"{tmp_path / 'mnt'} is not empty: a mount would hide what is in it"
        finally:
            subprocess.run(["umount", tmp_path / "mnt"], check=True)

    @pytest.mark.parametrize("option", ["--state-dir", "--runtime-dir", "--manifests"])
    def test_above_what_it_needs_itself(self, tmp_path: Path, manifests: Path, option: str) -> None:
        (tmp_path / "mnt").mkdir()
        below = tmp_path / "mnt/below"
        if option == "--manifests":
            inside = tmp_path / "mnt"  # it must exist, and the mount point must be empty
            said = refusal(mount(tmp_path, option, inside), 1)
        else:
            said = refusal(mount(tmp_path, "--manifests", manifests, option, below), 1)
        assert f"lies below the mount point {tmp_path / 'mnt'}" in said
        assert list((tmp_path / "mnt").iterdir()) == []


class TestSource:
    def test_missing_manifests(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        said = refusal(mount(tmp_path, "--manifests", tmp_path / "none"), 1)
        assert said == f"{tmp_path / 'none'}: No such file or directory"

    def test_manifests_that_are_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        (tmp_path / "file").touch()
        assert refusal(mount(tmp_path, "--manifests", tmp_path / "file"), 1) == f"{tmp_path / 'file'}: Not a directory"

    def test_missing_kubeconfig_and_context(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        file = tmp_path / "kubeconfig"
        assert refusal(mount(tmp_path, "--kubeconfig", file), 1) == f"{file}: No such file or directory"
        file.write_text(json.dumps({"contexts": [], "clusters": []}))
        said = refusal(mount(tmp_path, "--kubeconfig", file, "--context", "here"), 2)
        assert said == f"{file}: no context 'here'"

    def test_not_in_a_cluster(self, tmp_path: Path) -> None:
        if Path("/var/run/secrets/kubernetes.io/serviceaccount").exists():
            pytest.skip("these tests run in a Pod")
        (tmp_path / "mnt").mkdir()
        assert refusal(mount(tmp_path, "--in-cluster"), 1).startswith("not in a cluster: ")


class TestStateDirectory:
    def test_another_node_is_refused_and_nothing_is_deleted(self, tmp_path: Path, manifests: Path) -> None:
        with running(tmp_path, "--manifests", manifests, options=("--node", "node-1")) as instance:
            instance.wait()
        data = tmp_path / "state/pods/uid-of-node-1/volumes/kubernetes.io~empty-dir/cache/precious"
        data.parent.mkdir(parents=True)
        data.touch()
        said = refusal(mount(tmp_path, "--manifests", manifests, "--node", "node-2"), 4)
        assert "node name 'node-1' there, 'node-2' here" in said
        assert data.exists()
        assert not any((tmp_path / "run").iterdir())

    def test_one_that_is_in_use_is_refused(self, tmp_path: Path, manifests: Path) -> None:
        with running(tmp_path, "--manifests", manifests) as instance:
            instance.wait()
            (tmp_path / "second/mnt").mkdir(parents=True)
            said = refusal(mount(tmp_path / "second", "--manifests", manifests, "--state-dir", instance.state), 4)
            assert said == f"{instance.state} is in use by pid {instance.keeper_pid}"


def with_devices(*devices: str) -> tuple[str, ...]:
    """A mount namespace whose /dev has nothing but null and `devices` (arguments of mknod)."""
    script = "mount -t tmpfs -o mode=755 tmpfs /dev"
    for device in ("-m 666 /dev/null c 1 3", "-m 666 /dev/urandom c 1 9", *devices):
        script += f" && mknod {device}"
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{script} && exec "$@"', "sh")


def as_user() -> tuple[str, ...]:
    return ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")


FUSE = "/dev/fuse c 10 229"


class TestPrivileges:
    def test_no_device(self, tmp_path: Path, manifests: Path) -> None:
        (tmp_path / "mnt").mkdir()
        said = refusal(mount(tmp_path, "--manifests", manifests, before=with_devices()), 1)
        assert said == "/dev/fuse: No such file or directory: the kernel's fuse module is needed"

    def test_not_allowed_to_mount(self, tmp_path: Path, manifests: Path) -> None:
        (tmp_path / "mnt").mkdir()
        before = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
        said = refusal(mount(tmp_path, "--manifests", manifests, before=before), 4)
        assert said.startswith(f"cannot mount on {tmp_path / 'mnt'}: Operation not permitted")
        assert not any((tmp_path / "run").iterdir())

    def test_not_allowed_to_lock_memory(self, tmp_path: Path, manifests: Path) -> None:
        (tmp_path / "mnt").mkdir()
        before = ("prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
        result = mount(tmp_path, "--manifests", manifests, "--require-locked-memory", before=before)
        assert result.returncode == 4
        assert "RLIMIT_MEMLOCK" in result.stderr
        assert "Traceback" not in result.stderr
        assert not any((tmp_path / "run").iterdir())


ROOT = Path(__file__).parents[2]
CODE = {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}


@pytest.fixture
def user_command() -> str:
    """`fusevol` for one who may not look into the home directory that this Python may stand in."""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        tried = [*as_user(), "sh", "-c", f"{python} -c 'import fusevol.cli.main, fusevol.agent.main, pyfuse3'"]
        if subprocess.run(tried, env={**os.environ, **CODE}, capture_output=True, check=False).returncode == 0:
            return f"{python} -m fusevol"
    pytest.skip("an ordinary user may not read this working copy or its Python")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that an ordinary user can reach and owns; pytest's own are for root only."""
    base = Path(tempfile.mkdtemp(prefix="fusevol-user-"))
    for directory in (base / "mnt", base / "manifests", base / "run"):
        directory.mkdir()
    for directory in (base, *base.iterdir()):
        os.chown(directory, USER, USER)
    yield base
    shutil.rmtree(base)


class TestOrdinaryUser:
    def test_not_allowed_to_open_the_device(self, home: Path, user_command: str) -> None:
        script = f"{user_command} mount {home}/mnt --state-dir {home}/state --manifests {home}/manifests"
        result = subprocess.run(
            [*with_devices(f"-m 600 {FUSE}"), *as_user(), "sh", "-c", script],
            env={**os.environ, **CODE},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = refusal(result, 4)
        assert said == "/dev/fuse may not be opened by this user (usually its mode is 0666)"

    def test_it_serves_its_user(self, home: Path, user_command: str) -> None:
        """The mount stands in a namespace of its own, so everything is asked in there."""
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": "value"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}],
            },
        }
        (home / "manifests/all.json").write_text(json.dumps({"kind": "List", "items": [manifest, pod]}))
        fusevol = user_command
        there = f"{home}/mnt --runtime-dir {home}/run"
        script = f"""
            {fusevol} mount {there} --state-dir {home}/state --manifests {home}/manifests >{home}/log 2>&1 &
            {fusevol} wait {there} || exit 10
            cat {home}/mnt/by-name/default/p/volumes/*/v/key || exit 11
            stat -c ' %u' {home}/mnt/by-name/default/p/volumes/*/v/key || exit 12
            {fusevol} status {there} -o json >{home}/status || exit 13
            cd {home}/mnt && {fusevol} unmount {there} 2>{home}/refused && exit 14
            cd / && {fusevol} unmount {there} || exit 15
            wait $! || exit 16
            ls -A {home}/mnt {home}/run >{home}/left
        """
        result = subprocess.run(
            [*with_devices(f"-m 666 {FUSE}"), *as_user(), "sh", "-c", script],
            env={**os.environ, **CODE},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        log = (home / "log").read_text()
        assert result.returncode == 0, f"{result.stderr}\n{log}"
        assert result.stdout == f"value {USER}\n"
        assert json.loads((home / "status").read_text())["locked"] is False
        assert f"): {home}/mnt\n" in (home / "refused").read_text()
        assert (home / "left").read_text() == f"{home}/mnt:\n\n{home}/run:\n"
        assert stat.S_IMODE((home / "state").stat().st_mode) == 0o700
        if "user_allow_other" not in [line.strip() for line in Path("/etc/fuse.conf").read_text().splitlines()]:
            assert len([line for line in log.splitlines() if "allow_other needs `user_allow_other`" in line]) == 1


def test_status_answers_quickly(tmp_path: Path, manifests: Path) -> None:
    with running(tmp_path, "--manifests", manifests) as instance:
        instance.wait()
        times = []
        for _ in range(5):
            before = os.times()
            instance.run("status")
            after = os.times()
            # its own processor time: what else runs on this machine does not count
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert min(times) < 0.3


def test_the_table_shows_processes_and_volumes(tmp_path: Path, manifests: Path) -> None:
    (manifests / "broken.yaml").write_text("a: [\n")
    with running(tmp_path, "--manifests", manifests) as instance:
        missing = instance.run("wait", "--timeout", "3", check=False)
        assert missing.returncode == 1
        assert "broken.yaml:" in missing.stderr
        table = instance.run("status").stdout
        lines = [line.split() for line in table.splitlines()]
        assert lines[0][:3] == ["engine", "pyfuse3;", "memory"]
        assert ["PROCESS", "PID", "STARTED", "RESTARTS", "RSS", "LOCKED"] in lines
        assert ["keeper", str(instance.keeper_pid)] in [line[:2] for line in lines]
        assert ["SOURCE", "ERROR", "MESSAGE"] in lines
        assert ["POD", "VOLUME", "PLUGIN", "PHASE", "GENERATION", "UPDATED", "ERROR"] in lines


def test_everything_is_found_through_a_relative_path_and_a_link(tmp_path: Path, manifests: Path) -> None:
    with running(tmp_path, "--manifests", manifests) as instance:
        instance.wait()
        (tmp_path / "link").symlink_to("mnt")
        for path in ("mnt", "./mnt/", "link", "manifests/../mnt"):
            done = subprocess.run(
                [*COMMAND, "status", path, "--runtime-dir", "run", "-o", "json"],
                cwd=tmp_path,
                env={**os.environ, **CODE},
                capture_output=True,
                check=True,
            )
            assert json.loads(done.stdout)["processes"]["keeper"]["pid"] == instance.keeper_pid


def test_the_runtime_directory_is_private_and_describes_the_instance(tmp_path: Path, manifests: Path) -> None:
    with running(tmp_path, "--manifests", manifests, options=("--runtime-dir", tmp_path / "deep/run")) as instance:
        instance.runtime = tmp_path / "deep/run"
        instance.wait()
        assert stat.S_IMODE(instance.runtime.stat().st_mode) == 0o700
        (directory,) = instance.runtime.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        sockets = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.glob("*.sock")}
        assert sockets == {"keeper.sock": 0o600, "server.sock": 0o600, "agent.sock": 0o600}
        assert json.loads((directory / "instance.json").read_text()) == {
            "mountpoint": str(instance.mountpoint),
            "stateDir": str(instance.state),
            "keeper": instance.keeper_pid,
        }
