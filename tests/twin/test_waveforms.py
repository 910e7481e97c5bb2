"""Samples in two bytes: never another number than the one that came."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twin.store.waveforms import compact, expanded

decimals = st.integers(0, 9)
sample = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.tuples(st.integers(-40_000, 40_000), decimals).map(lambda p: float(np.float32(p[0] / 10 ** p[1]))),
)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(sample, min_size=n, max_size=n), min_size=1, max_size=5)))
def test_what_is_kept_in_two_bytes_is_read_back_exactly(rows: list[list[float]]) -> None:
    samples = np.array(rows, np.float32)
    whole, places = compact(samples)
    for row, kept, place in zip(samples, whole, places.tolist(), strict=True):
        if place >= 0:
            np.testing.assert_array_equal(expanded(kept.astype("<i2").tobytes(), place), row)


@given(st.lists(st.integers(-32_767, 32_767), min_size=1, max_size=20), decimals)
def test_what_a_converter_of_16_bits_gives_is_kept_in_two_bytes(counts: list[int], place: int) -> None:
    samples = (np.array([counts]) / 10.0**place).astype(np.float32)
    assert compact(samples)[1][0] >= 0
