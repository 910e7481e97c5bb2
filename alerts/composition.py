"""What a composite rule asks of other rules: an expression of members and groups, read strictly, with no city in it.

A member is a rule that must be open somewhere; where, is its scope as seen from the composite's place. What the
expression comes to over time is `alerts.composites`' part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from twin.model import LEVELS, Level, Micros

if TYPE_CHECKING:
    from alerts.parameters import Reader
    from alerts.rules import Rule

MOST_MEMBERS: Final = 100
DEEPEST: Final = 8
FURTHEST_M: Final = 100_000.0
PLACES: Final = ("asset", "sensor", "device", "area", "city")
ALONG: Final = ("upstream", "downstream", "both")
ALL_SENSORS: Final = 0  # `need` of a member that is to hold on every sensor of the place

_DISTANCE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(m|km)")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which sensors of a rule count for a place: those of the same `on`; with `along`, those on assets that one reaches
    by the network within `within_m` (0: however far); with `within_m` alone, those so near in the plane. None of the
    three: those at the place itself."""

    on: str = ""
    along: str = ""
    within_m: float = 0.0


HERE: Final = Scope()


@dataclass(frozen=True, slots=True)
class Member:
    """Rule `rule` is open at level `at_least` or above on `need` sensors of its scope (`ALL_SENSORS`: on each), now or
    within `window` before. `by_spot`: several sensors of one asset count once."""

    rule: str
    at_least: Level = Level.BLUE
    need: int = 1
    window: Micros = 0
    scope: Scope = HERE
    by_spot: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """`all`, `any` or `none` of the parts hold, now or within `window` before."""

    op: str
    parts: tuple[Member | Group, ...]
    window: Micros = 0

    def members(self, is_positive: bool = True) -> Iterator[tuple[Member, bool]]:
        """Every member, and whether it counts by holding (not by not holding)."""
        for part in self.parts:
            sense = is_positive is (self.op != "none")
            if isinstance(part, Member):
                yield part, sense
            else:
                yield from part.members(sense)


@dataclass(frozen=True, slots=True)
class Composition:
    """A composite rule's own part. `place`: what it is judged for, one by one. `level_from`: rules whose worst open
    level at the place, raised by `level_up`, is the alert's, where it is above the rule's own level. `counted`: the
    member whose number of spots is the alert's value."""

    place: str
    holds: Group
    level_from: tuple[str, ...] = ()
    level_up: int = 0
    counted: Member | None = None

    @property
    def memory(self) -> Micros:
        return _longest(self.holds)

    def rules(self) -> tuple[str, ...]:
        """The ids of the rules it follows, each once."""
        return tuple(dict.fromkeys([*(member.rule for member, _ in self.holds.members()), *self.level_from]))


def _longest(part: Member | Group) -> Micros:
    if isinstance(part, Member):
        return part.window
    return part.window + max((_longest(p) for p in part.parts), default=0)


def unfit(rule: Rule, by_id: Mapping[str, Rule]) -> Iterator[tuple[str, str]]:
    """What a composite rule refers to and cannot follow: (field, what is wrong)."""
    composition = rule.parameters
    assert isinstance(composition, Composition)
    field = "of" if rule.detector == "neighbours" else "level_from"
    members = {member.rule for member, _ in composition.holds.members()}
    for name in filter(None, composition.rules()):  # that one is not named at all was said already
        where = field
        if name in members and rule.detector != "neighbours":
            where = next((f for f in ("all", "any", "not") if _names(rule.raw.get(f), name)), field)
        known = by_id.get(name)
        if known is None:
            yield where, f"there is no rule {name[:64]!r}"
        elif isinstance(known.parameters, Composition):
            yield where, f"{name!r} follows other rules itself; nest a table in its place"
        elif known.detector == "offline":
            yield where, f"{name!r} judges silence, by the clock; a composite follows rules that judge readings"


def _names(value: object, name: str) -> bool:
    if isinstance(value, list):
        return any(_names(v, name) for v in value)
    if isinstance(value, dict):
        return any(_names(v, name) for v in value.values())
    return value == name


# Reading


class _Telling(Protocol):
    def wrong(self, name: str, text: str) -> None: ...


def read_composite(reader: Reader) -> Composition:
    """`all`, `any`, `not` of a composite rule, and where and at which level it is told."""
    table = reader.table
    place = _word(reader, "on", table.get("on", "asset"), PLACES)
    reading = _Reading(reader, place, _window(reader, "window", table))
    holds = reading.group("", table)
    if not reading.is_wrong:
        reading.check(holds)
    level_from = table.get("level_from", [])
    if isinstance(level_from, str):
        level_from = [level_from]
    if not isinstance(level_from, list) or not all(isinstance(v, str) and v for v in level_from):
        reader.wrong("level_from", "must be the id of a rule, or a list of them")
        level_from = []
    up = table.get("level_up", 0)
    if isinstance(up, bool) or not isinstance(up, int) or not 0 <= up < len(LEVELS):
        reader.wrong("level_up", "must be 0, 1, 2 or 3")
        up = 0
    elif up and not level_from:
        reader.wrong("level_up", "needs level_from: above which rules' level?")
    _check_runs(reader)
    return Composition(place, holds, tuple(level_from), up)


def read_count(reader: Reader) -> Composition:
    """`of`, `count`, `within`, `along`: a rule that is open at several neighbours at once."""
    table = reader.table
    of = reader.text("of", required=True)
    count = table.get("count", 2)
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= 1000:
        reader.wrong("count", "must be a whole number, 2 to 1000; the place itself is one")
        count = 2
    level = _level(reader, "at_least", table)
    window = _window(reader, "window", table)
    along = _word(reader, "along", table["along"], ALONG) if "along" in table else ""
    if "within" not in table:
        reader.wrong("within", 'is missing: how far away is a neighbour? "50m", "1.5km"')
    within_m = _distance(reader, "within", table["within"]) if "within" in table else 1.0
    _check_runs(reader)
    here = Member(of, level, 1, window)
    near = Member(of, level, count, window, Scope("", along, within_m), True)
    return Composition("sensor", Group("all", (here, near)), counted=near)


class _Reading:
    def __init__(self, reader: Reader, place: str, window: Micros) -> None:
        self.reader = reader
        self.place = place
        self.window = window
        self.is_wrong = False
        self.members = 0

    def wrong(self, name: str, text: str) -> None:
        self.is_wrong = True
        self.reader.wrong(name, text)

    def group(self, name: str, table: dict[str, Any], depth: int = 1) -> Group:
        """A table of `all`, `any` and `not`: what each of them asks for must hold."""
        prefix = f"{name}." if name else ""
        window = _window(self.reader, f"{prefix}window", table) if name else 0
        if name:
            for field in table.keys() - {"all", "any", "not", "window"}:
                self.wrong(f"{prefix}{field}", "unknown field")
        found = [
            Group(op, tuple(self.parts(prefix + field, table[field], depth)))
            for field, op in (("all", "all"), ("any", "any"), ("not", "none"))
            if field in table
        ]
        if not found:
            self.wrong(name or "all", "is missing: which rules? all = […], any = […], not = […]")
            return Group("all", ())
        return Group("all", tuple(found), window) if len(found) > 1 or window else found[0]

    def parts(self, name: str, value: object, depth: int) -> list[Member | Group]:
        items = value if isinstance(value, list) else [value]
        if not items:
            self.wrong(name, "must name at least one rule")
        if depth > DEEPEST:
            self.wrong(name, f"is nested more than {DEEPEST} deep")
            return []
        found: list[Member | Group] = []
        for n, item in enumerate(items):
            here = f"{name}.{n + 1}"
            if isinstance(item, str) and item:
                found.append(self.member(here, {"rule": item}))
            elif isinstance(item, dict) and "rule" in item:
                found.append(self.member(here, item))
            elif isinstance(item, dict):
                found.append(self.group(here, item, depth + 1))
            else:
                self.wrong(here, 'must be the id of a rule, a table { rule = "…" }, or a table of all, any, not')
        # What can be told at the place itself comes first: where nothing holds there, nothing else is looked at.
        return sorted(found, key=lambda part: isinstance(part, Group) or part.scope != HERE)

    def member(self, name: str, table: dict[str, Any]) -> Member:
        self.members += 1
        if self.members == MOST_MEMBERS + 1:
            self.wrong(name, f"more than {MOST_MEMBERS} members")
        for field in table.keys() - {"rule", "at_least", "sensors", "window", "on", "along", "within"}:
            self.wrong(f"{name}.{field}", "unknown field")
        rule = table["rule"]
        if not isinstance(rule, str) or not rule:
            self.wrong(f"{name}.rule", "must be the id of a rule")
            rule = ""
        need = table.get("sensors", "any")
        if need in ("any", "all"):
            need = 1 if need == "any" else ALL_SENSORS
        elif isinstance(need, bool) or not isinstance(need, int) or need < 1:
            self.wrong(f"{name}.sensors", 'must be "any", "all", or how many')
            need = 1
        window = _window(self.reader, f"{name}.window", table) if "window" in table else self.window
        return Member(rule, _level(self, f"{name}.at_least", table), need, window, self.scope(name, table))

    def scope(self, name: str, table: dict[str, Any]) -> Scope:
        on = _word(self, f"{name}.on", table["on"], PLACES[2:] + PLACES[:1]) if "on" in table else ""
        along = _word(self, f"{name}.along", table["along"], ALONG) if "along" in table else ""
        within_m = _distance(self, f"{name}.within", table["within"]) if "within" in table else 0.0
        if on and (along or within_m):
            self.wrong(f"{name}.on", "cannot be combined with along or within")
        if (along or within_m) and self.place in ("area", "city"):
            self.wrong(
                f"{name}.{'along' if along else 'within'}", f"starts at an asset or a sensor, not at {self.place}"
            )
        return Scope("" if on == self.place else on, along, within_m)

    def check(self, holds: Group) -> None:
        """Something must happen at the place itself for the whole to hold: that is where it is told, and since when."""
        if _without(holds) is not False:
            self.wrong(
                "all" if "all" in self.reader.table else "any" if "any" in self.reader.table else "not",
                "could hold where nothing has happened: name a rule that looks at the place itself and must be open",
            )


def _without(part: Member | Group) -> bool | None:
    """Whether it holds while no member of the place itself does; None: that depends on others."""
    if isinstance(part, Member):
        return False if part.scope == HERE else None
    found = [_without(p) for p in part.parts]
    if part.op == "all":
        return False if False in found else None if None in found else True
    some = True if True in found else None if None in found else False
    return some if part.op == "any" else None if some is None else not some


def _check_runs(reader: Reader) -> None:
    if "max_gap" in reader.table:
        reader.wrong("max_gap", "is of readings; a composite has none of its own")
    clear = reader.table.get("clear")
    if isinstance(clear, dict) and "margin" in clear:
        reader.wrong("clear.margin", "is of values; a composite has none of its own")


def _word(reader: _Telling, name: str, value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in words:
        reader.wrong(name, f"must be one of {', '.join(words)}")
        return words[0]
    return value


def _level(reader: _Telling, name: str, table: dict[str, Any]) -> Level:
    value = table.get("at_least", "blue")
    if not isinstance(value, str) or value not in LEVELS:
        reader.wrong(name, f"must be one of {', '.join(LEVELS)}")
        return Level.BLUE
    return Level.of(value)


def _window(reader: Reader, name: str, table: dict[str, Any]) -> Micros:
    return reader.as_duration(name, table["window"]) if "window" in table else 0


def _distance(reader: _Telling, name: str, value: object) -> float:
    found = _DISTANCE.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 40 else None
    metres = float(found[1]) * (1000 if found[2] == "km" else 1) if found else 0.0
    if not 0 < metres <= FURTHEST_M:
        reader.wrong(name, 'must be a distance such as "50m" or "1.5km", at most 100 km')
        return 1.0
    return metres
