"""What a detector takes from a rule beside the fields that several share: one entry a detector, read strictly.

An entry's `read` is given the rule's reader, asks it for the fields and reports what is wrong there; what it returns is
frozen, and equal for two rules if and only if they judge alike in this respect.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from alerts.composition import read_composite, read_count
from twin.model import DAY, HOUR, MINUTE, Level, Micros


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
    read: Callable[[Reader], Parameters | None]
    sides: tuple[str, ...] = ()
    level: Level = Level.YELLOW
    has_runs: bool = True
    by_sensor: bool = True


@dataclass(frozen=True, slots=True)
class Residual:
    """Observed less modelled. `model` names the model's sensor, `{device}`, `{property}` and `{asset}` standing for
    the observed one's."""

    model: str
    max_age: Micros
    patience: Micros
    is_percent: bool

    @property
    def memory(self) -> Micros:
        return self.max_age + self.patience


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A reading less the median of those near: of at least `count` sensors `within` so many metres."""

    within: float
    count: int
    max_age: Micros
    patience: Micros
    is_percent: bool

    @property
    def memory(self) -> Micros:
        return self.max_age + self.patience


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A waveform's summary less what it was in the healthy period `learn`, at the temperature that `temperature` names
    (empty: the first of the asset)."""

    learn: Micros
    temperature: str
    max_age: Micros
    patience: Micros
    is_percent: bool

    @property
    def memory(self) -> Micros:
        return self.learn + self.max_age + self.patience


@dataclass(frozen=True, slots=True)
class Together:
    """The sensors of a device, of an asset or of the whole rule judged as one. `budget`: false alerts per group and
    year."""

    over: str
    budget: float
    max_age: Micros
    patience: Micros

    @property
    def memory(self) -> Micros:
        return self.max_age + self.patience


Joined = Residual | Neighbours | Spectrum | Together
JOINS: Final = frozenset({"max_age", "patience"})  # fields of all that join several sensors' readings
PATIENCE: Final[Micros] = 5 * MINUTE
_NAMES: Final = re.compile(
    r"(?:[^/+#\s{}]|\{(?:device|property|asset)\})+(?:/(?:[^/+#\s{}]|\{(?:device|property|asset)\})+)?"
)
_METRES: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(m|km)")


def _times(reader: Reader, max_age: Micros) -> tuple[Micros, Micros]:
    given = reader.duration("max_age", most=DAY)
    patience = reader.duration("patience", most=DAY)
    return (max_age if given is None else given, PATIENCE if patience is None else patience)


def _is_percent(reader: Reader, name: str = "unit") -> bool:
    unit = reader.text(name)
    if unit not in ("", "%"):
        reader.wrong(name, 'must be "%" or left out')
    return unit == "%"


def _amounts(reader: Reader) -> None:
    """Refuse levels that are no amounts: the side tells the direction."""
    levels = reader.table.get("levels")
    for name, limit in levels.items() if isinstance(levels, dict) else ():
        if isinstance(limit, int | float) and limit <= 0:
            reader.wrong(f"levels.{name}", "must be above 0: the side tells the direction of a deviation")


def _pattern(reader: Reader, name: str, *, required: bool) -> str:
    pattern = reader.text(name, required=required)
    if pattern and not (len(pattern) <= 512 and _NAMES.fullmatch(pattern)):
        reader.wrong(name, 'must be "device/property" or a property, with {device}, {property} or {asset} in it')
        return ""
    return pattern


def _residual(reader: Reader) -> Residual:
    _amounts(reader)
    return Residual(_pattern(reader, "model", required=True), *_times(reader, 15 * MINUTE), _is_percent(reader))


def _neighbours(reader: Reader) -> Neighbours:
    _amounts(reader)
    text = reader.text("within", required=True)
    found = _METRES.fullmatch(text) if len(text) < 40 else None
    metres = float(found[1]) * (1000 if found[2] == "km" else 1) if found else 0.0
    if text and not 0 < metres <= 100_000:
        reader.wrong("within", 'must be a distance such as "500m" or "2km", at most 100 km')
    count = reader.number("count")
    if count is not None and count not in range(1, 16):
        reader.wrong("count", "must be a whole number from 1 to 15")
    return Neighbours(metres, 3 if count is None else int(count), *_times(reader, 30 * MINUTE), _is_percent(reader))


def _spectrum(reader: Reader) -> Spectrum:
    _amounts(reader)
    learn = reader.duration("learn")
    temperature = _pattern(reader, "temperature", required=False)
    span = 14 * DAY if learn is None else learn
    return Spectrum(span, temperature, *_times(reader, HOUR), _is_percent(reader))


def _together(reader: Reader) -> Together | None:
    """None for a rule that judges each sensor by itself."""
    over = reader.text("over")
    if not over:
        for name in JOINS & reader.table.keys():
            reader.wrong(name, "needs over: it is about several sensors")
        return None
    if over not in ("device", "asset", "rule"):
        reader.wrong("over", "must be one of device, asset, rule")
    budget = reader.number("budget")
    return Together(over, 1.0 if budget is None else budget, *_times(reader, MINUTE))


_SIDES: Final = ("above", "below", "either")

PARAMETERS: Final[dict[str, Takes]] = {
    "anomaly": Takes(frozenset({"budget", "over"}) | JOINS, _together, level=Level.BLUE, has_runs=False),
    "residual": Takes(frozenset({"model", "unit"}) | JOINS, _residual, sides=_SIDES),
    "neighbours": Takes(frozenset({"within", "count", "unit"}) | JOINS, _neighbours, sides=_SIDES),
    "spectrum": Takes(frozenset({"learn", "temperature", "unit"}) | JOINS, _spectrum, sides=_SIDES),
    "composite": Takes(
        frozenset({"all", "any", "not", "window", "on", "level_from", "level_up"}), read_composite, by_sensor=False
    ),
    # The form of `neighbours` that has `of`.
    "neighbours of": Takes(
        frozenset({"of", "count", "within", "along", "window", "at_least"}), read_count, by_sensor=False
    ),
}
