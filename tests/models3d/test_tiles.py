"""Shapes become closed, outward triangles; tiles say whose they are, where they lie, and the same each time."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import mapbox_vector_tile
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

import hatch_build
from models3d import crs, readers
from models3d.geometry import SIDES, prism, shafts, surfaces, tubes
from models3d.writers import mvt, tiles
from models3d.writers.tiles import Feature
from twin.city import Asset, Geometry
from twin.demo import district

ROOT = Path(__file__).parents[2]
EAST, NORTH = 500_000.0, 2_500_000.0  # on the middle meridian of EPSG:4547


def a_house(n: int, x: float = 0.0, y: float = 0.0) -> Asset:
    """12 by 10 m, walls of 9 m, a roof of 3 m more: 1,080 + 180 m³."""
    w, d, h, r = 12.0, 10.0, 9.0, 3.0
    corner = [(0, 0, 0), (w, 0, 0), (w, d, 0), (0, d, 0), (0, 0, h), (w, 0, h), (w, d, h), (0, d, h), (0, d / 2, h + r),
              (w, d / 2, h + r)]  # fmt: skip
    shell = [[[0, 3, 2, 1]], [[0, 1, 5, 4]], [[2, 3, 7, 6]], [[1, 2, 6, 9, 5]], [[3, 0, 4, 8, 7]], [[4, 5, 9, 8]],
             [[6, 7, 8, 9]]]  # fmt: skip
    vertices = np.array(corner) + np.array([EAST + x, NORTH + y, 5.0])
    geometry = (Geometry.point(EAST, NORTH, 0, lod="0"), Geometry("Solid", vertices, [shell], "2.2"))
    return Asset(f"b{n}", "building", name_zh=f"{n}号楼", level=3, geometry=geometry)


def a_pipe(n: int, system: str = "water", **attributes: Any) -> Asset:
    line = np.array([[EAST, NORTH + n, -1.0], [EAST + 40, NORTH + n, -1.2], [EAST + 40, NORTH + n + 30, -1.5]])
    return Asset(f"p{n}", "pipe", "link", system=system, attributes=attributes, geometry=(Geometry.line(line),))


def volume(mesh: Any) -> float:
    a, b, c = (mesh.position[mesh.triangle[:, k]] - mesh.position[0] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_a_solid_keeps_its_volume_and_faces_outwards() -> None:
    geometry = a_house(1).geometry[1]
    mesh = surfaces(geometry.vertices, geometry.boundaries[0], [0] * 7)
    assert volume(mesh) == pytest.approx(1260)
    a, b, c = (mesh.position[mesh.triangle[:, k]] for k in range(3))
    turned = np.cross(b - a, c - a)
    assert (np.einsum("ij,ij->i", turned, mesh.normal[mesh.triangle[:, 0]]) > 0).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(2, 20), min_size=3, max_size=12), st.booleans(), st.floats(0.5, 50), st.booleans())
def test_any_footprint_raised_has_the_volume_of_its_area(
    reach: list[float], has_hole: bool, height: float, is_reversed: bool
) -> None:
    angle = np.arange(len(reach)) * 2 * math.pi / len(reach)
    outer = np.column_stack([np.cos(angle) * reach, np.sin(angle) * reach, np.full(len(reach), 7.0)])
    rings, vertices = [list(range(len(reach)))], outer
    expected = shapely.Polygon(outer[:, :2])
    if has_hole:
        hole = np.array([[0.2, 0.1, 7.0], [-0.2, 0.1, 7.0], [0.0, -0.2, 7.0]])
        rings.append([len(reach), len(reach) + 1, len(reach) + 2])
        vertices = np.vstack([outer, hole])
        expected = shapely.Polygon(outer[:, :2], [hole[:, :2]])
    if is_reversed:
        rings = [ring[::-1] for ring in rings]
    points, walls = prism(vertices, rings, height)
    floor = [[ring[::-1] for ring in walls[0]]]  # with its floor it is closed
    floor = [[[place - len(vertices) for place in ring] for ring in polygon] for polygon in floor]
    mesh = surfaces(points, walls + floor, [0] * (len(walls) + 1))
    assert volume(mesh) == pytest.approx(expected.area * height, rel=1e-6)


def test_surfaces_without_area_are_left_out() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0.0]])
    mesh = surfaces(vertices, [[[0, 1, 2]], [[0, 0, 0]], [[0, 1, 3]]], [4, 5, 6])
    assert (len(mesh.triangle), set(mesh.part.tolist())) == (1, {6})


def test_tubes_have_the_pipes_width_around_the_axis_and_are_mitred() -> None:
    line = np.array([[0, 0, 0], [10, 0, 0], [10, 10, 0], [10, 10, 0], [10, 10, 9.0]])
    mesh = tubes(line, np.array([5]), np.array([0.4]), np.array([0.4]), np.zeros(1))
    assert np.isfinite(mesh.position).all()
    away = [
        shapely.LineString(line).distance(shapely.Point(p)) for p in mesh.position if abs(p[2]) < 1e-9 or p[2] > 0.5
    ]
    first = mesh.position[:SIDES]
    assert np.linalg.norm(first - line[0], axis=1) == pytest.approx(np.full(SIDES, 0.2))
    assert away
    area = SIDES / 2 * math.sin(2 * math.pi / SIDES) * 0.04
    closed = shafts(np.array([[3, 4, 5.0]]), np.array([[3, 4, 1.0]]), np.array([0.4]))
    assert volume(closed) == pytest.approx(area * 4, rel=0.35)  # no floor: a lid and walls only
    assert not len(tubes(line[2:4], np.array([2]), np.array([0.4]), np.array([0.4]), np.zeros(1)).triangle)


def parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, size = struct.unpack_from("<4sII", data)
    assert (magic, version, size) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def view(document: dict[str, Any], binary: bytes, number: int) -> bytes:
    found = document["bufferViews"][number]
    return binary[found["byteOffset"] : found["byteOffset"] + found["byteLength"]]


def table(data: bytes) -> list[dict[str, str]]:
    """The property table, read by the specification and not by the writer."""
    document, binary = parsed(data)
    metadata = document["extensions"]["EXT_structural_metadata"]
    (rows,) = metadata["propertyTables"]
    found: list[dict[str, str]] = [{} for _ in range(rows["count"])]
    for name, where in rows["properties"].items():
        text = view(document, binary, where["values"])
        ends = np.frombuffer(view(document, binary, where["stringOffsets"]), "<u4")
        for row, (a, b) in zip(found, itertools.pairwise(ends.tolist()), strict=True):
            row[name] = text[a:b].decode()
    return found


def positions(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions with z up, in the tile's frame, and the feature of each."""
    document, binary = parsed(data)
    node = document["nodes"][0]
    found, features = [], []
    for primitive in document["meshes"][0]["primitives"]:
        accessor = document["accessors"][primitive["attributes"]["POSITION"]]
        raw = view(document, binary, accessor["bufferView"])
        width = {5122: ("<i2", 4), 5126: ("<f4", 3)}[accessor["componentType"]]
        rows = np.frombuffer(raw, width[0]).reshape(-1, width[1])[:, :3].astype(float)
        assert rows.min(axis=0).tolist() == accessor["min"]
        assert rows.max(axis=0).tolist() == accessor["max"]
        place = rows * node.get("scale", [1, 1, 1]) + node["translation"]
        found.append(np.column_stack([place[:, 0], -place[:, 2], place[:, 1]]))
        accessor = document["accessors"][primitive["attributes"]["_FEATURE_ID_0"]]
        features.append(np.frombuffer(view(document, binary, accessor["bufferView"]), "<u2").reshape(-1, 2)[:, 0])
    return np.concatenate(found), np.concatenate(features)


CITY = [
    *(Feature(f"城:b{n}", a_house(n, 30.0 * n)) for n in range(5)),
    Feature("城:p1", a_pipe(1, diameter_m=0.6)),
    Feature("城:p2", a_pipe(2, "drainage", diameter_m=1.0, invert_start_m=-3.0, invert_end_m=-3.7)),
    Feature(
        "城:m",
        Asset(
            "m", "manhole", "node", system="drainage", attributes={"ground_m": 4.0, "invert_m": 1.5},
            geometry=(Geometry.point(EAST, NORTH, 1.5),),
        ),
    ),
    Feature("城:?", Asset("?", "other")),
]  # fmt: skip


def test_a_tileset_tells_each_asset_once_where_it_lies() -> None:
    files = dict(tiles.write(CITY, "EPSG:4547", "城"))
    tileset = json.loads(files.pop("tileset.json"))
    told = {row["id"]: row for data in files.values() for row in table(data)}
    assert told.keys() == {f.id for f in CITY} - {"城:?"}
    assert told["城:b3"] == {"id": "城:b3", "type": "building", "name": "3号楼", "level": "CIM3", "system": ""}
    assert sorted(files) == ["0-building.glb", "0-manhole.glb", "0-pipe.glb"]

    # Where b3 lies on earth, by PROJ and by the tile's own transform.
    place, feature = positions(files["0-building.glb"])
    row = [r["id"] for r in table(files["0-building.glb"])].index("城:b3")
    transform = np.array(tileset["root"]["transform"]).reshape(4, 4).T
    earth = (np.column_stack([place, np.ones(len(place))]) @ transform.T)[:, :3]
    lon, lat, height = Transformer.from_crs(4978, 4979, always_xy=True).transform(*earth[feature == row].T)
    wanted = crs.parse("EPSG:4547").to_map(np.array([EAST + 90, EAST + 102]), np.array([NORTH, NORTH + 10]))
    assert (lon.min(), lon.max()) == (pytest.approx(wanted[0][0], abs=1e-7), pytest.approx(wanted[0][1], abs=1e-7))
    assert (lat.min(), lat.max()) == (pytest.approx(wanted[1][0], abs=1e-7), pytest.approx(wanted[1][1], abs=1e-7))
    assert (height.min(), height.max()) == (pytest.approx(5, abs=0.01), pytest.approx(17, abs=0.01))

    place, feature = positions(files["0-pipe.glb"])
    rows = [r["id"] for r in table(files["0-pipe.glb"])]
    water, drain = (place[feature == rows.index(name)][:, 2] for name in ("城:p1", "城:p2"))
    assert (water.max(), drain.min()) == (pytest.approx(-1 + 0.28, abs=0.02), pytest.approx(-3.7 + 0.04, abs=0.02))
    shaft = positions(files["0-manhole.glb"])[0][:, 2]
    assert (shaft.min(), shaft.max()) == (pytest.approx(1.5, abs=0.01), pytest.approx(4.0, abs=0.01))


def test_the_same_model_gives_the_same_bytes_in_any_order() -> None:
    assert list(tiles.write(CITY, "EPSG:4547", "城")) == list(tiles.write(CITY[::-1], "EPSG:4547", "城"))


def test_a_coordinate_gone_wrong_leaves_out_its_own_feature_only() -> None:
    wrong = [Feature("x", a_house(9, 1e9)), Feature("y", a_house(9, 0.0, float("nan")))]
    files = dict(tiles.write([*CITY, *wrong], "EPSG:4547", "x"))
    assert {row["id"] for row in table(files["0-building.glb"])} == {f.id for f in CITY if f.asset.type == "building"}
    assert json.loads(files["tileset.json"])["geometricError"] < 300


def test_a_primitive_counts_the_features_of_its_own() -> None:
    document, _ = parsed(dict(tiles.write(CITY, "EPSG:4547", "x"))["0-pipe.glb"])
    counts = [
        primitive["extensions"]["EXT_mesh_features"]["featureIds"][0]["featureCount"]
        for primitive in document["meshes"][0]["primitives"]
    ]
    assert counts == [1, 1]


def test_a_model_without_a_place_or_without_shapes_has_a_tileset_all_the_same() -> None:
    files = dict(tiles.write(CITY, "", "城"))
    assert "transform" not in json.loads(files["tileset.json"])["root"]
    (name,) = dict(tiles.write([Feature("x", Asset("x", "zone"))], "EPSG:4326", "x"))
    assert name == "tileset.json"
    assert [path for path, _ in tiles.write([], "", "x")] == ["tileset.json"]


def test_large_models_are_cut_into_tiles_whose_error_is_what_is_still_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_FEATURES", 10)
    city = [Feature(f"b{n:03}", a_house(n, 40.0 * (n % 12), 40.0 * (n // 12))) for n in range(120)]
    city.append(Feature("long", a_pipe(0, diameter_m=2.0)))
    files = dict(tiles.write(city, "EPSG:4547", "x"))
    tileset = json.loads(files["tileset.json"])
    told: list[str] = []

    def walk(tile: dict[str, Any], most: float) -> None:
        box = np.array(tile["boundingVolume"]["box"])
        middle, reach = box[:3], np.abs(box[3:].reshape(3, 3)).sum(axis=0) + 0.02
        assert tile["geometricError"] <= most
        for content in tile["contents"]:
            place, _ = positions(files[content["uri"]])
            assert (np.abs(place - middle) <= reach).all()
            told.extend(row["id"] for row in table(files[content["uri"]]))
        for child in tile.get("children", []):
            assert tile["geometricError"] > 0
            walk(child, tile["geometricError"])

    walk(tileset["root"], tileset["geometricError"])
    assert sorted(told) == sorted(f.id for f in city)
    assert table(files["0-pipe.glb"])[0]["id"] == "long"


LON, LAT = 114.05, 22.55


def tile_of(z: int) -> tuple[int, int, int]:
    x = int((LON / 360 + 0.5) * 2**z)
    y = int((0.5 - math.asinh(math.tan(math.radians(LAT))) / (2 * math.pi)) * 2**z)
    return z, x, y


def test_a_vector_tile_reads_back_with_another_decoder() -> None:
    z, x, y = tile_of(15)
    west, south, east, north = mvt.bounds(z, x, y)
    middle = shapely.Point((west + east) / 2, (south + north) / 2)
    square = middle.buffer(0.001, cap_style="square")
    ring = square.difference(middle.buffer(0.0004, cap_style="square"))
    line = shapely.LineString([(west - 1, middle.y), (east + 1, middle.y)])
    far = shapely.Point(0, 0)
    layers = {
        "建筑": ([ring, far], [{"id": "城:1", "name": "一号楼", "floors": 6, "h": 18.5, "ok": True, "no": None}, {}]),
        "pipes": ([line], [{"id": "p"}]),
        "nodes": ([middle, far], [{"id": "n", "depth": -3}, {"id": "far"}]),
        "none": ([far], [{"id": "far"}]),
    }
    data = mvt.write(z, x, y, layers)
    read = mapbox_vector_tile.decode(data, default_options={"y_coord_down": True})
    assert list(read) == ["建筑", "pipes", "nodes"]
    (building,) = read["建筑"]["features"]
    assert building["properties"] == {"id": "城:1", "name": "一号楼", "floors": 6, "h": 18.5, "ok": True}
    shape = shapely.geometry.shape(building["geometry"])
    assert shape.is_valid
    assert len(shape.interiors) == 1
    scale = 4096 * 2**z / 360
    assert shape.area == pytest.approx(ring.area * scale**2 / math.cos(math.radians(LAT)), rel=0.01)
    (pipe,) = read["pipes"]["features"]
    assert sorted(point[0] for point in pipe["geometry"]["coordinates"]) == [-mvt.BUFFER, 4096 + mvt.BUFFER]
    (node,) = read["nodes"]["features"]
    assert node["properties"] == {"id": "n", "depth": -3}
    assert node["geometry"]["coordinates"] == [2048, 2048]
    assert mvt.write(z, x, y, layers) == data
    assert mvt.write(z, 0, 0, layers) == b""


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=3, max_size=12), st.integers(12, 18))
def test_any_polygon_is_told_as_rings_another_decoder_accepts(points: list[tuple[float, float]], z: int) -> None:
    z, x, y = tile_of(z)
    west, south, east, north = mvt.bounds(z, x, y)
    placed = [(west + a * (east - west), south + b * (north - south)) for a, b in points]
    polygon = shapely.make_valid(shapely.Polygon(placed))
    data = mvt.write(z, x, y, {"a": ([polygon], [{"id": "1"}])})
    read = mapbox_vector_tile.decode(data, default_options={"y_coord_down": True})
    for feature in read.get("a", {"features": []})["features"]:
        flat = np.array(shapely.get_coordinates(shapely.geometry.shape(feature["geometry"])))
        assert (flat >= -mvt.BUFFER - 1).all()
        assert (flat <= 4096 + mvt.BUFFER + 1).all()


VALIDATE = """
const validator = require("gltf-validator"), fs = require("fs");
Promise.all(process.argv.slice(1).map(async (file) => {
  const { issues } = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), { maxIssues: 0 });
  return [file, issues.numErrors, issues.numWarnings, issues.messages.slice(0, 5)];
})).then((found) => console.log(JSON.stringify(found)));
"""
SHARED = ROOT.parent / "shared" / "data"


def test_the_reference_validator_finds_no_error_and_no_warning(tmp_path: Path) -> None:
    web = ROOT / "web"
    if not (web / "node_modules" / "gltf-validator").exists():
        if os.environ.get("CI"):
            pytest.fail("run `make page`: it installs the validator")
        pytest.skip("the validator is not installed: run `make page`")
    cities = {"x": (CITY, "EPSG:4547")}
    for name, model in district.models().items():
        cities[name] = [Feature(f"{name}:{a.local}", a) for a in model.assets], model.crs
    for file in ("city/delft.json", "water/L-TOWN.inp"):
        if (SHARED / file).exists():
            model = readers.read((SHARED / file).read_bytes(), file, "EPSG:28992" if "L-TOWN" in file else "")
            cities[file.partition("/")[2]] = [Feature(a.local + a.group, a) for a in model.assets], model.crs
    files = []
    for name, (features, system) in cities.items():
        for path, data in tiles.write(features, system, name):
            if path.endswith(".glb"):
                files.append(tmp_path / f"{name}-{path}")
                files[-1].write_bytes(data)
    node = shutil.which("node", path=hatch_build.find_npm().path)
    assert node is not None
    done = subprocess.run([node, "-e", VALIDATE, *map(str, files)], cwd=web, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(files) > 10
    assert [row for row in found if row[1] or row[2]] == []
