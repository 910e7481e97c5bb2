"""SWMM's input files: what is read, what is refused and where."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from network_files import SHARED, assets, is_read_or_refused, problems, section_rows, spoiled

from models3d import readers
from twin.city import CityModel

DRAINAGE = sorted((SHARED / "drainage").glob("*/*.inp"))
has_source = pytest.mark.skipif(not DRAINAGE, reason="the real networks are not beside this repository")

SMALL = """[TITLE]
;;Project Title/Notes
A small drain
[OPTIONS]
FLOW_UNITS           LPS
LINK_OFFSETS         DEPTH
[RAINGAGES]
1        INTENSITY 0:05 1.0 TIMESERIES storm
far      INTENSITY 0:05 1.0 FILE "rain.dat" STA01 MM
[SUBCATCHMENTS]
1        1   j1   2.5   40   120   0.5   0
S2       far 1    1     80   50    1     0
[SUBAREAS]
1  0.01 0.1 1.2 2.5 25 OUTLET
[INFILTRATION]
1  75 2 4 7 0
[LID_CONTROLS]
garden BC
garden SURFACE 150 0.1 0.1 1 5
[LID_USAGE]
1 garden 2 50 5 0 100 0
[JUNCTIONS]
;;Name Elevation MaxDepth InitDepth SurDepth Aponded
;at the 南门
J1     10   2.5   0    0   0
J2     9.5  3
[OUTFALLS]
O1     8    FREE   NO
O2     7.5  FIXED  8.1  YES
[STORAGE]
ST     7    4   0.5   TABULAR pond   0  0
[DIVIDERS]
D1     9    C2  CUTOFF 0.5 2
[CONDUITS]
C1     J1   J2   50   0.013  0.2  0
C2     J2   D1   60   0.013  *    0.1
C3     D1   ST   40   0.013  0    0
C4     ST   O1   30   0.013  0    2
C5     j1   D1   30   0.013  0    0
[PUMPS]
P1     ST   O2   lift  OFF 1 0.5
[ORIFICES]
OR     ST   O1   SIDE  0.3  0.65  NO  0
[WEIRS]
W1     ST   O2   TRANSVERSE  3  1.84  NO
[OUTLETS]
OL     J2   O1   0.1  TABULAR/HEAD  rate  NO
[XSECTIONS]
C1     CIRCULAR     0.6   0  0  0  2
C2     RECT_CLOSED  1     1.5 0 0  1
C3     TRAPEZOIDAL  1     2   1  1  1
C4     IRREGULAR    creek
C5     CUSTOM       0.8   pipe 0 0 1
OR     CIRCULAR     0.3   0  0  0
W1     RECT_OPEN    1     2   0  0
[TRANSECTS]
NC 0.04 0.04 0.03
X1 creek 4 0 8 0 0 0 0 0 0
GR 11 0 9 2 9 6 11.5 8
[INLETS]
grate GRATE 0.6 0.6 P_BAR-50
[INLET_USAGE]
C2 grate J2 2
[LOSSES]
C1 0.5 0 0 YES
[INFLOWS]
J2 FLOW "" FLOW 1.0 1.0 0.5
[DWF]
J1 FLOW 2 ""
[CURVES]
pond  Storage 0 100
pond          4 200
lift  Pump4   0 10 5 20
rate  Rating  0 0 1 1
pipe  Shape   0 0 0.5 1.2 1 0
[TIMESERIES]
storm 0:00 1 0:05 2
storm 0:10 0
[CONTROLS]
RULE R1
IF NODE ST DEPTH > 2
THEN PUMP P1 STATUS = ON
[COORDINATES]
J1 0 0
J2 50 0
D1 100 0
ST 140 0
O1 170 0
O2 170 10
[VERTICES]
C1 25 5
[Polygons]
1 0 10
1 20 10
1 20 30
1 0 10
[SYMBOLS]
1 5 50
[TAGS]
Node J1 brick
Link C1 old sewer
Subcatch 1 roofs
"""


def read(text: str, crs: str = "") -> CityModel:
    return readers.read(text.encode(), "drain.inp", crs)


def test_elements_come_with_their_types_levels_and_sizes() -> None:
    model = read(SMALL)
    assert model.format == "swmm"
    nodes, links = assets(model, "node"), assets(model, "link")
    assert [a.type for a in nodes.values()] == ["manhole", "manhole", "outfall", "outfall", "storage", "divider"]
    assert [a.type for a in links.values()] == ["pipe"] * 5 + ["pump", "orifice", "weir", "outlet"]
    assert [a.element for a in links.values()] == ["CONDUIT"] * 5 + ["PUMP", "ORIFICE", "WEIR", "OUTLET"]
    assert nodes["J1"].attributes == {
        "description": "at the 南门", "invert_m": 10, "ground_m": 12.5, "depth_m": 2.5, "init_depth_m": 0,
        "surcharge_depth_m": 0, "ponded_area_m2": 0, "dry_weather_flow_m3_h": pytest.approx(7.2), "tag": "brick",
    }  # fmt: skip
    assert nodes["O2"].attributes["stage_m"] == 8.1
    assert nodes["O2"].attributes["flap_gate"] is True
    assert nodes["ST"].attributes["ground_m"] == 11
    assert nodes["J2"].attributes["inflow_baseline_m3_h"] == pytest.approx(1.8)
    c1 = links["C1"].attributes
    assert (c1["invert_start_m"], c1["invert_end_m"], c1["barrels"]) == (pytest.approx(10.2), 9.5, 2)
    assert (c1["diameter_m"], c1["area_m2"]) == (0.6, pytest.approx(math.pi * 0.09))
    assert (c1["tag"], c1["flap_gate"], c1["inlet_loss"]) == ("old sewer", True, 0.5)
    assert links["C2"].attributes["invert_start_m"] == 9.5
    assert links["C2"].attributes["inlets"] == [{"inlet": "grate", "node": "J2", "number": 2}]
    sizes = {i: [links[i].attributes.get(n) for n in ("diameter_m", "width_m", "area_m2")] for i in links}
    assert sizes["C2"] == [1, 1.5, 1.5]
    assert sizes["C3"] == [1, 4, 3]
    assert sizes["C4"] == [2.5, 8, None]
    assert sizes["C5"] == [0.8, pytest.approx(0.96), None]
    assert sizes["OR"][0] == 0.3
    assert links["W1"].attributes["crest_m"] == 10
    network = model.networks[0]
    assert network.system == "drainage"
    assert network.node[network.start[network.edge.index("C5")]] == "J1"  # ids in another case are the same
    assert set(network.direction.tolist()) == {1}
    assert all(network.is_open)
    assert network.length.tolist() == [50, 60, 40, 30, 30, 0, 0, 0, 0]
    assert model.metadata["counts"] == {
        "nodes": {"junctions": 2, "outfalls": 2, "storage": 1, "dividers": 1},
        "links": {"conduits": 5, "pumps": 1, "orifices": 1, "weirs": 1, "outlets": 1},
        "areas": {"subcatchments": 2, "raingages": 2},
    }
    assert model.metadata["timeseries"] == {"storm": 3}
    assert model.metadata["curves"]["pond"] == {"type": "STORAGE", "points": [[0, 100], [4, 200]]}


def test_subcatchments_are_areas_and_gauges_objects() -> None:
    model = read(SMALL)
    area = assets(model, "area")["1"]
    assert area.type == "subcatchment"
    assert area.attributes["area_m2"] == 25_000
    assert area.attributes["lids"] == [{"lid": "garden", "number": 2, "area_m2": 50}]
    assert (area.attributes["outlet"], area.attributes["gauge"], area.attributes["tag"]) == ("j1", "1", "roofs")
    shape = area.geometry[0]
    assert (shape.kind, shape.boundaries, len(shape.vertices)) == ("MultiSurface", [[[0, 1, 2]]], 3)
    gauges = assets(model, "object")
    assert {a.type for a in gauges.values()} == {"gauge"}
    assert gauges["1"].geometry[0].vertices[0, :2].tolist() == [5, 50]


def test_us_units_and_offsets_as_levels() -> None:
    us = read(SMALL.replace("LPS", "CFS")).networks[0]
    metric = read(SMALL).networks[0]
    for name in ("z", "length", "diameter", "invert_start"):
        assert getattr(us, name) == pytest.approx(getattr(metric, name) * 0.3048, nan_ok=True)
    assert assets(read(SMALL.replace("LPS", "MGD")), "area")["1"].attributes["area_m2"] == pytest.approx(
        10117.14, rel=1e-5
    )
    levels = SMALL.replace("LINK_OFFSETS         DEPTH", "LINK_OFFSETS ELEVATION").replace(
        "C1     J1   J2   50   0.013  0.2  0", "C1     J1   J2   50   0.013  10.3  9.9")  # fmt: skip
    network = read(levels).networks[0]
    assert (network.invert_start[0], network.invert_end[0]) == (10.3, 9.9)
    assert network.invert_start[1] == 9.5  # a star: at the node's invert


def test_what_is_doubtful_is_noted_and_what_lies_outside_never_opened() -> None:
    model = read(SMALL.replace("C1     J1   J2 ", "C1     J2   J1 "))
    said = [str(note) for note in model.notes]
    assert any("rain.dat" in note and "line 9" in note for note in said)
    assert any("2 run uphill" in note and "C1, C4" in note for note in said)
    assert any("without a polygon" in note and "S2" in note for note in said)
    assert model.metadata["files"] == [{"section": "[RAINGAGES]", "line": 9, "file": "rain.dat"}]
    network = model.networks[0]
    assert network.node[network.start[0]] == "J2"  # kept as drawn


def test_files_to_save_or_use_are_refused() -> None:
    said = problems((SMALL + '[FILES]\nSAVE OUTFLOWS "/etc/passwd"\nUSE HOTSTART start.hsf\n').encode(), "drain.inp")
    first = SMALL.count("\n") + 2
    assert [problem.partition(":")[0] for problem in said] == [
        f"drain.inp, line {first}, [FILES]", f"drain.inp, line {first + 1}, [FILES]"
    ]  # fmt: skip


def test_every_mistake_is_told_with_its_line_and_field() -> None:
    text = """[OPTIONS]
FLOW_UNITS CUBITS
[SUBCATCHMENTS]
S1 none nowhere 1 50 10 1 0
[JUNCTIONS]
J1 1
j1 2
J2 x
[OUTFALLS]
O1 1 SOMEHOW
[CONDUITS]
C1 J1 J9 10 0.01 0 0
C2 J1 J1 10 0.01 0 0
C3 J1 J2 0 0.01 0 0
C4 J1 J2
[PUMPS]
P1 J1 J2 none MAYBE
[XSECTIONS]
C1 ROUND 1 0 0 0
C9 CIRCULAR 1 0 0 0
C1 CIRCULAR -1 0 0 0
C3 CIRCULAR 1 0 0 0 1000000000
[LID_USAGE]
S1 none 1 1
[CONTROLS]
IF NODE J7 DEPTH > 1
"""
    said = problems(text.encode(), "drain.inp")
    for place in (
        "line 2, FLOW_UNITS: is no unit", "line 4, gauge: names no rain gauge: none",
        "line 4, outlet: names neither node nor subcatchment: nowhere",
        "line 7, id: j1 is that of the JUNCTION in line 6", "line 8, invert: is not a number: 'x'",
        "line 10, type: is no type of outfall", "line 12, to: names no node: J9",
        "line 13, to: joins node J1 to itself", "line 14, length: must be above 0",
        "line 15: has 3 of at least 5 fields", "line 17, pump curve: names no curve", "line 17, status: is neither",
        "line 19, shape: is no shape", "line 20, link: names no link: C9", "line 21, geom1: must be above 0",
        "line 22, barrels: must be 1 to 1000", "line 24, lid: names no LID", "line 26, rule: names no node: J7",
    ):  # fmt: skip
        assert any(f"drain.inp, {place}" in problem for problem in said), (place, said)


def test_the_two_inp_formats_are_told_apart_by_what_is_in_them() -> None:
    junctions = "\n".join(f"J{n} 1.5 2 0 0 0" for n in range(9000))
    swmm = f"[TITLE]\n[JUNCTIONS]\n{junctions}\n[OUTFALLS]\nO1 0 FREE NO\n"
    epanet = "[TITLE]\n[JUNCTIONS]\n" + junctions.replace(" 2 0 0 0", " 2 ;") + "\n[PIPES]\n[RESERVOIRS]\nR1 5\n"
    assert readers.recognise(swmm.encode(), "a.inp") == "swmm"
    assert readers.recognise(epanet.encode(), "a.inp") == "epanet"
    assert readers.recognise(SMALL.encode(), "drain.txt") == "swmm"
    assert readers.recognise(b"[settings]\nname = 1\n", "a.inp") is None


REFUSED = {
    "model_bad_input_1.inp": "line 56, gauge", "model_green_ampt.inp": "line 33, [FILES]",
    "invalid_model.inp": "line 111, from", "model-with-infiltration-parse-failure.inp": "line 92, from",
    "model_blank.inp": "no node", "model_blank_01.inp": "no node",
}  # fmt: skip


@has_source
@pytest.mark.parametrize("path", DRAINAGE, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_real_networks_have_as_many_elements_as_their_files_have_rows(path: Path) -> None:
    data = path.read_bytes()
    if path.name in REFUSED:
        said = problems(data, path.name)
        assert any(REFUSED[path.name] in problem for problem in said), said
        return
    model = readers.read(data, path.name)
    text = data.decode()
    counts = model.metadata["counts"]
    for group, kinds in (
        ("nodes", ("junctions", "outfalls", "storage", "dividers")),
        ("links", ("conduits", "pumps", "orifices", "weirs", "outlets")),
        ("areas", ("subcatchments", "raingages")),
    ):
        assert counts[group] == {kind: section_rows(text, kind.upper()) for kind in kinds}
    for group in ("node", "link"):
        assert len(assets(model, group)) == sum(counts[f"{group}s"].values())
    assert len(assets(model, "area")) == counts["areas"]["subcatchments"]


@has_source
def test_a_real_town_is_the_graph_that_another_program_drew() -> None:
    """Bellinge, against the graph beside it: conduits, their ends and lengths."""
    folder = SHARED / "drainage" / "swmmanywhere"
    model = readers.read((folder / "bellinge_small.inp").read_bytes(), "bellinge_small.inp")
    graph = json.loads((folder / "bellinge_small_graph.json").read_text())
    told = {edge["id"]: edge for edge in graph["links"]}
    network = model.networks[0]
    assert [id_ for id_ in network.edge if id_ not in told] == ["G72F050-G72F050_outfall"]  # not in the graph
    assert told.keys() < set(network.edge)
    for id_, edge in told.items():
        n = network.edge.index(id_)
        assert (network.node[network.start[n]], network.node[network.end[n]]) == (edge["source"], edge["target"])
        assert network.length[n] == pytest.approx(edge["length"], rel=0.01)


@settings(max_examples=150, deadline=None)
@given(spoiled(SMALL))
def test_a_spoiled_file_is_read_or_refused(text: str) -> None:
    is_read_or_refused(text.encode("utf-8", "replace"), "drain.inp")
