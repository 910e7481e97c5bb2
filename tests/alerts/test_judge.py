"""Rules over recorded readings: order, repeats, missing values, and the level told beside each reading."""

from __future__ import annotations

import numpy as np
import pytest
from alerts_city import MINUTE, T0, catalog, rules, sensor

import alerts.judge
from alerts.judge import judge
from twin.model import Readings

CITY = catalog(sensor(0), sensor(1))
RULES = rules(
    '[[rule]]\nid = "a"\nkind = "drainage.ponding_depth"\ndetector = "threshold"\nlevels = { blue = 2, red = 8 }\n'
    '[[rule]]\nid = "b"\nkind = "drainage.ponding_depth"\ndetector = "threshold"\nlevels = { yellow = 3 }\n'
    '[[rule]]\nid = "c"\nkind = "*"\ndetector = "offline"\nafter = "1s"\n'
)
NAN = float("nan")


def columns(rows: list[tuple[int, int, float, int]]) -> Readings:
    s, t, v, q = zip(*rows, strict=True)
    at = np.array(t, np.int64) * MINUTE + T0
    return Readings(np.array(s, np.int32), at, at, np.array(v), np.array(q, np.uint8))


ROWS = [(0, 3, 1.0, 0), (0, 1, 4.0, 1), (1, 0, 9.0, 0), (0, 0, 2.0, 0), (0, 2, NAN, 0), (0, 1, 0.0, 0), (1, 1, 0.0, 16)]


@pytest.mark.parametrize("at_once", [1, 2, 500_000])
def test_readings_in_any_order_get_the_level_that_is_open_after_them(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts.judge, "_AT_ONCE", at_once)
    judged = judge(RULES, CITY, columns(ROWS))
    told = zip(
        judged.readings.sensor.tolist(), judged.readings.observed_at.tolist(), judged.level.tolist(), strict=True
    )
    assert [(s, (at - T0) // MINUTE, level) for s, at, level in told] == [
        (0, 0, 1),
        (0, 1, 2),  # the first of two readings of one time counts
        (0, 2, 2),  # missing: what is open stays open
        (0, 3, 0),
        (1, 0, 4),
        (1, 1, 4),  # bad: not judged
    ]
    assert [(t.sensor, t.rule, t.after) for t in judged.transitions] == [
        (0, 0, 1),
        (1, 0, 4),
        (1, 1, 2),
        (0, 1, 2),
        (0, 0, 0),
        (0, 1, 0),
    ]


def test_no_readings_give_no_verdicts() -> None:
    judged = judge(RULES, CITY, Readings.empty())
    assert len(judged.readings) == len(judged.level) == len(judged.transitions) == 0
