"""EPANET's input files: what is read, what is refused and where, and how long it takes."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_files import SHARED, assets, is_read_or_refused, problems, section_rows, spoiled

from bench.rows.models import epanet_text
from models3d import readers
from twin.city import CityModel

WATER = sorted((SHARED / "water").glob("*.inp"))
has_source = pytest.mark.skipif(not WATER, reason="the real networks are not beside this repository")

SMALL = """[TITLE]
 A small net
[JUNCTIONS]
;ID  Elev  Demand  Pattern
 J1  10.5  3.6  day ; 南门 street
 J2  9  7.2
 J3\t8
[RESERVOIRS]
 R1  50
[TANKS]
 T1  40  2  0.5  5  12  0
[PIPES]
 P1  J1  J2  100  150  120  0  Open ; old iron
 P2  J2  J3  200  300  110  0.2  CV
 P3  J3  T1  50  300  110  Closed
 J1  R1  J3  10  500  130
[PUMPS]
 PU  R1  J1  HEAD lift SPEED 0.9
[VALVES]
 V1  J1  J3  200  PRV  30  0
[DEMANDS]
 J2  1.8  day ; homes
 J2  0.9
[EMITTERS]
 J3  0.5
[STATUS]
 P1  Closed
 V1  25
[PATTERNS]
 day 0.5 1.5
 day 1.0
[CURVES]
 lift 10 40
[CONTROLS]
 LINK P1 OPEN IF NODE T1 BELOW 1
[RULES]
 RULE 1
 IF TANK T1 LEVEL ABOVE 4
 THEN PUMP PU STATUS IS CLOSED
[OPTIONS]
 Units LPS
 Headloss H-W
 Demand Multiplier 1.0
[COORDINATES]
 J1 0 0
 J2 100 0
 J3 100 100
 R1 -10 0
 T1 150 100
[VERTICES]
 P1 50 30
 P1 75 30
[TAGS]
 NODE J1 DMA-1
 LINK P1 renewed 1998
[LABELS]
 5 5 "Old town" J1
[END]
"""


def read(text: str | bytes, crs: str = "") -> CityModel:
    return readers.read(text.encode() if isinstance(text, str) else text, "net.inp", crs)


def test_elements_come_with_their_types_places_and_values_in_our_units() -> None:
    model = read(SMALL, "EPSG:4547")
    assert (model.format, model.crs, model.notes) == ("epanet", "EPSG:4547", [])
    nodes, links = assets(model, "node"), assets(model, "link")
    assert {i: a.type for i, a in nodes.items()} == {
        "J1": "junction", "J2": "junction", "J3": "junction", "R1": "reservoir", "T1": "tank"
    }  # fmt: skip
    assert {i: a.type for i, a in links.items()} == {
        "P1": "pipe", "P2": "pipe", "P3": "pipe", "J1": "pipe", "PU": "pump", "V1": "valve"
    }  # fmt: skip
    assert {a.system for a in model.assets} == {"water"}
    assert nodes["J1"].attributes == {
        "description": "南门 street", "pattern": "day", "elevation_m": 10.5, "demand_m3_h": pytest.approx(12.96),
        "tag": "DMA-1",
    }  # fmt: skip
    assert nodes["J2"].attributes["demands"] == [
        {"demand_m3_h": pytest.approx(6.48), "pattern": "day", "category": "homes"},
        {"demand_m3_h": pytest.approx(3.24), "pattern": ""},
    ]
    assert nodes["J3"].attributes["emitter"] == 0.5
    assert nodes["T1"].attributes["diameter_m"] == 12
    assert nodes["T1"].attributes["max_level_m"] == 5
    assert nodes["R1"].attributes["head_m"] == 50
    assert links["P1"].attributes == {
        "description": "old iron", "roughness": 120, "minor_loss": 0, "status": "CLOSED", "length_m": 100,
        "diameter_m": 0.15, "tag": "renewed 1998",
    }  # fmt: skip
    assert links["PU"].attributes == {"status": "OPEN", "curve": "lift", "speed": 0.9}
    assert links["V1"].attributes["setting"] == 25
    network = model.networks[0]
    assert network.demand.tolist() == pytest.approx([12.96, 9.72, 0, 0, 0])
    at = {id_: n for n, id_ in enumerate(network.edge)}
    assert network.is_open.tolist() == [id_ not in ("P1", "P3") for id_ in network.edge]
    assert [id_ for id_ in network.edge if network.direction[at[id_]]] == ["P2", "PU", "V1"]
    assert network.node[network.start[at["J1"]]] == "R1"
    assert model.metadata["counts"] == {
        "nodes": {"junctions": 3, "reservoirs": 1, "tanks": 1}, "links": {"pipes": 4, "pumps": 1, "valves": 1}
    }  # fmt: skip
    assert model.metadata["patterns"] == {"day": [0.5, 1.5, 1.0]}
    assert model.metadata["options"]["DEMAND MULTIPLIER"] == "1.0"
    assert len(model.metadata["rules"]) == 3
    assert model.metadata["labels"] == [{"x": 5, "y": 5, "text": "Old town", "node": "J1"}]


def test_a_pipe_runs_through_its_vertices_and_its_height_evenly_from_end_to_end() -> None:
    shape = assets(read(SMALL), "link")["P1"].geometry[0]
    assert shape.kind == "MultiLineString"
    assert shape.boundaries == [[0, 1, 2, 3]]
    assert shape.vertices[:, :2].tolist() == [[0, 0], [50, 30], [75, 30], [100, 0]]
    legs = np.hypot(*np.diff(shape.vertices[:, :2], axis=0).T)
    assert np.diff(shape.vertices[:, 2]) == pytest.approx(-1.5 * legs / legs.sum())


@pytest.mark.parametrize(("flow", "demand", "metre", "width"), [
    ("GPM", 0.2271247, 0.3048, 0.0254), ("CFS", 101.94065, 0.3048, 0.0254), ("MGD", 157.72549, 0.3048, 0.0254),
    ("IMGD", 189.42042, 0.3048, 0.0254), ("AFD", 51.395077, 0.3048, 0.0254), ("LPM", 0.06, 1, 0.001),
    ("MLD", 41.666667, 1, 0.001), ("CMH", 1, 1, 0.001), ("CMD", 1 / 24, 1, 0.001), ("CMS", 3600, 1, 0.001),
])  # fmt: skip
def test_the_unit_of_flow_decides_all_units(flow: str, demand: float, metre: float, width: float) -> None:
    network = read(SMALL.replace("Units LPS", f"UNITS {flow.lower()}")).networks[0]
    assert network.demand[0] == pytest.approx(3.6 * demand, rel=1e-6)
    assert network.z[0] == pytest.approx(10.5 * metre)
    assert network.length[0] == pytest.approx(100 * metre)
    assert network.diameter[0] == pytest.approx(150 * width)
    assert network.x[1] == 100  # plane coordinates stay as they are


def test_the_same_file_in_other_spellings_is_the_same_network() -> None:
    plain = read(SMALL).networks[0]
    chinese = SMALL.replace("J1", "节点一")
    spellings = {
        "with a mark of its encoding": b"\xef\xbb\xbf" + SMALL.encode(),
        "Windows": SMALL.replace("\n", "\r\n").encode(),
        "old Mac": SMALL.replace("\n", "\r").encode(),
        "short names": SMALL.replace("[JUNCTIONS]", "[Junc]").replace("[COORDINATES]", "[coor").encode(),
        "no end": SMALL.replace("[END]\n", "").encode(),
        "quoted": SMALL.replace(" J1 ", ' "J1" ').encode(),
        "GB 18030": chinese.encode("gb18030"),
    }
    for what, data in spellings.items():
        model = read(data)
        network = model.networks[0]
        assert [n.replace("节点一", "J1") for n in network.node] == plain.node, what
        assert network.length.tolist() == plain.length.tolist(), what
        assert np.array_equal(network.x, plain.x), what
        assert bool(model.notes) == (what == "GB 18030"), what
    assert "节点一" in read(spellings["GB 18030"]).networks[0].node


def test_every_mistake_is_told_with_its_line_and_field() -> None:
    text = """[JUNCTIONS]
J1 abc
J1 5
J2 nan
[RESERVOIRS]
R1
[PIPES]
P1 J1 J9 100 100 100
P2 J1 J1 100 100 100
P3 J1 J2 0 1e99 100
P3 J1 J2 10 100
[PUMPS]
PU J1 J2 HEAD none
[VALVES]
V1 J1 J2 100 XYZ 0
[STATUS]
P9 Open
P1 Perhaps
[DEMANDS]
J8 1
[OPTIONS]
Units furlong
Hydraulics USE other.hyd
[COORDINATES]
J1 1,5 2
[NONSENSE]
[CONTROLS]
LINK P7 CLOSED IF NODE J7 ABOVE 3
"""
    said = problems(text.encode(), "net.inp")
    for place in (
        "line 2, elevation: is not a number: 'abc'", "line 3, id: J1 is that of the JUNCTION in line 2",
        "line 4, elevation: is not a number", "line 6: has 1 of at least 2 fields", "line 8, to: names no node: J9",
        "line 9, to: joins node J1 to itself", "line 10, length: must be above 0", "line 10, diameter: is not a number",
        "line 11: has 5 of at least 6 fields", "line 13, head curve: names no curve",
        "line 15, type: is no type of valve",
        "line 17, link: names no link: P9", "line 18, status: is no status", "line 20, junction: names no node: J8",
        "line 22, units: is no unit of flow", "line 23, hydraulics: names a file outside",
        "line 25, x: is not a number", "line 26, [NONSENSE]: is no section", "line 28, link: names no link: P7",
        "line 28, node: names no node: J7",
    ):  # fmt: skip
        assert any(f"net.inp, {place}" in problem for problem in said), (place, said)
    assert all("/" in problem for problem in said)  # in both languages


def test_nodes_without_a_place_and_rows_for_nobody_are_noted() -> None:
    text = SMALL.replace(" J2 100 0\n", "").replace(" R1 -10 0\n", " GONE 1 1\n")
    model = read(text)
    said = [str(note) for note in model.notes]
    assert any("2 without coordinates" in note and "J2, R1" in note for note in said)
    assert any("[COORDINATES]" in note and "GONE" in note for note in said)
    nodes, links = assets(model, "node"), assets(model, "link")
    assert not nodes["J2"].geometry
    assert not links["P1"].geometry
    assert links["P3"].geometry


def test_files_that_are_no_text_or_hold_nothing_are_refused_at_once() -> None:
    head = b"[JUNCTIONS]\n J1 0\n"
    assert "no node" in problems(b"[TITLE]\nempty\n[JUNCTIONS]\n[PIPES]\n", "a.inp")[0]
    assert "line 3" in problems(head + b" J2 \0 0\n", "a.inp")[0]
    assert "line 3: is longer than" in problems(head + b"x" * 3_000_000, "a.inp")[0]
    assert "line 3: is longer than" in problems(head + b"x" * 90_000 + b"\n", "a.inp")[0]
    assert "known format" in problems(b"<xml/>", "a.inp")[0]
    assert "first section" in problems(b"J0 0\n" + head, "a.inp")[0]
    with pytest.raises(readers.InvalidModel, match="crs"):
        read(SMALL, "EPSG:999999")
    many = problems(head + b"[PIPES]\n" + b"P J1 J0 1 1 1\n" * 5000, "a.inp")
    assert len(many) == readers.MAX_PROBLEMS + 1
    assert "more" in many[-1]


@has_source
@pytest.mark.parametrize("path", WATER, ids=lambda p: p.name)
def test_real_networks_have_as_many_elements_as_their_files_have_rows(path: Path) -> None:
    data = path.read_bytes()
    model = readers.read(data, path.name)
    text = data.decode()
    counts = model.metadata["counts"]
    for group, kinds in (("nodes", ("junctions", "reservoirs", "tanks")), ("links", ("pipes", "pumps", "valves"))):
        assert counts[group] == {kind: section_rows(text, kind.upper()) for kind in kinds}
        assert len(assets(model, group[:-1])) == sum(counts[group].values())
    placed = sum(bool(a.geometry) for a in assets(model, "node").values())
    assert placed == section_rows(text, "COORDINATES")
    bends = sum(len(a.geometry[0].vertices) - 2 for a in assets(model, "link").values())
    assert bends == section_rows(text, "VERTICES")
    assert not model.notes


@has_source
def test_a_real_network_is_the_one_that_another_program_drew() -> None:
    """ky4, against the GeoJSON beside it: places, elevations, demands, lengths, diameters."""
    model = readers.read((SHARED / "water" / "ky4.inp").read_bytes(), "ky4.inp")
    links, nodes = assets(model, "link"), assets(model, "node")
    pipes = json.loads((SHARED / "water" / "ky4_pipes.geojson").read_text())["features"]
    assert len(pipes) == model.metadata["counts"]["links"]["pipes"]
    for pipe in pipes:
        told = pipe["properties"]
        link = links[told["name"]]
        assert link.attributes["length_m"] == pytest.approx(told["length"], rel=1e-4)
        assert link.attributes["diameter_m"] == pytest.approx(told["diameter"], rel=1e-4)
        assert link.geometry[0].vertices[:, :2] == pytest.approx(np.array(pipe["geometry"]["coordinates"]))
    junctions = json.loads((SHARED / "water" / "ky4_junctions.geojson").read_text())["features"]
    for junction in junctions:
        told = junction["properties"]
        node = nodes[told["name"]]
        assert node.attributes["elevation_m"] == pytest.approx(told["elevation"], abs=0.01)
        assert node.attributes["demand_m3_h"] == pytest.approx(told["base_demand"] * 3600, rel=1e-4)


def test_a_network_of_12500_nodes_is_read_and_its_progress_grows(tmp_path: Path) -> None:
    shares: list[float] = []
    path = tmp_path / "grid.inp"
    path.write_text(epanet_text(12_500))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = readers.read(data, path.name, progress=lambda _, share: shares.append(share))
    assert len(model.networks[0].node) == 12_500
    assert shares == sorted(shares)
    assert shares[-1] == 1


@settings(max_examples=150, deadline=None)
@given(st.one_of(spoiled(SMALL), spoiled(SMALL.replace("Units LPS", "Units GPM"))))
def test_a_spoiled_file_is_read_or_refused(text: str) -> None:
    is_read_or_refused(text.encode("utf-8", "replace"), "net.inp")
