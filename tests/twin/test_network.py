"""Tracing, against networkx and by hand."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.networks import network, networks
from twin.city import Network
from twin.model import NotFound
from twin.network.branches import branches_of
from twin.network.graph import Graph, Place, Sense
from twin.network.nearest import nearest
from twin.network.tracing import component, reach, trace


def travelled(net: Network, sense: Sense, past_closed: bool = False) -> nx.MultiDiGraph:
    """The same network as networkx has it."""
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(len(net.node)))
    for e, (s, t) in enumerate(zip(net.start.tolist(), net.end.tolist(), strict=True)):
        if not (net.is_open[e] or past_closed):
            continue
        length, is_one_way = float(net.length[e]), net.direction[e] == 1 and sense != "both"
        if sense != "upstream" or not is_one_way:
            graph.add_edge(s, t, key=e, weight=length)
        if sense == "upstream" or not is_one_way:
            graph.add_edge(t, s, key=e, weight=length)
    return graph


def hard(size: int, *, loops: int, seed: int = 1) -> Network:
    """A drain network of `size` nodes that all run to node 0, some of them two ways."""
    rng = np.random.default_rng(seed)
    tail = np.concatenate((np.arange(1, size), rng.integers(2, size, loops)))
    head = np.maximum(0, tail - 1 - rng.integers(0, 12, len(tail)))
    return network(size, list(zip(tail.tolist(), head.tolist(), rng.random(len(tail)).tolist(), strict=True)),
                   system="drainage", one_way=True)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(networks(), st.data())
def test_a_trace_reaches_what_networkx_reaches_at_the_same_distances(net: Network, data: st.DataObject) -> None:
    sense = data.draw(st.sampled_from(["downstream", "upstream", "both"]))
    past_closed = data.draw(st.booleans())
    start = data.draw(st.integers(0, len(net.node) - 1))
    limit = data.draw(st.sampled_from([math.inf, 3.0]))
    wanted = travelled(net, sense, past_closed)
    distances = nx.single_source_dijkstra_path_length(wanted, start, cutoff=limit)
    edges: dict[int, float] = {}
    for node, distance in distances.items():
        for _, _, key in wanted.out_edges(node, keys=True):
            edges[key] = min(edges.get(key, math.inf), distance)

    found = trace(Graph(net), Place("node", start), sense, limit_m=limit, past_closed=past_closed)

    assert dict(zip(found.node.tolist(), found.node_distance_m.tolist(), strict=True)) == pytest.approx(distances)
    assert dict(zip(found.edge.tolist(), found.edge_distance_m.tolist(), strict=True)) == pytest.approx(edges)
    assert len(found.edge) == len(edges)
    assert np.all(np.diff(found.node_distance_m) >= 0)
    assert np.all(np.diff(found.edge_distance_m) >= 0)


@settings(max_examples=200, deadline=None)
@given(networks(), st.data())
def test_the_nearest_of_many_places_are_those_at_the_shortest_distances_of_networkx(
    net: Network, data: st.DataObject
) -> None:
    sense: Sense = data.draw(st.sampled_from(["downstream", "upstream", "both"]))
    limit, most = data.draw(st.sampled_from([0.0, 2.5, 100.0])), data.draw(st.sampled_from([1, 2, 3, 16]))
    nodes, graph = len(net.node), travelled(net, sense)
    every = st.permutations(range(nodes + len(net.edge)))
    at = data.draw(every)[: data.draw(st.integers(1, nodes + len(net.edge)))]
    place, distance = nearest(Graph(net), np.array(at), sense, limit, most)
    for n, a in enumerate(at):
        ends = [a]
        if a >= nodes:  # one leaves a pipe at the ends that it leads to, closed or not
            s, t = int(net.start[a - nodes]), int(net.end[a - nodes])
            is_one_way = net.direction[a - nodes] == 1 and sense != "both"
            ends = [t if sense == "downstream" else s] if is_one_way else [s, t]
        found: dict[int, float] = dict(nx.multi_source_dijkstra_path_length(graph, set(ends), cutoff=limit))
        for tail, _, key in graph.edges(keys=True):
            if tail in found:
                found[nodes + key] = min(found[tail], found.get(nodes + key, math.inf))
        others = sorted((found[b], k) for k, b in enumerate(at) if b in found and k != n)[: most - 1]
        got = [(d / 1e6, k) for d, k in zip(distance[n].tolist(), place[n].tolist(), strict=True) if k >= 0]
        assert got == [(0.0, n), *others]


@pytest.mark.parametrize("loops", [0, 40])
@pytest.mark.parametrize("sense", ["upstream", "downstream", "both"])
def test_a_large_trace_says_what_networkx_says(sense: Sense, loops: int) -> None:
    net = hard(3000, loops=loops)
    graph, oracle = Graph(net), travelled(net, sense)
    for start in (0, 1, 700, 2999):
        wanted = nx.single_source_dijkstra_path_length(oracle, start)
        found = trace(graph, Place("node", start), sense)
        assert dict(zip(found.node.tolist(), found.node_distance_m.tolist(), strict=True)) == pytest.approx(wanted)
        assert np.all(np.diff(found.node_distance_m) >= 0)
        out = {key for node in wanted for _, _, key in oracle.out_edges(node, keys=True)}
        assert set(found.edge.tolist()) == out
        assert len(found.edge) == len(out)


@settings(max_examples=200, deadline=None)
@given(networks(), st.data())
def test_branches_taken_whole_reach_what_a_search_node_by_node_reaches(net: Network, data: st.DataObject) -> None:
    arcs = Graph(net).arcs(data.draw(st.sampled_from(["downstream", "upstream"])))
    branches = branches_of(arcs, most_choices=1.0)
    if branches is None:  # every node lies on a ring that nothing enters
        return
    for seed in range(len(net.node)):
        for limit in (math.inf, 3.0):
            node, distance = branches.reach(seed, limit)
            assert len(set(node.tolist())) == len(node)
            wanted = dict(zip(*(column.tolist() for column in reach(arcs, np.array([seed]), limit)), strict=True))
            assert dict(zip(node.tolist(), distance.tolist(), strict=True)) == pytest.approx(wanted)


def test_a_trace_from_a_pipe_begins_where_one_leaves_it() -> None:
    graph = Graph(network(4, [(0, 1, 5.0), (1, 2, 7.0), (2, 3, 9.0)], one_way=True))
    down = trace(graph, Place("link", 1), "downstream")
    assert down.node.tolist() == [2, 3]
    assert down.edge.tolist() == [1, 2]
    assert down.edge_distance_m.tolist() == [0.0, 0.0]
    up = trace(graph, Place("link", 1), "upstream")
    assert up.node.tolist() == [1, 0]
    assert up.node_distance_m.tolist() == [0.0, 5.0]
    assert up.edge.tolist() == [1, 0]
    is_edge, at, distance = up.merged()
    assert is_edge.tolist() == [False, True, True, False]
    assert at.tolist() == [1, 1, 0, 0]
    assert distance.tolist() == [0, 0, 0, 5]


def test_a_given_flow_turns_pipes_that_are_else_passed_either_way() -> None:
    net = network(3, [(0, 1), (1, 2)])
    assert trace(Graph(net), Place("node", 1), "downstream").node.tolist() == [1, 0, 2]
    graph = Graph(net, flow=np.array([-2.0, np.nan]))
    assert trace(graph, Place("node", 1), "downstream").node.tolist() == [1, 0, 2]
    assert trace(graph, Place("node", 1), "upstream").node.tolist() == [1, 2]


def test_an_unknown_length_is_the_distance_in_the_plane_and_else_nothing() -> None:
    net = network(3, [(0, 1, math.nan), (1, 2, math.nan)], xy=[(0, 0), (3, 4), (math.nan, 0)])
    assert trace(Graph(net), Place("node", 0), "both").node_distance_m.tolist() == [0, 5, 5]


def test_a_path_of_very_many_pipes_is_traced_to_its_end() -> None:
    size = 100_000
    graph = Graph(network(size, [(n, n + 1) for n in range(size - 1)], one_way=True))
    found = trace(graph, Place("node", 0), "downstream")
    assert found.node_distance_m[-1] == size - 1
    assert found.edge.tolist() == list(range(size - 1))


def test_places_that_are_none_are_not_found() -> None:
    graph = Graph(network(2, [(0, 1)]))
    assert graph.place("link", "e0") == Place("link", 0)
    with pytest.raises(NotFound):
        graph.place("node", "e0")
    for place in (Place("node", 2), Place("link", 1), Place("node", -1)):
        with pytest.raises(NotFound):
            trace(graph, place, "both")
    empty = Graph(network(0))
    with pytest.raises(NotFound):
        component(empty, Place("node", 0))


@settings(max_examples=100, deadline=None)
@given(networks(), st.data())
def test_a_component_is_what_networkx_finds_connected(net: Network, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(net.node) - 1))
    wanted = nx.node_connected_component(nx.Graph(travelled(net, "both")), start)
    found = component(Graph(net), Place("node", start))
    assert set(found.node.tolist()) == wanted
    inside = [e for e in range(len(net.edge)) if net.is_open[e] and net.start[e] in wanted]
    assert found.edge.tolist() == inside
