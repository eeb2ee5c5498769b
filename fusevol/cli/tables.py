"""Tables: drawn on a terminal, plain aligned columns where a program reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

Table = tuple[list[str], list[list[str]]]
"""Heads and rows."""


def print_tables(summary: str, tables: Iterable[Table], stream: TextIO) -> None:
    """A line, then each table after an empty line."""
    draw = _draw if stream.isatty() else _align
    print(summary, file=stream)
    for heads, rows in tables:
        print(file=stream)
        draw(heads, rows, stream)


def _align(heads: list[str], rows: list[list[str]], stream: TextIO) -> None:
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=stream)


def _draw(heads: list[str], rows: list[list[str]], stream: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(*heads, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # Text: names are shown as they are, brackets are no markup
        table.add_row(*map(Text, row))
    Console(file=stream).print(table)
