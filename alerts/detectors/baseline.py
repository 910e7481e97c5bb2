"""baseline: the reading against what is usual at this hour, on working days and on days off.

For each hour of the city's day, and for each of the two kinds of day, a centre and a spread are learnt (`DAYS` such
days weigh in). What is usual runs in straight lines from the middle of one hour to that of the next, through their
centres. When an hour is over, its readings' mean distance from there moves its centre, and the mean amount of it its
spread. A reading is judged against what was learnt before its hour began. `levels` are distances from what is usual:
amounts in the kind's unit, per cent of the hour's centre, or sigmas (1.25 times its spread, as for normal noise).

An hour is judged once it was seen on `warm_up` such days. A reading away by the lowest level or more, on either side,
is not learnt from; before that, one counts with `MOST` sigmas at most, from the hour's second day on. An hour most of
whose readings are away is counted; after `accept` days in a row on which it was, of both kinds together, their own mean
is its new centre. Days off are Saturday, Sunday and `days_off`, less `workdays`. 1.0 kB of state a watch.

`value` of a transition is the reading, `threshold` the edge of the expected band that its level has, `note` 1 on a
working day, 2 on a day off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alerts.detectors import latch
from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts
from alerts.parameters import Seasonal
from alerts.rules import Rule
from twin.model import HOUR, Bools, Floats, Ints

DAYS: Final = 14
HOURS: Final = 24
MOST: Final = 8.0
LARGEST: Final = 1e30  # beyond it a value counts as this much: the profile is of float32
SIGMA: Final = 1.2533  # times the mean deviation, of a normal distribution
FINEST: Final = 1e-3  # of the centre: no spread is finer
# An hour of one kind of day: `days` seen, and of those away in a row the mean `other` and the number `others`.
_CELL: Final = np.dtype(
    [("centre", "f4"), ("spread", "f4"), ("other", "f4"), ("days", "u1"), ("others", "u1")], align=True
)
_CELLS: Final = 2 * HOURS
# The hour that is going on: its number since 1970, its centre (or its first reading, where there is none yet), what
# that is more than the hour before and the hour after is more than it, the most that a distance counts with, the unit
# of the levels (NaN: not judged yet), sums of the distances learnt from, of their amounts and of those that are away.
_RECORD: Final = np.dtype(
    [("hour", "i8"), ("centre_now", "f8"), ("rise", "f8"), ("fall", "f8"), ("bound", "f8"), ("unit", "f8"),
     ("total", "f8"), ("moved", "f8"), ("away", "f8"), ("count", "i4"), ("aways", "i4")], align=True,
)  # fmt: skip
# Records are copied whole, which numpy does ten times as fast where it does not know their fields.
_WHOLE_RECORD: Final = np.dtype((np.void, _RECORD.itemsize))
_WHOLE_CELL: Final = np.dtype((np.void, _CELL.itemsize))
_REST: Final = np.array((NEVER, np.nan, 0, 0, 0, np.nan, 0, 0, 0, 0, 0), _RECORD)


@dataclass(frozen=True, slots=True)
class Settings:
    """By profile: `shift` from UTC (µs), `measure` (place in `MEASURES`), `warm_up`, `accept`, the lowest limit
    `mildest`, and the `days_off` and `workdays` that the calendar does not say."""

    shift: Ints
    measure: Ints
    warm_up: Ints
    accept: Ints
    mildest: Floats
    days_off: list[Ints]
    workdays: list[Ints]


class BaselineWatches(latch.Latched):
    """All watches of baseline rules. State: by hour of working days, then of days off, the cells [rows, 48]; the record
    of the hour that is going on; a latch. Cells and records are columns of arrays of records: each batch looks at rows
    far from each other."""

    def __init__(self, rows: Rows, limits: latch.Limits, settings: Settings, profile: Ints) -> None:
        n = len(rows)
        self._records = np.full(n, _REST)
        self._cells = np.zeros(n * _CELLS, _CELL)
        by_row = self._cells.reshape(n, _CELLS)
        memory: Columns = {name: by_row[name] for name in _CELL.names or ()}
        super().__init__(rows, limits, profile, memory | {name: self._records[name] for name in _RECORD.names or ()})
        self.settings = settings

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> BaselineWatches:
        limits, place, mine = latch.signed(rules, "baseline")
        found = [rule.parameters for rule in mine if isinstance(rule.parameters, Seasonal)]
        measures = ("sigmas", "percent", "amount")
        settings = Settings(
            np.array([p.utc_offset for p in found] or [0], np.int64),
            np.array([measures.index(p.measure) for p in found] or [0], np.int64),
            np.array([p.warm_up for p in found] or [1], np.int64),
            np.array([p.accept for p in found] or [1], np.int64),
            np.array([float(np.nanmin(rule.levels)) for rule in mine] or [1.0]),
            [np.array(p.days_off, np.int64) for p in found],
            [np.array(p.workdays, np.int64) for p in found],
        )
        return cls(rows, limits, settings, place[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> BaselineWatches:
        return BaselineWatches(rows, self.limits, self.settings, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.watched(self.rows, batch)
        if pairs is None:
            return Verdicts.none(), []
        at, value = batch.at.take(pairs.reading), batch.value.take(pairs.reading)
        profile = self.profile[pairs.row]
        p = profile[pairs.group]
        local = at + self.settings.shift[p]
        hour = local // HOUR
        part = (local - hour * HOUR) / HOUR - 0.5
        usual, unit, memory = self._hours(pairs, hour, part, np.minimum(np.maximum(value, -LARGEST), LARGEST), profile)
        distance = (value - usual) / unit

        # Only watches that are not at rest, or whose limits were reached, need the latch.
        loud = self.loud(pairs, self.limits.reached(distance, p))
        if not loud.any():
            return Verdicts.none(), memory
        kept = loud[pairs.group]
        few = pairs.only(loud)
        carry = self.carried(few.row)
        found = latch.scan(self.limits, profile[loud], carry, few, at[kept], distance[kept], shown=value[kept])
        told, where = found.verdicts, np.flatnonzero(kept)[found.where]
        if len(told):
            told = replace(
                told,
                threshold=usual[where] + told.threshold * unit[where],
                note=np.where(self._is_off(hour[where] // HOURS, p[where]), 2, 1).astype(np.int8),
            )
        return told, [*memory, Patch(few.row, found.columns)]

    def _hours(
        self, pairs: Pairs, hour: Ints, part: Floats, value: Floats, profile: Ints
    ) -> tuple[Floats, Floats, list[Patch]]:
        """What is usual at each pair, and its unit, as they were when its hour began, and what the watches now
        remember. `part`: of the hour, from -0.5 to 0.5."""
        head, group = pairs.head, pairs.group
        now = self._records.take(pairs.row)
        previous = np.empty(len(hour), np.int64)
        previous[1:] = hour[:-1]
        previous[head] = now["hour"]
        begins = hour != previous
        # By how many hours have begun in each since its first reading here: mostly none.
        begun = np.cumsum(begins)
        begun -= begun[head][group]
        most = int(begun.max())
        if not most:
            patches = []
            g = np.flatnonzero(begins[head])
            if len(g):
                records = now.view(_WHOLE_RECORD).take(g).view(_RECORD)
                first = head[g]
                cell, learnt = self._begin(
                    records, self._cells, pairs.row[g] * _CELLS, hour[first], value[first], profile[g]
                )
                now.view(_WHOLE_RECORD)[g] = records.view(_WHOLE_RECORD)
                patches = [Patch(cell, {"#cell": learnt})]
            usual, unit = _usual(now, group, part), now["unit"].take(group)
            self._sum(now, group, value - usual, unit, profile)
            return usual, unit, [Patch(pairs.row, {"#record": now}), *patches]

        # What one hour has shown may bear on the next: the cells of those watches are copied.
        order = np.argsort(begun, kind="stable")
        edges = np.searchsorted(begun[order], np.arange(most + 2)).tolist()
        moving = np.flatnonzero(pairs.any(begins))
        cells = self._cells.reshape(-1, _CELLS)[pairs.row[moving]].reshape(-1)
        base = np.zeros(len(pairs.row), np.int64)
        base[moving] = np.arange(len(moving)) * _CELLS
        usual, unit = np.empty(len(hour)), np.empty(len(hour))
        for number in range(most + 1):
            which = order[edges[number] : edges[number + 1]]
            new = which[begins[which]]
            if len(new):
                g = group[new]
                records = now.view(_WHOLE_RECORD).take(g).view(_RECORD)
                cell, learnt = self._begin(records, cells, base[g], hour[new], value[new], profile[g])
                now.view(_WHOLE_RECORD)[g] = records.view(_WHOLE_RECORD)
                cells.view(_WHOLE_CELL)[cell] = learnt.view(_WHOLE_CELL)
            g = group[which]
            usual[which], unit[which] = _usual(now, g, part[which]), now["unit"].take(g)
            self._sum(now, g, value[which] - usual[which], unit[which], profile)
        cell = ((pairs.row[moving] * _CELLS)[:, None] + np.arange(_CELLS)).reshape(-1)
        return usual, unit, [Patch(pairs.row, {"#record": now}), Patch(cell, {"#cell": cells})]

    def _sum(self, now: NDArray[np.void], group: Ints, distance: Floats, unit: Floats, profile: Ints) -> None:
        """Add readings to the sums of their hour, in order."""
        is_away = np.abs(distance) >= self.settings.mildest[profile][group] * unit
        bound = now["bound"].take(group)
        near = np.minimum(np.maximum(distance, -bound), bound)
        if is_away.any():
            near[is_away] = 0.0
            far = group[is_away]
            _add(now, "away", far, distance[is_away])
            _add(now, "aways", far, np.ones(len(far), np.int32))
        _add(now, "total", group, near)
        _add(now, "moved", group, np.abs(near))
        _add(now, "count", group, (~is_away).astype(np.int32))

    def _begin(
        self, now: NDArray[np.void], cells: NDArray[np.void], base: Ints, hour: Ints, first: Floats, p: Ints
    ) -> tuple[Ints, NDArray[np.void]]:
        """Learn from the hour that is over and take up the new one, in place in the records `now`; `base`: places of
        their first cells. The places and values of the cells that change."""
        old = base + np.where(now["hour"] == NEVER, 0, self._place(now["hour"], p))
        learnt = self._learnt(now, cells, old, p)

        def cell_of(place: Ints) -> NDArray[np.void]:
            found = cells.take(place)
            same = place == old
            found.view(_WHOLE_CELL)[same] = learnt.view(_WHOLE_CELL)[same]
            return found

        place = self._place(hour, p)
        own = cell_of(base + place)
        of_day, kind = place % HOURS, place - place % HOURS
        before = cell_of(base + kind + (of_day - 1) % HOURS)
        after = cell_of(base + kind + (of_day + 1) % HOURS)
        days, centre = own["days"], own["centre"].astype(float)
        sigma = SIGMA * own["spread"].astype(float) + FINEST * np.abs(centre) + 1e-9
        unit = np.choose(self.settings.measure[p], [sigma, np.abs(centre) / 100, np.ones(len(p))])
        now["hour"] = hour
        now["centre_now"] = np.where(days > 0, centre, first)
        now["rise"] = np.where((days > 0) & (before["days"] > 0), centre - before["centre"], 0.0)
        now["fall"] = np.where((days > 0) & (after["days"] > 0), after["centre"] - centre, 0.0)
        now["bound"] = np.where(days > 0, MOST * sigma, np.inf)
        now["unit"] = np.where((days >= self.settings.warm_up[p]) & (unit > 0), unit, np.nan)
        for name in ("total", "moved", "away", "count", "aways"):
            now[name] = 0
        return old, learnt

    def _learnt(self, now: NDArray[np.void], cells: NDArray[np.void], place: Ints, p: Ints) -> NDArray[np.void]:
        """The cells at `place` with the hour that is over in them."""
        cell = cells.take(place)
        days, spread = cell["days"], cell["spread"].astype(float)
        centre, count, aways = now["centre_now"], now["count"], now["aways"]
        other, others = cell["other"].astype(float), cell["others"]
        is_over, is_away = count + aways > 0, aways > count
        n = np.maximum(count, 1)
        weight = np.minimum(days + 1.0, DAYS)
        mean = centre + now["total"] / n / weight
        spread = spread + (now["moved"] / n - spread) / weight
        number = np.where(is_away, others + 1, 0)
        other = np.where(
            is_away, other + (centre + now["away"] / np.maximum(aways, 1) - other) / np.maximum(number, 1), 0.0
        )
        row = place - place % _CELLS
        also = cells.take(row + (place - row + HOURS) % _CELLS)["others"]  # the same hour on the other kind of day
        accepted = is_away & (number + also >= self.settings.accept[p])
        learns = is_over & ~is_away
        cell["centre"] = np.where(accepted, other, np.where(learns, mean, cell["centre"]))
        cell["spread"] = np.where(learns, spread, cell["spread"])
        cell["days"] = np.where(learns, np.minimum(days + 1.0, 60), days)
        cell["other"] = np.where(is_over, np.where(accepted, 0.0, other), cell["other"])
        cell["others"] = np.where(is_over, np.where(accepted, 0, number), others)
        return cell

    def _place(self, hour: Ints, p: Ints) -> Ints:
        """Of an hour since 1970, which cell is its own."""
        return hour % HOURS + HOURS * self._is_off(hour // HOURS, p)

    def _is_off(self, day: Ints, p: Ints) -> Bools:
        """Whether days since 1970 (a Thursday) are days off, by the rule of profile `p`."""
        off = (day + 3) % 7 >= 5
        for number in np.unique(p).tolist():
            days_off, workdays = self.settings.days_off[number], self.settings.workdays[number]
            if len(days_off) or len(workdays):
                mine = p == number
                off = np.where(mine, (off | np.isin(day, days_off)) & ~np.isin(day, workdays), off)
        return np.asarray(off)

    def _put(self, patch: Patch) -> None:
        if "#record" in patch.columns:
            self._records.view(_WHOLE_RECORD)[patch.rows] = patch.columns["#record"].view(_WHOLE_RECORD)
        elif "#cell" in patch.columns:
            self._cells.view(_WHOLE_CELL)[patch.rows] = patch.columns["#cell"].view(_WHOLE_CELL)
        else:
            super()._put(patch)

    def resting(self) -> Bools:
        return np.asarray(self.columns["hour"] == NEVER)


def _usual(now: NDArray[np.void], group: Ints, part: Floats) -> Floats:
    slope = np.where(part < 0, now["rise"].take(group), now["fall"].take(group))
    return np.asarray(now["centre_now"].take(group) + part * slope)


def _add(now: NDArray[np.void], name: str, group: Ints, added: NDArray[Any]) -> None:
    column = np.ascontiguousarray(now[name])
    np.add.at(column, group, added)
    now[name] = column
