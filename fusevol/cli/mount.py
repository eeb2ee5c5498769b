"""`fusevol mount`: checks everything that can be checked, then becomes the keeper."""

from __future__ import annotations

import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusevol.cli.arguments import Mountpoint, RuntimeDir, instance_at
from fusevol.model.errors import UserError
from fusevol.protocol.instance import canonical, default_runtime_dir, default_state_dir

if TYPE_CHECKING:
    from fusevol.agent.identity import Identity


USAGE = 2


class Engine(StrEnum):
    auto = "auto"
    pyfuse3 = "pyfuse3"


class LogFormat(StrEnum):
    text = "text"
    json = "json"


def mount(
    mountpoint: Mountpoint,
    manifests: Annotated[
        Path | None,
        typer.Option("--manifests", metavar="DIR", help="Source: a directory of YAML or JSON manifests, watched."),
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", metavar="FILE", help="Source: the API server of this kubeconfig.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="Another context of the kubeconfig than the current."),
    ] = None,
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="Source: the API server of this Pod, with its ServiceAccount.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NAME", help="Whose Pods. Default: $NODE_NAME, then the host name."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            help="Where emptyDirs' data is. Default: /var/lib/fusevol, or, not as root, $XDG_STATE_HOME/fusevol.",
            show_default=False,
        ),
    ] = None,
    runtime_dir: RuntimeDir = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="How the kernel is answered; auto takes the best that works here.")
    ] = Engine.auto,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take over a state directory that belonged to another source or node.")
    ] = False,
    no_events: Annotated[bool, typer.Option("--no-events", help="Do not send Events to the API server.")] = False,
    require_locked_memory: Annotated[
        bool,
        typer.Option(
            "--require-locked-memory", help="Refuse to run where memory cannot be locked, instead of warning."
        ),
    ] = False,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="The log's form, on stderr.")] = LogFormat.text,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Tell more; -vv tells all.", show_default=False)
    ] = 0,
) -> None:
    """Serve the volumes of a node's Pods at MOUNTPOINT, in the foreground.

    Exactly one source is to be given: --manifests, --kubeconfig or --in-cluster.

    SIGTERM and SIGINT stop it and unmount. If mounts or open files of others stand on it, they are listed and it goes
    on; a second signal detaches the mount and leaves.
    """
    if (manifests is not None) + (kubeconfig is not None) + in_cluster != 1:
        raise UserError("exactly one of --manifests, --kubeconfig and --in-cluster is to be given", USAGE)
    if context is not None and kubeconfig is None:
        raise UserError("--context goes with --kubeconfig", USAGE)
    from fusevol.cli.checks import check_directories, check_fuse, check_mountpoint

    instance = instance_at(mountpoint, runtime_dir)
    node = node or os.environ.get("NODE_NAME") or socket.gethostname().strip().lower()
    state = Path(os.path.realpath(state_dir or default_state_dir()))
    runtime = canonical(runtime_dir or default_runtime_dir())  # a link is for the keeper to refuse
    check_mountpoint(instance)
    directories = {"the state directory": state, "the runtime directory": runtime}
    if manifests is not None:
        manifests = _existing_directory(manifests)
        directories["the manifests directory"] = manifests
    check_directories(instance.mountpoint, directories)
    check_fuse()

    source, identity = _source(manifests, kubeconfig, context, node, instance.mountpoint)
    from fusevol.agent.identity import claim

    lock_fd = claim(state, identity, adopt=adopt)
    from fusevol.keeper.config import Config, module

    config = Config(
        mountpoint=instance.mountpoint,
        runtime_dir=runtime,
        state_dir=state,
        node=node,
        source=source,
        events=not no_events,
        require_locked_memory=require_locked_memory,
        log_format=log_format.value,
        verbosity=verbose,
        lock_fd=lock_fd,
    )
    os.set_inheritable(lock_fd, True)
    sys.stdout.flush()
    command = module("fusevol.keeper")
    os.execv(command[0], [*command, config.to_json()])


def _source(
    manifests: Path | None, kubeconfig: Path | None, context: str | None, node: str, mountpoint: Path
) -> tuple[dict[str, Any], Identity]:
    """What the agent is told of the source, and the identity that the state directory must have. Raises UserError."""
    from fusevol.agent import identity

    if manifests is not None:
        return {"kind": "manifests", "directory": str(manifests)}, identity.of_manifests(manifests, node, mountpoint)
    if kubeconfig is not None:
        file = Path(os.path.abspath(kubeconfig))
        told = {"kind": "kubeconfig", "file": str(file), "context": context}
        return told, identity.of_kubeconfig(file, context, node, mountpoint)
    return {"kind": "in-cluster"}, identity.of_in_cluster(node, mountpoint)


def _existing_directory(path: Path) -> Path:
    try:
        resolved = Path(os.path.realpath(path, strict=True))
        os.listdir(resolved)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return resolved
