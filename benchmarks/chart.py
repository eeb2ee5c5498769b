"""Figures as horizontal bars in an SVG file: what was measured, its target, and kubelet's number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.report import Figure, quantity

WIDTH, LABELS, RIGHT = 900, 330, 90  # pixels: whole, left of the bars, right of them for numbers
ROW, BAR, HEAD, GAP = 44, 14, 34, 30
MEASURED, KUBELET, TARGET, TEXT, FAINT = "#2b6cb0", "#b7bec8", "#c05621", "#1a202c", "#718096"


def write(path: Path, title: str, figures: Sequence[Figure]) -> None:
    """Only figures that have something to be compared with are drawn, those of each unit on one scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(title, [figure for figure in figures if figure.target or figure.kubelet]))


def render(title: str, figures: Sequence[Figure]) -> str:
    """The SVG. Times have a logarithmic scale, everything else a linear one that begins at 0."""
    y, body = 86, []
    for unit in dict.fromkeys(figure.unit for figure in figures):
        group = [figure for figure in figures if figure.unit == unit]
        heading = "time, logarithmic" if unit == "ms" else unit
        body.append(_text(LABELS, y - 8, heading, FAINT, 12))
        for figure in group:
            body += _bars(figure, y, _scale(group, logarithmic=unit == "ms"))
            y += ROW
        y += GAP
    height = y - GAP + 10
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' font-family="system-ui, sans-serif">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(20, HEAD, title, TEXT, 18),
            *_legend(HEAD + 22),
            *body,
            "</svg>",
            "",
        ]
    )


class _Scale:
    def __init__(self, low: float, high: float, *, logarithmic: bool) -> None:
        self._map = math.log10 if logarithmic else float
        self._low, self._high = self._map(low), self._map(high)

    def __call__(self, value: float) -> float:
        """The bar's length in pixels, one at least."""
        share = (self._map(value) - self._low) / (self._high - self._low) if value > 0 else 0.0
        return max(1.0, share * (WIDTH - LABELS - RIGHT))


def _scale(figures: Sequence[Figure], *, logarithmic: bool) -> _Scale:
    values = [value for f in figures for value in (f.value, f.target, f.kubelet) if value]
    low = 10 ** math.floor(math.log10(min(values)) - 0.01) if logarithmic else 0.0
    return _Scale(low, max(values), logarithmic=logarithmic)


def _bars(figure: Figure, y: int, scale: _Scale) -> list[str]:
    drawn = [_text(LABELS - 12, y + BAR + 4, figure.name, TEXT, 12, anchor="end")]
    for value, color, top in ((figure.value, MEASURED, y), (figure.kubelet, KUBELET, y + BAR + 1)):
        if value is not None:
            length = scale(value)
            drawn.append(f'<rect x="{LABELS}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{color}"/>')
            drawn.append(_text(LABELS + length + 6, top + BAR - 3, quantity(value, figure.unit), TEXT, 11))
    if figure.target is not None:
        x = LABELS + scale(figure.target)
        drawn.append(_line(x, y - 3, y + BAR + 3))
    return drawn


def _legend(y: int) -> list[str]:
    entries, x = [], 20.0
    for color, words in ((MEASURED, "fusevol"), (KUBELET, "kubelet 1.36")):
        entries += [
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}"/>',
            _text(x + 18, y, words, TEXT, 12),
        ]
        x += 40 + 7 * len(words)
    return [*entries, _line(x + 6, y - 11, y + 3), _text(x + 18, y, "target: at most", TEXT, 12)]


def _line(x: float, top: float, bottom: float) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{TARGET}" stroke-width="2"/>'


def _text(x: float, y: float, words: str, color: str, size: int, *, anchor: str = "start") -> str:
    words = escape(words.replace("->", "→"))
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{words}</text>'
