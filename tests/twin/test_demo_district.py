"""The made-up district: what stands in it, and networks that carry what they are made for."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from models3d.writers import tiles
from twin.city import Network
from twin.demo import district
from twin.demo.city import city_sensors
from twin.model import Floats
from twin.network.crossing import conflicts
from twin.network.pipes import Pipes, class_of

MODELS = district.models()
SURFACE, WATER, DRAINAGE, GAS = (MODELS[name] for name in district.MODELS)


def graph(network: Network) -> nx.MultiDiGraph:
    found = nx.MultiDiGraph()
    found.add_nodes_from(network.node)
    for name, a, b in zip(network.edge, network.start.tolist(), network.end.tolist(), strict=True):
        found.add_edge(network.node[a], network.node[b], key=name)
    return found


def test_the_district_has_its_buildings_bridges_and_underpasses_and_every_device_stands_on_an_asset() -> None:
    count = {type_: sum(a.type == type_ for a in SURFACE.assets) for type_ in ("building", "bridge", "tunnel", "road")}
    assert count == {"building": 300, "bridge": 2, "tunnel": 2, "road": 13}
    names = [asset.local for model in MODELS.values() for asset in model.assets]
    assert len(set(names)) == len(names)
    assert {sensor.asset for sensor in city_sensors()} <= set(names)
    assert len({(s.lon, s.lat) for s in city_sensors()}) >= 60
    shown = list(tiles.write([tiles.Feature(a.local, a) for m in MODELS.values() for a in m.assets], district.CRS, "x"))
    assert {path for path, _ in shown} >= {"0-building.glb", "0-bridge.glb", "0-pipe.glb", "0-manhole.glb"}


@pytest.mark.parametrize("model", [WATER, DRAINAGE, GAS])
def test_every_pipe_has_its_asset_and_its_ends_lie_where_its_nodes_are(model: object) -> None:
    (network,) = model.networks  # type: ignore[attr-defined]
    assets = {asset.local: asset for asset in model.assets}  # type: ignore[attr-defined]
    assert set(network.node) | set(network.edge) == set(assets)
    for name, a, b in zip(network.edge, network.start.tolist(), network.end.tolist(), strict=True):
        line = assets[name].geometry[0].vertices
        np.testing.assert_allclose(line[[0, -1], 0], network.x[[a, b]])
        np.testing.assert_allclose(line[[0, -1], 1], network.y[[a, b]])
        assert line[0, 2] < network.ground[a]


def test_drains_run_downhill_to_an_outfall_and_carry_their_flow() -> None:
    (network,) = DRAINAGE.networks
    found = graph(network)
    assert nx.is_directed_acyclic_graph(found)
    outfalls = {n for n, type_ in zip(network.node, network.node_type, strict=True) if type_ == "outfall"}
    for node in network.node:
        assert node in outfalls or nx.descendants(found, node) & outfalls, node
    is_pipe = np.array([type_ == "pipe" for type_ in network.edge_type])
    fall = network.invert_start - network.invert_end
    assert (fall[is_pipe] > 0).all()
    # No manhole lies above the pipes that leave it, and none reaches out of the ground.
    assert (network.z[network.start] <= network.invert_start + 1e-6).all()
    manhole = np.array([type_ == "manhole" for type_ in network.node_type])
    assert (network.ground - network.z)[manhole].min() > 2
    # Each pipe carries all the rain, or sewage, that reaches it (Manning, full).
    flow = dict.fromkeys(network.node, 0.0)
    code = {a.local: a.attributes.get("system_code") for a in DRAINAGE.assets}
    for n, (name, type_) in enumerate(zip(network.edge, network.edge_type, strict=True)):
        if type_ == "pipe":
            strip = network.length[n] if network.length[n] == district.STEP else 0
            each = district.RAIN if code[name] == "YS" else district.SEWAGE
            flow[network.node[network.start[n]]] += strip * district.BLOCK * each
    place = {name: n for n, name in enumerate(network.edge)}
    for node in nx.topological_sort(found):
        out = list(found.out_edges(node, keys=True))
        if not out or network.edge_type[place[out[0][2]]] == "pump":
            continue
        ((_, other, name),) = out
        n = place[name]
        d, slope = network.diameter[n], fall[n] / network.length[n]
        capacity = math.pi / 4 * d**2 * (d / 4) ** (2 / 3) * math.sqrt(slope) / 0.013
        assert flow[node] <= capacity * 1.001, name
        flow[other] += flow[node]
    pumped = sum(a.attributes["capacity_m3s"] for a in DRAINAGE.assets if a.type == "pump")
    assert flow["雨水泵站前池"] <= pumped


def heads(network: Network, fixed: dict[int, float]) -> tuple[Floats, Floats]:
    """Heads (m) and flows (m³/s) of a looped network by the global gradient method (Todini and Pilati, 1988), losses
    after Hazen and Williams with C = 110."""
    n, e = len(network.node), len(network.edge)
    incidence = scipy.sparse.csr_array(
        (np.r_[-np.ones(e), np.ones(e)], (np.r_[np.arange(e), np.arange(e)], np.r_[network.start, network.end])), (e, n)
    )
    free = np.array([i for i in range(n) if i not in fixed])
    known = np.array(list(fixed))
    a12, a10 = incidence[:, free], incidence[:, known] @ np.array(list(fixed.values()))
    resistance = 10.67 * network.length / (110**1.852 * network.diameter**4.871)
    flow, head = np.full(e, 0.05), np.zeros(len(free))
    demand = network.demand[free] / 3600
    for _ in range(100):
        loss = resistance * np.abs(flow) ** 0.852
        inverse = scipy.sparse.diags_array(1 / (1.852 * np.maximum(loss, 1e-4)))
        right = a12.T @ (flow - inverse @ (loss * flow + a10)) - demand
        head = scipy.sparse.linalg.spsolve((a12.T @ inverse @ a12).tocsc(), right)
        change = inverse @ (loss * flow + a12 @ head + a10)
        flow = flow - change
        if np.abs(change).max() < 1e-7:
            break
    whole = np.zeros(n)
    whole[free], whole[known] = head, list(fixed.values())
    return whole, flow


def test_the_water_network_gives_every_crossing_its_pressure_at_the_peak() -> None:
    (network,) = WATER.networks
    assert nx.is_connected(graph(network).to_undirected())
    works = network.node_type.index("reservoir")
    head, flow = heads(network, {works: district.HEAD})
    assert abs(flow[network.start == works].sum() * 3600 - network.demand.sum()) < 1
    taken = network.demand > 0
    pressure = (head - network.ground)[taken] * 9.80665e-3  # MPa
    assert 0.28 < pressure.min() < pressure.max() < 0.5
    speed = np.abs(flow) / (math.pi / 4 * network.diameter**2)
    assert speed.max() < 1.6


def test_gas_reaches_every_block() -> None:
    (network,) = GAS.networks
    found = graph(network).to_undirected()
    assert nx.is_connected(found)
    assert network.node_type.count("consumer") == 30
    assert network.node_type.count("source") == 1


def test_the_pipes_lie_as_far_apart_as_the_clearances_ask() -> None:
    laid = []
    for model in (WATER, DRAINAGE, GAS):
        told = {asset.local: class_of(asset.attributes.get("pressure_class")) for asset in model.assets}
        laid += [Pipes.of(net, pressure_class=[told[name] for name in net.edge]) for net in model.networks]
    assert len(conflicts(laid, with_unknown=True)) == 0
