"""strconv.Quote, with values printed by Go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.plugins.goquote import quote


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("plain", '"plain"'),
        ('a"b', r'"a\"b"'),
        ("a'b", '"a\'b"'),
        ("back\\slash", r'"back\\slash"'),
        ("\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        ("\x00\x1b\x7f", r'"\x00\x1b\x7f"'),
        ("grüße, мир, 世界", '"grüße, мир, 世界"'),
        ("emoji 😀", '"emoji 😀"'),
        ("no-break\u00a0space", r'"no-break\u00a0space"'),
        ("soft\u00adhyphen", r'"soft\u00adhyphen"'),
        ("\u200b\u2028\ufeff", r'"\u200b\u2028\ufeff"'),
        ("\u0301", '"\u0301"'),
        ("\u3000", r'"\u3000"'),
        ("\x80", r'"\u0080"'),
        ("\ue000", r'"\ue000"'),
        ("\U000e0001", r'"\U000e0001"'),
        ("\U0010ffff", r'"\U0010ffff"'),
        ("\ufffd", '"\ufffd"'),
    ],
)
def test_quote(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_a_lone_surrogate_is_the_replacement_character() -> None:
    assert quote("\ud800") == quote("\ufffd")


@given(st.text())
def test_one_line_and_reversible(text: str) -> None:
    quoted = quote(text)
    assert quoted.isprintable()
    # all of Go's escapes are Python's
    assert eval(quoted) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
