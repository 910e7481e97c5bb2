"""A replay tells what was told live: from any start, at any pace, after any seeking, and without the future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ingest.replay
from alerts.lifecycle import Digest
from alerts.rules import parse_rules
from ingest.judgement import Decision, Judgement
from ingest.replay import Replay
from tests.ingest.test_judgement import KINDS, RULES, START
from twin.catalog import Catalog
from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    Alert,
    AlertEvent,
    AlertState,
    Counts,
    Indices,
    Ints,
    Micros,
    Outcome,
    Readings,
    Sensor,
)

OTHER_RULES = RULES.replace("blue = 10, yellow = 15", "blue = 5, yellow = 12").replace('"6min"', '"9min"')
KIND = "drainage.ponding_depth"


def a_catalog() -> Catalog:
    catalog = Catalog(KINDS)
    sensors = [Sensor(f"d{n}", "depth", KIND, "cm", lon=114 + n, lat=22.5, min=0, max=100) for n in range(3)]
    catalog.put(list(enumerate(sensors)))
    return catalog


def parse(text: str) -> object:
    return parse_rules(text, KINDS)


class Recorded:
    """What a database would hold, in memory (the real one: tests/system/test_replays.py): readings, and the events
    that judging all of them told."""

    def __init__(self, readings: Readings, rules: Sequence[tuple[Micros, str]], acknowledged: Sequence[Micros] = ()):
        order = np.lexsort((readings.sensor, readings.observed_at))
        self.all = readings.take(order)
        self.rule_sets = [(n + 1, at, text) for n, (at, text) in enumerate(rules)]
        self.asked_until = 0
        self.told: list[AlertEvent] = []
        self.rows: dict[str, Alert] = {}
        judgement = Judgement(a_catalog(), parse(rules[0][1]), 1, lateness=DAY, default_tenant="", max_bytes=0)
        moments = sorted({*acknowledged, *(at for at, _ in rules[1:]), 1 << 61})
        begin = 0
        for moment in moments:
            part = self.all.take((self.all.observed_at >= begin) & (self.all.observed_at < moment))
            begin = moment
            verdicts, update = judgement.verdicts(part.take(part.judgeable()))
            docket = judgement.docket(0)
            for transition in verdicts:
                docket.judge(transition)
            self._commit(judgement, docket, [update])
            for version, (at, text) in enumerate(rules, 1):
                if at == moment and version > 1:
                    before = judgement.rules
                    judgement.refit(parse(text), version)
                    docket = judgement.docket(at)
                    for alert in judgement.orphans(before):
                        docket.close(alert, None, "gone", because_removed=True)
                    self._commit(judgement, docket, [])
            if moment in acknowledged:
                docket = judgement.docket(moment)
                for alert in list(judgement.book.open.values()):
                    if alert.state in (AlertState.ACTIVE_UNACKNOWLEDGED, AlertState.CLEARED_UNACKNOWLEDGED):
                        docket.acknowledge(alert, "li.wei", None)
                self._commit(judgement, docket, [])

    def _commit(self, judgement: Judgement, docket: object, updates: list[object]) -> None:
        outcome = Outcome(Readings.empty(), Counts(), alerts=docket.alerts)
        judgement.apply(Decision(outcome, updates=updates))
        self.told += [replace(event, seq=len(self.told) + n + 1) for n, event in enumerate(docket.events)]
        self.rows |= {alert.id: alert for alert in docket.alerts}

    def rules(self) -> list[tuple[int, Micros, str]]:
        return self.rule_sets

    def readings(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> Readings:
        since = np.full(3, 1 << 62)
        since[sensors] = np.maximum(starts, first)
        return self.all.take((self.all.observed_at >= since[self.all.sensor]) & (self.all.observed_at < end))

    def read_ahead(self, *what: object) -> None:
        """Nothing: all is here."""

    def _within(self, sensors: Indices, start: Micros, end: Micros) -> Readings:
        return self.readings(sensors, np.full(len(sensors), start), start, end)

    def received_within(self, sensors: Indices, start: Micros, end: Micros) -> tuple[Micros, Micros]:
        at = self._within(sensors, start, end).received_at
        return (int(at.min()), int(at.max())) if len(at) else (0, 0)

    def last_observed_before(self, sensors: Indices, then: Micros, start: Micros, end: Micros) -> Micros:
        found = self._within(sensors, start, end)
        return int(found.observed_at[found.received_at < then].max(initial=0))

    def events(self, start: Micros, end: Micros) -> list[AlertEvent]:
        return [event for event in self.told if start <= event.observed_at < end]

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        return [self.rows[i] for i in ids]

    def open_between(self, start: Micros, end: Micros) -> tuple[list[Alert], list[AlertEvent]]:
        return list(self.rows.values()), [event for event in self.told if event.observed_at < end]


def told(events: Sequence[AlertEvent]) -> list[tuple[object, ...]]:
    """Contract 7's comparison."""
    return sorted((e.observed_at, e.rule, e.sensor, e.transition, int(e.level), e.value, e.threshold) for e in events)


def shown(replay: Replay) -> dict[str, Alert]:
    """The open alerts."""
    return replay.judgement.book.open


VALUES = st.sampled_from([0.0, 0.2, 4.0, 8.5, 9.5, 11.0, 14.0, 16.0, 30.0, 45.0, 120.0, float("nan")])


@st.composite
def streams(draw: st.DrawFn) -> Readings:
    """Two hours of three sensors, mostly a reading a minute in runs of alike values, with gaps, nulls and bad ones."""
    sensor, at, value, quality = [], [], [], []
    for index in range(3):
        minute = 0
        while minute < 120:
            level = draw(VALUES)
            for _ in range(draw(st.integers(1, 12))):
                sensor.append(index)
                at.append(START + minute * MINUTE + index)
                value.append(level)
                quality.append(draw(st.sampled_from([0, 0, 0, 0, 2, 16])))
                minute += draw(st.sampled_from([1, 1, 1, 2, 15]))
    at_column = np.array(at, np.int64)
    return Readings(np.array(sensor, np.int32), at_column, at_column + 40, np.array(value), np.array(quality, np.uint8))


MOMENTS = st.integers(0, 130).map(lambda minute: START + minute * MINUTE)
SLOW = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


def a_replay(tape: Recorded, start: Micros, end: Micros, **more: object) -> Replay:
    replay = Replay(tape, a_catalog(), parse, start, end, **more)
    replay.prepare()
    return replay


def play(replay: Replay, width: Micros, most: int) -> list[AlertEvent]:
    found = []
    while replay.time < replay.end:
        found += replay.advance(replay.time + width, most).events
    return found


@SLOW
@given(streams(), st.lists(MOMENTS, min_size=2, max_size=2), st.lists(MOMENTS, max_size=3), st.data())
def test_any_range_at_any_pace_tells_what_was_told_live(
    stream: Readings, ends: list[Micros], acknowledged: list[Micros], data: st.DataObject
) -> None:
    start, end = min(ends), max(ends) + MINUTE
    tape = Recorded(stream, [(0, RULES)], acknowledged)
    expected = told([e for e in tape.told if start <= e.observed_at < end])
    width = data.draw(st.integers(1, 40)) * MINUTE // 2
    replay = a_replay(tape, start, end)
    events = play(replay, width, data.draw(st.integers(1, 200)))
    assert told(events) == expected
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert str(replay.digest) == str(replay.recorded_digest())
    assert replay.told == int(((stream.observed_at >= start) & (stream.observed_at < end)).sum())


@SLOW
@given(streams(), st.lists(MOMENTS, min_size=1, max_size=8), st.data())
def test_after_any_seeking_everything_is_as_if_played_to_there(
    stream: Readings, moments: list[Micros], data: st.DataObject
) -> None:
    tape = Recorded(stream, [(0, RULES)], [START + 31 * MINUTE])
    start, end = START, START + 2 * HOUR
    replay = a_replay(tape, start, end)
    for moment in moments:
        replay.advance(replay.time + data.draw(st.integers(0, 20)) * MINUTE, 50)
        replay.seek(moment)
        straight = a_replay(tape, start, end)
        straight.advance(moment, 1 << 40)
        assert replay.time == straight.time == min(moment, end)
        assert (str(replay.digest), replay.told) == (str(straight.digest), straight.told)
        assert shown(replay) == shown(straight)
        np.testing.assert_array_equal(replay.judgement.state.observed_at, straight.judgement.state.observed_at)
        np.testing.assert_array_equal(replay.judgement.state.value, straight.judgement.state.value)
        if moment < end:
            assert [e.id for e in play(replay, HOUR, 70)] == [e.id for e in play(straight, HOUR, 1 << 40)]


@SLOW
@given(streams(), streams(), MOMENTS)
def test_what_is_told_by_a_moment_does_not_depend_on_what_comes_after(
    stream: Readings, other: Readings, moment: Micros
) -> None:
    before, after = stream.observed_at < moment, other.observed_at >= moment
    one, two = (
        Recorded(stream, [(0, RULES)]),
        Recorded(Readings.join([stream.take(before), other.take(after)]), [(0, RULES)]),
    )
    start, end = START - MINUTE, START + 3 * HOUR
    first, second = a_replay(one, start, end), a_replay(two, start, end)
    events = first.advance(moment, 1 << 40), second.advance(moment, 1 << 40)
    assert [e.id for e in events[0].events] == [e.id for e in events[1].events]
    for part in events[0].readings + events[1].readings:
        assert (part.observed_at < moment).all()
    assert (first.judgement.state.observed_at < moment).all()


@SLOW
@given(streams(), MOMENTS, MOMENTS)
def test_readings_are_judged_by_the_rules_that_were_in_force_when_they_came(
    stream: Readings, changed: Micros, start: Micros
) -> None:
    tape = Recorded(stream, [(0, RULES), (changed, OTHER_RULES)])
    end = START + 3 * HOUR
    events = play(a_replay(tape, start, end), HOUR, 1 << 40)
    assert told(events) == told([e for e in tape.told if start <= e.observed_at < end])


@SLOW
@given(streams())
def test_other_rules_tell_what_they_would_have_told(stream: Readings) -> None:
    tape, would_be = Recorded(stream, [(0, RULES)], [START + HOUR]), Recorded(stream, [(0, OTHER_RULES)])
    end = START + 3 * HOUR
    replay = a_replay(tape, START - MINUTE, end, given=parse(OTHER_RULES))
    judged = [e for e in play(replay, HOUR, 1 << 40) if e.transition != "acknowledged"]
    assert told(judged) == told([e for e in would_be.told if e.observed_at < end])


def test_ends_of_a_range_are_exact_and_sensors_are_chosen() -> None:
    at = START + np.arange(10) * MINUTE
    stream = Readings(
        np.repeat([0, 1], 10).astype(np.int32), np.tile(at, 2), np.tile(at, 2), np.zeros(20), np.zeros(20, np.uint8)
    )
    tape = Recorded(stream, [(0, RULES)])
    replay = a_replay(tape, int(at[2]), int(at[5]), sensors=np.array([1], np.int32))
    played = Readings.join(list(replay.advance(int(at[9])).readings))
    assert played.sensor.tolist() == [1, 1, 1]
    assert played.observed_at.tolist() == at[2:5].tolist()
    assert replay.time == at[5]


def test_nothing_recorded_is_an_empty_replay() -> None:
    replay = a_replay(Recorded(Readings.empty(), [(0, RULES)]), START, START + DAY)
    assert play(replay, HOUR, 10) == []
    assert (replay.told, str(replay.digest)) == (0, str(Digest()))


def test_memory_is_bounded_by_letting_loaded_readings_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.replay, "LOAD_READINGS", 100)
    monkeypatch.setattr(ingest.replay, "KEEP_READINGS", 500)
    monkeypatch.setattr(ingest.replay, "STEP_READINGS", 60)
    at = START + np.arange(5000) * MINUTE
    depth = 20 + 20 * np.sin(np.arange(5000) / 50)
    stream = Readings(np.zeros(5000, np.int32), at, at, depth, np.zeros(5000, np.uint8))
    tape = Recorded(stream, [(0, RULES)])
    replay = a_replay(tape, START, int(at[-1]) + 1)
    events = []
    while replay.time < replay.end:
        events += replay.advance(replay.end).events
        assert sum(len(w.readings) for w in replay._windows) <= 500 + 2 * 400
    assert told(events) == told(tape.told)
    replay.seek(START)
    assert [e.id for e in play(replay, DAY, 1 << 40)] == [e.id for e in events]
    assert str(replay.digest) == str(replay.recorded_digest())
