"""From "the condition holds / is cleared at this reading" to levels that rise after a hold and fall after a clear.

Written once for every detector that has limits. Semantics (contract 7), for each level k of a watch: a run is an
unbroken sequence of readings at which k's condition holds; k is met at a reading at least `hold_k` after the start of
such a run, and then latches with all lower levels. k's latch falls at a reading at least `clear_hold` after the start
of an unbroken sequence of readings at which k's clear condition holds. A reading where neither holds breaks both. A gap
longer than `max_gap` restarts both, the latch stays. The level is the highest latched.

Since limits never fall with rising severity and margins keep their order, a lower level's clearing implies the
higher's, so the latched levels are always "all up to the highest" and one number a watch says it.

All of it is done with segmented scans: `np.maximum.accumulate` over positions carries "the last place where …" along,
and the first pair of each group starts from the state carried in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alerts.detectors.rows import FOREVER, NEVER, Columns, Pairs, Patch, Rows, Verdicts, write
from alerts.rules import Rule
from twin.model import Bools, Floats, Ints

K: Final = 4  # blue, yellow, orange, red
_LEVELS: Final = np.arange(1, K + 1, dtype=np.int8)

# The state of a watch and its value at rest. `run`, `clear`: starts of the runs by level. `side`: 1 or -1, the limit
# that was last violated. `last_at`: the last reading, kept while not at rest where the rule has a `max_gap`. `value`,
# `peak`, `score`: the last value, the extreme one since the watch left rest, and how extreme it is.
STATE: Final[dict[str, tuple[type[np.generic], float, int]]] = {
    "run": (np.int64, NEVER, K),
    "clear": (np.int64, NEVER, K),
    "level": (np.int8, 0, 0),
    "peak_level": (np.int8, 0, 0),
    "side": (np.int8, 0, 0),
    "last_at": (np.int64, NEVER, 0),
    "value": (np.float64, math.nan, 0),
    "peak": (np.float64, math.nan, 0),
    "score": (np.float64, -math.inf, 0),
}


def at_rest(rows: int) -> Columns:
    """State columns of `rows` watches at rest."""
    return {
        name: np.full((rows, width) if width else rows, rest, dtype) for name, (dtype, rest, width) in STATE.items()
    }


def resting(columns: Columns) -> Bools:
    return np.asarray((columns["level"] == 0) & (columns["run"] == NEVER).all(axis=1))


def lasting(limits: Limits, p: Ints, columns: Columns) -> Bools:
    """Mask of the watches, of the profiles `p`, with an open level that stay exactly as they are for as long as the
    value that they last saw is repeated: nothing runs towards another level, and no gap matters."""
    x, level = columns["value"][:, None], columns["level"]
    c = (x >= limits.hi_raise.take(p, axis=0)) | (x <= limits.lo_raise.take(p, axis=0))
    cl = (x <= limits.hi_clear.take(p, axis=0)) & (x >= limits.lo_clear.take(p, axis=0))
    moves = (columns["clear"] != NEVER) | (c != (columns["run"] != NEVER)) | np.where(level[:, None] < _LEVELS, c, cl)
    is_known = (level > 0) & ~np.isnan(columns["value"])
    return np.asarray(is_known & (limits.max_gap.take(p) == FOREVER) & ~moves.any(axis=1))


@dataclass(frozen=True, slots=True)
class Limits:
    """Parameters by profile (a set of limits that many watches share), [P, 4] by level, NaN where there is no such
    level or side.

    The condition is `x >= hi_raise or x <= lo_raise`, strictness already worked in by taking the next float; clear
    is `lo_clear <= x <= hi_clear`. `hi_limit`, `lo_limit` are the limits as written, for people. `hold` [P, 4],
    `clear_hold`, `max_gap` [P] in µs. `exists` [P, 4]: there is such a level. `outer_hi`, `outer_lo` [P]: from
    where on (`>=`, `<=`) any level's condition holds, ±inf for never; `mildest_hi`, `mildest_lo` [P]: the limits
    nearest to normal, NaN for none.
    """

    hi_raise: Floats
    lo_raise: Floats
    hi_clear: Floats
    lo_clear: Floats
    hi_limit: Floats
    lo_limit: Floats
    hold: Ints
    clear_hold: Ints
    max_gap: Ints
    exists: Bools
    outer_hi: Floats
    outer_lo: Floats
    mildest_hi: Floats
    mildest_lo: Floats

    def reached(self, x: Floats, p: Ints) -> Bools:
        """Where any level's condition holds; `p`: each value's profile."""
        return np.asarray((x >= self.outer_hi.take(p)) | (x <= self.outer_lo.take(p)))

    @classmethod
    def of(cls, profiles: Sequence[tuple[Rule, Sequence[float], Sequence[float]]]) -> Limits:
        """Profiles from (rule, upper limits by level, lower limits by level), NaN for none."""
        size = max(len(profiles), 1)
        hi, lo, hi_clear, lo_clear = (np.full((size, K), np.nan) for _ in range(4))
        hold = np.zeros((size, K), np.int64)
        clear_hold = np.zeros(size, np.int64)
        max_gap = np.full(size, FOREVER)
        strict = np.zeros((size, 1), bool)
        for i, (rule, upper, lower) in enumerate(profiles):
            hi[i], lo[i], hold[i] = upper, lower, rule.hold
            clear_hold[i] = rule.clear_hold
            max_gap[i] = FOREVER if rule.max_gap is None else rule.max_gap
            strict[i] = rule.strict or rule.detector == "range"
            for k in range(K):
                hi_clear[i, k], lo_clear[i, k] = _clear_band(upper[k], lower[k], rule)
        up, down = np.inf, -np.inf
        nothing = np.isnan(hi) & np.isnan(lo)
        hi_raise = np.where(strict, np.nextafter(hi, up), hi)
        lo_raise = np.where(strict, np.nextafter(lo, down), lo)
        outer_hi, outer_lo = np.fmin.reduce(hi_raise, axis=1), np.fmax.reduce(lo_raise, axis=1)
        return cls(
            hi_raise=hi_raise,
            lo_raise=lo_raise,
            hi_clear=_one_sided(np.where(strict, hi_clear, np.nextafter(hi_clear, down)), nothing, up),
            lo_clear=_one_sided(np.where(strict, lo_clear, np.nextafter(lo_clear, up)), nothing, down),
            hi_limit=hi,
            lo_limit=lo,
            hold=hold,
            clear_hold=clear_hold,
            max_gap=max_gap,
            exists=~nothing,
            outer_hi=np.where(np.isnan(outer_hi), up, outer_hi),
            outer_lo=np.where(np.isnan(outer_lo), down, outer_lo),
            mildest_hi=np.fmin.reduce(hi, axis=1),
            mildest_lo=np.fmax.reduce(lo, axis=1),
        )


def both_sides(rule: Rule) -> tuple[Sequence[float], Sequence[float]]:
    """Upper and lower limits by level of a rule whose levels are amounts and whose side tells the direction."""
    nothing = (math.nan,) * K
    up = nothing if rule.side == "below" else rule.levels
    return up, nothing if rule.side == "above" else tuple(-limit for limit in rule.levels)


def signed(rules: Sequence[Rule], *detectors: str) -> tuple[Limits, Ints, list[Rule]]:
    """The limits of the rules of these detectors, whose levels are amounts and whose side tells the direction; each
    rule's place there (0 for others); and the rules themselves, in order."""
    place = np.zeros(len(rules), np.int64)
    mine: list[Rule] = []
    for r, rule in enumerate(rules):
        if rule.detector in detectors:
            place[r] = len(mine)
            mine.append(rule)
    return Limits.of([(rule, *both_sides(rule)) for rule in mine]), place, mine


class Latched:
    """What is the same in all families whose levels come from a latch. State: that of the latch, and the family's own
    `memory`. `profile`: by row, its place in `limits`."""

    def __init__(self, rows: Rows, limits: Limits, profile: Ints, memory: Columns) -> None:
        self.rows = rows
        self.limits = limits
        self.profile = profile
        self.columns: Columns = at_rest(len(rows)) | memory
        self._busy = np.zeros(len(rows), bool)  # not at rest, as a latch is

    def loud(self, pairs: Pairs, reached: Bools) -> Bools:
        """By group, whether it needs the latch: its watch is not at rest, or its limits were `reached` (by pair)."""
        return pairs.any(reached) | self._busy.take(pairs.row)

    def carried(self, row: Ints) -> Columns:
        """The latches' state of these rows."""
        return {name: self.columns[name].take(row, axis=0) for name in STATE}

    def apply(self, patches: Sequence[Patch]) -> None:
        for patch in patches:
            self._put(patch)
            if "level" in patch.columns:
                state = {name: self.columns[name].take(patch.rows, axis=0) for name in ("level", "run")}
                self._busy[patch.rows] = ~resting(state)

    def _put(self, patch: Patch) -> None:
        write(self.columns, [patch])

    def level(self) -> NDArray[np.int8]:
        return self.columns["level"]

    def extremes(self, row: int) -> tuple[float, float, int]:
        columns = self.columns
        return float(columns["value"][row]), float(columns["peak"][row]), int(columns["peak_level"][row])


def _clear_band(upper: float, lower: float, rule: Rule) -> tuple[float, float]:
    """The bounds inside which a level is clear. Where the margins of a range's two bounds would leave nothing between
    (a sensor's own narrow range), each takes a quarter of the span."""
    hi, lo = upper - rule.clear_margin.of(upper), lower + rule.clear_margin.of(lower)
    if lo > hi:
        quarter = (upper - lower) / 4
        return upper - quarter, lower + quarter
    return hi, lo


def _one_sided(bound: Floats, nothing: Bools, unbounded: float) -> Floats:
    """A bound that is not there does not bind, unless the whole level is not there."""
    return np.where(np.isnan(bound) & ~nothing, unbounded, bound)


@dataclass(frozen=True, slots=True)
class Scan:
    """What `scan` found: changes of level (rows as `Pairs.row`), the pair at which each came (`where`), and the groups'
    new state."""

    verdicts: Verdicts
    where: Ints
    columns: Columns


def scan(
    limits: Limits,
    profile: Ints,
    carry: Columns,
    pairs: Pairs,
    at: Ints,
    x: Floats,
    shown: Floats | None = None,
    by_level: Floats | None = None,
) -> Scan:
    """Judge pairs. `profile` by group; `carry`: the groups' state so far; `at`, `x` by pair: event time and judged
    value, NaN where the detector has no verdict (such a reading neither extends nor breaks a run). `shown`: what is
    told instead of the judged value, where the two differ. `by_level` [pairs, 4]: the judged value of each level, where
    each has its own; they must order the levels as one value would."""
    shown = x if shown is None else shown
    if len(at) == len(pairs.row):
        return _scan_alone(limits, profile, carry, pairs, at, x, shown, by_level)
    n, head, tail, group = len(at), pairs.head, pairs.tail, pairs.group
    place = np.arange(n)
    p = profile[group]
    is_head = np.zeros(n, bool)
    is_head[head] = True
    known = ~np.isnan(x)
    has_unknown = not known.all()
    restart = _gaps(limits.max_gap[p], at, head, carry["last_at"])
    has_restart = bool(restart.any())

    levels: list[int] = []
    begun: list[Ints] = []
    cleared: list[Ints] = []
    holds: list[Bools] = []
    met: list[Bools] = []
    done: list[Bools] = []
    run, clear = np.full((len(head), K), NEVER), np.full((len(head), K), NEVER)
    any_c = np.zeros(n, bool)
    hi_c = np.zeros(n, bool)
    for k in range(K):
        if not limits.exists[profile, k].any():
            continue
        y = x if by_level is None else by_level[:, k]
        hi = y >= limits.hi_raise[p, k]
        c = hi | (y <= limits.lo_raise[p, k])
        cl = (y <= limits.hi_clear[p, k]) & (y >= limits.lo_clear[p, k])
        any_c |= c
        hi_c |= hi
        if has_unknown:
            c = _filled(c, known, restart, carry["run"][:, k] != NEVER, head, group, place)
            cl = _filled(cl, known, restart, carry["clear"][:, k] != NEVER, head, group, place)
        began = _run_starts(c, carry["run"][:, k], at, head, is_head, restart if has_restart else None, place)
        cleared_from = _run_starts(cl, carry["clear"][:, k], at, head, is_head, restart if has_restart else None, place)
        levels.append(k)
        begun.append(began)
        cleared.append(cleared_from)
        holds.append(c)
        met.append(c & known & (at - began >= limits.hold[p, k]))
        done.append(cl & known & (at - cleared_from >= limits.clear_hold[p]))
        run[:, k] = np.where(c[tail], began[tail], NEVER)
        clear[:, k] = np.where(cl[tail], cleared_from[tail], NEVER)

    before_batch = carry["level"].astype(np.int64)
    level = np.zeros(n, np.int8)
    rising = np.zeros(n, bool)
    for i in range(len(levels) - 1, -1, -1):
        k = levels[i]
        rising |= met[i]  # a level met latches those below it, and a higher level's limit implies a lower's
        there = limits.exists[:, k]
        latched = _latched(rising & there[p], done[i], (before_batch > k) & there[profile], head, place)
        np.copyto(level, np.int8(k + 1), where=latched & (level == 0))
        clear[:, k] = np.where(latched[tail], clear[:, k], NEVER)

    previous = np.empty(n, np.int8)
    previous[1:] = level[:-1]
    previous[head] = carry["level"]
    last_c = np.maximum.accumulate(np.where(any_c, place, -1))
    side = np.where(hi_c, 1, -1).astype(np.int8)
    side = np.where(last_c >= head[group], side[last_c], carry["side"][group])
    # The state after the last pair. Whatever is not needed at rest is set to its resting value, so that equal
    # histories give equal states, however they were cut into batches.
    holding = np.zeros(n, bool)
    for c in holds:
        holding |= c
    rest = ~holding & (level == 0)
    resting_tail = rest[tail]
    last_rest = np.maximum.reduceat(np.where(rest, place, -1), head)
    score = np.where(known & ~rest, _score(limits, p, x), -np.inf)
    counts = place > last_rest[group]
    best = np.maximum.reduceat(np.where(counts, score, -np.inf), head)
    where_best = np.minimum.reduceat(np.where(counts & (score == best[group]), place, n), head)
    carried = (last_rest < 0) & (carry["score"] >= best)
    peak = np.where(carried, carry["peak"], shown[np.minimum(where_best, n - 1)])
    changed = np.flatnonzero(level != previous)
    verdicts = Verdicts.none()
    if len(changed):
        peaks = _peaks(changed, rest, score, shown, carry, pairs)
        verdicts = _verdicts(limits, pairs, p, at, shown, previous, level, side, levels, begun, cleared, changed, peaks)
    last_zero = np.maximum.reduceat(np.where(level == 0, place, -1), head)
    peak_level = np.maximum.reduceat(np.where(place > last_zero[group], level, np.int8(0)), head)
    peak_level = np.where(last_zero < 0, np.maximum(peak_level, carry["peak_level"]), peak_level)
    last_known = np.maximum.reduceat(np.where(known, place, -1), head)
    value = np.where(last_known >= 0, shown[last_known], carry["value"])
    columns: Columns = {
        "run": run,
        "clear": clear,
        "level": level[tail],
        "peak_level": peak_level.astype(np.int8),
        "side": np.where(resting_tail, np.int8(0), side[tail]),
        "last_at": np.where(resting_tail | (limits.max_gap[profile] == FOREVER), NEVER, at[tail]),
        "value": np.where(resting_tail, np.nan, value),
        "peak": np.where(resting_tail, np.nan, peak),
        "score": np.where(resting_tail, -np.inf, np.where(carried, carry["score"], best)),
    }
    return Scan(verdicts, changed, columns)


def _scan_alone(
    limits: Limits, p: Ints, carry: Columns, pairs: Pairs, at: Ints, x: Floats, shown: Floats, by_level: Floats | None
) -> Scan:  # fmt: skip
    """What `scan` comes to for groups of one pair each, which are nearly all of a large city's: in half of the time, as
    nothing has to be carried from pair to pair. By pair and level where `scan` goes level by level."""
    known = ~np.isnan(x)
    y = x[:, None] if by_level is None else by_level
    hi = y >= limits.hi_raise.take(p, axis=0)
    c = hi | (y <= limits.lo_raise.take(p, axis=0))
    cl = (y <= limits.hi_clear.take(p, axis=0)) & (y >= limits.lo_clear.take(p, axis=0))
    side = np.where(c.any(axis=1), np.where(hi.any(axis=1), np.int8(1), np.int8(-1)), carry["side"])
    max_gap = limits.max_gap.take(p)
    restart = (carry["last_at"] != NEVER) & (at - carry["last_at"] > max_gap)
    run, clear = carry["run"], carry["clear"]
    if restart.any():
        run, clear = np.where(restart[:, None], NEVER, run), np.where(restart[:, None], NEVER, clear)
    runs, clears = run != NEVER, clear != NEVER
    if not known.all():
        c, cl = np.where(known[:, None], c, runs), np.where(known[:, None], cl, clears)
    begun, cleared = np.where(runs, run, at[:, None]), np.where(clears, clear, at[:, None])
    met = c & known[:, None] & (at[:, None] - begun >= limits.hold.take(p, axis=0))
    done = cl & known[:, None] & (at[:, None] - cleared >= limits.clear_hold.take(p)[:, None])
    rising = np.logical_or.accumulate(met[:, ::-1], axis=1)[:, ::-1]  # a level met latches those below it
    previous = carry["level"]
    latched = limits.exists.take(p, axis=0) & (rising | ((previous[:, None] >= _LEVELS) & ~done))
    level = (latched * _LEVELS).max(axis=1)

    is_zero = level == 0
    rest = is_zero & ~c.any(axis=1)
    score = np.where(known & ~rest, _score(limits, p, x), -np.inf)
    carried = carry["score"] >= score
    changed = np.flatnonzero(level != previous)
    verdicts = Verdicts.none()
    if len(changed):
        peaks = _peaks(changed, rest, score, shown, carry, pairs)
        verdicts = _verdicts(
            limits, pairs, p, at, shown, previous, level, side, [*range(K)], [*begun.T], [*cleared.T], changed, peaks
        )  # fmt: skip
    columns: Columns = {
        "run": np.where(c, begun, NEVER),
        "clear": np.where(cl & latched, cleared, NEVER),
        "level": level,
        "peak_level": np.where(is_zero, np.int8(0), np.maximum(level, carry["peak_level"])),
        "side": np.where(rest, np.int8(0), side),
        "last_at": np.where(rest | (max_gap == FOREVER), NEVER, at),
        "value": np.where(rest, np.nan, np.where(known, shown, carry["value"])),
        "peak": np.where(rest, np.nan, np.where(carried, carry["peak"], shown)),
        "score": np.where(rest, -np.inf, np.where(carried, carry["score"], score)),
    }
    return Scan(verdicts, changed, columns)


def _gaps(max_gap: Ints, at: Ints, head: Ints, last_at: Ints) -> Bools:
    """Mask of the pairs that come more than `max_gap` after the one before."""
    gap = np.zeros(len(at), np.int64)
    np.subtract(at[1:], at[:-1], out=gap[1:])
    gap[head] = np.where(last_at == NEVER, 0, at[head] - last_at)
    return np.asarray(gap > max_gap)


def _filled(mask: Bools, known: Bools, restart: Bools, carried: Bools, head: Ints, group: Ints, place: Ints) -> Bools:
    """The mask with pairs without a verdict taking that of the pair before (of the carried state, for the first), or
    False where a gap broke the run there."""
    last = np.maximum.accumulate(np.where(known | restart, place, -1))
    return np.where(last >= head[group], mask[last] & known[last], carried[group])


def _run_starts(
    mask: Bools, carried: Ints, at: Ints, head: Ints, is_head: Bools, restart: Bools | None, place: Ints
) -> Ints:
    """For each pair in a run of `mask`, the run's start; meaningless elsewhere. A run that goes on from the carried
    state keeps its start."""
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    begins |= mask & is_head
    on = carried != NEVER
    if restart is not None:
        begins |= mask & restart
        on = on & ~restart[head]
    if on.any():
        at = at.copy()
        at[head[on]] = carried[on]
    return at[np.maximum.accumulate(np.where(begins, place, 0))]


def _latched(rises: Bools, falls: Bools, carried: Bools, head: Ints, place: Ints) -> Bools:
    """Set by `rises`, reset by `falls` (never both), else as at the pair before; the first pair starts from
    `carried`."""
    event = np.where(rises, place * 2 + 1, np.where(falls, place * 2, -1))
    quiet = event[head] < 0
    event[head[quiet]] = head[quiet] * 2 + carried[quiet]
    return np.asarray((np.maximum.accumulate(event) & 1).astype(bool))


def _score(limits: Limits, p: Ints, x: Floats) -> Floats:
    """How far a value lies in the rule's direction; comparable within one watch only."""
    hi, lo = limits.mildest_hi[p], limits.mildest_lo[p]
    both = np.maximum(x - hi, lo - x)
    return np.where(np.isnan(hi), -x, np.where(np.isnan(lo), x, both))


def _peaks(changed: Ints, rest: Bools, score: Floats, x: Floats, carry: Columns, pairs: Pairs) -> Floats:
    """The extreme value since the watch left rest, at each of the `changed` pairs; `score` is -inf where a pair has
    none. Of equal ones the first."""
    n, head, group = len(x), pairs.head, pairs.group
    first = np.zeros(n, bool)
    first[head] = True
    first[1:] |= rest[:-1]
    rank = np.empty(n, np.int64)
    rank[np.lexsort((-np.arange(n), score))] = np.arange(n)
    best = np.maximum.accumulate(np.cumsum(first) * n + rank) % n  # the highest rank since the last `first`
    where = np.empty(n, np.int64)
    where[rank] = np.arange(n)
    found = where[best[changed]]
    g = group[changed]
    begun = np.maximum.accumulate(np.where(first, np.arange(n), 0))[changed]
    carried = (begun == head[g]) & (carry["score"][g] >= score[found])
    return np.where(carried, carry["peak"][g], np.where(np.isinf(score[found]), np.nan, x[found]))


def _verdicts(
    limits: Limits,
    pairs: Pairs,
    p: Ints,
    at: Ints,
    x: Floats,
    previous: NDArray[np.int8],
    level: NDArray[np.int8],
    side: NDArray[np.int8],
    levels: list[int],
    begun: list[Ints],
    cleared: list[Ints],
    changed: Ints,
    peaks: Floats,
) -> Verdicts:
    before, after, profile = previous[changed], level[changed], p[changed]
    up = after > before
    told = np.where(up, after, before) - 1
    use_hi = side[changed] > 0
    threshold = np.where(use_hi, limits.hi_limit[profile, told], limits.lo_limit[profile, told])
    since = np.zeros(len(changed), np.int64)
    unset = np.ones(len(changed), bool)
    for i, k in enumerate(levels):
        here = up & (after == k + 1)
        since[here] = begun[i][changed[here]]
        # The lowest level left decides when the alert comes down: levels are visited upwards, the first one wins.
        here = ~up & unset & (k + 1 > after) & limits.exists[profile, k]
        since[here] = cleared[i][changed[here]]
        unset &= ~here
    row = pairs.row[pairs.group[changed]]
    return Verdicts(row, at[changed], before, after, x[changed], threshold, since, peaks)
