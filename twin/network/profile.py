"""The profile along a way through a network (纵断面): ground, invert, crown and level, and what looks wrong in it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from scipy.sparse.csgraph import dijkstra

from twin.model import Bools, Floats, Indices, NotFound
from twin.network.graph import NO_PLACES, Graph, Place, Sense

# What inverts are surveyed to; less is no finding [E].
TOLERANCE_M: Final = 0.01
FINDINGS: Final = {
    "adverse-slope": ("逆坡", "rises in the direction of flow"),
    "crown-above-ground": ("管顶高于地面", "crown above the ground"),
    "invert-step-up": ("下游管底高于上游管底", "the next pipe begins higher than this one ends"),
    "level-above-ground": ("水位高于地面", "level above the ground"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: a key of `FINDINGS`, where (`chainage_m` from the profile's beginning), and by how much."""

    what: str
    place: Place
    chainage_m: float
    amount_m: float


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A way of n nodes and n - 1 edges, from its beginning. Heights in metres, NaN where unknown.

    By node: `node`, `chainage_m`, `ground_m`, `level_m` (between the observed ones by the way along; not beyond them)
    and `is_observed`. By edge, at the end met first and the one met last: `invert_m` [n - 1, 2], `crown_m` [n - 1, 2];
    `slope` the fall per metre along the way; `is_forward` where it is passed from its start to its end. `sense`: how
    the way was found: with the flow, against it, or regardless of it.
    """

    sense: Sense
    node: Indices
    chainage_m: Floats
    ground_m: Floats
    level_m: Floats
    is_observed: Bools
    edge: Indices
    is_forward: Bools
    invert_m: Floats
    crown_m: Floats
    slope: Floats
    findings: tuple[Finding, ...]


def path(graph: Graph, begin: int, end: int, sense: Sense = "both") -> tuple[Indices, Indices] | None:
    """The nodes and edges of the shortest way from node to node over open edges; None if there is none."""
    graph.check(Place("node", begin))
    graph.check(Place("node", end))
    arcs = graph.arcs(sense)
    if begin == end:
        return np.array([begin], np.int32), NO_PLACES
    before: Any = dijkstra(arcs.matrix, indices=begin, return_predecessors=True)[1].tolist()
    if before[end] < 0:
        return None
    nodes = [end]
    while nodes[-1] != begin:
        nodes.append(before[nodes[-1]])
    nodes.reverse()
    edges = []
    for node, after in pairwise(nodes):
        out = slice(arcs.first[node], arcs.first[node + 1])
        length = np.where(arcs.node[out] == after, arcs.length[out], np.inf)
        edges.append(int(arcs.edge[out][int(np.argmin(length))]))
    return np.array(nodes, np.int32), np.array(edges, np.int32)


def profile(graph: Graph, begin: int, end: int, *, level: Floats | None = None) -> Profile:
    """The profile from node `begin` to node `end` by the shortest way: with the flow if there is one, else against it,
    else any. `level` [N]: heights of water observed at nodes, NaN elsewhere. NotFound for nodes that are none or that
    no open pipes connect."""
    network = graph.network
    senses: tuple[Sense, ...] = ("downstream", "upstream", "both")
    for sense in senses:
        found = path(graph, begin, end, sense)
        if found is not None:
            break
    else:
        raise NotFound(f"no way from node {network.node[begin]} to node {network.node[end]}")
    node, edge = found
    chainage = np.append(0.0, np.cumsum(graph.length[edge]))
    forward = graph.start[edge] == node[:-1]
    inverts = np.column_stack((_or_node(graph, edge, "start"), _or_node(graph, edge, "end")))
    inverts = np.where(forward[:, None], inverts, inverts[:, ::-1])
    crowns = inverts + network.diameter[edge][:, None]
    length = graph.length[edge]
    slope = np.where(length > 0, (inverts[:, 0] - inverts[:, 1]) / np.where(length > 0, length, 1.0), np.nan)
    observed = np.full(len(node), np.nan) if level is None else np.asarray(level, float)[node]
    is_observed = np.isfinite(observed)
    levels = observed
    if is_observed.any():
        known = chainage[is_observed]
        levels = np.interp(chainage, known, observed[is_observed], left=np.nan, right=np.nan)
    ground = network.ground[node]
    # 1 where the way follows an edge's direction, -1 against it, 0 for pipes under pressure, which may rise.
    flow = np.where(forward, 1.0, -1.0) * graph.way[edge].astype(np.float64)
    findings = _findings(node, edge, chainage, flow, inverts, crowns, ground, levels)
    return Profile(
        sense, node, chainage, ground, levels, is_observed, edge, forward, inverts, crowns, slope, findings
    )  # fmt: skip


def _or_node(graph: Graph, edge: Indices, side: str) -> Floats:
    """Inverts at one end, the node's where the edge has none."""
    network = graph.network
    invert, node = (network.invert_start, graph.start) if side == "start" else (network.invert_end, graph.end)
    return np.where(np.isfinite(invert[edge]), invert[edge], network.z[node[edge]])


def _findings(
    node: Indices, edge: Indices, chainage: Floats, flow: Floats, inverts: Floats, crowns: Floats, ground: Floats,
    levels: Floats,
) -> tuple[Finding, ...]:  # fmt: skip
    def tell(what: str, group: Literal["node", "link"], at: Indices, where: Floats, by: Floats) -> list[Finding]:
        return [
            Finding(what, Place(group, int(at[n])), float(where[n]), float(by[n]))
            for n in np.flatnonzero(by > TOLERANCE_M)
        ]

    over = np.fmax(crowns[:, 0] - ground[:-1], crowns[:, 1] - ground[1:])
    step = (inverts[1:, 0] - inverts[:-1, 1]) * np.where(flow[1:] == flow[:-1], flow[1:], 0)
    found = tell("adverse-slope", "link", edge, chainage, (inverts[:, 1] - inverts[:, 0]) * flow)
    found += tell("crown-above-ground", "link", edge, chainage, over)
    found += tell("invert-step-up", "node", node[1:-1], chainage[1:-1], step)
    found += tell("level-above-ground", "node", node, chainage, levels - ground)
    return tuple(sorted(found, key=lambda finding: (finding.chainage_m, finding.what)))
