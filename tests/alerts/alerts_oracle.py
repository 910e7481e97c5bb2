"""The detectors again, as slow and plain as they can be said: one watch, one reading after the other."""

from __future__ import annotations

import datetime
import math
import statistics
from dataclasses import dataclass, field

import numpy as np

from alerts.parameters import Accumulating, Drifting, Nightly, Seasonal
from alerts.rules import Rule

Event = tuple[
    str, str, int, int, int, float, float, int
]  # rule, sensor, observed_at, before, after, value, limit, since


@dataclass
class LimitWatch:
    """threshold and range, and every detector with limits once the value that they bear on is known."""

    rule: Rule
    upper: dict[int, float]
    lower: dict[int, float]
    level: int = 0
    side: str = ""
    last_at: int | None = None
    run: dict[int, int] = field(default_factory=dict)
    clear: dict[int, int] = field(default_factory=dict)

    def holds(self, k: int, v: float) -> str:
        strict = self.rule.strict or self.rule.detector == "range"
        if k in self.upper and (v > self.upper[k] if strict else v >= self.upper[k]):
            return "upper"
        if k in self.lower and (v < self.lower[k] if strict else v <= self.lower[k]):
            return "lower"
        return ""

    def is_clear(self, k: int, v: float) -> bool:
        strict = self.rule.strict or self.rule.detector == "range"
        inside = True
        if k in self.upper:
            bound = self.upper[k] - self.rule.clear_margin.of(self.upper[k])
            inside &= v <= bound if strict else v < bound
        if k in self.lower:
            bound = self.lower[k] + self.rule.clear_margin.of(self.lower[k])
            inside &= v >= bound if strict else v > bound
        return inside

    def see(
        self, t: int, v: float | None, by_level: dict[int, float] | None = None
    ) -> tuple[int, int, float, float, int] | None:
        """`v` None: no verdict at this reading, but it was there. `by_level`: where each level has its own value."""
        gap = self.rule.max_gap
        if gap is not None and self.last_at is not None and t - self.last_at > gap:
            self.run.clear()
            self.clear.clear()
        self.last_at = t
        if v is None:
            return None
        before, levels = self.level, sorted({*self.upper, *self.lower})
        of = by_level or dict.fromkeys(levels, v)
        for k in levels:
            side = self.holds(k, of[k])
            if side:
                self.side = side
                self.run.setdefault(k, t)
            else:
                self.run.pop(k, None)
            if self.is_clear(k, of[k]):
                self.clear.setdefault(k, t)
            else:
                self.clear.pop(k, None)
        fallen = [k for k in levels if k in self.clear and t - self.clear[k] >= self.rule.clear_hold]
        if fallen and min(fallen) <= self.level:
            self.level = max([k for k in levels if k < min(fallen)], default=0)
            since = self.clear[min(fallen)]
        met = [k for k in levels if k in self.run and t - self.run[k] >= self.rule.hold[k - 1]]
        if met and max(met) > self.level:
            self.level = max(met)
            since = self.run[self.level]
        if self.level == before:
            return None
        told = max(self.level, before)
        limits = self.upper if self.side == "upper" else self.lower
        return before, self.level, of[told], limits[told], since


@dataclass
class StuckWatch:
    rule: Rule
    anchor: float | None = None
    since: int = 0
    count: int = 0
    level: int = 0
    last_at: int | None = None

    def see(self, t: int, v: float) -> tuple[int, int, float, float, int] | None:
        rule, before = self.rule, self.level
        gap = rule.max_gap is not None and self.last_at is not None and t - self.last_at > rule.max_gap
        self.last_at = t
        if self.anchor is None or abs(v - self.anchor) > rule.tolerance:
            self.anchor, self.since, self.count, self.level = v, t, 1, 0
        elif gap:
            self.since, self.count = t, 1
        else:
            self.count += 1
        if self.count >= 3 and t - self.since >= rule.stuck_for and self.anchor not in rule.excepted:
            self.level = int(rule.level)
        return None if self.level == before else (before, self.level, v, rule.stuck_for / 1e6, self.since)


def change(rule: Rule, series: list[tuple[int, float]], i: int, *, exact: bool) -> float | None:
    """The change at reading `i`, by the full history (`exact`), or by each grid bucket's first and the one before."""
    t, v = series[i]
    bucket = -(-rule.window // 16)
    candidates = []
    for j in range(i):
        at, value = series[j]
        is_first = j == 0 or series[j - 1][0] // bucket != at // bucket
        if at >= t - rule.window and (exact or is_first or j == i - 1):
            candidates.append((at, value))
    return v - min(candidates)[1] if candidates else None


def sums(rule: Rule, series: list[tuple[int, float]], i: int, *, exact: bool) -> dict[int, float]:
    """The sum by level at reading `i`: of all in (t - window, t] (`exact`), or of those in its buckets."""
    assert isinstance(rule.parameters, Accumulating)
    width = -(-max(rule.parameters.windows) // 144)
    found = {}
    for k, window in enumerate(rule.parameters.windows, 1):
        if not window:
            continue
        total, t = 0, series[i][0]
        for j in range(i + 1):
            at, amount = series[j]
            if rule.parameters.is_counter:
                before = series[j - 1][1] if j else amount
                before, amount = max(before, 0.0), max(amount, 0.0)
                amount = amount - before if amount >= before else amount
            is_inside = at > t - window if exact else -(-at // width) > -(-t // width) - max(window // width, 1)
            total += round(max(amount, 0.0) * 1e6) if is_inside else 0
        found[k] = total / 1e6
    return found


def added(values: list[float]) -> float:
    """Their sum, one after the other: what `sum` does depends on Python's version."""
    total = 0.0
    for value in values:
        total += value
    return total


@dataclass
class Hour:
    """What one hour of one kind of day has shown."""

    centre: float = 0.0
    spread: float = 0.0
    days: int = 0
    other: float = 0.0
    others: int = 0


@dataclass
class SeasonalWatch:
    rule: Rule
    inner: LimitWatch
    hours: dict[tuple[bool, int], Hour] = field(default_factory=dict)
    hour: int | None = None
    near: list[float] = field(default_factory=list)
    away: list[float] = field(default_factory=list)
    centre: float = 0.0
    unit: float | None = None
    slopes: tuple[float, float] = (0.0, 0.0)
    bound: float = math.inf

    def bucket(self, hour: int) -> Hour:
        own = self.rule.parameters
        assert isinstance(own, Seasonal)
        day = hour // 24
        is_off = (datetime.date(1970, 1, 1) + datetime.timedelta(day)).weekday() >= 5
        is_off = (is_off or day in own.days_off) and day not in own.workdays
        return self.hours.setdefault((is_off, hour % 24), Hour())

    def beside(self, hour: int, step: int) -> Hour:
        """The hour before or after, as on a day of the same kind."""
        is_off = next(kind for kind, n in self.hours if self.hours[kind, n] is self.bucket(hour))
        return self.hours.get((is_off, (hour + step) % 24), Hour())

    def learn(self) -> None:
        own = self.rule.parameters
        assert isinstance(own, Seasonal)
        assert self.hour is not None
        h = self.bucket(self.hour)
        if len(self.away) > len(self.near):
            h.others += 1
            mean = self.centre + added(self.away) / len(self.away)
            h.other = float(np.float32(h.other + (mean - h.other) / h.others))
            kinds = [self.hours.get((is_off, self.hour % 24), Hour()) for is_off in (False, True)]
            if sum(kind.others for kind in kinds) >= own.accept:
                h.centre, h.other, h.others = h.other, 0.0, 0
            return
        weight, n = min(h.days + 1, 14), len(self.near)
        h.centre = float(np.float32(self.centre + added(self.near) / n / weight))
        h.spread = float(np.float32(h.spread + (added([abs(d) for d in self.near]) / n - h.spread) / weight))
        h.days, h.other, h.others = h.days + 1, 0.0, 0

    def see(self, t: int, v: float) -> tuple[int, int, float, float, int] | None:
        own = self.rule.parameters
        assert isinstance(own, Seasonal)
        hour = (t + own.utc_offset) // 3_600_000_000
        if hour != self.hour:
            if self.hour is not None:
                self.learn()
            self.hour, self.near, self.away = hour, [], []
            h = self.bucket(hour)
            self.centre = h.centre if h.days else v
            before, after = (self.beside(hour, step) for step in (-1, 1))
            self.slopes = (
                h.centre - before.centre if h.days and before.days else 0.0,
                after.centre - h.centre if h.days and after.days else 0.0,
            )
            units = {"amount": 1.0, "percent": abs(h.centre) / 100}
            units["sigmas"] = 1.2533 * h.spread + 1e-3 * abs(h.centre) + 1e-9
            self.bound = 8 * units["sigmas"] if h.days else math.inf
            self.unit = units[own.measure] if h.days >= own.warm_up and units[own.measure] > 0 else None
        part = (t + own.utc_offset) % 3_600_000_000 / 3_600_000_000 - 0.5
        usual = self.centre + part * self.slopes[part >= 0]
        d = v - usual
        mildest = min(limit for limit in self.rule.levels if not math.isnan(limit))
        is_away = self.unit is not None and abs(d) >= mildest * self.unit
        if is_away:
            self.away.append(d)
        else:
            self.near.append(min(max(d, -self.bound), self.bound))
        told = self.inner.see(t, None if self.unit is None else d / self.unit)
        if told is None or self.unit is None:
            return None
        level, now, _, limit, since = told
        return level, now, v, usual + limit * self.unit, since


@dataclass
class BlockWatch:
    """night and cusum: the readings of a block, judged at the first reading after it."""

    rule: Rule
    inner: LimitWatch
    block: int | None = None
    readings: list[float] = field(default_factory=list)
    usual: float = 0.0
    nights: list[float] = field(default_factory=list)
    learnt: int = 0
    away: int = 0
    mean: float = 0.0
    spread: float = 0.0
    sums: dict[int, float] = field(default_factory=lambda: {1: 0.0, -1: 0.0})
    grown: dict[int, int] = field(default_factory=dict)
    lately: float = 0.0

    def see(self, t: int, v: float) -> tuple[int, int, int, float, float, int] | None:
        own = self.rule.parameters
        assert isinstance(own, Nightly | Drifting)
        if isinstance(own, Nightly):
            day, inside = divmod(t + own.utc_offset - own.begin, 86_400_000_000)
            block, counts = (day, True) if inside < own.length else (day + 0.5, False)
            end = int(self.block or 0) * 86_400_000_000 - own.utc_offset + own.begin + own.length
        else:
            block, counts = (t + own.utc_offset) // own.every, True
            end = ((self.block or 0) + 1) * own.every - own.utc_offset
        told = None
        if block != self.block:
            if self.readings:
                judged = self.night(end) if isinstance(own, Nightly) else self.drift(end)
                told = None if judged is None else (t, *judged)
            self.block, self.readings = block, []
        if counts:
            self.readings.append(v)
        return told

    def is_full(self) -> bool:
        full = self.usual > 0 and len(self.readings) >= 0.5 * self.usual
        self.usual = max(len(self.readings), 0.8 * self.usual)
        return full

    def night(self, end: int) -> tuple[int, int, float, float, int] | None:
        own = self.rule.parameters
        assert isinstance(own, Nightly)
        flow = added(self.readings) / len(self.readings) if own.of == "mean" else min(self.readings)
        full = self.is_full()
        middle = statistics.median(self.nights[-14:]) if self.nights else math.nan
        known = full and len(self.nights) >= own.warm_up and middle > 0
        change = 100 * (flow - middle) / middle if known else None
        mildest = min(limit for limit in self.rule.levels if not math.isnan(limit))
        is_away = change is not None and abs(change) >= mildest
        if full:
            self.away = self.away + 1 if is_away else 0
            if not is_away or self.away > own.accept:
                self.nights.append(flow)
        told = self.inner.see(end, change)
        if told is None:
            return None
        before, after, _, limit, since = told
        return before, after, flow, middle * (1 + limit / 100), since

    def drift(self, end: int) -> tuple[int, int, float, float, int] | None:
        own = self.rule.parameters
        assert isinstance(own, Drifting)
        x, full, mean = added(self.readings) / len(self.readings), self.is_full(), self.mean
        levels = [limit for limit in self.rule.levels if not math.isnan(limit)]
        sigma = 1.2533 * self.spread + 1e-3 * abs(mean) + 1e-9
        judged = full and self.learnt >= own.warm_up
        z = min(max((x - mean) / sigma, -8.0), 8.0)
        if judged:
            for sign in (1, -1) if self.rule.side == "either" else (1,) if self.rule.side == "above" else (-1,):
                if self.sums[sign] == 0:
                    self.grown[sign] = end - own.every
                self.sums[sign] = min(max(self.sums[sign] + sign * z - own.slack, 0.0), max(levels))
        most = max(self.sums.values())
        sign = 1 if self.sums[1] >= self.sums[-1] else -1
        edge, drift, begun = mean + sign * own.slack * sigma, sign * self.sums[sign], self.grown.get(sign, 0)
        if full and (not judged or most < min(levels) / 2):
            away = min(max(x - mean, -4 * sigma), 4 * sigma) if judged else x - mean
            self.learnt = min(self.learnt + 1, max(60, own.warm_up))
            self.mean = mean + away * (1 / self.learnt)
            if self.learnt > 1:
                wide = abs(away) * math.sqrt((self.learnt - 1) / self.learnt)
                self.spread += (wide - self.spread) / (self.learnt - 1)
        if judged:
            is_out = most >= min(levels)
            self.lately += (x - self.lately) / (self.away + 1) if is_out else 0
            was, self.away = self.away, self.away + 1 if is_out else 0
            if (was and not is_out) or self.away > own.accept:
                self.mean = self.lately if self.away > own.accept else self.mean
                self.sums, drift, self.away, self.lately = {1: 0.0, -1: 0.0}, 0.0, 0, 0.0
        told = self.inner.see(end, drift if judged else None)
        if told is None:
            return None
        before, after, _, _, since = told
        return before, after, x, edge, begun if after > before else since


def judge(rule: Rule, sensor: str, series: list[tuple[int, float]], low: float, high: float) -> list[Event]:
    """What `rule` says to one sensor's readings, in order of time."""
    events: list[Event] = []
    if rule.detector == "anomaly":
        assert len(series) < 500  # says nothing as long as it learns; what it says then is in test_anomaly.py
        return events
    limits = {k + 1: limit for k, limit in enumerate(rule.levels) if not math.isnan(limit)}
    up = {} if rule.side == "below" else limits
    down = {} if rule.side == "above" else {k: -limit for k, limit in limits.items()}
    if rule.detector in ("baseline", "night", "cusum"):
        learning = (SeasonalWatch if rule.detector == "baseline" else BlockWatch)(rule, LimitWatch(rule, up, down))
        for t, v in series:
            found = learning.see(t, v)
            if found is not None:
                events.append((rule.id, sensor, *(found if rule.detector != "baseline" else (t, *found))))
        return events
    if rule.detector == "stuck":
        watch: LimitWatch | StuckWatch = StuckWatch(rule)
    elif rule.detector == "range":
        least = low if rule.min is None else rule.min
        most = high if rule.max is None else rule.max
        level = int(rule.level)
        watch = LimitWatch(rule, {} if math.isnan(most) else {level: most}, {} if math.isnan(least) else {level: least})
    elif rule.detector in ("rate", "accumulate"):
        watch = LimitWatch(rule, up, down)
    else:
        watch = LimitWatch(rule, limits if rule.side == "above" else {}, limits if rule.side == "below" else {})
    for i, (t, v) in enumerate(series):
        if rule.detector == "rate":
            assert isinstance(watch, LimitWatch)
            told = watch.see(t, change(rule, series, i, exact=False))
        elif rule.detector == "accumulate":
            assert isinstance(watch, LimitWatch)
            told = watch.see(t, 0.0, sums(rule, series, i, exact=False))
        else:
            told = watch.see(t, v)
        if told is not None:
            events.append((rule.id, sensor, t, *told))
    return events
