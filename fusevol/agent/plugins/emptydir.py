"""kubernetes.io/empty-dir (KUBELET.md 5): what kind of directory, how large, whose."""

from __future__ import annotations

from fusevol.agent.plugins import resources
from fusevol.agent.plugins.goquote import quote
from fusevol.agent.plugins.mountpoints import nested_mountpoints
from fusevol.agent.plugins.ownership import DISK_ROOT, TMPFS_ROOT, Ownership
from fusevol.agent.plugins.plugin import Objects
from fusevol.agent.plugins.quantity import ZERO, InvalidQuantity, Quantity, parse
from fusevol.model.errors import VolumeError
from fusevol.model.objects import node_ref
from fusevol.model.pod import EmptyDirVolumeSource, Pod, Volume
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import EmptyDir

DEFAULT = ""
MEMORY = "Memory"
HUGE_PAGES = "HugePages"
HUGE_PAGES_OF_SIZE = "HugePages-"


class EmptyDirPlugin:
    name = "kubernetes.io/empty-dir"

    def can_support(self, volume: Volume) -> bool:
        return volume.empty_dir is not None

    def references(self, pod: Pod, volume: Volume, node: str) -> frozenset[ObjectRef]:
        """A tmpfs is never larger than the Node's allocatable memory."""
        in_memory = volume.empty_dir is not None and volume.empty_dir.medium == MEMORY
        return frozenset({node_ref(node)}) if in_memory else frozenset()

    def plan(self, pod: Pod, volume: Volume, objects: Objects, node: str) -> EmptyDir:
        source = volume.empty_dir or EmptyDirVolumeSource()
        limit = _size_limit(source)
        if source.medium == MEMORY:
            limit = _memory_size(pod, limit, resources.allocatable(objects, node))
        elif source.medium != DEFAULT:
            raise VolumeError(_refusal(pod, source.medium))
        owner = Ownership(pod, writable=True)
        return EmptyDir(
            medium=source.medium,
            mode=owner.directory(TMPFS_ROOT if source.medium == MEMORY else DISK_ROOT),
            gid=owner.gid,
            size_limit=limit.value() if limit else None,
            mountpoints=nested_mountpoints(pod, volume.name),
        )


def _size_limit(source: EmptyDirVolumeSource) -> Quantity | None:
    """None where the volume itself has none; zero counts as none."""
    if source.size_limit is None:
        return None
    try:
        limit = parse(source.size_limit)
    except InvalidQuantity as error:
        raise VolumeError(str(error)) from None
    return limit if limit > ZERO else None


def _memory_size(pod: Pod, limit: Quantity | None, node: resources.Resources) -> Quantity | None:
    """The least of the Node's allocatable memory, the Pod's limit and the volume's (KUBELET.md 5.5)."""
    sizes = (node.get("memory"), resources.memory_limit(pod), limit)
    return min((size for size in sizes if size is not None and size > ZERO), default=None)


def _refusal(pod: Pod, medium: str) -> str:
    if medium != HUGE_PAGES and not medium.startswith(HUGE_PAGES_OF_SIZE):
        return f"unknown storage medium {quote(medium)}"
    try:
        sizes = {parse(size) for size in resources.huge_page_sizes(pod)}
        if medium == HUGE_PAGES and len(sizes) > 1:
            return f"medium: {medium} can't be used if container requests multiple huge page sizes"
        if not sizes or (medium != HUGE_PAGES and parse(medium.removeprefix(HUGE_PAGES_OF_SIZE)) not in sizes):
            return f"medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
    except InvalidQuantity as error:
        return str(error)
    return f"medium {medium}: huge pages are not served by fusevol"
