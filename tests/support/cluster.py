"""A real API server on this machine: etcd in memory, kube-apiserver with TLS, the Node authorizer and RBAC.

    with Cluster() as cluster:
        cluster.create_node("node1")
        cluster.admin.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {...}, "data": {...}})
        path = cluster.node_kubeconfig("node1")

There is no scheduler and no kubelet: a Pod is created with its `spec.nodeName`. Without controllers
(`service_accounts=False`, the default) Pods need no ServiceAccount and get no token volume; with them the
controller-manager makes ServiceAccounts and `kube-root-ca.crt`, ends namespaces and collects garbage.

`python -m tests.support.cluster` runs one in the foreground. Everything it starts ends with it, killed or not.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support import processes

REPOSITORY = Path(__file__).resolve().parents[2]
BINARIES = REPOSITORY / ".cache" / "bin"
HOST = "127.0.0.1"
MASTERS = "system:masters"
NODES = "system:nodes"

# of the node that the golden data was recorded on, and the kubelet's usual number of Pods
ALLOCATABLE = {"cpu": "2", "memory": "24581684Ki", "ephemeral-storage": "243497856212", "pods": "110"}

CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "namespace-controller",
    "garbage-collector-controller",
)

Object = dict[str, Any]  # an API object as JSON has it


class ClusterError(Exception):
    """The cluster could not be started; the message has the end of the log."""


class ApiError(Exception):
    """The API server said no. `status` is the HTTP status, `message` the one of its Status object."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.message = message
        self.reason = reason


class Client:
    """A small synchronous API client: kept-alive connections, safe to share between threads, no retries.

    Resources are found by `kind` (and `api_version`) through discovery. Answers are the decoded JSON.
    """

    def __init__(self, port: int, ca: Path, certificate: Path | None, token: str | None = None) -> None:
        self._headers = {"accept": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._pool = urllib3.HTTPSConnectionPool(
            HOST, port, maxsize=16, ca_certs=str(ca), cert_file=certificate and str(certificate), retries=False
        )
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}  # plural and whether namespaced; under _lock
        self._lock = threading.Lock()

    def close(self) -> None:
        self._pool.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Any:
        """One request; `timeout` in seconds. ApiError on a status of 400 or more."""
        response = self._pool.request(
            method,
            f"{path}?{urllib.parse.urlencode(query)}" if query else path,
            body=None if body is None else json.dumps(body).encode(),
            headers=self._headers if body is None else {**self._headers, "content-type": content_type},
            timeout=timeout,
        )
        text = response.data.decode()
        if response.status >= 400:
            with contextlib.suppress(ValueError, KeyError):
                status = json.loads(text)
                raise ApiError(response.status, status["message"], status.get("reason", ""))
            raise ApiError(response.status, text)
        try:
            return json.loads(text)
        except ValueError:
            return text  # "ok" of /readyz

    def path(
        self, kind: str, name: str | None = None, namespace: str | None = None, api_version: str = "v1", sub: str = ""
    ) -> str:
        """The path of an object, or of a collection if there is no `name`. Namespaced kinds default to `default`,
        except that a collection without a `namespace` is the one of all namespaces."""
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        plural, namespaced = self._resource(root, kind)
        if namespaced and (namespace or name):
            root += f"/namespaces/{namespace or 'default'}"
        return root + f"/{plural}" + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")

    def _resource(self, root: str, kind: str) -> tuple[str, bool]:
        with self._lock:
            if (root, kind) not in self._resources:
                for resource in self.request("GET", root)["resources"]:
                    if "/" not in resource["name"]:
                        self._resources[root, resource["kind"]] = (resource["name"], resource["namespaced"])
            return self._resources[root, kind]

    def create(self, obj: Object, namespace: str | None = None) -> Object:
        """`namespace` is the default for an object that names none."""
        kind, version = obj["kind"], obj.get("apiVersion", "v1")
        namespace = obj["metadata"].get("namespace", namespace) or "default"
        return self.request("POST", self.path(kind, None, namespace, version), {"apiVersion": version, **obj})

    def get(self, kind: str, name: str, namespace: str | None = None, *, api_version: str = "v1") -> Object:
        return self.request("GET", self.path(kind, name, namespace, api_version))

    def replace(self, obj: Object, *, subresource: str = "") -> Object:
        meta = obj["metadata"]
        path = self.path(obj["kind"], meta["name"], meta.get("namespace"), obj.get("apiVersion", "v1"), subresource)
        return self.request("PUT", path, obj)

    def patch(
        self,
        kind: str,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        api_version: str = "v1",
        subresource: str = "",
        content_type: str = "application/merge-patch+json",
    ) -> Object:
        path = self.path(kind, name, namespace, api_version, subresource)
        return self.request("PATCH", path, body, content_type=content_type)

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        api_version: str = "v1",
        grace_seconds: int | None = None,
    ) -> Object:
        """`grace_seconds=0` is the forced deletion of a Pod."""
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        return self.request("DELETE", self.path(kind, name, namespace, api_version), options)

    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        api_version: str = "v1",
        label_selector: str = "",
        field_selector: str = "",
    ) -> list[Object]:
        """The items; of all namespaces if there is no `namespace`."""
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        path = self.path(kind, None, namespace, api_version)
        return self.request("GET", path, query={key: value for key, value in query.items() if value})["items"]


class Cluster:
    """etcd, kube-apiserver and, on request, kube-controller-manager. `start` takes about five seconds.

    `feature_gates` and `runtime_config` are the API server's; `extra_args` follow its other arguments. The directory
    with certificates, logs and data (`directory`) is removed by `stop`.
    """

    def __init__(
        self,
        *,
        service_accounts: bool = False,
        feature_gates: Mapping[str, bool] | None = None,
        runtime_config: Mapping[str, str] | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self._service_accounts = service_accounts
        self._feature_gates = dict(feature_gates or {})
        self._runtime_config = dict(runtime_config or {})
        self._extra_args = list(extra_args)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        self._controllers: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []
        self._lock_file: int | None = None  # held as long as the directory is in use

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, timeout: float = 90.0) -> None:
        """Starts everything and returns when the API server is ready (and, with controllers, the default
        ServiceAccount is there). ClusterError after `timeout` seconds."""
        missing = [name for name in ("etcd", "kube-apiserver") if not (BINARIES / name).exists()]
        if missing:
            raise ClusterError(f"{BINARIES} has no {', '.join(missing)}: run scripts/binaries")
        self.directory, self._lock_file = _scratch_directory()
        try:
            self._etcd_port, peer_port, self.port = free_ports(3)
            self.ca = trustme.CA(organization_name="fusevol tests")
            self.ca_file = self.directory / "ca.crt"
            self.ca.cert_pem.write_to_path(self.ca_file)
            self._write_server_files()
            self._start_etcd(peer_port)
            self.admin = self.client("admin", [MASTERS])
            self.start_apiserver(timeout)
            if self._service_accounts:
                self._start_controllers(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every process and removes the directory. May be called twice, and after a start that failed."""
        while self._clients:
            self._clients.pop().close()
        for process in (self._controllers, self._apiserver, self._etcd):
            if process is not None:
                processes.end(process, grace=0, number=signal.SIGKILL)  # nothing of it is wanted any more
        self._controllers = self._apiserver = self._etcd = None
        if self._lock_file is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock_file)
            self._lock_file = None

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def start_apiserver(self, timeout: float = 90.0) -> None:
        """Starts the API server on its port, and waits until it is ready: `timeout` seconds at most."""
        assert self._apiserver is None, "the API server runs already"
        self._apiserver = self._spawn("kube-apiserver", *self._apiserver_arguments())
        self.wait_ready(timeout)

    def stop_apiserver(self, *, grace: float = 0.0) -> None:
        """Ends the API server: SIGKILL, or SIGTERM first and SIGKILL `grace` seconds later."""
        if self._apiserver is not None:
            processes.end(self._apiserver, grace=grace, number=signal.SIGTERM if grace else signal.SIGKILL)
            self._apiserver = None

    def restart_apiserver(self) -> None:
        """The same port and data; every watch is cut, and its watch cache begins anew."""
        self.stop_apiserver()
        self.start_apiserver()

    def sigstop(self) -> None:
        """Freezes the API server: connections stay open, and nobody answers."""
        assert self._apiserver is not None
        os.kill(self._apiserver.pid, signal.SIGSTOP)

    def sigcont(self) -> None:
        """Lets a frozen API server go on."""
        assert self._apiserver is not None
        os.kill(self._apiserver.pid, signal.SIGCONT)

    def compact(self) -> None:
        """Makes etcd forget all but the newest revision: a watch from before is Gone. The API server's watch cache
        still knows them, so it is restarted."""
        etcd = urllib3.PoolManager()
        with contextlib.closing(etcd.connection_from_host(HOST, self._etcd_port)):
            base = f"http://{HOST}:{self._etcd_port}/v3/kv"
            key = base64.b64encode(b"/").decode()
            revision = etcd.request("POST", f"{base}/range", json={"key": key}).json()["header"]["revision"]
            answer = etcd.request("POST", f"{base}/compaction", json={"revision": revision, "physical": True})
            assert answer.status == 200, answer.data
        self.restart_apiserver()

    def wait_ready(self, timeout: float = 90.0) -> None:
        """Waits for /readyz. ClusterError with the end of the log after `timeout` seconds, or when a process ends."""
        deadline, last = time.monotonic() + timeout, ""
        while True:
            for name, process in (("etcd", self._etcd), ("kube-apiserver", self._apiserver)):
                if process is None or process.poll() is not None:
                    raise ClusterError(f"{name} does not run\n{self._log_end(name)}")
            try:
                self.admin.request("GET", "/readyz", timeout=5.0)
                return
            except (ApiError, urllib3.exceptions.HTTPError) as error:
                last = str(error)
            if time.monotonic() > deadline:
                raise ClusterError(f"not ready after {timeout} s: {last}\n{self._log_end('kube-apiserver')}")
            time.sleep(0.05)

    # -- identities ---------------------------------------------------------------------------------------------

    def certificate(self, user: str, groups: Iterable[str] = (), *, lifetime: float = 86400.0) -> tuple[bytes, bytes]:
        """A client certificate and its key, both PEM, valid for `lifetime` seconds.

        Made by hand, as an identity needs one O per group and trustme's `issue_cert` knows one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        authority = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        names = [(NameOID.ORGANIZATION_NAME, group) for group in groups] + [(NameOID.COMMON_NAME, user)]
        now = time.time()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(oid, value) for oid, value in names]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_utc(now - 60))
            .not_valid_after(_utc(now + lifetime))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
            .sign(authority, hashes.SHA256())  # type: ignore[arg-type]  # trustme's keys are EC
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)

    def certificate_file(self, user: str, groups: Iterable[str] = ()) -> Path:
        """A client certificate and its key in one new file, as `ssl.SSLContext.load_cert_chain` likes it."""
        descriptor, path = tempfile.mkstemp(prefix="client-", suffix=".pem", dir=self.directory)
        with open(descriptor, "wb") as file:
            file.write(b"".join(self.certificate(user, groups)))
        return Path(path)

    def client(self, user: str, groups: Iterable[str] = (), *, token: str | None = None) -> Client:
        """A client with a certificate for `user`, or, if given, with the bearer `token`. Closed by `stop`."""
        certificate = None if token else self.certificate_file(user, groups)
        self._clients.append(Client(self.port, self.ca_file, certificate, token))
        return self._clients[-1]

    def kubeconfig(
        self,
        user: str,
        groups: Iterable[str] = (),
        path: Path | None = None,
        *,
        server: str | None = None,
        files: bool = False,
        token: str | None = None,
        lifetime: float = 86400.0,
    ) -> Path:
        """Writes a kubeconfig (a new file in `directory` unless `path` is given) and returns its path.

        The client certificate is inline, or with `files` in `<path>.crt` and `<path>.key`. A `token` replaces it.
        `server` is the URL: the API server's, unless a proxy's is given.
        """
        if path is None:
            descriptor, name = tempfile.mkstemp(prefix="kubeconfig-", dir=self.directory)
            os.close(descriptor)
            path = Path(name)
        credentials: dict[str, str] = {}
        if token is not None:
            credentials["token"] = token
        else:
            for key, suffix, pem in zip(
                ("client-certificate", "client-key"),
                (".crt", ".key"),
                self.certificate(user, groups, lifetime=lifetime),
                strict=True,
            ):
                if files:
                    file = path.with_name(path.name + suffix)
                    _write_private(file, pem)
                    credentials[key] = str(file)
                else:
                    credentials[f"{key}-data"] = base64.b64encode(pem).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": server or self.url,
                        "certificate-authority-data": base64.b64encode(self.ca.cert_pem.bytes()).decode(),
                    },
                }
            ],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        _write_private(path, json.dumps(config, indent=2).encode())  # JSON is YAML
        return path

    def node_kubeconfig(self, node: str, path: Path | None = None, *, server: str | None = None) -> Path:
        """The kubeconfig of a node's identity: `system:node:<node>` in the group `system:nodes`."""
        return self.kubeconfig(f"system:node:{node}", [NODES], path, server=server)

    # -- objects ------------------------------------------------------------------------------------------------

    def create_node(self, name: str) -> Object:
        """A Ready Node with the golden data's resources; no error if it is there."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
            "status": {
                "capacity": ALLOCATABLE,
                "allocatable": ALLOCATABLE,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }
        try:
            return self.admin.create(node)
        except ApiError as error:
            if error.status != 409:
                raise
            return self.admin.get("Node", name)

    def create_namespace(self, name: str) -> Object:
        """A namespace; with controllers, its default ServiceAccount and `kube-root-ca.crt` follow in a moment."""
        return self.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def delete_namespace(self, name: str) -> None:
        """Deletes the namespace's Pods by force, so that no agent sees them any more, and then the namespace itself.

        Without a namespace controller the rest of its objects stays in etcd, where nobody finds it.
        """
        pods = self.admin.path("Pod", namespace=name)
        self.admin.request("DELETE", pods, {"gracePeriodSeconds": 0})
        deleted = self.admin.delete("Namespace", name)
        if self._controllers is None:
            deleted["spec"] = {"finalizers": []}
            self.admin.replace(deleted, subresource="finalize")

    def service_account_token(
        self, namespace: str, name: str, *, audiences: Sequence[str] = (), seconds: int = 3600
    ) -> str:
        """A bearer token of a ServiceAccount, as an in-cluster agent has one."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": list(audiences), "expirationSeconds": seconds},
        }
        path = self.admin.path("ServiceAccount", name, namespace, sub="token")
        return self.admin.request("POST", path, request)["status"]["token"]

    # -- processes ----------------------------------------------------------------------------------------------

    def log(self, name: str) -> Path:
        """The log of `etcd`, `kube-apiserver` or `kube-controller-manager`."""
        return self.directory / f"{name}.log"

    def _log_end(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return self.log(name).read_text(errors="replace")[-3000:]
        return ""

    def _spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            return processes.spawn([BINARIES / name, *arguments], log=log, managed=True)

    def _write_server_files(self) -> None:
        server = self.ca.issue_cert(HOST, "localhost", "kubernetes.default.svc")
        self._server_cert, self._server_key = self.directory / "server.crt", self.directory / "server.key"
        self._server_cert.write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        _write_private(self._server_key, server.private_key_pem.bytes())
        self._service_account_key = self.directory / "service-account.key"
        _write_private(self._service_account_key, _private_pem(ec.generate_private_key(ec.SECP256R1())))

    def _start_etcd(self, peer_port: int) -> None:
        client, peer = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{peer_port}"
        self._etcd = self._spawn(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )

    def _apiserver_arguments(self) -> list[str]:
        gates = ",".join(f"{gate}={str(on).lower()}" for gate, on in self._feature_gates.items())
        runtime = ",".join(f"{api}={on}" for api, on in self._runtime_config.items())
        return [
            f"--etcd-servers=http://{HOST}:{self._etcd_port}",
            f"--bind-address={HOST}",
            f"--advertise-address={HOST}",
            f"--secure-port={self.port}",
            "--endpoint-reconciler-type=none",  # a loopback address may not be an endpoint
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--tls-cert-file={self._server_cert}",
            f"--tls-private-key-file={self._server_key}",
            f"--client-ca-file={self.ca_file}",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            *([] if self._service_accounts else ["--disable-admission-plugins=ServiceAccount"]),
            "--allow-privileged=true",
            "--profiling=false",
            *([f"--feature-gates={gates}"] if gates else []),
            *([f"--runtime-config={runtime}"] if runtime else []),
            *self._extra_args,
        ]

    def _start_controllers(self, timeout: float) -> None:
        self._controllers = self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('system:kube-controller-manager', [MASTERS])}",
            f"--controllers={','.join(CONTROLLERS)}",
            f"--root-ca-file={self.ca_file}",
            f"--service-account-private-key-file={self._service_account_key}",
            "--leader-elect=false",
            "--secure-port=0",
            "--concurrent-namespace-syncs=4",
        )
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(ApiError):
                self.admin.get("ServiceAccount", "default")
                self.admin.get("ConfigMap", "kube-root-ca.crt")
                return
            if time.monotonic() > deadline or self._controllers.poll() is not None:
                raise ClusterError(f"no ServiceAccount\n{self._log_end('kube-controller-manager')}")
            time.sleep(0.05)


def _utc(seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # not PKCS 8, of which the API server reads no EC key for its tokens
    pem, sec1 = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(pem, sec1, serialization.NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    """Replaces the file at once, so that who watches it never reads half of it."""
    new = path.with_name(path.name + ".new")
    new.touch(0o600)
    new.write_bytes(content)
    new.replace(path)


def free_ports(count: int) -> list[int]:
    """Ports below the range that the kernel takes for outgoing connections: while the API server is down, such a
    connection (or a retry that connects to itself) could otherwise sit on its port."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            if port not in ports:
                ports.append(port)
    return ports


def _scratch_directory() -> tuple[Path, int]:
    """A new directory in memory where there is room (etcd's first log alone has 64 MB), and its lock.

    Directories whose lock nobody holds are of a process that was killed: they are removed first.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 512 << 20
    parent = memory if roomy and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for old in parent.glob("fusevol-cluster-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(old / "lock", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(descriptor)
    directory = Path(tempfile.mkdtemp(prefix="fusevol-cluster-", dir=parent))
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return directory, descriptor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.cluster", description="A cluster in the foreground.")
    parser.add_argument("--service-accounts", action="store_true", help="with kube-controller-manager")
    parser.add_argument("--feature-gates", default="", metavar="A=true,B=false")
    parser.add_argument("--runtime-config", default="", metavar="API=true,...")
    parser.add_argument("--node", action="append", default=[], help="create this Node (may be repeated)")
    parser.add_argument("--kubeconfig", type=Path, help="where to write the administrator's kubeconfig")
    options = parser.parse_args()
    pairs = [
        dict(pair.split("=") for pair in text.split(",") if pair)
        for text in (options.feature_gates, options.runtime_config)
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        contextlib.suppress(KeyboardInterrupt),
        Cluster(
            service_accounts=options.service_accounts,
            feature_gates={gate: on == "true" for gate, on in pairs[0].items()},
            runtime_config=pairs[1],
        ) as cluster,
    ):
        print(f"API server: {cluster.url}")
        print(f"admin:      {cluster.kubeconfig('admin', [MASTERS], options.kubeconfig)}")
        for node in options.node:
            cluster.create_node(node)
            print(f"{node}:      {cluster.node_kubeconfig(node)}")
        print("stop with Ctrl-C", flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
