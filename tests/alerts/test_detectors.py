"""The contract that every detector of readings keeps, with the plain reference implementation as the judge."""

from __future__ import annotations

import itertools
import math

import alerts_oracle as oracle
import numpy as np
import pytest
from alerts_city import MINUTE, SECOND, T0, catalog, feed, key, plain, readings, rules, sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.detectors.rows import Patch
from alerts.engine import Engine, EngineState
from alerts.rules import RuleSet
from twin.catalog import Catalog
from twin.model import Transition

KIND = 'kind = "drainage.ponding_depth"\n'
LIMITED = [  # rules on limits of the reading itself, or of its change, with every combination of extras
    'detector = "threshold"\nside = "above"\nlevels = { blue = 2, yellow = 4, orange = 6, red = 8 }\n',
    'detector = "threshold"\nside = "below"\nlevels = { blue = 4, orange = 1, red = -2 }\n',
    'detector = "threshold"\nside = "above"\nlevels = { yellow = 3 }\n',
    'detector = "range"\n',
    'detector = "range"\nmin = 1\nlevel = "red"\n',
    'detector = "rate"\nwindow = "3min"\nside = "above"\nlevels = { blue = 2, red = 5 }\n',
    'detector = "rate"\nwindow = "90s"\nside = "either"\nlevels = { yellow = 3, orange = 4 }\n',
    'detector = "rate"\nwindow = "10min"\nside = "below"\nlevels = { blue = 1, yellow = 5 }\n',
]
EXTRAS = [
    "",
    'hold = "2min"\n',
    'clear = { margin = "20%", hold = "2min" }\n',
    'hold = "1min"\nclear = { margin = 1, hold = "1min" }\nmax_gap = "3min"\n',
    'clear = { margin = 0.5 }\nmax_gap = "90s"\n',
]
STUCK = [
    'detector = "stuck"\nfor = "3min"\n',
    'detector = "stuck"\nfor = "2min"\ntolerance = 1\nlevel = "yellow"\n',
    'detector = "stuck"\nfor = "2min"\nexcept = [0, 3]\nmax_gap = "3min"\n',
    'detector = "stuck"\nfor = "1min"\ntolerance = 1.5\nexcept = [2]\nmax_gap = "2min"\n',
]
ANOMALY = ['detector = "anomaly"\n', 'detector = "anomaly"\nbudget = 12\nlevel = "yellow"\n']
SUMS = [
    'detector = "accumulate"\nwindow = "5min"\nlevels = { blue = 6, red = 15 }\n',
    'detector = "accumulate"\nwindow = { blue = "1h", yellow = "20min", red = "5min" }\n'
    "levels = { blue = 9, yellow = 9, red = 12 }\n",
    'detector = "accumulate"\nwindow = "10min"\ncounter = true\nlevels = { yellow = 7 }\n',
]
RULES = rules(
    "".join(
        f'[[rule]]\nid = "r{i}"\n{KIND}{body}'
        for i, body in enumerate(
            [body + extra for body in LIMITED + SUMS for extra in EXTRAS]
            + [b + "strict = true\n" + e for b in LIMITED for e in EXTRAS if "range" not in b]
            + STUCK
            + ANOMALY
        )
    )
)
LEARNING = [  # rules that look at hours and nights of days
    'detector = "baseline"\nmeasure = "amount"\nwarm_up = 2\naccept = 2\nlevels = { blue = 2, red = 4 }\n'
    'days_off = ["2023-11-16"]\nworkdays = ["2023-11-18"]\nutc_offset = "-03:30"\n',
    'detector = "baseline"\nmeasure = "percent"\nwarm_up = 2\nside = "below"\nlevels = { yellow = 40 }\n',
    'detector = "baseline"\nwarm_up = 2\nside = "either"\nlevels = { blue = 3 }\n',
    'detector = "night"\nnight = "22:00-06:00"\nwarm_up = 3\nlevels = { blue = 20, yellow = 30 }\n',
    'detector = "night"\nnight = "03:30-12:00"\nof = "mean"\nwarm_up = 3\naccept = 2\nside = "either"\n'
    'utc_offset = "+00:00"\nlevels = { blue = 15 }\n',
    'detector = "cusum"\nwarm_up = 5\nside = "below"\nlevels = { blue = 2, orange = 4 }\n',
    'detector = "cusum"\nevery = "7h"\nwarm_up = 5\naccept = 4\nside = "either"\nslack = 0.1\n'
    "levels = { yellow = 2 }\n",
]
DAY_EXTRAS = ["", 'clear = { margin = "20%", hold = "1d" }\n', 'hold = "1d"\nmax_gap = "8h"\n']
DAYS = rules(
    "".join(
        f'[[rule]]\nid = "d{i}"\n{KIND}{body}'
        for i, body in enumerate(body + extra for body in LEARNING for extra in DAY_EXTRAS)
    )
)
SENSORS = 4
CITY = catalog(
    sensor(0, min=-1, max=6), sensor(1, min=0), sensor(2), sensor(3, min=-2, max=7, unit="mm", tags=("a", "b"))
)

Series = dict[int, list[tuple[int, float]]]
World = tuple[str, Series]
steps = st.sampled_from([1 * SECOND, 7 * SECOND, 30 * SECOND, MINUTE, MINUTE, 2 * MINUTE, 200 * SECOND, 601 * SECOND])
values = st.sampled_from([-3.0, -2.0, -1.0, 0.0, 0.5, 1.0, 1.6, 2.0, 2.0, 3.0, 3.0, 3.2, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])


@st.composite
def cities(draw: st.DrawFn, most: int = 40) -> Series:
    series: Series = {}
    for s in range(SENSORS):
        t, rows = T0 + draw(st.integers(0, 5)) * SECOND, []
        for step, value in draw(st.lists(st.tuples(steps, values), max_size=most)):
            t += step
            rows.append((t, value))
        series[s] = rows
    return series


hours = st.sampled_from([20 * MINUTE, 60 * MINUTE, 90 * MINUTE, 90 * MINUTE, 180 * MINUTE, 180 * MINUTE, 540 * MINUTE])
few = st.sampled_from([1.0, 2.0, 2.0, 2.0, 2.0, 2.5, 3.0, 4.0, 9.0])


@st.composite
def days(draw: st.DrawFn) -> Series:
    """Some weeks of few sensors, mostly alike."""
    series: Series = {}
    for s in range(2):
        t, rows = T0, []
        for _ in range(draw(st.integers(1, 4))):
            steps, more = draw(st.lists(hours, min_size=1, max_size=12)), draw(few)
            swing = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, -0.1, 1.0]), min_size=1, max_size=5))
            for n in range(draw(st.integers(0, 60))):
                t += steps[n % len(steps)]
                rows.append((t, more + swing[n % len(swing)]))
        series[s] = rows
    return series


WORLDS = {"minutes": RULES, "days": DAYS}
worlds = st.one_of(st.tuples(st.just("minutes"), cities()), st.tuples(st.just("days"), days()))


places = st.integers(0, 160) | st.integers(0, 480)


def flat(series: Series) -> list[tuple[int, int, float]]:
    return [(s, t, v) for s, rows in series.items() for t, v in rows]


def expected(city: Catalog, ruleset: RuleSet, series: Series) -> list[tuple[object, ...]]:
    told = []
    for number, rule in enumerate(ruleset.rules):
        for s, rows in series.items():
            low, high = float(city.low[s]), float(city.high[s])
            for _, _, *event in oracle.judge(rule, "", rows, low, high):
                t, before, after, value, limit, since = event
                told.append(Transition(number, s, t, before, after, value, limit, since))
    return plain(told)


def cut(rows: list[tuple[int, int, float]], marks: list[int]) -> list[list[tuple[int, int, float]]]:
    """Readings in time order, cut into batches at `marks`."""
    rows = sorted(rows, key=lambda r: (r[1], r[0]))
    places = sorted({min(m, len(rows)) for m in marks} | {0, len(rows)})
    return [rows[a:b] for a, b in itertools.pairwise(places)]


def state_of(engine: Engine) -> dict[str, list[list[object]]]:
    tables = engine.snapshot().tables
    return {
        family: [[name, str(column.dtype), repr(column.tolist())] for name, column in sorted(table.items())]
        for family, table in tables.items()
    }


@given(worlds)
@settings(max_examples=60, deadline=None)
def test_one_batch_gives_what_the_reference_gives(world: World) -> None:
    ruleset, series = WORLDS[world[0]], world[1]
    engine = Engine(ruleset, CITY)
    assert plain(feed(engine, flat(series))) == expected(CITY, ruleset, series)
    assert not engine.failures


@given(worlds, st.lists(places, max_size=12))
@settings(max_examples=60, deadline=None)
def test_batching_and_restarts_change_nothing(world: World, marks: list[int]) -> None:
    ruleset, series = WORLDS[world[0]], world[1]
    whole = Engine(ruleset, CITY)
    once = feed(whole, flat(series))
    engine, told = Engine(ruleset, CITY), []
    for batch in cut(flat(series), marks):
        new = feed(engine, batch)
        told += new
        for t in new if len(batch) == 1 else []:
            assert not t.after or repr(engine.extremes(t.rule, t.sensor)[1]) == repr(t.peak)
        fresh = Engine(ruleset, CITY)
        fresh.restore(EngineState.from_bytes(engine.snapshot().to_bytes()))
        engine = fresh
    assert plain(told) == plain(once)
    assert {key(t): repr(t.peak) for t in told} == {key(t): repr(t.peak) for t in once}
    assert state_of(engine) == state_of(whole)
    assert not engine.failures
    open_now = sorted(zip(*(column.tolist() for column in engine.levels()), strict=True))
    assert open_now == sorted(zip(*(column.tolist() for column in whole.levels()), strict=True))
    for rule, s, _ in open_now:
        assert engine.extremes(rule, s) == whole.extremes(rule, s)


@given(cities(most=12), st.sampled_from(LIMITED[:5]), st.sampled_from(EXTRAS), st.lists(st.integers(1, 4), min_size=1))
@settings(max_examples=60, deadline=None)
def test_repeated_values_that_come_one_by_one_give_what_the_reference_gives(
    series: Series, body: str, extra: str, times: list[int]
) -> None:
    for s, rows in series.items():
        several = [times[n % len(times)] for n in range(len(rows))]
        series[s] = [(t + k * SECOND, v) for (t, v), most in zip(rows, several, strict=True) for k in range(most)]
        series[s] = list(dict(series[s]).items())
        series[s].sort()
    alone = rules(f'[[rule]]\nid = "r"\n{KIND}{body}{extra}')
    engine, whole = Engine(alone, CITY), Engine(alone, CITY)
    told = [t for row in sorted(flat(series), key=lambda r: r[1]) for t in feed(engine, [row])]
    assert plain(told) == expected(CITY, alone, series) == plain(feed(whole, flat(series)))
    assert state_of(engine) == state_of(whole)


def test_a_value_that_is_repeated_raises_a_rule_that_is_new() -> None:
    high = f'[[rule]]\nid = "high"\n{KIND}detector = "threshold"\nlevels = {{ blue = 2 }}\n'
    old, new = Engine(rules(high), CITY), Engine(rules(high + high.replace('"high"', '"again"')), CITY)
    assert len(feed(old, [(0, T0, 3.0)])) == 1
    new.adopt(old)
    assert [t.rule for t in feed(new, [(0, T0 + MINUTE, 3.0)])] == [1]
    assert feed(new, [(0, T0 + 2 * MINUTE, 3.0)]) == []


@pytest.mark.parametrize("first", [[], [3.0, 3.0]])
def test_a_level_that_is_taken_up_from_outside_ends_with_the_next_reading_though_that_is_an_ordinary_one(
    first: list[float],
) -> None:
    engine = Engine(rules(f'[[rule]]\nid = "r"\n{KIND}{LIMITED[0]}'), CITY)
    feed(engine, [(0, T0 + n * SECOND, value) for n, value in enumerate(first)])
    row = engine.families["limits"].rows.of_sensors(np.array([0]))
    engine.families["limits"].apply([Patch(row, {"level": np.array([4], np.int8)})])
    (told,) = feed(engine, [(0, T0 + MINUTE, first[-1] if first else 0.0)])
    assert (told.before, told.after) == (4, 1 if first else 0)


@given(worlds, places)
@settings(max_examples=50, deadline=None)
def test_nothing_looks_ahead(world: World, mark: int) -> None:
    ruleset, series = WORLDS[world[0]], world[1]
    rows = sorted(flat(series), key=lambda r: (r[1], r[0]))
    early = feed(Engine(ruleset, CITY), rows[:mark])
    everything = feed(Engine(ruleset, CITY), rows)
    assert plain(early) == plain(t for t in everything if (t.observed_at, t.sensor) <= last(rows[:mark]))


def last(rows: list[tuple[int, int, float]]) -> tuple[int, int]:
    return (rows[-1][1], rows[-1][0]) if rows else (0, 0)


@given(worlds, places, places, st.sets(st.integers(0, SENSORS - 1), min_size=1))
@settings(max_examples=60, deadline=None)
def test_judging_some_sensors_again_from_a_checkpoint_gives_the_state_of_judging_in_order(
    world: World, checkpoint: int, present: int, again: set[int]
) -> None:
    ruleset, series = WORLDS[world[0]], world[1]
    rows = sorted(flat(series), key=lambda r: (r[1], r[0]))
    present = max(checkpoint, present)
    in_order = Engine(ruleset, CITY)
    told_in_order = feed(in_order, rows[:checkpoint])
    saved = in_order.snapshot()
    told_in_order += feed(in_order, rows[checkpoint:present])

    # The live engine missed every other reading of the chosen sensors after the checkpoint; they come late.
    live = Engine(ruleset, CITY)
    told = feed(live, rows[:checkpoint])
    tail = rows[checkpoint:present]
    on_time = [r for i, r in enumerate(tail) if r[1] not in {x[1] for x in tail[::2]} or r[0] not in again]
    told += [t for t in feed(live, on_time) if t.sensor not in again]
    chosen = np.array(sorted(again, reverse=True), np.int32)
    small = live.fork(chosen, [None, saved], np.ones(len(chosen), np.int64))
    told += feed(small, [r for r in tail if r[0] in again])
    live.apply(live.merge(small))
    assert plain(told) == plain(told_in_order)
    assert state_of(live) == state_of(in_order)
    assert plain(feed(live, rows[present:])) == plain(feed(in_order, rows[present:]))


def test_a_fork_starts_at_rest_where_no_state_is_picked_and_takes_each_sensor_from_its_own() -> None:
    text = f'[[rule]]\nid = "r"\n{KIND}detector = "threshold"\nlevels = {{ blue = 2 }}\nhold = "2min"\n'
    engine = Engine(rules(text), CITY)
    feed(engine, [(s, T0, 3.0) for s in range(3)])
    early = engine.snapshot()
    small = engine.fork(np.array([2, 0, 1, 99]), [early, None], np.array([0, -1, 1, 0]))
    told = feed(small, [(s, T0 + 2 * MINUTE, 3.0) for s in range(4)])
    assert [(t.sensor, t.since) for t in told] == [(2, T0)]
    assert [t.sensor for t in feed(small, [(s, T0 + 4 * MINUTE, 3.0) for s in range(4)])] == [0, 1]


def test_observing_changes_nothing_until_it_is_applied() -> None:
    engine = Engine(RULES, CITY)
    feed(engine, [(s, T0, 3.0) for s in range(SENSORS)])
    before = state_of(engine)
    batch = readings([(s, T0 + n * MINUTE, 9.0 - n) for s in range(SENSORS) for n in range(1, 9)])
    first, _ = engine.observe(batch)
    second, update = engine.observe(batch)
    assert first
    assert plain(first) == plain(second)
    assert state_of(engine) == before
    engine.apply(update)
    assert state_of(engine) != before


def test_equal_rules_keep_their_state_when_the_rule_set_and_the_catalogue_change() -> None:
    one = f'[[rule]]\nid = "a"\n{KIND}detector = "threshold"\nlevels = {{ blue = 2 }}\nhold = "2min"\n'
    stuck = f'[[rule]]\nid = "s"\n{KIND}detector = "stuck"\nfor = "2min"\n'
    old = Engine(rules(one + stuck), CITY)
    feed(old, [(0, T0, 3.0), (1, T0, 3.0)])
    grown = catalog(*CITY.sensors, sensor(4))
    text = stuck.replace('"s"', '"s"\ntitle = "new words"') + one.replace("2min", "1min").replace('"a"', '"b"') + one
    new = Engine(rules(text), grown)
    new.adopt(old)
    told = feed(new, [(s, T0 + n * MINUTE, 3.0) for s in (0, 4) for n in (1, 2)])
    assert [(t.sensor, new.rules.rules[t.rule].id, t.since - T0) for t in told] == [
        (0, "s", 0),
        (0, "b", MINUTE),
        (0, "a", 0),
        (4, "b", MINUTE),
    ]


def test_a_failing_family_is_counted_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(RULES, CITY)
    engine.families["rate"].rows.number = None  # type: ignore[assignment]
    told = feed(engine, [(0, T0, 9.0)])
    assert told
    assert engine.failures == {"rate": 1}
    assert "rate failed" in caplog.text


def test_sensors_that_the_engine_does_not_know_are_left_alone() -> None:
    assert feed(Engine(RULES, CITY), [(SENSORS + 3, T0, 100.0)]) == []
    assert feed(Engine(RULES, catalog()), [(0, T0, 100.0)]) == []
    assert feed(Engine(rules("rule = []"), CITY), [(0, T0, 100.0)]) == []


@given(st.lists(st.tuples(steps, values), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_change_is_exact_for_sparse_and_nearly_exact_for_dense_sampling(rows: list[tuple[int, float]]) -> None:
    rule = next(r for r in RULES.rules if r.detector == "rate")
    series, t = [], T0
    for step, value in rows:
        t += step
        series.append((t, value))
    for i in range(len(series)):
        exact, ours = (oracle.change(rule, series, i, exact=e) for e in (True, False))
        assert (exact is None) == (ours is None)
    sparse = [(T0 + i * (rule.window // 15), value) for i, (_, value) in enumerate(rows)]
    for i in range(len(sparse)):
        assert oracle.change(rule, sparse, i, exact=True) == oracle.change(rule, sparse, i, exact=False)


def test_extremes_tell_the_last_and_the_worst_value_since_the_run_began() -> None:
    text = f'[[rule]]\nid = "r"\n{KIND}detector = "threshold"\nlevels = {{ blue = 2, red = 8 }}\n'
    text += "clear = { margin = 1 }\n"
    engine = Engine(rules(text), CITY)
    for n, v in enumerate([1.0, 3.0, 9.0, 1.5]):
        feed(engine, [(0, T0 + n * MINUTE, v)])
    assert engine.extremes(0, 0) == (1.5, 9.0, 4)
    assert [c.tolist() for c in engine.levels()] == [[0], [0], [1]]
    feed(engine, [(0, T0 + 9 * MINUTE, 0.0)])
    assert all(math.isnan(v) for v in engine.extremes(0, 0)[:2])
    assert all(math.isnan(v) for v in engine.extremes(5, 77)[:2])


@pytest.mark.parametrize("packed", [b"", b"nonsense", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_state_is_refused_with_value_error(packed: bytes) -> None:
    with pytest.raises(ValueError, match="not an engine state"):
        EngineState.from_bytes(packed)


def test_a_state_of_another_shape_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(RULES, CITY)
    feed(engine, [(0, T0, 9.0)])
    state = engine.snapshot()
    del state.tables["stuck"]["anchor"]
    fresh = Engine(RULES, CITY)
    fresh.restore(state)
    assert "another version" in caplog.text
    assert not fresh.snapshot().tables["stuck"]["sensor"].size
    assert fresh.snapshot().tables["limits"]["sensor"].size
