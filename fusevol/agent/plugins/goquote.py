"""Go's strconv.Quote: how kubelet writes the values of labels and annotations, and names in its messages."""

from __future__ import annotations

_ESCAPES = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    "\\": r"\\",
    '"': r"\"",
}


def quote(text: str) -> str:
    """`text` as a Go string literal: printable characters of any script are kept, others escaped.

    Go and Python share the definition of printable (letters, marks, numbers, punctuation, symbols and the ASCII
    space) and differ only in characters that one of their Unicode tables does not have yet. A lone surrogate, which a
    Go string cannot hold, is U+FFFD as in Go's JSON decoder.
    """
    return '"' + "".join(map(_quoted, text)) + '"'


def _quoted(character: str) -> str:
    escape = _ESCAPES.get(character)
    if escape is not None:
        return escape
    if character.isprintable():
        return character
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return "�"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"
