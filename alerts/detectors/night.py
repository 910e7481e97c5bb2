"""night: the lowest (or mean) flow of the small hours against that of the last nights; a leak runs at night too.

Of each night's readings within the window the least (`of = "min"`) or the mean is taken, and compared with the median
of the last 14 nights learnt, in per cent of it. It is judged at the sensor's first reading after the window. `hold`
counts from night to night: "2d" is three nights in a row. A night with less than half as many readings as usual says
nothing, and so does the first one. A night that is away from the median by the lowest limit or more, on either side, is
not learnt from, until `accept` nights in a row were. 0.3 kB of state a watch.

`value` of a transition is the night's flow, `threshold` the flow at which its level begins. `note`: 1 above, 2 below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from alerts.detectors import blocks, latch
from alerts.detectors.rows import FOREVER, NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts
from alerts.parameters import Nightly
from alerts.rules import Rule
from twin.model import DAY, Bools, Floats, Ints

NIGHTS: Final = 14


@dataclass(frozen=True, slots=True)
class Settings:
    """By profile: `begin` of the window after UTC midnight, its `length` (µs), `is_mean`, `warm_up`, `accept`, and the
    lowest limit, `mildest` (%)."""

    begin: Ints
    length: Ints
    is_mean: Bools
    warm_up: Ints
    accept: Ints
    mildest: Floats


class NightWatches(latch.Latched):
    """All watches of night rules. State beside that of a block and of a latch: `nights` [rows, 14] (NaN: none yet),
    `learnt`, how many nights were, `away`, how many in a row were not."""

    def __init__(self, rows: Rows, limits: latch.Limits, settings: Settings, profile: Ints) -> None:
        n = len(rows)
        memory: Columns = {
            "nights": np.full((n, NIGHTS), np.nan),
            "learnt": np.zeros(n, np.int64),
            "away": np.zeros(n, np.int64),
        }
        super().__init__(rows, limits, profile, blocks.at_rest(n) | memory)
        self.settings = settings
        # By sensor, from when on a reading matters to any of its watches: not on the day after a night that is known.
        self._wakes_at = np.full(len(rows.number), FOREVER)
        self._wakes_at[rows.sensor] = NEVER

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> NightWatches:
        limits, place, mine = latch.signed(rules, "night")
        found = [rule.parameters for rule in mine if isinstance(rule.parameters, Nightly)]
        settings = Settings(
            np.array([p.begin - p.utc_offset for p in found] or [0], np.int64),
            np.array([p.length for p in found] or [DAY], np.int64),
            np.array([p.of == "mean" for p in found] or [False]),
            np.array([p.warm_up for p in found] or [1], np.int64),
            np.array([p.accept for p in found] or [1], np.int64),
            np.array([float(np.nanmin(rule.levels)) for rule in mine] or [1.0]),
        )
        return cls(rows, limits, settings, place[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> NightWatches:
        return NightWatches(rows, self.limits, self.settings, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        if not len(self.rows):
            return Verdicts.none(), []
        is_awake = batch.at >= self._wakes_at.take(batch.sensor)
        if not is_awake.any():  # most of the day
            return Verdicts.none(), []
        pairs = Pairs.of(self.rows, batch, np.flatnonzero(np.logical_or.reduceat(is_awake, batch.start)))
        at = batch.at.take(pairs.reading)
        p = self.profile[pairs.row][pairs.group]
        since = at - self.settings.begin[p]
        day = since // DAY
        inside = since - day * DAY < self.settings.length[p]
        block = 2 * day + ~inside  # a night's own block, and the day after it
        matters = inside | (block != self.columns["block"].take(pairs.row)[pairs.group])
        if not matters.any():
            return Verdicts.none(), []
        if not matters.all():
            which = pairs.any(matters)
            kept = which[pairs.group]
            pairs, at, inside, block = pairs.only(which), at[kept], inside[kept], block[kept]
        carry = {name: self.columns[name].take(pairs.row) for name in ("block", "total", "count", "least")}
        closed = blocks.close(carry, pairs, block, batch.value.take(pairs.reading), inside)
        memory = Patch(pairs.row, closed.columns)
        if not len(closed):
            return Verdicts.none(), [memory]
        verdicts, patch = self._judge(pairs, closed, at)
        return verdicts, [memory, patch]

    def _judge(self, pairs: Pairs, closed: blocks.Closed, at: Ints) -> tuple[Verdicts, Patch]:
        """What the nights closed come to."""
        groups, head, count = np.unique(closed.group, return_index=True, return_counts=True)
        row = pairs.row[groups]
        place = np.repeat(np.arange(len(groups)), count)
        profile = self.profile[row]
        p = profile[place]
        settings = self.settings
        flow = np.where(settings.is_mean[p], closed.total / closed.count, closed.least)
        names = ("nights", "learnt", "away", "usual")
        s = {name: self.columns[name][row] for name in names}
        change, median = np.full(len(flow), np.nan), np.full(len(flow), np.nan)
        for which in blocks.rounds(place):
            r, q = place[which], p[which]
            known = s["learnt"][r]
            is_full = blocks.is_full(s["usual"][r], closed.count[which])
            s["usual"][r] = np.maximum(closed.count[which], blocks.FADE * s["usual"][r])
            middle = _median(s["nights"][r], np.minimum(known, NIGHTS))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                found = 100 * (flow[which] - middle) / middle
            found[~(is_full & (known >= settings.warm_up[q]) & (middle > 0))] = np.nan
            is_away = np.abs(found) >= settings.mildest[q]
            s["away"][r] = np.where(is_full, np.where(is_away, s["away"][r] + 1, 0), s["away"][r])
            learns = is_full & (~is_away | (s["away"][r] > settings.accept[q]))
            s["nights"][r[learns], known[learns] % NIGHTS] = flow[which][learns]
            s["learnt"][r] += learns
            change[which], median[which] = found, middle
        end = (closed.block // 2) * DAY + settings.begin[p] + settings.length[p]
        few = Pairs(row, head, count, place, closed.pair)
        found_ = latch.scan(self.limits, profile, self.carried(row), few, end, change, shown=flow)
        told, where = found_.verdicts, found_.where
        if len(told):
            told = replace(
                told,
                at=at[closed.pair[where]],
                threshold=median[where] * (1 + told.threshold / 100),
                note=np.where(told.threshold > 0, 1, 2).astype(np.int8),
            )
        return told, Patch(row, s | found_.columns)

    def apply(self, patches: Sequence[Patch]) -> None:
        super().apply(patches)
        for patch in patches:
            if "block" not in patch.columns:
                continue
            sensor = np.unique(self.rows.sensor[patch.rows])
            row = self.rows.of_sensors(sensor)
            block = self.columns["block"][row]
            night = (block // 2 + 1) * DAY + self.settings.begin[self.profile[row]]
            wakes_at = np.where((block == NEVER) | (block % 2 == 0), NEVER, night)
            number = self.rows.number[sensor]
            self._wakes_at[sensor] = np.minimum.reduceat(wakes_at, np.cumsum(number) - number)

    def resting(self) -> Bools:
        return np.asarray(self.columns["block"] == NEVER)


def _median(nights: Floats, known: Ints) -> Floats:
    """The median of the first `known` columns of each row; the others are NaN, which sorts last."""
    ordered = np.sort(nights, axis=1)
    rows = np.arange(len(nights))
    low, high = np.maximum(known - 1, 0) // 2, known // 2
    return np.asarray((ordered[rows, low] + ordered[rows, np.minimum(high, NIGHTS - 1)]) / 2)
