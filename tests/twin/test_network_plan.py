"""What lies near, what crosses, what a dig meets, what sensors cover, and profiles."""

from __future__ import annotations

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from tests.twin.networks import network, networks
from twin.city import Network
from twin.model import NotFound
from twin.network.clearances import CLEARANCES, PROTECTIONS, clearance, protection
from twin.network.coverage import coverage
from twin.network.crossing import KINDS, conflicts
from twin.network.digging import dig
from twin.network.graph import Graph, Place
from twin.network.pipes import Pipes, class_of
from twin.network.plan import Shapes, service
from twin.network.profile import path, profile
from twin.plane import LocalPlane, nearest_points

coordinate = st.integers(-4, 4).map(float)


@settings(max_examples=150, deadline=None)
@given(st.lists(coordinate, min_size=8, max_size=8))
def test_the_distance_of_two_pieces_in_the_plane_is_shapelys(given_points: list[float]) -> None:
    a0, a1, b0, b1 = np.array(given_points).reshape(4, 1, 2)
    s, t, apart = nearest_points(a0, a1, b0, b1)
    wanted = shapely.distance(shapely.linestrings([a0[0], a1[0]]), shapely.linestrings([b0[0], b1[0]]))
    assert apart[0] == pytest.approx(wanted, abs=1e-9)
    assert np.hypot(*(a0 + s * (a1 - a0) - b0 - t * (b1 - b0))[0]) == pytest.approx(apart[0], abs=1e-12)


def test_pieces_in_space_are_as_near_as_a_fine_search_finds_them() -> None:
    rng = np.random.default_rng(2)
    a0, a1, b0, b1 = rng.normal(size=(4, 50, 3))
    share = np.linspace(0, 1, 201)
    first = a0[:, None] + share[:, None] * (a1 - a0)[:, None]
    second = b0[:, None] + share[:, None] * (b1 - b0)[:, None]
    searched = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min(axis=(1, 2))
    found = nearest_points(a0, a1, b0, b1)[2]
    assert np.all(found <= searched + 1e-12)
    assert np.all(searched - found < 0.02)


def test_the_local_plane_is_the_ellipsoids_near_its_centre() -> None:
    plane = LocalPlane.around(np.array([117.0, 117.4]), np.array([31.7, 31.9]))
    lon, lat = np.array([117.21]), np.array([31.805])
    x, y = plane.metres(lon, lat)
    assert math.hypot(x[0], y[0]) == pytest.approx(
        Geod(ellps="WGS84").inv(plane.lon, plane.lat, 117.21, 31.805)[2], 2e-4
    )
    back = plane.degrees(x, y)
    assert (back[0][0], back[1][0]) == pytest.approx((117.21, 31.805), abs=1e-12)


def pipe(system: str, *line: tuple[float, float, float], diameter: float = 0.2, **known: list[str]) -> Pipes:
    """One pipe whose axis runs through the points of `line`, 10 m below which nothing is; the ground is at 0."""
    net = network(
        2, [(0, 1, math.nan)], system=system, xy=[line[0][:2], line[-1][:2]], ground=[0, 0], diameter=diameter
    )
    return Pipes.of(net, lines=[np.array(line)], **known)  # type: ignore[arg-type]


def test_a_crossing_is_judged_by_the_vertical_clearance() -> None:
    water = pipe("water", (-10, 0, -1.0), (10, 0, -1.0))
    for depth, is_wrong in ((-1.3, True), (-1.34, True), (-1.36, False)):
        gas = pipe("gas", (0, -10, depth), (0, 10, depth))
        found = conflicts([water, gas])
        assert len(found) == is_wrong
    found = conflicts([water, pipe("gas", (3, -10, -1.1), (3, 10, -1.1))])
    assert KINDS[found.kind[0]] == "crossing"
    assert (found.x[0], found.y[0]) == pytest.approx((3, 0))
    assert found.actual_m[0] == pytest.approx(-0.1)
    assert found.required_m[0] == 0.15
    assert found.mark == ["M"]
    unknown = pipe("gas", (3, -10, math.nan), (3, 10, math.nan))
    assert len(conflicts([water, unknown])) == 0
    assert np.isnan(conflicts([water, unknown], with_unknown=True).actual_m).tolist() == [True]


def test_pipes_side_by_side_are_judged_by_the_horizontal_clearance_of_their_pressure() -> None:
    water = pipe("water", (0, 0, -1), (50, 0, -1))
    beside = (0.0, 0.9, -1.0), (20.0, 0.9, -1.0), (50.0, 0.9, -1.0)
    assert len(conflicts([water, pipe("gas", *beside)])) == 0
    found = conflicts([water, pipe("gas", *beside, pressure_class=["sub_high_a"])])
    assert len(found) == 1
    assert KINDS[found.kind[0]] == "parallel"
    assert found.actual_m[0] == pytest.approx(0.7)
    assert found.required_m[0] == 1.5
    assert len(conflicts([water, pipe("water", *beside)])) == 0
    assert len(conflicts([])) == 0


def test_the_class_of_a_gas_pipe_is_read_from_names_and_from_pressures() -> None:
    told = [
        "medium",
        "中压A",
        "0.2MPa",
        "400 kPa",
        "401kPa",
        "次高压 B",
        "sub-high-a",
        "2 MPa",
        "5kPa",
        "低压",
        "DN300",
        0.2,
    ]
    assert [class_of(text) for text in told] == [
        "medium", "medium", "medium", "medium", "sub_high_b", "sub_high_b", "sub_high_a", "high", "low", "low", "", "",
    ]  # fmt: skip


def test_the_table_knows_both_orders_and_the_larger_water_mains() -> None:
    assert clearance(CLEARANCES, "drainage", "water", "", (0.4, 0.3)).horizontal_m == 1.5
    assert clearance(CLEARANCES, "water", "drainage", "", (0.2, 0.3)).horizontal_m == 1.0
    assert clearance(CLEARANCES, "industry", "drainage", "", (0.2, 0.3)).mark == "E"
    assert protection(PROTECTIONS, "gas", "high").control_m == 50
    assert protection(PROTECTIONS, "gas", "").protection_m == 1.5


SQUARE = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
TODAY = np.datetime64("2024-06-01")


def test_a_dig_meets_what_is_near_and_not_too_deep() -> None:
    near = pipe("gas", (-20, 10.4, -1), (30, 10.4, -1), pressure_class=["low"], owner=["gas-co"])
    asked = pipe("gas", (-20, 13, -1), (30, 13, -1), pressure_class=["low"], owner=["gas-co"])
    deep = pipe("drainage", (5, -20, -6), (5, 30, -6), owner=["drains"])
    unknown = pipe("drainage", (5, -20, math.nan), (5, 30, math.nan), owner=["drains"])
    found = dig([near, asked, deep, unknown], SQUARE, 2.0, TODAY)
    assert [(piece.network, piece.zone) for piece in found.pieces if piece.group == "link"] == [
        (3, "protection"), (0, "protection"), (1, "control"),
    ]  # fmt: skip
    inside, first, _ = found.pieces
    assert inside.crown_depth_m is None
    assert first.distance_m == pytest.approx(0.3)
    assert first.crown_depth_m == pytest.approx(0.9)
    assert 10 < first.length_m < 12
    assert first.lines[0][0][1] == 10.4
    assert [(n.owner, n.pipes, n.is_protected) for n in found.notices] == [("drains", 1, True), ("gas-co", 2, True)]
    assert {piece.network for piece in dig([deep], SQUARE, 5.0, TODAY).pieces} == {0}


def test_a_dig_leaves_out_what_was_not_there_on_its_day_and_finds_covers() -> None:
    net = network(2, [(0, 1)], system="drainage", xy=[(5, 5), (5, 50)], types={0: "manhole", 1: "manhole"})
    laid = np.array(["2024-06-02"], "datetime64[D]")
    gone = np.array(["2024-01-01"], "datetime64[D]")
    assert [p.group for p in dig([Pipes.of(net)], SQUARE, 1, TODAY).pieces] == ["link", "node"]
    assert [p.group for p in dig([Pipes.of(net, since=laid)], SQUARE, 1, TODAY).pieces] == ["node"]
    assert [p.group for p in dig([Pipes.of(net, until=gone)], SQUARE, 1, TODAY).pieces] == ["node"]
    with pytest.raises(ValueError, match="area"):
        dig([], SQUARE[[0, 1, 1]], 1, TODAY)
    assert dig([Pipes.of(network(0))], SQUARE, 1, TODAY).pieces == ()


def finely(net: Network, places: list[Place], reach: float, parts: int = 40) -> list[float]:
    """Covered length of each edge, by cutting each into many."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(net.node)))
    for e in range(len(net.edge)):
        ends = [int(net.start[e]), *[(e, n) for n in range(1, parts)], int(net.end[e])]
        for a, b in pairwise(ends):
            is_cut = not net.is_open[e] and (a, b) == (ends[parts // 2], ends[parts // 2 + 1])
            if not is_cut:
                step = net.length[e] / parts
                graph.add_edge(a, b, weight=min(step, graph.edges[a, b]["weight"]) if graph.has_edge(a, b) else step)
    seeds = {(p.at, parts // 2) if p.group == "link" else p.at for p in places}
    near = nx.multi_source_dijkstra_path_length(graph, seeds, cutoff=reach + 1e-9) if seeds else {}
    return [
        sum((e, n) in near for n in range(1, parts)) / (parts - 1) * float(net.length[e]) for e in range(len(net.edge))
    ]


@settings(max_examples=60, deadline=None)
@given(networks(), st.data())
def test_the_length_in_reach_of_sensors_is_what_a_fine_cut_counts(net: Network, data: st.DataObject) -> None:
    open_edges = np.flatnonzero(net.is_open).tolist()
    every = [Place("node", n) for n in range(len(net.node))] + [Place("link", e) for e in open_edges]
    places = data.draw(st.lists(st.sampled_from(every), max_size=3))
    found = coverage(Graph(net), places, 1.2)
    wanted = finely(net, places, 1.2)
    is_sure = net.is_open | (net.length == 0)
    assert found.covered_m[is_sure] == pytest.approx(np.array(wanted)[is_sure], abs=0.2)
    assert np.all(found.covered_m <= net.length + 1e-12)


def test_coverage_is_told_by_area() -> None:
    net = network(3, [(0, 1, 100.0), (1, 2, 300.0)])
    found = coverage(Graph(net), [Place("node", 0)], 200.0, area=["north", "south"])
    assert [(a.area, a.share) for a in found.areas] == [("north", 1.0), ("south", pytest.approx(1 / 3))]
    assert found.whole.share == 0.5
    assert found.node.tolist() == [0, 1]
    assert coverage(Graph(network(0)), [], 10).whole.share == 0


def test_the_nearest_are_found_by_type_and_buildings_by_their_pipe() -> None:
    net = network(4, [(0, 1), (2, 3)], xy=[(0, 0), (10, 0), (0, 100), (10, 100)], types={1: "manhole", 3: "manhole"})
    pipes = Pipes.of(net)
    assert Shapes.nodes(pipes, "manhole").nearest(shapely.Point(0, 1)) == (1, pytest.approx(math.sqrt(101)))
    assert Shapes.nodes(pipes, "valve").nearest(shapely.Point(0, 1)) is None
    assert Shapes.nodes(pipes).nearest(shapely.Point(0, 50), 10) is None
    assert Shapes.nodes(pipes).within(shapely.Point(1, 0), 9).at.tolist() == [0, 1]
    assert Shapes.edges(pipes).nearest(shapely.Point(5, 60)) == (1, 40)
    houses = [shapely.box(2, 5, 4, 8), shapely.box(2, 90, 4, 95), shapely.box(500, 0, 510, 10), shapely.box(0, 2, 1, 3)]
    served = service(pipes, houses, np.array([-1, -1, -1, 3], np.int32))
    assert served.edge.tolist() == [0, 1, -1, -1]
    assert served.of(Graph(net), Place("link", 0)).tolist() == [0]
    assert served.of(Graph(net), Place("link", 1)).tolist() == [1, 3]


def test_a_profile_tells_heights_along_the_way_and_what_is_wrong() -> None:
    net = network(
        4, [(0, 1, 50.0), (1, 2, 50.0), (2, 3, 100.0)], system="drainage", one_way=True, diameter=0.5,
        ground=[3, 3, 2.2, 3], inverts=[(1.0, 0.9), (1.2, 1.75), (0.8, 0.3)],
    )  # fmt: skip
    level = np.array([1.4, math.nan, math.nan, 0.6])
    found = profile(Graph(net), 0, 3, level=level)
    assert found.sense == "downstream"
    assert found.chainage_m.tolist() == [0, 50, 100, 200]
    assert found.level_m == pytest.approx([1.4, 1.2, 1.0, 0.6])
    assert found.is_observed.tolist() == [True, False, False, True]
    assert found.slope[0] == pytest.approx(0.002)
    assert found.crown_m[0].tolist() == [1.5, 1.4]
    assert [(f.what, f.place) for f in found.findings] == [
        ("adverse-slope", Place("link", 1)),
        ("crown-above-ground", Place("link", 1)),
        ("invert-step-up", Place("node", 1)),
    ]
    back = profile(Graph(net), 3, 0)
    assert back.sense == "upstream"
    assert back.invert_m[0].tolist() == [0.3, 0.8]
    assert {(f.what, f.place) for f in back.findings} == {(f.what, f.place) for f in found.findings}
    with pytest.raises(NotFound):
        profile(Graph(network(2)), 0, 1)


@settings(max_examples=60, deadline=None)
@given(networks(), st.data())
def test_a_path_is_as_short_as_networkx_finds_it(net: Network, data: st.DataObject) -> None:
    begin, end = (data.draw(st.integers(0, len(net.node) - 1)) for _ in range(2))
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(len(net.node)))
    for e in np.flatnonzero(net.is_open).tolist():
        graph.add_edge(int(net.start[e]), int(net.end[e]), weight=float(net.length[e]))
        if net.direction[e] == 0:
            graph.add_edge(int(net.end[e]), int(net.start[e]), weight=float(net.length[e]))
    found = path(Graph(net), begin, end, "downstream")
    if found is None:
        assert not nx.has_path(graph, begin, end)
    else:
        nodes, edges = found
        assert net.length[edges].sum() == nx.dijkstra_path_length(graph, begin, end)
        assert (nodes[0], nodes[-1], len(edges)) == (begin, end, len(nodes) - 1)
