"""The detectors again, as slow and plain as they can be said: one watch, one reading after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from alerts.rules import Rule

Event = tuple[
    str, str, int, int, int, float, float, int
]  # rule, sensor, observed_at, before, after, value, limit, since


@dataclass
class LimitWatch:
    """threshold and range, and rate once the change is known."""

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

    def see(self, t: int, v: float | None) -> tuple[int, int, float, float, int] | None:
        """`v` None: no verdict at this reading, but it was there."""
        gap = self.rule.max_gap
        if gap is not None and self.last_at is not None and t - self.last_at > gap:
            self.run.clear()
            self.clear.clear()
        self.last_at = t
        if v is None:
            return None
        before, levels = self.level, sorted({*self.upper, *self.lower})
        for k in levels:
            side = self.holds(k, v)
            if side:
                self.side = side
                self.run.setdefault(k, t)
            else:
                self.run.pop(k, None)
            if self.is_clear(k, v):
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
        return before, self.level, v, limits[told], since


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


def judge(rule: Rule, sensor: str, series: list[tuple[int, float]], low: float, high: float) -> list[Event]:
    """What `rule` says to one sensor's readings, in order of time."""
    events: list[Event] = []
    if rule.detector == "anomaly":
        assert len(series) < 500  # says nothing as long as it learns; what it says then is in test_anomaly.py
        return events
    limits = {k + 1: limit for k, limit in enumerate(rule.levels) if not math.isnan(limit)}
    if rule.detector == "stuck":
        watch: LimitWatch | StuckWatch = StuckWatch(rule)
    elif rule.detector == "range":
        least = low if rule.min is None else rule.min
        most = high if rule.max is None else rule.max
        level = int(rule.level)
        watch = LimitWatch(rule, {} if math.isnan(most) else {level: most}, {} if math.isnan(least) else {level: least})
    elif rule.detector == "rate":
        down = {k: -limit for k, limit in limits.items()}
        watch = LimitWatch(rule, {} if rule.side == "below" else limits, {} if rule.side == "above" else down)
    else:
        watch = LimitWatch(rule, limits if rule.side == "above" else {}, limits if rule.side == "below" else {})
    for i, (t, v) in enumerate(series):
        if rule.detector == "rate":
            assert isinstance(watch, LimitWatch)
            told = watch.see(t, change(rule, series, i, exact=False))
        else:
            told = watch.see(t, v)
        if told is not None:
            events.append((rule.id, sensor, t, *told))
    return events
