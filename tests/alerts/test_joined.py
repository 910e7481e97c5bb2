"""Detectors that look at several sensors' values, with samples joined the slow and plain way as the judge."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from alerts_city import MINUTE, T0, catalog, feed, key, plain, readings, rules, sensor
from alerts_oracle import LimitWatch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detectors import Series, cities, cut, flat, state_of

import alerts.detectors.spectrum
import alerts.detectors.together
from alerts.detectors.together import named
from alerts.engine import Engine, EngineState
from alerts.groups import groups_of
from alerts.judge import judge
from alerts.lifecycle import AlertBook, Docket
from alerts.rules import Rule
from twin.catalog import AssetFacts
from twin.model import InvalidRules, Sensor, Transition

KIND = 'kind = "drainage.ponding_depth"\n'
TIMES = 'max_age = "4min"\npatience = "3min"\n'
RULES = rules(
    "".join(
        f'[[rule]]\nid = "r{i}"\n{body}'
        for i, body in enumerate(
            [
                'sensors = ["d0/v"]\ndetector = "residual"\nmodel = "d1/v"\nside = "either"\n'
                'levels = { blue = 2, red = 6 }\nhold = "1min"\nclear = { margin = "20%", hold = "1min" }\n' + TIMES,
                'sensors = ["d2/v", "d3/v"]\ndetector = "residual"\nmodel = "d0/{property}"\nside = "below"\n'
                'levels = { yellow = 50 }\nunit = "%"\nmax_gap = "5min"\n' + TIMES,
                f'{KIND}detector = "neighbours"\nwithin = "1km"\ncount = 2\nlevels = {{ blue = 2, red = 4 }}\n{TIMES}',
                'sensors = ["d1/v"]\ndetector = "spectrum"\nlearn = "6min"\ntemperature = "d2/v"\nside = "either"\n'
                f"levels = {{ yellow = 2 }}\n{TIMES}",
                'sensors = ["d3/v"]\ndetector = "spectrum"\nlearn = "6min"\nlevels = { red = 3 }\n' + TIMES,
                f'{KIND}detector = "anomaly"\nover = "rule"\nbudget = 1000\n{TIMES}',
            ]
        )
    )
)
CITY = catalog(*(sensor(n, lon=114 + n / 1000, lat=30.5) for n in range(4)))


@pytest.fixture(autouse=True)
def _learns_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Series of tests are short."""
    monkeypatch.setattr(alerts.detectors.spectrum, "LEAST", 4)
    for name, value in (("LEARNT", 10), ("START", 2), ("WARM", 5), ("MOVES", 2), ("CALM", 2)):
        monkeypatch.setattr(alerts.detectors.together, name, value)


def as_of(rows: list[tuple[int, float]], t: int, max_age: int) -> float | None:
    before = [(at, value) for at, value in rows if at <= t]
    return before[-1][1] if before and t - before[-1][0] <= max_age else None


def expected(rule: Rule, group: list[int], series: Series) -> list[Transition]:
    """What a residual or neighbours rule says of one group."""
    p = rule.parameters
    assert p is not None
    limits = {k + 1: limit for k, limit in enumerate(rule.levels) if limit == limit}
    down = {k: -limit for k, limit in limits.items()}
    watch = LimitWatch(rule, {} if rule.side == "below" else limits, {} if rule.side == "above" else down)
    own = series[group[0]]
    newest = [max((t for t, _ in series[m]), default=None) for m in group]
    found = []
    for t, value in own:
        if not all(n is not None and n >= t for n in newest) and t > own[-1][0] - p.patience:  # type: ignore[attr-defined]
            break
        others = [v for m in group[1:] if (v := as_of(series[m], t, p.max_age)) is not None]  # type: ignore[attr-defined]
        x: float | None = None
        if len(others) >= getattr(p, "count", 1):
            middle = statistics.median(others)
            x = value - middle
            if p.is_percent:  # type: ignore[attr-defined]
                x = 100 * x / abs(middle) if middle else None
        told = watch.see(t, x)
        if told is not None:
            found.append(Transition(RULES.index(rule.id), group[0], t, *told))
    return found


@given(cities(most=14))
@settings(max_examples=60, deadline=None)
def test_one_batch_gives_what_joining_by_hand_gives(series: Series) -> None:
    engine = Engine(RULES, CITY)
    told = feed(engine, flat(series))
    assert not engine.failures
    by_hand: list[Transition] = []
    for rule in RULES.rules[:3]:
        sensors = [int(i) for i in (range(4) if rule.kind else (int(name[1]) for name in rule.sensors))]
        for row in groups_of(rule, np.array(sensors, np.int32), CITY).tolist():
            by_hand += expected(rule, [m for m in row if m >= 0], series)
    assert plain(t for t in told if t.rule < 3) == plain(by_hand)


@given(cities(), st.lists(st.integers(0, 160), max_size=12))
@settings(max_examples=60, deadline=None)
def test_batching_and_restarts_change_nothing(series: Series, marks: list[int]) -> None:
    whole = Engine(RULES, CITY)
    once = feed(whole, flat(series))
    engine, told = Engine(RULES, CITY), []
    for batch in cut(flat(series), marks):
        told += feed(engine, batch)
        fresh = Engine(RULES, CITY)
        fresh.restore(EngineState.from_bytes(engine.snapshot().to_bytes()))
        engine = fresh
    assert not engine.failures
    assert plain(told) == plain(once)
    assert {key(t): repr(t.peak) for t in told} == {key(t): repr(t.peak) for t in once}
    ours, theirs = state_of(engine), state_of(whole)
    for state in (ours, theirs):  # how far ahead a member was remembered to be depends on who came first
        for table in state.values():
            table[:] = [column for column in table if column[0] != "join_floor"]
    assert ours == theirs


@given(cities(), st.integers(0, 160))
@settings(max_examples=40, deadline=None)
def test_nothing_looks_ahead(series: Series, mark: int) -> None:
    rows = sorted(flat(series), key=lambda r: (r[1], r[0]))
    early = plain(feed(Engine(RULES, CITY), rows[:mark]))
    everything = plain(feed(Engine(RULES, CITY), rows))
    # What the end of the stream still waits for comes later; what was said stays said.
    assert [t for t in everything if t in early] == early


def test_a_reading_for_a_time_that_its_group_has_passed_is_told_to_be_late() -> None:
    engine = Engine(RULES, CITY)
    feed(engine, [(0, T0 + n * MINUTE, 5.0) for n in range(10)])  # waits three minutes for the model, not longer
    late = readings([(1, T0 + n * MINUTE, 1.0) for n in (2, 9)])
    found = engine.late_for_groups(late.sensor, late.observed_at)
    residual = {engine.watch_of(group)[0]: times for group, times in found.items() if group[0] == "residual"}
    assert residual == {0: {1: T0 + 2 * MINUTE}}
    assert engine.late_for_groups(late.sensor, late.observed_at + 9 * MINUTE) == {}


def test_a_model_may_be_ahead_of_what_it_models() -> None:
    engine = Engine(RULES, CITY)
    feed(engine, [(1, T0 + n * MINUTE, 5.0 + n) for n in range(30)])
    (told,) = [t for t in feed(engine, [(0, T0, 5.0), (0, T0 + MINUTE, 9.0), (0, T0 + 2 * MINUTE, 10.0)]) if not t.rule]
    assert (told.observed_at - T0, told.value, told.threshold, told.since - T0) == (2 * MINUTE, 3.0, 2.0, MINUTE)
    # Further ahead than is remembered: the observed one is late for its group then, and judged from history.
    feed(engine, [(1, T0 + n * MINUTE, 5.0) for n in range(30, 120)])
    late = engine.late_for_groups(np.array([0], np.int32), np.array([T0 + 3 * MINUTE]))
    assert [engine.watch_of(group)[0] for group in late if group[0] == "residual"] == [0]


def test_groups_keep_their_state_when_others_grow_and_open_levels_when_they_grow_themselves() -> None:
    text = f'[[rule]]\nid = "n"\n{KIND}detector = "neighbours"\nwithin = "150m"\ncount = 1\nlevels = {{ blue = 2 }}\n'
    small = catalog(*(sensor(n, lon=114 + n / 1000, lat=30.5) for n in range(4)))
    old = Engine(rules(text), small)
    feed(old, [(s, T0, 9.0 * (s == 0)) for s in range(4)])
    assert [c.tolist() for c in old.levels()] == [[0], [0], [1]]
    grown = catalog(*small.sensors, sensor(4, lon=113.9995, lat=30.5), sensor(5, lon=113.9996, lat=30.5))
    new = Engine(rules(text), grown)
    new.adopt(old)
    assert not new.failures
    assert [c.tolist() for c in new.levels()] == [[0], [0], [1]]
    told = feed(new, [(s, T0 + MINUTE, 0.0) for s in range(6)])
    assert [(t.sensor, t.before, t.after) for t in told] == [(0, 1, 0)]
    assert new.joined["neighbours"].join.columns["join_at"].shape[1] > 3


def bridge(days: int, minutes: int, lowered: int) -> list[tuple[int, int, float]]:
    """A bridge's first frequency (Hz) over a year's beginning, warmer by the day and the season; from day `lowered`
    on it is 1.2 % less."""
    draw = np.random.default_rng(7)
    rows: list[tuple[int, int, float]] = []
    for n in range(days * 1440 // minutes):
        day = n * minutes / 1440
        warmth = 8 + 0.15 * day + 6 * np.sin(2 * np.pi * day) + draw.normal(0, 0.3)
        frequency = 3.9 * (1 - 0.002 * warmth) * (0.988 if day >= lowered else 1) + draw.normal(0, 0.008)
        rows += [(0, T0 + n * minutes * MINUTE, frequency), (1, T0 + n * minutes * MINUTE, warmth)]
    return rows


@pytest.mark.parametrize("corrected", [True, False])
def test_a_bridge_that_softens_is_told_from_one_that_warms(corrected: bool) -> None:
    city = catalog(
        Sensor("b", "acc.frequency", "signal.frequency", "Hz", asset="bridge", statistic="frequency"),
        Sensor("t", "air", "bridge.temperature", "°C", asset="bridge" if corrected else "other"),
    )
    text = (
        '[[rule]]\nid = "soft"\nsensors = ["b/acc.frequency"]\ndetector = "spectrum"\nside = "below"\n'
        'learn = "14d"\nlevels = { yellow = 4 }\nhold = "2h"\nclear = { hold = "2h" }\n'
    )
    told = feed(Engine(rules(text), city), bridge(60, 10, 50))
    if corrected:
        first = told[0]
        assert 50 <= (first.observed_at - T0) / (1440 * MINUTE) < 50.2
        assert first.value < -4
    else:  # what the days do to it hides what the support does
        assert not any(50 <= (t.observed_at - T0) / (1440 * MINUTE) < 50.2 for t in told)


def test_what_a_healthy_bridge_has_shown_is_no_open_alert_and_lasts_beyond_a_start() -> None:
    city = catalog(Sensor("b", "acc.frequency", "signal.frequency", "Hz", statistic="frequency"))
    text = '[[rule]]\nid = "soft"\nsensors = ["b/acc.frequency"]\ndetector = "spectrum"\nlevels = { yellow = 4 }\n'
    engine = Engine(rules(text), city)
    assert feed(engine, [(0, T0 + n * MINUTE, 4.0) for n in range(20)]) == []
    assert not len(engine.levels()[0])
    before = state_of(engine)
    engine.settle([])
    assert state_of(engine) == before


def test_an_alert_of_several_sensors_names_the_most_unusual_and_marks_the_readings_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    city = catalog(*(Sensor("loop", f"c{n}", "signal.value", "", asset="pump") for n in range(5)))
    text = '[[rule]]\nid = "loop"\ntitle = "Loop"\nkind = "signal.value"\ndetector = "anomaly"\nover = "device"\n'
    draw = np.random.default_rng(3)
    base = draw.normal(0, 1, (900, 1))
    values = base + draw.normal(0, 0.5, (900, 5))
    values[600:700, 3] -= 2.5  # within what the sensor shows alone, not beside the others
    rows = [(c, T0 + n * MINUTE, float(values[n, c])) for n in range(900) for c in range(5)]
    judged = judge(rules(text), city, readings(rows))
    up, down = judged.transitions
    assert (up.sensor, named(up.note)[0]) == (0, 3)
    assert 600 <= (up.observed_at - T0) // MINUTE < 640
    assert 690 <= (down.observed_at - T0) // MINUTE < 730
    level, score = judged.level.reshape(5, 900), judged.score.reshape(5, 900)
    assert (level == level[0]).all()
    assert (score == score[0]).all()
    assert score[0, 620:700].mean() > 0.5 > score[0, 400:600].mean()
    docket = Docket(AlertBook(), rules(text), 1, city, T0)
    for transition in judged.transitions:
        docket.judge(transition)
    assert [Engine(rules(text), city).rules_on(n) for n in range(5)] == [[0]] * 5
    assert "loop/c3 most of all" in docket.events[0].message_en
    assert "loop/c3 最为异常" in docket.events[0].message_zh


def test_a_district_may_be_judged_as_one_by_its_area_or_by_a_tag_and_its_alert_names_those_that_say_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    kind = "water.pressure"
    dma = ("dma:1",) * 6 + ("dma:2", "")
    sensors = [
        Sensor(f"p{n}", "v", kind, "MPa", asset=f"n{n}", tags=(tag,) if tag else ()) for n, tag in enumerate(dma)
    ]
    city = catalog(*sensors, Sensor("p8", "v", kind, "MPa", tags=("area:南山区/粤海", "dma:2")))
    city.describe({n: AssetFacts(f"m:n{n}", "福田区" if n < 5 else "", {}) for n in range(8)}, frozenset())
    text = f'[[rule]]\nid = "r"\nkind = "{kind}"\ndetector = "anomaly"\nover = "OVER"\n'
    by_area, by_tag = rules(text.replace("OVER", "area")), rules(text.replace("OVER", "tag:dma"))
    every = np.arange(9, dtype=np.int32)
    assert groups_of(by_area.rules[0], every, city).tolist() == [[0, 1, 2, 3, 4]]
    assert groups_of(by_tag.rules[0], every, city).tolist() == [[0, 1, 2, 3, 4, 5], [6, 8, -1, -1, -1, -1]]
    assert (by_area.attributes, by_tag.attributes) == (frozenset(), None)

    draw = np.random.default_rng(5)
    values = 0.3 + draw.normal(0, 0.01, (900, 1)) + draw.normal(0, 0.003, (900, 9))
    values[600:700, [1, 2]] -= [0.03, 0.022]  # a burst between two of the six
    rows = [(c, T0 + n * MINUTE, float(values[n, c])) for n in range(900) for c in range(9)]
    judged = judge(by_tag, city, readings(rows))
    up = next(t for t in judged.transitions if t.after)
    assert 600 <= (up.observed_at - T0) // MINUTE < 640
    assert (up.sensor, set(named(up.note)[:2])) == (0, {1, 2})
    docket = Docket(AlertBook(), by_tag, 1, city, T0)
    docket.judge(up)
    one, two = (city.sensors[n].id for n in named(up.note)[:2])
    assert f"{one} 最为异常，其次 {two}" in docket.events[0].message_zh
    assert f"{one} most of all, then {two}" in docket.events[0].message_en


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('detector = "residual"\nlevels = { blue = 1 }\n', "model"),
        ('detector = "residual"\nmodel = "a/b/c"\nlevels = { blue = 1 }\n', "model"),
        ('detector = "residual"\nmodel = "{nothing}"\nlevels = { blue = 1 }\n', "model"),
        ('detector = "residual"\nmodel = "m"\nunit = "cm"\nlevels = { blue = 1 }\n', "unit"),
        ('detector = "residual"\nmodel = "m"\nlevels = { blue = -1 }\n', "levels.blue"),
        ('detector = "neighbours"\nlevels = { blue = 1 }\n', "within"),
        ('detector = "neighbours"\nwithin = "500"\nlevels = { blue = 1 }\n', "within"),
        ('detector = "neighbours"\nwithin = "500m"\ncount = 2.5\nlevels = { blue = 1 }\n', "count"),
        ('detector = "spectrum"\nlearn = "1 week"\nlevels = { blue = 1 }\n', "learn"),
        ('detector = "anomaly"\nover = "city"\n', "over"),
        ('detector = "anomaly"\nover = "tag:"\n', "over"),
        ('detector = "anomaly"\nmax_age = "1min"\n', "max_age"),
    ],
)
def test_what_a_rule_over_several_sensors_gets_wrong_is_told_with_its_field(body: str, field: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules(f'[[rule]]\nid = "r"\n{KIND}{body}')
    assert [problem.field for problem in refused.value.problems] == [field]
