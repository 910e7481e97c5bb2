"""How much of a network lies within reach of something: of a place, or of its sensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from twin.model import Floats, Indices
from twin.network.graph import Graph, Place
from twin.network.tracing import shortest


@dataclass(frozen=True, slots=True)
class AreaShare:
    """Of the pipes of one area: their length, and the share of it (0-1) in reach; 0 where there is no length."""

    area: str
    length_m: float
    covered_m: float
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """`node_distance_m` [N] from the nearest place, infinite beyond reach; `covered_m` [E] of each edge's length in
    reach; `areas` by name, and the whole."""

    node_distance_m: Floats
    covered_m: Floats
    areas: tuple[AreaShare, ...]
    whole: AreaShare

    @property
    def node(self) -> Indices:
        """The nodes in reach, nearest first."""
        near = np.flatnonzero(np.isfinite(self.node_distance_m))
        return near[np.argsort(self.node_distance_m[near], kind="stable")].astype(np.int32)

    @property
    def edge(self) -> Indices:
        """The edges that are at least partly in reach."""
        return np.flatnonzero(self.covered_m > 0).astype(np.int32)


def coverage(graph: Graph, places: Iterable[Place], reach_m: float, *, area: Sequence[str] = ()) -> Coverage:
    """How much of the pipes' length lies within `reach_m` of one of `places`, along open pipes whatever the direction.

    Counted exactly, from both ends of each pipe. What is on an edge is taken to be in its middle. `area` [E]: where
    each edge is counted. NotFound for an unknown place.
    """
    nodes: list[int] = []
    middle: list[int] = []
    for place in places:
        (nodes if graph.check(place).group == "node" else middle).append(place.at)
    on = np.unique(np.array(middle, np.int32))
    # All begin at one more node, with ways to each place: nothing to a node, half its length to an edge's ends.
    head = np.concatenate((np.array(nodes, np.int32), graph.start[on], graph.end[on]))
    away = np.concatenate((np.zeros(len(nodes)), graph.length[on] / 2, graph.length[on] / 2))
    arcs, size = graph.arcs("both"), graph.nodes
    matrix = csr_array(
        (
            np.concatenate((arcs.length, away)),
            np.concatenate((arcs.node, head)),
            np.append(arcs.first, np.int32(len(arcs.node) + len(head))),
        ),
        shape=(size + 1, size + 1),
    )
    distance = shortest(matrix, np.array([size], np.int32), reach_m)[:size]

    length = graph.length
    from_start = np.clip(reach_m - distance[graph.start], 0, length)
    from_end = np.clip(reach_m - distance[graph.end], 0, length)
    covered = np.minimum(from_start + from_end, length)
    # With something in the middle: the gaps on both sides of what that reaches.
    half = length[on] / 2
    left, right = from_start[on], length[on] - from_end[on]
    low, high = np.maximum(half - reach_m, 0), np.minimum(half + reach_m, length[on])
    before = np.maximum(np.minimum(low, right) - left, 0)
    after = np.maximum(right - np.maximum(high, left), 0)
    covered[on] = length[on] - before - after

    names = np.array(list(area) or [""] * graph.edges, object)
    shares = tuple(_share(str(name), length[names == name], covered[names == name]) for name in sorted(set(area)))
    return Coverage(distance, covered, shares, _share("", length, covered))


def _share(area: str, length: Floats, covered: Floats) -> AreaShare:
    total, within = float(length.sum()), float(covered.sum())
    return AreaShare(area, total, within, within / total if total > 0 else 0.0)
