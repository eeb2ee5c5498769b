"""YAML and JSON as plain values that know their lines.

Scalars are read as Kubernetes reads them (sigs.k8s.io/yaml): YAML 1.1's booleans and octal numbers (`0644`, and
`0o644`), but neither timestamps nor base-60 numbers. Messages never quote the text: it may be a Secret's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

Path = tuple[str | int, ...]
"""From a document's root: `("spec", "volumes", 0, "name")`."""

MAX_NODES = 200_000
"""Nodes of a file after aliases are followed: a bound on what a few lines of anchors can grow to."""

MAX_DEPTH = 100

MAX_NUMBER = 1000
"""Characters of a number: no field takes a longer one, and reading one takes long or is refused by Python."""

_INT = re.compile(r"[-+]?(0b_*[01][01_]*|0o_*[0-7][0-7_]*|0[0-7_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLEANS = {
    word: value
    for words, value in (("y yes true on", True), ("n no false off", False))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it

_STRING_TAGS = ("tag:yaml.org,2002:str", "!")
_FOREIGN_TAGS = ("tag:yaml.org,2002:binary", "tag:yaml.org,2002:timestamp")
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\.", re.DOTALL)


class Malformed(Exception):
    """Not YAML, or more of it than is allowed; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class Document(msgspec.Struct, frozen=True):
    """One document, or one item of a List. `lines` has the line of every value by its path, where the document's own
    root stands at `root`."""

    value: Any
    lines: dict[Path, int]
    root: Path = ()

    def line(self, path: Path = ()) -> int:
        """The line of the value at `path`, or of the nearest parent that the document has."""
        path = (*self.root, *path)
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def __repr__(self) -> str:
        return f"<document at line {self.line()}>"


def parse(data: bytes, json: bool = False) -> list[Document]:
    """All documents that are not empty. Raises Malformed."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    if json:
        text = _as_flow(text)
    try:
        return list(_Composer(yaml.parse(text, _LOADER)).documents())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # libyaml puts what is missing at the end behind the last line
        line = min(mark.line, text.rstrip("\n").count("\n")) + 1 if mark else 1
        raise Malformed(_harmless(error.problem), line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise Malformed("a character that YAML does not allow", line) from None
    except RecursionError:
        raise Malformed("nested too deeply", 1) from None


def items_of(document: Document) -> Iterator[Document]:
    """The document itself, or what it lists if it is a List (`List`, `ConfigMapList`, ...)."""
    value = document.value
    listed = isinstance(value, dict) and str(value.get("kind", "")).endswith("List")
    items = value.get("items") if listed else None
    if not isinstance(items, list):
        yield document
        return
    for index, item in enumerate(items):
        yield from items_of(Document(item, document.lines, (*document.root, "items", index)))


class _Node:
    """A value before aliases are followed: a scalar, a list of nodes, or a list of pairs of nodes."""

    __slots__ = ("line", "value")

    def __init__(self, line: int, value: Any) -> None:
        self.line = line
        self.value = value


class _Pairs(list[tuple[_Node, _Node]]):
    """The content of a mapping."""


class _Merge:
    """The key `<<`."""


class _Composer:
    """Makes values of the parser's events. libyaml's own composer would overflow the C stack on deep nesting."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._nodes = MAX_NODES  # that may still be made of this file
        self._anchors: dict[str, _Node] = {}
        self._lines: dict[Path, int] = {}

    def documents(self) -> Iterator[Document]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors, self._lines = {}, {}
                value = self._value(self._node(next(self._events), 0), ())
                if value is not None:
                    yield Document(value, self._lines)

    def _node(self, event: Any, depth: int) -> _Node:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise Malformed("nested too deeply", line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise Malformed("an alias of an anchor that is not there", line)
            return self._anchors[event.anchor]
        node = _Node(line, self._content(event, line, depth))
        if event.anchor is not None:
            # only now: an alias within what it names would have no end
            self._anchors[event.anchor] = node
        return node

    def _content(self, event: Any, line: int, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, line)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return items
        pairs = _Pairs()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            pairs.append((key, self._node(next(self._events), depth + 1)))
        return pairs

    def _spend(self, node: _Node) -> None:
        self._nodes -= 1
        if self._nodes < 0:
            raise Malformed(f"more than {MAX_NODES} values", node.line)

    def _value(self, node: _Node, path: Path) -> Any:
        self._spend(node)
        if len(path) > MAX_DEPTH:
            raise Malformed("nested too deeply", node.line)
        self._lines.setdefault(path, node.line)
        if isinstance(node.value, _Pairs):
            return self._mapping(node.value, path)
        if isinstance(node.value, list):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return None if node.value is _Merge else node.value

    def _mapping(self, pairs: _Pairs, path: Path) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in pairs:
            if key_node.value is _Merge:
                merged = {**self._merged(value_node, path), **merged}
                continue
            key = _key(key_node)
            if key in own:
                raise Malformed("the same key twice in one mapping", key_node.line)
            self._lines[*path, key] = key_node.line
            own[key] = self._value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: _Node, path: Path) -> dict[str, Any]:
        """`<<: *anchor`, or a list of them: earlier ones win, the mapping's own keys most of all."""
        self._spend(node)
        if isinstance(node.value, _Pairs):
            return self._mapping(node.value, path)
        if not isinstance(node.value, list):
            raise Malformed("a merge of what is not a mapping", node.line)
        merged: dict[str, Any] = {}
        for item in node.value:
            merged = {**self._merged(item, path), **merged}
        return merged


def _scalar(event: Any, line: int) -> Any:
    text = str(event.value)
    if event.tag in _FOREIGN_TAGS:
        raise Malformed("a tag that Kubernetes does not know", line)
    if event.style or event.tag in _STRING_TAGS:
        return text
    if text == "<<":
        return _Merge
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INT.fullmatch(text):
        return _integer(_bounded(text, line))
    if _FLOAT.fullmatch(text):
        return float(_bounded(text, line))
    if _SPECIAL_FLOAT.fullmatch(text):
        return math.nan if text.lower() == ".nan" else math.copysign(math.inf, -1 if text.startswith("-") else 1)
    return text


def _key(node: _Node) -> str:
    """JSON's keys are strings: `on` is "true" and `0644` is "420", as sigs.k8s.io/yaml has it."""
    if isinstance(node.value, bool):
        return "true" if node.value else "false"
    if isinstance(node.value, str | int | float):
        return str(node.value)
    raise Malformed("a key that is not a string", node.line)


def _bounded(text: str, line: int) -> str:
    if len(text) > MAX_NUMBER:
        raise Malformed(f"a number of more than {MAX_NUMBER} characters", line)
    return text


def _integer(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-").replace("_", "")
    for prefix, base in (("0b", 2), ("0x", 16), ("0o", 8)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits, 8 if digits.startswith("0") else 10)


def _as_flow(text: str) -> str:
    """JSON as the YAML it nearly is: tabs (never inside JSON's strings) are spaces, and escaped surrogates one
    character."""

    def joined(match: re.Match[str]) -> str:
        high, low = match.groups()
        if high is None:
            return match[0]
        return f"\\U{0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00):08x}"

    return _SURROGATES.sub(joined, text.replace("\t", " "))


def _harmless(problem: str | None) -> str:
    """The parser's message without what it quotes of the file."""
    said = re.sub(r"'[^']*'|\"[^\"]*\"", "…", problem or "").strip()
    return f"not valid YAML: {said}" if said else "not valid YAML"
