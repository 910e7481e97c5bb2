"""spectrum: a waveform's summary (dominant frequency, rms) against its healthy period, corrected for temperature.

In the first `learn` of a watch, and for `LEAST` samples at least, a straight line of the summary over the temperature
is learnt, one sample after the other, each counting with four usual residuals at most; and the usual size of the
residuals. From then on all of it stands. The judged value is the residual in sigmas (1.2533 times the mean absolute
residual, as for a normal distribution; wider where the temperature lies outside of what was learnt), or in % of
what the line says. A watch without a temperature sensor learns a level instead of a line; where there is one, a sample
without its reading has no verdict.

`value` of a transition is the deviation, `threshold` its signed limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from alerts.detectors import latch
from alerts.detectors.joined import Groups, Join, Samples
from alerts.detectors.rows import NEVER, Batch, Columns, Patch, Rows, Verdicts
from alerts.parameters import Spectrum
from alerts.rules import Rule
from twin.model import Bools, Floats, Ints

LEAST: Final = 50  # samples of the healthy period, however long it lasts
SETTLED: Final = 20  # samples before a residual is cut
CUT: Final = 4.0  # mean absolute residuals
DEPTH: Final = 64
_LEARNT: Final = ("number", "normal", "warmth", "spread", "common", "residual")


class SpectrumWatches(latch.Latched):
    """All watches of spectrum rules. Learnt, by row: `number` of samples, means `normal` and `warmth`, mean square
    `spread` of the temperature, mean product `common` of both, mean absolute `residual`; `first_at`."""

    def __init__(
        self, rows: Rows, groups: Groups, limits: latch.Limits, profile: Ints, learn: Ints, is_percent: Bools
    ) -> None:  # fmt: skip
        self.join = Join(rows, groups, DEPTH)
        memory: Columns = {name: np.zeros(len(rows)) for name in _LEARNT}
        memory |= {"first_at": np.full(len(rows), NEVER)}
        super().__init__(rows, limits, profile, memory | self.join.columns)
        self.learn = learn
        self.is_percent = is_percent
        self.lasts: Sequence[str] = tuple(latch.STATE)

    @classmethod
    def grouped(cls, rules: Sequence[Rule], rows: Rows, groups: Groups) -> SpectrumWatches:
        limits, place, _ = latch.signed(rules, "spectrum")
        learn, is_percent = np.zeros(len(rules) or 1, np.int64), np.zeros(len(rules) or 1, bool)
        for r, rule in enumerate(rules):
            if isinstance(rule.parameters, Spectrum):
                learn[r], is_percent[r] = rule.parameters.learn, rule.parameters.is_percent
        return cls(rows, groups, limits, place[rows.rule], learn[rows.rule], is_percent[rows.rule])

    def regrouped(self, rows: Rows, origin: Ints, groups: Groups) -> SpectrumWatches:
        return SpectrumWatches(
            rows, groups, self.limits, self.profile[origin], self.learn[origin], self.is_percent[origin]
        )

    def subset(self, rows: Rows, origin: Ints) -> SpectrumWatches:
        return self.regrouped(rows, origin, self.join.groups.take(origin))

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        joined = self.join.observe(batch)
        if joined is None:
            return Verdicts.none(), []
        samples, remembered = joined
        pairs = samples.pairs
        if not len(pairs.row):
            return Verdicts.none(), [remembered]
        x, learnt = self._deviations(samples)
        found = latch.scan(self.limits, self.profile[pairs.row], self.carried(pairs.row), pairs, samples.at, x)
        return found.verdicts, [remembered, Patch(pairs.row, learnt | found.columns)]

    def _deviations(self, samples: Samples) -> tuple[Floats, Columns]:
        """By sample, NaN where there is no verdict; and what the groups have learnt after."""
        pairs = samples.pairs
        s: Columns = {name: self.columns[name][pairs.row] for name in (*_LEARNT, "first_at")}
        has_warmth = np.asarray((self.join.groups.member[pairs.row, 1:] >= 0).any(axis=1))
        value = samples.value[:, 0]
        warmth = samples.value[:, 1] if samples.value.shape[1] > 1 else np.zeros(len(value))
        x = np.full(len(value), np.nan)
        order = np.argsort(-pairs.count, kind="stable")
        active = np.searchsorted(-pairs.count[order], -np.arange(1, int(pairs.count.max()) + 1), "right")
        for k, m in enumerate(active.tolist()):
            group = order[:m]
            place = pairs.head[group] + k
            t = np.where(has_warmth[group], warmth[place], 0.0)
            known = np.isfinite(value[place]) & np.isfinite(t)
            group, place, t = group[known], place[known], t[known]
            s["first_at"][group] = np.where(s["number"][group] == 0, samples.at[place], s["first_at"][group])
            is_learning = (s["number"][group] < LEAST) | (
                samples.at[place] - s["first_at"][group] < self.learn[pairs.row[group]]
            )
            done = ~is_learning
            x[place[done]] = self._deviation(s, pairs.row, group[done], value[place[done]], t[done])
            _learn(s, group[is_learning], value[place[is_learning]], t[is_learning])
        return x, s

    def _deviation(self, s: Columns, row: Ints, group: Ints, value: Floats, t: Floats) -> Floats:
        expected = _line(s, group, t)
        away = t - s["warmth"][group]
        share = 1 / s["number"][group] * (1 + away**2 / np.maximum(s["spread"][group], 1e-12))
        sigma = 1.2533 * s["residual"][group] + 1e-6 * np.abs(s["normal"][group]) + 1e-12
        scaled = (value - expected) / (sigma * np.sqrt(1 + share))
        size = np.where(expected != 0, np.abs(expected), np.nan)
        return np.where(self.is_percent[row[group]], 100 * (value - expected) / size, scaled)

    def apply(self, patches: Sequence[Patch]) -> None:
        super().apply(patches)
        self.join.apply(patches)

    def resting(self) -> Bools:
        return latch.resting(self.columns) & self.join.resting()


def _line(s: Columns, group: Ints, t: Floats) -> Floats:
    slope = np.where(s["spread"][group] > 1e-9, s["common"][group] / np.maximum(s["spread"][group], 1e-9), 0.0)
    return np.asarray(s["normal"][group] + slope * (t - s["warmth"][group]))


def _learn(s: Columns, group: Ints, value: Floats, t: Floats) -> None:
    """One sample of each group: means and products as they stand over all samples so far (Welford)."""
    number = s["number"][group] + 1
    expected = np.where(number == 1, value, _line(s, group, t))
    usual = np.where(number > SETTLED, CUT * s["residual"][group], np.inf)
    residual = np.clip(value - expected, -usual, usual)
    value = np.where(usual > 0, expected + residual, value)
    away, off = t - s["warmth"][group], value - s["normal"][group]
    s["number"][group] = number
    s["warmth"][group] += away / number
    s["normal"][group] += off / number
    shrink = (number - 1) / number
    s["spread"][group] = shrink * (s["spread"][group] + away**2 / number)
    s["common"][group] = shrink * (s["common"][group] + away * off / number)
    late = np.maximum(number - 3, 1)  # three points lie on any line
    s["residual"][group] += np.where(number > 3, (np.abs(residual) - s["residual"][group]) / late, 0)
