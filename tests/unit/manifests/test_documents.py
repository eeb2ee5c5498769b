"""YAML as Kubernetes reads it, with lines, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.sources.manifests.documents import MAX_NODES, Malformed, items_of, parse


def only(text: str, **options: bool) -> Any:
    (document,) = parse(text.encode(), **options)
    return document.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0644", 420),
        ("0o644", 420),
        ("420", 420),
        ("0x1ff", 511),
        ("0b11", 3),
        ("0x_f_", 15),
        ("0_", 0),
        ("0x_", "0x_"),
        ("0o_", "0o_"),
        ("0b_", "0b_"),
        ("-0x_", "-0x_"),
        ("-5", -5),
        ("1_000", 1000),
        ("08", 8.0),
        ("'0644'", "0644"),
        ("!!str 0644", "0644"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("yes", True),
        ("Off", False),
        ("y", True),
        ("true", True),
        ("'yes'", "yes"),
        ("~", None),
        ("", None),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("=", "="),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("schlüssel 😀", "schlüssel 😀"),
    ],
)
def test_values(written: str, value: Any) -> None:
    assert only(f"k: {written}") == {"k": value}


def test_keys_are_strings() -> None:
    assert only("on: 1\n0644: 2\n'on': 3\n") == {"true": 1, "420": 2, "on": 3}


def test_long_numbers() -> None:
    assert only(f"k: {'9' * 1000}") == {"k": 10**1000 - 1}
    assert only(f"k: '{'9' * 5000}'") == {"k": "9" * 5000}
    for text in (f"b: {'9' * 1001}", f"b: -0x{'f' * 5000}", f"b: 1.{'0' * 5000}", f"0x{'f' * 1000}: b"):
        with pytest.raises(Malformed, match=r"^a number of more than 1000 characters$") as caught:
            parse(f"a: 1\n{text}".encode())
        assert caught.value.line == 2


def test_anchors_and_merges() -> None:
    text = "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\nmerged:\n  a: 9\n  <<: [*base, *other]\nsame: *base\n"
    value = only(text)
    assert value["merged"] == {"a": 9, "b": 2, "c": 4}
    assert value["same"] == {"a": 1, "b": 2}


def test_lines() -> None:
    text = "# comment\na: 1\nb:\n  - x\n  - c:\n      d: 2\n---\n\ne:\n  5\n"
    first, second = parse(text.encode())
    assert [first.line(path) for path in ((), ("a",), ("b",), ("b", 0), ("b", 1, "c", "d"))] == [2, 2, 3, 4, 6]
    assert first.line(("b", 1, "nosuch", "deeper")) == 5
    assert second.line(("e",)) == 9


def test_lists_have_items_with_their_own_paths() -> None:
    text = "kind: List\nitems:\n- kind: A\n  x: 1\n- kind: BList\n  items:\n  - kind: B\n    z: 2\n"
    items = list(items_of(parse(text.encode())[0]))
    assert [item.value["kind"] for item in items] == ["A", "B"]
    assert [items[0].line(("x",)), items[1].line(), items[1].line(("z",))] == [4, 7, 8]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [\n\n", 2, "not valid YAML: did not find expected node content"),
        ("a: b\n c: d\n", 2, "not valid YAML: mapping values are not allowed in this context"),
        ("a: 1\nb: *hidden\n", 2, "an alias of an anchor that is not there"),
        ("a: 1\na: 2\n", 2, "the same key twice in one mapping"),
        ("a: \x01\n", 1, "a character that YAML does not allow"),
        ("a: !!binary aGk=\n", 1, "a tag that Kubernetes does not know"),
        ("? [x]\n: 1\n", 1, "a key that is not a string"),
        ("&a [*a]", 1, "an alias of an anchor that is not there"),
        ("a: &a\n  <<: *a\n", 2, "an alias of an anchor that is not there"),
        ("a:\n  <<: 5\n", 2, "a merge of what is not a mapping"),
    ],
)
def test_malformed(text: str, line: int, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(text.encode())
    assert (str(caught.value), caught.value.line) == (message, line)


def test_not_utf8() -> None:
    with pytest.raises(Malformed, match=r"^not UTF-8$") as caught:
        parse(b"a: 1\nb: \xff\n")
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["[", "- ", "{a: ", "? "])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="nested too deeply"):
        parse(text.encode() * 100_000)


def test_aliases_cannot_grow_without_bound() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]"
        for previous, name in zip("abcdefg", "bcdefgh", strict=True)
    ]
    with pytest.raises(Malformed, match=f"more than {MAX_NODES} values"):
        parse("\n".join(lines).encode())
    merges = ["a: &a {}"] + [
        f"{name}: &{name} {{<<: [{', '.join([f'*{previous}'] * 10)}]}}"
        for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(Malformed, match=f"more than {MAX_NODES} values"):
        parse("\n".join(merges).encode())


@pytest.mark.parametrize(
    "text",
    [
        "password: *hunter2",
        "password: !<hunter2 x",
        "'hunter2",
        '"\\qhunter2"',
        "a: b: hunter2",
        "hunter2: 1\nhunter2: 2",
    ],
)
def test_messages_do_not_quote_the_file(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(text.encode())
    assert "hunter2" not in str(caught.value)


def test_tabs_and_surrogates_of_json() -> None:
    assert only('{\n\t"a": "\\ud83d\\ude00 \\\\ud83d\\n",\n\t"b": [1, 2.5e3, null]}', json=True) == {
        "a": "😀 \\ud83d\n",
        "b": [1, 2500.0, None],
    }


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON, st.sampled_from([None, 2, "\t"]))
def test_json_is_read_as_json(value: Any, indent: int | str | None) -> None:
    assert only(json.dumps({"k": value}, indent=indent), json=True) == {"k": value}


def test_nothing() -> None:
    assert parse(b"") == []
    assert parse(b"# only a comment\n---\n---\n~\n") == []
