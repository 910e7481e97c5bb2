"""A network as a graph to travel on: built once from its columns, never changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from twin.city import Network
from twin.model import Bools, Floats, Indices, NotFound

# Travel with the flow, against it, or either way whatever the direction.
Sense = Literal["downstream", "upstream", "both"]
NO_PLACES: Final[Indices] = np.zeros(0, np.int32)


class Place(NamedTuple):
    """A node or an edge of a network; `group` is its asset's (`node` or `link`), `at` its place in the columns."""

    group: Literal["node", "link"]
    at: int


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Nodes and edges of a network, each once, by their places in the columns."""

    node: Indices
    edge: Indices

    def __len__(self) -> int:
        return len(self.node) + len(self.edge)


@dataclass(frozen=True, eq=False)
class Arcs:
    """The ways that lead out of each node in one sense: those of node n lie at `first[n]:first[n + 1]`, each leading
    to `node` over `edge`, `length` metres. `edges`: how many the network has; `is_single`: no edge has two arcs.
    `worked_out`: what follows from the arcs and is kept beside them."""

    first: Indices
    node: Indices
    edge: Indices
    length: Floats
    edges: int
    is_single: bool
    worked_out: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def matrix(self) -> Any:
        """For scipy; parallel edges stay apart, lengths of zero stay ways."""
        nodes = len(self.first) - 1
        return csr_array((self.length, self.node, self.first), shape=(nodes, nodes))

    def out_of(self, nodes: Indices) -> tuple[Indices, Indices]:
        """The arcs that leave `nodes`, in their order; and for each the place in `nodes` it leaves from."""
        return rows_of(self.first, nodes)


class Graph:
    """A `Network` with both directions at hand.

    `way` [E]: 1 only from start to end, -1 only from end to start, 0 either way; from `Network.direction`, turned by
    `flow` [E] where that is given and neither 0 nor NaN (its sign is a hydraulic model's: positive from start to end).
    Without it an edge of a looped, pressurised network is passed either way, as its topology knows no downstream.
    `length` [E] in metres: where unknown, the ends' distance in the plane (the coordinates taken as metres), else 0.
    Arcs are built when first asked for.
    """

    def __init__(self, network: Network, flow: Floats | None = None) -> None:
        self.network: Final = network
        self.nodes: Final = len(network.node)
        self.edges: Final = len(network.edge)
        self.start: Final[Indices] = np.ascontiguousarray(network.start, np.int32)
        self.end: Final[Indices] = np.ascontiguousarray(network.end, np.int32)
        self.is_open: Final[Bools] = np.asarray(network.is_open, bool)
        way = np.sign(network.direction).astype(np.int8)
        if flow is not None:
            sign = np.nan_to_num(np.sign(flow)).astype(np.int8)
            way = np.where(sign != 0, sign, way)
        self.way: Final[NDArray[np.int8]] = way
        length = np.array(network.length, np.float64)
        unknown = ~(length >= 0)
        if unknown.any():
            s, e = self.start[unknown], self.end[unknown]
            between = np.hypot(network.x[e] - network.x[s], network.y[e] - network.y[s])
            length[unknown] = np.where(np.isfinite(between), between, 0.0)
        length[np.isinf(length)] = 0.0
        self.length: Final[Floats] = length
        self._arcs: dict[tuple[Sense, bool], Arcs] = {}

    def arcs(self, sense: Sense, past_closed: bool = False) -> Arcs:
        """The arcs to travel in `sense`, over closed edges too if `past_closed`."""
        key = (sense, past_closed)
        if key not in self._arcs:
            self._arcs[key] = self._make_arcs(sense, past_closed)
        return self._arcs[key]

    def _make_arcs(self, sense: Sense, past_closed: bool) -> Arcs:
        passes = np.ones(self.edges, bool) if past_closed else self.is_open
        way = {"downstream": self.way, "upstream": -self.way, "both": np.zeros_like(self.way)}[sense]
        along = np.flatnonzero(passes & (way >= 0)).astype(np.int32)
        # A loop from a node to itself leads nowhere new: one arc, so that the edge is met once.
        against = np.flatnonzero(passes & ((way == 0) & (self.start != self.end) | (way < 0))).astype(np.int32)
        edge = np.concatenate((along, against))
        tail = np.concatenate((self.start[along], self.end[against]))
        head = np.concatenate((self.end[along], self.start[against]))
        first, order = rows_by(tail, self.nodes)
        edge = edge[order]
        is_single = not np.any(passes & (way == 0))
        return Arcs(first, head[order], edge, self.length[edge], self.edges, is_single)

    def component_of_nodes(self, past_closed: bool = False) -> Indices:
        """The number of each node's connected part [N], whatever the directions."""
        return self._parts[past_closed]

    @cached_property
    def _parts(self) -> dict[bool, Indices]:
        every = np.ones(self.edges, bool)
        return {past: components(self.nodes, self.start, self.end, every if past else self.is_open)
                for past in (False, True)}  # fmt: skip

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        return {
            "node": {local: n for n, local in enumerate(self.network.node)},
            "link": {local: n for n, local in enumerate(self.network.edge)},
        }

    def place(self, group: Literal["node", "link"], local: str) -> Place:
        """Where the asset `local` of `group` stands; NotFound if it is none of this network."""
        index = self._places[group].get(local)
        if index is None:
            raise NotFound(f"no {group} {local} in the {self.network.system} network")
        return Place(group, index)

    def check(self, place: Place) -> Place:
        """The same place; NotFound if it lies outside the columns."""
        if not 0 <= place.at < (self.nodes if place.group == "node" else self.edges):
            raise NotFound(f"no {place.group} number {place.at} in the {self.network.system} network")
        return place

    def ends(self, edge: int) -> Indices:
        """The one or two nodes at the ends of `edge`."""
        return np.unique(np.array([self.start[edge], self.end[edge]], np.int32))


def rows_by(row: Indices, rows: int) -> tuple[Indices, Indices]:
    """Entries grouped by their row: where each row begins [rows + 1], and the entries in that order [len(row)]."""
    # scipy's counting sort; five times faster than a stable argsort. Columns are entries, so none are summed.
    size = len(row)
    ones = np.ones(size, np.int8)
    grouped = csr_array((ones, (row, np.arange(size, dtype=np.int32))), shape=(rows, max(size, 1)))
    return grouped.indptr.astype(np.int32, copy=False), grouped.indices.astype(np.int32, copy=False)


def rows_of(first: Indices, rows: NDArray[Any]) -> tuple[Indices, Indices]:
    """The entries of `rows` in their order, and for each the place in `rows` it belongs to."""
    begin = first[rows]
    count = first[rows + 1] - begin
    ends = np.cumsum(count, dtype=np.int32)
    total = int(ends[-1]) if len(ends) else 0
    # An owner ends where its entries do; half the time of np.repeat.
    owner = np.cumsum(np.bincount(ends[:-1], minlength=total)[:total], dtype=np.int32)
    return (begin + count - ends)[owner] + np.arange(total, dtype=np.int32), owner


def components(nodes: int, start: Indices, end: Indices, joins: Bools) -> Indices:
    """The number of the connected part of each of `nodes`, where the edges that `joins` [E] join."""
    if nodes == 0:
        return NO_PLACES
    s, e = start[joins], end[joins]
    matrix = csr_array((np.ones(len(s), np.int8), (s, e)), shape=(nodes, nodes))
    label: Indices = connected_components(matrix, directed=True, connection="weak")[1]
    return label
