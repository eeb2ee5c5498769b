from __future__ import annotations

import io

from fusevol.cli.tables import print_tables


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROWS = [["default/web", "[config]", "ok"], ["kube-system/a-longer-name", "x", ""]]


def test_for_programs_columns_are_aligned() -> None:
    stream = io.StringIO()
    print_tables("summary", [(["POD", "VOLUME", "ERROR"], ROWS)], stream)
    assert stream.getvalue() == (
        "summary\n"
        "\n"
        "POD                        VOLUME    ERROR\n"
        "default/web                [config]  ok\n"
        "kube-system/a-longer-name  x\n"
    )


def test_an_empty_table_has_its_heads() -> None:
    stream = io.StringIO()
    print_tables("summary", [(["POD", "VOLUME"], [])], stream)
    assert stream.getvalue() == "summary\n\nPOD  VOLUME\n"


def test_on_a_terminal_names_are_not_taken_for_markup() -> None:
    stream = Terminal()
    print_tables("summary", [(["POD", "VOLUME", "ERROR"], ROWS)], stream)
    assert "[config]" in stream.getvalue()
    assert "─" in stream.getvalue()
