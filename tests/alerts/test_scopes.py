"""Overrides and limits from the model: what a rule comes to on each sensor, and what a change of it leaves alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from alerts_city import KINDS, MINUTE, T0, catalog, feed, plain, rules, sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.engine import Engine, effective_on, fitted
from alerts.parameters import Accumulating
from alerts.rules import RuleSet, parse_rules, parse_rules_table
from twin.catalog import AssetFacts, Catalog
from twin.mistakes import in_chinese
from twin.model import InvalidRules

PONDING = """
[[rule]]
id = "ponding"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15, red = 40 }
hold = { yellow = "5min", red = "1min" }
clear = { margin = "10%" }
"""
WELL = """
[[rule]]
id = "well"
kind = "drainage.level"
detector = "threshold"
levels.yellow = { of = "ground_m", minus = "invert_m", times = 0.5 }
levels.red = { of = "ground_m", minus = "invert_m" }
"""


def override(scope: str, fields: str, rule: str = "ponding") -> str:
    return f'[[override]]\nrule = "{rule}"\n{scope}\n{fields}\n\n'


def place(*areas: str, **more: Any) -> Catalog:
    """A sensor for each area, with the tenant, tags and assets given by position."""
    sensors = []
    for n, _ in enumerate(areas):
        fields = {name: values[n] for name, values in more.items()}
        sensors.append(sensor(n, **fields))
    city = catalog(*sensors)
    city.describe({n: AssetFacts(f"m:a{n}", area, {}) for n, area in enumerate(areas)}, frozenset())
    return city


def limits(ruleset: RuleSet, city: Catalog, rule: str = "ponding") -> list[tuple[float, ...] | None]:
    """The levels that each sensor is judged by; None where the rule does not watch it."""
    found: list[tuple[float, ...] | None] = [None] * len(city)
    over = fitted(ruleset, city)
    for variant, sensors in over.parts:
        for index in sensors.tolist():
            if over.rules[variant].id == rule:
                found[index] = tuple(x for x in over.rules[variant].levels if x == x)
    return found


def test_the_narrowest_scope_wins_field_by_field() -> None:
    text = (
        override('sensor = "d3/v"', "levels = { yellow = 1 }")  # the order in the file does not matter
        + PONDING
        + override('area = "福田区"', 'levels = { yellow = 10, red = 30 }\nhold = "2min"')
        + override('area = "福田区/香蜜湖"', "levels = { yellow = 8 }")
        + override('tenant = "roads"', "levels = { yellow = 20, red = 50 }")
        + override('asset = ["m:a4", "bridge-5"]', "enabled = false")
    )
    city = place(
        "罗湖区", "福田区", "福田区/香蜜湖/竹林", "福田区/香蜜湖", "福田区", "福田区东", "福田区",
        tenant=["roads", "roads", "default", "default", "default", "default", "default"],
        asset=[None, None, None, None, None, None, "bridge-5"],
    )  # fmt: skip
    assert limits(rules(text), city) == [(20, 50), (10, 30), (8,), (1,), None, (15, 40), None]
    over = fitted(rules(text), city)
    holds = {s: over.rules[v].hold[1] // MINUTE for v, sensors in over.parts for s in sensors.tolist()}
    assert holds == {0: 5, 1: 2, 2: 2, 3: 2, 5: 5}
    for index in range(len(city)):  # asked for one sensor alone, the same
        alone = effective_on(rules(text), city, index)
        there = [tuple(x for x in alone.rules[v].levels if x == x) for v, sensors in alone.parts if len(sensors)]
        assert (there or [None])[0] == limits(rules(text), city)[index]


def test_a_sensors_own_area_tag_goes_before_its_assets_area() -> None:
    text = PONDING + override('area = "a"', "levels = { red = 1 }") + override('area = "b/c"', "levels = { red = 2 }")
    assert limits(rules(text), place("a", "a", tags=[(), ("area:b/c/d",)])) == [(1,), (2,)]


def test_a_disabled_rule_can_be_switched_on_for_a_place() -> None:
    text = PONDING + "enabled = false\n" + override('tag = "wet"', "enabled = true")
    assert limits(rules(text), place("", "", tags=[(), ("wet",)])) == [None, (15, 40)]


def refusals(text: str) -> list[str]:
    with pytest.raises(InvalidRules) as refused:
        rules(text)
    assert all(in_chinese(p.text) for p in refused.value.problems), refused.value
    return [str(problem) for problem in refused.value.problems]


def test_ties_are_refused_with_both_places() -> None:
    text = PONDING + override('area = ["x/y", "u/v"]', "levels = { red = 1 }")
    told = refusals(text + override('area = "/u/v/"', "levels = { red = 2 }"))
    assert told == ["override 2, line 17, levels: area u/v has this field from override 1, line 9 too"]
    # Equally narrow by words, and together on a sensor: only the catalogue shows it.
    tags = PONDING + override('tag = "a"', "levels = { red = 1 }") + override('tag = "b"', "levels = { red = 2 }")
    assert fitted(rules(tags), place("", "", tags=[("a",), ("b",)])).problems == []
    (problem,) = fitted(rules(tags), place("", tags=[("b", "a")])).problems
    assert str(problem) == (
        "override 2, line 14, levels: sensor d0/v has this field from override 1, line 9 too, which is as narrow"
    )
    # Different fields do not contend.
    both = PONDING + override('tag = "a"', "levels = { red = 1 }") + override('tag = "b"', 'hold = "3min"')
    assert fitted(rules(both), place("", tags=[("b", "a")])).problems == []


@pytest.mark.parametrize(
    ("scope", "fields", "told"),
    [
        ('sensor = "x"', "enabled = false", "sensor: 'x' is not device/property"),
        ("", "enabled = false", "the override has no scope"),
        ('tag = "a"', "", "the override changes nothing"),
        ('tag = "a"', 'source = "law"', "the override changes nothing"),
        ('tag = "a"', 'side = "below"', "side: cannot be overridden"),
        ('tag = "a"', "min = 3", "min: cannot be overridden in a rule of detector threshold"),
        ('tag = "a"', "levels = { red = 3, yellow = 9 }", "levels: red must not be below yellow"),
        ('tag = "a"', 'levels = { red = 3 }\nhold = { yellow = "1min" }', "hold.yellow: the rule has no such level"),
        ('area = ["a", "a/b"]', "enabled = false", "area: names areas of different depth"),
        ('areas = "a"', "enabled = false", "areas: cannot be overridden"),
        ('tag = "a"', "levels = { red = { of = 3 } }", "levels.red.of: must be the name of an attribute"),
        ('tag = "a"', 'levels = { red = { of = "x", time = 3 } }', "levels.red.time: unknown field"),
    ],
)
def test_a_wrong_override_is_refused_at_its_line(scope: str, fields: str, told: str) -> None:
    found = refusals(PONDING + override(scope, fields))
    assert told in "; ".join(found)
    assert all(re.match("override 1, line (9|1[0-4])", problem) for problem in found)


def test_an_override_of_no_rule_is_refused_and_rules_travel_as_json() -> None:
    assert (
        "no rule 'nothing' in this file" in refusals(override('tag = "a"', "enabled = false", "nothing") + PONDING)[0]
    )
    given = rules(PONDING + override('tag = "a"', "enabled = false") + '[[test]]\nname = "x"\n')
    again = parse_rules_table(given.as_json(), KINDS)
    assert (again.rules, again.overrides, again.tests) == (given.rules, given.overrides, given.tests)
    assert parse_rules(again.text, KINDS).overrides == given.overrides


def wells(*heights: tuple[float, float] | None) -> Catalog:
    """Level sensors in manholes of which (ground, invert) is known, or not."""
    city = catalog(*(sensor(n, "drainage.level") for n in range(len(heights))))
    city.describe(
        {n: AssetFacts(f"w{n}", "", {"ground_m": h[0], "invert_m": h[1]}) for n, h in enumerate(heights) if h},
        frozenset({"ground_m", "invert_m"}),
    )
    return city


def test_limits_come_from_the_sensors_asset_and_what_has_none_is_listed() -> None:
    city = wells((14, 10), None, (13, 10), (9, 10))
    over = fitted(rules(WELL), city)
    assert limits(rules(WELL), city, "well") == [(2, 4), None, (1.5, 3), None]
    assert [(lack.sensor, lack.missing, lack.is_watched) for lack in over.lacking] == [
        (1, ("levels.red", "levels.yellow"), False),
        (3, (), False),
    ]
    assert over.lacking[1].why == "red must not be below yellow"
    default = WELL.replace(
        'levels.red = { of = "ground_m", minus = "invert_m" }', 'levels.red = { of = "top", default = 6 }'
    )
    assert limits(rules(default), city, "well") == [(2, 6), (6,), (1.5, 6), (-0.5, 6)]
    assert [lack.is_watched for lack in fitted(rules(default), city).lacking] == [True]
    least = WELL.replace("times = 0.5 }", "times = 0.5, least = 1.75 }")
    assert limits(rules(least), city, "well") == [(2, 4), None, (3,), (-1,)], "one so small is none"
    served = WELL.replace('minus = "invert_m", times = 0.5', "times = 0.04, plus = 0.04").replace("ground_m", "floors")
    city.describe({0: AssetFacts("b", "", {"floors": 6.0, "invert_m": 0.0})}, frozenset())
    assert limits(rules(served), city, "well")[0] == pytest.approx((0.28, 6))


def test_a_new_model_version_refits_and_keeps_the_state_of_what_did_not_change() -> None:
    city = wells((14, 10), (14, 10))
    old = Engine(rules(WELL), city)
    feed(old, [(s, T0, 2.5) for s in range(2)])
    city.describe({0: city.facts[0], 1: AssetFacts("w1", "", {"ground_m": 12.0, "invert_m": 10.0})}, city.attributes)
    new = Engine(rules(WELL), city)
    new.adopt(old)
    _, kept, level = new.levels()
    assert (kept.tolist(), level.tolist()) == ([0], [2])
    told = feed(new, [(s, T0 + MINUTE, 2.5) for s in range(2)])
    assert [(t.sensor, t.before, t.after, t.threshold) for t in told] == [(1, 0, 4, 2.0)]


def test_twenty_thousand_manholes_with_limits_of_their_own_are_fitted() -> None:
    city = wells(*((10 + n / 1e5, 10 - n / 1e5) for n in range(1, 20_001)))
    engine = Engine(rules(WELL), city)
    assert len(engine.families["limits"].rows) == 20_000
    told = feed(engine, [(n, T0, 2 * (n + 1) / 1e5 + (n % 2 - 0.5) / 1e6) for n in range(20_000)])
    assert [t.sensor for t in told if t.after == 4] == list(range(1, 20_000, 2))
    assert not engine.fitted.lacking


OVERRIDES = [
    override('tag = "a"', "levels = { blue = 5, red = 30 }"),
    override('tag = "a"\ntenant = "t"', 'hold = "2min"'),
    override('sensor = "d1/v"', "enabled = false"),
    override('sensor = "d2/v"', 'levels = { orange = 12 }\nclear = { margin = "30%", hold = "1min" }'),
    override('area = "x"', 'max_gap = "3min"'),
    override('area = "x/y"', "levels = { yellow = 20 }\nstrict = true"),
]
RISE = """
[[rule]]
id = "rise"
kind = "*"
detector = "rate"
window = "5min"
levels = { yellow = 20 }

[[rule]]
id = "still"
kind = "*"
detector = "stuck"
for = "4min"

"""


def town() -> Catalog:
    sensors = [sensor(n, tags=("a",) * (n % 2), tenant="t" if n > 2 else "default") for n in range(6)]
    city = catalog(*sensors)
    city.describe({n: AssetFacts(f"m:{n}", area, {}) for n, area in enumerate(("", "x", "x/y", "x/y", "x/z", ""))},
                  frozenset())  # fmt: skip
    return city


STREAMS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from([0.0, 6.0, 11.0, 14.0, 16.0, 25.0, 45.0])),
    max_size=80,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=60, deadline=None)
@given(STREAMS, st.sets(st.integers(0, len(OVERRIDES) - 1)))
def test_a_sensor_is_judged_as_by_a_rule_that_was_written_for_it_alone(
    stream: list[tuple[int, int, float]], chosen: set[int]
) -> None:
    city = town()
    together = rules(RISE + PONDING + "".join(OVERRIDES[n] for n in sorted(chosen))
                     + override('tag = "a"', 'window = "8min"', "rise"))  # fmt: skip
    rows = [(s, T0 + minute * MINUTE, value) for s, minute, value in stream]
    told = feed(Engine(together, city), rows)
    expected = []
    for index in range(len(city)):
        alone = effective_on(together, city, index)
        places = {int(alone.public[v]): alone.rules[v] for v, sensors in alone.parts if len(sensors)}
        own = [places.get(n, replace(rule, enabled=False)) for n, rule in enumerate(together.rules)]
        engine = Engine(RuleSet(tuple(own), "", {rule.id: rule for rule in own}), city)
        expected += feed(engine, [row for row in rows if row[0] == index])
    assert plain(told) == plain(expected)


@settings(max_examples=60, deadline=None)
@given(STREAMS, st.integers(0, 40))
def test_a_hot_change_for_some_sensors_does_not_touch_the_others(
    stream: list[tuple[int, int, float]], moment: int
) -> None:
    city = town()
    before = rules(RISE + PONDING + OVERRIDES[0] + OVERRIDES[4])
    after = rules(
        PONDING + OVERRIDES[2] + OVERRIDES[0] + OVERRIDES[4] + OVERRIDES[3] + RISE.replace('"4min"', '"6min"')
    )
    rows = sorted((s, T0 + minute * MINUTE, value) for s, minute, value in stream)
    early, late = ([row for row in rows if (row[1] < T0 + moment * MINUTE) is side] for side in (True, False))
    one = Engine(before, city)
    undisturbed = feed(one, early) + feed(one, late)
    old = Engine(before, city)
    told = feed(old, early)
    changed = Engine(after, city)
    changed.adopt(old)
    second = feed(changed, late)
    names = {n: rule.id for n, rule in enumerate(after.rules)}
    back = {rule.id: n for n, rule in enumerate(before.rules)}
    told += [replace(t, rule=back[names[t.rule]]) for t in second]

    def untouched(t: Any) -> bool:
        rule = before.rules[t.rule].id
        return rule == "rise" or (rule == "ponding" and t.sensor not in (1, 2))

    assert plain(filter(untouched, told)) == plain(filter(untouched, undisturbed))


def test_the_state_of_silence_follows_the_sensor_whose_rule_changed_only() -> None:
    text = '[[rule]]\nid = "quiet"\nkind = "*"\ndetector = "offline"\nafter = "10min"\n\n'
    city = town()
    old = Engine(rules(text), city, T0)
    told, update = old.heard(np.arange(6), np.full(6, T0))
    old.apply(update)
    told, update = old.tick(T0 + 15 * MINUTE)
    old.apply(update)
    assert len(told) == 7  # each, and the domain
    new = Engine(rules(text + override('tenant = "t"', 'after = "20min"', "quiet")), city, T0)
    new.adopt(old)
    rule, still_open, _ = new.levels()
    assert still_open.tolist() == [0, 1, 2]
    assert set(rule.tolist()) == {0}
    told, update = new.tick(T0 + 21 * MINUTE)
    assert [(t.sensor, t.observed_at - T0) for t in told if t.sensor >= 0] == [(n, 20 * MINUTE) for n in (3, 4, 5)]


def test_rules_over_other_rules_and_what_is_judged_as_one_are_not_overridden() -> None:
    count = '[[rule]]\nid = "many"\ndetector = "neighbours"\nof = "ponding"\nwithin = "50m"\n'
    found = refusals(PONDING + count + override('tag = "a"', "count = 3", "many"))
    assert [problem.partition(": ")[2] for problem in found] == [
        "cannot be overridden in a rule of detector neighbours"
    ]
    alone = '[[rule]]\nid = "strange"\nkind = "drainage.ponding_depth"\ndetector = "anomaly"\n'
    found = refusals(alone + override('tag = "a"', 'over = "device"', "strange"))
    assert [problem.partition(": ")[2] for problem in found] == ["cannot be overridden in a rule of detector anomaly"]


def test_windows_by_level_follow_the_levels_that_an_override_gives() -> None:
    rain = (
        '[[rule]]\nid = "rain"\nkind = "drainage.rainfall"\ndetector = "accumulate"\n'
        'window = { blue = "1h", red = "30min" }\nlevels = { blue = 20, red = 50 }\n'
    )
    city = catalog(sensor(0, "drainage.rainfall", tags=("a",)))
    (variant,) = fitted(rules(rain + override('tag = "a"', "levels = { red = 40 }", "rain")), city).rules[1:]
    assert isinstance(variant.parameters, Accumulating)
    assert variant.parameters.windows == (0, 0, 0, 30 * MINUTE)


def test_neighbours_stay_neighbours_whatever_their_limits() -> None:
    near = (
        '[[rule]]\nid = "near"\nkind = "drainage.ponding_depth"\ndetector = "neighbours"\nwithin = "1km"\ncount = 2\n'
        "levels = { blue = 2 }\n"
    )
    city = catalog(*(sensor(n, tags=("a",) * (n == 0), lon=114 + n / 1000, lat=30.5) for n in range(3)))
    groups = Engine(rules(near + override('tag = "a"', "levels = { blue = 5 }", "near")), city).joined["neighbours"]
    assert groups.join.groups.member.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    by_model = near.replace("blue = 2", 'blue = { of = "step" }')
    city.describe({n: AssetFacts("", "", {"step": n - 1.0}) for n in range(3)}, frozenset({"step"}))
    engine = Engine(rules(by_model), city)
    assert [(lack.sensor, lack.why) for lack in engine.fitted.lacking] == [
        (0, "this limit must be above 0"), (1, "this limit must be above 0"),
    ]  # fmt: skip
