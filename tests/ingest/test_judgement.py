"""Batches, order, repetition and restarts do not change what is said: decided over random streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.engine import EngineState
from alerts.lifecycle import JUDGEMENTS, AlertBook
from alerts.rules import parse_rules
from ingest.judgement import Decision, Judgement, Snapshot
from twin.catalog import Catalog
from twin.model import (
    HOUR,
    MINUTE,
    SECOND,
    Alert,
    AlertEvent,
    AlertState,
    Bools,
    Indices,
    Ints,
    RawMessage,
    Readings,
    Sensor,
)
from twin.units import load_kinds

KINDS = load_kinds()
START = 1_790_000_000 * SECOND
RULES = """
[[rule]]
id = "ponding"
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { blue = 10, yellow = 15, orange = 25, red = 40 }
hold = { blue = "2min", yellow = "2min", orange = "1min", red = 0 }
clear = { margin = "10%", hold = "2min" }

[[rule]]
id = "rising"
kind = "drainage.ponding_depth"
detector = "rate"
window = "5min"
levels = { yellow = 20 }

[[rule]]
id = "still"
kind = "drainage.ponding_depth"
detector = "stuck"
for = "6min"
tolerance = 0.5
level = "blue"

[[rule]]
id = "outside"
kind = "drainage.ponding_depth"
detector = "range"
level = "orange"

[[rule]]
id = "sum"
kind = "drainage.ponding_depth"
detector = "accumulate"
window = { blue = "10min", orange = "3min" }
levels = { blue = 60, orange = 60 }

[[rule]]
id = "drift"
kind = "drainage.ponding_depth"
detector = "cusum"
every = "2min"
warm_up = 5
side = "either"
levels = { blue = 2 }

[[override]]
rule = "ponding"
sensor = "d1/depth"
levels = { blue = 12, red = 30 }
hold = { blue = "1min" }

[[override]]
rule = "still"
sensor = "d2/depth"
enabled = false
"""


class Kept:
    """What a database would hold, in memory: the test's own archive, checked against the real one in tests/system."""

    def __init__(self) -> None:
        self.readings: dict[tuple[int, int], tuple[int, float, int]] = {}
        self.events: list[AlertEvent] = []
        self.alert_rows: dict[str, Alert] = {}

    def known(self, sensor: Indices, observed_at: Ints, table: str = "readings") -> Bools:
        keys = zip(sensor.tolist(), observed_at.tolist(), strict=True)
        return np.array([key in self.readings for key in keys], bool)

    def history(self, sensor: Indices, after: Ints) -> Readings:
        since = dict(zip(sensor.tolist(), after.tolist(), strict=True))
        found = sorted((s, t, *self.readings[s, t]) for s, t in self.readings if s in since and t > since[s])
        columns = list(zip(*found, strict=True)) if found else [()] * 5
        return Readings(
            np.array(columns[0], np.int32),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.int64),
            np.array(columns[3], np.float64),
            np.array(columns[4], np.uint8),
        )

    def said(self, sensor: Indices, after: Ints) -> list[AlertEvent]:
        since = dict(zip(sensor.tolist(), after.tolist(), strict=True))
        judged = [e for e in standing(self.events) if e.transition in JUDGEMENTS]
        found = [e for e in judged if e.observed_at > since.get(e.sensor_index, 1 << 62)]
        return sorted(found, key=lambda e: (e.observed_at, e.seq))

    def course(self, ids: Sequence[str], rules: Sequence[str] = (), after: int = 0) -> list[AlertEvent]:
        asked = {*ids, *(a.id for a in self.alert_rows.values() if a.rule in rules and a.raised_at >= after)}
        found = [e for e in standing(self.events) if e.transition in JUDGEMENTS and e.alert_id in asked]
        return sorted(found, key=lambda e: (e.observed_at, e.seq))

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        return [self.alert_rows[i] for i in ids if i in self.alert_rows]

    def commit(self, decision: Decision) -> None:
        r = decision.outcome.readings
        for row in zip(
            *(c.tolist() for c in (r.sensor, r.observed_at, r.received_at, r.value, r.quality)), strict=True
        ):
            assert row[:2] not in self.readings, "a reading would be stored twice"
            self.readings[row[:2]] = row[2:]
        for event in decision.outcome.events:
            self.events.append(replace(event, seq=len(self.events) + 1))
        for alert in decision.outcome.alerts:
            self.alert_rows[alert.id] = alert


def standing(events: Sequence[AlertEvent]) -> list[AlertEvent]:
    """The judgements that were not taken back."""
    replaced = {e.replaces for e in events if e.replaces}
    return [e for e in events if e.transition != "withdrawn" and e.id not in replaced]


def compared(events: Sequence[AlertEvent]) -> list[tuple[object, ...]]:
    told = [(e.rule, e.sensor, e.transition, e.level, e.observed_at, e.value, e.threshold) for e in standing(events)]
    return sorted(told, key=str)


def catalog() -> Catalog:
    result = Catalog(KINDS)
    result.put(
        [(n, Sensor(f"d{n}", "depth", "drainage.ponding_depth", "cm", interval_s=60, min=0, max=60)) for n in range(3)]
    )
    return result


def judgement(over: Catalog, rules: str = RULES) -> Judgement:
    return Judgement(
        over, parse_rules(rules, KINDS), 1, lateness=24 * HOUR, default_tenant="default", max_bytes=1 << 20
    )


Reading = tuple[int, int, float | None]  # sensor, minute, value


def messages(readings: Sequence[Reading]) -> list[RawMessage]:
    return [
        RawMessage(
            f"cim/v1/default/d{s}/telemetry",
            orjson.dumps({"ts": (START + m * MINUTE) // 1000, "values": {"depth": v}}),
            START + 1000 * MINUTE + n,
        )
        for n, (s, m, v) in enumerate(readings)
    ]


def written(now: Judgement) -> list[Snapshot]:
    """The snapshots as a checkpoint writes them."""
    return [replace(s, observed_at=s.observed_at.copy()) for s in now.snapshots]


def run(
    batches: Sequence[Sequence[Reading]],
    restart_after: int = -1,
    checkpoint_every: int = 3,
    rules: str = RULES,
    city: Callable[[], Catalog] = catalog,
) -> Kept:
    kept = Kept()
    over = city()
    now = judgement(over, rules)
    now.keep_snapshot(now.snapshot(0, START))
    tail: list[Readings] = []
    saved_state, saved = now.state.copy(), written(now)
    for n, batch in enumerate(batches):
        raw = messages(batch)
        at = START + n * SECOND
        decision = now.decide(raw, now.decode(raw), kept, at)
        counts = decision.outcome.counts
        assert counts.received == counts.stored + counts.duplicate + counts.quarantined == len(batch)
        kept.commit(decision)
        now.apply(decision)
        tail.append(decision.outcome.readings)
        if n % checkpoint_every == checkpoint_every - 1:
            now.keep_snapshot(now.snapshot(n, at))
            saved_state, saved, tail = now.state.copy(), written(now), []
            for earlier in now.snapshots[:-1]:
                earlier.pack()
        if n == restart_after:
            now = judgement(over, rules)
            now.state = saved_state.copy()
            now.snapshots = [
                Snapshot(
                    s.batch,
                    s.taken_at,
                    s.observed_at.copy(),
                    s.engine if s.engine.packed else EngineState.from_bytes(s.engine.to_bytes()),
                )
                for s in saved
            ]
            now.engine.restore(now.snapshots[-1].engine)
            now.book = AlertBook(a for a in kept.alert_rows.values() if a.state is not AlertState.CLEARED)
            since = Readings.join(tail)
            now.state.apply(since)
            now.recover(since, kept)
    assert not now.engine.failures
    return kept


values = st.one_of(
    st.none(),
    st.sampled_from([0.0, 5.0, 9.4, 10.0, 13.0, 14.0, 15.0, 24.9, 25.0, 40.0, 55.0, 61.0, 130.0]),
    st.floats(0, 70, width=16),
)
streams = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 60)), values, min_size=1, max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams, st.randoms(use_true_random=False), st.integers(1, 12), st.integers(-1, 20), st.booleans())
def test_any_order_batching_repetition_and_restart_give_the_same_alert_events(
    stream: dict[tuple[int, int], float | None], random: object, size: int, restart: int, shuffled: bool
) -> None:
    ordered: list[Reading] = sorted(((s, m, v) for (s, m), v in stream.items()), key=lambda r: (r[1], r[0]))
    expected = run([ordered])
    arriving = list(ordered)
    if shuffled:
        random.shuffle(arriving)  # type: ignore[attr-defined]
    else:
        arriving += [(s, m, 33.0) for s, m, _ in ordered[:10]]  # repeated with another value: the first wins
    batches = [arriving[n : n + size] for n in range(0, len(arriving), size)]
    got = run(batches, restart)
    assert got.readings.keys() == expected.readings.keys()
    assert compared(got.events) == compared(expected.events)
    open_now = sorted(a.id for a in got.alert_rows.values() if a.state is not AlertState.CLEARED)
    assert open_now == sorted(a.id for a in expected.alert_rows.values() if a.state is not AlertState.CLEARED)
    for alert in expected.alert_rows.values():
        same = got.alert_rows[alert.id]
        assert (same.level, same.state, same.cleared_at, same.raised_at) == (
            alert.level, alert.state, alert.cleared_at, alert.raised_at,
        )  # fmt: skip


def test_a_late_reading_that_undoes_an_alert_withdraws_it_and_says_so() -> None:
    depths = [(0, 0, 12.0), (0, 2, 12.0), (0, 4, 12.0)]
    before = run([depths])
    assert [e.transition for e in before.events if e.rule == "ponding"] == ["raised"]
    after = run([depths, [(0, 1, 0.0)]])
    told = [e for e in after.events if e.rule == "ponding"]
    assert [(e.transition, e.is_retroactive) for e in told] == [
        ("raised", False), ("withdrawn", True), ("raised", True),
    ]  # fmt: skip
    assert told[1].replaces == told[0].id
    assert told[1].state is AlertState.CLEARED
    assert after.alert_rows[told[0].alert_id].flags == ("withdrawn",)


class Desk:
    """A judgement with its archive, taking readings and an acknowledgement by hand."""

    def __init__(self) -> None:
        self.now, self.kept = judgement(catalog()), Kept()
        self.now.keep_snapshot(self.now.snapshot(0, START))

    def take(self, readings: Sequence[Reading]) -> None:
        raw = messages(readings)
        self.commit(self.now.decide(raw, self.now.decode(raw), self.kept, START))

    def commit(self, decision: Decision) -> None:
        self.kept.commit(decision)
        self.now.apply(decision)

    def acknowledge(self) -> None:
        docket = self.now.docket(START)
        docket.acknowledge(next(iter(self.now.book.open.values())), "duty", None)
        self.commit(self.now.decision_of(docket))


def test_what_was_acknowledged_does_not_stay_so_when_it_gets_worse_beside_late_data() -> None:
    desk = Desk()
    desk.take([(0, 0, 12.0), (0, 3, 12.0)])
    desk.acknowledge()
    desk.take([(0, 1, 12.0), (0, 4, 45.0)])
    (alert,) = [a for a in desk.now.book.open.values() if a.rule == "ponding"]
    assert (alert.level, alert.state) == (4, AlertState.ACTIVE_UNACKNOWLEDGED)
    (told,) = [e for e in desk.kept.events if e.transition == "escalated"]
    assert told.state is AlertState.ACTIVE_UNACKNOWLEDGED


def test_late_readings_from_before_the_oldest_snapshot_leave_history_alone() -> None:
    desk = Desk()
    desk.take([(0, 0, 45.0), (0, 3, 0.0), (0, 6, 0.0), (0, 500, 0.0)])
    told = len(desk.kept.events)
    desk.now.snapshots = [desk.now.snapshot(1, START)]
    desk.kept.readings.clear()  # what retention dropped
    for minute in (400, 401, 402):
        desk.take([(0, minute, 0.0)])
    assert len(desk.kept.events) == told
    desk.take([(0, 501, 45.0)])
    assert [e.transition for e in desk.kept.events[told:] if e.rule == "ponding"] == ["raised"]


def test_what_was_acknowledged_stays_so_when_late_data_moves_its_beginning() -> None:
    desk = Desk()
    now, take = desk.now, desk.take
    take([(0, 0, 12.0), (0, 3, 12.0), (0, 5, 12.0)])
    desk.acknowledge()
    take([(0, 1, 0.0)])
    (alert,) = now.book.open.values()
    assert alert.raised_at == START + 5 * MINUTE
    assert alert.state is AlertState.ACTIVE_ACKNOWLEDGED


def test_a_change_of_a_rule_leaves_the_alerts_of_sensors_on_which_it_comes_to_the_same() -> None:
    rules = RULES.replace('[[override]]\nrule = "still"', '[[override]]\nrule = "ponding"\nsensor = "d2/depth"\n'
                          'clear = { hold = "9min" }\n\n[[override]]\nrule = "still"')  # fmt: skip
    one, kept = judgement(catalog()), Kept()
    one.refit(parse_rules(rules, KINDS), 1)
    batch = messages([(sensor, minute, 20.0) for minute in range(4) for sensor in range(3)])
    decision = one.decide(batch, one.decode(batch), kept, START)
    kept.commit(decision)
    one.apply(decision)
    assert {a.sensor for a in one.book.open.values() if a.rule == "ponding"} == {f"d{n}/depth" for n in range(3)}
    before = one.rules
    one.refit(parse_rules(rules.replace('"9min"', '"8min"'), KINDS), 2)
    assert [a.sensor for a in one.orphans(before)] == ["d2/depth"]
    # Other limits: on d1 an override gives all that the rule changes. d2 is orphaned already.
    before = one.rules
    one.refit(parse_rules(rules.replace('"9min"', '"8min"').replace("blue = 10", "blue = 11"), KINDS), 3)
    assert [a.sensor for a in one.orphans(before)] == ["d0/depth", "d2/depth"]
