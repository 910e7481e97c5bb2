"""The shipped rules, shown by series in and alert events out (tests/scenarios/*.toml)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alerts_city import KINDS, MINUTE, T0, catalog, readings, sensor

from alerts.composition import Composition
from alerts.engine import Engine
from alerts.judge import judge
from alerts.packs import default_text
from alerts.rules import parse_rules
from twin.model import Readings

PACK = parse_rules(default_text(), KINDS, require_source=True)
SCENARIOS = Path(__file__).parent.parent / "scenarios"
CASES = [case for file in sorted(SCENARIOS.glob("*.toml")) for case in tomllib.loads(file.read_text("utf-8"))["case"]]


def series(case: dict[str, Any]) -> Readings:
    rows = []
    for entry in case["series"]:
        minutes = [entry[0]] if len(entry) == 2 else np.arange(entry[0], entry[1] + 1, entry[2]).tolist()
        rows += [(0, T0 + round(minute * MINUTE), float(entry[-1])) for minute in minutes]
    return readings(rows)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_series_in_events_out(case: dict[str, Any]) -> None:
    city = catalog(sensor(0, case["kind"], tags=tuple(case.get("tags", ())), statistic=case.get("statistic")))
    judged = judge(PACK, city, series(case))
    told = [[(t.observed_at - T0) / MINUTE, PACK.rules[t.rule].id, t.before, t.after] for t in judged.transitions]
    assert told == case["events"]
    if told:
        assert judged.level.max() == max(after for *_, after in told)


def test_every_rule_of_the_pack_that_judges_readings_has_a_scenario() -> None:
    shown = {rule for case in CASES for _, rule, _, _ in case["events"]}
    # Composites have theirs in test_composites.py; of what is only a condition nobody is told.
    plain = {r.id for r in PACK.rules if not r.is_condition and not isinstance(r.parameters, Composition)}
    assert plain - shown == {"device-offline", "water-quality-stuck"}


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
