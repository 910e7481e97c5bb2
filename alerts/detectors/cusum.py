"""cusum: a slow drift of the mean, too small to see in any one reading: a leak that grows, a tilt, a fouled probe.

Readings are averaged over blocks of event time (`every`, a day unless said otherwise, so that the day's own curve does
not matter). Each block's mean is standardised by the sensor's own learnt mean and spread, z, and summed up on both
sides (Page 1954, doi 10.1093/biomet/41.1-2.100; in tabular form Montgomery, Introduction to Statistical Quality
Control, 9.1):

    S+ = max(0, S+ + z - slack)        S- = max(0, S- - z - slack)

`levels` are the decision values, in sigmas. With slack 0.5 a level of 5 gives one false alert in about 930 independent
blocks on one side, 465 on two (Montgomery, table 9.3). A block is judged at the first reading after it; one with less
than half as many readings as usual is left out, and so is the first.

Mean and spread are learnt from `warm_up` blocks before any is judged, then slowly on (`MEMORY` blocks), but only while
both sums stay below half of the lowest level. z counts with 8 at most, the sums with the highest level: so an alert
clears soon after the mean is back. The block at which the sum falls below the lowest level resets both to 0. After
`accept` blocks in a row in which it did not, their mean is the new normal. 0.25 kB of state a watch.

`value` of a transition is the block's mean, `threshold` where the learnt mean plus slack lies, `since` the end of the
last block at which the sum was 0: where the drift is likely to have begun. `note`: 1 upwards, 2 downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from alerts.detectors import blocks, latch
from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts
from alerts.parameters import Drifting
from alerts.rules import Rule
from twin.model import DAY, Bools, Floats, Ints

MEMORY: Final = 60
MOST: Final = 8.0  # sigmas that one block counts with at most
SIGMA: Final = 1.2533  # times the mean deviation, of a normal distribution
FINEST: Final = 1e-3  # of the mean: no spread is finer


@dataclass(frozen=True, slots=True)
class Settings:
    """By profile: `every`, `shift` (µs), `slack`, `warm_up`, `accept`, the `mildest` and the `worst` level, and whether
    each side is looked at."""

    every: Ints
    shift: Ints
    slack: Floats
    warm_up: Ints
    accept: Ints
    mildest: Floats
    worst: Floats
    side: Ints


class CusumWatches(latch.Latched):
    """All watches of cusum rules. State beside that of a block and of a latch: the learnt `mean` and `spread` (mean
    deviation) of `learnt` blocks; the sums `up`, `down`, and the end of the last block at which each was 0; `out`, the
    blocks since the lowest level was reached, and `lately`, their mean."""

    def __init__(self, rows: Rows, limits: latch.Limits, settings: Settings, profile: Ints) -> None:
        n = len(rows)
        memory: Columns = {name: np.zeros(n) for name in ("mean", "spread", "up", "down", "lately")}
        memory |= {name: np.zeros(n, np.int64) for name in ("learnt", "out")}
        memory |= {name: np.full(n, NEVER) for name in ("up_since", "down_since")}
        super().__init__(rows, limits, profile, blocks.at_rest(n) | memory)
        self.settings = settings

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> CusumWatches:
        limits, place, mine = latch.signed(rules, "cusum")
        found = [rule.parameters for rule in mine if isinstance(rule.parameters, Drifting)]
        sides = {"above": 1, "below": -1, "either": 0}
        settings = Settings(
            np.array([p.every for p in found] or [DAY], np.int64),
            np.array([p.utc_offset for p in found] or [0], np.int64),
            np.array([p.slack for p in found] or [0.5]),
            np.array([p.warm_up for p in found] or [1], np.int64),
            np.array([p.accept for p in found] or [1], np.int64),
            np.array([float(np.nanmin(rule.levels)) for rule in mine] or [1.0]),
            np.array([float(np.nanmax(rule.levels)) for rule in mine] or [1.0]),
            np.array([sides[rule.side] for rule in mine] or [0], np.int64),
        )
        return cls(rows, limits, settings, place[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> CusumWatches:
        return CusumWatches(rows, self.limits, self.settings, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.watched(self.rows, batch)
        if pairs is None:
            return Verdicts.none(), []
        at = batch.at.take(pairs.reading)
        p = self.profile[pairs.row][pairs.group]
        block = (at + self.settings.shift[p]) // self.settings.every[p]
        carry = {name: self.columns[name].take(pairs.row) for name in ("block", "total", "count", "least")}
        closed = blocks.close(carry, pairs, block, batch.value.take(pairs.reading))
        memory = Patch(pairs.row, closed.columns)
        if not len(closed):
            return Verdicts.none(), [memory]
        verdicts, patch = self._judge(pairs, closed, at)
        return verdicts, [memory, patch]

    def _judge(self, pairs: Pairs, closed: blocks.Closed, at: Ints) -> tuple[Verdicts, Patch]:
        """What the blocks closed come to."""
        groups, head, count = np.unique(closed.group, return_index=True, return_counts=True)
        row = pairs.row[groups]
        place = np.repeat(np.arange(len(groups)), count)
        profile = self.profile[row]
        p = profile[place]
        mean = closed.total / closed.count
        end = (closed.block + 1) * self.settings.every[p] - self.settings.shift[p]
        names = ("mean", "spread", "up", "down", "lately", "learnt", "out", "up_since", "down_since", "usual")
        s = {name: self.columns[name][row] for name in names}
        told: Columns = {name: np.full(len(mean), np.nan) for name in ("drift", "edge")}
        told["since"] = np.zeros(len(mean), np.int64)
        for which in blocks.rounds(place):
            part = {name: column[place[which]] for name, column in s.items()}
            drift, edge, since = self._step(part, mean[which], closed.count[which], end[which], p[which])
            told["drift"][which], told["edge"][which], told["since"][which] = drift, edge, since
            for name, column in part.items():
                s[name][place[which]] = column
        few = Pairs(row, head, count, place, closed.pair)
        found = latch.scan(self.limits, profile, self.carried(row), few, end, told["drift"], shown=mean)
        verdicts, where = found.verdicts, found.where
        if len(verdicts):
            begun = (verdicts.after > verdicts.before) & (told["since"][where] != NEVER)
            verdicts = replace(
                verdicts,
                at=at[closed.pair[where]],
                threshold=told["edge"][where],
                since=np.where(begun, told["since"][where], verdicts.since),
                note=np.where(verdicts.threshold > 0, 1, 2).astype(np.int8),
            )
        return verdicts, Patch(row, s | found.columns)

    def _step(self, s: Columns, x: Floats, count: Ints, end: Ints, p: Ints) -> tuple[Floats, Floats, Ints]:
        """One block of each row: the signed sum that is judged (NaN: none), the edge of what counts as no drift, and
        since when the sum grows. `s` is changed in place."""
        settings = self.settings
        is_full = blocks.is_full(s["usual"], count)
        s["usual"] = np.maximum(count, blocks.FADE * s["usual"])
        learnt, mean = s["learnt"], s["mean"]
        sigma = SIGMA * s["spread"] + FINEST * np.abs(mean) + 1e-9
        judged = is_full & (learnt >= settings.warm_up[p])
        z = np.clip((x - mean) / sigma, -MOST, MOST)
        mildest, worst = settings.mildest[p], settings.worst[p]
        sums = {}
        for name, sign in (("up", 1), ("down", -1)):
            looked_at = judged & (settings.side[p] != -sign)
            grown = np.clip(s[name] + sign * z - settings.slack[p], 0, worst)
            sums[name] = np.where(looked_at, grown, s[name])
            since = np.where((s[name] == 0) & (sums[name] > 0), end - settings.every[p], s[f"{name}_since"])
            s[f"{name}_since"] = np.where(sums[name] > 0, since, NEVER)
        most = np.maximum(sums["up"], sums["down"])
        is_out = judged & (most >= mildest)
        lately = s["lately"] + (x - s["lately"]) / (s["out"] + 1.0)
        s["lately"] = np.where(is_out, lately, s["lately"])
        falls = judged & ~is_out & (s["out"] > 0)
        s["out"] = np.where(judged, np.where(is_out, s["out"] + 1, 0), s["out"])
        is_up = sums["up"] >= sums["down"]
        edge = mean + np.where(is_up, 1, -1) * settings.slack[p] * sigma
        since = np.where(is_up, s["up_since"], s["down_since"])

        # Learning: the deviation from a mean of n - 1 blocks is wider than that from the true one.
        learns = is_full & (~judged | (most < mildest / 2))
        number = np.minimum(learnt + learns, np.maximum(MEMORY, settings.warm_up[p]))
        away = x - mean
        away = np.where(judged, np.clip(away, -4 * sigma, 4 * sigma), away)
        share = 1 / np.maximum(number, 1)
        deviation = np.abs(away) * np.sqrt(np.maximum(number - 1, 0) / np.maximum(number, 1))
        s["spread"] = np.where(
            learns & (number > 1), s["spread"] + (deviation - s["spread"]) / np.maximum(number - 1, 1), s["spread"]
        )
        s["mean"] = np.where(learns, mean + away * share, mean)
        s["learnt"] = number

        accepted = s["out"] > settings.accept[p]
        s["mean"] = np.where(accepted, s["lately"], s["mean"])
        ends = falls | accepted
        for name in ("up", "down"):
            s[name] = np.where(ends, 0.0, sums[name])
            s[f"{name}_since"] = np.where(ends, NEVER, s[f"{name}_since"])
        s["out"] = np.where(ends, 0, s["out"])
        s["lately"] = np.where(ends, 0.0, s["lately"])
        drift = np.where(is_up, sums["up"], -sums["down"])
        return np.where(judged, np.where(ends, 0.0, drift), np.nan), edge, since

    def resting(self) -> Bools:
        return np.asarray(self.columns["block"] == NEVER)
