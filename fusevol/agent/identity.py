"""Whose state directory it is, and that nobody else works on it.

The directory holds the data of emptyDirs, and what the source does not know is deleted. So a mistyped node name or
kubeconfig must be refused before anything is started: the directory carries the identity of the source, node and mount
point that it was made for, and a lock that lives as long as the keeper or the agent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusevol.model.errors import UserError

IDENTITY = "identity.json"
LOCK = "lock"
PODS = "pods"

REFUSED = 4
_USAGE = 2

SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
_PEM_END = "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Identity:
    """`origin` is what the Pods come from: the manifests' absolute directory, or `sha256:` and the digest of the API
    server's CA, or the server's URL where no CA is given."""

    source: str
    origin: str
    node: str
    mountpoint: str


_WORDS = {"source": "source", "origin": "source's identity", "node": "node name", "mountpoint": "mount point"}


def claim(state_dir: Path, identity: Identity, *, adopt: bool) -> int:
    """Locks the directory (made where it is missing, mode 0700) for this process and whoever inherits the descriptor
    that is returned; writes the identity on first use, or when it is adopted.

    Raises UserError, exit code 4: in use by another process, or made for another identity; nothing is touched then.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}", REFUSED) from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    try:
        _lock(fd, state_dir)
        _check(state_dir, identity, adopt)
    except BaseException:
        os.close(fd)
        raise
    return fd


def of_manifests(directory: Path, node: str, mountpoint: Path) -> Identity:
    return Identity("manifests", str(directory), node, str(mountpoint))


def of_kubeconfig(file: Path, context: str | None, node: str, mountpoint: Path) -> Identity:
    """Raises UserError: exit code 2 where the named context is missing, 1 where the file is no good."""
    return Identity("kubeconfig", _cluster_of(file, context), node, str(mountpoint))


def of_in_cluster(node: str, mountpoint: Path, service_account: Path = SERVICE_ACCOUNT_DIR) -> Identity:
    """Raises UserError where this is no Pod with a ServiceAccount."""
    try:
        pem = (service_account / "ca.crt").read_bytes()
    except OSError as error:
        raise UserError(f"not in a cluster: {error.filename}: {error.strerror}") from None
    return Identity("in-cluster", _digest(pem, service_account / "ca.crt"), node, str(mountpoint))


# ------------------------------------------------------------------------------------------------ the directory


def _lock(fd: int, state_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        who = f"pid {holder}" if holder.isdigit() else "another process"
        raise UserError(f"{state_dir} is in use by {who}", REFUSED) from None
    os.truncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _check(state_dir: Path, identity: Identity, adopt: bool) -> None:
    path = state_dir / IDENTITY
    known = _read(path)
    if known == asdict(identity):
        return
    if not adopt:
        if known is not None:
            differing = [
                f"{word} {known.get(field)!r} there, {mine!r} here"
                for field, word in _WORDS.items()
                if known.get(field) != (mine := asdict(identity)[field])
            ]
            what = "; ".join(differing) or "it was written by another version"
            raise UserError(f"{state_dir} belongs to something else ({what}); --adopt takes it over", REFUSED)
        if _holds_pods(state_dir):
            raise UserError(f"{state_dir} holds Pods' data but does not say whose; --adopt takes it over", REFUSED)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(identity), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is none; {} where it cannot be understood, which is nobody's identity."""
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _holds_pods(state_dir: Path) -> bool:
    try:
        return any((state_dir / PODS).iterdir())
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------ the cluster


def _cluster_of(file: Path, context: str | None) -> str:
    """The CA's digest, or the server's URL, of the context's cluster."""
    config = _load(file)
    name = context or _text(config.get("current-context"))
    if name is None:
        raise UserError(f"{file}: no current-context; choose one with --context", _USAGE)
    chosen = _named(config, "contexts", "context", name)
    if chosen is None:
        raise UserError(f"{file}: no context {name!r}", _USAGE)
    cluster_name = _text(chosen.get("cluster"))
    cluster = _named(config, "clusters", "cluster", cluster_name) if cluster_name else None
    if cluster is None:
        raise UserError(f"{file}: context {name!r} names cluster {cluster_name!r}, which is not there")
    data, ca_file = _text(cluster.get("certificate-authority-data")), _text(cluster.get("certificate-authority"))
    if data is not None:
        return _digest(_decoded(data, file, cluster_name), file)
    if ca_file is not None:
        path = file.parent / ca_file
        try:
            return _digest(path.read_bytes(), path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
    server = _text(cluster.get("server"))
    if server is None:
        raise UserError(f"{file}: cluster {cluster_name!r} has no server")
    return server


def _load(file: Path) -> Mapping[str, Any]:
    import yaml  # takes a while, and only this source needs it

    try:
        config = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise UserError(f"{file}: not a kubeconfig: not YAML{where}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a kubeconfig")
    return config


def _named(config: Mapping[str, Any], section: str, kind: str, name: str) -> Mapping[str, Any] | None:
    """The entry of one of a kubeconfig's lists: `- name: x` with the value beside it."""
    entries = config.get(section)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(kind)
            return value if isinstance(value, dict) else None
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _decoded(data: str, file: Path, cluster: str | None) -> bytes:
    import base64

    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError:
        raise UserError(f"{file}: cluster {cluster!r}: certificate-authority-data is not base64") from None


def _digest(pem: bytes, origin: Path) -> str:
    """Of the certificates themselves: comments, line ends and order in the file are not the cluster's identity."""
    import ssl

    blocks = pem.decode(errors="replace").split(_PEM_BEGIN)[1:]
    try:
        certificates = [
            ssl.PEM_cert_to_DER_cert(f"{_PEM_BEGIN}{block.partition(_PEM_END)[0]}{_PEM_END}") for block in blocks
        ]
    except ValueError:
        certificates = []
    if not certificates:
        raise UserError(f"{origin}: the certificate authority is not a PEM certificate")
    return "sha256:" + hashlib.sha256(b"".join(sorted(certificates))).hexdigest()
