"""A state directory is refused to whoever it does not belong to: what it does not know it would delete."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
import yaml

from fusevol.agent.identity import Identity, claim, of_in_cluster, of_kubeconfig, of_manifests
from fusevol.model.errors import UserError

MINE = Identity(source="manifests", origin="/srv/manifests", node="node-1", mountpoint="/mnt")


def claim_and_leave(directory: Path, identity: Identity, adopt: bool = False) -> None:
    os.close(claim(directory, identity, adopt=adopt))


class TestClaim:
    def test_the_first_use_writes_it_and_the_next_finds_it(self, tmp_path: Path) -> None:
        state = tmp_path / "deep" / "state"
        claim_and_leave(state, MINE)
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert json.loads((state / "identity.json").read_text()) == {
            "source": "manifests",
            "origin": "/srv/manifests",
            "node": "node-1",
            "mountpoint": "/mnt",
        }
        claim_and_leave(state, MINE)

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (replace(MINE, node="node-2"), "node name 'node-1' there, 'node-2' here"),
            (replace(MINE, mountpoint="/srv"), "mount point '/mnt' there, '/srv' here"),
            (replace(MINE, origin="/other"), "source's identity '/srv/manifests' there, '/other' here"),
            (replace(MINE, source="kubeconfig"), "source 'manifests' there, 'kubeconfig' here"),
        ],
    )
    def test_another_is_refused_and_touches_nothing(self, tmp_path: Path, other: Identity, words: str) -> None:
        claim_and_leave(tmp_path, MINE)
        before = (tmp_path / "identity.json").read_bytes()
        with pytest.raises(UserError) as raised:
            claim(tmp_path, other, adopt=False)
        assert raised.value.exit_code == 4
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
        assert (tmp_path / "identity.json").read_bytes() == before

        claim_and_leave(tmp_path, other, adopt=True)
        claim_and_leave(tmp_path, other)
        with pytest.raises(UserError, match="belongs to something else"):
            claim(tmp_path, MINE, adopt=False)

    def test_one_that_is_in_use_is_refused_and_says_by_whom(self, tmp_path: Path) -> None:
        fd = claim(tmp_path, MINE, adopt=False)
        for adopt in (False, True):
            with pytest.raises(UserError, match=f"in use by pid {os.getpid()}$") as raised:
                claim(tmp_path, MINE, adopt=adopt)
            assert raised.value.exit_code == 4
        os.close(fd)
        claim_and_leave(tmp_path, MINE)

    def test_the_lock_lives_as_long_as_one_that_inherited_it(self, tmp_path: Path) -> None:
        fd = claim(tmp_path, MINE, adopt=False)
        heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd])
        os.close(fd)
        with pytest.raises(UserError, match="in use"):
            claim(tmp_path, MINE, adopt=False)
        heir.communicate(b"\n", timeout=10)
        claim_and_leave(tmp_path, MINE)

    def test_data_of_unknown_origin_is_not_taken_for_ours(self, tmp_path: Path) -> None:
        (tmp_path / "pods" / "some-uid").mkdir(parents=True)
        with pytest.raises(UserError, match="does not say whose") as raised:
            claim(tmp_path, MINE, adopt=False)
        assert raised.value.exit_code == 4
        claim_and_leave(tmp_path, MINE, adopt=True)
        claim_and_leave(tmp_path, MINE)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"node": 1}'])
    def test_an_identity_that_cannot_be_understood_is_nobodys(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "identity.json").write_text(content)
        with pytest.raises(UserError, match="belongs to something else") as raised:
            claim(tmp_path, MINE, adopt=False)
        assert raised.value.exit_code == 4

    def test_a_file_in_the_place_of_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "state").touch()
        with pytest.raises(UserError) as raised:
            claim(tmp_path / "state", MINE, adopt=False)
        assert raised.value.exit_code == 1


@pytest.fixture(scope="module")
def ca() -> bytes:
    return trustme.CA().cert_pem.bytes()


def kubeconfig(path: Path, cluster: dict[str, object], **changes: object) -> Path:
    content = {
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "astray", "context": {"cluster": "missing"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://api:6443", **cluster}}],
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def origin(file: Path, context: str | None = None) -> str:
    return of_kubeconfig(file, context, "n", Path("/mnt")).origin


class TestCluster:
    def test_the_ca_is_the_cluster_wherever_it_stands(self, tmp_path: Path, ca: bytes) -> None:
        inline = kubeconfig(tmp_path / "a", {"certificate-authority-data": base64.b64encode(ca).decode()})
        (tmp_path / "pki").mkdir()
        (tmp_path / "pki/ca.crt").write_bytes(b"# a comment\r\n" + ca.replace(b"\n", b"\r\n"))
        file = kubeconfig(tmp_path / "b", {"certificate-authority": "pki/ca.crt", "server": "https://other:1"})
        (tmp_path / "ca.crt").write_bytes(ca)
        assert origin(inline).startswith("sha256:")
        assert origin(inline) == origin(file) == of_in_cluster("n", Path("/mnt"), tmp_path).origin
        other = kubeconfig(
            tmp_path / "c",
            {"certificate-authority-data": base64.b64encode(trustme.CA().cert_pem.bytes()).decode()},
        )
        assert origin(other) != origin(inline)

    def test_without_a_ca_the_server_is(self, tmp_path: Path) -> None:
        assert origin(kubeconfig(tmp_path / "k", {"insecure-skip-tls-verify": True})) == "https://api:6443"

    def test_another_context_than_the_current(self, tmp_path: Path) -> None:
        file = kubeconfig(tmp_path / "k", {}, **{"current-context": "astray"})
        assert origin(file, "here") == "https://api:6443"

    @pytest.mark.parametrize(
        ("context", "cluster", "changes", "words", "exit_code"),
        [
            ("nowhere", {}, {}, "no context 'nowhere'", 2),
            (None, {}, {"current-context": ""}, "no current-context", 2),
            (None, {}, {"contexts": None}, "no context 'here'", 2),
            ("astray", {}, {}, "names cluster 'missing', which is not there", 1),
            (None, {"server": None}, {}, "has no server", 1),
            (None, {"certificate-authority-data": "%%%"}, {}, "is not base64", 1),
            (None, {"certificate-authority-data": "eA=="}, {}, "not a PEM certificate", 1),
            (None, {"certificate-authority": "gone.crt"}, {}, "gone.crt: No such file", 1),
        ],
    )
    def test_mistakes_are_told_in_one_line(
        self,
        tmp_path: Path,
        context: str | None,
        cluster: dict[str, object],
        changes: dict[str, object],
        words: str,
        exit_code: int,
    ) -> None:
        with pytest.raises(UserError) as raised:
            origin(kubeconfig(tmp_path / "k", cluster, **changes), context)
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.exit_code == exit_code

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"a: [\n", "not YAML (line 2)"),
            (b"\xff\xfe\x00", "not YAML"),
            (b"- 1\n", "not a kubeconfig"),
            (b"", "not a"),
        ],
    )
    def test_files_that_are_none(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "k").write_bytes(content)
        with pytest.raises(UserError) as raised:
            origin(tmp_path / "k")
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.exit_code == 1

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No such file or directory"):
            origin(tmp_path / "k")

    def test_outside_of_a_cluster(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not in a cluster"):
            of_in_cluster("n", Path("/mnt"), tmp_path)

    def test_manifests_are_their_directory(self) -> None:
        assert of_manifests(Path("/srv/manifests"), "node-1", Path("/mnt")) == MINE
