"""Readings of several sensors joined by event time, for detectors that look at more than one sensor's values.

A group is one watch: its pivot (slot 0) and the other members. A joined sample is taken at each time of the pivot; the
others count with their last reading at that time or before, not older than the group's `max_age`. So what a sample
is depends on the readings alone. When it is judged does too: at time t once every other member has shown t or later,
or the pivot has shown t + `patience`, or any member `depth` later readings; each of these is a fact of the set of
readings, not of the order they came in, and judging only ever moves forward.

What comes for a time the group has passed is late for the group: the caller asks (`passed`) and judges the group again
from an earlier state. A member that is ahead (a forecast) is remembered for `depth` readings; where the pivot falls
back behind these (`join_floor`), that is late for the group as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from alerts.detectors.rows import FOREVER, NEVER, Batch, Columns, Family, Pairs, Patch, Rows, spans
from alerts.rules import Rule
from twin.model import Bools, Floats, Indices, Ints


@dataclass(frozen=True, slots=True)
class Groups:
    """Who is joined, by row: `member` [rows, M] in the engine's own numbers, pivot first, -1 where there are fewer;
    `lasting`, the same as catalogue indices; `max_age`, `patience` (µs)."""

    member: Indices
    lasting: Indices
    max_age: Ints
    patience: Ints

    def take(self, rows: Ints) -> Groups:
        return Groups(self.member[rows], self.lasting[rows], self.max_age[rows], self.patience[rows])


@dataclass(frozen=True, slots=True)
class Samples:
    """Joined samples that are to be judged now. `pairs`: by row, in time order within, `pairs.reading` counting the
    samples through; `at` [n]; `value` [n, M], NaN where a member shows nothing; `reading`, `sample`: the readings of
    the batch that are in a sample, and in which."""

    pairs: Pairs
    at: Ints
    value: Floats
    reading: Ints
    sample: Ints


class JoinedFamily(Family, Protocol):
    """A family whose watches are groups. `lasts`: the columns of its state that do not depend on the members."""

    join: Join
    lasts: Sequence[str]

    @classmethod
    def grouped(cls, rules: Sequence[Rule], rows: Rows, groups: Groups) -> Self:
        """The family at rest; a row's sensor is its group's pivot."""
        ...

    def regrouped(self, rows: Rows, origin: Ints, groups: Groups) -> Self:
        """A family at rest with just these rows; `origin` is each one's row here, `groups` in the rows' own numbers."""
        ...


class Join:
    """The joining of one family's groups, and its state: `join_at`, `join_value` [rows, M, depth], by member the
    readings that samples may still need, oldest first; `join_through`, the last pivot time judged; `join_floor`, up to
    where a pivot's time lies behind what is remembered; `join_member`, whom the row joins, to be held against what a
    saved state joined."""

    def __init__(self, rows: Rows, groups: Groups, depth: int) -> None:
        self.rows = rows
        self.groups = groups
        self.depth = depth
        n, width = groups.member.shape
        self.columns: Columns = {
            "join_member": groups.lasting.copy(),
            "join_at": np.full((n, width, depth), NEVER),
            "join_value": np.full((n, width, depth), np.nan),
            "join_through": np.full(n, NEVER),
            "join_floor": np.full(n, NEVER),
        }
        row, slot = np.nonzero(groups.member >= 0)
        member = groups.member[row, slot]
        order = np.argsort(member, kind="stable")
        self._row, self._slot = row[order], slot[order]
        sensors = len(rows.number)
        self._begin: Ints = np.searchsorted(member[order], np.arange(sensors + 1))
        self._number: Ints = np.diff(self._begin)
        self.is_member: Bools = self._number > 0
        # By sensor, the latest time of which a reading may be late for one of its groups. It only ever grows, also
        # where a state is put back: what is looked at once more than needed does no harm.
        self.passed = np.full(sensors, NEVER)

    def apply(self, patches: Sequence[Patch]) -> None:
        """Follow patches that have been written to the columns."""
        for patch in patches:
            if "join_through" not in patch.columns:
                continue
            member = self.groups.member[patch.rows]
            through = np.broadcast_to(self.columns["join_through"][patch.rows][:, None], member.shape)
            there = member >= 0
            np.maximum.at(self.passed, member[there], through[there])
            np.maximum.at(self.passed, member[:, 0], self.columns["join_floor"][patch.rows])

    def resting(self) -> Bools:
        return np.asarray((self.columns["join_at"][:, :, 0] == NEVER).all(axis=1))

    def late(self, sensor: Indices, at: Ints) -> tuple[Ints, Ints, Ints]:
        """`(row, slot, at)` of the readings that come for a time their groups have passed."""
        place = np.flatnonzero(at <= self.passed[sensor])
        row, slot, time = self._memberships(sensor[place], at[place])
        is_late = (time <= self.columns["join_through"][row]) | (
            (slot == 0) & (time <= self.columns["join_floor"][row])
        )
        return row[is_late], slot[is_late], time[is_late]

    def memberships(self, sensor: Indices, at: Ints) -> tuple[Ints, Ints, Ints]:
        """`(row, slot, at)` of every group that these readings belong to."""
        place = np.flatnonzero(self.is_member[sensor])
        return self._memberships(sensor[place], at[place])

    def _memberships(self, sensor: Indices, at: Ints) -> tuple[Ints, Ints, Ints]:
        number = self._number[sensor]
        entry = spans(self._begin[sensor], number)
        return self._row[entry], self._slot[entry], np.repeat(at, number)

    def observe(self, batch: Batch) -> tuple[Samples, Patch] | None:
        """What is to be judged now, and what is remembered; None where no reading is a member's."""
        if not len(self._row):
            return None
        segments = np.flatnonzero(self.is_member.take(batch.owner))
        if not len(segments):
            return None
        width, depth = self.groups.member.shape[1], self.depth
        number = self._number[batch.owner[segments]]
        entry = spans(self._begin[batch.owner[segments]], number)
        segment = np.repeat(segments, number)
        touched, which = np.unique(self._row[entry], return_inverse=True)

        # All readings of the touched groups by lane (a member of a group), in time order: remembered and new ones.
        remembered = self.columns["join_at"][touched]
        old = np.flatnonzero(remembered.reshape(-1) != NEVER)
        reading = spans(batch.start[segment], batch.count[segment])
        lane = np.concatenate(
            [old // depth, np.repeat(which.reshape(-1) * width + self._slot[entry], batch.count[segment])]
        )
        at = np.concatenate([remembered.reshape(-1)[old], batch.at[reading]])
        value = np.concatenate([self.columns["join_value"][touched].reshape(-1)[old], batch.value[reading]])
        origin = np.concatenate([np.full(len(old), -1), reading])
        order = np.lexsort((at, lane))
        lane, at, value, origin = lane[order], at[order], value[order], origin[order]
        group = lane // width
        bounds = np.searchsorted(lane, np.arange(len(touched) * width + 1))
        end = bounds[1:].reshape(-1, width)
        has = (np.diff(bounds) > 0).reshape(-1, width)
        newest = np.where(has, at[np.maximum(end - 1, 0)], NEVER)

        # Up to where each group is judged.
        member = self.groups.member[touched]
        least = np.where(member >= 0, newest, FOREVER).min(axis=1)
        pivot = newest[:, 0]
        waited = np.where(pivot == NEVER, NEVER, pivot - self.groups.patience[touched])
        oldest = end - depth  # what is older than these is forgotten, so samples that need it cannot wait
        is_full = oldest >= bounds[:-1].reshape(-1, width)
        forced = np.where(is_full, at[np.maximum(oldest, 0)] - 1, NEVER).max(axis=1)
        until = np.minimum(np.maximum(np.maximum(least, waited), forced), pivot)
        before = self.columns["join_through"][touched]
        taken = np.flatnonzero((lane % width == 0) & (at > before[group]) & (at <= until[group]))
        through = before.copy()
        np.maximum.at(through, group[taken], at[taken])

        samples = self._samples(touched, taken, lane, at, value, origin, bounds)
        return samples, self._remember(touched, lane, at, value, bounds, through)

    def _samples(
        self, touched: Ints, taken: Ints, lane: Ints, at: Ints, value: Floats, origin: Ints, bounds: Ints
    ) -> Samples:
        """The samples at the pivots' readings `taken` (places among the sorted readings)."""
        width = self.groups.member.shape[1]
        times, rank = np.unique(at, return_inverse=True)
        key = lane * len(times) + rank.reshape(-1)
        group = lane[taken] // width
        lanes = group[:, None] * width + np.arange(width)
        found = np.searchsorted(key, lanes * len(times) + rank.reshape(-1)[taken][:, None], "right") - 1
        age = at[taken][:, None] - at[np.maximum(found, 0)]
        there = (found >= bounds[lanes]) & (age <= self.groups.max_age[touched][group][:, None])
        sample, slot = np.nonzero(there)
        readings = origin[found[sample, slot]]
        is_new = readings >= 0
        rows, count = np.unique(group, return_counts=True)
        return Samples(
            Pairs.grouped(touched[rows], np.cumsum(count) - count, count),
            at[taken],
            np.where(there, value[np.maximum(found, 0)], np.nan),
            readings[is_new],
            sample[is_new],
        )

    def _remember(
        self, touched: Ints, lane: Ints, at: Ints, value: Floats, bounds: Ints, through: Ints
    ) -> Patch:  # fmt: skip
        """By lane the last reading up to `through` and all behind it, the newest `depth` of them."""
        width, depth = self.groups.member.shape[1], self.depth
        is_behind = at > through[lane // width]
        last = np.ones(len(at), bool)
        last[:-1] = (lane[1:] != lane[:-1]) | is_behind[1:]
        wanted = is_behind | last
        from_end = bounds[lane + 1] - 1 - np.arange(len(at))
        kept = np.flatnonzero(wanted & (from_end < depth))
        size = np.bincount(lane[kept], minlength=len(bounds) - 1)
        place = size[lane[kept]] - 1 - from_end[kept]
        times = np.full((len(bounds) - 1, depth), NEVER)
        values = np.full((len(bounds) - 1, depth), np.nan)
        times[lane[kept], place] = at[kept]
        values[lane[kept], place] = value[kept]
        floor = self.columns["join_floor"][touched].copy()
        dropped = np.unique(lane[wanted & (from_end >= depth) & (lane % width > 0)])
        np.maximum.at(floor, dropped // width, times[dropped, 0] - 1)
        shape = (len(touched), width, depth)
        return Patch(
            touched,
            {
                "join_at": times.reshape(shape),
                "join_value": values.reshape(shape),
                "join_through": through,
                "join_floor": floor,
            },
        )

    def fitting(self, row: Ints, table: Columns, own: Columns, lasts: Sequence[str]) -> list[Patch]:
        """Saved state of `row`, as patches of a family with the columns `own`: all of it where the row joins whom it
        joined then, else the columns `lasts` only, which do not depend on the members."""
        if not len(row):
            return []
        table = {name: column if name in lasts else _widened(column, own[name]) for name, column in table.items()}
        saved, member = table["join_member"], self.groups.lasting[row]
        width = member.shape[1]
        is_same = (saved[:, :width] == member).all(axis=1) & (saved[:, width:] < 0).all(axis=1)
        patches = []
        for mask, names in ((is_same, [*own]), (~is_same, [*lasts])):
            if mask.any() and names:
                parts = {name: table[name][mask] for name in names}
                patches.append(
                    Patch(row[mask], {n: p[(slice(None), *map(slice, own[n].shape[1:]))] for n, p in parts.items()})
                )
        return patches


def _widened(saved: NDArray[Any], own: NDArray[Any]) -> NDArray[Any]:
    """A saved column with room for as many members as the family's own has: where another group has grown, all
    columns have become wider."""
    missing = [(0, 0), *((0, max(0, b - a)) for a, b in zip(saved.shape[1:], own.shape[1:], strict=True))]
    if not any(more for _, more in missing):
        return saved
    nothing = -1 if saved.dtype == np.int32 else NEVER if saved.dtype == np.int64 else np.nan
    return np.pad(saved, missing, constant_values=nothing)
