"""Who owns the parts of a volume, and their modes (KUBELET.md 10, KUBELET-MEASURED.md 3)."""

from __future__ import annotations

from fusevol.model.pod import Pod

DISK_ROOT = 0o777
"""Root of a volume that kubelet keeps on the node's disk: configMap, emptyDir."""

TMPFS_ROOT = 0o1777
"""Root of a volume that kubelet keeps in a tmpfs: secret, projected, downwardAPI, emptyDir Memory."""

DIRECTORY = 0o755
OWNED_FILE = 0o600
"""What a token's file starts from where somebody is to own it (KUBELET.md 6.6)."""

_READ_ONLY = 0o440
_READ_WRITE = 0o660
_SEARCH = 0o110
_SETGID = 0o2000


def fs_group(pod: Pod) -> int | None:
    context = pod.spec.security_context
    return context.fs_group if context else None


def fs_user(pod: Pod) -> int | None:
    """The one runAsUser that all containers share, init containers too (KUBELET.md 10.2). Ephemeral ones do not count
    (FsUserFrom in pkg/volume/util/util.go): a token keeps its owner while somebody debugs its Pod."""
    common = pod.spec.security_context.run_as_user if pod.spec.security_context else None
    users = {
        own.run_as_user if (own := container.security_context) and own.run_as_user is not None else common
        for container in (*(pod.spec.init_containers or ()), *(pod.spec.containers or ()))
    }
    return users.pop() if len(users) == 1 else None


class Ownership:
    """The fsGroup pass over one volume (KUBELET.md 10.3). `writable` is true for an emptyDir only."""

    def __init__(self, pod: Pod, *, writable: bool = False) -> None:
        group = fs_group(pod)
        self.gid = group or 0
        self._mask = 0 if group is None else (_READ_WRITE if writable else _READ_ONLY)

    def file(self, mode: int) -> int:
        return mode | self._mask

    def directory(self, mode: int) -> int:
        return mode | self._mask | _SEARCH | _SETGID if self._mask else mode


def token_mode(pod: Pod, default_mode: int) -> int:
    """The mode of a token's or trust bundle's file before the fsGroup pass (KUBELET.md 6.6)."""
    return default_mode if fs_user(pod) is None and fs_group(pod) is None else OWNED_FILE
