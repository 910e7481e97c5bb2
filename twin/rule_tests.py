"""Tests of rules: series in, alert events out, as users write them in `[[test]]` tables and as
`cimtwin check-rules --test` runs them.

A test's readings are sent through the production path (decoded, judged for quality and by the engine, told by the
alerts' life cycle) in order of time, with a clock for what is defined as silence; only the database is a few
dictionaries here. Nothing depends on how many tests run, or where.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from alerts.lifecycle import JUDGEMENTS, surviving
from alerts.rules import RuleSet, parse_duration
from ingest.judgement import Decision, Judgement
from ingest.recorded import read_recorded
from twin.catalog import AssetFacts, Catalog
from twin.city import Network
from twin.importing import decode_text
from twin.model import (
    DAY,
    LEVELS,
    MINUTE,
    SECOND,
    Alert,
    AlertEvent,
    Bools,
    Indices,
    Ints,
    InvalidRules,
    Micros,
    Problem,
    RawMessage,
    Readings,
    Refused,
    Sensor,
    iso,
    parse_time,
)
from twin.network.graph import Graph
from twin.reach import Known, Networks
from twin.sensors import sensors_from_json
from twin.units import Kind

START: Final = "2026-01-05T00:00:00Z"  # a Monday
STEP: Final = MINUTE
MOST: Final = 1_000_000  # readings of a test
AT_ONCE: Final = 2_000  # messages decided together

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*test[ \t]*\]\]", re.MULTILINE)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TOKEN = re.compile(rf"(?P<value>_|null|{_NUMBER})(?P<change>[+-](?:\d+\.?\d*|\.\d+))?(?:x(?P<times>\d+))?")
_PIPE = re.compile(r"(?:(?P<id>\S+) = )?(?P<start>\S+) (?P<way>[>-]) (?P<end>\S+) (?P<metres>\d+(?:\.\d+)?)m")
_TEST: Final = frozenset({"name", "start", "until", "step", "sensor", "values", "readings", "pipes", "rules", "events"})
_SENSOR: Final = frozenset(
    {"id", "kind", "unit", "tenant", "asset", "lon", "lat", "interval", "min", "max", "tags", "statistic", "area",
     "attributes", "step", "values"}
)  # fmt: skip

_OURS: Final = frozenset({"id", "interval", "area", "attributes", "step", "values"})  # not of a sensor list

Files = Callable[[str], Path]  # where a file lies that a test names


@dataclass(frozen=True, slots=True)
class Expected:
    """An alert event that should be told, `after` the start; what is None may be anything."""

    after: Micros
    transition: str
    level: str | None = None
    rule: str | None = None
    subject: str | None = None

    def __str__(self) -> str:
        parts = (said(self.after), self.transition, self.level, self.rule, self.subject)
        return " ".join(part for part in parts if part)

    def fits(self, got: Expected) -> bool:
        pairs = ((getattr(self, name), getattr(got, name)) for name in self.__slots__)
        return all(wanted is None or wanted == found for wanted, found in pairs)


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One test. `readings`: sensor (its place), µs, value (None: null), in order of time; `rules`: those whose events
    count, all where empty; `until`: how far the clock goes; `pipes`: the network that the sensors' assets are in."""

    name: str
    place: str
    start: Micros
    until: Micros
    sensors: tuple[Sensor, ...]
    facts: Mapping[int, AssetFacts]
    readings: tuple[tuple[int, Micros, float | None], ...]
    rules: tuple[str, ...]
    expected: tuple[Expected, ...]
    pipes: Networks | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that did not give what it should: events that are missing, and those that are too many."""

    test: RuleTest
    missing: tuple[Expected, ...]
    unexpected: tuple[Expected, ...]
    got: tuple[Expected, ...]

    def lines(self) -> list[str]:
        """What to tell people."""
        found = [f"{self.test.place}: {self.test.name}"]
        for wanted in self.test.expected:
            mark = "   <- missing / 没有出现" if wanted in self.missing else ""
            found.append(f"  expected / 应为   {wanted}{mark}")
        for got in self.got:
            mark = "   <- not expected / 不应出现" if got in self.unexpected else ""
            found.append(f"  got / 实际        {got}{mark}")
        if not self.test.expected:
            found.append("  expected / 应为   nothing / 无报警")
        if not self.got:
            found.append("  got / 实际        nothing / 无报警")
        return found


def said(after: Micros) -> str:
    """A span as tests write it: `1h30min`, `45s`; it is read back by `parse_duration`."""
    text, left = "-" if after < 0 else "", abs(after)
    for unit, width in (("d", DAY), ("h", 60 * MINUTE), ("min", MINUTE), ("s", SECOND), ("ms", 1000)):
        number, left = divmod(left, width)
        if number:
            text += f"{number}{unit}"
    return text or "0s"


# Reading


def read_tests(data: bytes, name: str, kinds: Mapping[str, Kind], files: Files) -> list[RuleTest]:
    """The tests of a file, beside its rules or alone. Raises `Refused` with every mistake."""
    text = decode_text(data, name)
    try:
        tables = tomllib.loads(text).get("test", [])
    except tomllib.TOMLDecodeError as error:
        raise InvalidRules([Problem(name, "", f"not TOML: {error}")], name) from None
    if not isinstance(tables, list):
        raise InvalidRules([Problem(name, "test", "must be an array of tables: [[test]]")], name)
    lines = [text.count("\n", 0, match.start()) + 1 for match in _HEADER.finditer(text)]
    if len(lines) != len(tables):
        lines = [0] * len(tables)
    problems: list[Problem] = []
    tests = []
    for number, (table, line) in enumerate(zip(tables, lines, strict=True), 1):
        place = f"{name}, test {number}" + (f", line {line}" if line else "")
        if not isinstance(table, dict):
            problems.append(Problem(place, "", "must be a table"))
            continue
        tests.append(_Reader(table, place, kinds, files, problems).test())
    if problems:
        raise InvalidRules(problems, name)
    return [test for test in tests if test is not None]


class _Reader:
    """Reads one test's table; each mistake goes into `problems`."""

    def __init__(
        self, table: dict[str, Any], place: str, kinds: Mapping[str, Kind], files: Files, problems: list[Problem]
    ) -> None:
        self.table = table
        self.place = place
        self.kinds = kinds
        self.files = files
        self.problems = problems

    def wrong(self, field: str, text: str) -> None:
        self.problems.append(Problem(self.place, field, text))

    def span(self, table: Mapping[str, Any], field: str, default: Micros) -> Micros:
        if field not in table:
            return default
        return self._span(table[field], field, default)

    def _span(self, given: object, field: str, default: Micros = 0) -> Micros:
        if given == 0 or given == "0":
            return 0
        try:
            return parse_duration(given if isinstance(given, str) else "")
        except ValueError as error:
            self.wrong(field, str(error))
            return default

    def test(self) -> RuleTest | None:
        table, before = self.table, len(self.problems)
        for field in table.keys() - _TEST:
            self.wrong(str(field)[:80], "unknown field")
        name = table.get("name", "")
        if not isinstance(name, str):
            self.wrong("name", "must be a text")
        given = table.get("sensor", [])
        entries = [given] if isinstance(given, dict) else given
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            self.wrong("sensor", "is missing: a table, or several [[test.sensor]]")
            return None
        sensors, facts = self._sensors(entries)
        if len(self.problems) > before:
            return None
        start = self._start()
        rows = [(s, start + after, v) for s, entry in enumerate(entries) for after, v in self._series(entry, entries)]
        if "readings" in table:
            rows += self._recorded(sensors)
            if "start" not in table and rows:
                start = min(at for _, at, _ in rows)
        if len(rows) > MOST:
            self.wrong("values", f"more than {MOST} readings")
        rows.sort(key=lambda row: row[1])
        last = rows[-1][1] if rows else start
        until = start + self.span(table, "until", last - start)
        if until < last:
            self.wrong("until", "lies before the last reading")
        rules = table.get("rules", [])
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            self.wrong("rules", "must be a list of ids")
            rules = []
        expected = self._events()
        pipes = self._pipes()
        if len(self.problems) > before:
            return None
        return RuleTest(
            str(name),
            self.place,
            start,
            until,
            tuple(sensors),
            facts,
            tuple(rows),
            tuple(rules),
            tuple(expected),
            pipes,
        )

    def _start(self) -> Micros:
        given = self.table.get("start", START)
        try:
            return parse_time(given if isinstance(given, str) else "")
        except (ValueError, OverflowError):
            self.wrong("start", "must be an RFC 3339 time with its zone, in quotes")
            return parse_time(START)

    def _sensors(self, entries: list[dict[str, Any]]) -> tuple[list[Sensor], dict[int, AssetFacts]]:
        objects, facts = [], {}
        for number, entry in enumerate(entries):
            for field in entry.keys() - _SENSOR:
                self.wrong(f"sensor.{field}"[:80], "unknown field")
            id_ = entry.get("id", f"s{number + 1}/v")
            device, _, prop = id_.partition("/") if isinstance(id_, str) else ("", "", "")
            listed = {name: entry[name] for name in (entry.keys() & _SENSOR) - _OURS}
            if "interval" in entry:
                listed["interval_s"] = self._span(entry["interval"], "sensor.interval", STEP) / SECOND
            objects.append({**listed, "device": device, "property": prop})
            attributes, area = entry.get("attributes", {}), entry.get("area", "")
            if not isinstance(attributes, dict) or not isinstance(area, str):
                self.wrong("sensor.attributes", "must be a table of numbers, area a text")
                continue
            numbers = {
                name: float(value)
                for name, value in attributes.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            facts[number] = AssetFacts(str(entry.get("asset") or ""), area, numbers)
        try:
            return sensors_from_json(objects, self.kinds), facts
        except Refused as refused:
            for problem in refused.problems:
                self.wrong(f"sensor.{problem.field}", f"{problem.text} ({problem.place})")
            return [], {}

    def _series(self, entry: Mapping[str, Any], entries: list[dict[str, Any]]) -> list[tuple[Micros, float | None]]:
        """The readings of a sensor after the start."""
        text = entry.get("values", self.table.get("values", "") if len(entries) == 1 else "")
        if not isinstance(text, str):
            self.wrong("values", 'must be a text such as "0x5 12 18x3 _"')
            return []
        at, step = 0, self.span(entry, "step", self.span(self.table, "step", STEP))
        rows: list[tuple[Micros, float | None]] = []
        for token in text.split():
            if token[0] == "@":
                at = self._span(token[1:], "values", at)
                continue
            if token[0] == "/":
                # The next reading comes this long after the one before.
                new = self._span(token[1:], "values", step)
                at, step = (at - step + new if rows else at), new
                continue
            match = _TOKEN.fullmatch(token)
            times = int(match["times"] or 1) if match else 0
            if match is None or not 0 < times <= MOST or (match["change"] and not match["times"]):
                self.wrong("values", f"{token[:40]!r} is none of 12.5, 0x5, 0+2x5, _, null, @10min, /30s")
                return []
            if len(rows) + times > MOST:
                self.wrong("values", f"more than {MOST} readings")
                return []
            value, change = match["value"], float(match["change"] or 0)
            for n in range(times):
                if value != "_":
                    rows.append((at, None if value == "null" else float(value) + n * change))
                at += step
        return rows

    def _recorded(self, sensors: Sequence[Sensor]) -> list[tuple[int, Micros, float | None]]:
        """Recorded readings (contract's CSV) of the test's sensors."""
        name = self.table["readings"]
        try:
            recorded = read_recorded(self.files(name if isinstance(name, str) else "").read_bytes(), str(name))
        except OSError as error:
            self.wrong("readings", f"{name}: {error.strerror}")
            return []
        except Refused as refused:
            self.problems.extend(refused.problems)
            return []
        place = {(sensor.device, sensor.property): n for n, sensor in enumerate(sensors)}
        mine = [place.get((device, prop), -1) for device, prop in recorded.sensors]
        for (device, prop), n in zip(recorded.sensors, mine, strict=True):
            if n < 0:
                self.wrong("readings", f"{name} has readings of {device}/{prop}, which is no sensor of the test")
        columns = zip(recorded.sensor.tolist(), recorded.observed_at.tolist(), recorded.value.tolist(), strict=True)
        return [(mine[s], at, None if value != value else value) for s, at, value in columns]

    def _pipes(self) -> Networks | None:
        """The network of a test."""
        given = self.table.get("pipes", [])
        texts = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
        pipes = [pipe for text in texts if (pipe := _PIPE.fullmatch(" ".join(text.split()))) is not None]
        if not isinstance(given, list) or len(pipes) < len(given):
            self.wrong("pipes", 'must be a list such as ["J1 > J2 120m", "P7 = J2 - J3 80.5m"]; > is the way it flows')
        if not pipes:
            return None
        number: dict[str, int] = {}
        ends = [[number.setdefault(pipe[end], len(number)) for end in ("start", "end")] for pipe in pipes]
        start, end = np.array(ends, np.int32).T
        nodes, edges = np.full(len(number), np.nan), np.full(len(pipes), np.nan)
        ids = [pipe["id"] or "" for pipe in pipes]
        network = Network(
            "", [*number], [""] * len(number), nodes, nodes, nodes, nodes, nodes,
            ids, [""] * len(pipes), start, end, np.array([float(pipe["metres"]) for pipe in pipes]),
            edges, edges, edges, np.array([pipe["way"] == ">" for pipe in pipes]).astype(np.int8),
            np.ones(len(pipes), bool),
        )  # fmt: skip
        return Networks({(0, 0): Known(Graph(network), [*number, *ids])})

    def _events(self) -> list[Expected]:
        given = self.table.get("events")
        if not isinstance(given, list) or not all(isinstance(event, str) for event in given):
            self.wrong("events", 'must be a list such as ["6min raised blue road-ponding"]; nothing: []')
            return []
        found = []
        for text in given:
            after, _, rest = text.strip().partition(" ")
            words = rest.split()
            if not words or words[0] not in JUDGEMENTS:
                self.wrong("events", f"{text[:80]!r} names none of {', '.join(JUDGEMENTS)} after its time")
                continue
            parts: dict[str, str] = {}
            for word in words[1:]:
                part = "level" if word in LEVELS else "subject" if "/" in word else "rule"
                if part in parts:
                    self.wrong("events", f"{text[:80]!r} has two of {part}")
                parts[part] = word
            found.append(Expected(self._span(after, "events"), words[0], **parts))
        return found


# Running


class _Archive:
    """What a database would hold of a test."""

    def __init__(self) -> None:
        self.readings: dict[int, dict[int, tuple[int, float, int]]] = {}
        self.events: list[AlertEvent] = []
        self.by_id: dict[str, Alert] = {}

    def known(self, sensor: Indices, observed_at: Ints, table: str = "readings") -> Bools:
        keys = zip(sensor.tolist(), observed_at.tolist(), strict=True)
        return np.array([at in self.readings.get(s, ()) for s, at in keys], bool)

    def history(self, sensor: Indices, after: Ints) -> Readings:
        rows = [
            (s, at, *rest)
            for s, since in zip(sensor.tolist(), after.tolist(), strict=True)
            for at, rest in sorted(self.readings.get(s, {}).items())
            if at > since
        ]
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        types = (np.int32, np.int64, np.int64, np.float64, np.uint8)
        return Readings(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))

    def course(self, ids: Sequence[str], rules: Sequence[str] = (), after: Micros = 0) -> list[AlertEvent]:
        mine = {*ids} | {e.alert_id for e in self.events if e.transition == "raised" and e.observed_at >= after
                         and e.rule in rules}  # fmt: skip
        told = [e for e in surviving(self.events) if e.transition in JUDGEMENTS and e.alert_id in mine]
        return sorted(told, key=lambda e: e.observed_at)

    def said(self, sensor: Indices, after: Ints) -> list[AlertEvent]:
        since = dict(zip(sensor.tolist(), after.tolist(), strict=True))
        told = [e for e in surviving(self.events) if e.transition in JUDGEMENTS and e.sensor_index in since]
        found = [event for event in told if event.observed_at > since[event.sensor_index]]
        return sorted(found, key=lambda event: (event.observed_at, event.seq))

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        return [self.by_id[id_] for id_ in ids if id_ in self.by_id]

    def commit(self, decision: Decision) -> None:
        stored = decision.outcome.readings
        columns = (stored.sensor, stored.observed_at, stored.received_at, stored.value, stored.quality)
        for sensor, at, *rest in zip(*(column.tolist() for column in columns), strict=True):
            self.readings.setdefault(sensor, {})[at] = (rest[0], rest[1], rest[2])
        for event in decision.outcome.events:
            self.events.append(replace(event, seq=len(self.events) + 1))
        self.by_id.update((alert.id, alert) for alert in decision.outcome.alerts)


def run(test: RuleTest, rules: RuleSet, kinds: dict[str, Kind]) -> Failure | None:
    """What is wrong with what the rules give of the test's readings; None where they give what is expected."""
    got = told(test, rules, kinds)
    left = list(got)
    missing = []
    for wanted in test.expected:
        found = next((event for event in left if wanted.fits(event)), None)
        if found is None:
            missing.append(wanted)
        else:
            left.remove(found)
    return Failure(test, tuple(missing), tuple(left), tuple(got)) if missing or left else None


def told(test: RuleTest, rules: RuleSet, kinds: dict[str, Kind]) -> list[Expected]:
    """The alert events that the rules give of the test's readings."""
    catalog = Catalog(kinds)
    catalog.put(list(enumerate(test.sensors)))
    catalog.describe(test.facts, rules.attributes)
    judgement = Judgement(
        catalog, rules, 1, lateness=DAY, default_tenant="default", max_bytes=1 << 20, started_at=test.start,
        reach=test.pipes,
    )  # fmt: skip
    archive = _Archive()

    def stand(decision: Decision) -> None:
        archive.commit(decision)
        judgement.apply(decision)

    messages = [_message(test.sensors[sensor], at, value) for sensor, at, value in test.readings]
    for begin in range(0, len(messages), AT_ONCE):
        batch = messages[begin : begin + AT_ONCE]
        now = batch[-1].received_at
        stand(judgement.decide(batch, judgement.decode(batch), archive, now))
        stand(judgement.tick(now, False, archive))
    stand(judgement.tick(test.until, False, archive))
    events = [
        Expected(
            event.observed_at - test.start,
            event.transition,
            LEVELS[event.level - 1] if event.level else None,
            event.rule,
            event.sensor or event.asset,
        )
        for event in surviving(archive.events)
        if event.transition in JUDGEMENTS and (not test.rules or event.rule in test.rules)
    ]
    return sorted(events, key=lambda event: (event.after, event.rule or "", event.subject or ""))


def _message(sensor: Sensor, at: Micros, value: float | None) -> RawMessage:
    payload = orjson.dumps({"ts": iso(at), "values": {sensor.property: value}})
    return RawMessage(f"cim/v1/{sensor.tenant}/{sensor.device}/telemetry", payload, at)
