"""Is this reading believable: the quality bits of the contract, each a reason."""

from __future__ import annotations

from typing import Final

import numpy as np

from twin.catalog import Catalog
from twin.model import MINUTE, Bools, Bytes, Floats, Indices, Ints, Quality, Readings, by_sensor
from twin.state import SensorState, arrival_lanes

AHEAD_FROM: Final = 5 * MINUTE
JUMP_WITHIN_INTERVALS: Final = 3
DEFAULT_INTERVAL: Final = 5 * MINUTE


def judge(
    sensor: Indices,
    observed_at: Ints,
    received_at: Ints,
    value: Floats,
    catalog: Catalog,
    state: SensorState,
    is_new: Bools | None = None,
) -> Bytes:
    """Quality bits of readings in arrival order, one uint8 each.

    - `AHEAD`: 5 min or more ahead of `received_at`.
    - `OUT_OF_RANGE`: outside low..high; `FAR_OUT_OF_RANGE` as well where further out than one whole span (high - low).
    - `CALIBRATION`, `TEST`: the sensor's mode.
    - `JUMP`: more than the kind's jump away from the sensor's reading just before it, at most three reporting
      intervals (five minutes each where none is given) earlier. Only for readings newer than all their sensor showed
      (`is_new`, by default from `arrival_lanes`), and only where the one before is judgeable: so the marks are the
      same however the readings are batched.

    A missing value (NaN) has `AHEAD` and mode bits only. `state` holds at least all sensors named, as before this
    batch.
    """
    bits = catalog.mode_bits[sensor].copy()
    bits[observed_at - received_at >= AHEAD_FROM] |= Quality.AHEAD
    low, high = catalog.low[sensor], catalog.high[sensor]  # a comparison with NaN is False
    outside = (value < low) | (value > high)
    if outside.any():
        bits[outside] |= Quality.OUT_OF_RANGE
        span = high - low
        bits[(value < low - span) | (value > high + span)] |= Quality.FAR_OUT_OF_RANGE
    checked = np.isfinite(catalog.jump[sensor])
    if checked.any():
        if is_new is None:
            is_new = arrival_lanes(Readings(sensor, observed_at, received_at, value, bits), state.observed_at)
        _mark_jumps(sensor, observed_at, value, bits, np.flatnonzero(is_new & checked), catalog, state)
    return bits


def _mark_jumps(
    sensor: Indices,
    observed_at: Ints,
    value: Floats,
    bits: Bytes,
    rows: Ints,
    catalog: Catalog,
    state: SensorState,
) -> None:
    """Set `JUMP` in `bits`; `rows`, in arrival order, rise in time within each sensor."""
    rows = rows[by_sensor(sensor[rows])]
    s, v = sensor[rows], value[rows]
    first = np.ones(len(s), np.bool_)
    np.not_equal(s[1:], s[:-1], out=first[1:])
    begins = np.flatnonzero(first)
    before = np.empty_like(v)
    before[1:] = v[:-1]
    before[begins] = state.value[s[begins]]
    with np.errstate(over="ignore", invalid="ignore"):
        far = np.flatnonzero(np.abs(v - before) > catalog.jump[s])
    if not len(far):
        return
    judgeable = bits[rows] < Quality.FIRST_BAD
    s, at, is_first = s[far], observed_at[rows], first[far]
    before_at = np.where(is_first, state.observed_at[s], at[far - 1])
    is_judgeable = np.where(is_first, state.quality[s] < Quality.FIRST_BAD, judgeable[far - 1])
    interval = catalog.interval_us[s]
    within = JUMP_WITHIN_INTERVALS * np.where(interval > 0, interval, DEFAULT_INTERVAL)
    bits[rows[far[is_judgeable & (at[far] - before_at <= within)]]] |= Quality.JUMP
