"""Long traces through networks that are mostly trees, as drains are.

A node that only one arc leads to has only one way to be reached from outside: over that arc. Such nodes form branches,
each growing from a node that several arcs lead to (or none). Where in its branch a node lies is worked out once; a
trace then searches the shortest ways among the few nodes where branches begin, and takes the branches whole. Distances
are the same as those of a search through everything, but for rounding (differences of lengths along a branch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, dijkstra

from twin.model import Bools, Floats, Indices
from twin.network.graph import Arcs, rows_by, rows_of

# With more places to choose than this share of nodes, a plain search is as fast.
MOST_CHOICES: Final = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """By node [N]: `number` of the branch that begins there, -1 elsewhere; `branch` it lies in, -1 in a ring of branch
    nodes that nothing enters; `along`, its distance from where that begins.

    `first`, `node`: the nodes of each branch, in order of distance, with `node_along` and `node_branch` in that order.
    `tree`: the arcs within branches; `ways`: those between the beginnings of branches, a matrix [branches, branches].
    """

    arcs: Arcs
    number: Indices
    branch: Indices
    along: Floats
    first: Indices
    node: Indices
    node_along: Floats
    node_branch: Indices
    tree: Any
    ways: Any

    def reach(self, seed: int, limit_m: float = math.inf) -> tuple[Indices, Floats]:
        """The nodes within `limit_m` of `seed`, in no order, and their distances."""
        if self.branch[seed] < 0:
            distance = dijkstra(self.arcs.matrix, indices=seed, limit=limit_m)
            node = np.flatnonzero(np.isfinite(distance)).astype(np.int32)
            return node, distance[node]
        own = int(self.number[seed])
        if own >= 0:
            begun = dijkstra(self.ways, indices=own, limit=limit_m)
            return self._whole(begun, None, limit_m)
        # Within a branch: first what lies further out on it, then what that leads to.
        out: Indices = breadth_first_order(self.tree, seed, return_predecessors=False)
        distance = self.along[out] - self.along[seed]
        near = distance <= limit_m
        out, distance = out[near], distance[near]
        arc, owner = self.arcs.out_of(out)
        number = self.number[self.arcs.node[arc]]
        leads = number >= 0
        if not leads.any():
            return out, distance
        entry, ways = number[leads], self.ways
        size = len(self.first) - 1
        matrix = csr_array(
            (
                np.concatenate((ways.data, distance[owner[leads]] + self.arcs.length[arc[leads]])),
                np.concatenate((ways.indices, entry)),
                np.append(ways.indptr, np.int32(ways.nnz + len(entry))),
            ),
            shape=(size + 1, size + 1),
        )
        begun = dijkstra(matrix, indices=size, limit=limit_m)[:size]
        met = np.zeros(len(self.number), bool)
        met[out] = True
        node, further = self._whole(begun, met, limit_m)
        return np.concatenate((out, node)), np.concatenate((distance, further))

    def _whole(self, begun: Floats, met: Bools | None, limit_m: float) -> tuple[Indices, Floats]:
        """The nodes of the branches that are reached at `begun` [branches], but for those that were `met` [N]."""
        entered = np.flatnonzero(np.isfinite(begun))
        # Where a branch stands whole in a row, nothing need be gathered.
        which: Any = slice(None)
        if len(entered) == 1:
            which = slice(self.first[entered[0]], self.first[entered[0] + 1])
        elif len(entered) < len(begun):
            which = rows_of(self.first, entered)[0]
        node = self.node[which]
        distance = self.node_along[which] + begun[self.node_branch[which]]
        if met is not None:
            node, distance = node[~met[node]], distance[~met[node]]
        if math.isfinite(limit_m):
            node, distance = node[distance <= limit_m], distance[distance <= limit_m]
        return node, distance


def branches_of(arcs: Arcs, most_choices: float = MOST_CHOICES) -> Branches | None:
    """The branches of `arcs`, worked out when first asked for; None where most nodes can be reached several ways."""
    if "branches" not in arcs.worked_out:
        arcs.worked_out["branches"] = _branches(arcs, most_choices)
    found: Branches | None = arcs.worked_out["branches"]
    return found


def _branches(arcs: Arcs, most_choices: float) -> Branches | None:
    nodes = len(arcs.first) - 1
    tail = np.repeat(np.arange(nodes, dtype=np.int32), np.diff(arcs.first))
    matters = tail != arcs.node
    is_begin = np.bincount(arcs.node[matters], minlength=nodes) != 1
    begin: Indices = np.flatnonzero(is_begin).astype(np.int32)
    if len(begin) > most_choices * nodes or len(begin) == 0:
        return None
    number = np.full(nodes, -1, np.int32)
    number[begin] = np.arange(len(begin))

    inside = matters & ~is_begin[arcs.node]
    first = np.append(0, np.cumsum(inside))[arcs.first].astype(np.int32)
    tree = csr_array((arcs.length[inside], arcs.node[inside], first), shape=(nodes, nodes))
    along, _, source = dijkstra(tree, indices=begin, min_only=True, return_predecessors=True)
    branch = np.where(source >= 0, number[np.maximum(source, 0)], -1).astype(np.int32)

    by_along = np.argsort(along)
    order: Indices = by_along[branch[by_along] >= 0].astype(np.int32)
    begins, entry = rows_by(branch[order], len(begin))

    between = np.flatnonzero(matters & is_begin[arcs.node])
    between = between[branch[tail[between]] >= 0]
    ways_first, way = rows_by(branch[tail[between]], len(begin))
    way = between[way].astype(np.int32)
    ways = csr_array(
        (along[tail[way]] + arcs.length[way], number[arcs.node[way]], ways_first), shape=(len(begin), len(begin))
    )
    node = order[entry]
    return Branches(arcs, number, branch, along, begins, node, along[node], branch[node], tree, ways)
