"""GeoJSON in and out: what it is, where it is, what it is joined to; and what is wrong with it, and where."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models3d.readers import geojson, read, recognise
from models3d.writers import geojson as writer
from twin.city import Asset, CityModel, Geometry, InvalidModel

SHARED = Path(__file__).parents[3] / "shared" / "data"
SQUARE = [[116.0, 39.0], [116.001, 39.0], [116.001, 39.001], [116.0, 39.001], [116.0, 39.0]]


def feature(geometry: Any = None, id_: Any = None, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry, **({} if id_ is None else {"id": id_})}


def shape(kind: str, coordinates: Any) -> dict[str, Any]:
    return {"type": kind, "coordinates": coordinates}


def collection(*features: Any, **members: Any) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features, **members}, ensure_ascii=False).encode()


def model(*features: Any, crs: str = "", **members: Any) -> CityModel:
    return read(collection(*features, **members), "city.geojson", crs)


def problems(data: bytes, crs: str = "") -> list[str]:
    with pytest.raises(InvalidModel) as refused:
        read(data, "f.geojson", crs)
    return [str(problem) for problem in refused.value.problems]


def test_every_kind_of_geometry_becomes_an_asset_with_its_type_and_coordinates() -> None:
    found = model(
        feature(shape("Point", [116.1, 39.9, 45.5]), "m1", type="检查井", 部件码="3205080101000001"),
        feature(shape("MultiPoint", [[1, 2], [3, 4]]), "m2", man_made="street_lamp"),
        feature(shape("LineString", [[116, 39], [116.1, 39]]), "r1", highway="primary", name="长安街"),
        feature(shape("Polygon", [SQUARE, [[x, y] for x, y, *_ in SQUARE]]), "b1", building="yes", height="21.5 m"),
        feature(shape("MultiPolygon", [[SQUARE], [SQUARE]]), "b2", kind="桥梁", name="Bridge"),
        feature(
            {"type": "GeometryCollection", "geometries": [shape("Point", [1, 2]), shape("Polygon", [SQUARE])]}, "g"
        ),
        feature(None, "nowhere", type="pump"),
    )
    told = {asset.local: (asset.type, [(s.kind, len(s.vertices)) for s in asset.geometry]) for asset in found.assets}
    assert told == {
        "m1": ("manhole", [("MultiPoint", 1)]),
        "m2": ("furniture", [("MultiPoint", 2)]),
        "r1": ("road", [("MultiLineString", 2)]),
        "b1": ("building", [("MultiSurface", 8)]),
        "b2": ("bridge", [("MultiSurface", 8)]),
        "g": ("other", [("MultiPoint", 1), ("MultiSurface", 4)]),
        "nowhere": ("pump", []),
    }
    by_id = {asset.local: asset for asset in found.assets}
    assert found.crs == "EPSG:4326"
    assert by_id["m1"].geometry[0].vertices[0].tolist() == [116.1, 39.9, 45.5]
    assert by_id["m1"].code == "3205080101000001"
    assert np.isnan(by_id["r1"].geometry[0].vertices[:, 2]).all()
    assert (by_id["r1"].name_zh, by_id["b2"].name_en) == ("长安街", "Bridge")
    assert by_id["b1"].attributes["height_m"] == 21.5
    outer, inner = by_id["b1"].geometry[0].boundaries[0]
    assert outer == [0, 1, 2, 3]
    x = by_id["b1"].geometry[0].vertices[inner][:, 0]
    assert x.tolist() == [116.0, 116.001, 116.001, 116.0]  # a hole runs clockwise, whatever the file does


@pytest.mark.parametrize(
    "ends",
    [
        ("from", "to"),
        ("start_node_name", "end_node_name"),
        ("u", "v"),
        ("S_Point", "E_Point"),
        ("起点点号", "终点点号"),
        ("source", "target"),
    ],
)
def test_lines_that_name_their_ends_are_edges_between_the_points_so_named(ends: tuple[str, str]) -> None:
    start, end = ends
    found = model(
        feature(shape("Point", [500000, 4400000]), id="a", type="检查井"),
        feature(shape("Point", [500030, 4400040]), id="b", type="出水口"),
        feature(
            shape("LineString", [[500000, 4400000], [500030, 4400040]]),
            id="l",
            管线类别="WS",
            DN=400,
            **{start: "a", end: "b"},
        ),
        crs="EPSG:4527",
    )
    (network,) = found.networks
    assert (network.system, list(network.node), list(network.node_type)) == (
        "drainage",
        ["a", "b"],
        ["manhole", "outfall"],
    )
    assert (list(network.edge), network.start.tolist(), network.end.tolist()) == (["l"], [0], [1])
    assert network.length[0] == pytest.approx(50.0)
    assert network.diameter[0] == pytest.approx(0.4)
    assert network.direction[0] == 1
    assert {(asset.local, asset.group, asset.system) for asset in found.assets} == {
        ("a", "node", "drainage"),
        ("b", "node", "drainage"),
        ("l", "link", "drainage"),
    }


def test_lines_without_names_of_ends_are_joined_where_the_ends_coincide() -> None:
    def line(a: list[float], b: list[float], **properties: Any) -> dict[str, Any]:
        return feature(shape("LineString", [a, b]), substance="gas", **properties)

    found = model(
        line([116, 39], [116.001, 39], id=1),
        line([116.00100000009, 39], [116.002, 39], id=2),
        line([116.0010003, 39], [116.001, 39.001], id=3),
        feature(shape("Point", [116.002, 39]), id=4, type="valve"),
    )
    (network,) = found.networks
    assert network.system == "gas"
    assert len(network.node) == 5
    assert network.end[0] == network.start[1]
    assert network.start[2] not in (network.end[0], network.start[1])
    assert network.node_type[network.end[1]] == "valve"
    assert network.length[0] == pytest.approx(86.4, abs=0.5)  # 0.001° at 39° N


def test_what_no_word_tells_is_told_by_the_names_of_properties_or_by_the_files() -> None:
    def line(id_: str, start: str, end: str, **properties: Any) -> dict[str, Any]:
        return feature(
            shape("LineString", [[1, 2], [1.001, 2]]), id=id_, start_node_name=start, end_node_name=end, **properties
        )

    found = geojson.read_tables(
        [
            (
                "x_tanks.geojson",
                collection(
                    feature(shape("Point", [1, 2]), name="T", elevation=5.0, init_level=1, min_level=0, max_level=4)
                ),
            ),
            (
                "x_reservoirs.geojson",
                collection(feature(shape("Point", [1.001, 2]), name="R", base_head=50.0, head_pattern_name=None)),
            ),
            (
                "x_pumps.geojson",
                collection(line("P", "R", "T", pump_type="POWER", base_speed=1.0, initial_status="Open")),
            ),
            (
                "x_valves.geojson",
                collection(
                    line("V", "R", "T", valve_type="PRV", initial_setting=30.0, minor_loss=0.0, initial_status="Closed")
                ),
            ),
        ]
    )
    (network,) = found.networks
    assert (network.system, list(network.edge_type), network.is_open.tolist()) == (
        "water",
        ["pump", "valve"],
        [True, False],
    )
    assert dict(zip(network.node, network.node_type, strict=True)) == {"T": "tank", "R": "reservoir"}
    assert network.direction.tolist() == [1, 0]
    assert (
        read(collection(feature(shape("Polygon", [SQUARE]), height=9)), "Beijing_buildings.geojson").assets[0].type
        == "building"
    )


def test_a_file_may_be_a_sequence_or_a_single_feature_in_utf_8_or_gb18030() -> None:
    one = json.dumps(feature(shape("Point", [1, 2]), "a", name="阀门井"), ensure_ascii=False)
    two = json.dumps(feature(shape("Point", [3, 4]), "b", name="井"), ensure_ascii=False)
    for data in (
        f"{one}\n{two}\n".encode(),
        f"\x1e{one}\n\x1e{two}\n".encode(),
        f"\n{one}\n".encode()[1:] + two.encode(),
    ):
        assert [asset.local for asset in read(data, "x.geojsonl").assets] == ["a", "b"]
    (asset,) = read(one.encode("gb18030"), "x.json").assets
    assert asset.name_zh == "阀门井"
    assert read(b"\xef\xbb\xbf" + json.dumps(shape("Point", [1, 2])).encode(), "x.json").assets[0].type == "other"


def test_ids_come_from_the_file_or_else_from_the_position_and_stay_the_same() -> None:
    named = model(feature(shape("Point", [1, 2]), name="a"), feature(shape("Point", [2, 2]), name="b"))
    assert [asset.local for asset in named.assets] == ["a", "b"]
    points = [feature(shape("Point", [x, 2]), name="same") for x in (1, 2, 2)]
    first, again = model(*points), model(*reversed(points))
    assert len({asset.local for asset in first.assets}) == 3
    assert {asset.local for asset in first.assets} == {asset.local for asset in again.assets}


def test_the_crs_of_the_file_counts_then_the_users_then_wgs_84() -> None:
    point = feature(shape("Point", [583337.4, 6132947.8]), "a")
    own = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    assert model(point, crs="EPSG:4547").crs == "EPSG:4547"
    found = read(collection(point, crs=own), "f.geojson", "EPSG:4547")
    assert found.crs == "EPSG:32632"
    assert any("32632" in str(note) for note in found.notes)
    crs84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    assert read(collection(feature(shape("Point", [1, 2])), crs=crs84), "f").crs == "EPSG:4326"
    for wrong in (
        {"type": "link", "properties": {"href": "http://127.0.0.1/crs"}},
        {"type": "name", "properties": {"name": "EPSG:1"}},
    ):
        assert any("crs" in text for text in problems(collection(point, crs=wrong)))


WRONG: dict[str, tuple[Any, str]] = {
    "an open ring": (shape("Polygon", [SQUARE[:-1]]), "not closed"),
    "a short ring": (shape("Polygon", [SQUARE[:3]]), "four positions"),
    "a short line": (shape("LineString", [[1, 2]]), "two positions"),
    "swapped axes": (shape("Point", [39.9, 116.4]), "swapped"),
    "projected": (shape("Point", [512345.0, 2530000.0]), "--crs"),
    "a text for a number": (shape("Point", ["116", "39"]), "no position"),
    "a number missing": (shape("LineString", [[1, 2], [3]]), "no position"),
    "true": (shape("Point", [True, False]), "no position"),
    "an unknown kind": (shape("Circle", [1, 2]), "Circle"),
    "no coordinates": ({"type": "Point"}, "no list"),
    "a line of lines": (shape("LineString", [[[1, 2], [3, 4]]]), "no position"),
    "a huge number": (shape("Point", [1e308, 1e308]), "no "),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_geometry_is_refused_with_the_features_number_and_id(what: str) -> None:
    geometry, text = WRONG[what]
    (found,) = problems(collection(feature(shape("Point", [1, 2]), "fine"), feature(geometry, "bad-one")))
    assert "feature 2" in found
    assert "bad-one" in found
    assert text in found


def test_integers_beyond_64_bits_become_floats() -> None:
    found = model(feature(shape("Point", [8, 50]), 10**25, most=-(2**63), more=2**63, deep=[{"x": 10**25}], no=10**400))
    told = found.assets[0].attributes
    assert (found.assets[0].local, told) == (
        str(10**25),
        {"most": -(2**63), "more": 2.0**63, "deep": [{"x": 1e25}], "no": None},
    )
    assert [type(told["most"]), type(told["more"])] == [int, float]


@pytest.mark.parametrize("empty", ["", None, " ", "\x00", "\u200b", " \ufeff\x00 "])
def test_nothing_of_a_graph_has_an_id_that_nobody_sees(empty: str | None) -> None:
    nodes = [{"id": empty, "name": empty, "x": 8, "y": 50}, {"id": "b", "x": 8.1, "y": 50}]
    links = [
        {"source": empty, "target": "b", "id": empty, "geometry": "LINESTRING (8 50, 8.1 50)"},
        {"source": "b", "target": empty, "from": "b", "to": empty, "geometry": "LINESTRING (8.1 50, 8 50)"},
    ]
    graph = {"directed": False, "multigraph": True, "graph": {}, "nodes": nodes, "links": links}
    found = geojson.read(json.dumps(graph).encode(), "graph.json")
    assert len(found.assets) >= 4
    assert all(asset.local.isprintable() and asset.local.strip() for asset in found.assets)


def test_every_mistake_of_a_file_is_listed_at_once() -> None:
    found = problems(
        collection(
            feature(shape("Point", [1, 200]), "a"),
            feature(shape("Point", [1, 2]), "b"),
            feature(shape("Polygon", [SQUARE[1:]]), "c"),
            {"type": "Future"},
            feature(shape("Point", [1]), id=4),
        )
    )
    assert [next(n for n in range(1, 6) if f"feature {n}" in text) for text in found] == [1, 3, 4, 5]
    (again,) = problems(collection(feature(shape("Point", [1, 2]), "b"), feature(shape("Point", [1, 3]), "b")))
    assert "feature 2" in again
    assert "feature 1" in again
    cut = json.dumps(json.loads(collection(feature(shape("Point", [1, 2]), "a"))), indent=1).encode()
    (text,) = problems(cut.replace(b'"a"', b'"a" oops'))
    assert "line" in text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"FeatureCollection","features":' + b"[" * 100_000,
        b'{"type":"FeatureCollection","features":[' + b'{"type":"Feature","properties":' * 50_000,
        b'{"type":"GeometryCollection","geometries":[' * 200 + b"]}" * 200,
        b'{"type":"Feature","properties":{},"geometry":{"type":"Polygon","coordinates":'
        + b"[" * 900
        + b"]" * 900
        + b"}}",
        b'{"type":"FeatureCollection"}',
        b'{"type":"FeatureCollection","features":{}}',
        b'{"type":"FeatureCollection","features":[1,null]}',
        b'{"type":"Feature","geometry":{"type":"Point","coordinates":[1e999,NaN]}}',
    ],
)
def test_hostile_files_are_refused(data: bytes) -> None:
    assert problems(data)


@pytest.mark.timeout(60)
def test_a_cluster_of_a_hundred_thousand_ends_in_a_centimetre_is_joined() -> None:
    from models3d.readers import pipes

    points = np.random.default_rng(1).uniform(0, 0.02, (100_000, 2))
    assert len(np.unique(pipes.snap(points, 0.01))) <= 9


SEED = collection(
    feature(shape("Point", [116.1, 39.9, 3]), "a", type="检查井"),
    feature(shape("Polygon", [SQUARE]), "b", building="yes"),
    feature(shape("LineString", [[116.1, 39.9], [116.2, 39.9]]), "l", u="a", v="x", DN="DN300"),
    crs={"type": "name", "properties": {"name": "EPSG:4326"}},
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SEED) - 1), st.binary(max_size=6), st.integers(0, 20)), min_size=1, max_size=4
    )
)
def test_a_mutated_file_gives_a_model_or_is_refused(changes: list[tuple[int, bytes, int]]) -> None:
    data = SEED
    for at, put, cut in changes:
        data = data[:at] + put + data[at + cut :]
    with contextlib.suppress(InvalidModel):
        assert isinstance(geojson.read(data, "f"), CityModel)


def test_what_is_written_is_rfc_7946_and_reads_back_the_same() -> None:
    found = model(
        feature(shape("Point", [116.1, 39.9, 45.5]), "n1", type="检查井"),
        feature(shape("Point", [116.2, 39.9]), "n2", type="valve"),
        feature(
            shape("LineString", [[116.1, 39.9], [116.15, 39.95], [116.2, 39.9]]), "p", u="n1", v="n2", system="water"
        ),
        feature(shape("MultiPolygon", [[SQUARE], [[[x + 1, y] for x, y in SQUARE]]]), "b", building="yes", 备注="旧"),
    )
    data = writer.write(found.assets, found.crs, found.networks)
    again = read(data, "again.geojson")
    for one, two in zip(found.assets, again.assets, strict=True):
        assert (one.local, one.type, one.group, one.system) == (two.local, two.type, two.group, two.system)
        assert one.attributes.items() <= two.attributes.items()
        for a, b in zip(one.geometry, two.geometry, strict=True):
            assert (a.kind, a.boundaries) == (b.kind, b.boundaries)
            np.testing.assert_allclose(a.vertices, b.vertices, atol=1e-8)
    assert [list(n.edge) for n in again.networks] == [["p"]]
    assert writer.write(again.assets, again.crs, again.networks) == writer.write(
        again.assets, again.crs, again.networks
    )
    told = json.loads(data)
    assert "crs" not in told
    ring = told["features"][3]["geometry"]["coordinates"][0][0]
    assert ring[0] == ring[-1]


def test_a_solid_is_written_as_its_footprint() -> None:
    corners = np.array(
        [[38500000 + x, 4400000 + y, z] for z in (0, 9) for x, y in ((0, 0), (10, 0), (10, 20), (0, 20))],
        float,
    )
    faces = [[[0, 3, 2, 1]], [[4, 5, 6, 7]], [[0, 1, 5, 4]], [[1, 2, 6, 5]], [[2, 3, 7, 6]], [[3, 0, 4, 7]]]
    box = Asset(
        "h", "building", geometry=(Geometry("Solid", corners, [faces], "2"), Geometry.point(38500000, 4400000, lod="3"))
    )
    (written,) = json.loads(writer.write([box], "EPSG:4526"))["features"]
    assert written["geometry"]["type"] == "Polygon"
    (ring,) = written["geometry"]["coordinates"]
    assert len(ring) == 5
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring))
    assert area > 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside this checkout")
def test_the_shared_files_are_read_whole() -> None:
    """Counted here by a plain JSON parser."""
    paths = [*SHARED.rglob("*.geojson"), *SHARED.rglob("*_graph.json")]
    assert len(paths) >= 4
    for path in paths:
        data = path.read_bytes()
        plain = json.loads(data)
        found = read(data, path.name)
        assert recognise(data, path.name) == "geojson"
        if "nodes" in plain:
            (network,) = found.networks
            assert (len(network.node), len(network.edge)) == (len(plain["nodes"]), len(plain["links"]))
            assert {(network.node[a], network.node[b]) for a, b in zip(network.start, network.end, strict=True)} == {
                (link["source"], link["target"]) for link in plain["links"]
            }
            np.testing.assert_allclose(network.length, [link["length"] for link in plain["links"]])
        else:
            told = [asset for asset in found.assets if asset.attributes]
            assert len(told) == len(plain["features"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside this checkout")
def test_a_networks_points_and_lines_in_two_files_are_one_model() -> None:
    names = ("ky4_junctions.geojson", "ky4_pipes.geojson")
    files = [(name, (SHARED / "water" / name).read_bytes()) for name in names]
    found = geojson.read_tables(files)
    (network,) = found.networks
    lines = [f["properties"] for f in json.loads(files[1][1])["features"]]
    assert {
        network.edge[i]: (network.node[a], network.node[b])
        for i, (a, b) in enumerate(zip(network.start, network.end, strict=True))
    } == {line["name"]: (line["start_node_name"], line["end_node_name"]) for line in lines}
    assert network.system == "water"
    np.testing.assert_allclose(network.diameter, [line["diameter"] for line in lines])
    demand = sum(f["properties"]["base_demand"] for f in json.loads(files[0][1])["features"])
    assert network.demand.sum() == pytest.approx(demand * 3600)
