"""Figures, the table of them, and their JSON."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Direction = Literal["at least", "at most"]


@dataclass(slots=True)
class Figure:
    """One measured figure: the median of `runs`. `verified` of `expected` readings were found in the database
    afterwards; where those differ the figure counts for nothing. `is_later`: its goal is a later issue's."""

    row: str
    what: str
    unit: str
    runs: list[float]
    goal: float | None = None
    direction: Direction = "at least"
    is_later: bool = False
    ratio: float | None = None
    ratio_to: str = ""
    verified: int | None = None
    expected: int | None = None
    fault: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> float:
        return statistics.median(self.runs) if self.runs else 0.0

    @property
    def is_sound(self) -> bool:
        return not self.fault and self.verified == self.expected

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if not self.is_sound:
            return False
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.direction == "at least" else self.figure <= self.goal

    @property
    def word(self) -> str:
        if not self.is_sound:
            return "FAILED"
        met = self.is_met
        return "" if met is None else "met" if met else "not met"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"figure": self.figure, "is_met": self.is_met, "is_sound": self.is_sound}


def number(value: float) -> str:
    """Three or four digits that matter."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines_of(figure: Figure) -> list[str]:
    """What a row prints when it is done."""
    spread = ""
    if len(figure.runs) > 1:
        spread = f"  (runs {', '.join(number(run) for run in figure.runs)})"
    lines = [f"  {figure.what}: {number(figure.figure)} {figure.unit}{spread}"]
    if figure.ratio is not None:
        lines.append(f"    {figure.ratio:.2f} of {figure.ratio_to}")
    if figure.expected is not None:
        lines.append(f"    verified in the database: {figure.verified:,} of {figure.expected:,}")
    for name, value in figure.details.items():
        shown = number(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        lines.append(f"    {name}: {shown}")
    if not figure.is_sound:
        lines.append(f"    FAILED: {figure.fault or 'what was sent is not what is stored'}")
    return lines


def table(figures: Sequence[Figure]) -> list[str]:
    """Goal, figure, ratio, met or not."""
    rows = [("row", "what", "goal", "figure", "ratio", "verified", "")]
    for f in figures:
        sign = "≥" if f.direction == "at least" else "≤"
        goal = "" if f.goal is None else f"{sign} {number(f.goal)}{' *' if f.is_later else ''}"
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        verified = "" if f.verified is None else f"{f.verified:,}"
        rows.append((f.row, f.what, goal, f"{number(f.figure)} {f.unit}", ratio, verified, f.word))
    widths = [max(_width(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for place, row in enumerate(rows):
        lines.append("  ".join(_pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if place == 0:
            lines.append("  ".join("-" * width for width in widths))
    if any(f.is_later and f.goal is not None for f in figures):
        lines.append("* the goal of a later issue")
    return lines


def _width(cell: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in cell)


def _pad(cell: str, width: int) -> str:
    return cell + " " * (width - _width(cell))
