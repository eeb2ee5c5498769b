"""The API server's fixtures, for whole-system tests that need one."""

from __future__ import annotations

from tests.kubernetes.conftest import cluster, namespace, node, proxy

__all__ = ["cluster", "namespace", "node", "proxy"]
