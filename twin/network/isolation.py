"""What to close so that a place can be worked on, and who is cut off by it.

Assumed: every node or edge of type `valve` closes tightly both ways, unless it is named as stuck. Pumps, check valves,
regulators and all else do not: water stands on both sides of them. What is closed already (a valve or a pipe) bounds
too. A valve that is a node parts all edges that meet there; one that is an edge parts its ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from twin.model import Bools, Indices, NotFound
from twin.network.graph import Graph, Place, Places, components, rows_by, rows_of

# Where the water, gas or heat comes from, if no sources are named.
SOURCES: Final = frozenset(("reservoir", "tank", "source"))
CUSTOMERS: Final = frozenset(("consumer", "meter"))


@dataclass(frozen=True, slots=True, eq=False)
class Isolation:
    """What isolating a place takes and costs.

    `segment`: what is then without pressure, the smallest that valves can part, with the valves inside it.
    `close`: the valves to close; empty where none can be closed (`is_bounded` is False if the segment is all that hangs
    together with the place, so that no valve parts it from anything). `closed`: those on its bounds that are closed
    already and must stay so. `cut_off`: what reached a source before and then reaches none, besides the segment;
    empty, and `has_source` False, where the network has no source, as nothing can be said then.
    `customers`: nodes of segment and `cut_off` that take something, had a source before, or there is none (consumers,
    meters, or with a demand); `demand_m3h`: what they take; `length_m`: of the edges of segment and `cut_off`.
    `alternatives`: for each valve of `close`, what to do if it is stuck; `untold`: how many of those were left out.
    """

    segment: Places
    close: Places
    closed: Places
    cut_off: Places
    customers: Indices
    demand_m3h: float
    length_m: float
    has_source: bool
    is_bounded: bool
    alternatives: tuple[Alternative, ...] = ()
    untold: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """What to do if `valve` cannot be closed: `further` valves besides those of the first plan, and the whole plan."""

    valve: Place
    further: Places
    instead: Isolation


class Segments:
    """A network parted by its valves; built once, then an isolation is a lookup and a search among the parts.

    Elements are the nodes, and one more for each end of an edge that lies at a valve node: closing that valve parts
    them. `segment` [elements]: which belong together behind the valves; `area` [elements]: the same, but also parted
    at edges that are passed one way only, so that what reaches a source can be judged by whole areas.
    `sources`: numbers of nodes; by default those of the types in `SOURCES`.
    """

    def __init__(self, graph: Graph, sources: Iterable[int] | None = None) -> None:
        self.graph: Final = graph
        network = graph.network
        node_type = np.array(network.node_type, object)
        self.takes: Final[Bools] = (np.nan_to_num(network.demand) > 0) | _is_any(node_type, CUSTOMERS)
        self.sources: Final[Indices] = (
            np.flatnonzero(_is_any(node_type, SOURCES)).astype(np.int32)
            if sources is None
            else np.unique(np.array(list(sources), np.int32))
        )
        # Valves are numbered edges first. Closed pipes stand among them, as they bound in the same way.
        self.node_is_valve: Final[Bools] = _is_any(node_type, ("valve",))
        is_valve = _is_any(np.array(network.edge_type, object), ("valve",)) | ~graph.is_open
        self.valve_edges: Final = _numbers(is_valve)
        self.valve_nodes: Final = _numbers(self.node_is_valve)
        self.valves: Final = len(self.valve_edges) + len(self.valve_nodes)
        self.valve_is_open: Final = np.concatenate(
            (graph.is_open[self.valve_edges], np.ones(len(self.valve_nodes), bool))
        )

        ends = np.concatenate((graph.start, graph.end))
        at_valve = np.flatnonzero(self.node_is_valve[ends])
        elements = graph.nodes + len(at_valve)
        element = ends.copy()
        element[at_valve] = self._stub = np.arange(graph.nodes, elements, dtype=np.int32)
        self._stub_node = ends[at_valve]
        self.start, self.end = element[: graph.edges], element[graph.edges :]
        self.segment = components(elements, self.start, self.end, ~is_valve)
        self.area = components(elements, self.start, self.end, ~is_valve & (graph.way == 0))
        self.segments = int(self.segment.max(initial=-1)) + 1
        self.areas = int(self.area.max(initial=-1)) + 1
        self._segment_of_area = np.zeros(self.areas, np.int32)
        self._segment_of_area[self.area] = self.segment

        # Which valve touches which segments, and the other way round, as rows.
        number = np.zeros(graph.nodes, np.int32)
        number[self.valve_nodes] = np.arange(len(self.valve_edges), self.valves)
        at = np.arange(len(self.valve_edges), dtype=np.int32)
        side = np.concatenate((self.start[self.valve_edges], self.end[self.valve_edges], self._stub))
        valve, segment = np.concatenate((at, at, number[self._stub_node])), self.segment[side]
        first, order = rows_by(valve, self.valves)
        self._sides = first, segment[order]
        first, order = rows_by(segment, self.segments)
        self._bounds = first, valve[order]

    def isolate(self, start: Place, *, stuck: Collection[Place] = (), alternatives: int = 64) -> Isolation:
        """What to close to take `start` out of service, when the valves of `stuck` cannot be closed.

        Work on a valve, or on a closed pipe, takes all its sides. For each valve to close it is also said what to do
        if that one is stuck too, for `alternatives` of them at most. NotFound for an unknown place, and for one of
        `stuck` that is no valve.
        """
        self.graph.check(start)
        unusable = np.zeros(self.valves, bool)
        for place in stuck:
            number = self._number(self.graph.check(place))
            if number is None:
                raise NotFound(f"{place.group} number {place.at} is no valve")
            unusable[number] = True
        plan, close = self._plan(start, unusable)
        others = []
        valves = np.flatnonzero(close).tolist()
        for valve in valves[:alternatives]:
            more = unusable.copy()
            more[valve] = True
            instead, other_close = self._plan(start, more)
            others.append(Alternative(self._place(valve), self._places(other_close & ~close), instead))
        return replace(plan, alternatives=tuple(others), untold=len(valves) - len(others))

    def _plan(self, start: Place, stuck: Bools) -> tuple[Isolation, Bools]:
        """The plan without alternatives, and its valves to close [V]."""
        graph, edges = self.graph, len(self.valve_edges)
        is_in = self._without_pressure(start, stuck)
        bounds, inner = self._valves_at(start, is_in)
        close, closed = bounds & self.valve_is_open, bounds & ~self.valve_is_open

        element_in = is_in[self.segment]
        node_in = element_in[: graph.nodes] & ~self.node_is_valve
        node_in[self.valve_nodes] = inner[edges:]
        edge_in = element_in[self.start]
        edge_in[self.valve_edges] = inner[:edges]

        shut = is_in[self._segment_of_area]
        shut[self.area[self.valve_nodes[(close | inner)[edges:]]]] = True
        lost = self._before & ~shut & ~self._reached(shut, close)
        node_lost = lost[self.area[: graph.nodes]]
        edge_lost = lost[self.area[self.start]] & lost[self.area[self.end]] & graph.is_open
        gone = node_in | node_lost
        if len(self.sources):
            gone &= self._before[self.area[: graph.nodes]]
        customers = _numbers(gone & self.takes)
        plan = Isolation(
            segment=Places(_numbers(node_in), _numbers(edge_in)),
            close=self._places(close),
            closed=self._places(closed),
            cut_off=Places(_numbers(node_lost), _numbers(edge_lost)),
            customers=customers,
            demand_m3h=float(np.nansum(graph.network.demand[customers])),
            length_m=float(graph.length[edge_in | edge_lost].sum()),
            has_source=bool(len(self.sources)),
            is_bounded=bool(bounds.any()),
        )
        return plan, close

    def _without_pressure(self, start: Place, stuck: Bools) -> Bools:
        """The segments [S] of `start`, and those behind valves that are stuck open."""
        if start.group == "node":
            elements = [start.at]
        else:
            elements = [self.start[start.at], self.end[start.at]]
        is_in = np.zeros(self.segments, bool)
        is_in[self.segment[elements]] = True
        own = self._number(start)
        if own is not None:
            is_in[_row(self._sides, own)] = True
        new = _numbers(is_in)
        passes = stuck & self.valve_is_open
        while len(new):
            valve = np.unique(_entries(self._bounds, new))
            beyond = np.unique(_entries(self._sides, valve[passes[valve]]))
            new = beyond[~is_in[beyond]]
            is_in[new] = True
        return is_in

    def _valves_at(self, start: Place, is_in: Bools) -> tuple[Bools, Bools]:
        """The valves [V] on the bounds of the segments `is_in` [S], and those with all sides within."""
        touched = np.unique(_entries(self._bounds, np.flatnonzero(is_in)))
        entry, owner = rows_of(self._sides[0], touched)
        is_bound = np.bincount(owner[~is_in[self._sides[1][entry]]], minlength=len(touched)) > 0
        bounds, inner = np.zeros(self.valves, bool), np.zeros(self.valves, bool)
        bounds[touched[is_bound]] = True
        inner[touched[~is_bound]] = True
        own = self._number(start)
        if own is not None:
            inner[own] = True
        return bounds, inner

    @cached_property
    def _ways(self) -> tuple[Indices, Indices, Indices, Indices]:
        """The ways between areas, as rows by their tail: where rows begin, heads, tails, and the valve edge passed
        (-1: none). One row more than areas: from it all sources are reached."""
        graph = self.graph
        is_valve = np.full(graph.edges, -1, np.int32)
        is_valve[self.valve_edges] = np.arange(len(self.valve_edges))
        between = np.flatnonzero(graph.is_open & ((is_valve >= 0) | (graph.way != 0)))
        along, against = between[graph.way[between] >= 0], between[graph.way[between] <= 0]
        node, stub = self.area[self._stub_node], self.area[self._stub]
        source = np.unique(self.area[self.sources])
        start, end = self.area[self.start], self.area[self.end]
        tail = np.concatenate((start[along], end[against], node, stub, np.full(len(source), self.areas, np.int32)))
        head = np.concatenate((end[along], start[against], stub, node, source))
        # A valve node that is closed is an area that is shut; its ways name no valve.
        none = np.full(2 * len(stub) + len(source), -1, np.int32)
        valve = np.concatenate((is_valve[along], is_valve[against], none))
        first, order = rows_by(tail, self.areas + 1)
        return first, head[order], tail[order], valve[order]

    def _reached(self, shut: Bools, close: Bools) -> Bools:
        """The areas [A] that a source reaches, not through those of `shut` [A], nor over valves of `close` [V]."""
        first, head, tail, valve = self._ways
        passes = ~(shut[head] | np.append(shut, False)[tail])
        # The last entry stands for no valve (-1).
        passes &= ~np.append(close, False)[valve]
        kept = np.append(0, np.cumsum(passes))[first].astype(np.int32)
        matrix = csr_array((np.ones(int(kept[-1])), head[passes], kept), shape=(self.areas + 1, self.areas + 1))
        reached = np.zeros(self.areas + 1, bool)
        reached[breadth_first_order(matrix, self.areas, return_predecessors=False)] = True
        return reached[: self.areas]

    @cached_property
    def _before(self) -> Bools:
        """The areas [A] that a source reaches as things are."""
        return self._reached(np.zeros(self.areas, bool), np.zeros(self.valves, bool))

    def _number(self, place: Place) -> int | None:
        """The number of the valve (or closed pipe) at `place`; None if there is none."""
        known, before = (self.valve_edges, 0) if place.group == "link" else (self.valve_nodes, len(self.valve_edges))
        at = int(np.searchsorted(known, place.at))
        return before + at if at < len(known) and known[at] == place.at else None

    def _place(self, valve: int) -> Place:
        edges = len(self.valve_edges)
        if valve < edges:
            return Place("link", int(self.valve_edges[valve]))
        return Place("node", int(self.valve_nodes[valve - edges]))

    def _places(self, valves: Bools) -> Places:
        edges = len(self.valve_edges)
        return Places(self.valve_nodes[valves[edges:]], self.valve_edges[valves[:edges]])


def _numbers(which: Bools) -> Indices:
    return np.flatnonzero(which).astype(np.int32)


def _is_any(types: NDArray[np.object_], words: Iterable[str]) -> Bools:
    is_any = np.zeros(len(types), bool)
    for word in words:
        is_any |= types == word
    return is_any


def _row(rows: tuple[Indices, Indices], row: int) -> Indices:
    return rows[1][rows[0][row] : rows[0][row + 1]]


def _entries(rows: tuple[Indices, Indices], which: NDArray[np.integer[Any]]) -> Indices:
    return rows[1][rows_of(rows[0], which)[0]]
