"""The newest reading of every sensor, as columns; what `latest` answers and what tells late from new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.model import Bytes, Floats, Ints, Readings, by_sensor


@dataclass(slots=True)
class SensorState:
    """Columns by sensor index: `observed_at` (0 = never), `received_at`, `value`, `quality` of the reading with the
    newest event time, and `heard_at`, when anything of the sensor last came."""

    observed_at: Ints
    received_at: Ints
    value: Floats
    quality: Bytes
    heard_at: Ints

    @classmethod
    def of(cls, size: int) -> SensorState:
        return cls(
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
            np.full(size, np.nan),
            np.zeros(size, np.uint8),
            np.zeros(size, np.int64),
        )

    def __len__(self) -> int:
        return len(self.observed_at)

    def copy(self) -> SensorState:
        return SensorState(
            self.observed_at.copy(),
            self.received_at.copy(),
            self.value.copy(),
            self.quality.copy(),
            self.heard_at.copy(),
        )

    def grow(self, size: int) -> None:
        """Room for `size` sensors; the new ones were never heard."""
        if size <= len(self):
            return
        fresh = SensorState.of(size)
        for name in ("observed_at", "received_at", "value", "quality", "heard_at"):
            column: NDArray[Any] = getattr(fresh, name)
            column[: len(self)] = getattr(self, name)
        # Others read meanwhile, and go by the length of `observed_at`: that one last.
        for name in ("received_at", "value", "quality", "heard_at", "observed_at"):
            setattr(self, name, getattr(fresh, name))

    def apply(self, stored: Readings, is_heard: bool = True) -> None:
        """Take in stored readings, in any order; `is_heard`: they came from the sensors, not from a file."""
        if not len(stored):
            return
        newest = stored.newest()
        fresh = newest.take(newest.observed_at > self.observed_at[newest.sensor])
        self.observed_at[fresh.sensor] = fresh.observed_at
        self.received_at[fresh.sensor] = fresh.received_at
        self.value[fresh.sensor] = fresh.value
        self.quality[fresh.sensor] = fresh.quality
        if is_heard:
            np.maximum.at(self.heard_at, stored.sensor, stored.received_at)


def arrival_lanes(readings: Readings, newest_at: Ints) -> NDArray[np.bool_]:
    """Which readings, given in arrival order, are newer than everything their sensor showed before them.

    `newest_at` is the newest event time of each sensor before this batch. A reading that repeats or precedes an
    earlier one of the same batch is not new either.
    """
    sensor, at = readings.sensor, readings.observed_at
    new = at > newest_at[sensor]
    order = by_sensor(sensor)
    s, t = sensor[order], at[order]
    first = np.empty(len(s), bool)
    first[:1] = True
    np.not_equal(s[1:], s[:-1], out=first[1:])
    if first.all():
        return np.asarray(new)
    rising = first.copy()
    np.greater(t[1:], t[:-1], out=rising[1:], where=~first[1:])
    if not rising.all():
        # Running maximum within each sensor: lift every sensor's times above those of the sensor before it, so that
        # one accumulate over the whole column cannot reach across.
        group = np.cumsum(first) - 1
        rank = np.unique(t, return_inverse=True)[1].reshape(-1) + group * (len(t) + 1)
        top = np.maximum.accumulate(rank)
        rising[1:] = first[1:] | (rank[1:] > top[:-1])
    result = np.empty(len(s), bool)
    result[order] = rising
    return result & new
