"""The directory as a source: what is delivered, kept and reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from fusevol.agent.sources.manifests.files import Timing
from fusevol.agent.sources.source import SourceUnavailable
from fusevol.model.objects import (
    CLUSTER_TRUST_BUNDLE,
    CONFIG_MAP,
    TokenSpec,
    node_ref,
    token_ref,
)
from fusevol.model.refs import ObjectRef
from tests.unit.manifests.recording import (
    ALLOCATABLE,
    CONFIG,
    CREDENTIALS,
    RecordingSink,
    config_map,
    pod,
    running,
    secret,
    source_of,
    text,
    until,
    write,
)


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


async def test_pods_and_referenced_objects(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod(), config_map({"k": "1"}), secret({"p": "s3cret"}))
    write(tmp_path / "b.json", pod("job", namespace="batch"))
    source = source_of(tmp_path, sink)
    async with running(source):
        await until(lambda: sink.synced)
        assert sink.names == ["batch/job", "default/web"]
        assert sink.objects == {}
        source.reference(CONFIG)
        source.reference(CREDENTIALS)
        source.reference(CONFIG)
        await until(lambda: len(sink.objects) == 2)
    assert sink.objects == {CONFIG: {"k": b"1"}, CREDENTIALS: {"p": b"s3cret"}}
    assert sink.calls.count(f"object {CONFIG}") == 1
    version = str((tmp_path / "a.yaml").stat().st_mtime_ns)
    assert {delivered.version for delivered in sink.delivered.values()} == {version}
    assert sink.calls.index("synced") > max(sink.calls.index(f"pod {name}") for name in sink.names)
    assert sink.told == ()


async def test_delivered_values_are_wiped(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}), secret({"p": "s3cret"}))
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    source.reference(CREDENTIALS)
    await source.refresh()
    for delivered in sink.delivered.values():
        assert all(bytes(value.reveal()).strip(b"\0") == b"" for value in delivered.data.values())


async def test_no_secret_value_stays_in_the_source(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", secret({"p": "s3cret"}))
    source = source_of(tmp_path, sink)
    source.reference(CREDENTIALS)
    await source.refresh()
    (held,) = (contents for _, contents in source._files.held())
    assert held.objects[CREDENTIALS].values is None
    assert "s3cret" not in repr(vars(source))


@pytest.mark.parametrize("how", ["rewrite", "rename", "move away and create"])
async def test_saving(tmp_path: Path, sink: RecordingSink, how: str) -> None:
    path = tmp_path / "a.yaml"
    write(path, pod(), config_map({"k": "1"}))
    source = source_of(tmp_path, sink, Timing(rescan=60))
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects.get(CONFIG) == {"k": b"1"})
        if how == "rename":
            write(tmp_path / ".a.yaml.new", pod(), config_map({"k": "2"}))
            (tmp_path / ".a.yaml.new").rename(path)
        else:
            if how != "rewrite":
                path.rename(tmp_path / "a.yaml~")
                await trio.sleep(0.1)
            write(path, pod(), config_map({"k": "2"}))
        await until(lambda: sink.objects[CONFIG] == {"k": b"2"})
    assert not any(call.startswith("gone") for call in sink.calls)
    assert sink.told == ()


async def test_a_half_written_file_is_never_taken(tmp_path: Path, sink: RecordingSink) -> None:
    path = tmp_path / "a.yaml"
    write(path, config_map({"a": "1", "b": "1"}))
    source = source_of(tmp_path, sink)
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects)
        written = text(config_map({"a": "2"})), text(config_map({"b": "2"}, name="other"))
        with path.open("w") as writer:
            for part in (written[0], "\n---\n", written[1]):
                writer.write(part)
                writer.flush()
                # longer than the watcher needs and than a file must be still: what stands there parses, too
                await trio.sleep(0.3)
                assert sink.objects[CONFIG] == {"a": b"1", "b": b"1"}
        await until(lambda: sink.objects[CONFIG] == {"a": b"2"})
    assert sink.told == ()


async def test_a_file_that_is_kept_open_is_a_problem(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "b.yaml", pod())
    source = source_of(tmp_path, sink, Timing(patience=0.1, retry=0.01))
    with (tmp_path / "a.yaml").open("w") as writer:
        writer.write(text(config_map({})))
        async with running(source):
            await until(lambda: sink.told)
            assert sink.messages == [("a.yaml", None, "some process keeps it open for writing")]
            assert sink.names == ["default/web"]
            with pytest.raises(SourceUnavailable, match=r"^a\.yaml: still changing after 0\.1 s$"):
                await source.refresh()
            writer.close()
            await until(lambda: not sink.told)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("{", 1),
        ("", 1),
        ("a: 1\nb: [1,\n", 2),
        ("kind: Pod", 1),
        ("apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}", 2),
    ],
)
async def test_a_broken_file_keeps_what_it_held(tmp_path: Path, sink: RecordingSink, broken: str, line: int) -> None:
    write(tmp_path / "a.yaml", pod(), config_map({"k": "1"}))
    write(tmp_path / "b.yaml", pod("other"), config_map({"k": "1"}, name="other"))
    other = ObjectRef(CONFIG_MAP, "default", "other")
    source = source_of(tmp_path, sink)
    async with running(source):
        for ref in (CONFIG, other):
            source.reference(ref)
        await until(lambda: len(sink.objects) == 2)
        (tmp_path / "a.yaml").write_text(broken)
        await until(lambda: sink.told)
        (problem,) = sink.told
        assert problem.file == "a.yaml"
        assert problem.line == line
        write(tmp_path / "b.yaml", pod("other"), config_map({"k": "2"}, name="other"))
        await until(lambda: sink.objects[other] == {"k": b"2"})
        assert sink.names == ["default/other", "default/web"]
        assert sink.objects[CONFIG] == {"k": b"1"}
        assert not sink.missing
        write(tmp_path / "a.yaml", pod(), config_map({"k": "3"}))
        await until(lambda: sink.objects[CONFIG] == {"k": b"3"})
        await until(lambda: not sink.told)
    assert not any(call.startswith("gone") for call in sink.calls)


async def test_one_invalid_document_keeps_the_whole_file(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}))
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    await source.refresh()
    write(tmp_path / "a.yaml", config_map({"k": "2"}), config_map({"..": "x"}, name="bad"))
    await source.refresh()
    assert sink.objects[CONFIG] == {"k": b"1"}
    assert [line for _, line, _ in sink.messages] == [19]


async def test_deleting_a_file_removes_what_it_held(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod(), config_map({"k": "1"}))
    write(tmp_path / "b.yaml", pod("other"))
    source = source_of(tmp_path, sink)
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects and sink.synced)
        (tmp_path / "a.yaml").unlink()
        await until(lambda: CONFIG in sink.missing)
        assert sink.names == ["default/other"]
        write(tmp_path / "a.yaml", config_map({"k": "1"}))
        await until(lambda: CONFIG not in sink.missing)


async def test_taking_a_document_out_of_a_file(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod(), pod("second"))
    source = source_of(tmp_path, sink)
    await source.refresh()
    write(tmp_path / "a.yaml", pod("second"))
    await source.refresh()
    assert sink.names == ["default/second"]


async def test_an_object_that_comes_late(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod())
    source = source_of(tmp_path, sink, Timing(rescan=60))
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: CONFIG in sink.missing)
        write(tmp_path / "b.yaml", config_map({"k": "1"}))
        await until(lambda: sink.objects.get(CONFIG) == {"k": b"1"})


async def test_editing_a_label_keeps_the_pods_uid(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod())
    source = source_of(tmp_path, sink)
    await source.refresh()
    (uid,) = sink.pods
    write(tmp_path / "a.yaml", pod(labels={"a": "b"}))
    await source.refresh()
    assert sink.pods[uid].metadata.labels == {"a": "b"}
    assert sink.calls.count("gone default/web") == 0


async def test_an_unchanged_pod_is_told_once(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod(resourceVersion="1"))
    source = source_of(tmp_path, sink)
    for _ in range(3):
        await source.refresh()
        os.utime(tmp_path / "a.yaml")
    assert sink.calls == ["pod default/web", "synced"]


async def test_the_same_name_in_two_files(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "b.yaml", pod(labels={"from": "b"}), config_map({"from": "b"}))
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    await source.refresh()
    write(tmp_path / "a.yaml", pod(labels={"from": "a"}), config_map({"from": "a"}))
    await source.refresh()
    assert [found.metadata.labels for found in sink.pods.values()] == [{"from": "a"}]
    assert sink.objects[CONFIG] == {"from": b"a"}
    assert sink.messages == [
        ("b.yaml", 1, "Pod default/web: the one of a.yaml counts"),
        ("b.yaml", 33, "ConfigMap/default/config: the one of a.yaml counts"),
    ]
    (tmp_path / "a.yaml").unlink()
    await source.refresh()
    assert [found.metadata.labels for found in sink.pods.values()] == [{"from": "b"}]
    assert sink.objects[CONFIG] == {"from": b"b"}
    assert sink.told == ()


async def test_the_same_uid_in_two_files(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", pod("one", uid="u"))
    write(tmp_path / "b.yaml", pod("two", uid="u"))
    source = source_of(tmp_path, sink)
    await source.refresh()
    assert sink.names == ["default/one"]
    assert sink.messages == [("b.yaml", 1, "Pod default/two: the one of a.yaml counts")]


async def test_immutable_objects(tmp_path: Path, sink: RecordingSink) -> None:
    path = tmp_path / "a.yaml"
    write(path, secret({"k": "1"}, immutable=True))
    source = source_of(tmp_path, sink)
    source.reference(CREDENTIALS)
    await source.refresh()
    assert sink.delivered[CREDENTIALS].immutable
    write(path, secret({"k": "2"}, immutable=True))
    await source.refresh()
    assert sink.objects[CREDENTIALS] == {"k": b"1"}
    assert [message for _, _, message in sink.messages] == [
        "Secret credentials: data: Forbidden: field is immutable when `immutable` is set"
    ]
    path.unlink()
    await source.refresh()
    write(path, secret({"k": "2"}, immutable=True))
    await source.refresh()
    assert sink.objects[CREDENTIALS] == {"k": b"2"}


async def test_redelivery(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}), secret({"p": "2"}))
    source = source_of(tmp_path, sink)
    for ref in (CONFIG, CREDENTIALS):
        source.reference(ref)
    await source.refresh()
    sink.objects.clear()
    async with running(source):
        await source.redeliver()
        await until(lambda: len(sink.objects) == 2)


async def test_a_server_that_is_gone_gets_it_later(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}))
    sink.server_gone = True
    source = source_of(tmp_path, sink)
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.calls.count(f"object {CONFIG}") > 1)
        sink.server_gone = False
        await until(lambda: CONFIG in sink.objects)


async def test_what_is_not_referenced_is_not_delivered(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "1"}))
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    await source.refresh()
    source.dereference(CONFIG)
    write(tmp_path / "a.yaml", config_map({"k": "2"}))
    await source.refresh()
    assert sink.objects[CONFIG] == {"k": b"1"}


async def test_a_secret_of_a_broken_file(tmp_path: Path, sink: RecordingSink) -> None:
    """Its values are not kept: who asks late is told why, and gets it when the file is mended, even if unchanged."""
    path = tmp_path / "a.yaml"
    good = secret({"p": "1"})
    good["metadata"]["resourceVersion"] = "7"
    write(path, good)
    source = source_of(tmp_path, sink)
    await source.refresh()
    path.write_text("{")
    source.reference(CREDENTIALS)
    await source.refresh()
    assert sink.failed == {CREDENTIALS: 'secret "credentials" cannot be had while its manifest a.yaml is invalid'}
    write(path, good)
    await source.refresh()
    assert sink.objects[CREDENTIALS] == {"p": b"1"}


async def test_a_changed_immutable_secret_asked_for_late(tmp_path: Path, sink: RecordingSink) -> None:
    path = tmp_path / "a.yaml"
    write(path, secret({"p": "1"}, immutable=True))
    source = source_of(tmp_path, sink)
    await source.refresh()
    write(path, secret({"p": "2"}, immutable=True))
    await source.refresh()
    source.reference(CREDENTIALS)
    await source.refresh()
    assert "is invalid" in sink.failed[CREDENTIALS]
    assert not sink.objects


async def test_broken_from_the_start(tmp_path: Path, sink: RecordingSink) -> None:
    """Nobody knows which Pods and objects the file holds: nothing may be torn down, nothing is said to be missing."""
    (tmp_path / "a.yaml").write_text("{")
    write(tmp_path / "b.yaml", pod())
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    await source.refresh()
    assert sink.names == ["default/web"]
    assert sink.synced == 0
    assert sink.missing == set()
    assert sink.failed == {CONFIG: 'configmap "config" not found in the manifests that could be read'}
    (tmp_path / "a.yaml").unlink()
    await source.refresh()
    assert sink.synced == 1
    assert sink.missing == {CONFIG}


async def test_no_directory(tmp_path: Path, sink: RecordingSink) -> None:
    directory = tmp_path / "manifests"
    source = source_of(directory, sink)
    with pytest.raises(SourceUnavailable, match="No such file or directory"):
        await source.refresh()
    async with running(source):
        await until(lambda: sink.told)
        assert sink.messages == [(str(directory), None, "the directory cannot be read: No such file or directory")]
        assert sink.synced == 0
        directory.mkdir()
        write(directory / "a.yaml", pod())
        await until(lambda: sink.synced)
        assert sink.names == ["default/web"]
        assert sink.told == ()


async def test_a_directory_that_goes_takes_nothing_with_it(tmp_path: Path, sink: RecordingSink) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(directory / "a.yaml", pod())
    source = source_of(directory, sink)
    async with running(source):
        await until(lambda: sink.synced)
        directory.rename(tmp_path / "elsewhere")
        await until(lambda: sink.told)
        assert sink.names == ["default/web"]
        directory.mkdir()
        write(directory / "b.yaml", pod("new"))
        await until(lambda: sink.names == ["default/new"])


async def test_an_empty_directory_is_synced(tmp_path: Path, sink: RecordingSink) -> None:
    await source_of(tmp_path, sink).refresh()
    assert sink.calls == ["synced"]


async def test_a_mounted_config_map_as_the_directory(tmp_path: Path, sink: RecordingSink) -> None:
    """kubelet's own layout: links through `..data`, which is renamed."""
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        write(tmp_path / f"..{version}" / "a.yaml", config_map({"k": version}))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    source = source_of(tmp_path, sink, Timing(rescan=60))
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects.get(CONFIG) == {"k": b"1"})
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await until(lambda: sink.objects[CONFIG] == {"k": b"2"})
    assert sink.told == ()


async def test_a_link_that_leads_nowhere(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "b.yaml", pod())
    (tmp_path / "a.yaml").symlink_to("nowhere")
    source = source_of(tmp_path, sink)
    async with running(source):
        await until(lambda: sink.told)
        assert sink.messages == [("a.yaml", None, "a link that leads nowhere")]
        assert sink.synced == 0
        (tmp_path / "a.yaml").unlink()
        await until(lambda: sink.synced and not sink.told)


async def test_what_links_lead_to_is_looked_at_regularly(tmp_path: Path, sink: RecordingSink) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    write(tmp_path / "real.yaml", config_map({"k": "1"}))
    (directory / "a.yaml").symlink_to(tmp_path / "real.yaml")
    source = source_of(directory, sink)
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects)
        write(tmp_path / "real.yaml", config_map({"k": "2"}))
        await until(lambda: sink.objects[CONFIG] == {"k": b"2"})


async def test_the_node_is_this_machine(tmp_path: Path, sink: RecordingSink) -> None:
    source = source_of(tmp_path, sink)
    other = node_ref("other")
    source.reference(node_ref("node1"))
    source.reference(other)
    await source.refresh()
    assert sink.delivered[node_ref("node1")].literals == ALLOCATABLE
    assert sink.missing == {other}


async def test_a_node_manifest(tmp_path: Path, sink: RecordingSink) -> None:
    status = {"allocatable": {"cpu": "3"}}
    write(tmp_path / "n.yaml", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "status": status})
    source = source_of(tmp_path, sink)
    source.reference(node_ref("node1"))
    await source.refresh()
    assert sink.delivered[node_ref("node1")].literals == {**ALLOCATABLE, "cpu": "3"}


async def test_what_only_a_cluster_has(tmp_path: Path, sink: RecordingSink) -> None:
    token = token_ref("default", TokenSpec("default", "", 3600, "web", "u"))
    bundle = ObjectRef(CLUSTER_TRUST_BUNDLE, "", "roots")
    source = source_of(tmp_path, sink)
    source.reference(token)
    source.reference(bundle)
    await source.refresh()
    assert sink.failed == {
        token: "failed to fetch token: cannot use TokenManager when kubelet is in standalone mode",
        bundle: "ClusterTrustBundle projection is not supported in static kubelet mode",
    }


async def test_pods_of_any_node_are_the_directorys(tmp_path: Path, sink: RecordingSink) -> None:
    manifest = pod()
    manifest["spec"]["nodeName"] = "another"
    write(tmp_path / "a.yaml", manifest)
    await source_of(tmp_path, sink).refresh()
    assert sink.names == ["default/web"]


async def test_large_objects_and_many_keys(tmp_path: Path, sink: RecordingSink) -> None:
    large = {"large": "x" * 1048576}
    many = {f"key-{number}": str(number) for number in range(300)}
    write(tmp_path / "a.yaml", config_map(large), secret(many))
    source = source_of(tmp_path, sink)
    source.reference(CONFIG)
    source.reference(CREDENTIALS)
    await source.refresh()
    assert sink.told == ()
    assert len(sink.objects[CONFIG]["large"]) == 1048576
    assert sink.objects[CREDENTIALS] == {key: value.encode() for key, value in many.items()}


async def test_refresh_tells_of_what_has_just_been_written(tmp_path: Path, sink: RecordingSink) -> None:
    """The barrier: no event is waited for."""
    source = source_of(tmp_path, sink, Timing(rescan=60))
    source.reference(CONFIG)
    for number in range(20):
        write(tmp_path / "a.yaml", config_map({"k": str(number)}))
        await source.refresh()
        assert sink.objects[CONFIG] == {"k": str(number).encode()}


async def test_refresh_and_run_together(tmp_path: Path, sink: RecordingSink) -> None:
    source = source_of(tmp_path, sink)
    async with running(source):
        source.reference(CONFIG)
        for number in range(20):
            write(tmp_path / "a.yaml", config_map({"k": str(number)}))
            await source.refresh()
            assert sink.objects[CONFIG] == {"k": str(number).encode()}


async def test_an_update_is_delivered_within_a_moment(tmp_path: Path, sink: RecordingSink) -> None:
    write(tmp_path / "a.yaml", config_map({"k": "0"}))
    source = source_of(tmp_path, sink, Timing(rescan=60))
    async with running(source):
        source.reference(CONFIG)
        await until(lambda: sink.objects)
        await trio.sleep(0.2)
        write(tmp_path / "a.yaml", config_map({"k": "1"}))
        await until(lambda: sink.objects[CONFIG] == {"k": b"1"}, seconds=1)


async def test_stopping_is_quick(tmp_path: Path, sink: RecordingSink) -> None:
    source = source_of(tmp_path, sink)
    with trio.fail_after(3):
        async with running(source):
            await until(lambda: sink.synced)
            started = trio.current_time()
    assert trio.current_time() - started < 0.5
