"""residual and neighbours: a reading against what other sensors show at its time.

residual: the pivot less its model's series, whoever supplies it. neighbours: the pivot less the median of the other
members, where at least `count` of them show something. Either in the kind's unit, or in % of what it is held against
(none where that is 0). A sample without a verdict neither extends nor breaks a run.

`value` of a transition is the deviation, `threshold` its signed limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np

from alerts.detectors import latch
from alerts.detectors.joined import Groups, Join, Samples
from alerts.detectors.rows import Batch, Patch, Rows, Verdicts
from alerts.parameters import Neighbours, Residual
from alerts.rules import Rule
from twin.model import Bools, Floats, Ints

DEPTH: Final = 64  # readings that a model's series may be ahead


class DeviationWatches(latch.Latched):
    """All watches of one of the two kinds. `least`: by row, how many others must show something."""

    detector = "residual"
    depth = DEPTH

    def __init__(
        self, rows: Rows, groups: Groups, limits: latch.Limits, profile: Ints, least: Ints, is_percent: Bools
    ) -> None:  # fmt: skip
        self.join = Join(rows, groups, self.depth)
        super().__init__(rows, limits, profile, self.join.columns)
        self.least = least
        self.is_percent = is_percent
        self.lasts: Sequence[str] = tuple(latch.STATE)

    @classmethod
    def grouped(cls, rules: Sequence[Rule], rows: Rows, groups: Groups) -> Self:
        limits, place, _ = latch.signed(rules, cls.detector)
        least, is_percent = np.ones(len(rules) or 1, np.int64), np.zeros(len(rules) or 1, bool)
        for r, rule in enumerate(rules):
            if isinstance(rule.parameters, Residual | Neighbours):
                is_percent[r] = rule.parameters.is_percent
                least[r] = rule.parameters.count if isinstance(rule.parameters, Neighbours) else 1
        return cls(rows, groups, limits, place[rows.rule], least[rows.rule], is_percent[rows.rule])

    def regrouped(self, rows: Rows, origin: Ints, groups: Groups) -> Self:
        return type(self)(rows, groups, self.limits, self.profile[origin], self.least[origin], self.is_percent[origin])

    def subset(self, rows: Rows, origin: Ints) -> Self:
        return self.regrouped(rows, origin, self.join.groups.take(origin))

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        joined = self.join.observe(batch)
        if joined is None:
            return Verdicts.none(), []
        samples, remembered = joined
        pairs = samples.pairs
        if not len(pairs.row):
            return Verdicts.none(), [remembered]
        x = self._deviations(samples)
        # Only watches that are not at rest, or whose limits were reached, need the latch.
        p = self.profile[pairs.row][pairs.group]
        loud = self.loud(pairs, self.limits.reached(x, p))
        if not loud.any():
            return Verdicts.none(), [remembered]
        kept, few = loud[pairs.group], pairs.only(loud)
        carry = self.carried(few.row)
        found = latch.scan(self.limits, self.profile[few.row], carry, few, samples.at[kept], x[kept])
        return found.verdicts, [remembered, Patch(few.row, found.columns)]

    def _deviations(self, samples: Samples) -> Floats:
        """By sample; NaN where there is no verdict."""
        row = samples.pairs.row[samples.pairs.group]
        others = samples.value[:, 1:]
        shown = (~np.isnan(others)).sum(axis=1)
        expected = np.full(len(others), np.nan)
        enough = np.flatnonzero(shown >= self.least[row])
        ordered, number = np.sort(others[enough], axis=1), shown[enough]  # NaN come last
        place = np.arange(len(enough))
        expected[enough] = (ordered[place, (number - 1) // 2] + ordered[place, number // 2]) / 2
        x = samples.value[:, 0] - expected
        relative = self.is_percent[row]
        if relative.any():
            size = np.abs(expected)
            x = np.where(relative, 100 * x / np.where(size > 0, size, np.nan), x)
        return np.asarray(np.where(np.isfinite(x), x, np.nan))

    def apply(self, patches: Sequence[Patch]) -> None:
        super().apply(patches)
        self.join.apply(patches)

    def resting(self) -> Bools:
        return latch.resting(self.columns) & self.join.resting()


class NeighbourWatches(DeviationWatches):
    """All watches of neighbours rules."""

    detector = "neighbours"
    depth = 16
