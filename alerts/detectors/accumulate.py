"""accumulate: the sum of what a sensor reported over the last minutes or hours, against limits (rain in 3, 6, 12 h).

Each reading is an amount (mm since the reading before); with `counter` it is a total that only grows, and the amount is
what it grew by: a smaller total means that the counter began anew at 0, and the first one of all adds nothing. Missing
and bad readings add nothing, nor do amounts below 0. The sum at a reading is of the readings in (t - window, t].

So that memory is bounded whatever the sampling, sums are kept at the edges of buckets of event time, 144 to the rule's
longest window: readings that share the window's oldest bucket with its edge may be left out, so a sum is never too
large, and at most one bucket (5 min of 12 h) too short. It is exact where readings are a bucket or more apart on a
regular grid. Amounts are whole millionths of the unit, so sums do not depend on how readings were batched, and 500
times 0.1 is 50. 1.3 kB of state a watch.

Time passes by readings only: without any, no sum falls and no alert clears; silence is what `offline` tells. `value` of
a transition is the sum over its level's window, the peak that over the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from alerts.detectors import latch
from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts, spans
from alerts.parameters import Accumulating
from alerts.rules import Rule
from twin.model import Bools, Floats, Ints

BUCKETS: Final = 144
RING: Final = BUCKETS + 1
FINEST: Final = 1_000_000  # parts of a unit
LARGEST: Final = 1e8  # of a reading; beyond it an amount counts as this much, so that a day of them stays in an int64
_TOTALS: Final = 1e12  # of a counter: what float64 tells apart to a millionth, and no more


class AccumulateWatches(latch.Latched):
    """All watches of accumulate rules. State: `ring` [rows, 145], the running sum at the end of bucket b in slot
    b % 145; `total`, the running sum; `bucket`, that of the newest reading; `last`, its value where that is a total."""

    def __init__(
        self, rows: Rows, limits: latch.Limits, buckets: Ints, width: Ints, counts: Bools, profile: Ints
    ) -> None:
        memory: Columns = {
            "ring": np.zeros((len(rows), RING), np.int64),
            "total": np.zeros(len(rows), np.int64),
            "bucket": np.full(len(rows), NEVER),
            "last": np.full(len(rows), np.nan),
        }
        super().__init__(rows, limits, profile, memory)
        self.buckets = buckets  # [P, 4] of each level's window, 0: no such level
        self.width = width  # [P] µs
        self.counts = counts  # [P]
        self._cells: Columns = {"ring": self.columns["ring"].reshape(-1)}  # the same memory, by row * RING + slot
        self._has_counters = bool(counts.any())

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> AccumulateWatches:
        limits, place, mine = latch.signed(rules, "accumulate")
        found = [rule.parameters for rule in mine if isinstance(rule.parameters, Accumulating)]
        window = np.array([p.windows for p in found] or [(1, 0, 0, 0)], np.int64)
        counts = np.array([p.is_counter for p in found] or [False])
        width = -(-window.max(axis=1) // BUCKETS)
        buckets = np.where(window > 0, np.maximum(window // width[:, None], 1), 0)
        return cls(rows, limits, buckets, width, counts, place[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> AccumulateWatches:
        return AccumulateWatches(rows, self.limits, self.buckets, self.width, self.counts, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.watched(self.rows, batch)
        if pairs is None:
            return Verdicts.none(), []
        at, value = batch.at.take(pairs.reading), batch.value.take(pairs.reading)
        sums, memory = self._sums(pairs, at, value)

        # Only watches that are not at rest, or whose limits were reached, need the latch.
        p = self.profile.take(pairs.row).take(pairs.group)
        reached: Bools = np.any(sums >= self.limits.hi_raise.take(p, axis=0), axis=1)
        loud = self.loud(pairs, reached)
        if not loud.any():
            return Verdicts.none(), memory
        kept = loud[pairs.group]
        sums, few = sums[kept], pairs.only(loud)
        profile = self.profile[few.row]
        longest = np.argmax(self.buckets[profile], axis=1)[few.group]
        over_longest = sums[np.arange(len(sums)), longest]
        found = latch.scan(self.limits, profile, self.carried(few.row), few, at[kept], over_longest, by_level=sums)
        told = found.verdicts
        level = np.maximum(told.before, told.after).astype(np.int64) - 1
        told = replace(told, value=sums[found.where, level]) if len(told) else told
        return told, [*memory, Patch(few.row, found.columns)]

    def _sums(self, pairs: Pairs, at: Ints, value: Floats) -> tuple[Floats, list[Patch]]:
        """Each pair's sum by level [pairs, 4] (0 where there is no such level) and what the watches now remember."""
        row, head, tail, group = pairs.row, pairs.head, pairs.tail, pairs.group
        profile = self.profile.take(row)
        n, is_several = len(at), len(at) > len(row)
        p, by_pair = (profile[group], group) if is_several else (profile, slice(None))
        amount = self._amounts(pairs, value, profile)
        before, newest = self.columns["total"].take(row), self.columns["bucket"].take(row)
        if is_several:
            total = np.cumsum(amount)
            total += (before - total[head] + amount[head])[group]
        else:
            total = before + amount
        bucket = -(-at // self.width.take(p))  # (b - 1) * width < t <= b * width

        # The running sum at the end of the bucket that each level's window leaves out: in this batch, or before it.
        steps = self.buckets.take(p, axis=0)
        edge = bucket[:, None] - steps
        base = self._cells["ring"].take((row * RING)[by_pair, None] + edge % RING)
        base = np.where(edge >= newest[by_pair, None], before[by_pair, None], base)
        if is_several:
            gap = np.empty(n, np.int64)
            gap[1:] = np.minimum(bucket[1:] - bucket[:-1], BUCKETS + 1)
            gap[head] = BUCKETS + 1  # keeps the rows apart
            key = np.cumsum(gap)
            place = np.searchsorted(key, key[:, None] - steps, "right") - 1
            base = np.where(place >= head[group, None], total[place], base)
        sums = np.where(steps > 0, total[:, None] - base, 0) / FINEST

        # The slots from the newest bucket known to the newest now; one without a reading has the sum of the one before.
        end = bucket[tail]
        first = np.maximum(np.where(newest == NEVER, bucket[head], newest), end - BUCKETS)
        number = end - first + 1
        begin = np.cumsum(number) - number
        filled = np.repeat(before, number)
        if is_several:
            source = np.full(len(filled), -1)
            source[begin[group] + np.maximum(bucket - first[group], 0)] = np.arange(n)  # of equal ones the last stays
            source = np.maximum.accumulate(source)
            known = source >= np.repeat(head, number)
            filled[known] = total[source[known]]
        else:
            filled[begin + number - 1] = total
        cell = np.repeat(row * RING, number) + spans(first, number) % RING
        scalars: Columns = {"total": total[tail], "bucket": end}
        if self._has_counters:
            scalars["last"] = np.where(self.counts[profile], value[tail], np.nan)
        return sums, [Patch(row, scalars), Patch(cell, {"#ring": filled})]

    def _amounts(self, pairs: Pairs, value: Floats, profile: Ints) -> Ints:
        """What each pair adds, in millionths."""
        if not self._has_counters:
            return np.asarray(np.rint(np.minimum(np.maximum(value, 0), LARGEST) * FINEST), np.int64)
        previous = np.empty(len(value))
        previous[1:] = value[:-1]
        previous[pairs.head] = self.columns["last"].take(pairs.row)
        known, now = (np.clip(total, 0, _TOTALS) for total in (previous, value))
        grown = np.where(np.isnan(known), 0.0, np.where(now < known, now, now - known))
        amount = np.where(self.counts[profile][pairs.group], grown, value)
        return np.asarray(np.rint(np.clip(amount, 0, LARGEST) * FINEST), np.int64)

    def _put(self, patch: Patch) -> None:
        if "#ring" in patch.columns:
            self._cells["ring"][patch.rows] = patch.columns["#ring"]
        else:
            super()._put(patch)

    def resting(self) -> Bools:
        return np.asarray(self.columns["bucket"] == NEVER)
