"""Which event times of each sensor were changed since the aggregates were last refreshed."""

from __future__ import annotations

import threading

import numpy as np

from twin.model import Ints, Micros, Readings

_NEVER = np.iinfo(np.int64).max


class Dirty:
    """Per sensor, the span of event times that buckets cannot be trusted for; safe between threads.

    Conservative: one span a sensor, from the earliest to the latest change. `batch` is the newest commit noted,
    `readings` how many were stored since the last refresh began.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._low = np.empty(0, np.int64)
        self._high = np.empty(0, np.int64)
        self._refreshing: tuple[Ints, Ints] | None = None
        self.batch = 0
        self.readings = 0

    def note(self, readings: Readings, batch: int) -> None:
        """These were stored with commit `batch`."""
        with self._lock:
            if batch > self.batch:  # else it is under way, and noted again once it is done
                self.readings += len(readings)
                self.batch = batch
            if not len(readings):
                return
            size = int(readings.sensor.max()) + 1
            if size > len(self._low):
                grow = max(size, 2 * len(self._low)) - len(self._low)
                self._low = np.append(self._low, np.full(grow, _NEVER))
                self._high = np.append(self._high, np.full(grow, -_NEVER))
            np.minimum.at(self._low, readings.sensor, readings.observed_at)
            np.maximum.at(self._high, readings.sensor, readings.observed_at)

    def begin(self) -> tuple[int, Micros, Micros] | None:
        """A refresh begins: the newest commit it has to cover and the span of all changed event times; None if nothing
        changed since the last."""
        with self._lock:
            if not len(self._low) or int(self._high.max()) == -_NEVER:
                return None
            self.readings = 0
            self._refreshing = (self._low, self._high)
            self._low = np.full(len(self._low), _NEVER)
            self._high = np.full(len(self._high), -_NEVER)
            low, high = self._refreshing
            return self.batch, int(low.min()), int(high.max())

    def end(self, is_done: bool) -> None:
        """The refresh ended; where it failed its spans stay dirty."""
        with self._lock:
            if self._refreshing is None:
                return
            if not is_done:
                low, high = self._refreshing
                self._low[: len(low)] = np.minimum(self._low[: len(low)], low)
                self._high[: len(high)] = np.maximum(self._high[: len(high)], high)
            self._refreshing = None

    def span(self, sensor: int) -> tuple[Micros, Micros] | None:
        """`(first, last)` changed event time of a sensor, None if the aggregates hold for all of it."""
        with self._lock:
            low, high = _NEVER, -_NEVER
            for lows, highs in [(self._low, self._high), *([self._refreshing] if self._refreshing else [])]:
                if sensor < len(lows):
                    low, high = min(low, int(lows[sensor])), max(high, int(highs[sensor]))
        return None if high == -_NEVER else (low, high)
