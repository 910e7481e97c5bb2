"""The shipped rules, shown by series in and alert events out (alerts/packs/default.tests.toml)."""

from __future__ import annotations

from pathlib import Path

import pytest
from alerts_city import KINDS, MINUTE, T0, catalog, readings, sensor

from alerts.engine import Engine
from alerts.judge import judge
from alerts.packs import default_tests, default_text
from alerts.rules import parse_rules
from twin.rule_tests import RuleTest, read_tests, run

PACK = parse_rules(default_text(), KINDS, require_source=True)
TESTS = read_tests(default_tests().encode(), "default tests", KINDS, Path)


@pytest.mark.parametrize("test", TESTS, ids=[test.name for test in TESTS])
def test_series_in_events_out(test: RuleTest) -> None:
    failure = run(test, PACK, KINDS)
    assert failure is None, "\n".join(failure.lines())


def test_every_rule_of_the_pack_has_a_test() -> None:
    # Of what is only a condition nobody is told; the rules that follow it show it.
    told = {rule.id for rule in PACK.rules if not rule.is_condition}
    assert told == {event.rule for test in TESTS for event in test.expected}


def test_the_pack_says_source_mark_and_what_to_do_in_both_languages() -> None:
    for rule in PACK.rules:  # completeness is asked by require_source; this asks that it is really both languages
        assert any("\u4e00" <= c <= "\u9fff" for c in rule.title.zh + rule.instruction.zh), rule.id
        assert rule.title.en.isascii(), rule.id
        assert rule.instruction.en.isascii(), rule.id


def test_a_city_of_normal_values_raises_nothing() -> None:
    normal = {
        "water.pressure": 0.3, "gas.methane": 0.0, "drainage.ponding_depth": 0.0, "manhole.tilt": 1.0,
        "manhole.open": 0.0, "confined.h2s": 0.0, "confined.co": 1.0, "confined.oxygen": 20.9, "water.ph": 7.4,
        "water.turbidity": 0.3, "bridge.crack": 0.05, "bridge.vehicle_weight": 20.0, "device.battery": 90.0,
    }  # fmt: skip
    city = catalog(*(sensor(n, kind) for n, kind in enumerate(normal)))
    rows = [(s, T0 + n * 10 * MINUTE, v) for n in range(30) for s, v in enumerate(normal.values())]
    assert judge(PACK, city, readings(rows)).transitions == []
    assert len(Engine(PACK, city).families["limits"].rows) >= len(normal) - 1
