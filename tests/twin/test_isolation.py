"""Isolation, against a flood by hand through every small network there can be."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.networks import network, networks
from twin.city import Network
from twin.model import NotFound
from twin.network.graph import Graph, Place
from twin.network.isolation import SOURCES, Segments


def is_valve(net: Network, place: Place) -> bool:
    if place.group == "node":
        return net.node_type[place.at] == "valve"
    return net.edge_type[place.at] == "valve" or not net.is_open[place.at]


def sides(net: Network, place: Place) -> list[Place]:
    """What one meets next."""
    if place.group == "link":
        return [Place("node", int(net.start[place.at])), Place("node", int(net.end[place.at]))]
    return [Place("link", e) for e in range(len(net.edge)) if place.at in (net.start[e], net.end[e])]


def flood(net: Network, start: Place, stuck: set[Place]) -> tuple[set[Place], set[Place]]:
    """What loses its pressure, and the valves where that ends: water passes all that is no valve, valves stuck open,
    and the place where one works."""
    wet, bounds, waiting = set(), set(), [start]
    while waiting:
        place = waiting.pop()
        if place in wet:
            continue
        is_shut = place.group == "link" and not net.is_open[place.at]
        if place != start and is_valve(net, place) and (place not in stuck or is_shut):
            bounds.add(place)
            continue
        wet.add(place)
        waiting += sides(net, place)
    inner = {b for b in bounds if all(side in wet for side in sides(net, b))}
    return wet | inner, bounds - inner


def fed(net: Network, without: set[Place]) -> set[Place]:
    """What a source reaches when `without` is gone."""
    graph = nx.DiGraph()
    for n in range(len(net.node)):
        graph.add_node(Place("node", n))
    for e in range(len(net.edge)):
        if not net.is_open[e]:
            continue
        start, end = sides(net, Place("link", e))
        graph.add_edge(start, Place("link", e))
        graph.add_edge(Place("link", e), end)
        if net.direction[e] == 0:
            graph.add_edge(end, Place("link", e))
            graph.add_edge(Place("link", e), start)
    graph.remove_nodes_from(without)
    reached: set[Place] = set()
    for n, kind in enumerate(net.node_type):
        if kind in SOURCES and Place("node", n) in graph:
            reached |= {Place("node", n)} | nx.descendants(graph, Place("node", n))
    return reached


def nodes(places: set[Place]) -> list[int]:
    return sorted(p.at for p in places if p.group == "node")


def edges(places: set[Place]) -> list[int]:
    return sorted(p.at for p in places if p.group == "link")


@settings(max_examples=120, deadline=None)
@given(networks(), st.data())
def test_isolation_says_what_a_flood_by_hand_says(net: Network, data: st.DataObject) -> None:
    every = [Place("node", n) for n in range(len(net.node))] + [Place("link", e) for e in range(len(net.edge))]
    start = data.draw(st.sampled_from(every))
    valves = [p for p in every if is_valve(net, p)]
    stuck = data.draw(st.sets(st.sampled_from(valves), max_size=3)) if valves else set()

    found = Segments(Graph(net)).isolate(start, stuck=stuck)

    wet, bounds = flood(net, start, stuck)
    assert found.segment.node.tolist() == nodes(wet)
    assert found.segment.edge.tolist() == edges(wet)
    close = {b for b in bounds if b.group == "node" or net.is_open[b.at]}
    assert found.close.node.tolist() == nodes(close)
    assert found.close.edge.tolist() == edges(close)
    assert found.closed.edge.tolist() == edges(bounds - close)
    lost = fed(net, set()) - fed(net, wet | close) - wet - close
    assert found.cut_off.node.tolist() == nodes(lost)
    assert found.has_source == any(kind in SOURCES for kind in net.node_type)
    assert [a.valve for a in found.alternatives] == (
        [Place("link", e) for e in edges(close)] + [Place("node", n) for n in nodes(close)]
    )
    for alternative in found.alternatives:
        wider = Segments(Graph(net)).isolate(start, stuck=stuck | {alternative.valve}, alternatives=0)
        assert alternative.instead.segment.edge.tolist() == wider.segment.edge.tolist()
        assert set(alternative.further.edge.tolist()) == set(wider.close.edge.tolist()) - set(found.close.edge.tolist())


def test_the_valves_around_a_pipe_and_who_is_cut_off_behind_it() -> None:
    # reservoir 0 - valve e0 - 1 - pipe e1 - 2 - valve e2 - 3 - pipe e3 - 4 (a consumer), and a way round, e5 closed
    net = network(
        6, [(0, 1, 1.0), (1, 2, 100.0), (2, 3, 1.0), (3, 4, 50.0), (0, 5, 9.0), (5, 3, 1.0)],
        types={0: "reservoir", 4: "consumer"}, edge_types={0: "valve", 2: "valve", 5: "valve"}, closed=[5],
        demand={4: 3.5, 2: 1.0},
    )  # fmt: skip
    found = Segments(Graph(net)).isolate(Place("link", 1))
    assert found.close.edge.tolist() == [0, 2]
    assert found.segment.node.tolist() == [1, 2]
    assert found.cut_off.node.tolist() == [3, 4]
    assert found.cut_off.edge.tolist() == [3]
    assert found.customers.tolist() == [2, 4]
    assert found.demand_m3h == 4.5
    assert found.length_m == 150
    first = found.alternatives[0]
    assert first.valve == Place("link", 0)
    assert first.instead.segment.node.tolist() == [0, 1, 2, 5]
    assert first.instead.closed.edge.tolist() == [5]
    assert len(first.further) == 0


def test_without_valves_or_sources_it_is_said_that_nothing_can_be_told() -> None:
    found = Segments(Graph(network(3, [(0, 1), (1, 2)], system="drainage", one_way=True))).isolate(Place("link", 0))
    assert not found.is_bounded
    assert not found.has_source
    assert found.segment.node.tolist() == [0, 1, 2]
    assert len(found.cut_off) == 0
    assert len(Segments(Graph(network(1))).isolate(Place("node", 0)).segment) == 1


def test_sources_can_be_named_and_valves_must_be_valves() -> None:
    net = network(3, [(0, 1), (1, 2)], types={1: "valve"})
    found = Segments(Graph(net), sources=[0]).isolate(Place("link", 0))
    assert found.close.node.tolist() == [1]
    assert found.cut_off.node.tolist() == [2]
    two = Segments(Graph(net), sources=[0, 2])
    assert two.isolate(Place("link", 0)).cut_off.node.tolist() == []
    assert two.isolate(Place("node", 1)).segment.node.tolist() == [0, 1, 2]
    with pytest.raises(NotFound, match="no valve"):
        Segments(Graph(net)).isolate(Place("link", 0), stuck=[Place("link", 1)])
