"""The anomaly detector: what it finds, what it leaves alone, and that neither batches nor restarts change its mind."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from alerts_city import MINUTE, T0, catalog, feed, key, plain, rules, sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.detectors import anomaly
from alerts.engine import Engine, EngineState
from alerts.judge import judge
from alerts.lifecycle import AlertBook, Docket
from twin.model import DAY, Floats, Ints, Readings, Transition, iso

ONE = '[[rule]]\nid = "a"\nkind = "drainage.ponding_depth"\ndetector = "anomaly"\n'
STEP = 5 * MINUTE


def times(n: int) -> Ints:
    return np.asarray(T0 // DAY * DAY + np.arange(n) * STEP, np.int64)


def daily(n: int, seed: int = 1, noise: float = 1.0) -> Floats:
    """A day's curve with noise."""
    part = (times(n) % DAY) / DAY
    return np.asarray(50 + 20 * np.sin(2 * np.pi * part) + np.random.default_rng(seed).normal(0, noise, n))


def told(*series: Floats, text: str = ONE) -> tuple[list[Transition], Floats]:
    """Transitions, and the scores of all readings."""
    s = np.repeat(np.arange(len(series), dtype=np.int32), [len(one) for one in series])
    at = np.concatenate([times(len(one)) for one in series])
    city = catalog(*(sensor(n) for n in range(len(series))))
    judged = judge(rules(text), city, Readings(s, at, at, np.concatenate(series), np.zeros(len(s), np.uint8)))
    return judged.transitions, judged.score


def test_a_spike_a_step_and_a_missing_morning_are_found_and_the_alert_clears() -> None:
    spike, step, flat = daily(6000), daily(6000), daily(6000)
    spike[5000] += 40
    step[5000:] += 30
    flat[5000:5100] = flat[4999]
    events, score = told(spike, step, flat)
    for n in range(3):
        own = [t for t in events if t.sensor == n]
        assert [bool(t.after) for t in own] == [True, False]
        first = (own[0].observed_at - times(1)[0]) // STEP
        assert 5000 <= first < 5050
        assert own[0].note
        assert score[n * 6000 + first] >= 0.5
    assert events[0].threshold < spike[5000] == events[0].value == events[0].peak
    assert events[0].threshold == pytest.approx(daily(6000, noise=0)[5000], abs=25)


def test_a_new_level_is_accepted_and_then_watched_like_the_old_one() -> None:
    values = daily(9000)
    values[3000:] += 60
    values[7000] += 80
    events, _ = told(values)
    assert [(t.observed_at - times(1)[0]) // STEP >= 7000 for t in events if t.after] == [False, True]


@pytest.mark.parametrize("budget", [1, 100])
def test_false_alerts_stay_within_the_budget(budget: float) -> None:
    draw = np.random.default_rng(5)
    n, sensors = 6000, 60
    series = [draw.normal(10, 1, n) for _ in range(sensors // 2)] + [
        draw.exponential(3, n) + 5 * np.sin(times(n) / DAY * 2 * np.pi) for _ in range(sensors // 2)
    ]
    events, _ = told(*series, text=ONE + f"budget = {budget}\n")
    years = sensors * n * STEP / (365 * DAY)
    assert sum(t.after > 0 for t in events) <= 3 + 2 * budget * years


def test_rain_after_a_dry_time_is_no_anomaly_and_missing_readings_teach_nothing() -> None:
    draw = np.random.default_rng(3)
    rain = np.where(draw.random(9000) < 0.01, draw.exponential(2, 9000).round(1), 0.0)
    events, _ = told(rain)
    assert len([t for t in events if t.after]) <= 1

    values = daily(3000)
    holes = values.copy()
    holes[1000:1400] = math.nan
    city = catalog(sensor(0))
    at, zeros = times(3000), np.zeros(3000, np.int32)
    with_holes = judge(rules(ONE), city, Readings(zeros, at, at, holes, zeros.astype(np.uint8)))
    there = ~np.isnan(holes)
    without = judge(rules(ONE), city, Readings(zeros, at, at, holes, zeros.astype(np.uint8)).take(there))
    assert np.isnan(with_holes.score[~there]).all()
    assert (with_holes.score[there] == without.score).all()


def test_constant_and_huge_values_do_no_harm() -> None:
    wild = daily(2000)
    wild[600:700:7] = 1e300
    wild[900] = -1.7e308
    events, score = told(np.zeros(2000), np.full(2000, 1e12), wild)
    assert not [t for t in events if t.sensor < 2]
    assert ((score >= 0) & (score < 1)).all()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that has learnt after a dozen readings, so that short series show all it does."""
    for name, value in {
        "AT_ONCE": 2,
        "WARM": 4,
        "LEARNT": 8,
        "START": 3,
        "GATE": 0.9,
        "COOL": 3,
        "CALM": 2,
        "ACCEPT": 9,
        "RUN": 3,
    }.items():
        monkeypatch.setattr(anomaly, name, value)


values = st.sampled_from([1.0, 1.0, 1.0, 1.5, 2.0, 2.0, 40.0, 40.0, -300.0, math.nan])
rows = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 900), values), min_size=30, max_size=150)
TWO = ONE + "budget = 1000\n" + ONE.replace('"a"', '"b"') + 'level = "red"\nbudget = 500\n'


def spread(drawn: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    t = [T0] * 3
    out = []
    for s, minutes, value in drawn:
        t[s] += minutes * MINUTE
        out.append((s, t[s], value))
    return sorted(out, key=lambda row: (row[1], row[0]))


@pytest.mark.usefixtures("quick")
@given(rows, st.lists(st.integers(0, 150), max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_batching_and_any_restart_give_the_same_verdicts_and_state(
    drawn: list[tuple[int, int, float]], marks: list[int]
) -> None:
    series = spread(drawn)
    city, two = catalog(*(sensor(n) for n in range(3))), rules(TWO)
    whole = Engine(two, city)
    once = feed(whole, series)
    engine, piecewise = Engine(two, city), []
    edges = sorted({0, len(series), *(min(mark, len(series)) for mark in marks)})
    for begin, end in itertools.pairwise(edges):
        piecewise += feed(engine, series[begin:end])
        fresh = Engine(two, city)
        fresh.restore(EngineState.from_bytes(engine.snapshot().to_bytes()))
        engine = fresh
    assert plain(piecewise) == plain(once)
    assert {key(t): (repr(t.peak), t.note) for t in piecewise} == {key(t): (repr(t.peak), t.note) for t in once}
    early = feed(Engine(two, city), series[: edges[1]])
    assert plain(early) == plain(piecewise[: len(early)])
    one, other = (e.snapshot().tables["anomaly"] for e in (engine, whole))
    assert {name: column.tobytes() for name, column in one.items()} == {
        name: column.tobytes() for name, column in other.items()
    }
    assert not engine.failures
    assert not whole.failures


def test_the_message_tells_value_expectation_evidence_and_since_in_both_languages() -> None:
    spike = daily(3000)
    spike[2500] += 40
    events, _ = told(spike)
    ruleset, city = rules(ONE), catalog(sensor(0))
    docket = Docket(AlertBook(), ruleset, 1, city, 0)
    for t in events:
        docket.judge(t)
    raised, cleared = docket.events
    since = iso(events[0].since)
    edge = f"{events[0].threshold:.4g}"[:4]
    assert f"expected at most {edge}" in raised.message_en
    assert f"预期不高于 {edge}" in raised.message_zh
    assert raised.message_en.endswith(f"unlike what is usual at this hour, since {since})")
    assert raised.message_zh.endswith(f"与该时段的常值不符，自 {since}）")
    assert "back to what is usual" in cleared.message_en
    assert "已恢复常态" in cleared.message_zh
