"""Credentials as the agent uses them: a TLS context and an Authorization header, kept current.

They are loaded in a short-lived process (credentials_helper.py), again when one of the files they came from changes,
shortly before they expire, and when the API server says 401. A private key stands in the agent's heap only until
OpenSSL has it; it reaches OpenSSL, which reads files only, by way of a memfd.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import signal
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import trio

from fusevol.agent.sources.kubernetes.credentials_helper import fingerprints, remove_leftovers
from fusevol.agent.sources.kubernetes.errors import CredentialsError, Disconnected
from fusevol.agent.sources.kubernetes.timing import Backoff, Timing
from fusevol.model.objects import SecretBytes

HELPER = "fusevol.agent.sources.kubernetes.credentials_helper"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a Pod finds its ServiceAccount's token and the API server's CA."""

EXPIRY_MARGIN = 60.0
"""Seconds before their end when credentials are loaded anew."""

SHORTEST_LIFE = 10.0
"""Seconds. Not more often than this, whatever an exec plugin says of expiry and the API server of 401."""

_digest_key = os.urandom(32)


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    file: str
    context: str | None = None

    def arguments(self) -> list[str]:
        return ["kubeconfig", self.file, *(["--context", self.context] if self.context else [])]


@dataclass(frozen=True, slots=True)
class InCluster:
    """`directory` holds `token` and `ca.crt`; the API server's address is in the environment."""

    directory: str = SERVICE_ACCOUNT

    def arguments(self) -> list[str]:
        return ["in-cluster", self.directory]


class Wire(msgspec.Struct, frozen=True):
    """What the helper prints. PEM is bytes (base64 in JSON); `expires` in seconds since the epoch."""

    server: str
    ca: bytes | None
    certificate: bytes | None
    key: bytes | None
    authorization: bytes | None
    expires: float | None
    tls_server_name: str | None
    insecure: bool
    files: dict[str, list[int]]

    def __repr__(self) -> str:
        return f"<credentials for {self.server}>"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """`authorization` is the header's value. `transport` tells whether connections have to be made anew: it differs
    when server, CA, certificate or key do."""

    server: str
    authority: str
    host: str
    port: int
    server_name: str
    context: ssl.SSLContext
    authorization: SecretBytes | None
    expires: float | None
    transport: bytes
    files: dict[str, list[int]]

    def __repr__(self) -> str:
        return f"<credentials for {self.server}>"

    async def connect(self, within: float) -> trio.abc.Stream:
        """A TLS connection on which HTTP/2 is agreed, `within` so many seconds (trio.TooSlowError)."""
        with trio.fail_after(within):
            tcp = await trio.open_tcp_stream(self.host, self.port)
            tls = trio.SSLStream(tcp, self.context, server_hostname=self.server_name, https_compatible=True)
            try:
                await tls.do_handshake()
                if tls.selected_alpn_protocol() != "h2":
                    raise Disconnected(f"{self.server} does not speak HTTP/2")
            except BaseException:
                await trio.aclose_forcefully(tcp)
                raise
            return tls


async def load(origin: Kubeconfig | InCluster, within: float) -> Credentials:
    """Runs the helper for at most `within` seconds. Raises CredentialsError."""
    wire = decode(await _run(origin.arguments(), within))
    return credentials(wire)


def decode(printed: bytes) -> Wire:
    try:
        return msgspec.json.decode(printed, type=Wire)
    except msgspec.MsgspecError as error:
        raise CredentialsError(f"the credentials helper: {error}") from None


def credentials(wire: Wire) -> Credentials:
    """Raises CredentialsError where the address, the CA, the certificate or the key is not one."""
    url = urllib.parse.urlsplit(wire.server)
    if url.scheme != "https" or not url.hostname:
        raise CredentialsError(f"{wire.server}: the API server's address must begin with https://")
    if url.path.strip("/"):
        raise CredentialsError(f"{wire.server}: an address with a path is not supported")
    described = msgspec.msgpack.encode(
        (wire.server, wire.ca, wire.certificate, wire.key, wire.tls_server_name, wire.insecure)
    )
    return Credentials(
        server=wire.server,
        authority=url.netloc.rpartition("@")[2],
        host=url.hostname,
        port=url.port or 443,
        server_name=wire.tls_server_name or url.hostname,
        context=tls_context(wire),
        authorization=SecretBytes(wire.authorization) if wire.authorization else None,
        expires=wire.expires,
        transport=hmac.digest(_digest_key, described, hashlib.sha256),
        files=wire.files,
    )


def tls_context(wire: Wire) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if wire.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        if wire.ca is not None:
            context.load_verify_locations(cadata=wire.ca.decode("ascii", "replace"))
        else:
            context.load_default_certs()
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(f"certificate-authority: {_ssl_reason(error)}") from None
    if wire.certificate is not None and wire.key is not None:
        try:
            _load_client_certificate(context, wire.certificate, wire.key)
        except (ssl.SSLError, ValueError) as error:
            raise CredentialsError(f"client certificate and key: {_ssl_reason(error)}") from None
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    size = len(certificate) + 1 + len(key)
    try:
        os.writev(descriptor, [certificate, b"\n", key])
        # a password function, so that OpenSSL does not ask the terminal for the one of an encrypted key
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    finally:
        os.pwrite(descriptor, bytes(size), 0)
        os.close(descriptor)


def _ssl_reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")


async def _run(arguments: list[str], within: float) -> bytes:
    try:
        with trio.fail_after(within):
            done = await trio.run_process(
                [sys.executable, "-m", HELPER, *arguments],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                start_new_session=True,  # so that its exec plugin can be ended with it
                deliver_cancel=_end,
            )
    except trio.TooSlowError:
        raise CredentialsError(f"credentials could not be loaded within {within:g} s") from None
    except OSError as error:
        raise CredentialsError(f"the credentials helper: {error.strerror}") from None
    finally:
        remove_leftovers(os.getpid())  # it was killed before it could
    if done.returncode:
        raise CredentialsError(_last_line(done.stderr))
    return bytes(done.stdout)


async def _end(process: trio.Process) -> None:
    """SIGTERM, on which the helper removes its directory; SIGKILL to the whole group if that does not do."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        await trio.sleep(2)


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the credentials helper failed"


class CredentialStore:
    """The current credentials. `run` it in a nursery.

    `renewed` is called when connections have to be made anew; `report` is told why credentials cannot be loaded, and
    None when they can again. The old ones are used as long as there are no new ones.
    """

    def __init__(
        self,
        loader: Callable[[], Awaitable[Credentials]],
        renewed: Callable[[], None],
        report: Callable[[str | None], None],
        timing: Timing,
        rng: random.Random,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._loader = loader
        self._renewed = renewed
        self._report = report
        self._timing = timing
        self._now = now
        self._backoff = Backoff(timing, rng)
        self._asked = trio.Event()  # to load now; replaced by run()
        self._attempted = trio.Event()  # set and replaced after each attempt
        self._attempted_at = float("-inf")  # trio's clock
        self.value: Credentials | None = None

    async def current(self) -> Credentials:
        """Waits until credentials could be loaded once."""
        while self.value is None:
            await self._attempted.wait()
        return self.value

    async def replace(self, refused: Credentials) -> None:
        """The API server says 401 to them: returns when others have been looked for."""
        if self.value is not refused or trio.current_time() - self._attempted_at < SHORTEST_LIFE:
            return
        attempted = self._attempted
        self._asked.set()
        await attempted.wait()

    async def run(self) -> None:
        while True:
            pause = float("inf")
            try:
                found = await self._loader()
            except CredentialsError as error:
                self._report(str(error))
                pause = self._backoff.pause()
            else:
                self._report(None)
                self._backoff.reset()
                self._adopt(found)
            self._attempted_at = trio.current_time()
            self._attempted.set()
            self._attempted, self._asked = trio.Event(), trio.Event()
            await self._until_due(trio.current_time() + pause)

    def _adopt(self, found: Credentials) -> None:
        old, self.value = self.value, found
        if old is None:
            return
        if old.transport != found.transport:
            self._renewed()
        if old.authorization is not None:
            old.authorization.wipe()

    async def _until_due(self, retry: float) -> None:
        """Returns at `retry` (trio's clock), when asked to, when a file has changed, or before they expire.

        After a failure `retry` is soon, and expiry does not hasten it.
        """
        while (left := retry - trio.current_time()) > 0:
            expiry = self._until_expiry() if left == float("inf") else left
            with trio.move_on_after(min(left, self._timing.credentials_poll, expiry)):
                await self._asked.wait()
                return
            if self.value is None:
                continue
            if (left == float("inf") and self._until_expiry() <= 0) or self._files_changed(self.value):
                return

    @staticmethod
    def _files_changed(value: Credentials) -> bool:
        return fingerprints(*value.files) != value.files

    def _until_expiry(self) -> float:
        """Seconds, never so few that a plugin with short-lived credentials runs all the time."""
        if self.value is None or self.value.expires is None:
            return float("inf")
        least = self._attempted_at + SHORTEST_LIFE - trio.current_time()
        return max(self.value.expires - EXPIRY_MARGIN - self._now(), least, 0.0)
