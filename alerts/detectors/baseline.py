"""baseline: the reading against what is usual at this hour, on working days and on days off.

For each hour of the city's day, and for each of the two kinds of day, a centre and a spread are learnt (`DAYS` such days
weigh in). What is usual runs in straight lines from the middle of one hour to that of the next, through their centres.
When an hour is over, its readings' mean distance from there moves its centre, and the mean amount of it its spread.
A reading is judged against what was learnt before its hour began. `levels` are distances from what is usual: amounts in
the kind's unit, per cent of the hour's centre, or sigmas (1.25 times its spread, as for normal noise).

An hour is judged once it was seen on `warm_up` such days. A reading away from the centre by the lowest level or more, on
either side, is not learnt from; before that, one counts with `MOST` sigmas at most, from the hour's second day on. An hour most of whose readings are away is counted; after `accept` days in a row on which it
was, of both kinds together, their own mean is its new centre. Days off are Saturday, Sunday and `days_off`, less `workdays`. 0.9 kB of state a watch.

`value` of a transition is the reading, `threshold` the edge of the expected band that its level has, `note` 1 on a
working day, 2 on a day off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alerts.detectors import blocks, latch
from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts, spans, write
from alerts.parameters import Seasonal
from alerts.rules import Rule
from twin.model import HOUR, Bools, Floats, Ints

DAYS: Final = 14
HOURS: Final = 24
MOST: Final = 8.0
LARGEST: Final = 1e30  # beyond it a value counts as this much: the profile is of float32
SIGMA: Final = 1.2533  # times the mean deviation, of a normal distribution
FINEST: Final = 1e-3  # of the centre: no spread is finer
_PROFILE: Final = (
    ("centre", np.float32), ("spread", np.float32), ("days", np.uint8), ("other", np.float32), ("others", np.uint8),
)  # fmt: skip
# The hour that is going on: its number since 1970, its centre (or its first reading, where there is none yet), how much
# is usual grows by from the hour before and to the hour after, the most that a distance counts with, the unit of the
# levels (NaN: not judged yet), sums of the distances learnt from, of their amounts and of those that are away.
_RECORD: Final = np.dtype(
    [("hour", "i8"), ("centre_now", "f8"), ("rise", "f8"), ("fall", "f8"), ("bound", "f8"), ("unit", "f8"),
     ("total", "f8"), ("moved", "f8"), ("away", "f8"), ("count", "i4"), ("aways", "i4")], align=True,
)  # fmt: skip
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


class BaselineWatches:
    """All watches of baseline rules. State: by hour of working days, then of days off, [rows, 48]: `centre`, `spread`,
    `days` seen, and of those away in a row their mean `other` and number `others`; the record of the hour that is going
    on; a latch."""

    def __init__(self, rows: Rows, limits: latch.Limits, settings: Settings, profile: Ints) -> None:
        self.rows = rows
        self.limits = limits
        self.settings = settings
        self.profile = profile
        n = len(rows)
        self._records = np.full(n, _REST)
        self.columns: Columns = latch.at_rest(n) | {name: np.zeros((n, 2 * HOURS), kind) for name, kind in _PROFILE}
        self.columns |= {name: self._records[name] for name in _RECORD.names or ()}

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> BaselineWatches:
        profiles: list[tuple[Rule, Sequence[float], Sequence[float]]] = []
        numbers = np.zeros(len(rules), np.int64)
        mine: list[Seasonal] = []
        for r, rule in enumerate(rules):
            if isinstance(rule.parameters, Seasonal):
                numbers[r] = len(profiles)
                mine.append(rule.parameters)
                profiles.append((rule, *latch.both_sides(rule)))
        measures = ("sigmas", "percent", "amount")
        settings = Settings(
            np.array([p.utc_offset for p in mine] or [0], np.int64),
            np.array([measures.index(p.measure) for p in mine] or [0], np.int64),
            np.array([p.warm_up for p in mine] or [1], np.int64),
            np.array([p.accept for p in mine] or [1], np.int64),
            np.array([float(np.nanmin(rule.levels)) for rule, _, _ in profiles] or [1.0]),
            [np.array(p.days_off, np.int64) for p in mine],
            [np.array(p.workdays, np.int64) for p in mine],
        )
        return cls(rows, latch.Limits.of(profiles), settings, numbers[rows.rule])

    def subset(self, rows: Rows, origin: Ints) -> BaselineWatches:
        return BaselineWatches(rows, self.limits, self.settings, self.profile[origin])

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        if not len(self.rows):
            return Verdicts.none(), []
        segments = np.flatnonzero(self.rows.is_watched.take(batch.owner))
        if not len(segments):
            return Verdicts.none(), []
        pairs = Pairs.of(self.rows, batch, segments)
        at, value = batch.at.take(pairs.reading), batch.value.take(pairs.reading)
        profile = self.profile[pairs.row]
        p = profile[pairs.group]
        local = at + self.settings.shift[p]
        hour = local // HOUR
        part = (local - hour * HOUR) / HOUR - 0.5
        usual, unit, memory = self._hours(pairs, hour, part, np.clip(value, -LARGEST, LARGEST), profile)
        distance = (value - usual) / unit

        # Only watches that are not at rest, or whose limits were reached, need the latch.
        reached = (distance >= self.limits.outer_hi[p]) | (distance <= self.limits.outer_lo[p])
        level, run = self.columns["level"].take(pairs.row), self.columns["run"].take(pairs.row, axis=0)
        loud = np.logical_or.reduceat(reached, pairs.head) | (level != 0) | (run != NEVER).any(axis=1)
        if not loud.any():
            return Verdicts.none(), memory
        kept = loud[pairs.group]
        few = pairs.only(loud)
        carry = {name: self.columns[name][few.row] for name in latch.STATE}
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
        if not begins.any():
            usual, unit = _usual(now, group, part), now["unit"][group]
            self._sum(now, group, value - usual, unit, profile)
            return usual, unit, [Patch(pairs.row, {"#record": now})]

        # Pieces of one hour of one watch each; those that begin an hour close the one before.
        piece_at = begins.copy()
        piece_at[head] = True
        start = np.flatnonzero(piece_at)
        count = np.diff(start, append=len(hour))
        owner = group[start]
        is_moving = np.zeros(len(pairs.row), bool)
        is_moving[group[begins]] = True
        moving = np.flatnonzero(is_moving)
        place = np.cumsum(is_moving) - 1  # of a group among the moving ones
        work = {name: self.columns[name][pairs.row[moving]] for name, _ in _PROFILE}
        usual, unit = np.empty(len(hour)), np.empty(len(hour))
        for which in blocks.rounds(owner):
            first = start[which]
            new = first[begins[first]]
            if len(new):
                g = group[new]
                records = now[g]
                self._begin(records, work, place[g], hour[new], value[new], profile[g])
                now[g] = records
            reading = spans(first, count[which])
            g = group[reading]
            usual[reading], unit[reading] = _usual(now, g, part[reading]), now["unit"][g]
            self._sum(now, g, value[reading] - usual[reading], unit[reading], profile)
        return usual, unit, [Patch(pairs.row, {"#record": now}), Patch(pairs.row[moving], work)]

    def _sum(self, now: NDArray[np.void], group: Ints, distance: Floats, unit: Floats, profile: Ints) -> None:
        """Add readings to the sums of their hour, in order."""
        is_away = np.abs(distance) >= self.settings.mildest[profile[group]] * unit
        bound = now["bound"][group]
        near = np.where(is_away, 0.0, np.clip(distance, -bound, bound))
        for name, added in (("total", near), ("moved", np.abs(near))):
            np.add.at(now[name], group, added)
        size = len(now)
        if is_away.any():
            np.add.at(now["away"], group, np.where(is_away, distance, 0.0))
            now["aways"] += np.bincount(group[is_away], minlength=size).astype(np.int32)
            group = group[~is_away]
        now["count"] += np.bincount(group, minlength=size).astype(np.int32)

    def _begin(self, now: NDArray[np.void], work: Columns, w: Ints, hour: Ints, first: Floats, p: Ints) -> None:
        """Learn from the hour that is over and take up the new one; `w`: rows of `work`. Both are changed in place."""
        self._learn(now, work, w, p)
        bucket = self._bucket(hour, p)
        days, centre = work["days"][w, bucket], work["centre"][w, bucket].astype(float)
        sigma = SIGMA * work["spread"][w, bucket].astype(float) + FINEST * np.abs(centre) + 1e-9
        unit = np.choose(self.settings.measure[p], [sigma, np.abs(centre) / 100, np.ones(len(w))])
        now["hour"] = hour
        now["centre_now"] = np.where(days > 0, centre, first)
        now["bound"] = np.where(days > 0, MOST * sigma, np.inf)
        for name, step in (("rise", -1), ("fall", 1)):
            beside = bucket - bucket % HOURS + (bucket + step) % HOURS
            known = (days > 0) & (work["days"][w, beside] > 0)
            now[name] = np.where(known, step * (work["centre"][w, beside] - centre), 0.0)
        now["unit"] = np.where((days >= self.settings.warm_up[p]) & (unit > 0), unit, np.nan)
        for name in ("total", "moved", "away", "count", "aways"):
            now[name] = 0

    def _learn(self, now: NDArray[np.void], work: Columns, w: Ints, p: Ints) -> None:
        over = np.flatnonzero(now["hour"] != NEVER)
        if not len(over):
            return
        now, w, p = now[over], w[over], p[over]
        bucket = self._bucket(now["hour"], p)
        days, spread = work["days"][w, bucket], work["spread"][w, bucket].astype(float)
        centre, count, aways = now["centre_now"], now["count"], now["aways"]
        other, others = work["other"][w, bucket].astype(float), work["others"][w, bucket]
        is_away = aways > count
        n = np.maximum(count, 1)
        weight = np.minimum(days + 1.0, DAYS)
        mean = centre + now["total"] / n / weight
        spread = spread + (now["moved"] / n - spread) / weight
        others_now = np.where(is_away, others + 1, 0)
        other = np.where(
            is_away, other + (centre + now["away"] / np.maximum(aways, 1) - other) / np.maximum(others_now, 1), 0.0
        )
        also = work["others"][w, (bucket + HOURS) % (2 * HOURS)]  # the same hour on days of the other kind
        accepted = is_away & (others_now + also >= self.settings.accept[p])
        work["centre"][w, bucket] = np.where(accepted, other, np.where(is_away, centre, mean))
        work["spread"][w, bucket] = np.where(is_away, work["spread"][w, bucket], spread)
        work["days"][w, bucket] = np.where(is_away, days, np.minimum(days + 1.0, 60))
        work["other"][w, bucket] = np.where(accepted, 0.0, other)
        work["others"][w, bucket] = np.where(accepted, 0, others_now)

    def _bucket(self, hour: Ints, p: Ints) -> Ints:
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

    def apply(self, patches: Sequence[Patch]) -> None:
        for patch in patches:
            if "#record" in patch.columns:
                self._records[patch.rows] = patch.columns["#record"]
            else:
                write(self.columns, [patch])

    def resting(self) -> Bools:
        return np.asarray(self.columns["hour"] == NEVER)

    def level(self) -> NDArray[np.int8]:
        return self.columns["level"]

    def extremes(self, row: int) -> tuple[float, float, int]:
        columns = self.columns
        return float(columns["value"][row]), float(columns["peak"][row]), int(columns["peak_level"][row])


def _usual(now: NDArray[np.void], group: Ints, part: Floats) -> Floats:
    return now["centre_now"][group] + part * np.where(part < 0, now["rise"][group], now["fall"][group])
