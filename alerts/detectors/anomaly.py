"""anomaly: readings that are unlike what their sensor has shown before, without a limit that anybody wrote.

Each reading is looked at in six ways (`PARTS`): far above or below the long-run level; a change from the reading
before that the time of day does not explain; far from what is usual at this hour of the day (or of the week, where that
is nearer); several readings together away from there; and a signal that has gone quiet. Each is a number whose upper
tail is learnt by sensor: above a high quantile the excesses follow a generalised Pareto distribution (peaks over
threshold, Siffer et al. 2017, doi 10.1145/3097983.3098144), fitted by moments that forget; so each says how improbable
the reading is for this sensor. The least probable way counts, its surprise being -log10 of that probability. A reading
with a surprise of `GATE` or more is a hit; for `COOL` readings after a hit only a clearly greater surprise is one.

An alert is raised at a hit so improbable among the sensor's own past surprises (the same tail, over these) that the
budget of false alarms allows it. It clears after `CALM` readings in a row are ordinary again, or after `ACCEPT`
readings: by then a new level is taken to be the new normal.

All settings are fixed; everything is counted in readings or in the readings' own time; nothing looks ahead. Missing
readings change nothing. `value` of a transition is the reading, `threshold` the nearer edge of what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alerts.detectors.rows import NEVER, Batch, Columns, Pairs, Patch, Rows, Verdicts, write
from alerts.rules import Rule
from twin.model import DAY, HOUR, SECOND, Bools, Floats, Ints

PARTS: Final = ("above", "below", "change", "season", "run", "quiet")
LEAVE_OUT: Final = (*PARTS, "week", "cooldown", "calibration")  # what can be left out, to see what it contributes
OVERALL: Final = len(PARTS)  # the place of the tail over the surprises themselves

MEMORY: Final = 2000.0  # readings; the level, the scale and the tails forget at this pace
WARM: Final = 100  # readings before a sensor is judged at all
LEARNT: Final = 500  # readings before it can raise an alert
TAIL: Final = 0.02  # the share of readings that lie in the tail
SHAPE: Final = 0.1  # of the tail, before anything is known of it; slightly heavier than exponential
SHAPE_MOST: Final = 0.45  # moments up to the second must exist
PRIOR: Final = 5.0  # excesses that what is assumed beforehand weighs as much as
START: Final = 30  # readings before the tails begin to learn
SLOW: Final = 0.02
FAST: Final = 2.0
RUN: Final = 12  # readings that are looked at together
ACTIVITY: Final = 30  # readings over which a signal may go quiet
GATE: Final = 3.0  # surprise of a hit: once in a thousand readings
COOL: Final = 100  # readings after a hit
GREATER: Final = 1.3  # times the last hit's surprise, to be told within that
ORDINARY: Final = 2.0  # surprise below which a reading is ordinary
CALM: Final = 12
ACCEPT: Final = 200
HOURS: Final = 24
WEEK: Final = 7 * HOURS
AT_ONCE: Final = 4096  # rows computed together: what is in between then stays in the processor's cache
ACCEPTED: Final = len(PARTS) + 1  # the note of an alert that ends so; a part's is its place from 1 on
YEAR: Final = 365.25 * DAY
LARGEST: Final = 1e100  # beyond it a value is no measurement, and its square may be none either

_SCALARS: Final = (
    "seen", "last", "normal", "scale", "seasonal", "restless", "activity", "run", "residual", "step", "hit",
    "cool", "calm", "age", "worst",
)  # fmt: skip
_AT_REST: Final = (
    ("limit", np.nan), ("peak", np.nan), ("worst", 0), ("note", 0), ("calm", 0), ("calm_at", NEVER),
)  # fmt: skip
_TAILS: Final = ("edge", "mean", "weight", "excesses", "excess", "square")


class Changed(NamedTuple):
    """Columns of the rows that changed level, as `Verdicts` has them."""

    which: Ints
    was: NDArray[np.int8]
    became: NDArray[np.int8]
    limit: Floats
    since: Ints
    peak: Floats
    note: NDArray[np.int8]


class AnomalyWatches:
    """All watches of anomaly rules. State by row: `t_*` [rows, 7], the tails of the six parts and of the surprises;
    `day_*` [rows, 24], `week_*` [rows, 168], the usual value of each hour; scalars beside them. `without`: what of
    `LEAVE_OUT` is left out."""

    def __init__(self, rows: Rows, level: NDArray[np.int8], budget: Floats, without: Sequence[str] = ()) -> None:
        self.rows = rows
        self.severity = level
        self.budget = budget
        self.without = frozenset(without)
        n = len(rows)
        self.columns: Columns = {name: np.zeros(n) for name in _SCALARS}
        self.columns |= {f"t_{name}": np.zeros((n, OVERALL + 1)) for name in _TAILS}
        self.columns |= {"day_value": np.zeros((n, HOURS), np.float32), "day_scale": np.zeros((n, HOURS), np.float32)}
        self.columns |= {"week_value": np.zeros((n, WEEK), np.float32), "week_count": np.zeros((n, WEEK), np.uint8)}
        self.columns |= {"day_count": np.zeros((n, HOURS), np.uint16), "level": np.zeros(n, np.int8)}
        self.columns |= {"last_at": np.full(n, NEVER), "calm_at": np.full(n, NEVER), "note": np.zeros(n, np.int8)}
        self.columns |= {"peak": np.full(n, np.nan), "limit": np.full(n, np.nan)}

    @classmethod
    def build(cls, rules: Sequence[Rule], rows: Rows, low: Floats, high: Floats) -> AnomalyWatches:
        level = np.array([int(rule.level) for rule in rules] or [0], np.int8)[rows.rule]
        budget = np.array([rule.budget for rule in rules] or [1.0])[rows.rule]
        return cls(rows, level, budget)

    def subset(self, rows: Rows, origin: Ints) -> AnomalyWatches:
        return AnomalyWatches(rows, self.severity[origin], self.budget[origin], tuple(self.without))

    def observe(self, batch: Batch) -> tuple[Verdicts, list[Patch]]:
        pairs = Pairs.watched(self.rows, batch)
        if pairs is None:
            return Verdicts.none(), []
        order = np.argsort(-pairs.count, kind="stable")  # so that those with a k-th reading come first
        score = np.zeros(len(batch.sensor))
        patches: list[Patch] = []
        found: list[tuple[Any, ...]] = []
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            for begin in range(0, len(order), AT_ONCE):
                patches += [self._block(batch, pairs, order[begin : begin + AT_ONCE], score, found)]
        if not found:
            return Verdicts.none().scored(score), patches
        return Verdicts(*(np.concatenate(column) for column in zip(*found, strict=True))).scored(score), patches

    def _block(self, batch: Batch, pairs: Pairs, order: Ints, score: Floats, found: list[tuple[Any, ...]]) -> Patch:
        """The groups `order`, longest first: their readings one after the other, all groups together. Fills in
        `score` and `found` (columns of `Verdicts`)."""
        head, count, row = pairs.head[order], pairs.count[order], pairs.row[order]
        state = {name: np.ascontiguousarray(column[row].T) for name, column in self.columns.items()}
        severity, budget = self.severity[row], self.budget[row]
        active = np.searchsorted(-count, -np.arange(1, int(count[0]) + 1), "right").tolist()
        for k, m in enumerate(active):
            reading = pairs.reading[head[:m] + k]
            part = {name: column[..., :m] for name, column in state.items()} if m < len(row) else state
            at, value = batch.at[reading], batch.value[reading]
            surprise, changed = self._step(part, at, value, severity[:m], budget[:m])
            # Several rules of this kind may look at one sensor; they differ in what they raise, and so a little in
            # what they have learnt.
            score[reading] = np.maximum(score[reading], surprise / (surprise + GATE))
            if changed is not None:
                which, was, became, limit, since, peak, note = changed
                found.append((row[which], at[which], was, became, value[which], limit, since, peak, note))
        return Patch(row, {name: column.T for name, column in state.items()})

    def _step(
        self, s: Columns, at: Ints, x: Floats, severity: NDArray[np.int8], budget: Floats
    ) -> tuple[Floats, Changed | None]:
        """One reading of each row: its surprise as told, and what changed level. `s` is changed in place."""
        on = np.isfinite(x) & (np.abs(x) < LARGEST)
        if not on.all():
            x = np.where(on, x, s["last"])
        rows = np.arange(len(x))
        fresh = s["seen"] == 0
        last, normal = np.where(fresh, x, s["last"]), np.where(fresh, x, s["normal"])
        seen = s["seen"] + on
        pace = 1 / np.clip(seen, 1, MEMORY)
        gap = np.where(fresh, 0, at - s["last_at"])
        step = s["step"] + np.where(on, (gap - s["step"]) * pace, 0)

        # The long-run level and scale. An outlier counts with 8 scales at most, once there is a scale.
        away = x - normal
        reach = np.abs(away)
        clipped = (seen >= WARM) & (s["scale"] > 1e-9 * reach)
        reach = np.where(clipped, np.minimum(reach, 8 * s["scale"]), reach)
        scale = s["scale"] + (reach - s["scale"]) * pace
        floor = 1e-3 * scale + 1e-7 * np.abs(normal) + 1e-12  # the finest difference that means anything

        # What is usual at this hour: the hour's own value and its neighbours', for a morning does not begin at a
        # full hour; and the same hour of the week.
        hour, hour_of_week = (at // HOUR) % HOURS, (at // HOUR) % WEEK
        visits = s["day_count"][hour, rows]
        known = visits > 0
        usual = np.where(known, s["day_value"][hour, rows], normal)
        residual = x - usual
        low = high = usual
        for beside in ((hour - 1) % HOURS, (hour + 1) % HOURS):
            there = np.where(s["day_count"][beside, rows] > 0, s["day_value"][beside, rows], usual)
            low, high = np.minimum(low, there), np.maximum(high, there)
        off = np.where(x > high, x - high, np.where(x < low, x - low, 0.0))
        week_visits, week_value = s["week_count"][hour_of_week, rows], s["week_value"][hour_of_week, rows]
        by_week = x - week_value
        off = np.where((week_visits > 0) & ("week" not in self.without) & (np.abs(by_week) < np.abs(off)), by_week, off)
        helps = known & (s["seasonal"] < scale)  # the hour tells more than the long-run level does
        spread = s["day_scale"][hour, rows]
        spread = (spread * visits + 2 * s["seasonal"]) / (visits + 2.0)
        relative = s["seasonal"] / np.maximum(0.25 * s["seasonal"] + 0.75 * spread, 1e-300)
        relative = np.where(s["seasonal"] > 0, relative, 1.0)

        change = np.abs(x - last)
        jump = np.where(helps, np.minimum(change, np.abs(residual - s["residual"])), change)
        unusual = np.where(helps, off, away)
        run = s["run"] + (unusual - s["run"]) / np.clip(seen, 1, RUN)
        activity = s["activity"] + (change - s["activity"]) / np.clip(seen, 1, ACTIVITY)
        moves = 0.02 * s["restless"] + floor
        quiet = np.log((s["restless"] + moves) / (activity + moves))
        y = np.stack([away, -away, jump, np.abs(off) * relative, np.abs(run), quiet])
        least = np.stack(
            [
                0.3 * scale + floor,
                0.3 * scale + floor,
                0.2 * scale + floor,
                0.2 * np.minimum(s["seasonal"], scale) + floor,
                0.1 * scale + floor,
                np.full(len(x), 0.1),
            ]
        )
        tail = {name: s[f"t_{name}"][:OVERALL] for name in _TAILS}
        surprise = _surprise(tail, y, least)
        if "calibration" in self.without:  # as if every part were Gaussian about zero
            surprise = np.minimum((y / (1.2533 * tail["mean"] + least)) ** 2 / (2 * np.log(10.0)), 30.0) * (y > 0)
        judged = (seen > WARM) & on
        surprise *= judged
        surprise[3] *= helps
        for number, name in enumerate(PARTS):
            if name in self.without:
                surprise[number] = 0
        note = np.argmax(surprise, axis=0)
        most = np.max(surprise, axis=0)
        overall = {name: s[f"t_{name}"][OVERALL:] for name in _TAILS}
        rarity = _surprise(overall, most[None], np.full((1, len(x)), 0.15))[0]

        # Hits, and what is told of the surprise.
        is_hit = most >= GATE
        resting = s["cool"] > 0
        if "cooldown" not in self.without:
            is_hit &= ~resting | (most > GREATER * s["hit"])
            told = np.where(resting & ~is_hit, np.minimum(most, GATE) / 3, most)
        else:
            told = most
        hit = np.where(is_hit, np.where(resting, np.maximum(most, s["hit"]), most), s["hit"])
        cool = np.where(is_hit, COOL, np.maximum(s["cool"] - 1, 0))
        self._write(s, on, {"hit": hit, "cool": cool})
        # The changes of level are decided on what was known before this reading.
        was_free = on & (s["level"] == 0)
        before = (normal, last, usual, relative, helps)
        changed = self._alert(
            s, at, x, on, is_hit, most, rarity, severity, budget, step, note, tail | {"least": least}, before
        )

        # What is learnt from the reading. What an alert is about is not what is usual, and the sums over several
        # readings must be full.
        free = was_free & (s["level"] == 0)
        settled = free & (seen > START)
        _learn(tail, y, np.stack([settled, settled, settled, settled & known, settled, settled]))
        # The reading that raises is one of the past surprises, else the budget would not hold; how far out it lies
        # beyond doubt is not learnt, else the next one would have to be greater still.
        _learn(overall, np.minimum(most, 2 * GATE)[None], (judged & was_free)[None])
        moved = np.minimum(np.abs(residual), 10 * scale)
        share = np.maximum(1 / (visits + 1.0), 0.02)
        learnt = np.where(known, usual + residual * share, x)
        s["day_scale"][hour, rows] += np.where(free & known, (moved - s["day_scale"][hour, rows]) * share, 0)
        s["day_value"][hour, rows] = np.where(free, learnt, s["day_value"][hour, rows])
        s["day_count"][hour, rows] = np.minimum(visits + free.astype(np.int64), 60_000)
        share = np.maximum(1 / (week_visits + 1.0), 0.02)
        s["week_value"][hour_of_week, rows] = np.where(free, week_value + by_week * share, week_value)
        s["week_count"][hour_of_week, rows] = np.minimum(week_visits + free.astype(np.int64), 250)
        new = {"seasonal": s["seasonal"] + (moved - s["seasonal"]) * pace, "normal": normal + away * pace}
        new |= {"restless": s["restless"] + (change - s["restless"]) * pace, "scale": scale}
        self._write(s, free, new)
        new = {"activity": activity, "residual": residual, "run": run, "last": x, "step": step}
        self._write(s, on, new | {"last_at": at, "seen": seen})
        if changed is not None:
            self._accept(s, changed)
        return told, changed

    @staticmethod
    def _write(s: Columns, on: Bools, new: dict[str, NDArray[Any]]) -> None:
        for name, value in new.items():
            np.copyto(s[name], value, where=on, casting="same_kind")

    def _alert(
        self, s: Columns, at: Ints, x: Floats, on: Bools, is_hit: Bools, most: Floats, rarity: Floats,
        severity: NDArray[np.int8], budget: Floats, step: Floats, note: Ints, tail: Columns,
        expected: tuple[Floats, Floats, Floats, Floats, Bools],
    ) -> Changed | None:  # fmt: skip
        """Raise and clear; `expected`: the long-run level, the reading before, the hour's usual value, the weight of
        this hour's spread, whether the hour counts."""
        is_open = s["level"] > 0
        chance = budget * np.maximum(step, SECOND) / YEAR  # of a false alert at any one reading
        raises = is_hit & ~is_open & (s["seen"] + 1 >= LEARNT) & (rarity >= -np.log10(np.minimum(chance, 1e-3)))
        if not (is_open.any() or raises.any()):
            return None
        ordinary = most < ORDINARY
        calm = np.where(is_open & ordinary, s["calm"] + 1, 0)
        age = np.where(is_open, s["age"] + 1, 0)
        calm_at = np.where(calm == 1, at, s["calm_at"])
        clears = is_open & on & ((calm >= CALM) | (age >= ACCEPT))
        self._write(s, on, {"calm": calm, "age": age, "calm_at": np.where(calm > 0, calm_at, NEVER)})
        worse = on & (raises | (is_open & (most > s["worst"])))
        self._write(s, worse, {"worst": most, "peak": x})
        which = np.flatnonzero(raises | clears)
        up = raises[which]
        limit = _limits(which, x, note, tail, expected)
        s["limit"][which] = np.where(up, limit, s["limit"][which])
        s["note"][which] = np.where(up, note[which] + 1, s["note"][which])
        s["level"][which] = np.where(up, severity[which], 0)
        since = np.where(up | (calm[which] < CALM), at[which], calm_at[which])
        was = np.where(up, 0, severity[which]).astype(np.int8)
        told = np.where(up, s["note"][which], np.where(calm[which] < CALM, ACCEPTED, 0)).astype(np.int8)
        changed = Changed(which, was, s["level"][which], s["limit"][which], since, s["peak"][which], told)
        down = which[~up]
        for name, rest in _AT_REST:
            s[name][down] = rest
        return changed if len(which) else None

    @staticmethod
    def _accept(s: Columns, changed: Changed) -> None:
        """What stayed away until its alert ended by age is the new normal, at every hour."""
        cleared = changed.which[changed.became == 0]
        settled = cleared[s["age"][cleared] >= ACCEPT]
        shift = s["run"][settled]
        s["normal"][settled] += shift
        s["day_value"][:, settled] += np.where(s["day_count"][:, settled] > 0, shift, 0)
        s["week_value"][:, settled] += np.where(s["week_count"][:, settled] > 0, shift, 0)
        s["run"][settled] = 0
        s["age"][cleared] = 0
        s["cool"][cleared] = COOL  # the tails have the new normal to learn

    def apply(self, patches: Sequence[Patch]) -> None:
        write(self.columns, patches)

    def resting(self) -> Bools:
        return np.asarray((self.columns["seen"] == 0) & (self.columns["level"] == 0))

    def level(self) -> NDArray[np.int8]:
        return self.columns["level"]

    def extremes(self, row: int) -> tuple[float, float, int]:
        columns = self.columns
        return float(columns["last"][row]), float(columns["peak"][row]), int(columns["level"][row])


def _fit(t: Columns, least: Floats) -> tuple[Floats, Floats, Floats]:
    """Rate, shape and size of the tail beyond its edge: excesses follow a generalised Pareto distribution by the method
    of moments, leaning on an assumed one as long as there are few."""
    number = t["excesses"]
    mean = t["excess"] / (number + 1e-9)
    variance = np.maximum(t["square"] / (number + 1e-9) - mean * mean, 1e-12 * mean * mean + 1e-300)
    trust = number / (number + PRIOR)
    shape = trust * 0.5 * (1 - mean * mean / variance) + (1 - trust) * SHAPE
    shape = np.clip(shape, 1e-3, SHAPE_MOST)
    size = np.maximum((t["excess"] + PRIOR * t["mean"]) / (number + PRIOR) * (1 - shape), least)
    rate = np.minimum((number + 1) / (t["weight"] + 1 / TAIL), 0.1)
    return rate, shape, size


def _surprise(t: Columns, y: Floats, least: Floats) -> Floats:
    """-log10 of the probability that the tail's number reaches `y`; 0 below its edge."""
    rate, shape, size = _fit(t, least)
    beyond = np.maximum(y - t["edge"], 0) / size
    surprise = np.log1p(shape * beyond) / shape / np.log(10.0) - np.log10(rate)
    return np.where(y > t["edge"], np.minimum(surprise, 30.0), 0.0)


def _learn(t: Columns, y: Floats, on: Bools) -> None:
    """The tail takes `y` in, where `on`: its edge moves towards the quantile, its moments forget."""
    weight = t["weight"]
    keeps = np.where(weight + 1 > MEMORY, 1 - 1 / MEMORY, 1.0)
    mean = t["mean"] + (np.abs(y) - t["mean"]) * np.maximum(1 / (weight + 1), 1 / MEMORY)
    beyond = y > t["edge"]
    # An excess counts with 20 usual ones at most, once there are some. Where most readings are alike, as of rain, what
    # is usual beyond the edge says more than what is usual at all.
    most = np.where(t["excesses"] < 10, np.inf, 20 * (mean + t["excess"] / np.maximum(t["excesses"], 1)))
    excess = np.where(beyond, np.minimum(y - t["edge"], most), 0.0)
    edge = t["edge"] + np.maximum(SLOW, FAST / (weight + 1)) * mean * (beyond - TAIL)
    new = {
        "excess": t["excess"] * keeps + excess,
        "square": t["square"] * keeps + excess * excess,
        "excesses": t["excesses"] * keeps + beyond,
        "weight": weight * keeps + 1,
        "edge": np.where(weight < 1, y, edge),
        "mean": mean,
    }
    for name, value in new.items():
        np.copyto(t[name], value, where=on)


def _limits(
    which: Ints, x: Floats, note: Ints, tail: Columns, expected: tuple[Floats, Floats, Floats, Floats, Bools]
) -> Floats:
    """The edge of what was expected on the reading's side, where its surprise reaches `GATE`."""
    part = note[which]
    own = {name: column[part, which] for name, column in tail.items()}
    rate, shape, size = _fit(own, own["least"])
    reach = own["edge"] + size / shape * np.expm1(shape * np.maximum(np.log(rate) + GATE * np.log(10.0), 0))
    normal, last, usual, relative, helps = (column[which] for column in expected)
    reach = np.where(part == 3, reach / relative, reach)
    usual = np.where(helps | (part == 3), usual, normal)
    centre = np.select([part <= 1, part == 2, part <= 4], [normal, last, usual], np.nan)
    return np.asarray(centre + np.where(x[which] >= centre, 1, -1) * reach)
