"""What the keeper starts an agent with: one JSON argument."""

from __future__ import annotations

import msgspec


class Config(msgspec.Struct, frozen=True, rename="camel"):
    """`agent_fd` listens for `fusevol wait`; `lock_fd`, where given, keeps the state directory locked for as long as
    the agent lives."""

    agent_fd: int
    server_socket: str
    keeper_socket: str
    mountpoint: str
    state_dir: str
    node: str
    source: SourceConfig
    events: bool = True
    require_locked_memory: bool = False
    log_format: str = "text"
    verbosity: int = 0


class ManifestsConfig(msgspec.Struct, frozen=True, tag_field="kind", tag="manifests"):
    directory: str


class KubeconfigConfig(msgspec.Struct, frozen=True, tag_field="kind", tag="kubeconfig"):
    file: str
    context: str | None = None


class InClusterConfig(msgspec.Struct, frozen=True, tag_field="kind", tag="in-cluster"):
    pass


SourceConfig = ManifestsConfig | KubeconfigConfig | InClusterConfig
