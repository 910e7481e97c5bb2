"""rate: the change of the value over a window of event time, against limits.

The change at a reading is its value less that of the oldest reading of the sensor at most `window` earlier. So that
memory is bounded whatever the sampling, each watch keeps only the first reading of each of the last 17 buckets of a
grid `window / 16` wide, and the last reading. With at most one reading a bucket the reference is exact; with more it
is at most `window / 16` younger than exact. The grid is fixed in event time, so batching changes nothing. A reading
with no other in its window has no verdict: it neither extends nor breaks a run.

`value` of a transition is the change, `threshold` the signed limit of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from alerts.detectors import latch
from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts
from alerts.rules import Rule
from twin.model import Bools, Floats, Ints

BUCKETS: Final = 17  # a window of 16 buckets touches at most 17


class RateWatches(latch.Latched):
    """All watches of rate rules. `ring_at`, `ring_value` [rows, 17]: bucket b's first reading is in slot b % 17."""

    def __init__(self, rows: Rows, limits: latch.Limits, window: Ints, profile: Ints) -> None:
        memory: Columns = {
            "ring_at": np.full((len(rows), BUCKETS), NEVER),
            "ring_value": np.full((len(rows), BUCKETS), np.nan),
            "newest_at": np.full(len(rows), NEVER),
            "newest_value": np.full(len(rows), np.nan),
        }
        super().__init__(rows, limits, profile, memory)
        self.window = window
        self.bucket = -(-window // (BUCKETS - 1))

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> RateWatches:
        limits, place, mine = latch.signed(rules, "rate")
        window = np.array([rule.window for rule in mine] or [1], np.int64)
        return cls(rows, limits, window, place[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> RateWatches:
        return RateWatches(rows, self.limits, self.window, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.watched(self.rows, batch)
        if pairs is None:
            return Verdicts.none(), []
        at, value = batch.at.take(pairs.reading), batch.value.take(pairs.reading)
        profile = self.profile.take(pairs.row)
        p = profile.take(pairs.group)
        change, memory = self._change(pairs, at, value, p)

        # Only watches that are not at rest, or whose limits were reached, need the latch.
        loud = self.loud(pairs, self.limits.reached(change, p))
        if not loud.any():
            return Verdicts.none(), [memory]
        kept, few = loud[pairs.group], pairs.only(loud)
        found = latch.scan(self.limits, profile[loud], self.carried(few.row), few, at[kept], change[kept])
        return found.verdicts, [memory, Patch(few.row, found.columns)]

    def _change(self, pairs: Pairs, at: Ints, value: Floats, p: Ints) -> tuple[Floats, Patch]:
        """Each pair's change (NaN: none known) and what the watches now remember. `p`: its profile."""
        n, head, group, row = len(at), pairs.head, pairs.group, pairs.row
        is_several = n > len(row)
        window, bucket = self.window.take(p), self.bucket.take(p)
        if n * (int(self.window.max()) + 1) > 1 << 62:
            raise ValueError(f"{n} readings at once are too many for a window this long")
        oldest = at - window
        number = at // bucket
        slot = number % BUCKETS
        ring_at, ring_value = self.columns["ring_at"], self.columns["ring_value"]
        newest_at, newest_value = self.columns["newest_at"].take(row), self.columns["newest_value"].take(row)
        previous_at, previous_value = newest_at, newest_value
        if is_several:
            previous_at, previous_value = np.empty(n, np.int64), np.empty(n)
            previous_at[1:], previous_value[1:] = at[:-1], value[:-1]
            previous_at[head], previous_value[head] = newest_at, newest_value

        # First of its bucket: so says the reading before, which for the first pair is the newest remembered one.
        first = np.where(previous_at == NEVER, True, previous_at // bucket != number)

        # Reference, from the last choice to the best: the reading just before (there may be no other kept in the
        # window, when all of them share its first bucket), the oldest kept one of this batch, the oldest in the ring.
        reference = np.where(previous_at >= oldest, previous_value, np.nan)
        kept = np.flatnonzero(first)
        if is_several:
            gap = np.minimum(at - previous_at, window + 1)  # differences up to the window are all that matters
            gap[head] = window[head] + 1  # keeps the rows apart
            key = np.cumsum(gap)
            found = np.searchsorted(key[kept], key - window)
            candidate = kept[np.minimum(found, len(kept) - 1)] if len(kept) else np.zeros(n, np.int64)
            inside = (found < len(kept)) & (candidate < np.arange(n))
            reference[inside] = value[candidate[inside]]
        old = np.flatnonzero(newest_at.take(group) >= oldest)
        if len(old):
            old_row = row.take(group.take(old))
            times = ring_at.take(old_row, axis=0)
            times = np.where(times >= oldest[old, None], times, np.iinfo(np.int64).max)
            which = np.argmin(times, axis=1)
            there = times[np.arange(len(old)), which] != np.iinfo(np.int64).max
            reference[old[there]] = ring_value[old_row, which][there]

        tail = pairs.tail
        new_at, new_value = ring_at.take(row, axis=0), ring_value.take(row, axis=0)
        keep = kept[number[kept] > number[tail][group[kept]] - BUCKETS]  # so no slot is written twice
        new_at[group[keep], slot[keep]] = at[keep]
        new_value[group[keep], slot[keep]] = value[keep]
        # A slot whose reading no window can reach again is emptied: the same history gives the same state.
        stale = new_at < ((number[tail] - BUCKETS + 1) * bucket[tail])[:, None]
        new_at[stale] = NEVER
        new_value[stale] = np.nan
        memory: Columns = {
            "ring_at": new_at,
            "ring_value": new_value,
            "newest_at": at[tail],
            "newest_value": value[tail],
        }
        return value - reference, Patch(row, memory)

    def resting(self) -> Bools:
        return np.asarray(self.columns["newest_at"] == NEVER)
