"""CityJSON in and out: what is read, what is refused and where, and that writing loses nothing."""

from __future__ import annotations

import contextlib
import copy
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models3d.readers import cityjson, read, recognise
from models3d.writers.cityjson import write, write_sequence
from tests.models3d import houses
from twin.city import ASSET_TYPES, DEPTHS, Asset, CityModel, Geometry, InvalidModel

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "city"
FILES = [SOURCE / f"{name}.json" for name in ("cube", "delft", "minimal", "multi_lod") if SOURCE.exists()]
CUBE = [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[0, 3, 5, 4]], [[3, 2, 6, 5]], [[2, 1, 7, 6]], [[1, 0, 4, 7]]]


def full() -> dict[str, Any]:
    """A document with something of everything."""
    corners = [[0, 0, 0], [0, 9, 0], [9, 9, 0], [9, 0, 0], [0, 0, 9], [9, 0, 9], [9, 9, 9], [0, 9, 9], [50, 60, 70]]
    solid = {
        "type": "Solid",
        "lod": "3.1",
        "boundaries": [CUBE],
        "semantics": {
            "surfaces": [{"type": "WallSurface", "children": [1]}, {"type": "Door", "parent": 0, "colour": "red"}],
            "values": [[0, 1, None, None, 0, 0]],
        },
        "material": {"day": {"values": [[0, 1, None, 0, 0, 0]]}, "night": {"value": 1}},
    }
    ring = {"type": "MultiSurface", "lod": "0", "boundaries": [[[0, 1, 2, 3], [4, 5, 6, 7]]]}
    textured = ring | {"texture": {"t": {"values": [[[0, 0, 1, 2, 3], [None]]]}}}
    document = {
        "type": "CityJSON",
        "version": "2.0",
        "transform": {"scale": [0.5, 0.5, 0.01], "translate": [84000.0, 447000.0, -1.0]},
        "extensions": {"Noise": {"url": "https://example.org/noise.json", "version": "1.0"}},
        "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/7415", "title": "试验"},
        "appearance": {
            "materials": [{"name": "a"}, {"name": "b"}],
            "textures": [{"type": "PNG", "image": "http://example.org/a.png"}],
            "vertices-texture": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]],
        },
        "+noise": {"level": [1, {"deep": None}]},
        "geometry-templates": {
            "templates": [{"type": "MultiSurface", "lod": "2", "boundaries": [[[0, 1, 2]]]}],
            "vertices-templates": [[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [1.5, 0.0, 2.0]],
        },
        "CityObjects": {
            "house": {
                "type": "Building",
                "attributes": {"name": "市民中心", "storeysAboveGround": 3, "oorspronkelijkbouwjaar": "1961"},
                "children": ["wing", "porch"],
                "geographicalExtent": [84000, 447000, -1, 84004.5, 447004.5, 0],
                "address": [{"Country": "NL", "location": {"type": "MultiPoint", "lod": "0", "boundaries": [0]}}],
                "geometry": [solid, textured],
            },
            "wing": {"type": "BuildingPart", "parents": ["house"], "geometry": [ring]},
            "porch": {"type": "BuildingInstallation", "parents": ["house", "all"]},
            "all": {"type": "CityObjectGroup", "children": ["porch", "tree"], "children_roles": ["a", "b"]},
            "tree": {
                "type": "SolitaryVegetationObject",
                "geometry": [
                    {
                        "type": "GeometryInstance",
                        "template": 0,
                        "boundaries": [8],
                        "transformationMatrix": [2, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
                    }
                ],
            },
            "wall": {"type": "+NoiseWall", "attributes": {"+db": 45.5}, "+made": {"of": "wood"}, "geometry": [ring]},
            "pole": {"type": "CityFurniture", "geometry": [{"type": "MultiPoint", "lod": "1", "boundaries": [8, 8]}]},
            "two": {"type": "OtherConstruction", "geometry": [
                {"type": "MultiSolid", "lod": "1", "boundaries": [[CUBE], [CUBE]],
                 "semantics": {"surfaces": [{"type": "RoofSurface"}], "values": [[[0] * 6], None]}}]},
        },
        "vertices": corners,
    }  # fmt: skip
    return copy.deepcopy(document)


def told(document: Any) -> bytes:
    return json.dumps(document).encode()


def same(one: CityModel, other: CityModel, off: float = 0.0) -> None:
    """Two models are equal, coordinates to `off`."""
    assert (one.crs, one.height) == (other.crs, other.height)
    assert [a.local for a in one.assets] == [a.local for a in other.assets]
    for a, b in zip(one.assets, other.assets, strict=True):
        for field in fields(a):
            if field.name != "geometry":
                assert getattr(a, field.name) == getattr(b, field.name), (a.local, field.name)
        for g, h in zip(a.geometry, b.geometry, strict=True):
            assert (g.kind, g.boundaries, g.lod, g.semantics, g.extra) == (
                h.kind, h.boundaries, h.lod, h.semantics, h.extra,
            )  # fmt: skip
            np.testing.assert_allclose(g.vertices, h.vertices, rtol=0, atol=off)


def points(boundaries: Any, vertices: Any) -> Any:
    """Boundaries with coordinates in place of indices."""
    if isinstance(boundaries, list):
        return [points(one, vertices) for one in boundaries]
    return tuple(vertices[boundaries])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_real_files_hold_what_a_plain_look_at_their_json_counts(path: Path) -> None:
    plain = json.loads(path.read_bytes())
    model = read(path.read_bytes(), path.name)
    assert Counter(a.element for a in model.assets) == Counter(o["type"] for o in plain["CityObjects"].values())
    if path.stem == "delft":
        assert (len(model.assets), model.crs) == (570, "EPSG:7415")
        assert sum(a.type == "building" for a in model.assets) == 160
    scale, move = plain["transform"]["scale"], plain["transform"]["translate"]
    vertices = [tuple(v[i] * scale[i] + move[i] for i in range(3)) for v in plain["vertices"]]
    for asset in model.assets:
        before = plain["CityObjects"][asset.local]
        assert {k: v for k, v in asset.attributes.items() if k in before.get("attributes", {})} == before.get(
            "attributes", {}
        )
        for shape, geometry in zip(asset.geometry, before.get("geometry", []), strict=True):
            assert (shape.kind, shape.lod) == (geometry["type"], geometry["lod"])
            assert points(shape.boundaries, shape.vertices.tolist()) == points(geometry["boundaries"], vertices)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_written_of_a_real_file_is_read_as_the_same(path: Path) -> None:
    model = read(path.read_bytes(), path.name)
    document = write(model)
    same(model, read(document, "again"))
    assert write(read(document, "again")) == document
    same(model, read(b"".join(write_sequence(model)), "sequence"))


def test_a_document_with_everything_is_read_in_our_words() -> None:
    model = read(told(full()), "full.json")
    found = {asset.local: asset for asset in model.assets}
    house = found["house"]
    assert (house.type, house.name_zh, house.level, model.crs) == ("building", "市民中心", 4, "EPSG:7415")
    assert (house.attributes["floors"], house.attributes["year"]) == (3, 1961)
    assert house.attributes["cityjson"]["address"][0]["Country"] == "NL"
    assert (found["wing"].parent, found["porch"].parent, found["all"].type) == ("house", "house", "group")
    assert found["wall"].type == "other"
    assert found["wall"].attributes["cityjson"] == {"+made": {"of": "wood"}}
    # The template: doubled, moved by 1 along x, put at (84000 + 25, 447000 + 30, -1 + 0.7).
    expected = [[84026, 447030, -0.3], [84026, 447033, -0.3], [84029, 447030, 1.7]]
    np.testing.assert_allclose(found["tree"].geometry[0].vertices, expected)
    assert model.metadata["root"] == {"+noise": {"level": [1, {"deep": None}]}}
    assert model.metadata["appearance"]["materials"] == [{"name": "a"}, {"name": "b"}]


def test_a_document_with_everything_is_written_whole_again() -> None:
    model = read(told(full()), "full.json")
    again = json.loads(write(model))
    for key in ("transform", "extensions", "metadata", "appearance", "+noise"):
        assert again[key] == full()[key], key
    for id_, before in full()["CityObjects"].items():
        after = again["CityObjects"][id_]
        for key in before.keys() - {"geometry"}:
            assert after[key] == before[key], (id_, key)
        assert after.keys() == before.keys()
    same(model, read(write(model), "again"), 0.25)  # half a step of the transform, for the template's instance
    same(model, read(b"".join(write_sequence(model)), "sequence"), 0.25)


def test_a_sequence_is_read_as_its_document() -> None:
    same(read(houses.cityjson(50), "a"), read(houses.sequence(50), "b"))
    one_by_one = houses.sequence(3).replace(b"\n", b"\r\n\n\x1e")
    same(read(houses.cityjson(3), "a"), read(one_by_one, "b"))


def test_features_materials_and_textures_keep_their_own_after_joining() -> None:
    header = {k: v for k, v in full().items() if k not in ("appearance", "CityObjects", "vertices")}
    lines = [header | {"CityObjects": {}, "vertices": []}]
    for number in range(2):
        ring = {"type": "MultiSurface", "lod": "1", "boundaries": [[[0, 1, 2]]],
                "material": {"m": {"values": [0]}}, "texture": {"t": {"values": [[[0, 0, 1, 2]]]}}}  # fmt: skip
        lines.append({
            "type": "CityJSONFeature", "id": f"b{number}", "vertices": [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
            "CityObjects": {f"b{number}": {"type": "Building", "geometry": [ring]}},
            "appearance": {"materials": [{"name": f"m{number}"}], "vertices-texture": [[0, 0], [1, 0], [0, 1]],
                           "textures": [{"type": "PNG", "image": f"{number}.png"}]},
        })  # fmt: skip
    model = read(b"\n".join(map(told, lines)), "s.jsonl")
    assert [m["name"] for m in model.metadata["appearance"]["materials"]] == ["m0", "m1"]
    assert model.assets[1].geometry[0].extra == {
        "material": {"m": {"values": [1]}}, "texture": {"t": {"values": [[[1, 3, 4, 5]]]}},
    }  # fmt: skip


def test_rings_that_repeat_their_first_point_lose_it_and_their_textures_too() -> None:
    document = full()
    ring = document["CityObjects"]["house"]["geometry"][1]
    ring["boundaries"][0][0].append(0)
    ring["texture"]["t"]["values"][0][0].append(0)
    model = read(told(document), "closed.json")
    assert model.notes
    same(CityModel("x", model.assets, crs=model.crs, height=model.height), read(told(full()), "open.json"))


def test_networks_things_are_written_with_what_cityjson_has_no_word_for() -> None:
    nan = float("nan")
    line = Geometry.line(np.array([[0.0, 0.0, nan], [5.0, 5.0, 2.0]]))
    model = CityModel("epanet", [
        Asset("1", "junction", "node", "JUNCTION", geometry=(Geometry.point(1.5, 2.5),), system="water", level=3),
        Asset("1", "pipe", "link", "PIPE", "东街", "", {"diameter_m": 0.3}, (line,), code="350000", system="water"),
        Asset("b", "building", geometry=(Geometry("MultiSurface", np.eye(3), [[[0, 1, 2]]], "2"),), level=3),
    ])  # fmt: skip
    again = read(write(model), "again")
    same(model, CityModel("x", [  # a building's own word comes back with it
        a if a.local != "b" else Asset("b", "building", "object", "", geometry=a.geometry, level=3)
        for a in again.assets
    ]), 0.0005)  # fmt: skip


def test_the_same_houses_are_told_by_both_versions_and_by_content_alone() -> None:
    document = full() | {"version": "1.1"}
    assert recognise(told(document), "x.bin") == "cityjson"
    assert recognise(b"\xef\xbb\xbf " + told({"vertices": [], "CityObjects": {}}), "x") == "cityjson"
    assert recognise(told({"type": "FeatureCollection", "features": []}), "x.city.json") == "geojson"
    assert recognise(b"PK\x03\x04 a zip", "x.city.json") is None
    same(read(told(document), "1.1"), read(told(full()), "2.0"))


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


HOUSE = ("CityObjects", "house")
SOLID = (*HOUSE, "geometry", 0)
BROKEN = {
    "no version": (put("version", value=...), "bad.json", "version"),
    "an old version": (put("version", value="1.0"), "bad.json", "1.1 and 2.0"),
    "no transform": (put("transform", value=...), "bad.json", "transform"),
    "no vertices": (put("vertices", value=...), "bad.json", "vertices"),
    "a transform without scale": (put("transform", "scale", value=[1, 1]), "bad.json", "transform"),
    "no scale at all": (put("transform", "scale", value=[0, 1, 1]), "bad.json", "transform"),
    "a vertex of two": (put("vertices", 3, value=[1, 2]), "bad.json", "vertex 3"),
    "a vertex of text": (put("vertices", 4, value=[1, 2, "3"]), "bad.json", "vertex 4"),
    "a vertex between": (put("vertices", 5, value=[1, 2, 0.5]), "bad.json", "vertex 5"),
    "a vertex far out": (put("vertices", 5, value=[1, 2, 10**300]), "bad.json", "vertex 5"),
    "vertices as text": (put("vertices", value="[]"), "bad.json", "vertices"),
    "objects as a list": (put("CityObjects", value=[]), "bad.json", "CityObjects"),
    "an object that is none": (put(*HOUSE, value=7), "object house", "object"),
    "an object without type": (put(*HOUSE, "type", value=...), "object house", "type"),
    "attributes as text": (put(*HOUSE, "attributes", value="x"), "object house", "attributes"),
    "a NUL": (put(*HOUSE, "attributes", "x", value="\x00"), "object house", "NUL"),
    "geometry as object": (put(*HOUSE, "geometry", value={}), "object house", "geometry"),
    "an unknown geometry": (put(*SOLID, "type", value="Blob"), "object house", "geometry[0]"),
    "an index too high": (put(*SOLID, "boundaries", 0, 2, 0, 1, value=9), "object house", "no vertex 9"),
    "an index below 0": (put(*SOLID, "boundaries", 0, 2, 0, 1, value=-1), "object house", "no vertex -1"),
    "an index that is none": (put(*SOLID, "boundaries", 0, 2, 0, 1, value=1.5), "object house", "integers"),
    "a ring of two": (put(*SOLID, "boundaries", 0, 2, 0, value=[1, 2]), "object house", "3 points"),
    "an empty ring": (put(*SOLID, "boundaries", 0, 2, 0, value=[]), "object house", "geometry[0]"),
    "an empty shell": (put(*SOLID, "boundaries", 0, value=[]), "object house", "geometry[0]"),
    "too shallow": (put(*SOLID, "boundaries", value=CUBE), "object house", "4 deep"),
    "too deep": (put(*SOLID, "boundaries", value=[[CUBE]]), "object house", "4 deep"),
    "semantics short": (put(*SOLID, "semantics", "values", 0, value=[0]), "object house", "semantics"),
    "semantics flat": (put(*SOLID, "semantics", "values", value=[0] * 6), "object house", "semantics"),
    "semantics of none": (put(*SOLID, "semantics", "values", 0, 0, value=2), "object house", "no surface 2"),
    "a surface's parent": (put(*SOLID, "semantics", "surfaces", 1, "parent", value=5), "object house", "surfaces[1]"),
    "no such template": (put("CityObjects", "tree", "geometry", 0, "template", value=1), "object tree", "template"),
    "a matrix of 15": (
        put("CityObjects", "tree", "geometry", 0, "transformationMatrix", value=[1] * 15), "object tree", "16",
    ),
    "a parent that is not": (put("CityObjects", "wing", "parents", value=["x"]), "object wing", "'x'"),
    "a circle": (put(*HOUSE, "parents", value=["wing"]), "object wing", "ancestor"),
    "its own parent": (put(*HOUSE, "parents", value=["house"]), "object house", "ancestor"),
    "ours, without id": (put(*HOUSE, "attributes", "cimtwin", value={"local": ""}), "object house", "cimtwin"),
    "ours, forged": (put(*HOUSE, "attributes", "cimtwin", value={"type": "spaceship"}), "object house", "cimtwin"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_document_is_refused_with_the_place(case: str) -> None:
    change, place, text = BROKEN[case]
    document = full()
    change(document)
    with pytest.raises(InvalidModel) as refused:
        read(told(document), "bad.json")
    assert any(place in p.place and text in str(p) for p in refused.value.problems), refused.value.problems


def test_every_mistake_is_listed_not_only_the_first() -> None:
    document = full()
    for name in ("an index too high", "no such template", "a NUL"):
        BROKEN[name][0](document)
    with pytest.raises(InvalidModel) as refused:
        read(told(document), "bad.json")
    assert {"bad.json, object house", "bad.json, object tree"} <= {p.place for p in refused.value.problems}


def test_a_mistake_of_syntax_is_told_by_line_and_column() -> None:
    text = json.dumps(full(), indent=1).encode()
    at = text.index(b'"+db"')
    line, column = text[:at].count(b"\n") + 1, at - text.rfind(b"\n", 0, at)
    with pytest.raises(InvalidModel, match=f"line {line}, column {column}:"):
        read(text[:at] + b"!" + text[at:], "bad.json")
    lines = houses.sequence(3).splitlines()
    lines[2] = lines[2][:-5]
    with pytest.raises(InvalidModel, match=r"bad.jsonl, line 3"):
        read(b"\n".join(lines), "bad.jsonl")


def test_ids_told_twice_are_refused_in_documents_and_sequences() -> None:
    text = houses.cityjson(3).replace(b'"B2":', b'"B\\u0031":')
    with pytest.raises(InvalidModel, match="'B1'"):
        read(text, "bad.json")
    lines = houses.sequence(3).splitlines()
    with pytest.raises(InvalidModel, match="object B1"):
        read(b"\n".join([*lines, lines[2]]), "bad.jsonl")


@pytest.mark.timeout(60)
def test_hostile_files_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cityjson, "MAX_VALUES", 100_000)
    monkeypatch.setattr(cityjson, "MAX_INSTANCED", 1000)
    monkeypatch.setattr(cityjson, "MAX_BRACES", 50_000)
    deep = b'{"type":"CityJSON","CityObjects":{"a":' + b"[" * 90_000
    many = b'{"type":"CityJSON","CityObjects":{' + b",".join(b'"%d":{}' % n for n in range(60_000)) + b"}}"
    flood = told(full()).replace(b"45.5", b"[" + b"[]," * 60_000 + b"1]")
    nested = told(full()).replace(b"45.5", b"[" * 500 + b"]" * 500)
    document = full()
    tree = document["CityObjects"].pop("tree")
    document["CityObjects"]["all"]["children"] = ["porch"]
    document["CityObjects"]["all"]["children_roles"] = ["a"]
    document["CityObjects"] |= {f"t{n}": tree for n in range(500)}
    for hostile in (deep, many, flood, nested, told(document), told(full())[:-1], b'{"CityObjects":{}'):
        with pytest.raises(InvalidModel):
            read(hostile, "hostile.json")


def test_a_mapped_file_can_be_closed_whether_it_was_read_or_refused() -> None:
    for text, is_good in ((told(full()), True), (told(full())[:-3], False), (houses.sequence(3), True)):
        with mmap.mmap(-1, len(text)) as mapped:
            mapped.write(text)
            if is_good:
                read(mapped, "mapped.json")
            else:
                with pytest.raises(InvalidModel):
                    read(mapped, "mapped.json")


# Any model.

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
RESERVED = {"cityjson", "cimtwin", "floors", "height_m", "year"}


@st.composite
def shapes(draw: st.DrawFn) -> Geometry:
    kind = draw(st.sampled_from(sorted(DEPTHS)))
    count = draw(st.integers(3, 8))
    vertices = np.array(draw(st.lists(st.tuples(*[st.integers(-(10**7), 10**7)] * 3), min_size=count, max_size=count)))
    order: dict[int, int] = {}

    def nested(depth: int) -> Any:
        if depth == 1:
            ring = draw(st.lists(st.integers(0, count - 1), min_size=3, max_size=5))
            ring = ring[:-1] if len(ring) > 3 and ring[0] == ring[-1] else ring
            ring = [0, 1, 2] if ring[0] == ring[-1] else ring
            return [order.setdefault(one, len(order)) for one in ring]
        return [nested(depth - 1) for _ in range(draw(st.integers(1, 2)))]

    boundaries = nested(DEPTHS[kind])
    semantics = None
    if draw(st.booleans()):

        def values(part: Any, depth: int) -> Any:
            if depth == 0:
                return draw(st.none() | st.integers(0, 1))
            return [values(one, depth - 1) for one in part]

        surfaces = [{"type": "WallSurface"}, {"type": "+Odd", "x": draw(jsons)}]
        semantics = {"surfaces": surfaces, "values": values(boundaries, max(DEPTHS[kind] - 2, 1))}
    lod = draw(st.sampled_from(["", "0", "1", "2.2", "3.3"]))
    return Geometry(kind, vertices[list(order)] / 1000.0, boundaries, lod, semantics)


@st.composite
def models(draw: st.DrawFn) -> CityModel:
    keys = st.tuples(st.sampled_from(["object", "node", "link"]), words.filter(bool))
    assets: list[Asset] = []
    for group, local in draw(st.lists(keys, max_size=4, unique=True)):
        above = [a.local for a in assets if a.group == group]
        assets.append(Asset(
            local, draw(st.sampled_from(ASSET_TYPES)), group,
            draw(st.sampled_from(["", "Building", "PIPE", "+Odd", "Road"])), draw(words), draw(words),
            draw(st.dictionaries(words.filter(lambda w: w not in RESERVED), jsons, max_size=3)),
            tuple(draw(st.lists(shapes(), max_size=2))), draw(st.sampled_from(["", *above])),
            draw(st.integers(0, 7)), draw(words), draw(words), draw(st.sampled_from(["", "gas"])),
        ))  # fmt: skip
    return CityModel(
        draw(st.sampled_from(["cityjson", "epanet"])), assets, crs=draw(st.sampled_from(["", "EPSG:4547"]))
    )


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_any_model_is_read_as_it_was_written(model: CityModel) -> None:
    again = read(write(model), "again.json")
    same(model, again, 0.0005)
    in_lines = read(b"".join(write_sequence(again)), "again.jsonl")
    order = {(asset.group, asset.local): place for place, asset in enumerate(again.assets)}
    in_lines.assets.sort(key=lambda asset: order[asset.group, asset.local])
    same(again, in_lines, 0.0005)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_document_ends_in_a_model_or_a_refusal(data: st.DataObject) -> None:
    text = bytearray(told(full()) if data.draw(st.booleans()) else houses.sequence(2))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        to = min(len(text), at + data.draw(st.integers(0, 20)))
        text[at:to] = data.draw(
            st.sampled_from([b"", b"]", b"[", b"{}", b"0", b"-1e9", b'"', b"null", b"\xff", b"[[1]]"])
        )
    with contextlib.suppress(InvalidModel):
        read(bytes(text), "damaged.json")


def test_integers_beyond_64_bits_are_read_and_written_as_floats() -> None:
    document = full() | {"big": 2**64 - 1}
    document["CityObjects"]["wall"]["attributes"] |= {"most": 2**63 - 1, "more": [2**63, {"far": -(10**25)}]}
    model = read(told(document), "big.json")
    wall = next(asset for asset in model.assets if asset.local == "wall").attributes
    assert (wall["most"], type(wall["most"])) == (2**63 - 1, int)
    assert [type(wall["more"][0]), wall["more"]] == [float, [2.0**63, {"far": -1e25}]]
    assert type(model.metadata["root"]["big"]) is float
    wall["more"].append({"limit": 10**20, "none": 10**400})  # as a store that keeps numbers exactly gives it back
    again = read(write(model), "again.json")
    assert again.assets[5].attributes["more"][2] == {"limit": 1e20, "none": None}
    assert wall["more"][2]["limit"] == 10**20, "the model that is written stays as it is"
    assert read(b"".join(write_sequence(model)), "again.jsonl").assets


@pytest.mark.filterwarnings("error")
def test_a_vertex_that_overflows_is_refused_without_a_warning() -> None:
    document = full()
    document["transform"]["scale"] = [1e300, 1e300, -1e300]
    document["vertices"][5] = [10**300, 0, 10**300]
    with pytest.raises(InvalidModel, match="out of this world"):
        read(told(document), "far.json")


@pytest.mark.parametrize("step", [1.0, 0.001, 0.0254])
def test_instances_off_the_files_own_grid_are_written_to_a_tenth_of_a_millimetre(step: float) -> None:
    document = full()
    document["transform"] = {"scale": [step, step, 1e-250], "translate": [84000.0, 447000.0, -1.0]}
    turned = [0.866, -0.5, 0, 0.3, 0.5, 0.866, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    document["CityObjects"]["tree"]["geometry"][0]["transformationMatrix"] = turned
    model = read(told(document), "turned.json")
    written = write(model)
    same(model, read(written, "again.json"), 0.0001 + 1e-9)
    same(model, read(b"".join(write_sequence(model)), "again.jsonl"), 0.0001 + 1e-9)
    transform = json.loads(written)["transform"]
    assert transform["translate"] == document["transform"]["translate"]
    assert transform["scale"][2] == 0.001, "a grid too fine for exact integers is left"
    model.metadata["transform"]["translate"] = [1e300, 447000.0, -1.0]  # such vertices are no integers of any step
    same(model, read(write(model), "far.json"), 0.0005 + 1e-9)
    del document["CityObjects"]["tree"]
    document["CityObjects"]["all"]["children"] = ["porch"]
    assert json.loads(write(read(told(document), "as it was")))["transform"]["scale"][:2] == [step, step]


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a document."""
    yield path
    if isinstance(part, dict | list):
        for key, below in part.items() if isinstance(part, dict) else enumerate(part):
            yield from places(below, (*path, key))


@pytest.mark.parametrize("value", [True, 7, 1.5, "x", None, [], {}, [3], {"a": "b"}, 10**25], ids=repr)
def test_another_value_anywhere_in_a_document_ends_in_a_model_or_a_refusal(value: Any) -> None:
    """A model that is read from it can be written, too."""
    for path in places(full()):
        document = full() | {"note": value}
        if path:
            put(*path, value=value)(document)
        own = {key: document[key] for key in ("appearance", "CityObjects", "vertices")}
        feature = {"type": "CityJSONFeature", "id": "house", "note": value} | own
        lines = told(document | {"CityObjects": {}, "vertices": []}) + b"\n" + told(feature)
        for text in (told(document if path else value), lines):
            with contextlib.suppress(InvalidModel):
                write(cityjson.read(text, "another.json"))
