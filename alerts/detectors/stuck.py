"""stuck: a value that does not move.

The first reading of a run is its anchor; a reading further than `tolerance` from it starts a new run with itself as
anchor. A run of at least three readings that spans at least `for` of event time is stuck, unless its anchor is one of
the `except` values (a dry road reads 0 for weeks). The reading that starts a new run clears at once. A gap longer than
`max_gap` restarts the counting of time and readings, with the same anchor; an open alert stays.

`value` of a transition is the reading's, `threshold` the rule's `for` in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alerts.detectors.rows import FOREVER, NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts, spans, write
from alerts.rules import Rule
from twin.model import SECOND, Bools, Floats, Ints

READINGS: Final = 3  # two equal readings prove nothing
_RECORD: Final = np.dtype(
    [("anchor", "f8"), ("since", "i8"), ("last_at", "i8"), ("profile", "i4"), ("count", "i1"), ("level", "i1")],
    align=True,
)
_FEW: Final = 16  # groups left for which a plain loop is quicker than one numpy round a reading


@dataclass(frozen=True, slots=True)
class Parameters:
    """By profile (one a rule): `span`, `max_gap` (µs), `tolerance`, `level`, `excepted` [P, E] padded with NaN."""

    span: Ints
    max_gap: Ints
    tolerance: Floats
    level: NDArray[np.int8]
    excepted: Floats


class StuckWatches:
    """All watches of stuck rules. State: `anchor`, `since` and `count` (up to 3) of the run, `level` of the open alert,
    `last_at` (only kept where some rule has a `max_gap`)."""

    def __init__(self, rows: Rows, parameters: Parameters, profile: Ints) -> None:
        self.rows = rows
        self.parameters = parameters
        self.profile = profile
        # The columns of one array of records: of a large city each batch looks at rows far from each other, and a
        # record is one line of the cache where five columns are five.
        self._records = np.zeros(len(rows), _RECORD)
        self._records["profile"] = profile
        state = ("anchor", "since", "count", "level", "last_at")
        self.columns: Columns = {name: self._records[name] for name in state}
        for name, rest in (("anchor", np.nan), ("since", NEVER), ("last_at", NEVER)):
            self.columns[name][:] = rest
        self._has_gaps = bool((parameters.max_gap < FOREVER).any())

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> StuckWatches:
        mine = [rule for rule in rules if rule.detector == "stuck"]
        numbers = np.zeros(len(rules), np.int64)
        numbers[[r for r, rule in enumerate(rules) if rule.detector == "stuck"]] = np.arange(len(mine))
        size = max(len(mine), 1)
        excepted = np.full((size, max([1, *(len(rule.excepted) for rule in mine)])), np.nan)
        for i, rule in enumerate(mine):
            excepted[i, : len(rule.excepted)] = rule.excepted
        parameters = Parameters(
            np.array([rule.stuck_for for rule in mine] or [0], np.int64),
            np.array([FOREVER if rule.max_gap is None else rule.max_gap for rule in mine] or [FOREVER], np.int64),
            np.array([rule.tolerance for rule in mine] or [0.0]),
            np.array([int(rule.level) for rule in mine] or [1], np.int8),
            excepted,
        )
        return cls(rows, parameters, numbers[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> StuckWatches:
        return StuckWatches(rows, self.parameters, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        if not len(self.rows):
            return Verdicts.none(), []
        segments = np.flatnonzero(self.rows.is_watched.take(batch.owner))
        if not len(segments):
            return Verdicts.none(), []
        is_alone = batch.count[segments] == 1
        alone, others = segments[is_alone], segments[~is_alone]
        if not len(others):
            return self._observe_alone(batch, alone)
        if not len(alone):
            return self._observe_several(batch, others)
        first, patches = self._observe_alone(batch, alone)
        second, more = self._observe_several(batch, others)
        return Verdicts.join(first, second), patches + more

    def _observe_alone(self, batch: Batch, segments: Ints) -> tuple[Verdicts, list[Patch]]:
        """What `_observe_several` comes to, for segments of one reading each: of a large city nearly all."""
        owner = batch.owner.take(segments)
        row, reading = self.rows.begin.take(owner), batch.start.take(segments)
        if not self.rows.is_single:
            number = self.rows.number[owner]
            row, reading = spans(row, number), np.repeat(reading, number)
        at, x = batch.at.take(reading), batch.value.take(reading)
        old = self._records.take(row)
        parameters, p = self.parameters, old["profile"]
        anchor, level = old["anchor"], old["level"]
        is_near = ((x == anchor) | (np.abs(x - anchor) <= parameters.tolerance[p])) & (old["count"] > 0)
        starts = ~is_near
        if self._has_gaps:
            last_at = old["last_at"]
            starts |= (last_at != NEVER) & (at - last_at > parameters.max_gap[p])
        since = np.where(starts, at, old["since"])
        count = np.where(starts, np.int8(1), np.minimum(old["count"] + np.int8(1), np.int8(READINGS)))
        columns: Columns = {"anchor": np.where(is_near, anchor, x), "since": since, "count": count}
        if self._has_gaps:
            columns["last_at"] = at
        verdicts = Verdicts.none()
        is_long = (count >= READINGS) & (at - since >= parameters.span[p])
        if is_long.any() or level.any():
            candidates = np.flatnonzero(is_long)
            excused = (anchor[candidates, None] == parameters.excepted[p[candidates]]).any(axis=1)
            stuck = is_near & (level != 0)
            stuck[candidates[~excused]] = True
            changed = np.flatnonzero(stuck != (level != 0))
            own, is_raised = parameters.level[p[changed]], stuck[changed]
            verdicts = Verdicts(
                row[changed],
                at[changed],
                np.where(is_raised, np.int8(0), own),
                np.where(is_raised, own, np.int8(0)),
                x[changed],
                parameters.span[p[changed]] / SECOND,
                since[changed],
                np.where(is_raised, anchor[changed], np.nan),
            )
            columns["level"] = np.where(stuck, parameters.level[p], np.int8(0))
        return verdicts, [Patch(row, columns)]

    def _observe_several(self, batch: Batch, segments: Ints) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.of(self.rows, batch, segments)
        row, head, group, tail = pairs.row, pairs.head, pairs.group, pairs.tail
        at, x = batch.at[pairs.reading], batch.value[pairs.reading]
        carry = {name: column[row] for name, column in self.columns.items()}
        parameters, profile = self.parameters, self.profile[row]
        p = profile[group]
        place = np.arange(len(at))

        breaks = self._breaks(pairs, x, profile, carry)
        starts = breaks
        if self._has_gaps:
            gap = np.zeros(len(at), np.int64)
            np.subtract(at[1:], at[:-1], out=gap[1:])
            gap[head] = np.where(carry["last_at"] == NEVER, 0, at[head] - carry["last_at"])
            starts = breaks | (gap > parameters.max_gap[p])
        start = np.maximum.accumulate(np.where(starts, place, -1))
        in_batch = start >= head[group]
        since = np.where(in_batch, at[start], carry["since"][group])
        count = place + 1 - np.where(in_batch, start, head[group] - carry["count"][group])
        candidates = np.flatnonzero((count >= READINGS) & (at - since >= parameters.span[p]))

        level = carry["level"]
        verdicts = Verdicts.none()
        anchor_at = np.maximum.accumulate(np.where(breaks, place, -1))
        anchor = np.where(anchor_at >= head[group], x[anchor_at], carry["anchor"][group])
        if len(candidates) or level.any():
            excused = (anchor[candidates, None] == parameters.excepted[p[candidates]]).any(axis=1)
            event = np.where(breaks, place * 2, -1)
            event[candidates[~excused]] = candidates[~excused] * 2 + 1
            quiet = event[head] < 0
            event[head[quiet]] = head[quiet] * 2 + (level[quiet] != 0)
            stuck = (np.maximum.accumulate(event) & 1).astype(bool)
            previous = np.empty(len(at), bool)
            previous[1:] = stuck[:-1]
            previous[head] = level != 0
            changed = np.flatnonzero(stuck != previous)
            own = parameters.level[p[changed]]
            verdicts = Verdicts(
                row[group[changed]],
                at[changed],
                np.where(stuck[changed], np.int8(0), own),
                np.where(stuck[changed], own, np.int8(0)),
                x[changed],
                parameters.span[p[changed]] / SECOND,
                since[changed],
                np.where(stuck[changed], anchor[changed], np.nan),
            )
            level = np.where(stuck[tail], parameters.level[profile], np.int8(0))
        columns: Columns = {
            "anchor": anchor[tail],
            "since": since[tail],
            "count": np.minimum(count[tail], READINGS).astype(np.int8),
            "level": level,
        }
        if self._has_gaps:
            columns["last_at"] = at[tail]
        return verdicts, [Patch(row, columns)]

    def _breaks(self, pairs: Pairs, x: Floats, profile: Ints, carry: Columns) -> Bools:
        """Mask of the readings that start a new run. Without a tolerance the anchor equals the reading before; with
        one it depends on every reading since, so those watches go reading by reading: in rounds over all of them, and
        for the few with very many readings in a plain loop."""
        head = pairs.head
        tolerance = self.parameters.tolerance[profile]
        anchor = np.where(carry["count"] == 0, np.nan, carry["anchor"])  # NaN is near to nothing
        previous = np.empty(len(x))
        previous[1:] = x[:-1]
        previous[head] = anchor
        breaks = x != previous
        groups = np.flatnonzero(tolerance > 0)
        if not len(groups):
            return np.asarray(breaks)
        groups = groups[np.argsort(-pairs.count[groups], kind="stable")]
        count, near = pairs.count[groups], anchor[groups]
        step = 0
        while len(groups) > _FEW:
            left = int(np.searchsorted(-count, -step))  # the groups with more than `step` readings
            groups, count, near = groups[:left], count[:left], near[:left]
            where = head[groups] + step
            value = x[where]
            broken = ~(np.abs(value - near) <= tolerance[groups])
            breaks[where] = broken
            near = np.where(broken, value, near)
            step += 1
        for group, readings, last in zip(groups.tolist(), count.tolist(), near.tolist(), strict=True):
            begin = int(head[group])
            allowed = float(tolerance[group])
            for place, reading in enumerate(x[begin + step : begin + readings].tolist(), begin + step):
                away = not abs(reading - last) <= allowed
                breaks[place] = away
                if away:
                    last = reading
        return np.asarray(breaks)

    def apply(self, patches: Sequence[Patch]) -> None:
        write(self.columns, patches)

    def resting(self) -> Bools:
        return np.asarray(self.columns["count"] == 0)

    def level(self) -> NDArray[np.int8]:
        return self.columns["level"]

    def extremes(self, row: int) -> tuple[float, float, int]:
        anchor = float(self.columns["anchor"][row])
        return anchor, anchor, int(self.columns["level"][row])
