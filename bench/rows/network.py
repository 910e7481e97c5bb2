"""The questions a pipe network answers: how long a trace and an isolation take, and how that grows with the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import numpy as np

from bench.report import Figure
from bench.services import Bench
from twin.city import Network
from twin.model import Bools, Floats, Indices
from twin.network.graph import Graph, Place
from twin.network.isolation import Segments
from twin.network.tracing import trace

EDGES: Final = 200_000
NODES: Final = 12_500
TRACE_GOAL_MS: Final = 10.0
ISOLATE_GOAL_MS: Final = 50.0
# In proportion to size, with half as much again for what no longer fits the processor's caches.
GROWTH_GOAL: Final = 15.0
PLACES: Final = 40


def traces(bench: Bench) -> list[Figure]:
    """Everything upstream of the outfall of a drain network (one node in fifty can drain two ways); everything that
    hangs together with a place of a looped supply network; and traces from random places."""
    figures = []
    for what, build, sense, goal in (
        ("everything upstream of the outfall, drains", drains, "upstream", TRACE_GOAL_MS),
        ("everything reached either way, looped supply", supply, "both", TRACE_GOAL_MS),
    ):
        runs: dict[int, list[float]] = {}
        details: dict[str, float | str] = {}
        for edges in (EDGES // 10, EDGES):
            begun = time.perf_counter()
            graph = Graph(build(edges))
            root = Place("node", 0)
            found = trace(graph, root, sense)
            built = time.perf_counter() - begun
            runs[edges] = [_fastest(partial(trace, graph, root, sense)) for _ in range(bench.runs)]
            if edges == EDGES:
                rng = np.random.default_rng(3)
                some = [Place("node", int(n)) for n in rng.integers(0, graph.nodes, PLACES)]
                near = float("inf") if sense == "upstream" else 300.0
                spent = [_fastest(partial(trace, graph, place, sense, limit_m=near), 3) for place in some]
                details["nodes and edges reached"] = f"{len(found.node):,}, {len(found.edge):,}"
                details["the first trace, with what is built for it, ms"] = built * 1e3
                shorter = "from random nodes upstream" if sense == "upstream" else "within 300 m of random nodes"
                details[f"{shorter}, median, ms"] = statistics.median(spent)
        figures += [
            Figure("trace", f"{what}, 200,000 edges", "ms", runs[EDGES], goal, "at most", is_later=True,
                   details=details),
            _growth("trace", f"{what}, 200,000 edges over 20,000", runs[EDGES], runs[EDGES // 10]),
        ]  # fmt: skip
    return figures


def isolations(bench: Bench) -> list[Figure]:
    """Random pipes of a supply network with a valve on every fifth edge; with and without what to do for each valve if
    it is stuck."""
    alone: dict[int, list[float]] = {}
    whole: dict[int, list[float]] = {}
    built = 0.0
    closing: list[int] = []
    for nodes in (NODES, 10 * NODES):
        graph = Graph(supply(round(nodes * 1.15), valves=0.2))
        begun = time.perf_counter()
        segments = Segments(graph)
        segments.isolate(Place("node", 0))
        if nodes == NODES:
            built = time.perf_counter() - begun
        rng = np.random.default_rng(4)
        places = [Place("link", int(e)) for e in rng.integers(0, graph.edges, PLACES)]
        alone[nodes], whole[nodes] = [], []
        for _ in range(bench.runs):
            alone[nodes].append(_median(partial(segments.isolate, alternatives=0), places))
            whole[nodes].append(_median(segments.isolate, places))
        closing = [len(segments.isolate(place).close) for place in places]
    details = {
        "valves to close, median and most": f"{statistics.median(closing):g}, {max(closing)}",
        "the first, with what is built for it, ms": built * 1e3,
    }
    return [
        Figure("isolate", "isolating a pipe, 12,500 nodes", "ms", alone[NODES], ISOLATE_GOAL_MS, "at most",
               is_later=True, details=details),
        Figure("isolate", "with what to do for each valve if it is stuck", "ms", whole[NODES], ISOLATE_GOAL_MS,
               "at most", is_later=True),
        _growth("isolate", "isolating a pipe, 125,000 nodes over 12,500", alone[10 * NODES], alone[NODES]),
        _growth("isolate", "with stuck valves, 125,000 nodes over 12,500", whole[10 * NODES], whole[NODES]),
    ]  # fmt: skip


def _growth(row: str, what: str, large: list[float], small: list[float]) -> Figure:
    times = [a / b for a, b in zip(large, small, strict=True)]
    details = {"ms": f"{statistics.median(small):.2f} → {statistics.median(large):.2f}"}
    return Figure(row, what, "times", times, GROWTH_GOAL, "at most", is_later=True, details=details)


def _fastest(do: Callable[[], object], times: int = 15) -> float:
    """Milliseconds of processor time, the least of some, as other processes slow single ones."""
    spent = []
    for _ in range(times):
        begun = time.process_time_ns()
        do()
        spent.append((time.process_time_ns() - begun) / 1e6)
    return min(spent)


def _median(do: Callable[..., object], places: Iterable[Place]) -> float:
    return statistics.median(_fastest(partial(do, place), 1) for place in places)


def drains(edges: int) -> Network:
    """A tree of drains that grows from node 0, with one edge in fifty besides; the numbers of nodes say nothing about
    where they lie."""
    rng = np.random.default_rng(1)
    more = edges // 50
    nodes = edges - more + 1
    tail = np.concatenate((np.arange(1, nodes), rng.integers(nodes // 2, nodes, more)))
    head = np.maximum(0, tail - 1 - rng.integers(0, 200, len(tail)))
    place = np.append(0, 1 + rng.permutation(nodes - 1))
    return _network("drainage", nodes, place[tail], place[head], rng, 1, np.zeros(len(tail), bool))


def supply(edges: int, valves: float = 0.0) -> Network:
    """A supply network on a square of streets: a random tree through them and what makes 1.15 edges a node, as in the
    published ones (ky4, L-TOWN); a reservoir at node 0 and seven more."""
    rng = np.random.default_rng(1)
    side = round((edges / 1.15) ** 0.5)
    at = np.arange(side * side).reshape(side, side)
    start = np.concatenate((at[:, :-1].ravel(), at[:-1].ravel()))
    end = np.concatenate((at[:, 1:].ravel(), at[1:].ravel()))
    # Each node but the first keeps its way to the west or the north; of the rest, some.
    west, north = np.arange(len(start)) < side * (side - 1), np.arange(len(start)) >= side * (side - 1)
    goes_west = rng.random(side * side) < 0.5
    goes_west[at[0]], goes_west[at[:, 0]] = True, False
    kept = np.where(west, goes_west[end], north & ~goes_west[end])
    spare = np.flatnonzero(~kept)
    kept[rng.choice(spare, max(0, edges - int(kept.sum())), replace=False)] = True
    is_valve = rng.random(int(kept.sum())) < valves
    return _network("water", side * side, start[kept], end[kept], rng, 0, is_valve)


def _network(
    system: str, nodes: int, start: np.ndarray, end: np.ndarray, rng: np.random.Generator, direction: int, valves: Bools
) -> Network:  # fmt: skip
    unknown: Floats = np.full(nodes, np.nan)
    edges = len(start)
    types = ["junction"] * nodes
    for source in np.linspace(0, nodes - 1, 8).astype(int).tolist():
        types[source] = "reservoir" if system == "water" else "junction"
    ends: tuple[Indices, Indices] = (start.astype(np.int32), end.astype(np.int32))
    return Network(
        system, [f"n{n}" for n in range(nodes)], types, unknown, unknown, unknown, unknown, np.full(nodes, 0.5),
        [f"e{n}" for n in range(edges)], ["valve" if is_valve else "pipe" for is_valve in valves.tolist()], *ends,
        rng.uniform(5, 60, edges), np.full(edges, 0.3), np.full(edges, np.nan), np.full(edges, np.nan),
        np.full(edges, direction, np.int8), np.ones(edges, bool),
    )  # fmt: skip
