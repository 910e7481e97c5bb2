"""What every family of detectors shares: its rows (one a rule and sensor), a batch cut into runs of one sensor, state
held as columns by row, and changes to it that are decided first and applied later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from alerts.rules import Rule
from twin.model import Bools, Floats, Indices, Ints

NEVER: Final = -(1 << 62)  # a time before all times; far enough from int64's end that differences do not overflow
FOREVER: Final = 1 << 62
Columns = dict[str, NDArray[Any]]


def spans(starts: NDArray[Any], counts: NDArray[Any]) -> Ints:
    """`starts[0], starts[0]+1, …` (`counts[0]` of them), then the same for the next, in one array."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total) + np.repeat(starts - (ends - counts), counts))


@dataclass(frozen=True, slots=True)
class Batch:
    """Readings sorted by (sensor, observed_at), cut into segments of one sensor each.

    `sensor` (int32, the engine's own numbering), `at` (µs), `value`: one a reading. `start`, `count`: first reading
    and number of readings of each segment; `owner`: its sensor.
    """

    sensor: Indices
    at: Ints
    value: Floats
    start: Ints
    count: Ints
    owner: Indices

    @classmethod
    def of(cls, sensor: Indices, at: Ints, value: Floats) -> Batch:
        first = np.empty(len(sensor), bool)
        first[:1] = True
        np.not_equal(sensor[1:], sensor[:-1], out=first[1:])
        start = np.flatnonzero(first)
        count = np.empty_like(start)
        np.subtract(start[1:], start[:-1], out=count[:-1])
        count[-1:] = len(sensor) - start[-1:]
        return cls(sensor, at, value, start, count, sensor.take(start))


class Rows:
    """The watches of one family, sorted by (sensor, rule): columns `sensor`, `rule` (int32), and for each sensor the
    span `begin[s]:begin[s+1]` of its rows, their `number`, and whether there are any."""

    def __init__(self, sensor: Indices, rule: Indices, sensors: int) -> None:
        self.sensor = sensor
        self.rule = rule
        self.begin: Ints = np.searchsorted(sensor, np.arange(sensors + 1))
        self.number: Ints = np.diff(self.begin)
        self.is_watched: Bools = self.number > 0  # an eighth of the memory to look through
        self.is_single = bool((self.number <= 1).all())  # no sensor has two of these watches
        self._key = _key(sensor, rule)

    def __len__(self) -> int:
        return len(self.sensor)

    def find(self, sensor: NDArray[Any], rule: NDArray[Any]) -> Ints:
        """The row of each (sensor, rule), -1 where there is none."""
        if not len(self):
            return np.full(len(sensor), -1)
        wanted = _key(sensor, rule)
        at = np.minimum(np.searchsorted(self._key, wanted), len(self) - 1)
        return np.where(self._key[at] == wanted, at, -1)

    def within(self, sensor: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> Ints:
        """The first row of each sensor whose rule is of [low, high), -1 where there is none."""
        if not len(self):
            return np.full(len(sensor), -1)
        at = np.minimum(np.searchsorted(self._key, _key(sensor, low)), len(self) - 1)
        found = self._key[at]
        return np.where((found >= _key(sensor, low)) & (found < _key(sensor, high)), at, -1)

    def of_sensors(self, sensors: NDArray[Any]) -> Ints:
        """All rows of `sensors`, in that order."""
        return spans(self.begin[sensors], self.number[sensors])


def _key(sensor: NDArray[Any], rule: NDArray[Any]) -> Ints:
    return np.asarray((sensor.astype(np.int64) << 24) + rule)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Each row beside each reading of its sensor, grouped by row and in time order within.

    Per group: `row`, `head` (position of its first pair), `count`. Per pair: `group`, `reading` (position in the
    batch).
    """

    row: Ints
    head: Ints
    count: Ints
    group: Ints
    reading: Ints

    @classmethod
    def of(cls, rows: Rows, batch: Batch, segments: Ints | None = None) -> Pairs:
        """The pairs of the given segments (all, if None)."""
        owner, start, count = batch.owner, batch.start, batch.count
        if segments is not None:
            owner, start, count = owner.take(segments), start.take(segments), count.take(segments)
        number = rows.number.take(owner)
        if rows.is_single and number.all():
            row = rows.begin.take(owner)
            if (count == 1).all():  # of a large city most batches: one reading beside one watch each
                place = np.arange(len(owner))
                return cls(row, place, count, place, start)
            return cls.grouped(row, start, count)
        row = spans(rows.begin[owner], number)
        return cls.grouped(row, np.repeat(start, number), np.repeat(count, number))

    @classmethod
    def watched(cls, rows: Rows, batch: Batch) -> Pairs | None:
        """The pairs of all readings that any row looks at; None if there are none."""
        if not len(rows):
            return None
        segments = np.flatnonzero(rows.is_watched.take(batch.owner))
        return cls.of(rows, batch, segments) if len(segments) else None

    @classmethod
    def grouped(cls, row: Ints, start: Ints, count: Ints) -> Pairs:
        head = np.cumsum(count) - count
        return cls(row, head, count, np.repeat(np.arange(len(row)), count), spans(start, count))

    def only(self, which: Bools) -> Pairs:
        """The groups that `which` (a mask by group) names."""
        return Pairs.grouped(self.row[which], self.reading[self.head[which]], self.count[which])

    def any(self, which: Bools) -> Bools:
        """By group, whether `which` (a mask by pair) has any of its pairs."""
        return which if len(which) == len(self.row) else np.logical_or.reduceat(which, self.head)

    @property
    def tail(self) -> Ints:
        """Position of each group's last pair."""
        return self.head + self.count - 1


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Columns of level changes: `row`, `at`, `before`, `after`, `value`, `threshold`, `since`, and `peak`, the extreme
    value of the alert up to there; `note`: what the evidence is, for detectors with more than one kind of it (None: 0
    for all). `score` is by reading of the batch, from detectors that have one: 0 to 1."""

    row: Ints
    at: Ints
    before: NDArray[np.int8]
    after: NDArray[np.int8]
    value: Floats
    threshold: Floats
    since: Ints
    peak: Floats
    note: NDArray[np.signedinteger[Any]] | None = None
    score: Floats | None = None

    def __len__(self) -> int:
        return len(self.row)

    def scored(self, score: Floats) -> Verdicts:
        """The same with the readings' scores."""
        return replace(self, score=score)

    @classmethod
    def join(cls, first: Verdicts, second: Verdicts) -> Verdicts:
        if not len(first) or not len(second):
            return first if len(first) else second
        return cls(
            np.concatenate([first.row, second.row]),
            np.concatenate([first.at, second.at]),
            np.concatenate([first.before, second.before]),
            np.concatenate([first.after, second.after]),
            np.concatenate([first.value, second.value]),
            np.concatenate([first.threshold, second.threshold]),
            np.concatenate([first.since, second.since]),
            np.concatenate([first.peak, second.peak]),
        )

    @classmethod
    def none(cls) -> Verdicts:
        return _NO_VERDICTS


_NOTHING: Final = np.empty(0, np.int64)
_NO_VERDICTS: Final = Verdicts(
    _NOTHING, _NOTHING, np.empty(0, np.int8), np.empty(0, np.int8), np.empty(0), np.empty(0), _NOTHING, np.empty(0)
)


@dataclass(frozen=True, slots=True)
class Patch:
    """New values for some rows of some state columns."""

    rows: Ints
    columns: Columns


class Family(Protocol):
    """The watches of all rules of one kind of detector.

    `observe` decides and changes nothing; `apply` takes a patch in. `columns` is all the state there is, one row a
    watch, so that saving, restoring, forking and merging are written once, in the engine.
    """

    rows: Rows
    columns: Columns

    def subset(self, rows: Rows, origin: Ints) -> Self:
        """A family at rest with just these rows; `origin` is each one's row here."""
        ...

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]: ...

    def apply(self, patches: Sequence[Patch]) -> None: ...

    def resting(self) -> Bools:
        """Mask of the rows whose state is what a new row's would be."""
        ...

    def level(self) -> NDArray[np.int8]:
        """The open level of every row."""
        ...

    def extremes(self, row: int) -> tuple[float, float, int]:
        """`(last value, peak value, peak level)` of a row with an open level."""
        ...


class OwnFamily(Family, Protocol):
    """A family whose watches look at one sensor each."""

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> Self:
        """The family at rest. `rules` is the whole rule set; `low`, `high` are the sensors' believable ranges."""
        ...


def write(columns: Columns, patches: Sequence[Patch]) -> None:
    """Put patches into columns."""
    for patch in patches:
        for name, values in patch.columns.items():
            columns[name][patch.rows] = values
