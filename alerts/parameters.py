"""What a detector takes from a rule beside the fields that several share: one entry a detector, read strictly.

An entry's `read` is given the rule's reader, asks it for the fields and reports what is wrong there; what it returns is
frozen, and equal for two rules if and only if they judge alike in this respect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from alerts.composition import read_composite, read_count
from twin.model import Level, Micros


class Reader(Protocol):
    """What reading a rule's table offers; each mistake is noted with the rule's place, and reading goes on."""

    table: dict[str, Any]

    def wrong(self, name: str, text: str) -> None: ...

    def text(self, name: str, *, required: bool = False) -> str: ...

    def number(self, name: str) -> float | None: ...

    def flag(self, name: str, default: bool) -> bool: ...

    def as_duration(self, name: str, value: object) -> Micros:
        """µs of a value that stands at `name`, 0 or more."""
        ...

    def duration(self, name: str, *, required: bool = False, most: Micros = ...) -> Micros | None:
        """µs above 0; None where the field is not there."""
        ...


class Parameters(Protocol):
    """A detector's own part of a rule."""

    @property
    def memory(self) -> Micros:
        """The span of readings before a moment that tells, with the level open at its start, how a watch stands."""
        ...


@dataclass(frozen=True, slots=True)
class Takes:
    """What a detector takes: its own fields, whether it has `side`, `strict` and `levels` (else one `level`, by default
    `level`), `hold`, `clear` and `max_gap`, and how its fields are read. Under "NAME of" stands what it takes where a
    rule of it has the field `of`. `by_sensor`: it judges each sensor by itself, so that overrides may give some of them
    other values."""

    fields: frozenset[str]
    read: Callable[[Reader], Parameters]
    sides: tuple[str, ...] = ()
    level: Level = Level.YELLOW
    has_runs: bool = True
    by_sensor: bool = True


PARAMETERS: Final[dict[str, Takes]] = {
    "composite": Takes(
        frozenset({"all", "any", "not", "window", "on", "level_from", "level_up"}), read_composite, by_sensor=False
    ),
    # The form of `neighbours` that has `of`.
    "neighbours of": Takes(
        frozenset({"of", "count", "within", "along", "window", "at_least"}), read_count, by_sensor=False
    ),
}
