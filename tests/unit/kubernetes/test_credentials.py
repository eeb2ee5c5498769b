"""The credentials helper as a process, and what its parent makes of it."""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
import yaml

from fusevol.agent.sources.kubernetes import credentials_helper
from fusevol.agent.sources.kubernetes.credentials import (
    CredentialStore,
    InCluster,
    Kubeconfig,
    Wire,
    credentials,
    load,
)
from fusevol.agent.sources.kubernetes.errors import CredentialsError
from fusevol.agent.sources.kubernetes.timing import Timing


def pem() -> tuple[trustme.CA, bytes, bytes]:
    ca = trustme.CA()
    leaf = ca.issue_cert("client")
    return ca, leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()


CA, CERTIFICATE, KEY = pem()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(path: Path, user: dict, *, server: str = "https://api.test:6443", **more: object) -> Path:
    entry = {"server": server, "certificate-authority-data": b64(CA.cert_pem.bytes()), **more}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [{"name": "c", "cluster": entry}],
        "users": [{"name": "u", "user": user}, {"name": "nobody", "user": {}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c", "user": "nobody"}},
        ],
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def loaded(path: Path, context: str | None = None):
    return await load(Kubeconfig(str(path), context), 60.0)


def leftovers() -> set[Path]:
    return set(Path(credentials_helper.SHARED_MEMORY).glob(f"fusevol-credentials-{os.getpid()}-*"))


async def test_inline_certificate_and_no_file_left(tmp_path):
    before = leftovers()
    path = write(tmp_path / "config", {"client-certificate-data": b64(CERTIFICATE), "client-key-data": b64(KEY)})
    found = await loaded(path)
    assert (found.server, found.host, found.port, found.server_name) == (
        "https://api.test:6443",
        "api.test",
        6443,
        "api.test",
    )
    assert found.authorization is None
    assert set(found.files) == {str(path)}
    assert leftovers() == before


async def test_files_relative_to_the_kubeconfig_are_watched(tmp_path):
    (tmp_path / "client.crt").write_bytes(CERTIFICATE)
    (tmp_path / "client.key").write_bytes(KEY)
    path = write(tmp_path / "config", {"client-certificate": "client.crt", "client-key": "client.key"})
    found = await loaded(path)
    assert set(found.files) == {str(path), str(tmp_path / "client.crt"), str(tmp_path / "client.key")}


async def test_token_and_token_file(tmp_path):
    assert bytes((await loaded(write(tmp_path / "a", {"token": "abc"}))).authorization.reveal()) == b"Bearer abc"
    (tmp_path / "token").write_text("from-file\n")
    found = await loaded(write(tmp_path / "b", {"tokenFile": "token"}))
    assert bytes(found.authorization.reveal()) == b"Bearer from-file"
    assert str(tmp_path / "token") in found.files


async def test_another_context(tmp_path):
    path = write(tmp_path / "config", {"token": "abc"})
    assert (await loaded(path, "two")).authorization is None
    with pytest.raises(CredentialsError, match="three"):
        await loaded(path, "three")


def plugin(path: Path, status: dict, log: Path) -> dict:
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    path.write_text(f"#!{sys.executable}\nopen({str(log)!r}, 'a').write('run ')\nprint({json.dumps(answer)!r})\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


async def test_exec_plugin_with_a_token_and_with_a_certificate(tmp_path):
    expires = datetime.fromtimestamp(int(time.time()) + 600, UTC)
    status = {"token": "t0ken", "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
    found = await loaded(write(tmp_path / "a", plugin(tmp_path / "plugin", status, tmp_path / "log")))
    assert bytes(found.authorization.reveal()) == b"Bearer t0ken"
    assert found.expires == expires.timestamp()
    before = leftovers()
    status = {"clientCertificateData": CERTIFICATE.decode(), "clientKeyData": KEY.decode()}
    found = await loaded(write(tmp_path / "b", plugin(tmp_path / "plugin2", status, tmp_path / "log")))
    assert found.authorization is None
    assert leftovers() == before


async def test_an_exec_plugin_that_fails_says_so(tmp_path):
    path = tmp_path / "plugin"
    path.write_text("#!/bin/sh\necho not today >&2\nexit 3\n")
    path.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}
    with pytest.raises(CredentialsError, match=r"process returned 3.*not today"):
        await loaded(write(tmp_path / "config", user))


async def test_an_exec_plugin_that_hangs_is_ended_with_the_helper(tmp_path):
    path = tmp_path / "plugin"
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    before = leftovers()
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}
    with pytest.raises(CredentialsError, match="within 2 s"):
        await load(Kubeconfig(str(write(tmp_path / "config", user))), 2.0)
    assert leftovers() == before  # and no process: the fixture of all tests looks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "empty"),
        ("{", "flow"),
        ("users: []", "current-context"),
        ("current-context: x\ncontexts: []\nclusters: []\nusers: []\n", "name x"),
    ],
)
async def test_a_broken_kubeconfig_is_one_line(tmp_path, content, message):
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CredentialsError, match=message) as caught:
        await loaded(path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "more", "message"),
    [
        ("http://api.test", {}, "https"),
        ("https://api.test/clusters/1", {}, "path"),
        ("https://api.test", {"proxy-url": "http://proxy"}, "proxy-url"),
        ("https://api.test", {"certificate-authority-data": b64(b"rubbish")}, "certificate-authority"),
    ],
)
async def test_what_cannot_be_used_is_said(tmp_path, server, more, message):
    with pytest.raises(CredentialsError, match=message):
        await loaded(write(tmp_path / "config", {"token": "t"}, server=server, **more))


async def test_a_key_that_is_not_the_certificates(tmp_path):
    _, _, other = pem()
    user = {"client-certificate-data": b64(CERTIFICATE), "client-key-data": b64(other)}
    with pytest.raises(CredentialsError, match="key values mismatch"):
        await loaded(write(tmp_path / "config", user))


def test_nothing_secret_in_any_repr():
    wire = Wire("https://a", None, CERTIFICATE, KEY, b"Bearer t0ken", None, None, False, {})
    found = credentials(wire)
    for shown in (repr(wire), repr(found), str(found), repr(found.authorization)):
        assert "t0ken" not in shown
        assert "PRIVATE" not in shown


def test_the_helpers_directory_is_private(tmp_path):
    """Its mode, looked at by an exec plugin while the helper runs."""
    script = tmp_path / "plugin"
    out = tmp_path / "modes"
    mine = f"{credentials_helper.SHARED_MEMORY}/fusevol-credentials-{os.getpid()}-*"
    script.write_text(f"#!/bin/sh\nstat -c %a {mine} > {out}\nexit 1\n")
    script.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}
    path = write(tmp_path / "config", user)
    with pytest.raises(CredentialsError):
        trio.run(load, Kubeconfig(str(path)), 60.0)
    assert set(out.read_text().split()) == {"700"}


async def test_in_cluster(tmp_path, in_cluster_environment):
    (tmp_path / "token").write_text("sa-token\n")
    (tmp_path / "ca.crt").write_bytes(CA.cert_pem.bytes())
    found = await load(InCluster(str(tmp_path)), 60.0)
    assert (found.host, found.port) == ("10.0.0.1", 443)
    assert bytes(found.authorization.reveal()) == b"Bearer sa-token"
    assert set(found.files) == {str(tmp_path / "token"), str(tmp_path / "ca.crt")}


@pytest.fixture
def in_cluster_environment():
    os.environ.update(KUBERNETES_SERVICE_HOST="10.0.0.1", KUBERNETES_SERVICE_PORT="443")
    yield
    del os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]


# -- the store ------------------------------------------------------------------------------------------------------


class Loads:
    """What each load gives, in order; the last again and again."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.count = 0

    async def __call__(self):
        self.count += 1
        await trio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return credentials(answer)


def wire(token: str = "t", *, server: str = "https://a", expires: float | None = None, files=None) -> Wire:
    return Wire(server, None, None, None, f"Bearer {token}".encode(), expires, None, True, files or {})


def token_of(store: CredentialStore) -> bytes:
    return bytes(store.value.authorization.reveal())


def fresh_store(loads: Loads, reports: list, renewals: list) -> CredentialStore:
    return CredentialStore(
        loads,
        lambda: renewals.append(trio.current_time()),
        reports.append,
        Timing(),
        random.Random(1),
        trio.current_time,
    )


async def test_the_store_waits_for_the_first_and_says_why(autojump_clock, nursery):
    reports, renewals = [], []
    store = fresh_store(Loads(CredentialsError("no such file"), wire("one")), reports, renewals)
    nursery.start_soon(store.run)
    assert (await store.current()).server == "https://a"
    assert reports == ["no such file", None]
    assert renewals == []


async def test_a_changed_file_is_noticed_within_a_minute(autojump_clock, nursery, tmp_path):
    file = tmp_path / "token"
    file.write_text("one")
    rotated: dict[str, list[int]] = {}
    loads = Loads(wire("one", files=credentials_helper.fingerprints(str(file))), wire("two", files=rotated))
    store = fresh_store(loads, [], [])
    nursery.start_soon(store.run)
    await trio.sleep(300)
    assert loads.count == 1
    file.with_name("new").write_text("two")
    file.with_name("new").rename(file)
    rotated.update(credentials_helper.fingerprints(str(file)))
    await trio.sleep(60)
    assert loads.count == 2
    assert token_of(store) == b"Bearer two"


async def test_connections_are_made_anew_only_for_what_concerns_them(autojump_clock, nursery):
    renewals: list[float] = []
    store = fresh_store(Loads(wire("one"), wire("two"), wire("two", server="https://b")), [], renewals)
    nursery.start_soon(store.run)
    first = await store.current()
    await trio.sleep(20)
    await store.replace(first)
    assert token_of(store) == b"Bearer two"
    assert renewals == []
    await trio.sleep(20)
    await store.replace(store.value)
    assert len(renewals) == 1


async def test_401_does_not_run_the_helper_all_the_time(autojump_clock, nursery):
    loads = Loads(wire("one"))
    store = fresh_store(loads, [], [])
    nursery.start_soon(store.run)
    await store.current()
    for _ in range(100):
        await store.replace(store.value)
        await trio.sleep(0.1)
    assert loads.count <= 2


async def test_credentials_are_loaded_before_they_expire(autojump_clock, nursery):
    now = trio.current_time()
    loads = Loads(wire("one", expires=now + 600), wire("two"))
    store = fresh_store(loads, [], [])
    nursery.start_soon(store.run)
    await trio.sleep(500)
    assert loads.count == 1
    await trio.sleep(60)
    assert token_of(store) == b"Bearer two"


async def test_the_old_ones_are_kept_when_there_are_no_new_ones(autojump_clock, nursery):
    reports: list[str | None] = []
    loads = Loads(wire("one", expires=trio.current_time() + 100), CredentialsError("plugin failed"))
    store = fresh_store(loads, reports, [])
    nursery.start_soon(store.run)
    await trio.sleep(200)
    assert token_of(store) == b"Bearer one"
    assert reports[-1] == "plugin failed"
    assert loads.count <= 16
