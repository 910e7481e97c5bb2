"""The marks of contract 3 on readings that are stored all the same."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twin.units
from ingest.quality import judge
from twin.catalog import Catalog
from twin.model import HOUR, MINUTE, SECOND, Quality, Readings, Sensor, SensorMode, parse_time
from twin.state import SensorState

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
T = parse_time("2026-07-01T08:00:00Z")
RANGED, DEPTH, FLOW, TESTED, FAST = range(5)
CATALOG = Catalog(KINDS)
CATALOG.put(
    list(
        enumerate(
            [
                Sensor("a", "level", "water.flow", "m³/h", min=10, max=30),
                Sensor("a", "depth", "drainage.ponding_depth", "cm"),  # jump 100 cm
                Sensor("a", "flow", "water.flow", "m³/h", min=0),
                Sensor("a", "tested", "drainage.ponding_depth", "cm", mode=SensorMode.TEST),
                Sensor("a", "fast", "drainage.ponding_depth", "cm", interval_s=10),
            ]
        )
    )
)
Row = tuple[int, int, float]


def columns(rows: list[Row], received_at: int | None = None) -> Readings:
    at = np.array([row[1] for row in rows], np.int64)
    return Readings(
        np.array([row[0] for row in rows], np.int32),
        at,
        at.copy() if received_at is None else np.full(len(rows), received_at, np.int64),
        np.array([row[2] for row in rows], np.float64),
        np.zeros(len(rows), np.uint8),
    )


def marks(rows: list[Row], state: SensorState | None = None, received_at: int | None = None) -> list[int]:
    c = columns(rows, received_at)
    state = SensorState.of(len(CATALOG)) if state is None else state
    bits = judge(c.sensor, c.observed_at, c.received_at, c.value, CATALOG, state)
    assert bits.dtype == np.uint8
    state.apply(Readings(c.sensor, c.observed_at, c.received_at, c.value, bits))
    return bits.tolist()


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (10, 0),
        (30, 0),
        (9.99, Quality.OUT_OF_RANGE),
        (30.01, Quality.OUT_OF_RANGE),
        (-10, Quality.OUT_OF_RANGE),
        (50, Quality.OUT_OF_RANGE),
        (-10.01, Quality.OUT_OF_RANGE | Quality.FAR_OUT_OF_RANGE),
        (50.01, Quality.OUT_OF_RANGE | Quality.FAR_OUT_OF_RANGE),
        (1.7e308, Quality.OUT_OF_RANGE | Quality.FAR_OUT_OF_RANGE),
        (math.nan, 0),
    ],
)
def test_outside_the_range_is_suspect_and_further_than_one_span_bad(value: float, bits: int) -> None:
    assert marks([(RANGED, T, value)]) == [bits]


def test_with_one_bound_nothing_is_far_out() -> None:
    assert marks([(FLOW, T, -1e9), (FLOW, T + SECOND, 1e9)]) == [Quality.OUT_OF_RANGE, 0]


def test_five_minutes_ahead_is_suspect_even_without_a_value() -> None:
    rows = [(FLOW, T + 5 * MINUTE - 1, 1.0), (FLOW, T + 5 * MINUTE, 1.0), (FLOW, T + HOUR, math.nan)]
    assert marks(rows, received_at=T) == [0, Quality.AHEAD, Quality.AHEAD]


def test_a_sensor_in_test_is_marked_and_does_not_serve_as_the_one_before() -> None:
    assert marks([(TESTED, T, 0.0), (TESTED, T + SECOND, 500.0)]) == [Quality.TEST, Quality.TEST]


def test_a_jump_is_seen_within_a_batch_and_across_batches_and_only_from_readings_near_in_time() -> None:
    state = SensorState.of(len(CATALOG))
    assert marks([(DEPTH, T, 0.0), (DEPTH, T + MINUTE, 100.0), (DEPTH, T + 2 * MINUTE, 200.5)], state) == [
        0, 0, Quality.JUMP,
    ]  # fmt: skip
    assert marks([(DEPTH, T + 17 * MINUTE, 0.0)], state) == [Quality.JUMP]
    assert marks([(DEPTH, T + 32 * MINUTE + 1, 200.0)], state) == [0]


def test_three_reporting_intervals_bound_the_look_back() -> None:
    assert marks([(FAST, T, 0.0), (FAST, T + 30 * SECOND, 101.0)]) == [0, Quality.JUMP]
    assert marks([(FAST, T, 0.0), (FAST, T + 30 * SECOND + 1, 101.0)]) == [0, 0]


def test_the_first_reading_of_a_sensor_and_late_ones_are_no_jump() -> None:
    state = SensorState.of(len(CATALOG))
    assert marks([(DEPTH, T, 5000.0)], state) == [0]
    assert marks([(DEPTH, T - SECOND, 0.0), (DEPTH, T, 0.0)], state) == [0, 0]
    assert marks([(DEPTH, T + 2 * SECOND, 5000.0), (DEPTH, T + SECOND, 0.0)], state) == [0, 0]


def test_a_missing_reading_breaks_the_chain_within_a_batch_as_across_batches() -> None:
    rows = [(DEPTH, T, 0.0), (DEPTH, T + SECOND, math.nan), (DEPTH, T + 2 * SECOND, 500.0)]
    state = SensorState.of(len(CATALOG))
    assert marks(rows) == [bits for row in rows for bits in marks([row], state)] == [0, 0, 0]


def test_no_reading_has_no_mark() -> None:
    assert marks([]) == []


ROWS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 40).map(lambda n: T + n * 20 * SECOND),
        st.sampled_from([0.0, 20.0, 55.0, 150.0, 260.0, math.nan]),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(ROWS, st.lists(st.integers(0, 30), max_size=4))
def test_the_marks_are_the_same_however_readings_are_batched(rows: list[Row], cuts: list[int]) -> None:
    state = SensorState.of(len(CATALOG))
    edges = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    apart = [bits for a, b in itertools.pairwise(edges) for bits in marks(rows[a:b], state)]
    assert apart == marks(rows)
