"""The plan of an update: kubelet's order, and completion of whatever was interrupted."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.publisher.atomic_writer import Step, directory_name, plan_finish, plan_update
from fusevol.model.tree import File, Literal, Tree
from fusevol.model.volume import VolumeView

OLD, NEW = "..2026_11_22_19_35_31.3068194639", "..2026_11_22_19_35_35.4203523368"


def tree(*paths: str) -> Tree:
    return Tree(tuple(File(path, 0o644, Literal(b"")) for path in paths))


def test_an_update_makes_kubelets_calls_in_kubelets_order() -> None:
    view = VolumeView(
        data=OLD, data_tmp=None, directories={OLD: ("a", "gone")}, links=("a", "gone"), current_links=("a", "gone")
    )
    update = plan_update(view, NEW, tree("a", "added"))
    assert update.steps == [
        Step("mkdir", NEW),
        Step("chmod", NEW, 0o755),
        Step("symlink", "..data_tmp", NEW),
        Step("rename", "..data_tmp", "..data"),
        Step("symlink", "added", "..data/added"),
        Step("unlink", "gone"),
    ]
    assert update.removals == {OLD: [Step("unlink", f"{OLD}/a"), Step("unlink", f"{OLD}/gone"), Step("rmdir", OLD)]}


def test_directories_are_removed_after_what_is_in_them() -> None:
    view = VolumeView(
        data=OLD,
        data_tmp=None,
        directories={OLD: ("d/", "d/e/", "d/e/f", "a")},
        links=("a", "d"),
        current_links=("a", "d"),
    )
    (steps,) = plan_update(view, NEW, tree("a")).removals.values()
    assert [step.path.removeprefix(OLD) for step in steps] == ["/d/e/f", "/d/e", "/a", "/d", ""]


def test_a_leftover_temporary_link_does_not_block_the_update() -> None:
    view = VolumeView(
        data=OLD, data_tmp=NEW, directories={OLD: ("a",), NEW: ("a",)}, links=("a",), current_links=("a",)
    )
    third = "..2026_11_22_19_36_00.1"
    update = plan_update(view, third, tree("a"))
    assert update.steps[0] == Step("unlink", "..data_tmp")
    assert set(update.removals) == {OLD, NEW}


def test_nothing_to_do_is_nothing_done() -> None:
    view = VolumeView(data=OLD, data_tmp=None, directories={OLD: ("a",)}, links=("a",), current_links=("a",))
    assert plan_update(view, OLD, tree("a")) == ([], {})


def test_the_name_of_a_version_is_utc_and_random_digits() -> None:
    assert directory_name(datetime(2026, 11, 22, 19, 35, 31, tzinfo=UTC), 3068194639) == OLD


def test_finishing_makes_the_current_versions_links_and_removes_what_it_replaced() -> None:
    view = VolumeView(
        data=NEW, data_tmp=OLD, directories={OLD: ("a",), NEW: ("b",)}, links=("a",), current_links=("b",)
    )
    update = plan_finish(view)
    assert update.steps == [Step("unlink", "..data_tmp"), Step("symlink", "b", "..data/b"), Step("unlink", "a")]
    assert set(update.removals) == {OLD}


KEYS = st.sampled_from(["a", "b", "c", "d/x", "d/y", "e/f/g"])


def apply(root: dict, steps: list[Step], staged: dict[str, set[str]]) -> None:
    """What the server does with the calls: a directory arrives with its files."""
    for step in steps:
        if step.call == "mkdir":
            root["dirs"][step.path] = set(staged[step.path])
        elif step.call == "symlink":
            assert step.path not in root["links"]
            root["links"][step.path] = step.argument
        elif step.call == "rename":
            root["links"][step.argument] = root["links"].pop(step.path)
        elif step.call == "unlink" and "/" not in step.path:
            del root["links"][step.path]
        elif step.call == "rmdir" and "/" not in step.path:
            del root["dirs"][step.path]


def view_of(root: dict) -> VolumeView:
    links = dict(root["links"])
    data, tmp = links.pop("..data", None), links.pop("..data_tmp", None)
    return VolumeView(data, tmp, {name: tuple(sorted(files)) for name, files in root["dirs"].items()}, tuple(links), ())


@given(st.lists(st.tuples(st.sets(KEYS), st.integers(0, 12)), min_size=1, max_size=5), st.sets(KEYS))
def test_whatever_was_interrupted_the_next_update_completes(
    interrupted: list[tuple[set[str], int]], last: set[str]
) -> None:
    root: dict = {"dirs": {}, "links": {}}
    staged: dict[str, set[str]] = {}
    for number, (keys, done) in enumerate(interrupted):
        name = staged_name = f"..v{number}"
        staged[staged_name] = keys
        steps = plan_update(view_of(root), name, tree(*keys)).steps
        before = root["links"].get("..data")
        apply(root, steps[:done], staged)
        assert root["links"].get("..data") in (before, name)
    staged["..last"] = last
    update = plan_update(view_of(root), "..last", tree(*last))
    apply(root, update.steps, staged)
    for steps in update.removals.values():
        apply(root, steps, staged)
    assert root["dirs"] == {"..last": last}
    tops = {path.split("/")[0] for path in last}
    assert root["links"] == {"..data": "..last"} | {top: f"..data/{top}" for top in tops}
    assert plan_update(view_of(root), "..last", tree(*last)) == ([], {})
