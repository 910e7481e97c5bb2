"""Groups of sensors: what is said of their joined readings is the same for any order, batching and restart."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_judgement import KINDS, START, Reading, compared, run

import alerts.detectors.spectrum
import alerts.detectors.together
from twin.catalog import Catalog
from twin.model import MINUTE, AlertState, Sensor

RULES = """
[[rule]]
id = "off-model"
sensors = ["d0/depth"]
detector = "residual"
model = "d1/{property}"
side = "either"
levels = { yellow = 5, red = 20 }
hold = { yellow = "2min" }
clear = { margin = "20%", hold = "1min" }
max_age = "4min"
patience = "3min"

[[rule]]
id = "off-neighbours"
kind = "drainage.ponding_depth"
detector = "neighbours"
within = "500m"
count = 1
side = "above"
levels = { blue = 8 }
max_age = "2min"
patience = "5min"

[[rule]]
id = "together"
kind = "drainage.ponding_depth"
detector = "anomaly"
over = "rule"
budget = 1000
max_age = "2min"
patience = "4min"

[[rule]]
id = "healthy"
sensors = ["d2/depth"]
detector = "spectrum"
temperature = "d1/depth"
learn = "5min"
levels = { yellow = 2 }
side = "either"
max_age = "3min"

[[rule]]
id = "deep"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, red = 40 }
hold = "1min"
"""


def city() -> Catalog:
    result = Catalog(KINDS)
    result.put(
        [
            (
                n,
                Sensor(
                    f"d{n}", "depth", "drainage.ponding_depth", "cm",
                    lon=114.0 + n / 1000, lat=30.0, interval_s=60, min=0, max=60,
                ),
            )
            for n in range(3)
        ]
    )  # fmt: skip
    return result


@pytest.fixture(autouse=True)
def _learns_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Series of tests are short."""
    monkeypatch.setattr(alerts.detectors.spectrum, "LEAST", 4)
    for name, value in (("LEARNT", 10), ("START", 2), ("WARM", 5), ("MOVES", 2), ("CALM", 2)):
        monkeypatch.setattr(alerts.detectors.together, name, value)


values = st.one_of(st.none(), st.sampled_from([0.0, 3.0, 8.0, 9.0, 12.0, 21.0, 30.0, 45.0]))
streams = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 40)), values, min_size=1, max_size=70)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams, st.randoms(use_true_random=False), st.integers(1, 12), st.integers(-1, 20), st.sampled_from("srd"))
def test_any_order_batching_and_restart_give_the_same_alert_events(
    stream: dict[tuple[int, int], float | None], random: object, size: int, restart: int, order: str
) -> None:
    ordered: list[Reading] = sorted(((s, m, v) for (s, m), v in stream.items()), key=lambda r: (r[1], r[0]))
    expected = run([ordered], rules=RULES, city=city)
    arriving = list(ordered)
    if order == "s":
        random.shuffle(arriving)  # type: ignore[attr-defined]
    elif order == "d":  # one device is late as a whole, each sensor in order
        arriving = sorted(ordered, key=lambda r: (r[1] + (0, 7, 30)[r[0]], r[0]))
    batches = [arriving[n : n + size] for n in range(0, len(arriving), size)]
    got = run(batches, restart, rules=RULES, city=city)
    assert compared(got.events) == compared(expected.events)
    open_now = sorted(a.id for a in got.alert_rows.values() if a.state is not AlertState.CLEARED)
    assert open_now == sorted(a.id for a in expected.alert_rows.values() if a.state is not AlertState.CLEARED)


def test_a_snapshot_of_a_group_does_not_serve_once_a_reading_came_for_a_time_it_had_passed() -> None:
    observed: list[Reading] = [(0, m, 12.0) for m in range(5)]
    later: list[list[Reading]] = [[(2, 0, 0.0)], [(2, 1, 0.0)], [(1, 0, 3.0)], [(0, 5, 12.0)], [(1, 2, 3.0)]]
    got = run([observed, *later], rules=RULES, city=city)
    expected = run([sorted([*observed, *(r for batch in later for r in batch)])], rules=RULES, city=city)
    assert compared(got.events) == compared(expected.events)
    (raised,) = [e for e in got.events if e.rule == "off-model"]
    assert raised.observed_at - START == 2 * MINUTE


@pytest.mark.parametrize("restart", [-1, 3])
def test_a_sensor_far_behind_its_neighbours_is_held_against_what_they_showed_at_its_time(restart: int) -> None:
    """Further behind than a group remembers, after a snapshot."""
    others = [(s, m, 3.0) for m in range(50) for s in (0, 2)]
    behind: list[Reading] = [(1, m, 30.0 if m in (7, 8, 21, 30) else 3.0) for m in range(40)]
    batches = [others, behind[:4], [], behind[4:]]
    got = run(batches, restart, rules=RULES, city=city)
    expected = run([sorted([*others, *behind], key=lambda r: r[1])], rules=RULES, city=city)
    told = [e for e in expected.events if (e.rule, e.sensor) == ("off-neighbours", "d1/depth")]
    assert [(e.observed_at - START) // MINUTE for e in told if e.transition == "raised"] == [7, 21, 30]
    assert compared(got.events) == compared(expected.events)


def test_a_message_with_all_members_goes_the_fast_way_and_a_late_member_corrects_with_retroactive_events() -> None:
    both = [[(0, m, 30.0), (1, m, 3.0)] for m in range(3)]
    told = [e for e in run(both, rules=RULES, city=city).events if e.rule == "off-model"]
    assert [(e.transition, e.level, e.is_retroactive) for e in told] == [("raised", 4, False)]
    apart = [[(0, m, 30.0) for m in range(8)], [(1, m, 3.0) for m in range(8)]]
    told = [e for e in run(apart, rules=RULES, city=city).events if e.rule == "off-model"]
    assert [(e.transition, e.level, e.is_retroactive) for e in told] == [("raised", 4, True)]
