"""Which of many places lie nearest along a network, for many at once.

Asking one trace a place would search the same pipes again for each of 100,000 sensors. Instead every place sends its
label against the way of travel, and each node keeps the few nearest labels that have come to it: what a node keeps not,
no place behind it would have been told of. Distances are whole micrometres, so that ways that are equal on paper are
equal, in whatever order they are summed up.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twin.model import Indices, Ints
from twin.network.graph import Arcs, Graph, Sense, rows_by, rows_of

MICROMETRES: Final = 1e6  # of a metre
_BITS: Final = 24  # of a label, for the number of its place; the rest is the distance
_NUMBER: Final = (1 << _BITS) - 1
_NONE: Final = np.iinfo(np.int64).max
_AT_ONCE: Final = 8  # labels that a node takes at a time
FURTHEST_M: Final = 200_000.0  # so that two of them in µm still go into a label
_AGAINST: Final[dict[Sense, Sense]] = {"downstream": "upstream", "upstream": "downstream", "both": "both"}


def nearest(graph: Graph, at: NDArray[Any], sense: Sense, limit_m: float, most: int) -> tuple[Indices, Ints]:
    """Of the places `at` (nodes by number, edges by number after all nodes; at most 16 million), for each the `most`
    nearest that a trace from it in `sense` reaches within `limit_m` (at most `FURTHEST_M`), itself first, equally near
    ones by their place in `at`: these places [n, most], -1 where there are fewer, and distances in µm [n, most], -1.
    As in a trace: from an edge one sets out where one leaves it, and it is reached where it is entered."""
    at = np.asarray(at, np.int64)
    if len(at) >= 1 << _BITS:
        raise ValueError("more places than can be told apart")
    limit = round(min(limit_m, FURTHEST_M) * MICROMETRES)
    against = graph.arcs(_AGAINST[sense])
    number = np.arange(len(at))
    is_edge = at >= graph.nodes
    # An edge is entered at the tails of the arcs over it: of those of the way back, the heads.
    first, by_edge = rows_by(against.edge, graph.edges)
    arc, owner = rows_of(first, (at[is_edge] - graph.nodes).astype(np.int32))
    node = np.concatenate((at[~is_edge], against.node[by_edge[arc]])).astype(np.int64)
    label = np.concatenate((number[~is_edge], number[is_edge][owner]))
    kept = _spread(against, graph.nodes, node, label, limit, most)

    # What came to where each sets out, behind itself.
    edge = at[is_edge] - graph.nodes
    way = np.zeros(len(edge), np.int8) if sense == "both" else graph.way[edge] * (1 if sense == "downstream" else -1)
    ends = np.full((len(at), 2), -1, np.int64)
    ends[~is_edge, 0] = at[~is_edge]
    ends[is_edge, 0] = np.where(way >= 0, graph.end[edge], -1)
    ends[is_edge, 1] = np.where(way <= 0, graph.start[edge], -1)
    found = np.full((len(at), 2 * most), _NONE)
    for n in range(2):
        there = np.flatnonzero(ends[:, n] >= 0)
        found[there, n * most : (n + 1) * most] = kept[ends[there, n]]
    found[(found & _NUMBER) == number[:, None]] = _NONE
    found = np.concatenate((number[:, None], _distinct(found)[:, : most - 1]), axis=1)
    is_there = found != _NONE
    return (
        np.where(is_there, found & _NUMBER, -1).astype(np.int32),
        np.where(is_there, found >> _BITS, -1),
    )


def _distinct(labels: Ints) -> Ints:
    """By row the nearest of each number, ascending."""
    by_number = np.sort(np.where(labels == _NONE, _NONE, (labels & _NUMBER) << (63 - _BITS) | labels >> _BITS), axis=1)
    again = (by_number[:, 1:] >> (63 - _BITS)) == (by_number[:, :-1] >> (63 - _BITS))
    by_number[:, 1:][again] = _NONE
    back = (by_number & ((1 << (63 - _BITS)) - 1)) << _BITS | by_number >> (63 - _BITS)
    return np.sort(np.where(by_number == _NONE, _NONE, back), axis=1)


def _spread(arcs: Arcs, nodes: int, node: Ints, number: Ints, limit: int, most: int) -> Ints:
    """By node the `most` nearest labels, ascending: a label is a distance and below it a number."""
    length = np.round(np.minimum(arcs.length * MICROMETRES, limit + 1)).astype(np.int64) << _BITS
    kept = np.full((nodes, most), _NONE)
    label = number.astype(np.int64)  # at no distance yet
    # The nearest go first, a pipe's length or so at a time: few then are told again by a shorter way.
    width = max(int(length.mean()) if len(length) else 0, 1)
    while len(node):
        goes = label <= label.min() + width
        later = node[~goes], label[~goes]
        node, label = _comes(kept, node[goes], label[goes])
        node, label = _keep(kept, node, label)
        arc, owner = rows_of(arcs.first, node.astype(np.int32))
        node, label = arcs.node[arc].astype(np.int64), label[owner] + length[arc]
        near = (label >> _BITS <= limit) & (label < kept[node, most - 1])
        node, label = np.concatenate((later[0], node[near])), np.concatenate((later[1], label[near]))
    return kept


def _comes(kept: Ints, node: Ints, label: Ints) -> tuple[Ints, Ints]:
    """Of labels those that a node may keep, by node and ascending: each number once, nearer than it was known there,
    which is then forgotten."""
    near = label < kept[node, -1]
    node, label = node[near], label[near]
    order = np.lexsort((label, label & _NUMBER, node))
    node, label = node[order], label[order]
    is_first = np.ones(len(node), bool)
    is_first[1:] = (node[1:] != node[:-1]) | ((label[1:] & _NUMBER) != (label[:-1] & _NUMBER))
    node, label = node[is_first], label[is_first]
    known = kept[node]
    is_known = ((known & _NUMBER) == (label & _NUMBER)[:, None]) & (known != _NONE)
    comes = ~(is_known & (known <= label[:, None])).any(axis=1)
    stale, slot = np.nonzero(is_known & comes[:, None])
    kept[node[stale], slot] = _NONE
    node, label = node[comes], label[comes]
    order = np.lexsort((label, node))
    return node[order], label[order]


def _keep(kept: Ints, node: Ints, label: Ints) -> tuple[Ints, Ints]:
    """Put labels, by node and ascending, among those that are `kept`; those that stay."""
    most = kept.shape[1]
    begin = np.flatnonzero(np.append(True, node[1:] != node[:-1])) if len(node) else np.empty(0, np.int64)
    count = np.diff(np.append(begin, len(node)))
    rank = np.arange(len(node)) - np.repeat(begin, count)
    owner = np.repeat(np.arange(len(begin)), count)
    heads = node[begin]
    rows = kept[heads]
    # No more than `most` of one node can stay, and they are ascending.
    for low in range(0, min(int(count.max(initial=0)), most), _AT_ONCE):
        those = np.flatnonzero((rank >= low) & (rank < low + _AT_ONCE) & (rank < most))
        more = np.full((len(heads), _AT_ONCE), _NONE)
        more[owner[those], rank[those] - low] = label[those]
        rows = np.sort(np.concatenate((rows, more), axis=1), axis=1)[:, :most]
    kept[heads] = rows
    stays = label <= rows[owner, most - 1]
    return node[stays], label[stays]
