"""A bench's result: printed with machine and method, written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number. `target` is the most it may be, `kubelet` what a kubelet was measured at (same unit)."""

    name: str
    value: float
    unit: str
    target: float | None = None
    kubelet: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        return None if self.target is None else self.value <= self.target


@dataclass(slots=True)
class Report:
    """All that a bench found. `samples` are the single measurements, by name; `notes` say what the table cannot."""

    bench: str
    machine: dict[str, str]
    method: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether no target is missed."""
        return all(figure.met is not False for figure in self.figures)

    def text(self) -> str:
        machine = [f"  {name + ':':13}{words}" for name, words in self.machine.items()]
        rows = [("figure", "measured", "target", "", "kubelet 1.36"), *map(_row, self.figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:<{widths[3]}}"
            f"  {row[4]:>{widths[4]}}"
            for row in rows
        ]
        table.insert(1, "  " + "-" * (len(table[0]) - 2))
        sections = [["Machine", *machine], ["Method", *_indented(self.method)], ["Figures", *table]]
        if self.notes:
            sections.append(["Notes", *_indented(self.notes)])
        return "\n\n".join("\n".join(section) for section in sections)

    def write(self, path: Path) -> None:
        """As JSON: units are in the figures, samples are in milliseconds."""
        result = {
            "bench": self.bench,
            "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "machine": self.machine,
            "method": self.method,
            "figures": [{**asdict(figure), "met": figure.met} for figure in self.figures],
            "notes": self.notes,
            "samples": {name: [round(value, 3) for value in values] for name, values in self.samples.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def quantity(value: float, unit: str) -> str:
    """For people: 0.42 ms, 9.1 ms, 192 ms, 48.8 s."""
    if unit == "ms" and value >= 10_000:
        value, unit = value / 1000, "s"
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f} {unit}"


def _row(figure: Figure) -> tuple[str, str, str, str, str]:
    def words(value: float | None) -> str:
        return "" if value is None else quantity(value, figure.unit)

    verdict = {None: "", True: "ok", False: "short"}[figure.met]
    target = f"<= {words(figure.target)}" if figure.target is not None else ""
    return figure.name, words(figure.value), target, verdict, words(figure.kubelet)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
