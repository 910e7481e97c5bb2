"""What people do, and what holds alerts back, never changes what readings cause: over random streams, deeds and
restarts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.engine import EngineState
from alerts.holds import FLAG_OF
from alerts.lifecycle import JUDGEMENTS, AlertBook, Docket
from alerts.rules import parse_rules
from ingest.judgement import Judgement, Snapshot
from tests.ingest.test_judgement import KINDS, RULES, START, Kept, catalog, compared, messages, run, streams, written
from twin.model import HOUR, MINUTE, SECOND, Alert, AlertState, Conflict, Hold, Readings

HOLDING = (
    RULES.replace('id = "ponding"', 'id = "ponding"\nlatch = true\nchatter = { times = 2, within = "20min" }')
    + """
[[inhibit]]
source = { rule = "rising" }
target = { rule = ["ponding", "still"] }
equal = ["sensor"]
"""
)


class Shift:
    """A judgement under `HOLDING`, people who do something between the batches, and what a database would keep."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.kept = Kept()
        self.holds: dict[str, Hold] = {}
        self.over = catalog()
        self.at = START
        self.now = self.fresh()
        self.now.keep_snapshot(self.now.snapshot(0, START))
        self.tail: list[Readings] = []
        self.saved = self.now.state.copy(), written(self.now)

    def fresh(self) -> Judgement:
        rules = parse_rules(HOLDING, KINDS)
        return Judgement(self.over, rules, 1, lateness=24 * HOUR, default_tenant="default", max_bytes=1 << 20)

    def commit(self, decision: Any) -> None:
        self.kept.commit(decision)
        self.holds |= {hold.id: hold for hold in decision.outcome.holds}
        self.now.apply(decision)

    def take(self, batch: Sequence[Any]) -> None:
        raw = messages(batch)
        self.at += 20 * SECOND
        decision = self.now.decide(raw, self.now.decode(raw), self.kept, self.at)
        self.commit(decision)
        self.tail.append(decision.outcome.readings)

    def do_something(self) -> None:
        docket = self.now.docket(self.at)
        docket.load(self.kept.alert_rows.values())
        try:
            self.deed(docket, self.luck.choice([None, *self.kept.alert_rows.values()]))
        except Conflict:
            return
        self.commit(self.now.decision_of(docket))

    def deed(self, docket: Docket, alert: Alert | None) -> None:
        luck = self.luck
        kind = luck.choice(sorted(FLAG_OF))
        until = self.at + luck.randrange(1, 5) * MINUTE
        if alert is None:
            matchers = {"rule": (luck.choice(["ponding", "rising", "still"]),), "level": ("blue", "orange")}
            docket.begin_hold(Hold("", "silence", matchers, self.at + MINUTE * luck.randrange(3), until + 4 * MINUTE))
        elif kind in ("shelve", "out_of_service"):
            docket.hold_point(alert, kind, until, "li", None)
        elif kind == "silence":
            docket.acknowledge(alert, "li", None)
        elif kind == "mute":
            docket.judge_by_people(alert, luck.choice(["confirmed", "false_alarm"]), "li", None)
        elif kind == "suppress":
            docket.close(alert, "li", None)
        else:
            docket.assign(alert, luck.choice(["li", "wang"]), "li", None)

    def tick(self) -> None:
        self.at += 30 * SECOND
        self.commit(self.now.tick(self.at, True, self.kept))

    def checkpoint(self, number: int) -> None:
        self.now.keep_snapshot(self.now.snapshot(number, self.at))
        self.saved, self.tail = (self.now.state.copy(), written(self.now)), []

    def restart(self) -> None:
        now = self.fresh()
        now.state = self.saved[0].copy()
        now.snapshots = [
            Snapshot(s.batch, s.taken_at, s.observed_at.copy(), EngineState.from_bytes(s.engine.to_bytes()))
            for s in self.saved[1]
        ]
        now.engine.restore(now.snapshots[-1].engine)
        now.book = AlertBook(a for a in self.kept.alert_rows.values() if a.state is not AlertState.CLEARED)
        now.holds.put(self.holds.values())
        now.holds.refit(now.rules.inhibits, now.rules.chatters, now.book.open.values())
        since = Readings.join(self.tail)
        now.state.apply(since)
        now.recover(since, self.kept)
        self.now = now


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams, st.randoms(use_true_random=False), st.integers(1, 12), st.integers(0, 20), st.integers(0, 2**30))
def test_whatever_people_do_and_hold_back_readings_cause_the_same_events(
    stream: dict[tuple[int, int], float | None], order: random.Random, size: int, restart: int, seed: int
) -> None:
    arriving = sorted(((s, m, v) for (s, m), v in stream.items()), key=lambda r: (r[1], r[0]))
    expected = run([arriving])
    order.shuffle(arriving)
    shift = Shift(seed)
    for n, begin in enumerate(range(0, len(arriving), size)):
        shift.take(arriving[begin : begin + size])
        shift.do_something()
        shift.tick()
        if n % 3 == 2:
            shift.checkpoint(n)
        if n == restart:
            shift.restart()
    assert compared([e for e in shift.kept.events if e.transition in (*JUDGEMENTS, "withdrawn")]) == compared(
        expected.events
    )
    # Flags and events tell the same, and looked at afresh nothing is held back otherwise.
    last = {event.alert_id: event.flags for event in shift.kept.events}
    assert {id_: alert.flags for id_, alert in shift.kept.alert_rows.items()} == last
    shift.tick()
    shift.restart()
    assert shift.now.decision_of(shift.now.docket(shift.at), shift.at).outcome.events == []
