"""Neighbours along the network: the same alert events for any order, batching and restart, also when it changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import test_judgement
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_judgement import KINDS, START, Kept, Reading, compared, messages, run

from alerts.engine import EngineState
from alerts.lifecycle import AlertBook
from alerts.rules import parse_rules
from ingest.judgement import Judgement, Snapshot
from tests.twin.networks import network
from twin.catalog import Catalog
from twin.model import HOUR, SECOND, AlertState, Sensor
from twin.network.graph import Graph
from twin.reach import Known, Networks

RULES = """
[[rule]]
id = "unlike-upstream"
kind = "drainage.ponding_depth"
detector = "neighbours"
along = "upstream"
within = "500m"
count = 1
levels = { blue = 8, red = 25 }
hold = { blue = "2min" }
clear = { hold = "1min" }
max_age = "2min"
patience = "5min"

[[rule]]
id = "unlike-others"
kind = "drainage.ponding_depth"
detector = "neighbours"
along = "both"
within = "150m"
count = 2
side = "either"
levels = { yellow = 8 }
max_age = "2min"
patience = "3min"
"""
WELLS = 4


def drain(*edges: tuple[int, int]) -> Networks:
    net = network(WELLS, [(a, b, 100.0) for a, b in edges], one_way=True)
    return Networks({(0, 0): Known(Graph(net), [*net.node, *net.edge])})


LINE = drain((0, 1), (1, 2), (2, 3))
TURNED = drain((1, 0), (1, 2), (3, 2))


class Imported:
    """The networks of a city whose model is imported anew."""

    def __init__(self) -> None:
        self.changes = 1
        self.now = LINE

    def become(self, other: Networks) -> None:
        self.now, self.changes = other, self.changes + 1

    def __getattr__(self, name: str) -> object:
        return getattr(self.now, name)


def city() -> Catalog:
    result = Catalog(KINDS)
    kind, unit = "drainage.ponding_depth", "cm"
    result.put([(n, Sensor(f"d{n}", "depth", kind, unit, asset=f"n{n}", min=0, max=60)) for n in range(WELLS)])
    return result


def judgement(over: Catalog, rules: str, reach: object = LINE) -> Judgement:
    return Judgement(
        over, parse_rules(rules, KINDS), 1, lateness=24 * HOUR, default_tenant="default", max_bytes=1 << 20,
        reach=reach,  # type: ignore[arg-type]
    )  # fmt: skip


values = st.one_of(st.none(), st.sampled_from([0.0, 3.0, 8.0, 9.0, 12.0, 21.0, 30.0, 45.0]))
streams = st.dictionaries(st.tuples(st.integers(0, WELLS - 1), st.integers(0, 30)), values, min_size=1, max_size=70)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(streams, st.randoms(use_true_random=False), st.integers(1, 12), st.integers(-1, 20))
def test_any_order_batching_and_restart_give_the_same_alert_events(
    stream: dict[tuple[int, int], float | None], random: object, size: int, restart: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(test_judgement, "judgement", judgement)
        ordered: list[Reading] = sorted(((s, m, v) for (s, m), v in stream.items()), key=lambda r: (r[1], r[0]))
        expected = run([ordered], rules=RULES, city=city)
        arriving = list(ordered)
        random.shuffle(arriving)  # type: ignore[attr-defined]
        batches = [arriving[n : n + size] for n in range(0, len(arriving), size)]
        got = run(batches, restart, rules=RULES, city=city)
    assert compared(got.events) == compared(expected.events)


def played(batches: Sequence[Sequence[Reading]], turned_at: int, restarts: frozenset[int]) -> Kept:
    """Batch by batch, as the pipeline does it: before batch `turned_at` the model is imported anew."""
    kept, over, reach = Kept(), city(), Imported()
    now = judgement(over, RULES, reach)
    for n, batch in enumerate(batches):
        if n == turned_at:
            reach.become(TURNED)
        if now.has_other_networks:
            now.refit()
            assert not now.has_other_networks
        at = START + n * SECOND
        raw = messages(batch)
        decision = now.decide(raw, now.decode(raw), kept, at)
        kept.commit(decision)
        now.apply(decision)
        now.keep_snapshot(now.snapshot(n, at))
        if n in restarts:
            old, now = now, judgement(over, RULES, reach)
            now.state = old.state.copy()
            now.snapshots = [
                Snapshot(s.batch, s.taken_at, s.observed_at.copy(), EngineState.from_bytes(s.engine.to_bytes()))
                for s in old.snapshots
            ]
            now.engine.restore(now.snapshots[-1].engine)
            now.book = AlertBook(a for a in kept.alert_rows.values() if a.state is not AlertState.CLEARED)
    assert not now.engine.failures
    return kept


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(1, 12), st.integers(0, 12), st.frozensets(st.integers(0, 20), max_size=4))
def test_a_network_that_changes_gives_the_same_alert_events_with_restarts_and_without(
    stream: dict[tuple[int, int], float | None], size: int, turned_at: int, restarts: frozenset[int]
) -> None:
    ordered: list[Reading] = sorted(((s, m, v) for (s, m), v in stream.items()), key=lambda r: (r[1], r[0]))
    batches = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    expected = played(batches, turned_at, frozenset())
    assert compared(played(batches, turned_at, restarts).events) == compared(expected.events)


def test_a_network_that_changes_leaves_alerts_open_where_there_still_is_somebody_to_be_held_against() -> None:
    kept, reach = Kept(), Imported()
    now = judgement(city(), RULES, reach)
    raw = messages([(s, 0, 30.0 if s == 1 else 3.0) for s in range(WELLS)])
    raw += messages([(s, 2, 30.0 if s == 1 else 3.0) for s in range(WELLS)])
    decision = now.decide(raw, now.decode(raw), kept, START)
    kept.commit(decision)
    now.apply(decision)
    assert sorted((a.rule, a.sensor) for a in now.book.open.values()) == [
        ("unlike-others", "d1/depth"), ("unlike-others", "d2/depth"), ("unlike-upstream", "d1/depth")
    ]  # fmt: skip
    reach.become(TURNED)
    assert now.has_other_networks
    now.refit()
    assert not now.has_other_networks
    assert [(a.rule, a.sensor) for a in now.orphans()] == [("unlike-upstream", "d1/depth")], "nothing is upstream of it"
