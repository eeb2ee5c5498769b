"""Loads credentials with the `kubernetes` package, prints them as JSON, and ends.

    python -m fusevol.agent.sources.kubernetes.credentials_helper kubeconfig FILE [--context NAME]
    python -m fusevol.agent.sources.kubernetes.credentials_helper in-cluster DIRECTORY

A process of its own, because the package costs the agent 20 MiB, runs exec plugins synchronously, and writes inline
keys to files: here they go to a private directory that is gone when this process is. Standard output carries secrets
and is a pipe to the agent (credentials.py, `Wire`). An error is one line on standard error and exit code 1.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

SHARED_MEMORY = "/dev/shm"
"""The private directory stands in memory where that is possible; its name has the agent's pid."""


PREFIX = "fusevol-credentials-"


class HelperError(Exception):
    """One line for people."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("kubeconfig", "in-cluster"))
    parser.add_argument("path")
    parser.add_argument("--context")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the directory is removed on the way out
    os.umask(0o077)
    said = io.StringIO()  # the package logs why an exec plugin failed, and goes on without credentials
    logging.basicConfig(stream=said, format="%(message)s", level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getppid()}-", dir=scratch()) as directory:
        tempfile.tempdir = directory  # for the files that the package makes without being told where
        try:
            if options.kind == "kubeconfig":
                found = kubeconfig(options.path, options.context, directory, said)
            else:
                found = in_cluster(Path(options.path))
        except HelperError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.filename or options.path}: {error.strerror or error}")
        except Exception as error:  # whatever the package and its parsers raise: the user's configuration is broken
            fail(f"{options.path}: {one_line(error)}")
        json.dump(found, sys.stdout)


def kubeconfig(path: str, context: str | None, directory: str, said: io.StringIO) -> Any:
    """What the kubeconfig says, exec plugins included."""
    files = fingerprints(path)  # before it is read: a change in between is seen as one
    if not files:
        raise HelperError(f"{path}: No such file or directory")
    package = imported("kubernetes.config.kube_config")
    merged = package.KubeConfigMerger(path).config
    if merged is None:
        raise HelperError(f"{path}: no configuration in it")
    loader = package.KubeConfigLoader(
        config_dict=merged,
        active_context=context,
        config_base_path=None,  # names of files are relative to the kubeconfig
        temp_file_path=directory,
    )
    user, cluster = entries(merged.value, loader.current_context)
    base = os.path.dirname(os.path.abspath(path))
    named = (cluster, "certificate-authority"), (user, "client-certificate"), (user, "client-key"), (user, "tokenFile")
    for entry, key in named:
        if entry.get(key):
            files |= fingerprints(os.path.normpath(os.path.join(base, entry[key])))
    configuration = package.Configuration()
    loader.load_and_set(configuration)
    if cluster.get("proxy-url"):
        raise HelperError(f"{path}: proxy-url is not supported")
    authorization = configuration.api_key.get("BearerToken") or configuration.api_key.get("authorization")
    if "exec" in user and not authorization and not configuration.cert_file:
        raise HelperError(said.getvalue().strip() or "the exec plugin gave no credentials")
    expires = getattr(loader, "expiry", None)
    return wire(configuration, authorization, files, expires=expires.timestamp() if expires else None)


def imported(module: str) -> Any:
    """The package is not typed, and imported only once its input is known to be there."""
    return importlib.import_module(module)


def entries(config: Any, context: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The user's and the cluster's own entries of the current context, empty where there is none."""

    def named(section: str, key: str, name: Any) -> dict[str, Any]:
        for entry in config.get(section) or ():
            raw = getattr(entry, "value", entry)
            if raw.get("name") == name:
                return raw.get(key) or {}
        return {}

    names = context["context"]
    return named("users", "user", names.get("user")), named("clusters", "cluster", names["cluster"])


def in_cluster(directory: Path) -> Any:
    """What a Pod's ServiceAccount volume and environment say."""
    token, authority = directory / "token", directory / "ca.crt"
    files = fingerprints(str(token), str(authority))
    package = imported("kubernetes.config.incluster_config")
    configuration = package.Configuration()
    package.InClusterConfigLoader(token_filename=str(token), cert_filename=str(authority)).load_and_set(configuration)
    return wire(configuration, configuration.api_key["BearerToken"], files, expires=None)


def wire(configuration: Any, authorization: str | None, files: dict[str, list[int]], *, expires: float | None) -> Any:
    """As `credentials.Wire` decodes it."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    return {
        "server": configuration.host,
        "ca": content(configuration.ssl_ca_cert),
        "certificate": content(configuration.cert_file),
        "key": content(configuration.key_file),
        "authorization": encoded(f"{scheme.capitalize()} {value.strip()}".encode()) if authorization else None,
        "expires": expires,
        "tls_server_name": configuration.tls_server_name,
        "insecure": not configuration.verify_ssl,
        "files": files,
    }


def content(path: str | None) -> str | None:
    return encoded(Path(path).read_bytes()) if path else None


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fingerprints(*paths: str) -> dict[str, list[int]]:
    """[modification time in ns, inode, size] of each file that is there; links are followed."""
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        found[path] = [status.st_mtime_ns, status.st_ino, status.st_size]
    return found


def scratch() -> str:
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else tempfile.gettempdir()


def remove_leftovers(parent: int) -> None:
    """The directories of helpers of the process `parent` that are gone."""
    for left in Path(scratch()).glob(f"{PREFIX}{parent}-*"):
        shutil.rmtree(left, ignore_errors=True)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def fail(message: str) -> NoReturn:
    print(" ".join(message.split())[:1000], file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
