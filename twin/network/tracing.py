"""What is reached from a place: upstream, downstream, within a distance, by the shortest way, or at all."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.sparse.csgraph import dijkstra

from twin.model import Bools, Floats, Indices
from twin.network.branches import branches_of
from twin.network.graph import NO_PLACES, Arcs, Graph, Place, Places, Sense

# A search that settles no more nodes than this is done without touching the rest of the network: an array over all
# 100,000 nodes costs more than such a search does.
FEW: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a trace reaches, in the order of travel: nodes and edges, each ascending by its distance in metres along
    the pipes. A node's distance is that of the shortest way to it; an edge's is that of the end where it is entered.
    What one starts from is in it, at 0."""

    node: Indices
    node_distance_m: Floats
    edge: Indices
    edge_distance_m: Floats

    def merged(self) -> tuple[Bools, Indices, Floats]:
        """Nodes and edges in one order, ascending by distance, nodes before the edges entered there: which are edges,
        their places in the columns, their distances."""
        distance = np.concatenate((self.node_distance_m, self.edge_distance_m))
        order = np.argsort(distance, kind="stable")
        return order >= len(self.node), np.concatenate((self.node, self.edge))[order], distance[order]


def trace(
    graph: Graph, start: Place, sense: Sense, *, limit_m: float = math.inf, past_closed: bool = False
) -> Trace:  # fmt: skip
    """What lies `sense` of `start` (for `both`: what hangs together with it), no further than `limit_m`.

    From an edge the way begins at the end where one leaves it (at both ends of one that is passed either way), and
    distances count from there. Closed edges are not passed unless `past_closed`. NotFound for an unknown place.
    """
    graph.check(start)
    seeds, own = _seeds(graph, start, sense)
    arcs = graph.arcs(sense, past_closed)
    node, distance = reach(arcs, seeds, limit_m)
    edge, entered = _edges(arcs, node, distance, own)
    return Trace(node, distance, edge, entered)


def component(graph: Graph, start: Place, *, past_closed: bool = False) -> Places:
    """Everything that hangs together with `start` over open edges, whatever their direction. An edge belongs to a part
    if it is passed, and so does `start` itself. NotFound for an unknown place."""
    graph.check(start)
    label = graph.component_of_nodes(past_closed)
    if start.group == "node":
        is_in = label == label[start.at]
        own = NO_PLACES
    else:
        is_in = np.isin(label, label[graph.ends(start.at)])
        own = np.array([start.at], np.int32)
    edge = is_in[graph.start] & is_in[graph.end] if graph.edges else np.zeros(0, bool)
    if not past_closed:
        edge &= graph.is_open
    edge[own] = True
    return Places(np.flatnonzero(is_in).astype(np.int32), np.flatnonzero(edge).astype(np.int32))


def _seeds(graph: Graph, start: Place, sense: Sense) -> tuple[Indices, Indices]:
    """The nodes where travel begins, and the edge it begins from."""
    if start.group == "node":
        return np.array([start.at], np.int32), NO_PLACES
    own = np.array([start.at], np.int32)
    way = 0 if sense == "both" else int(graph.way[start.at]) * (1 if sense == "downstream" else -1)
    if way > 0:
        return graph.end[own], own
    if way < 0:
        return graph.start[own], own
    return graph.ends(start.at), own


def reach(arcs: Arcs, seeds: Indices, limit_m: float = math.inf) -> tuple[Indices, Floats]:
    """The nodes within `limit_m` of the nearest of `seeds`, and their distances, ascending (ties by node)."""
    if len(seeds) == 0:
        return NO_PLACES, np.zeros(0)
    near = _reach_few(arcs, seeds, limit_m) if len(seeds) <= FEW else None
    if near is not None:
        return near
    if len(seeds) == 1:
        branches = branches_of(arcs)
        if branches is not None:
            return by_distance(*branches.reach(int(seeds[0]), limit_m))
    distance = shortest(arcs.matrix, seeds, limit_m)
    node = np.flatnonzero(np.isfinite(distance)).astype(np.int32)
    return by_distance(node, distance[node])


def shortest(matrix: Any, seeds: Indices, limit_m: float) -> Floats:
    """The distance of every node from the nearest of `seeds`; infinite beyond `limit_m`."""
    if len(seeds) == 1:
        distance: Floats = dijkstra(matrix, indices=int(seeds[0]), limit=limit_m)
    else:
        distance = dijkstra(matrix, indices=seeds, min_only=True, limit=limit_m)
    return distance


def _reach_few(arcs: Arcs, seeds: Indices, limit_m: float) -> tuple[Indices, Floats] | None:
    """The same for a small answer, node by node; None when there is more than `FEW`."""
    first, heads, lengths = arcs.first.data, arcs.node.data, arcs.length.data
    best = dict.fromkeys(seeds.tolist(), 0.0)
    waiting = [(0.0, n) for n in best]
    heapq.heapify(waiting)
    done: dict[int, float] = {}
    while waiting:
        distance, node = heapq.heappop(waiting)
        if node in done:
            continue
        done[node] = distance
        if len(done) > FEW:
            return None
        for arc in range(first[node], first[node + 1]):
            head, further = heads[arc], distance + lengths[arc]
            if further <= limit_m and further < best.get(head, math.inf):
                best[head] = further
                heapq.heappush(waiting, (further, head))
    return by_distance(np.array(list(done), np.int32), np.array(list(done.values())))


def by_distance(node: Indices, distance: Floats) -> tuple[Indices, Floats]:
    """Both ascending by distance, equal ones by node."""
    if np.any(distance[1:] < distance[:-1]):
        order = np.argsort(distance)
        node, distance = node[order], distance[order]
    same = distance[1:] == distance[:-1]
    if same.any():
        # Not a stable sort of all, which is several times slower: only the runs of equal distances.
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        run = np.append(0, np.cumsum(~same))[tied]
        node = node.copy()
        node[tied] = node[tied][np.argsort(run * (int(node.max()) + 1) + node[tied])]
    return node, distance


def _edges(arcs: Arcs, node: Indices, distance: Floats, own: Indices) -> tuple[Indices, Floats]:
    """The edges that lead out of `node` in its order, each once, `own` first."""
    arc, owner = arcs.out_of(node)
    edge, entered = arcs.edge[arc], distance[owner]
    if len(own):
        edge, entered = np.concatenate((own, edge)), np.concatenate((np.zeros(len(own)), entered))
    elif arcs.is_single:
        return edge, entered
    if len(edge) <= 4 * FEW:
        kept = np.sort(np.unique(edge, return_index=True)[1])
    else:
        met = np.empty(arcs.edges, np.intp)
        met[edge[::-1]] = np.arange(len(edge))[::-1]  # of several, the last written is the first met
        kept = np.flatnonzero(met[edge] == np.arange(len(edge)))
    return edge[kept], entered[kept]
