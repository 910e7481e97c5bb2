"""The order by sensor, and by sensor and time, is the stable one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twin.model import by_sensor, by_sensor_and_time

rows = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 70_000, 2**31 - 1]), st.integers(-3, 3)), max_size=30)


@given(rows, st.booleans(), st.booleans())
def test_order_is_that_of_a_stable_sort(given_rows: list[tuple[int, int]], by_time: bool, is_sorted: bool) -> None:
    if by_time:
        given_rows.sort(key=lambda row: row[1])
    if is_sorted:
        given_rows.sort()
    sensor = np.array([s for s, _ in given_rows], np.int32)
    at = np.array([t for _, t in given_rows], np.int64)
    np.testing.assert_array_equal(by_sensor(sensor), np.argsort(sensor, kind="stable"))
    np.testing.assert_array_equal(by_sensor_and_time(sensor, at), np.lexsort((at, sensor)))
