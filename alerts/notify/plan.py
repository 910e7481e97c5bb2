"""Who is told what: the notification plan, from TOML (or the same as JSON), strictly, with every mistake told at once.

A plan names receivers (where a message goes), people, duty rosters (值班表), quiet hours, and routes. Routes are a flat
list tried in order: the first that fits an alert takes it, and only with `continue = true` those after it are tried,
too. Secrets stand in the plan as `env:NAME`, or are given once and then shown as `***`.

Zones and summer time are those of the IANA database; times of day have minutes.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from alerts.documents import from_json, from_toml, toml_key, toml_value
from alerts.rules import Words, parse_duration
from twin.model import DAY, HOUR, LEVELS, MINUTE, SECOND, Micros, Problem, Refused

MAX_TEXT: Final = 1 << 20
MAX_NAMED: Final = 1000  # receivers, routes, people, rosters each
HIDDEN: Final = "***"
ENVIRONMENT: Final = "env:"
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LANGUAGES: Final = ("both", "zh", "en")
GROUPS: Final = ("asset", "rule", "sensor", "domain", "tenant", "area")
WHERE: Final = ("level", "domain", "area", "tenant", "tag", "rule", "asset", "kind")
SECURITIES: Final = ("starttls", "tls", "none")

# By level blue, yellow, orange, red. Acknowledge within: domain table "default dispatch" [E]; the others [E].
ESCALATE: Final = (2 * HOUR, 30 * MINUTE, 10 * MINUTE, 5 * MINUTE)
WAIT: Final = (15 * SECOND, 15 * SECOND, 10 * SECOND, 3 * SECOND)
REPEAT: Final = (24 * HOUR, 4 * HOUR, HOUR, 30 * MINUTE)
INTERVAL: Final = 5 * MINUTE

# Type of receiver: what it needs, what it takes beside, messages a minute that its far side allows (0: any number).
NEEDS: Final[dict[str, tuple[frozenset[str], frozenset[str], int]]] = {
    "webhook": (frozenset({"url"}), frozenset({"secret", "headers", "ca"}), 0),
    "alertmanager": (frozenset({"url"}), frozenset({"headers", "resend", "ca"}), 0),
    "mail": (frozenset({"host", "from", "to"}), frozenset({"port", "security", "user", "password", "ca"}), 0),
    "mqtt": (frozenset(), frozenset({"broker", "topic", "retain"}), 0),
    "wecom": (frozenset({"url"}), frozenset({"ca"}), 20),
    "dingtalk": (frozenset({"url"}), frozenset({"secret", "ca"}), 20),
    "feishu": (frozenset({"url"}), frozenset({"secret", "ca"}), 100),
}
_COMMON: Final = frozenset(
    {"type", "title", "language", "quiet", "resolved", "attempts", "backoff", "timeout", "per_minute", "fallback"}
)
# What must not be shown again. The address of a chat robot is the key to it.
SECRETS: Final[dict[str, frozenset[str]]] = {
    "webhook": frozenset({"secret", "headers"}),
    "alertmanager": frozenset({"headers"}),
    "mail": frozenset({"password"}),
    "mqtt": frozenset({"broker"}),
    "wecom": frozenset({"url"}),
    "dingtalk": frozenset({"url", "secret"}),
    "feishu": frozenset({"url", "secret"}),
}
_TOP: Final = frozenset(
    {"zone", "language", "wait", "interval", "repeat", "escalate_after", "group", "receiver", "person", "roster",
     "quiet", "route", "cap"}
)  # fmt: skip
_ROUTE: Final = frozenset(
    {"name", "where", "box", "receivers", "escalate", "escalate_after", "wait", "interval", "repeat", "group",
     "continue"}
)  # fmt: skip
_CAP: Final = frozenset({"sender", "sender_name", "code", "scope", "restriction", "contact", "radius_m"})

_NAME: Final = re.compile(r"[\w.-]{1,64}")
_CLOCK: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
# As HTML's mail fields take it: what SMTP carries without extensions, and no header is misread for.
_MAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")
_TOPIC_WORD: Final = re.compile(r"\{(\w*)\}")
TOPIC_WORDS: Final = ("tenant", "domain", "level", "receiver", "kind")

SENDER_NAME: Final = Words("城市生命线监测", "City lifeline monitoring")

ByLevel = tuple[Micros | None, Micros | None, Micros | None, Micros | None]


class InvalidPlan(Refused):
    """A notification plan with mistakes."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is on duty: name, and where to be reached."""

    id: str
    name: str
    mobile: str = ""
    mail: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A time of day on some days of the week (0 = Monday), minutes from midnight; up to `end` <= `start` it reaches
    into the next day."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, moment: dt.datetime) -> bool:
        """Whether a local time lies within; a span past midnight belongs to the day it began on."""
        minute = moment.hour * 60 + moment.minute
        today = moment.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        yesterday = (today - 1) % 7
        return (today in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Shift:
    """Who is on duty within a span, or (`date`) on one date instead of what the week says."""

    span: Span
    receivers: tuple[str, ...]
    people: tuple[str, ...]
    date: dt.date | None = None

    def holds(self, moment: dt.datetime) -> bool:
        if self.date is None:
            return self.span.holds(moment)
        minute = moment.hour * 60 + moment.minute
        if self.span.start < self.span.end:
            return moment.date() == self.date and self.span.start <= minute < self.span.end
        after = self.date + dt.timedelta(days=1)
        return (moment.date() == self.date and minute >= self.span.start) or (
            moment.date() == after and minute < self.span.end
        )


@dataclass(frozen=True, slots=True)
class Roster:
    """A duty roster (值班表). Exceptions by date go before the week; `otherwise` is told where nobody is on duty."""

    name: str
    zone: str
    shifts: tuple[Shift, ...]
    exceptions: tuple[Shift, ...]
    otherwise: tuple[str, ...]

    def on_duty(self, at: Micros) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Receivers and people on duty at a moment."""
        moment = local(at, self.zone)
        for several in (self.exceptions, self.shifts):
            found = [shift for shift in several if shift.holds(moment)]
            if found:
                receivers = dict.fromkeys(name for shift in found for name in shift.receivers)
                people = dict.fromkeys(name for shift in found for name in shift.people)
                return tuple(receivers) or self.otherwise, tuple(people)
        return self.otherwise, ()


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours in which levels (blue is 1) wait until the end. Red only where it is named."""

    name: str
    zone: str
    span: Span
    levels: frozenset[int]

    def until(self, at: Micros, level: int) -> Micros | None:
        """When the quiet hours that hold a message of `level` back at `at` end; None if it may go."""
        if level not in self.levels:
            return None
        moment = local(at, self.zone)
        if not self.span.holds(moment):
            return None
        # In steps of minutes, since a night of summer time is not as long as another.
        probe = at // MINUTE * MINUTE
        for _ in range(26 * 60):
            probe += MINUTE
            if not self.span.holds(local(probe, self.zone)):
                return probe
        return at + DAY


@dataclass(frozen=True, slots=True)
class Receiver:
    """One place that messages go to. `options`: its table as written, secrets included (`env:NAME`, or the value
    itself). `per_minute` 0: no limit."""

    name: str
    type: str
    title: Words
    language: str
    quiet: str | None
    resolved: bool
    attempts: int
    backoff: Micros
    timeout: Micros
    per_minute: int
    fallback: str | None
    options: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Route:
    """Which alerts go to which receivers or rosters. An empty condition holds for all, several words of one mean any of
    them. `escalate`: who is told where nobody acknowledges, one stage after the other; empty: whoever the next higher
    level would go to."""

    name: str
    where: Mapping[str, tuple[str, ...]] = field(hash=False)
    box: tuple[float, float, float, float] | None
    receivers: tuple[str, ...]
    escalate: tuple[tuple[str, ...], ...]
    escalate_after: ByLevel
    wait: ByLevel
    interval: Micros
    repeat: ByLevel
    group: tuple[str, ...]
    goes_on: bool


@dataclass(frozen=True, slots=True)
class CapTerms:
    """Who we are in CAP messages. `code`: 14 signs, administrative division, agency, unit and extension of GB/T 35965
    [M]. `scope` is never Public: a sensor alone warns nobody publicly."""

    sender: str = "cimtwin"
    sender_name: Words = SENDER_NAME
    code: str = "0" * 14
    zone: str = "Asia/Shanghai"
    scope: str = "Restricted"
    restriction: str = (
        "监测报警，供权属单位和主管部门处置；对公众发布须经有权机关批准 / "
        "A monitoring alarm for owners and authorities; a public warning needs a named authority's approval"
    )
    contact: str = ""
    radius_m: float = 100.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan, checked. `table` is the document as it was read, secrets included: not to be shown."""

    zone: str
    receivers: Mapping[str, Receiver] = field(hash=False)
    people: Mapping[str, Person] = field(hash=False)
    rosters: Mapping[str, Roster] = field(hash=False)
    quiets: Mapping[str, Quiet] = field(hash=False)
    routes: tuple[Route, ...]
    cap: CapTerms
    table: Mapping[str, Any] = field(hash=False, repr=False)


EMPTY: Final = Plan("Asia/Shanghai", {}, {}, {}, {}, (), CapTerms(), {})


def local(at: Micros, zone: str) -> dt.datetime:
    """A moment in a zone's own time."""
    return dt.datetime.fromtimestamp(at / SECOND, ZoneInfo(zone))


def parse_plan(text: str | bytes, kept: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a TOML text. A secret written `***` is the one that `kept`, the table of the plan before, has at its
    place. Raises `InvalidPlan` with every mistake."""
    table, decoded = from_toml(text, MAX_TEXT, InvalidPlan)
    return parse_table(table, kept, _Lines(decoded))


def parse_json(text: str | bytes, kept: Mapping[str, Any] | None = None) -> Plan:
    """The same from JSON."""
    table = from_json(text, MAX_TEXT, InvalidPlan)
    if not isinstance(table, dict):
        raise InvalidPlan([Problem("file", "", "must be an object")])
    table.pop("version", None)  # what GET adds may stay in it
    problems = [Problem(place or "file", name, text) for place, name, text in _not_in_toml(table)]
    if problems:
        raise InvalidPlan(problems, "notification plan")
    return parse_table(table, kept)


def _not_in_toml(value: object, place: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Where a JSON document holds what TOML, as which it is kept, cannot say: place, field, what is wrong."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_in_toml(key, place, name)
            yield from _not_in_toml(inner, f"{place}.{name}".strip("."), key)
    elif isinstance(value, list):
        for number, inner in enumerate(value, 1):
            yield from _not_in_toml(inner, place, f"{name} {number}")
    elif value is None:
        yield place, name, "must not be null: leave it out"
    elif isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
        yield place, name.encode(errors="replace").decode(), "holds half a character"


def parse_table(table: dict[str, Any], kept: Mapping[str, Any] | None = None, lines: _Lines | None = None) -> Plan:
    """The same from a decoded document."""
    problems: list[Problem] = []
    restored = _restored(table, kept or {}, problems)
    plan = _PlanReader(restored, problems).plan()
    if problems:
        raise InvalidPlan([(lines or _Lines("")).placed(problem) for problem in problems], "notification plan")
    return plan


def secret_places(table: Mapping[str, Any]) -> list[tuple[str, str, str | None]]:
    """Where secrets stand in a document: receiver, field, and key within the field's table, if it is one."""
    found: list[tuple[str, str, str | None]] = []
    receivers = table.get("receiver")
    for name, receiver in receivers.items() if isinstance(receivers, dict) else ():
        if not isinstance(receiver, dict):
            continue
        for key in SECRETS.get(str(receiver.get("type")), frozenset()):
            value = receiver.get(key)
            if isinstance(value, dict):
                found += [(name, key, inner) for inner in value]
            elif value is not None:
                found.append((name, key, None))
    return sorted(found, key=str)


def secret_at(table: Mapping[str, Any], place: tuple[str, str, str | None]) -> Any:
    """The value at one of `secret_places`; None where there is nothing."""
    value: Any = table.get("receiver")
    for key in place:
        if key is None:
            break
        value = value.get(key) if isinstance(value, dict) else None
    return value


def masked(table: Mapping[str, Any]) -> dict[str, Any]:
    """The document without the secrets that are given in it."""
    shown: dict[str, Any] = json.loads(json.dumps(table, default=str))
    for place in secret_places(shown):
        value = secret_at(shown, place)
        if not isinstance(value, str) or not value.startswith(ENVIRONMENT):
            _put(shown, place, HIDDEN)
    return shown


def masked_text(text: str, table: Mapping[str, Any]) -> str:
    """The document's own text with `***` for its secrets. Where one cannot be taken out of it cleanly, the text is
    written anew, without its comments."""
    hidden = {
        value
        for value in (secret_at(table, place) for place in secret_places(table))
        if isinstance(value, str) and not value.startswith(ENVIRONMENT) and value != HIDDEN
    }
    for value in sorted(hidden, key=len, reverse=True):
        for quoted in (json.dumps(value, ensure_ascii=False), f"'{value}'"):
            text = text.replace(quoted, f'"{HIDDEN}"')
    try:
        is_clean = json.loads(json.dumps(tomllib.loads(text), default=str)) == masked(table)
    except (tomllib.TOMLDecodeError, ValueError):
        is_clean = False
    if not is_clean or any(value in text for value in hidden):
        return to_toml(masked(table))
    return text


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML that parses into the same document."""
    lines = _fields({key: value for key, value in table.items() if not _is_tables(value)})
    for key, value in table.items():
        if not _is_tables(value):
            continue
        several = value if isinstance(value, list) else None
        for item in several or ():
            lines += ["", f"[[{toml_key(key)}]]", *_fields(item)]
        for name, item in value.items() if isinstance(value, dict) else ():
            lines += ["", f"[{toml_key(key)}.{toml_key(name)}]", *_fields(item)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _fields(table: Mapping[str, Any]) -> list[str]:
    return [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items()]


def _is_tables(value: object) -> bool:
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return bool(inner) and all(isinstance(item, dict) for item in inner)


def _put(table: dict[str, Any], place: tuple[str, str, str | None], value: str) -> None:
    receiver, key, inner = place
    if inner is None:
        table["receiver"][receiver][key] = value
    else:
        table["receiver"][receiver][key][inner] = value


def _restored(table: dict[str, Any], kept: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The document with its `***` replaced by the secrets kept from before."""
    for place in secret_places(table):
        if secret_at(table, place) != HIDDEN:
            continue
        before = secret_at(kept, place)
        if isinstance(before, str):
            _put(table, place, before)
        else:
            name, key, inner = place
            where = key if inner is None else f"{key}.{inner}"
            problems.append(Problem(f"receiver.{name}", where, "no secret is kept here: give it, or env:NAME"))
    return table


class _Lines:
    """Where tables and fields stand in a TOML text; a place is `receiver.name`, `route 2`, or a top-level field."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def placed(self, problem: Problem) -> Problem:
        """The problem with the line of its field, or of its table."""
        head = self._head(problem.place)
        if head is None:
            return problem
        name = re.escape(problem.field.partition(".")[0].partition("[")[0])
        line = head + 1 if head >= 0 else 0
        for number in range(head + 1, len(self._lines)) if name else ():
            if re.match(r"\s*\[", self._lines[number]):
                break
            if re.match(rf"\s*[\"']?{name}[\"']?\s*[=.]", self._lines[number]):
                line = number + 1
                break
        if not line:
            return problem
        return Problem(f"{problem.place}, line {line}" if problem.place != "file" else f"line {line}",
                       problem.field, problem.text)  # fmt: skip

    def _head(self, place: str) -> int | None:
        """The index of a table's header line; -1 for the top."""
        if place == "file":
            return -1 if self._lines else None
        found = re.fullmatch(r"(route) (\d+)|(\w+)\.(.+?)(?: (shift|exception) (\d+))?", place)
        if found is None:
            return None
        if found[1]:
            header, number = r"\s*\[\[\s*route\s*\]\]", int(found[2])
        else:
            key = rf"[\"']?{re.escape(found[4])}[\"']?"
            path = rf"{found[3]}\s*\.\s*{key}"
            header, number = rf"\s*\[\s*{path}\s*\]", 1
            if found[5]:
                header, number = rf"\s*\[\[\s*{path}\s*\.\s*{found[5]}\s*\]\]", int(found[6])
        at = [n for n, line in enumerate(self._lines) if re.match(header, line)]
        if len(at) >= number:
            return at[number - 1]
        return self._head(f"{found[3]}.{found[4]}") if found[5] else None


class _Table:
    """Reads one table's fields; each mistake goes into `problems`, and reading goes on with a harmless value."""

    def __init__(self, table: object, place: str, problems: list[Problem], allowed: Iterable[str]) -> None:
        self.place = place
        self.problems = problems
        self.table: dict[str, Any] = table if isinstance(table, dict) else {}
        if not isinstance(table, dict):
            self.wrong("", "must be a table")
        known = set(allowed)
        for name in self.table:
            if name not in known:
                self.wrong(str(name), "unknown field")

    def wrong(self, name: str, text: str) -> None:
        self.problems.append(Problem(self.place, name[:80], text))

    def __contains__(self, name: str) -> bool:
        return name in self.table

    def text(self, name: str, default: str = "", *, required: bool = False, most: int = 2000) -> str:
        value = self.table.get(name)
        if value is None:
            if required:
                self.wrong(name, "is missing")
            return default
        if not isinstance(value, str) or not value.strip():
            self.wrong(name, "must be a text")
            return default
        if len(value) > most or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
            self.wrong(name, f"must have at most {most} characters, none of control")
            return default
        return value

    def secret(self, name: str, value: object) -> str:
        """A secret: a text, or `env:NAME`."""
        if not isinstance(value, str) or not value:
            self.wrong(name, "must be a text, or env:NAME")
            return ""
        if value.startswith(ENVIRONMENT):
            self.variable(name, value)
        elif len(value) > 4000 or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
            self.wrong(name, "must have at most 4000 characters, none of control")
        return value

    def variable(self, name: str, value: str) -> None:
        variable = value.removeprefix(ENVIRONMENT)
        if not _VARIABLE.fullmatch(variable):
            self.wrong(name, "must name an environment variable: env:NAME")
        elif variable.startswith("CIMTWIN_") and not variable.startswith("CIMTWIN_NOTIFY_"):
            self.wrong(name, f"{variable} is a setting of the service's own, and no message may carry it")

    def flag(self, name: str, default: bool) -> bool:
        value = self.table.get(name, default)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
            return default
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.table.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.wrong(name, f"must be a whole number from {low} to {high}")
            return default
        return value

    def word(self, name: str, default: str, known: Iterable[str]) -> str:
        value = self.table.get(name, default)
        if value not in known:
            self.wrong(name, f"must be one of {', '.join(known)}")
            return default
        return str(value)

    def words(self, name: str, default: Words) -> Words:
        value = self.table.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            value = {"zh": value, "en": value}
        if (
            not isinstance(value, dict)
            or value.keys() - {"zh", "en"}
            or not all(isinstance(v, str) and v.strip() and v.isprintable() for v in value.values())
        ):
            self.wrong(name, "must be a text, or { zh = …, en = … }")
            return default
        return Words(value.get("zh", value.get("en", "")), value.get("en", value.get("zh", "")))

    def span(self, name: str, value: object, low: Micros = 0, high: Micros = 31 * DAY) -> Micros:
        """A duration, µs."""
        try:
            found = parse_duration(value) if isinstance(value, str) else -1
        except ValueError as error:
            self.wrong(name, str(error))
            return low
        if not low <= found <= high:
            self.wrong(name, f'must be a duration such as "30s" or "5min", from {_said(low)} to {_said(high)}')
            return low
        return found

    def duration(self, name: str, default: Micros, low: Micros = 0, high: Micros = 31 * DAY) -> Micros:
        return self.span(name, self.table[name], low, high) if name in self.table else default

    def by_level(self, name: str, default: ByLevel, low: Micros, *, may_be_never: bool = False) -> ByLevel:
        """A duration for all levels, or a table of some; "never" where that has a meaning."""
        value = self.table.get(name)
        if value is None:
            return default

        def one(where: str, given: object) -> Micros | None:
            return None if may_be_never and given == "never" else self.span(where, given, low)

        if not isinstance(value, dict):
            same = one(name, value)
            return (same, same, same, same)
        found = list(default)
        for level, given in value.items():
            if level in LEVELS:
                found[LEVELS.index(level)] = one(f"{name}.{level}", given)
            else:
                self.wrong(f"{name}.{level}", f"must be one of {', '.join(LEVELS)}")
        return (found[0], found[1], found[2], found[3])

    def names(self, name: str, value: object, *, may_be_empty: bool = False) -> tuple[str, ...]:
        """A list of names."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            self.wrong(name, "must be a list of names")
            return ()
        if not value and not may_be_empty:
            self.wrong(name, "must not be empty")
        return tuple(dict.fromkeys(value))

    def zone(self, default: str) -> str:
        zone = self.text("zone", default)
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.wrong("zone", f"there is no time zone {zone[:60]!r}")
            return default
        return zone

    def clock(self, name: str, default: int | None = None) -> int:
        value = self.table.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, dt.time):
            value = f"{value:%H:%M}" if not value.second and not value.microsecond else ""
        if not isinstance(value, str) or not _CLOCK.fullmatch(value):
            self.wrong(name, 'must be a time of day such as "08:30"' if value is not None else "is missing")
            return 0
        return int(value[:2]) * 60 + int(value[3:])

    def days(self) -> frozenset[int]:
        value = self.table.get("days")
        if value is None:
            return frozenset(range(7))
        found = set()
        for word in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
            first, dash, last = word.partition("-") if isinstance(word, str) else ("", "", "")
            if first not in DAYS or (dash and last not in DAYS):
                self.wrong("days", 'must be of mon, tue, wed, thu, fri, sat, sun, or ranges such as "mon-fri"')
                continue
            low, high = DAYS.index(first), DAYS.index(last or first)
            found |= {day % 7 for day in range(low, high + 1 if high >= low else high + 8)}
        return frozenset(found)

    def hours(self, *, are_needed: bool) -> Span:
        """`days`, `from` and `to`; from and to alike are the whole day."""
        start = self.clock("from", None if are_needed else 0)
        end = self.clock("to", None if are_needed else 24 * 60)
        return Span(self.days(), start, end or 0)


class _PlanReader:
    """Reads a whole document."""

    def __init__(self, table: dict[str, Any], problems: list[Problem]) -> None:
        self.top = _Table(table, "file", problems, _TOP)
        self.problems = problems

    def plan(self) -> Plan:
        top = self.top
        self.zone = top.zone("Asia/Shanghai")
        self.language = top.word("language", "both", LANGUAGES)
        self.wait = top.by_level("wait", WAIT, 0)
        self.repeat = top.by_level("repeat", REPEAT, SECOND, may_be_never=True)
        self.escalate_after = top.by_level("escalate_after", ESCALATE, SECOND, may_be_never=True)
        self.interval = top.duration("interval", INTERVAL, 0, DAY)
        self.group = self.grouping(top, ("asset", "rule"))
        people = {name: self.person(name, table) for name, table in self.named("person")}
        receivers = {name: self.receiver(name, table) for name, table in self.named("receiver")}
        quiets = {name: self.quiet(name, table) for name, table in self.named("quiet")}
        rosters = {name: self.roster(name, table) for name, table in self.named("roster")}
        routes = [self.route(number, table) for number, table in enumerate(self.several("route"), 1)]
        for name in receivers.keys() & rosters.keys():
            self.problems.append(Problem(f"roster.{name}", "", "is the name of a receiver, too"))
        self.check_names(receivers, rosters, quiets, people, routes)
        cap = self.cap_terms()
        return Plan(self.zone, receivers, people, rosters, quiets, tuple(routes), cap, top.table)

    def named(self, kind: str) -> list[tuple[str, Any]]:
        value = self.top.table.get(kind, {})
        if not isinstance(value, dict) or len(value) > MAX_NAMED:
            self.top.wrong(kind, f"must be tables [{kind}.NAME], at most {MAX_NAMED}")
            return []
        for name in value:
            if not _NAME.fullmatch(name):
                self.top.wrong(f"{kind}.{name}", "a name has 1 to 64 letters, digits, . _ or -")
        return list(value.items())

    def several(self, kind: str) -> list[Any]:
        value = self.top.table.get(kind, [])
        if not isinstance(value, list) or len(value) > MAX_NAMED:
            self.top.wrong(kind, f"must be tables [[{kind}]], at most {MAX_NAMED}")
            return []
        return value

    def grouping(self, table: _Table, default: tuple[str, ...]) -> tuple[str, ...]:
        if "group" not in table:
            return default
        names = table.names("group", table.table["group"], may_be_empty=True)
        for name in names:
            if name not in GROUPS:
                table.wrong("group", f"must be of {', '.join(GROUPS)}")
        return names

    def person(self, name: str, given: object) -> Person:
        table = _Table(given, f"person.{name}", self.problems, ("name", "mobile", "mail"))
        mobile, mail = table.text("mobile"), table.text("mail")
        if mobile and not re.fullmatch(r"\+?[0-9]{5,15}", mobile):
            table.wrong("mobile", "must be a telephone number, digits only")
        if mail and not _MAIL.fullmatch(mail):
            table.wrong("mail", "must be a mail address")
        return Person(name, table.text("name", name, most=100), mobile, mail)

    def receiver(self, name: str, given: object) -> Receiver:
        kind = given.get("type") if isinstance(given, dict) else None
        needs, takes, per_minute = NEEDS.get(kind if isinstance(kind, str) else "", (frozenset(), None, 0))
        allowed = _COMMON | needs | (takes or frozenset().union(*(n | t for n, t, _ in NEEDS.values())))
        table = _Table(given, f"receiver.{name}", self.problems, allowed)
        if takes is None and isinstance(given, dict):
            table.wrong("type", f"must be one of {', '.join(NEEDS)}" if kind is not None else "is missing")
        for field_ in sorted(needs):
            if field_ not in table:
                table.wrong(field_, "is missing")
        for field_ in sorted(SECRETS.get(str(kind), ())):
            value = table.table.get(field_)
            for inner, text in value.items() if isinstance(value, dict) else ():
                table.secret(f"{field_}.{inner}", text)
            if value is not None and not isinstance(value, dict):
                table.secret(field_, value)
        self.check_options(str(kind), table)
        quiet = table.text("quiet") or None
        return Receiver(
            name, str(kind), table.words("title", Words(name, name)), table.word("language", self.language, LANGUAGES),
            quiet, table.flag("resolved", True), table.whole("attempts", 60, 1, 10_000),
            table.duration("backoff", 5 * SECOND, 1000, HOUR), table.duration("timeout", 10 * SECOND, 1000, 2 * MINUTE),
            table.whole("per_minute", per_minute, 0, 100_000), table.text("fallback") or None, table.table,
        )  # fmt: skip

    def check_options(self, kind: str, table: _Table) -> None:
        if "url" in table:
            url = table.table["url"]
            if isinstance(url, str) and url.startswith(ENVIRONMENT):
                table.variable("url", url)
            elif not isinstance(url, str) or not _is_http(url):
                table.wrong("url", "must be an address http://… or https://… in ASCII (%XX for others), or env:NAME")
            elif "@" in urlsplit(url).netloc:  # it would be shown, and is not sent
                table.wrong("url", "must hold no user and password: give them as headers")
        headers = table.table.get("headers", {})
        if not isinstance(headers, dict) or not all(_HEADER_NAME.fullmatch(header) for header in headers):
            table.wrong("headers", "must be a table of header names and values")
        else:
            for header, value in headers.items():
                if isinstance(value, str) and not value.isascii():
                    table.wrong(f"headers.{header}", "must be ASCII: HTTP has no other letters there")
        if kind == "mail":
            table.text("host", most=253)
            table.whole("port", 587, 1, 65535)
            table.word("security", "starttls", SECURITIES)
            table.text("user")
            if "user" in table and "password" not in table:
                table.wrong("password", "is missing")
            for field_ in ("from", "to"):
                addresses = table.names(field_, table.table.get(field_, ["-@-"]))
                if not all(_MAIL.fullmatch(address) for address in addresses) or (
                    field_ == "from" and len(addresses) != 1
                ):
                    table.wrong(field_, "must be a mail address" + (" or several" if field_ == "to" else ""))
        if kind == "mqtt":
            broker = table.table.get("broker")
            if isinstance(broker, str) and not broker.startswith(ENVIRONMENT) and not _is_mqtt(broker):
                table.wrong("broker", "must be mqtt://host:1883 or mqtts://user:password@host:8883, or env:NAME")
            topic = table.text("topic", "cim/v1/alerts/{domain}/{level}", most=1000)
            if {"+", "#", "\0"} & set(topic) or not set(_TOPIC_WORD.findall(topic)) <= set(TOPIC_WORDS):
                table.wrong("topic", f"must be a topic without + and #, with {{…}} of {', '.join(TOPIC_WORDS)}")
            if re.match(r"v1/gateway/|cim/v1/[^/]*/[^/]*/(telemetry|senml|waveform|status)$", topic):
                table.wrong("topic", "is one that devices publish to")
            table.flag("retain", False)
        if "resend" in table:
            table.duration("resend", MINUTE, SECOND, HOUR)
        table.text("ca", most=1000)

    def quiet(self, name: str, given: object) -> Quiet:
        table = _Table(given, f"quiet.{name}", self.problems, ("days", "from", "to", "levels", "zone"))
        levels = table.names("levels", table.table.get("levels", ["blue", "yellow", "orange"]))
        for level in levels:
            if level not in LEVELS:
                table.wrong("levels", f"must be of {', '.join(LEVELS)}")
        numbers = frozenset(LEVELS.index(level) + 1 for level in levels if level in LEVELS)
        return Quiet(name, table.zone(self.zone), table.hours(are_needed=True), numbers)

    def roster(self, name: str, given: object) -> Roster:
        table = _Table(given, f"roster.{name}", self.problems, ("zone", "shift", "exception", "otherwise"))
        otherwise: tuple[str, ...] = ()
        if "otherwise" not in table:
            table.wrong("otherwise", "is missing: who is told when nobody is on duty")
        else:
            otherwise = table.names("otherwise", table.table["otherwise"])
        shifts = self.shifts(table, "shift")
        if not shifts:
            table.wrong("shift", "is missing")
        return Roster(name, table.zone(self.zone), shifts, self.shifts(table, "exception"), otherwise)

    def shifts(self, roster: _Table, kind: str) -> tuple[Shift, ...]:
        value = roster.table.get(kind, [])
        if not isinstance(value, list):
            roster.wrong(kind, f"must be tables [[{roster.place}.{kind}]]")
            return ()
        found = []
        for number, given in enumerate(value, 1):
            is_dated = kind == "exception"
            allowed = ("from", "to", "receivers", "people", "date" if is_dated else "days")
            table = _Table(given, f"{roster.place} {kind} {number}", self.problems, allowed)
            date = self.date(table) if is_dated else None
            hours = table.hours(are_needed=not is_dated)
            receivers = table.names("receivers", table.table.get("receivers", []), may_be_empty=True)
            people = table.names("people", table.table.get("people", []), may_be_empty=True)
            if not receivers and not people:
                table.wrong("receivers", "is missing (or people)")
            found.append(Shift(hours, receivers, people, date))
        return tuple(found)

    def date(self, table: _Table) -> dt.date:
        value = table.table.get("date")
        if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
            return value
        try:
            return dt.date.fromisoformat(value) if isinstance(value, str) else dt.date.fromisoformat("")
        except ValueError:
            table.wrong("date", "must be a date such as 2026-10-01" if value is not None else "is missing")
            return dt.date(2000, 1, 1)

    def route(self, number: int, given: object) -> Route:
        table = _Table(given, f"route {number}", self.problems, _ROUTE)
        where: dict[str, tuple[str, ...]] = {}
        conditions = table.table.get("where", {})
        if not isinstance(conditions, dict):
            table.wrong("where", "must be a table")
            conditions = {}
        for name, value in conditions.items():
            if name not in WHERE:
                table.wrong(f"where.{name}", f"must be one of {', '.join(WHERE)}")
                continue
            where[name] = table.names(f"where.{name}", value)
            if name == "level" and set(where[name]) - set(LEVELS):
                table.wrong("where.level", f"must be of {', '.join(LEVELS)}")
        if "receivers" not in table:
            table.wrong("receivers", "is missing")
        receivers = table.names("receivers", table.table.get("receivers", ["-"]))
        stages = table.table.get("escalate", [])
        if not isinstance(stages, list):
            table.wrong("escalate", "must be a list of names, or a list of such lists, one a stage")
            stages = []
        return Route(
            table.text("name", f"route {number}", most=100), where, self.box(table), receivers,
            tuple(table.names("escalate", stage) for stage in stages),
            table.by_level("escalate_after", self.escalate_after, SECOND, may_be_never=True),
            table.by_level("wait", self.wait, 0), table.duration("interval", self.interval, 0, DAY),
            table.by_level("repeat", self.repeat, SECOND, may_be_never=True), self.grouping(table, self.group),
            table.flag("continue", False),
        )  # fmt: skip

    def box(self, table: _Table) -> tuple[float, float, float, float] | None:
        value = table.table.get("box")
        if value is None:
            return None
        ok = isinstance(value, list) and len(value) == 4
        if not ok or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            table.wrong("box", "must be [minlon, minlat, maxlon, maxlat]")
            return None
        west, south, east, north = map(float, value)
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
            table.wrong("box", "must be [minlon, minlat, maxlon, maxlat]")
        return west, south, east, north

    def cap_terms(self) -> CapTerms:
        if "cap" not in self.top:
            return CapTerms(zone=self.zone)
        table = _Table(self.top.table["cap"], "cap", self.problems, _CAP)
        default = CapTerms()
        sender, code = table.text("sender", default.sender, most=200), table.text("code", default.code)
        if re.search(r"[\s,<&]", sender):
            table.wrong("sender", "must not contain spaces, commas, < or &")
        if not re.fullmatch(r"[0-9A-Za-z]{14}", code):
            table.wrong("code", "must have 14 signs: division (6), agency (3), unit (3), extension (2)")
        scope = table.text("scope", default.scope)
        if scope not in ("Restricted", "Private"):
            table.wrong("scope", "must be Restricted or Private: no sensor warns the public by itself")
        radius = table.table.get("radius_m", default.radius_m)
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 < radius <= 100_000:
            table.wrong("radius_m", "must be a number above 0 and at most 100000")
            radius = default.radius_m
        return CapTerms(
            sender, table.words("sender_name", default.sender_name), code, self.zone, scope,
            table.text("restriction", default.restriction), table.text("contact"), float(radius),
        )  # fmt: skip

    def check_names(
        self,
        receivers: Mapping[str, Receiver],
        rosters: Mapping[str, Roster],
        quiets: Mapping[str, Quiet],
        people: Mapping[str, Person],
        routes: list[Route],
    ) -> None:
        def check(place: str, field_: str, names: Iterable[str], known: Iterable[str], what: str) -> None:
            for name in names:
                if name not in known:
                    self.problems.append(Problem(place, field_, f"there is no {what} {name[:60]!r}"))

        for receiver in receivers.values():
            place = f"receiver.{receiver.name}"
            check(place, "quiet", [receiver.quiet] if receiver.quiet else [], quiets, "quiet hours")
            check(place, "fallback", [receiver.fallback] if receiver.fallback else [], receivers, "receiver")
            if receiver.fallback == receiver.name:
                self.problems.append(Problem(place, "fallback", "is the receiver itself"))
        for roster in rosters.values():
            place = f"roster.{roster.name}"
            check(place, "otherwise", roster.otherwise, receivers, "receiver")
            for kind, several in (("shift", roster.shifts), ("exception", roster.exceptions)):
                for number, shift in enumerate(several, 1):
                    check(f"{place} {kind} {number}", "receivers", shift.receivers, receivers, "receiver")
                    check(f"{place} {kind} {number}", "people", shift.people, people, "person")
        both = receivers.keys() | rosters.keys()
        for number, route in enumerate(routes, 1):
            named = [name for name in route.receivers if name != "-"]
            check(f"route {number}", "receivers", named, both, "receiver or roster")
            for stage in route.escalate:
                check(f"route {number}", "escalate", stage, both, "receiver or roster")


def _said(span: Micros) -> str:
    """A bound of a duration, in its largest whole unit."""
    for unit, width in (("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", SECOND)):
        if span >= width and span % width == 0:
            return f"{span // width}{unit}"
    return f"{span // 1000}ms"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_address and url.isascii() and re.search(r"[\x00-\x20\x7f]", url) is None


def _is_mqtt(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("mqtt", "mqtts") and bool(parts.hostname)
