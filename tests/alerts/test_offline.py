"""Silence: the plain cases told one by one, and any batching and ticking against a plain reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from alerts_city import MINUTE, SECOND, T0, catalog, plain, rules, sensor
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.engine import Engine, EngineState
from twin.catalog import Catalog
from twin.model import Transition

TEXT = '[[rule]]\nid = "off"\nkind = "*"\ndetector = "offline"\nafter = "3x"\n'
CITY = catalog(
    sensor(0, interval_s=60),
    sensor(1, interval_s=60),
    sensor(2, interval_s=120),
    sensor(3, "gas.methane", interval_s=60),
    sensor(4, "gas.methane", interval_s=300),
    sensor(5, "gas.methane"),  # no interval: not watched by "3x"
)
Arrival = tuple[int, int, int]  # sensor, received_at, gateway


def hear(engine: Engine, arrivals: Iterable[Arrival]) -> list[Transition]:
    rows = list(arrivals)
    columns = np.array(rows, np.int64).reshape(-1, 3)
    told, update = engine.heard(columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2].astype(np.int32))
    engine.apply(update)
    return told


def tick(engine: Engine, now: int, deaf: bool = False) -> list[Transition]:
    told, update = engine.tick(now, deaf)
    engine.apply(update)
    return told


def short(told: Iterable[Transition]) -> list[tuple[object, int, int]]:
    return [(t.subject or t.sensor, (t.observed_at - T0) // SECOND, t.after) for t in told]


def new(text: str = TEXT, city: Catalog = CITY, gateways: tuple[str, ...] = ("east", "west")) -> Engine:
    engine = Engine(rules(text), city, T0)
    assert [engine.gateway(g) for g in gateways] == list(range(len(gateways)))
    return engine


def test_a_silent_sensor_raises_at_its_deadline_and_clears_with_the_first_message() -> None:
    engine = new()
    assert hear(engine, [(0, T0 + 10 * SECOND, -1)]) == []
    assert tick(engine, T0 + 190 * SECOND) == []  # not yet: the deadline itself is in time
    (raised,) = tick(engine, T0 + 500 * SECOND)
    assert short([raised]) == [(0, 190, 1)]
    assert (raised.since, raised.threshold) == (T0 + 10 * SECOND, 180.0)
    assert math.isnan(raised.value)
    assert tick(engine, T0 + 600 * SECOND) == []
    (cleared,) = hear(engine, [(0, T0 + 700 * SECOND, -1), (0, T0 + 701 * SECOND, -1)])
    assert short([cleared]) == [(0, 700, 0)]


def test_a_message_after_the_deadline_gives_both_events_though_no_tick_saw_it() -> None:
    engine = new()
    hear(engine, [(0, T0 + 10 * SECOND, -1)])
    assert short(hear(engine, [(0, T0 + 191 * SECOND, -1)])) == [(0, 190, 1), (0, 191, 0)]
    assert short(hear(engine, [(0, T0 + 371 * SECOND, -1)])) == []


def test_sensors_that_were_never_heard_or_have_no_interval_raise_nothing() -> None:
    engine = new()
    hear(engine, [(5, T0, -1)])
    assert tick(engine, T0 + 10**6 * SECOND) == []
    fixed = new(TEXT.replace('"3x"', '"5min"'))
    hear(fixed, [(5, T0, -1)])
    assert short(tick(fixed, T0 + 301 * SECOND)) == [(5, 300, 1)]


def test_our_own_deafness_and_start_move_the_deadline_on() -> None:
    engine = new()
    hear(engine, [(0, T0 + 1 * SECOND, -1), (1, T0 + 2 * SECOND, -1)])
    assert tick(engine, T0 + 100 * SECOND, deaf=True) == []
    assert tick(engine, T0 + 9000 * SECOND, deaf=True) == []
    assert hear(engine, [(1, T0 + 9500 * SECOND, -1)]) == []
    assert tick(engine, T0 + 10_000 * SECOND) == []
    assert short(tick(engine, T0 + 10_181 * SECOND)) == [
        ("domain/drainage", 10_180, 1),
        (0, 10_180, 1),
        (1, 10_180, 1),
    ]
    restarted = Engine(rules(TEXT), CITY, T0 + 20_000 * SECOND)
    hear(engine, [(0, T0 + 10_200 * SECOND, -1), (1, T0 + 10_200 * SECOND, -1), (3, T0 + 10_200 * SECOND, -1)])
    restarted.restore(engine.snapshot())
    assert tick(restarted, T0 + 20_100 * SECOND) == []
    assert sorted(t.observed_at for t in tick(restarted, T0 + 30_000 * SECOND)) == [T0 + 20_180 * SECOND] * 4


def test_a_silent_gateway_gives_one_alert_and_what_stays_silent_counts_from_its_return() -> None:
    engine = new()
    hear(engine, [(0, T0 + 10 * SECOND, 0), (1, T0 + 30 * SECOND, 0), (2, T0 + 40 * SECOND, 0)])
    told = tick(engine, T0 + 2000 * SECOND)
    assert short(told) == [("east/gateway", 220, 1), ("domain/drainage", 220, 1)]
    assert told[0].since == T0 + 40 * SECOND
    assert told[0].threshold == 180.0
    back = hear(engine, [(1, T0 + 3000 * SECOND, 0)])
    assert short(back) == [("east/gateway", 3000, 0), ("domain/drainage", 3000, 0)]
    assert tick(engine, T0 + 3180 * SECOND) == []
    later = hear(engine, [(1, T0 + 3100 * SECOND, 0), (1, T0 + 3250 * SECOND, 0)])
    assert short(later) == [(0, 3180, 1)]


def test_one_silent_sensor_behind_a_living_gateway_raises_on_its_own() -> None:
    engine = new()
    hear(engine, [(0, T0, 0), (1, T0, 0)])
    hear(engine, [(1, T0 + 100 * SECOND, 0)])
    assert tick(engine, T0 + 200 * SECOND) == []  # overdue, but it might be the gateway
    assert short(hear(engine, [(1, T0 + 210 * SECOND, 0)])) == [(0, 180, 1)]
    # Now the gateway falls silent too; the sensor that is known to be silent keeps its own alert.
    assert short(tick(engine, T0 + 999 * SECOND)) == [("east/gateway", 390, 1), ("domain/drainage", 390, 1)]
    assert short(hear(engine, [(0, T0 + 1000 * SECOND, 0)])) == [
        ("east/gateway", 1000, 0),
        ("domain/drainage", 1000, 0),
        (0, 1000, 0),
    ]


def test_a_domain_of_which_nothing_is_heard_gives_an_alert_of_its_own() -> None:
    engine = new()
    hear(engine, [(3, T0, -1), (4, T0 + 1 * SECOND, -1), (0, T0, -1)])
    told = tick(engine, T0 + 5000 * SECOND)
    assert sorted(map(str, short(told))) == sorted(
        map(str, [(0, 180, 1), (3, 180, 1), (4, 901, 1), ("domain/gas", 901, 1)])
    )


class Plain:
    """The reference: one arrival after the other, dictionaries, no shortcuts."""

    def __init__(self, engine: Engine) -> None:
        watches = engine.offline
        self.after = {int(s): int(a) for s, a in zip(watches.rows.sensor, watches.after, strict=True)}
        self.domain = {s: watches.domains[int(watches.domain[s])] for s in self.after}
        self.names = engine.gateways
        self.last: dict[int, int] = {}
        self.by: dict[int, int] = {}
        self.heard: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.open: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.groups: set[int] = set()
        self.domains: set[str] = set()
        self.told: list[tuple[object, int, int]] = []

    def tell(self, subject: object, at: int, after: int) -> None:
        self.told.append((subject, (at - T0) // SECOND, after))

    def deadline(self, s: int) -> int:
        return max(self.last[s], T0, self.back.get(s, 0)) + self.after[s]

    def silent(self, s: int) -> bool:
        return s in self.open or s in self.held

    def members(self, g: int) -> list[int]:
        return [s for s in self.last if s in self.after and self.by[s] == g]

    def raise_sensor(self, s: int) -> None:
        self.open[s] = self.deadline(s)
        self.tell(s, self.open[s], 1)

    def advance(self, now: int) -> None:
        late = True
        while late:
            late = False
            for s in [s for s in self.last if s in self.after and not self.silent(s) and self.deadline(s) < now]:
                g = self.by[s]
                if self.silent(s):
                    continue
                if g < 0 or len(self.members(g)) < 2:
                    self.raise_sensor(s)
                    continue
                others = [m for m in self.members(g) if m not in self.open]
                limit = max(self.heard[g], T0) + min(self.after[m] for m in others)
                if limit >= now:
                    continue
                late = True
                over = [m for m in others if self.deadline(m) <= limit]
                if len(over) + len(self.members(g)) - len(others) >= 2:
                    self.groups.add(g)
                    self.tell(f"{self.names[g]}/gateway", limit, 1)
                    self.held |= dict.fromkeys(others, limit)
                else:
                    for m in over:
                        self.raise_sensor(m)
        self.check_domains()

    def check_domains(self) -> None:
        for name in set(self.domain.values()) - self.domains:
            heard = [s for s in self.last if s in self.after and self.domain[s] == name]
            if len(heard) >= 2 and all(self.silent(s) for s in heard):
                self.domains.add(name)
                self.tell(f"domain/{name}", max((self.open | self.held)[s] for s in heard), 1)

    def arrive(self, s: int, at: int, g: int) -> None:
        self.advance(at)
        for m in list(self.last):
            proven = m == s or (g >= 0 and self.by[m] == g)
            if m in self.after and proven and not self.silent(m) and self.deadline(m) < at:
                self.raise_sensor(m)
        self.check_domains()
        woken = {self.domain[s]} if s in self.after else set()
        if g in self.groups:
            self.groups.remove(g)
            self.tell(f"{self.names[g]}/gateway", at, 0)
            for m in [m for m in self.held if self.by[m] == g]:
                del self.held[m]
                self.back[m] = at
                woken.add(self.domain[m])
        if s in self.open:
            del self.open[s]
            self.tell(s, at, 0)
        self.held.pop(s, None)
        self.last[s], self.by[s] = at, g
        if g >= 0:
            self.heard[g] = at
        for name in woken & self.domains:
            self.domains.remove(name)
            self.tell(f"domain/{name}", at, 0)
        self.check_domains()


gaps = st.sampled_from([0, 0, 1, 10, 59, 60, 61, 120, 179, 180, 181, 240, 360, 500, 1000])


@given(
    st.lists(st.tuples(st.integers(0, 5), gaps, st.sampled_from([-1, 0, 0, 0, 1])), max_size=60),
    st.sets(st.integers(0, 60)),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 1000)), max_size=8),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_batching_ticks_and_restarts_change_nothing(
    steps: list[tuple[int, int, int]], marks: set[int], ticks: list[tuple[int, int]], restart: bool
) -> None:
    arrivals, at = [], T0
    routes: dict[int, int] = {}  # a sensor speaks for itself or by one gateway; one that changes is another test's
    for s, gap, g in steps:
        at += gap * SECOND + 1  # of two messages in one microsecond none is the earlier
        arrivals.append((s, at, routes.setdefault(s, g)))
    end = at + 3000 * SECOND
    reference = Plain(new())
    for arrival in arrivals:
        reference.arrive(*arrival)
    reference.advance(end)

    engine, told = new(), []
    for n, arrival_batch in enumerate(batches(arrivals, marks)):
        told += hear(engine, arrival_batch)
        upper = arrivals[arrivals.index(arrival_batch[-1]) + 1 :][:1]
        for place, ahead in ticks:
            if place == n:
                limit = upper[0][1] if upper else end
                told += tick(engine, min(arrival_batch[-1][1] + ahead * SECOND, limit))
        if restart:
            fresh = new(gateways=())
            fresh.restore(EngineState.from_bytes(engine.snapshot().to_bytes()))
            engine = fresh
    told += tick(engine, end)
    assert sorted(map(str, short(told))) == sorted(map(str, reference.told))
    assert not engine.failures


def batches(arrivals: list[Arrival], marks: set[int]) -> list[list[Arrival]]:
    places = sorted({m for m in marks if m < len(arrivals)} | {0, len(arrivals)})
    return [arrivals[a:b] for a, b in itertools.pairwise(places)]


def test_deciding_changes_nothing_until_it_is_applied() -> None:
    engine = new()
    hear(engine, [(0, T0, 0), (1, T0, 0)])
    first, _ = engine.tick(T0 + 1000 * SECOND)
    second, _ = engine.tick(T0 + 1000 * SECOND)
    assert first
    assert plain(first) == plain(second)
    again, _ = engine.heard(np.array([0]), np.array([T0 + 1000 * SECOND]))
    assert again
    assert short(tick(engine, T0 + 1000 * SECOND)) == short(first)


def test_open_alerts_are_listed_and_carried_over_to_another_rule_set() -> None:
    engine = new()
    hear(engine, [(0, T0, -1)])
    tick(engine, T0 + 10 * MINUTE)
    other = Engine(rules('[[rule]]\nid = "x"\nkind = "*"\ndetector = "stuck"\nfor = "1h"\n' + TEXT), CITY, T0)
    other.adopt(engine)
    assert [column.tolist() for column in other.levels()] == [[1], [0], [1]]
    assert short(hear(other, [(0, T0 + 11 * MINUTE, -1)])) == [(0, 660, 0)]


def test_an_error_in_judging_silence_is_counted_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = new()
    hear(engine, [(0, T0, -1)])
    engine.offline.after = None  # type: ignore[assignment]
    assert tick(engine, T0 + 1000 * SECOND) == []
    assert engine.failures == {"offline": 1}
    assert "offline failed" in caplog.text
