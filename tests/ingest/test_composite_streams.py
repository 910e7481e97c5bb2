"""Rules over other rules: whatever the order, the batches and the restarts, what each minute by itself says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.engine import EngineState
from alerts.judge import judge
from alerts.lifecycle import AlertBook
from alerts.rules import RuleSet, parse_rules
from ingest.judgement import Decision, Judgement, Snapshot
from ingest.replay import Replay
from tests.ingest.test_judgement import KINDS, START, Kept, standing, written
from twin.catalog import Catalog
from twin.model import HOUR, MINUTE, SECOND, Alert, AlertEvent, AlertState, Indices, Ints, RawMessage, Readings, Sensor

MEMBERS = """
[[rule]]
id = "high"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, orange = 25 }
clear = { hold = "1min" }

[[rule]]
id = "rising"
role = "condition"
kind = "drainage.ponding_depth"
detector = "rate"
window = "5min"
levels = { yellow = 20 }

[[rule]]
id = "pump"
role = "condition"
kind = "drainage.pump_running"
detector = "threshold"
levels = { blue = 1 }

[[rule]]
id = "rain"
role = "condition"
kind = "drainage.rainfall"
detector = "threshold"
levels = { blue = 1 }
"""
COMPOSED = """
[[rule]]
id = "no-pump"
detector = "composite"
all = ["high"]
not = ["pump"]
hold = "4min"
clear = { hold = "3min" }
level = "orange"

[[rule]]
id = "in-rain"
detector = "composite"
all = [{ rule = "high", window = "6min" }, { rule = "rain", on = "city", window = "9min" }]
level = "blue"
level_from = ["high"]
level_up = 1

[[rule]]
id = "after-rain"
detector = "composite"
all = ["high"]
not = [{ rule = "rain", on = "city", window = "10min" }]

[[rule]]
id = "both"
detector = "composite"
any = [{ rule = "high", sensors = 2 }, { all = ["high", "rising"], window = "2min" }]

[[rule]]
id = "quick"
detector = "composite"
on = "sensor"
all = ["high", "rising"]

[[rule]]
id = "together"
detector = "neighbours"
of = "high"
at_least = "orange"
within = "50m"
window = "6min"
level = "red"
"""
RULES = parse_rules(MEMBERS + COMPOSED, KINDS)
IDS = {rule.id for rule in RULES.rules[4:]}
LAST = 140  # minutes; by then everything that ends has ended
A, B = "station-a", "station-b"
SENSORS = (
    Sensor("d0", "v", "drainage.ponding_depth", "cm", asset=A, lon=114.0, lat=22.5),
    Sensor("d1", "v", "drainage.ponding_depth", "cm", asset=A, lon=114.0, lat=22.5),
    Sensor("p0", "v", "drainage.pump_running", "bool", asset=A),
    Sensor("d2", "v", "drainage.ponding_depth", "cm", asset=B, lon=114.0003, lat=22.5),
    Sensor("r0", "v", "drainage.rainfall", "mm"),
)


def catalog(sensors: Sequence[Sensor] = SENSORS) -> Catalog:
    result = Catalog(KINDS)
    result.put(list(enumerate(sensors)))
    return result


Reading = tuple[int, int, float]  # sensor, minute, value
Told = tuple[str, str, str, int, int, float | None]


def oracle(stream: Sequence[Reading]) -> list[tuple[str, str, int, int, float | None]]:
    """`(rule, subject, minute, level, value)` of every change, from the definition: each minute on its own. The level
    of what cleared is negative."""
    ordered = sorted(stream)
    s, m, v = (np.array(column) for column in zip(*ordered, strict=True))
    at = (START + m * MINUTE).astype(np.int64)
    plain = parse_rules(MEMBERS.replace('role = "condition"', ""), KINDS)
    told = judge(
        plain, catalog(), Readings(s.astype(np.int32), at, at, v.astype(np.float64), np.zeros(len(s), np.uint8))
    )
    level = np.zeros((len(plain), len(SENSORS), LAST + 1), int)
    for t in sorted(told.transitions, key=lambda t: t.observed_at):
        level[t.rule, t.sensor, (t.observed_at - START) // MINUTE :] = t.after
    high, rising, pump, rain = (level[n] for n in range(4))

    def lasting(holds: np.ndarray, window: int) -> np.ndarray:
        return np.array([holds[max(0, n - window) : n + 1].any() for n in range(LAST + 1)])

    found = []

    def follow(
        rule: str, subject: str, holds: np.ndarray, levels: Callable[[int], int],
        hold: int = 0, clear: int = 0, count: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        before = 0
        for n in range(LAST + 1):
            now = before
            if not before and n >= hold and holds[n - hold : n + 1].all():
                now = levels(n)
            elif before:
                now = levels(n) if holds[max(0, n - clear) : n + 1].any() else 0
            if now != before:
                found.append((rule, subject, n, now or -before, None if count is None else float(count[n])))
            before = now

    rain_10, rain_9 = lasting(rain[4] > 0, 10), lasting(rain[4] > 0, 9)
    for asset, depths in ((A, [0, 1]), (B, [3])):
        any_high = (high[depths] > 0).any(axis=0)
        worst = high[depths].max(axis=0)
        if asset == A:
            follow("no-pump", asset, any_high & ~(pump[2] > 0), lambda n: 3, hold=4, clear=3)
        up = np.where(worst > 0, np.minimum(worst + 1, 4), 1)
        follow("in-rain", asset, lasting(any_high, 6) & rain_9, lambda n, up=up: int(up[n]))
        follow("after-rain", asset, any_high & ~rain_10, lambda n: 2)
        quick = lasting(any_high & (rising[depths] > 0).any(axis=0), 2)
        follow("both", asset, quick | ((high[depths] > 0).sum(axis=0) >= 2), lambda n: 2)
    for n in (0, 1, 3):
        follow("quick", SENSORS[n].id, (high[n] > 0) & (rising[n] > 0), lambda n: 2)
        spots = [lasting((high[d] >= 3).any(axis=0), 6) for d in ([0, 1], [3])]
        count = spots[0].astype(int) + spots[1]
        follow("together", SENSORS[n].id, lasting(high[n] >= 3, 6) & (count >= 2), lambda n: 4, count=count)
    return sorted(found, key=str)


class Service:
    """A judgement with its archive, and what a restart finds of it."""

    def __init__(self, rules: RuleSet = RULES, sensors: Sequence[Sensor] = SENSORS) -> None:
        self.rules = rules
        self.sensors = sensors
        self.kept = Kept()
        self.batches = 0
        self.now = self._judgement()
        self.now.keep_snapshot(self.now.snapshot(0, START))
        self._save()

    def _judgement(self) -> Judgement:
        return Judgement(
            catalog(self.sensors), self.rules, 1, lateness=24 * HOUR, default_tenant="default", max_bytes=1 << 20
        )  # fmt: skip

    def _save(self) -> None:
        self.saved_state, self.saved, self.tail = self.now.state.copy(), written(self.now), []

    def checkpoint(self) -> None:
        self.now.keep_snapshot(self.now.snapshot(self.batches, START + self.batches * SECOND))
        self._save()

    def commit(self, decision: Decision) -> None:
        self.kept.commit(decision)
        self.now.apply(decision)
        self.tail.append(decision.outcome.readings)
        self.batches += 1

    def take(self, batch: Sequence[Reading], at: int = START) -> None:
        raw = [
            RawMessage(
                f"cim/v1/default/{self.sensors[s].device}/telemetry",
                orjson.dumps({"ts": (START + m * MINUTE) // 1000, "values": {self.sensors[s].property: v}}),
                START + 1000 * MINUTE + n,
            )
            for n, (s, m, v) in enumerate(batch)
        ]
        self.commit(self.now.decide(raw, self.now.decode(raw), self.kept, at))

    def tick(self, minute: int) -> None:
        self.commit(self.now.tick(START + minute * MINUTE, False, self.kept))

    def restart(self) -> None:
        tail = Readings.join(self.tail)
        self.now = now = self._judgement()
        now.state = self.saved_state.copy()
        now.snapshots = [
            Snapshot(s.batch, s.taken_at, s.observed_at.copy(), EngineState.from_bytes(s.engine.to_bytes()))
            for s in self.saved
        ]
        now.engine.restore(now.snapshots[-1].engine)
        now.book = AlertBook(a for a in self.kept.alert_rows.values() if a.state is not AlertState.CLEARED)
        now.state.apply(tail)
        now.recover(tail, self.kept)

    def told(self) -> list[tuple[str, str, int, int, float | None]]:
        """What stands of composites, as the oracle says it."""
        assert not self.now.engine.failures
        return sorted(
            (
                (
                    e.rule, e.sensor or e.asset or "", (e.observed_at - START) // MINUTE,
                    -e.level if e.transition == "cleared" else e.level, e.value,
                )
                for e in standing(self.kept.events)
                if e.rule in IDS
            ),
            key=str,
        )  # fmt: skip


depths = st.sampled_from([0.0, 5.0, 10.0, 12.0, 25.0, 30.0])
switches = st.sampled_from([0.0, 1.0])
streams = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 60)), st.tuples(depths, switches), min_size=1, max_size=60
).map(lambda found: [(s, m, v[1] if s in (2, 4) else v[0]) for (s, m), v in found.items()])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    streams, st.randoms(use_true_random=False), st.integers(1, 12), st.lists(st.integers(0, 9), max_size=12),
    st.booleans(),
)  # fmt: skip
def test_any_order_batching_ticks_and_restarts_come_to_what_each_minute_says(
    stream: list[Reading], random: object, size: int, doings: list[int], shuffled: bool
) -> None:
    arriving = sorted(stream, key=lambda r: (r[1], r[0]))
    if shuffled:
        random.shuffle(arriving)  # type: ignore[attr-defined]
    service = Service()
    for n, begin in enumerate(range(0, len(arriving), size)):
        service.take(arriving[begin : begin + size], START + n * SECOND)
        doing = doings[n % len(doings)] if doings else 0
        if doing in (1, 2):
            service.restart()
        elif doing in (3, 4):
            service.tick(30 * n)
        elif doing == 5:
            service.tick(1100 + n)
        elif doing == 6:
            service.checkpoint()
    service.tick(1200)
    assert service.told() == oracle(stream)
    active = [a for a in service.kept.alert_rows.values() if a.state.is_active and a.rule in IDS]
    open_now = {(RULES.rules[r].id, subject, level) for r, subject, level in service.now.engine.composites.open()}
    assert {(a.rule, a.sensor or a.asset, a.level) for a in active} == open_now
    assert {e.rule for e in service.kept.events} <= {"high", *IDS}  # nobody is told of conditions


def test_a_member_that_never_opened_after_all_takes_its_composite_back() -> None:
    service = Service()
    service.take([(3, 1, 0.0), (3, 3, 25.0)])
    assert [t[:3] for t in service.told() if t[0] == "quick"] == [("quick", "d2/v", 3)]
    service.take([(3, 0, 30.0)])
    service.tick(1200)
    assert service.told() == oracle([(3, 0, 30.0), (3, 1, 0.0), (3, 3, 25.0)])
    assert not any(t[0] == "quick" for t in service.told())


class Tape:
    """What a service left behind, as a replay reads it."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        everything = kept.history(np.arange(len(SENSORS), dtype=np.int32), np.full(len(SENSORS), -1))
        self.all = everything.take(np.lexsort((everything.sensor, everything.observed_at)))

    def rules(self) -> list[tuple[int, int, str]]:
        return [(1, 0, RULES.text)]

    def readings(self, sensors: Indices, starts: Ints, first: int, end: int) -> Readings:
        since = np.full(len(SENSORS), 1 << 62)
        since[sensors] = np.maximum(starts, first)
        return self.all.take((self.all.observed_at >= since[self.all.sensor]) & (self.all.observed_at < end))

    def read_ahead(self, *what: object) -> None:
        """Nothing: all is here."""

    def received_within(self, *what: object) -> tuple[int, int]:
        return 0, 0

    def last_observed_before(self, *what: object) -> int:
        return 0

    def events(self, start: int, end: int) -> list[AlertEvent]:
        return [event for event in self.kept.events if start <= event.observed_at < end]

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        return [self.kept.alert_rows[id_] for id_ in ids]

    def open_between(self, start: int, end: int) -> tuple[list[Alert], list[AlertEvent]]:
        return list(self.kept.alert_rows.values()), self.events(0, end)


MOMENTS = st.integers(0, 90).map(lambda minute: START + minute * MINUTE)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    streams, st.lists(MOMENTS, min_size=2, max_size=2), st.lists(MOMENTS, max_size=3), st.integers(1, 60),
    st.sampled_from([None, [3, 4], [0, 1, 2, 4]]),
)  # fmt: skip
def test_a_replay_tells_of_composites_what_was_told_live(
    stream: list[Reading], ends: list[int], seeks: list[int], pace: int, some: list[int] | None
) -> None:
    service = Service()
    for n, reading in enumerate(stream):
        service.take([reading], START + n * SECOND)
    service.tick(1200)
    start, end = min(ends), max(ends) + MINUTE
    sensors = None if some is None else np.array(some, np.int32)
    replay = Replay(Tape(service.kept), catalog(), lambda text: RULES, start, end, sensors=sensors)
    replay.prepare()
    for moment in [*seeks, start]:
        replay.seek(moment)
    while replay.time < end:
        replay.advance(replay.time + pace * MINUTE // 2)
    assert not replay.judgement.engine.failures
    assert str(replay.digest) == str(replay.recorded_digest())
