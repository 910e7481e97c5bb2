"""Sums over windows, and the detectors that compare with other hours, nights and days."""

from __future__ import annotations

import csv
import datetime
from dataclasses import replace
from pathlib import Path

import alerts_oracle as oracle
import numpy as np
import pytest
from alerts_city import MINUTE, catalog, rules, sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.engine import Engine
from alerts.judge import judge
from alerts.lifecycle import AlertBook, Docket
from alerts.parameters import Accumulating
from twin.catalog import Catalog
from twin.model import DAY, HOUR, Floats, Ints, Readings, Transition, iso, parse_time

GAUGE = Path(__file__).parents[3] / "shared" / "data" / "sewer" / "rain-gauge.csv"
MONDAY = parse_time("2024-03-03T16:00:00Z")  # midnight in Shanghai
STEP = 15 * MINUTE
PER_DAY = DAY // STEP


def rule(body: str, kind: str = "water.flow") -> str:
    return f'[[rule]]\nid = "r"\ntitle = {{ zh = "规则", en = "Rule" }}\nkind = "{kind}"\n{body}'


def city_of(kind: str) -> Catalog:
    return catalog(sensor(0, kind))


def told(body: str, at: Ints, value: Floats, kind: str = "water.flow") -> list[Transition]:
    none = np.zeros(len(at), np.int32)
    return judge(
        rules(rule(body, kind)), city_of(kind), Readings(none, at, at, value, none.astype(np.uint8))
    ).transitions


def said(body: str, transitions: list[Transition], kind: str = "water.flow") -> list[tuple[str, str]]:
    docket = Docket(AlertBook(), rules(rule(body, kind)), 1, city_of(kind), 0)
    for transition in transitions:
        docket.judge(transition)
    return [(event.message_zh, event.message_en) for event in docket.events]


def weeks(days: int, seed: int = 1) -> tuple[Ints, Floats]:
    """A district's inflow from a Monday on: little at night, more by day, less on days off, 2 % of noise."""
    at = MONDAY + np.arange(days * PER_DAY) * STEP
    part = (np.arange(len(at)) % PER_DAY) / PER_DAY
    day = np.arange(len(at)) // PER_DAY
    flow = 100 - 40 * np.cos(2 * np.pi * part) - 20 * (day % 7 >= 5)
    return at, flow * (1 + np.random.default_rng(seed).normal(0, 0.02, len(at)))


def day_of(transition: Transition) -> float:
    return (transition.observed_at - MONDAY) / DAY


# ---- sums


amounts = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.2, 0.3, 5.0, -1.0])), max_size=60)
SUMS = (
    'detector = "accumulate"\nwindow = { blue = "2h", yellow = "30min", red = "10min" }\n'
    "levels = { blue = 1, yellow = 1, red = 5 }\n"
)


@given(amounts)
@settings(max_examples=60, deadline=None)
def test_a_sum_is_never_too_large_and_at_most_a_bucket_short(drawn: list[tuple[int, float]]) -> None:
    (one,) = rules(rule(SUMS)).rules
    series, t = [], MONDAY
    for seconds, amount in drawn:
        t += seconds * 1_000_000
        series.append((t, amount))
    assert isinstance(one.parameters, Accumulating)
    bucket = max(one.parameters.windows) // 144
    blue, yellow, _, red = (max(window - bucket, 0) for window in one.parameters.windows)
    shorter = replace(one, parameters=Accumulating((blue, yellow, 0, red), False))
    for i in range(len(series)):
        ours = oracle.sums(one, series, i, exact=False)
        most, least = oracle.sums(one, series, i, exact=True), oracle.sums(shorter, series, i, exact=True)
        assert all(least[k] <= ours[k] <= most[k] for k in ours)
    grid = [(MONDAY + n * MINUTE, amount) for n, (_, amount) in enumerate(drawn)]
    for i in range(len(grid)):
        assert oracle.sums(one, grid, i, exact=False) == oracle.sums(one, grid, i, exact=True)


def test_tenths_add_up_exactly_and_the_alert_clears_at_the_first_reading_with_an_empty_window() -> None:
    body = 'detector = "accumulate"\nwindow = "12h"\nlevels = { blue = 50 }\n'
    kind = "drainage.rainfall"
    at = MONDAY + np.concatenate([np.arange(500) * MINUTE, [21 * HOUR]])
    events = told(body, at, np.append(np.full(500, 0.1), 0.0), kind)
    assert [(t.observed_at, t.after, t.value) for t in events] == [(at[499], 1, 50.0), (at[500], 0, 0.0)]
    assert said(body, events, kind) == [
        ("蓝色报警 规则：d0 12 小时内累计 50 mm（限值 50 mm）", "BLUE Rule: d0 50 mm in 12 h (limit 50 mm)"),
        ("规则 解除：d0 12 小时内累计 0 mm（限值 50 mm）", "Rule cleared: d0 0 mm in 12 h (limit 50 mm)"),
    ]


def test_a_total_that_begins_anew_counts_from_0_and_the_first_one_adds_nothing() -> None:
    body = 'detector = "accumulate"\nwindow = "1h"\ncounter = true\nlevels = { blue = 1, red = 5 }\n'
    at = MONDAY + np.arange(6) * STEP
    events = told(body, at, np.array([900.0, 900.5, 901.0, 3.0, 4.0, 4.0]))
    assert [(t.observed_at, t.after, t.value) for t in events[:2]] == [(at[2], 1, 1.0), (at[4], 4, 5.0)]


@pytest.mark.skipif(not GAUGE.exists(), reason="no shared data beside this checkout")
def test_the_storms_of_a_recorded_gauge_are_told_at_the_reading_at_which_their_sum_is_reached() -> None:
    with GAUGE.open() as file:
        rows = [row for row in csv.reader(file) if row[0].isdigit()]
    start = datetime.datetime(1970, 1, 1)
    month, day, year, hour, minute = (np.array([int(row[c]) for row in rows]) for c in range(5))
    dates = [datetime.datetime(*d) - start for d in zip(year, month, day, hour, minute, strict=True)]
    at = np.array([round(d.total_seconds()) * 1_000_000 for d in dates])
    rain = np.array([float(row[5]) * 25.4 for row in rows])
    body = 'detector = "accumulate"\nwindow = { yellow = "6h", orange = "3h" }\nlevels = { yellow = 20, orange = 20 }\n'
    events = [t for t in told(body, at, rain, "drainage.rainfall") if t.after > t.before]
    total = np.concatenate([[0], np.cumsum(rain)])
    for level, window in ((2, 6 * HOUR), (3, 3 * HOUR)):
        sums = total[1:] - total[np.searchsorted(at, at - window, "right")]
        reached = sums >= 20 - 1e-9
        first = at[reached & ~np.append(False, reached[:-1])]
        assert len(first) >= 2
        assert set(first.tolist()) >= {t.observed_at for t in events if t.after == level}
    assert {t.observed_at for t in events} == {at[i] for i in range(len(at)) for t in events if t.observed_at == at[i]}
    assert len(events) >= 3


# ---- against the same time of other days


USUAL = 'detector = "baseline"\nside = "either"\nlevels = { blue = 6 }\nhold = "15min"\n'


def test_an_unusual_hour_is_told_only_where_its_kind_of_day_makes_it_so() -> None:
    at, flow = weeks(42)
    quiet = told(USUAL, at, flow)
    assert quiet == []
    saturday, monday = 40 * PER_DAY + 40, 35 * PER_DAY + 40
    as_on_a_day_off = flow.copy()
    as_on_a_day_off[monday : monday + 4] = flow[saturday : saturday + 4]
    events = told(USUAL, at, as_on_a_day_off)
    assert [(t.observed_at, t.after) for t in events] == [(at[monday + 1], 1), (at[monday + 4], 0)]
    assert events[0].value < events[0].threshold
    holiday = (datetime.date(2024, 3, 4) + datetime.timedelta(35)).isoformat()
    flow[35 * PER_DAY : 36 * PER_DAY] = flow[33 * PER_DAY : 34 * PER_DAY]
    assert {int(day_of(t)) for t in told(USUAL, at, flow) if t.after} == {35}
    assert told(USUAL + f'days_off = ["{holiday}"]\n', at, flow) == []
    ((zh, en), (zh_cleared, en_cleared)) = said(USUAL, events)
    assert "预期不低于" in zh
    assert "与工作日同时段相比，自 2024-04-08T02:00:00Z" in zh
    assert "expected at least" in en
    assert "at this hour of working days, since 2024-04-08T02:00:00Z" in en
    assert "已回到预期范围" in zh_cleared
    assert "back within what is expected" in en_cleared


def test_nothing_is_told_before_the_hour_was_seen_on_enough_days_of_its_kind() -> None:
    at, flow = weeks(30)
    wild = flow.copy()
    for hour, day in enumerate((1, 3, 5, 6, 12, 26), 10):  # from a Monday on
        wild[day * PER_DAY + 4 * hour + 2] = 900.0
    body = USUAL.replace('hold = "15min"\n', "") + "warm_up = 4\n"
    assert sorted({int(day_of(t)) for t in told(body, at, wild)}) == [26]


def test_what_lasts_becomes_the_new_normal_and_what_does_not_teaches_nothing() -> None:
    at, flow = weeks(42)
    shifted, passing = flow.copy(), flow.copy()
    shifted[28 * PER_DAY :] *= 1.5
    for day in range(28, 33):
        passing[day * PER_DAY + 40 : day * PER_DAY + 44] *= 1.5
    events = told(USUAL, at, shifted)
    assert {int(day_of(t)) for t in events} <= set(range(28, 38))
    assert events[-1].after == 0
    again = told(USUAL, at, passing)
    assert sorted({int(day_of(t)) for t in again if t.after}) == [28, 29, 30, 31, 32]
    edges = [t.threshold for t in again if t.after]
    assert max(edges) - min(edges) < 0.01 * max(edges)


# ---- nights


NIGHT = 'detector = "night"\nlevels = { blue = 20, yellow = 30 }\nhold = "2d"\n'


def test_a_leak_is_told_at_the_first_reading_after_the_third_night() -> None:
    at, flow = weeks(42)
    leaking = flow + np.where(at >= MONDAY + 30 * DAY, 16.0, 0.0)
    leaking[28 * PER_DAY : 29 * PER_DAY] += 50  # one night alone
    events = told(NIGHT, at, leaking)
    assert (events[0].observed_at, events[0].before, events[0].after) == (MONDAY + 32 * DAY + 4 * HOUR, 0, 1)
    ((zh, en), *_) = said(NIGHT, events)
    assert "夜间流量，高于近 14 夜中位数，自 2024-04-02T20:00:00Z" in zh
    assert "above the median of the last 14 nights, since 2024-04-02T20:00:00Z" in en
    assert events[0].threshold == pytest.approx(1.2 * 60, rel=0.1)
    assert told(NIGHT, at, flow) == []


def test_a_night_with_few_readings_says_nothing() -> None:
    at, flow = weeks(16)
    part = (np.arange(len(at)) % PER_DAY) * 24 / PER_DAY
    few = (np.arange(len(at)) // PER_DAY >= 12) & (part >= 2) & (part < 3.5)
    assert told(NIGHT, at[~few], np.where(at >= MONDAY + 12 * DAY, flow * 2, flow)[~few]) == []


# ---- drift


DRIFT = 'detector = "cusum"\nlevels = { blue = 5 }\n'


def test_a_leak_that_grows_by_half_a_percent_a_day_is_told_with_its_begin_and_ends_with_its_repair() -> None:
    at, flow = weeks(140)
    flow += 20 * ((np.arange(len(at)) // PER_DAY) % 7 >= 5)  # no weekends: the mean of a day is the sensor's own
    days = (at - MONDAY) / DAY
    leaking = flow + np.where((days >= 90) & (days < 120), 0.5 * (days - 90), 0.0)
    events = told(DRIFT, at, leaking)
    assert [t.after for t in events] == [1, 0]
    assert 92 <= day_of(events[0]) <= 97
    assert 89 <= (events[0].since - MONDAY) / DAY <= 94
    assert 120 < day_of(events[1]) <= 122
    ((zh, en), (_, cleared)) = said(DRIFT, events)
    assert "1 天均值" in zh
    assert f"均值持续偏高，自 {iso(events[0].since)}" in zh
    assert "on average in 1 d (expected at most 10" in en
    assert "back within what is expected" in cleared
    assert told(DRIFT, at, flow) == []


def test_constant_huge_and_wild_values_do_no_harm() -> None:
    text = "".join(
        rule(body).replace('"r"', f'"r{n}"')
        for n, body in enumerate((SUMS, USUAL, NIGHT, DRIFT, SUMS + "counter = true\n"))
    )
    at, flow = weeks(30)
    wild = flow.copy()
    wild[500::97] = 1e300
    wild[700::131] = -1.7e308
    engine = Engine(rules(text), catalog(sensor(0, "water.flow"), sensor(1, "water.flow"), sensor(2, "water.flow")))
    for n, value in enumerate((np.zeros(len(at)), np.full(len(at), 1e12), wild)):
        s = np.full(len(at), n, np.int32)
        with np.errstate(all="raise", under="ignore"):
            transitions, update = engine.observe(Readings(s, at, at, value, np.zeros(len(at), np.uint8)))
        engine.apply(update)
        if n == 0:
            assert transitions == []
        if n == 1:
            assert {t.rule for t in transitions} <= {0}
    assert not engine.failures
