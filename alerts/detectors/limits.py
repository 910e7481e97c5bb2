"""threshold and range: the reading's own value against fixed limits.

Most readings of a city lie inside every limit and belong to watches at rest, or repeat what holds an alert open (a
pump that runs, a cover that is off); those cost two look-ups and two comparisons: `_quiet` holds, by sensor, the
interval in which nothing can change, an empty one while any of the sensor's watches is neither at rest nor lasting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alerts.detectors import latch
from alerts.detectors.rows import Batch, Pairs, Patch, Rows, Verdicts
from alerts.rules import NO_LEVEL, Rule
from twin.model import Bools, Floats, Indices, Ints

NO_LEVELS = (NO_LEVEL,) * latch.K


class LimitWatches(latch.Latched):
    """All watches of threshold and range rules."""

    def __init__(self, rows: Rows, limits: latch.Limits, profile: Ints) -> None:
        super().__init__(rows, limits, profile, {})
        sensors = len(rows.number)
        self._hi, self._lo = np.full(sensors, np.inf), np.full(sensors, -np.inf)
        watched = np.flatnonzero(rows.number)
        if len(watched):
            self._hi[watched] = np.minimum.reduceat(limits.outer_hi[profile], rows.begin[watched])
            self._lo[watched] = np.maximum.reduceat(limits.outer_lo[profile], rows.begin[watched])
        # [sensors, 2]: a reading with quiet[0] < value < quiet[1] changes nothing
        self._quiet = np.stack([self._lo, self._hi], axis=1)

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> LimitWatches:
        profiles: list[tuple[Rule, Sequence[float], Sequence[float]]] = []
        profile = np.full(len(rows), -1)
        order = np.argsort(rows.rule, kind="stable")
        begin = np.searchsorted(rows.rule[order], np.arange(len(rules) + 1)).tolist()
        for r, rule in enumerate(rules):
            mine = order[begin[r] : begin[r + 1]]
            if not len(mine):
                continue
            if rule.detector == "threshold":
                profile[mine] = len(profiles)
                above = rule.side == "above"
                profiles.append((rule, rule.levels if above else NO_LEVELS, NO_LEVELS if above else rule.levels))
                continue
            # A range takes the bounds it does not give from its sensor; sensors with equal bounds share a profile.
            sensor = rows.sensor[mine]
            bounds = np.stack(
                [
                    low[sensor] if rule.min is None else np.full(len(mine), rule.min),
                    high[sensor] if rule.max is None else np.full(len(mine), rule.max),
                ],
                axis=1,
            )
            distinct, which = np.unique(bounds, axis=0, return_inverse=True)
            profile[mine] = len(profiles) + which.reshape(-1)
            for least, most in distinct.tolist():
                profiles.append((rule, _at(rule, most), _at(rule, least)))
        return cls(rows, latch.Limits.of(profiles), profile)

    def subset(self, rows: Rows, origin: Ints) -> LimitWatches:
        return LimitWatches(rows, self.limits, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        bounds = self._quiet.take(batch.sensor, axis=0)
        loud = (batch.value >= bounds[:, 1]) | (batch.value <= bounds[:, 0])
        if not loud.any():
            return Verdicts.none(), []
        pairs = Pairs.of(self.rows, batch, np.flatnonzero(np.logical_or.reduceat(loud, batch.start)))
        # Of the sensor's watches, those that are at rest and whose own limits were not reached stay out.
        x = batch.value[pairs.reading]
        p = self.profile[pairs.row][pairs.group]
        pairs = pairs.only(self.loud(pairs, self.limits.reached(x, p)))
        if not len(pairs.row):
            return Verdicts.none(), []
        at, x = batch.at[pairs.reading], batch.value[pairs.reading]
        found = latch.scan(self.limits, self.profile[pairs.row], self.carried(pairs.row), pairs, at, x)
        return found.verdicts, [Patch(pairs.row, found.columns)]

    def apply(self, patches: Sequence[Patch]) -> None:
        super().apply(patches)
        for patch in patches:
            self._attend(np.unique(self.rows.sensor[patch.rows]))

    def _attend(self, sensor: Indices) -> None:
        """What is quiet for these sensors as their watches stand now: what all at rest leave at rest, or only the value
        for which those that are open last, unless it wakes another (of a new rule, say)."""
        row, number = self.rows.of_sensors(sensor), self.rows.number[sensor]
        head = np.cumsum(number) - number
        state = {name: self.columns[name][row] for name in ("level", "run", "clear", "value")}
        p = self.profile[row]
        busy, lasts = ~latch.resting(state), latch.lasting(self.limits, p, state)
        last = np.maximum.reduceat(np.where(lasts, state["value"], -np.inf), head)
        x = np.repeat(last, number)
        wakes = self.limits.reached(x, p)
        is_moving = np.logical_or.reduceat(np.where(busy, ~lasts | (state["value"] != x), wakes), head)
        is_busy = np.logical_or.reduceat(busy, head)
        low = np.where(is_moving, np.inf, np.nextafter(last, -np.inf))
        high = np.where(is_moving, -np.inf, np.nextafter(last, np.inf))
        self._quiet[sensor, 0] = np.where(is_busy, low, self._lo[sensor])
        self._quiet[sensor, 1] = np.where(is_busy, high, self._hi[sensor])

    def resting(self) -> Bools:
        return ~self._busy


def _at(rule: Rule, bound: float) -> list[float]:
    """`bound` as the limit of the rule's one level."""
    return [bound if k + 1 == rule.level else math.nan for k in range(latch.K)]
