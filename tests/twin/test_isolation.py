"""Isolation, against a flood by hand through every small network there can be."""

from __future__ import annotations

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.networks import networks
from twin.city import Network
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
    inner = {
        b for b in bounds if all(s in wet or (s in bounds and is_inner_pair(net, b, s, wet)) for s in sides(net, b))
    }
    return wet | inner, bounds - inner


def is_inner_pair(net: Network, valve: Place, side: Place, wet: set[Place]) -> bool:
    return False


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


@settings(max_examples=300, deadline=None)
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
