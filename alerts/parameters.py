"""What a detector takes from a rule beside the fields that several share: one entry a detector, read strictly.

An entry's `read` is given the rule's reader, asks it for the fields and reports what is wrong there; what it returns is
frozen, and equal for two rules if and only if they judge alike in this respect.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from alerts.composition import ALONG, read_composite, read_count
from twin.model import DAY, HOUR, LEVELS, MINUTE, Level, Micros

MEASURES: Final = ("sigmas", "percent", "amount")
LONGEST_WINDOW: Final[Micros] = 31 * DAY
WINDOWS_APART: Final = 12  # times the shortest window of a rule, its longest at most
_OFFSET: Final = re.compile(r"([+-])(\d\d):(\d\d)")
_NIGHT: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()


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


# ---- several sensors' readings joined


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
    """A reading less the median of those near: of at least `count` sensors `within` so many metres, in the plane or,
    where it says so, `along` the network."""

    within: float
    along: str
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
    """The sensors of a device, of an asset, of an area, of a tag `NAME:…` (`over` being `tag:NAME`) or of the whole
    rule judged as one. `budget`: false alerts per group and year."""

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
_BY_TAG: Final = re.compile(r"tag:[^\s:]{1,64}")
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
    along = reader.text("along", required=True) if "along" in reader.table else ""
    if along and along not in ALONG:
        reader.wrong("along", f"must be one of {', '.join(ALONG)}")
    return Neighbours(
        metres, along, 3 if count is None else int(count), *_times(reader, 30 * MINUTE), _is_percent(reader)
    )


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
    if over not in ("device", "asset", "area", "rule") and not _BY_TAG.fullmatch(over):
        reader.wrong("over", 'must be one of device, asset, area, rule, or "tag:NAME" for sensors tagged NAME:…')
    budget = reader.number("budget")
    return Together(over, 1.0 if budget is None else budget, *_times(reader, MINUTE))


# ---- sums over a window


@dataclass(frozen=True, slots=True)
class Accumulating:
    """`windows` by level (µs, 0: no such level), never longer with rising severity; `is_counter`: readings are a total
    that only grows."""

    windows: tuple[Micros, Micros, Micros, Micros]
    is_counter: bool

    @property
    def memory(self) -> Micros:
        return max(self.windows)


def _accumulating(reader: Reader) -> Accumulating:
    names = _levels(reader)
    given = reader.table.get("window")
    spans = [0, 0, 0, 0]
    if isinstance(given, dict):
        for name, value in given.items():
            if name not in names:
                reader.wrong(f"window.{name}", "the rule has no such level")
            elif not 0 < reader.as_duration(f"window.{name}", value) <= LONGEST_WINDOW:
                reader.wrong(f"window.{name}", "must be longer than 0 and at most 31 days")
            else:
                spans[LEVELS.index(name)] = reader.as_duration(f"window.{name}", value)
        for name in names:
            if name not in given:
                reader.wrong("window", f"has none for {name}")
    else:
        window = reader.duration("window", required=True, most=LONGEST_WINDOW) or 0
        spans = [window if name in names else 0 for name in LEVELS]
    used = [span for span in spans if span]
    # A shorter sum over the same readings is the smaller one: so a level's limit reached implies the lower ones'.
    if used != sorted(used, reverse=True):
        reader.wrong("window", "must not be longer for a higher level")
    elif used and used[0] > WINDOWS_APART * used[-1]:
        reader.wrong("window", f"the longest is more than {WINDOWS_APART} times the shortest: write two rules")
    _amounts(reader)
    _margin_below_levels(reader)
    return Accumulating((spans[0], spans[1], spans[2], spans[3]), reader.flag("counter", False))


# ---- against the same time of other days


@dataclass(frozen=True, slots=True)
class Seasonal:
    """`measure`: one of `MEASURES`. `warm_up`: days that an hour must have been seen before it is judged; `accept`:
    days in a row on which it was away (of both kinds together) before that is its new normal. `utc_offset` of the city
    (µs). `days_off`, `workdays`: days since 1970 that are so whatever their weekday says."""

    measure: str
    warm_up: int
    accept: int
    utc_offset: Micros
    days_off: tuple[int, ...]
    workdays: tuple[int, ...]

    @property
    def memory(self) -> Micros:
        return 28 * DAY


def _seasonal(reader: Reader) -> Seasonal:
    measure = reader.text("measure") or "sigmas"
    if measure not in MEASURES:
        reader.wrong("measure", f"must be one of {', '.join(MEASURES)}")
    _levels(reader)
    # Readings beyond the lowest limit are not learnt from: one much nearer would cut the spread that it is made of.
    _amounts(reader, 3.0 if measure == "sigmas" else 0.0)
    days_off, workdays = _dates(reader, "days_off"), _dates(reader, "workdays")
    if set(days_off) & set(workdays):
        reader.wrong("workdays", "has a day that is among days_off too")
    return Seasonal(
        measure, _count(reader, "warm_up", 5, 2, 60), _count(reader, "accept", 7, 2, 60), _utc_offset(reader),
        days_off, workdays,
    )  # fmt: skip


# ---- one number a block of time


@dataclass(frozen=True, slots=True)
class Drifting:
    """`every`: length of a block (µs), of which the mean is judged; `slack`: Page's reference value, in sigmas;
    `warm_up`: blocks learnt from before any is judged; `accept`: blocks in a row that are away before they are the new
    normal; `utc_offset` (µs) of the city, by which blocks begin."""

    every: Micros
    slack: float
    warm_up: int
    accept: int
    utc_offset: Micros

    @property
    def memory(self) -> Micros:
        return 60 * self.every


def _drifting(reader: Reader) -> Drifting:
    every = reader.duration("every", most=LONGEST_WINDOW) if "every" in reader.table else DAY
    slack = reader.number("slack") if "slack" in reader.table else 0.5
    if slack is not None and not 0 <= slack <= 10:
        reader.wrong("slack", "must be 0 to 10 sigmas")
    _levels(reader)
    _amounts(reader)
    _margin_below_levels(reader)
    return Drifting(
        every or DAY, 0.5 if slack is None else slack, _count(reader, "warm_up", 14, 5, 1000),
        _count(reader, "accept", 30, 2, 1000), _utc_offset(reader),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Nightly:
    """The window of each night, `begin` (µs after local midnight) and `length` (µs); `of`: "min" or "mean" of its
    readings; `warm_up`: nights learnt from before any is judged; `accept`: nights
    in a row above the lowest limit before they are learnt too; `utc_offset` (µs)."""

    begin: Micros
    length: Micros
    of: str
    warm_up: int
    accept: int
    utc_offset: Micros

    @property
    def memory(self) -> Micros:
        return 28 * DAY


def _nightly(reader: Reader) -> Nightly:
    found = _NIGHT.fullmatch(reader.text("night") or "02:00-04:00")
    begin, length = 0, DAY
    if found is None:
        reader.wrong("night", 'must be two times of day such as "02:00-04:00"')
    else:
        hour, minute, to_hour, to_minute = map(int, found.groups())
        begin, end = hour * HOUR + minute * MINUTE, to_hour * HOUR + to_minute * MINUTE
        length = (end - begin) % DAY
        if not length:
            reader.wrong("night", "must be two different times")
    of = reader.text("of") or "min"
    if of not in ("min", "mean"):
        reader.wrong("of", "must be min or mean")
    _levels(reader)
    _amounts(reader)
    return Nightly(
        begin, length, of, _count(reader, "warm_up", 7, 3, 14), _count(reader, "accept", 28, 2, 365),
        _utc_offset(reader),
    )  # fmt: skip


# ---- parts that several read


def _levels(reader: Reader) -> list[str]:
    """The names of the rule's levels, mildest first; what is wrong with them is told where they are read."""
    given = reader.table.get("levels")
    return [name for name in LEVELS if isinstance(given, dict) and name in given]


def _amounts(reader: Reader, least: float = 0.0) -> None:
    """Levels of these detectors are amounts: the side tells the direction."""
    for name in _levels(reader):
        value = reader.table["levels"][name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value <= 0:
            reader.wrong(f"levels.{name}", "must be above 0")
        elif value < least:
            reader.wrong(f"levels.{name}", f"must be at least {least:g} sigmas")


def _margin_below_levels(reader: Reader) -> None:
    """Refuse a margin at which a sum that has come down to 0 would not clear."""
    clear = reader.table.get("clear")
    margin = clear.get("margin") if isinstance(clear, dict) else None
    limits = [reader.table["levels"][name] for name in _levels(reader)]
    limits = [limit for limit in limits if isinstance(limit, int | float) and not isinstance(limit, bool)]
    is_wide = isinstance(margin, str) and re.fullmatch(r"100(\.0+)?\s*%", margin.strip()) is not None
    if isinstance(margin, int | float) and not isinstance(margin, bool) and limits:
        is_wide = not math.isnan(margin) and margin >= min(limits)
    if is_wide:
        reader.wrong("clear.margin", "is so wide that the alert could never clear")


def _count(reader: Reader, name: str, default: int, least: int, most: int) -> int:
    value = reader.table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        reader.wrong(name, f"must be a whole number from {least} to {most}")
        return default
    return value


def _utc_offset(reader: Reader) -> Micros:
    """A fixed distance and not the name of a zone: the same readings are to give the same alerts whatever tables of
    summer times a machine has."""
    found = _OFFSET.fullmatch(reader.text("utc_offset") or "+08:00")
    if found is None or int(found[2]) > 14 or int(found[3]) > 59:
        reader.wrong("utc_offset", 'must be a distance from UTC such as "+08:00"')
        return 8 * HOUR
    return (int(found[2]) * HOUR + int(found[3]) * MINUTE) * (-1 if found[1] == "-" else 1)


def _dates(reader: Reader, name: str) -> tuple[int, ...]:
    value = reader.table.get(name, [])
    if not isinstance(value, list) or len(value) > 1000 or not all(isinstance(day, str) for day in value):
        reader.wrong(name, 'must be a list of at most 1000 days such as "2026-10-01"')
        return ()
    days = []
    for day in value:
        try:
            if len(day) != 10:
                raise ValueError
            days.append(datetime.date.fromisoformat(day).toordinal() - _EPOCH)
        except ValueError:
            reader.wrong(name, f'{day[:40]!r} is not a day such as "2026-10-01"')
    return tuple(sorted(set(days)))


_SIDES: Final = ("above", "below", "either")

PARAMETERS: Final[dict[str, Takes]] = {
    "anomaly": Takes(frozenset({"budget", "over"}) | JOINS, _together, level=Level.BLUE, has_runs=False),
    "residual": Takes(frozenset({"model", "unit"}) | JOINS, _residual, sides=_SIDES),
    "neighbours": Takes(frozenset({"within", "along", "count", "unit"}) | JOINS, _neighbours, sides=_SIDES),
    "spectrum": Takes(frozenset({"learn", "temperature", "unit"}) | JOINS, _spectrum, sides=_SIDES),
    "composite": Takes(
        frozenset({"all", "any", "not", "window", "on", "level_from", "level_up"}), read_composite, by_sensor=False
    ),
    # The form of `neighbours` that has `of`.
    "neighbours of": Takes(
        frozenset({"of", "count", "within", "along", "window", "at_least"}), read_count, by_sensor=False
    ),
    "accumulate": Takes(frozenset({"window", "counter"}), _accumulating, ("above",)),
    "baseline": Takes(
        frozenset({"measure", "warm_up", "accept", "utc_offset", "days_off", "workdays"}),
        _seasonal,
        ("above", "below", "either"),
    ),
    "cusum": Takes(
        frozenset({"every", "slack", "warm_up", "accept", "utc_offset"}), _drifting, ("above", "below", "either")
    ),
    "night": Takes(
        frozenset({"night", "of", "warm_up", "accept", "utc_offset"}), _nightly, ("above", "below", "either")
    ),
}
