"""What the networks answer over HTTP: asked of a running service with the demo's district, and counted apart."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import networkx as nx
import numpy as np
import psycopg
import pytest
import shapely
from pyproj import Transformer

from models3d.readers import nothing
from tests.api.test_models_http import NET, ok, post
from tests.conftest import Cimtwin, empty_database, until
from twin.city import Asset, CityModel, Geometry, Network
from twin.demo import district
from twin.demo.run import import_district
from twin.importing_models import ModelWords, place
from twin.network.digging import COVERS
from twin.store.models import lock_model, save_model

MODELS = district.models()
NETWORKS: dict[str, Network] = {
    model.networks[0].system: model.networks[0] for model in MODELS.values() if model.networks
}
NAME_OF = {model.networks[0].system: name for name, model in MODELS.items() if model.networks}
ASSETS: dict[str, Asset] = {asset.local: asset for model in MODELS.values() for asset in model.assets}
SENSORS = """device,property,kind,unit,asset,lon,lat
well-a,level,drainage.level,m,雨水井1-03,,
well-b,level,drainage.level,m,雨水井1-05,,
press-1,pressure,water.pressure,MPa,供水节点2-3,,
press-2,pressure,water.pressure,MPa,供水管4-2东,,
"""
TO_MAP = Transformer.from_crs(district.CRS, "EPSG:4326", always_xy=True)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Cimtwin]:
    with empty_database(server_url) as url:
        service = Cimtwin(tmp_path_factory.mktemp("networks") / "data", {"CIMTWIN_DATABASE_URL": url}).start()
        try:
            import_district(url, "demo")
            service.put_sensors(SENSORS)
            ok(post(service, NET, name="平面"), 201)  # no CRS: nowhere on the map
            yield service
        finally:
            service.stop()


def asset_path(local: str, system: str = "") -> str:
    model = NAME_OF.get(system, district.MODELS[0])
    return f"/assets/{quote(f'{model}:{local}', safe='')}"


def flat(local: str) -> Any:
    """A shape in the district's own metres, seen from above."""
    geometry = ASSETS[local].geometry[0]
    points = geometry.vertices[:, :2]
    if geometry.kind == "MultiPoint":
        return shapely.Point(points[0])
    if geometry.kind == "MultiLineString":
        return shapely.LineString(points)
    return shapely.MultiPoint(points).convex_hull


def local(id_: str) -> str:
    return id_.partition(":")[2]


def polygon(x0: float, y0: float, x1: float, y1: float) -> tuple[Any, dict[str, Any]]:
    """A box of the district, in its metres, and as GeoJSON."""
    shape = shapely.box(
        *(base + v for base, v in zip((district.EAST, district.NORTH) * 2, (x0, y0, x1, y1), strict=True))
    )
    ring = [list(TO_MAP.transform(x, y)) for x, y in shape.exterior.coords]
    return shape, {"type": "Polygon", "coordinates": [ring]}


def test_a_component_is_what_networkx_connects(city: Cimtwin) -> None:
    net = NETWORKS["drainage"]
    graph = nx.MultiGraph()
    graph.add_nodes_from(net.node)
    graph.add_edges_from(
        (net.node[a], net.node[b], name) for name, a, b in zip(net.edge, net.start, net.end, strict=True)
    )
    begin = "雨水井1-03"
    nodes = nx.node_connected_component(graph, begin)
    edges = {name for a, _, name in graph.edges(keys=True) if a in nodes}
    found: list[str] = []
    after = None
    while True:
        answer = city.get(f"{asset_path(begin, 'drainage')}/component", limit=10, **({"after": after} if after else {}))
        found += [local(item["asset"]) for item in answer["items"]]
        after = answer["next"]
        if after is None:
            break
    assert (answer["nodes"], answer["links"]) == (len(nodes), len(edges))
    assert len(found) == len(set(found))
    assert set(found) == nodes | edges
    index = {name: n for n, name in enumerate(net.edge)}
    assert answer["length_m"] == pytest.approx(sum(net.length[index[name]] for name in edges), abs=0.01)


@pytest.mark.parametrize("types", ["valve", "building", "manhole,valve", ""])
def test_what_is_near_in_the_plane_is_what_shapely_finds_in_all_models(city: Cimtwin, types: str) -> None:
    own = "长江路井盖3号"
    answer = city.get(
        f"{asset_path(own, 'drainage')}/near", distance_m=150, limit=1000, **({"type": types} if types else {})
    )
    wanted = {
        name: shapely.distance(flat(name), flat(own))
        for name, asset in ASSETS.items()
        if name != own and (not types or asset.type in types.split(","))
    }
    wanted = {name: d for name, d in wanted.items() if d <= 150}
    found = {local(item["asset"]): item["distance_m"] for item in answer["items"]}
    # Plane and projection differ by some 0.04 % here.
    assert (
        {n for n, d in wanted.items() if abs(d - 150) > 0.1}
        <= set(found)
        <= set(wanted) | {n for n, d in wanted.items() if abs(d - 150) <= 0.1}
    )
    assert all(found[name] == pytest.approx(wanted[name], abs=0.1) for name in found if name in wanted)
    assert [i["distance_m"] for i in answer["items"]] == sorted(found.values())
    few = city.get(f"{asset_path(own, 'drainage')}/near", limit=3, **({"type": types} if types else {}))["items"]
    assert [i["distance_m"] for i in few] == [i["distance_m"] for i in answer["items"][:3]]


def test_what_is_near_along_the_pipes_is_as_far_as_their_lengths(city: Cimtwin) -> None:
    net = NETWORKS["water"]
    graph = nx.Graph()
    for a, b, length in zip(net.start, net.end, net.length, strict=True):
        graph.add_edge(net.node[a], net.node[b], weight=length)
    lengths = nx.single_source_dijkstra_path_length(graph, "供水节点2-3", cutoff=400)
    answer = city.get(
        f"{asset_path('供水节点2-3', 'water')}/near", along="network", distance_m=400, type="junction", limit=1000
    )
    type_of = dict(zip(net.node, net.node_type, strict=True))
    wanted = {n: d for n, d in lengths.items() if n != "供水节点2-3" and type_of[n] == "junction"}
    assert {local(i["asset"]): i["distance_m"] for i in answer["items"]} == pytest.approx(wanted, abs=1e-3)


def test_a_pipe_serves_the_buildings_that_are_nearer_to_it_than_to_any_other(city: Cimtwin) -> None:
    net = NETWORKS["water"]
    pipes = {name: flat(name) for name, type_ in zip(net.edge, net.edge_type, strict=True) if type_ == "pipe"}
    pipe = "供水管2-2东"
    wanted = {}
    for name, asset in ASSETS.items():
        if asset.type == "building":
            nearest = min(pipes, key=lambda p, name=name: shapely.distance(flat(name), pipes[p]))
            far = shapely.distance(flat(name), pipes[pipe])
            if nearest == pipe and far <= 50:
                wanted[name] = far
    answer = city.get(f"{asset_path(pipe, 'water')}/serves")
    assert wanted
    assert {local(i["asset"]): i["distance_m"] for i in answer["items"]} == pytest.approx(wanted, abs=0.1)
    assert httpx.get(f"{city.url}/api/v1{asset_path('供水节点2-3', 'water')}/serves").status_code == 409


def test_a_profile_tells_heights_and_the_water_in_the_wells(city: Cimtwin) -> None:
    net = NETWORKS["drainage"]
    node = {name: n for n, name in enumerate(net.node)}
    for device, depth in (("well-a", 0.4), ("well-b", 0.8)):
        topic = f"cim/v1/default/{device}/telemetry"
        city.publish((topic, {"ts": "2026-07-01T00:00:00Z", "values": {"level": depth}}))
    until(lambda: all(i["value"] for i in city.get("/latest", kind="drainage.level")["items"]), "two levels")
    way = f"{asset_path('雨水井1-02', 'drainage')}/profile"
    to = f"{NAME_OF['drainage']}:雨水井1-06"
    answer = city.get(way, to=to)
    assert (answer["sense"], answer["findings"]) == ("downstream", [])
    assert [local(p["asset"]) for p in answer["points"]] == [f"雨水井1-{n:02}" for n in range(2, 7)]
    assert [p["chainage_m"] for p in answer["points"]] == [0, 50, 100, 150, 200]
    edge = {name: n for n, name in enumerate(net.edge)}
    for pipe in answer["pipes"]:
        n = edge[local(pipe["asset"])]
        assert pipe["invert_m"] == pytest.approx([net.invert_start[n], net.invert_end[n]], abs=1e-3)
        assert pipe["crown_m"] == pytest.approx([v + net.diameter[n] for v in pipe["invert_m"]], abs=1e-3)
    levels = [p["level_m"] for p in answer["points"]]
    seen = [net.z[node["雨水井1-03"]] + 0.4, net.z[node["雨水井1-05"]] + 0.8]
    assert levels == [None, pytest.approx(seen[0], abs=2e-3), pytest.approx(sum(seen) / 2, abs=2e-3),
                      pytest.approx(seen[1], abs=2e-3), None]  # fmt: skip
    assert answer["points"][1]["sensor"] == "well-a/level"
    assert answer["points"][1]["observed_at"].startswith("2026-07-01T00:00:00")
    up = city.get(f"{asset_path('雨水井1-06', 'drainage')}/profile", to=f"{NAME_OF['drainage']}:雨水井1-02")
    assert (up["sense"], [p["level_m"] for p in up["points"]]) == ("upstream", levels[::-1])
    table = httpx.get(f"{city.url}/api/v1{way}", params={"to": to}, headers={"accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.content.decode("utf-8-sig"))))
    assert [row["chainage_m"] for row in rows] == ["0.0", "50.0", "100.0", "150.0", "200.0"]
    assert float(rows[1]["invert_before_m"]) == answer["pipes"][0]["invert_m"][1]
    # Overfull: the level stands above the ground, and the profile says so.
    city.publish(("cim/v1/default/well-a/telemetry", {"ts": "2026-07-01T01:00:00Z", "values": {"level": 5.9}}))
    until(lambda: city.get("/latest", sensor="well-a/level")["items"][0]["value"] > 5, "the new level")
    (finding,) = [f for f in city.get(way, to=to)["findings"] if f["asset"] == f"{NAME_OF['drainage']}:雨水井1-03"]
    n = node["雨水井1-03"]
    assert finding["what"] == "level-above-ground"
    assert finding["amount_m"] == pytest.approx(net.z[n] + 5.9 - net.ground[n], abs=2e-3)
    assert finding["text"]["zh"].startswith("水位高于地面")


@pytest.mark.parametrize("corner", [(620.0, 735.0), (485.0, 330.0), (30.0, 30.0), (1490.0, 1240.0)])
def test_a_dig_meets_exactly_the_pipes_that_shapely_finds(city: Cimtwin, corner: tuple[float, float]) -> None:
    x, y = corner
    shape, ring = polygon(x, y, x + 30, y + 20)
    answer = ok(httpx.post(f"{city.url}/api/v1/digs", json={"polygon": ring, "depth_m": 50, "date": "2026-07-01"}))
    within = {"water": (1.0, 3.0), "drainage": (1.0, 3.0), "gas": (0.5, 5.0)}  # 0.2 MPa is medium
    wanted, doubtful = {}, set()
    for system, net in NETWORKS.items():
        for n, name in enumerate(net.edge):
            d = shapely.distance(flat(name), shape) - net.diameter[n] / 2
            has_class = "pressure_class" in ASSETS[name].attributes
            limits = within[system] if system != "gas" or has_class else (1.5, 15.0)
            doubtful |= {name} if min(abs(d - limit) for limit in limits) < 0.02 else set()
            if d <= limits[1]:
                wanted[name] = "protection" if d <= limits[0] else "control"
    found = {
        local(f["id"]): f["properties"]["zone"]
        for f in answer["features"]["features"]
        if f["geometry"]["type"] != "Point"
    }
    assert not doubtful
    assert found == wanted
    covers = {local(f["id"]) for f in answer["features"]["features"] if f["geometry"]["type"] == "Point"}
    near = {
        n
        for n, a in ASSETS.items()
        if a.type in COVERS and a.group != "link" and shapely.distance(flat(n), shape) <= 0.9
    }
    far = {n for n in covers if shapely.distance(flat(n), shape) > 1.6}
    assert near <= covers
    assert not far
    for f in answer["features"]["features"]:
        told, asset = f["properties"], ASSETS[local(f["id"])]
        if f["geometry"]["type"] != "Point":
            assert told["diameter_m"] == pytest.approx(asset.attributes["diameter_m"])
            assert (told["year"], told["tenant"]) == (asset.attributes["year"], asset.tenant)
            for lon, lat in f["geometry"]["coordinates"]:
                place = shapely.Point(TO_MAP.transform(lon, lat, direction="INVERSE"))
                assert shapely.distance(place, flat(local(f["id"]))) < 0.05
    by_owner = {o["owner"]: o for o in answer["owners"]}
    for owner, told in by_owner.items():
        own = [f["properties"] for f in answer["features"]["features"] if f["properties"]["owner"] == owner]
        assert told["length_m"] == pytest.approx(sum(p["length_m"] for p in own), abs=0.01)
        assert told["is_protected"] == any(p["zone"] == "protection" for p in own)
    assert answer["not_on_map"] == ["平面"]
    assert answer["area_m2"] == pytest.approx(600, rel=2e-3)


def test_a_shallow_dig_is_not_in_the_way_of_the_sewer_and_covers_of_others_are_found(city: Cimtwin) -> None:
    def asked(depth_m: float, ring: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = httpx.post(f"{city.url}/api/v1/digs", json={"polygon": ring, "depth_m": depth_m, **more})
        return {local(f["id"]): f["properties"] for f in ok(answer)["features"]["features"]}

    _, ring = polygon(555, 730, 575, 750)
    deep, shallow = asked(8, ring), asked(1, ring)
    sewer = "长江路井盖3号-长江路井盖4号"
    assert ASSETS[sewer].attributes["diameter_m"] == deep[sewer]["diameter_m"]
    assert deep[sewer]["crown_depth_m"] > 4
    assert sewer not in shallow
    gas = shallow["燃气管长江路3"]
    assert (gas["pressure_class"], gas["owner"], gas["zone"]) == ("medium", "demo-gas", "protection")
    assert "燃气管长江路3" not in asked(1, ring, date="2010-01-01")
    _, ring = polygon(508, 320, 512, 380)
    wells = {n: p for n, p in asked(1, ring).items() if n.startswith("燃气相邻井")}
    assert set(wells) == {"燃气相邻井1号", "燃气相邻井2号", "燃气相邻井3号"}
    assert {p["owner"] for p in wells.values()} == {"通信管井"}


def test_the_district_keeps_its_clearances_and_a_pipe_laid_into_it_does_not(city: Cimtwin) -> None:
    assert city.get("/clearances") == {"items": [], "next": None, "total": 0}
    # A cable duct's worth of water main, 0.5 m beside the gas main, as a network file without heights.
    gas = NETWORKS["gas"]
    main = list(gas.edge).index("燃气管长江路6")
    (x0, y0), (x1, y1) = ((gas.x[n], gas.y[n]) for n in (gas.start[main], gas.end[main]))
    y0, y1 = y0 + 0.7, y1 + 0.7
    text = (
        "[JUNCTIONS]\nA 5 0\nB 5 0\n[RESERVOIRS]\nR 50\n[PIPES]\nP1 R A 10 200 100 0 Open\nP2 A B 100 200 100 0 Open\n"
        f"[COORDINATES]\nR {x0} {y0 + 10}\nA {x0} {y0}\nB {x1} {y1}\n[OPTIONS]\nUnits LPS\nHeadloss H-W\n[END]\n"
    )
    ok(post(city, text, name="新管", crs=district.CRS), 201)
    found = city.get("/clearances", model=["新管", NAME_OF["gas"]], limit=1000)
    assert city.get("/clearances", model=[NAME_OF["gas"], NAME_OF["water"]])["total"] == 0
    (beside,) = [i for i in found["items"] if i["kind"] == "parallel" and {"新管:P2", f"{NAME_OF['gas']}:燃气管长江路6"}
                 == {i["one"]["asset"], i["other"]["asset"]}]  # fmt: skip
    assert beside["actual_m"] == pytest.approx(0.7 - 0.1 - 0.15, abs=2e-3)
    assert (beside["required_m"], beside["mark"]) == (0.5, "M")
    assert [i["short_m"] for i in found["items"]] == sorted((i["short_m"] for i in found["items"]), reverse=True)
    first = city.get("/clearances", limit=1)
    assert first["total"] >= len(found["items"]) >= 1
    assert city.get("/clearances", bbox="113,22,114,23")["total"] == 0
    assert httpx.get(f"{city.url}/api/v1/clearances?model=none").status_code == 404


def test_coverage_is_what_a_walk_along_the_pipes_counts(city: Cimtwin) -> None:
    net = NETWORKS["water"]
    reach = 300.0
    graph = nx.Graph()
    for name, a, b, length in zip(net.edge, net.start.tolist(), net.end.tolist(), net.length.tolist(), strict=True):
        # A node every metre or less along each pipe.
        steps = max(1, round(length))
        names = [net.node[a], *((name, n) for n in range(1, steps)), net.node[b]]
        for n in range(steps):
            graph.add_edge(names[n], names[n + 1], weight=length / steps, pipe=name)
    middle = round(net.length[list(net.edge).index("供水管4-2东")]) // 2
    sources = {"供水节点2-3", ("供水管4-2东", middle)}
    distance = nx.multi_source_dijkstra_path_length(graph, sources, cutoff=reach)
    area_of = {name: ASSETS[name].area for name in net.edge}
    by_area: dict[str, float] = {}
    for a, b, data in graph.edges(data=True):
        reached = min(data["weight"], sum(max(0.0, reach - distance.get(end, reach)) for end in (a, b)))
        by_area[area_of[data["pipe"]]] = by_area.get(area_of[data["pipe"]], 0.0) + reached
    answer = city.get("/coverage", reach_m=reach, model=[NAME_OF["water"]])
    assert answer["sensors"] == 2
    assert answer["whole"]["length_m"] == pytest.approx(net.length.sum(), abs=0.01)
    assert answer["whole"]["covered_m"] == pytest.approx(sum(by_area.values()), abs=2)
    assert {a["area"]: a["covered_m"] for a in answer["areas"]} == pytest.approx(by_area, abs=2)
    assert city.get("/coverage", reach_m=reach, system="water", kind="gas.pressure")["whole"]["covered_m"] == 0
    assert {m["system"] for m in city.get("/coverage", reach_m=1)["models"]} == {"water", "drainage", "gas"}


def test_a_stuck_valve_asks_for_others(city: Cimtwin) -> None:
    way = f"{asset_path('供水管2-2东', 'water')}/trace"
    plan = city.get(way, direction="isolate")
    assert plan["is_bounded"]
    valve = plan["valves"][0]["asset"]
    (told,) = [a for a in plan["alternatives"] if a["stuck"] == valve]
    other = city.get(way, direction="isolate", stuck=[valve])
    valves = {v["asset"] for v in other["valves"]}
    assert valve not in valves
    assert valves == {v["asset"] for v in plan["valves"]} - {valve} | set(told["further"])
    assert len(other["segment"]) > len(plan["segment"])


def test_questions_of_then_are_answered_by_the_models_of_then(city: Cimtwin) -> None:
    long_ago = {"as_of": "2001-01-01T00:00:00Z"}
    way = f"{city.url}/api/v1{asset_path('供水管2-2东', 'water')}"
    for question in ("component", "near", "serves", "profile"):
        assert httpx.get(f"{way}/{question}", params={**long_ago, "to": "x"}).status_code == 404
    now = "2999-01-01T00:00:00Z"
    assert city.get("/clearances", **long_ago)["total"] == 0
    assert city.get("/coverage", reach_m=10, **long_ago)["whole"]["length_m"] == 0
    assert (
        city.get(f"{asset_path('供水管2-2东', 'water')}/near", as_of=now, limit=3)["items"]
        == (city.get(f"{asset_path('供水管2-2东', 'water')}/near", limit=3)["items"])
    )
    _, ring = polygon(555, 730, 575, 750)
    past = httpx.post(f"{city.url}/api/v1/digs", params=long_ago, json={"polygon": ring, "depth_m": 1})
    assert ok(past)["features"]["features"] == []


def test_what_is_in_no_network_is_in_the_way_too(city: Cimtwin) -> None:
    """A duct drawn as a line with heights, one drawn as a body, and a water main drawn against its flow with a bend."""
    x, y = district.EAST - 300, district.NORTH + 600
    duct = np.array([[x, y, 13.0], [x + 40, y, 13.0]])
    corners = [[x + a, y + 20 + b, 12 + c] for c in (0.0, 0.6) for a, b in ((0, 0), (40, 0), (40, 0.6), (0, 0.6))]
    faces = [[[0, 3, 2, 1]], [[4, 5, 6, 7]], [[0, 1, 5, 4]], [[1, 2, 6, 5]], [[2, 3, 7, 6]], [[3, 0, 4, 7]]]
    bent = np.array([[x + 40, y + 40, np.nan], [x + 20, y + 50, np.nan], [x, y + 40, np.nan]])
    none = np.full(1, np.nan)
    network = Network(
        "water", ["s", "e"], ["junction", "junction"], np.array([x, x + 40]), np.array([y + 40, y + 40]),
        np.array([13.0, 12.0]), np.array([15.0, 15.0]), np.zeros(2), ["m"], ["pipe"], np.zeros(1, np.int32),
        np.ones(1, np.int32), none, np.array([0.2]), none, none, np.zeros(1, np.int8), np.ones(1, bool),
    )  # fmt: skip
    attributes = {"diameter_m": 0.4, "ground_m": 15.0, "owner": "通信公司", "year": "2015"}
    body = Geometry("Solid", np.array(corners), [faces])
    assets = [
        Asset("duct", "pipe", attributes=attributes, geometry=(Geometry.line(duct),), system="telecom"),
        Asset("body", "pipe", geometry=(body,), system="telecom", tenant="demo-telecom"),
        Asset("s", "junction", "node", geometry=(Geometry.point(x, y + 40),), system="water"),
        Asset("e", "junction", "node", geometry=(Geometry.point(x + 40, y + 40),), system="water"),
        Asset("m", "pipe", "link", geometry=(Geometry.line(bent),), system="water"),
    ]
    model = CityModel("demo", assets, [network], crs=district.CRS)
    with psycopg.connect(city.environ["CIMTWIN_DATABASE_URL"], autocommit=True) as connection:
        placed = place(model, "散件", ModelWords("散件", "", "demo", "test"), "x", 0, hashlib.sha256(b"").digest())
        with connection.transaction():
            lock_model(connection, "散件")
            save_model(connection, placed, [], nothing)

    def asked(depth_m: float, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
        given = {
            "polygon": polygon(x0 - 300, y0 + 600, x1 - 300, y1 + 600)[1],
            "depth_m": depth_m,
            "date": "2026-07-01",
        }
        answer = ok(httpx.post(f"{city.url}/api/v1/digs", json=given))
        return {local(f["id"]): f["properties"] for f in answer["features"]["features"]}

    found = asked(1.5, 10, -1, 20, 1)["duct"]
    assert [found[name] for name in ("system", "zone", "owner", "year")] == ["telecom", "protection", "通信公司", 2015]
    assert found["crown_depth_m"] == pytest.approx(15 - 13 - 0.2)
    assert "duct" not in asked(1.0, 10, -1, 20, 1)
    told = asked(1.0, 10, 21.0, 20, 22.0)["body"]
    assert told["distance_m"] == pytest.approx(0.4, abs=0.01)
    assert (told["crown_depth_m"], told["owner"]) == (None, "demo-telecom")
    # A fifth of the way from `s`, where the stretch begins, whichever way it was drawn; on the bend, not straight.
    main = asked(2.5, 9, 44, 11, 46)["m"]
    assert main["distance_m"] == 0
    assert main["crown_depth_m"] == pytest.approx(15 - (13 - 0.2) - 0.2, abs=0.02)
    assert "m" not in asked(2.5, 19, 39.5, 21, 40.5)


SQUARE = {
    "type": "Polygon",
    "coordinates": [[[117.29, 31.79], [117.2901, 31.79], [117.2901, 31.7901], [117.29, 31.79]]],
}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"polygon": SQUARE, "depth_m": 1}, 200),
        ({"polygon": {"type": "Feature", "properties": {}, "geometry": SQUARE}, "depth_m": 1}, 200),
        ({"polygon": SQUARE}, 422), ({"polygon": SQUARE, "depth_m": 0}, 422), ({"depth_m": 1}, 422),
        ({"polygon": SQUARE, "depth_m": 1, "date": "tomorrow"}, 422), ({"polygon": {}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Polygon", "coordinates": [[[1, 2], [1, 2], [1, 2]]]}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Polygon", "coordinates": [[[1, 2], [1, "2"], [1, 2]]]}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Polygon", "coordinates": [[[1e308, 0], [9, 0], [9, 9]]]}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Polygon", "coordinates": 5}, "depth_m": 1}, 422),
        ({"polygon": {"type": "Point", "coordinates": [1, 2]}, "depth_m": 1}, 422),
    ],
)  # fmt: skip
def test_a_dig_that_is_none_is_refused(city: Cimtwin, body: dict[str, Any], status: int) -> None:
    answer = httpx.post(f"{city.url}/api/v1/digs", content=json.dumps(body))
    assert answer.status_code == status, answer.text


WATER_PIPE = asset_path("供水管2-2东", "water")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/assets/none/component", 404), ("/assets/none/near", 404), ("/assets/none/serves", 404),
        ("/assets/none/profile?to=x", 404), (f"{WATER_PIPE}/profile", 422), (f"{WATER_PIPE}/profile?to=none", 404),
        (f"{WATER_PIPE}/profile?to={quote('雨水井1-03')}", 409), (f"{WATER_PIPE}/near?along=air", 422),
        (f"{WATER_PIPE}/near?distance_m=-1", 422), (f"{WATER_PIPE}/near?distance_m=nan", 422),
        (f"{WATER_PIPE}/near?type=a%00b", 422), (f"{WATER_PIPE}/component?after=x", 422),
        (f"{asset_path('B01-01')}/component", 409), (f"{asset_path('B01-01')}/serves", 409),
        (f"/assets/{quote('平面:P1', safe='')}/near", 409),
        (f"/assets/{quote('平面:P1', safe='')}/near?along=network", 200),
        ("/coverage", 422), ("/coverage?reach_m=-1", 422), ("/coverage?reach_m=1&model=none", 404),
        ("/coverage?reach_m=1&kind=none", 404), ("/clearances?bbox=1,2,3", 422), ("/clearances?limit=0", 422),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_so(city: Cimtwin, path: str, status: int) -> None:
    answer = httpx.get(f"{city.url}/api/v1{path}")
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.json()["status"] == status


def test_the_plane_and_the_projection_agree_here() -> None:
    """What the other tests allow for: 0.1 m in 150."""
    from twin.plane import LocalPlane

    x, y = district.EAST + np.array([0.0, 150.0]), district.NORTH + np.array([0.0, 0.0])
    lon, lat = TO_MAP.transform(x, y)
    east, north = LocalPlane.around(lon, lat).metres(lon, lat)
    assert np.hypot(*np.diff([east, north])[:, 0]) == pytest.approx(150, abs=0.05)
