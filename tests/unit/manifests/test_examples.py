"""The manifests that `scripts/run` serves."""

from __future__ import annotations

from pathlib import Path

from fusevol.agent.plugins.plugin import Absent, Objects
from fusevol.agent.plugins.registry import default_registry
from fusevol.agent.sources.manifests.node import machine_allocatable
from fusevol.model.objects import KeyInfo, ObjectInfo
from fusevol.model.refs import ObjectRef
from fusevol.model.tree import Tree
from tests.unit.manifests.recording import RecordingSink, source_of

EXAMPLES = Path(__file__).parents[3] / "examples"


async def test_every_volume_of_the_examples_can_be_set_up() -> None:
    sink = RecordingSink()
    source = source_of(EXAMPLES, sink)
    await source.refresh()
    assert sink.told == ()
    assert sink.names == ["batch/worker", "default/web"]
    registry = default_registry()
    planned: dict[tuple[str, str], set[str]] = {}
    for pod in sink.pods.values():
        volumes = pod.spec.volumes or []
        assert list(pod.used_volumes) == volumes
        for volume in volumes:
            plugin = registry.find_by_spec(volume)
            references = plugin.references(pod, volume, "node1")
            for ref in references:
                source.reference(ref)
            await source.refresh()
            tree = plugin.plan(pod, volume, Objects({ref: known(sink, ref) for ref in references}), "node1")
            files = {file.path for file in tree.files} if isinstance(tree, Tree) else set()
            planned[pod.metadata.name, f"{plugin.name}/{volume.name}"] = files
    assert "greeting" in planned["web", "kubernetes.io/configmap/config"]
    assert planned["worker", "kubernetes.io/secret/token"] == set()
    kinds = {name.rpartition("/")[0] for pod, name in planned if pod == "web"}
    assert kinds == set(registry.names)


def known(sink: RecordingSink, ref: ObjectRef) -> ObjectInfo | Absent:
    if ref not in sink.delivered:
        return Absent()
    found = sink.delivered[ref]
    keys = {key: KeyInfo(len(value), "digest") for key, value in found.data.items()}
    return ObjectInfo(ref, found.uid, found.version, found.version, found.immutable, keys, found.literals)


def test_this_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24581684 kB\nMemFree:         1000 kB\n")
    allocatable = machine_allocatable(tmp_path, meminfo)
    assert allocatable["memory"] == "24581684Ki"
    assert int(allocatable["cpu"]) >= 1
    assert int(allocatable["ephemeral-storage"]) > 0
