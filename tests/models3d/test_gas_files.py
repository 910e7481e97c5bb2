"""Gas networks in MATGAS and pandapipes files: what is read, what is refused and where."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_files import NASTY, SHARED, assets, is_read_or_refused, problems, spoiled

from models3d import readers
from twin.city import CityModel

GAS = sorted((SHARED / "gas").glob("*.m"))
has_source = pytest.mark.skipif(not GAS, reason="the real networks are not beside this repository")

SMALL = """function mgc = small

mgc.gas_specific_gravity = 0.6;  % of air
mgc.temperature          = 288.7;
mgc.units                = 'si';
mgc.is_per_unit          = 0;

%% junction data
% id p_min p_max p_nominal junction_type status pipeline_name edi_id lat lon
mgc.junction = [
1 3000000 6000000 4000000 1 1 'main ''A''' '1' 31.1 121.1
2 3000000 6e6 3000000 0 1 'main' '2' 31.2 121.2; 3 3000000, 6000000, 3000000 0 1 'main' '3' 31.3 121.3
4 3000000 6000000 3000000 0 1 "main" '4' 31.4 121.4 % the end
];

%% pipe data
mgc.pipe = [
1 1 2 0.6 50000 0.01 3000000 6000000 1 0
7 2 3 0.3 80000 0.01 3000000 6000000 0
];

%column_names% flow_direction
mgc.pipe_data = [
1
-1
];

%% compressor data
mgc.compressor = [
1 3 4 1 1.4 1e100 -Inf 1000 3000000 6000000 3000000 6000000 1 10 2
];

mgc.valve = [ 1 1 4 0 ];
mgc.ne_pipe = [ 1 1 3 0.5 1000 0.01 3000000 6000000 1 5e6 ];

%column_names% id junction_id injection_nominal status name
mgc.receipt = {
1 1 100 1 '气源站'
};
mgc.delivery = [
1 3 0 60 40 0 1
2 3 0 60 20 0 0
];
end
"""


def read(text: str, crs: str = "") -> CityModel:
    return readers.read(text.encode(), "gas.m", crs)


def test_a_matgas_file_gives_junctions_links_and_what_hangs_at_junctions() -> None:
    model = read(SMALL)
    assert (model.format, model.crs) == ("matgas", "EPSG:4326")
    nodes, links, others = (assets(model, group) for group in ("node", "link", "object"))
    assert list(nodes) == ["1", "2", "3", "4"]
    assert {i: a.type for i, a in links.items()} == {
        "pipe-1": "pipe", "pipe-7": "pipe", "compressor-1": "compressor", "valve-1": "valve", "ne_pipe-1": "pipe"
    }  # fmt: skip
    assert {i: a.type for i, a in others.items()} == {
        "receipt-1": "source", "delivery-1": "consumer", "delivery-2": "consumer"
    }  # fmt: skip
    assert nodes["1"].attributes["pipeline_name"] == "main 'A'"
    assert nodes["1"].attributes["p_nominal_mpa"] == 4
    assert nodes["1"].geometry[0].vertices[0, :2].tolist() == [121.1, 31.1]
    assert links["pipe-1"].attributes["length_m"] == 50_000
    assert links["pipe-1"].attributes["diameter_m"] == 0.6
    assert [links[f"pipe-{n}"].attributes["flow_direction"] for n in (1, 7)] == [1, -1]
    assert links["ne_pipe-1"].attributes["is_planned"] is True
    assert (others["receipt-1"].name_zh, others["receipt-1"].attributes["junction"]) == ("气源站", "1")
    network = model.networks[0]
    assert network.system == "gas"
    assert network.is_open.tolist() == [id_ in ("pipe-1", "compressor-1") for id_ in network.edge]
    assert network.direction.tolist() == [1, 0, 0, 0, 0]
    volume = 3600 / (0.6 * 1.2041)  # standard m³/h in a kg/s
    assert network.demand.tolist() == pytest.approx([-100 * volume, 0, 40 * volume, 0])
    assert model.metadata["counts"] == {
        "nodes": {"junctions": 4}, "links": {"pipes": 2, "compressors": 1, "valves": 1, "ne_pipes": 1},
        "objects": {"receipts": 1, "deliveries": 2},
    }  # fmt: skip


def test_us_units_and_shares_of_base_values() -> None:
    us = read(SMALL.replace("'si'", "'usc'"))
    assert us.networks[0].length[0] == pytest.approx(50_000 * 1609.344)
    assert us.networks[0].diameter[0] == pytest.approx(0.6 * 0.0254)
    assert assets(us, "node")["1"].attributes["p_nominal_mpa"] == pytest.approx(4e6 * 6894.757293 / 1e6)
    based = read(SMALL.replace("is_per_unit          = 0;", "is_per_unit = 1;\nmgc.base_length = 2;"))
    assert based.networks[0].length[0] == 100_000
    assert read(SMALL, "EPSG:4490").crs == "EPSG:4490"


@pytest.mark.parametrize(("old", "new", "place"), [
    ("mgc.temperature          = 288.7;", "mgc.temperature = system('ls');", "line 4, temperature: is no literal"),
    ("mgc.temperature          = 288.7;", "load x.mat", "line 4: assigns no literal"),
    ("0.6 50000", "0.6*2 50000", "line 18, pipe: is no literal"),
    ("1 1 2 0.6 50000", "1 1 9 0.6 50000", "line 18, to: names no node: 9"),
    ("1 1 2 0.6 50000", "7 1 2 0.6 50000", "line 19, id: pipe-7 is that of the pipe in line 18"),
    ("0.6 50000", "0.6 -5", "line 18, length: must be above 0"),
    ("0.6 50000", "0.6 1e100", "line 18, length: is absurd"),
    ("0.6 50000", "'x' 50000", "line 18, diameter: is not a number"),
    ("1 3 0 60 40", "1 8 0 60 40", "line 41, junction_id: names no junction: 8"),
    ("2 3 0 60 20", "1 3 0 60 20", "line 42, id: 1 is that of line 41"),
    ("'si'", "'imperial'", "object mgc, units: is neither"),
    ("1\n-1\n]", "1\n]", "line 23, pipe_data: adds 1 rows to 2"),
    ("%column_names% id junction_id", "%column_names% id place", "line 37, receipt: names no column junction_id"),
    ("0 0\n];\nend", "0 0\n", "line 40, delivery: does not end"),
])  # fmt: skip
def test_a_matgas_file_with_mistakes_is_refused_with_their_lines(old: str, new: str, place: str) -> None:
    text = SMALL.replace(old, new)
    assert text != SMALL
    said = problems(text.encode(), "gas.m")
    assert any(place in problem for problem in said), said


@has_source
@pytest.mark.parametrize("path", GAS, ids=lambda p: p.name)
def test_real_gas_networks_have_as_many_elements_as_their_tables_have_rows(path: Path) -> None:
    rows: dict[str, int] = {}
    table = ""
    for line in path.read_text().splitlines():
        if line.startswith("mgc.") and line.rstrip().endswith("["):
            table = line[4:].partition("=")[0].strip()
        elif line.startswith("]"):
            table = ""
        elif table and line.strip() and not line.startswith("%"):
            rows[table] = rows.get(table, 0) + 1
    model = readers.read(path.read_bytes(), path.name)
    found: dict[str, int] = {}
    for asset in model.assets:
        found[asset.element] = found.get(asset.element, 0) + 1
    rows.pop("sources", None)
    assert found == rows
    assert all(asset.geometry for asset in model.assets)


def frame(columns: list[str], index: list[Any], data: list[list[Any]]) -> dict[str, Any]:
    """A table as pandas writes it within pandapipes' JSON."""
    text = json.dumps({"columns": columns, "index": index, "data": data})
    return {"_module": "pandas.core.frame", "_class": "DataFrame", "_object": text, "orient": "split", "dtype": {}}


def pandapipes_net(**parts: Any) -> dict[str, Any]:
    """A small gas network in pandapipes' JSON."""
    density = {"_module": "m", "_class": "FluidPropertyConstant", "_object": json.dumps({"value": 0.8})}
    fluid = {"name": "lgas", "is_gas": True, "all_properties": {"density": density}}
    net = {
        "fluid": {"_module": "m", "_class": "Fluid", "_object": json.dumps(fluid)},
        "name": "net", "version": "0.16.0",
        "junction": frame(["name", "pn_bar", "height_m", "in_service"], [0, 1, 4],
                          [["A", 1.0, 20.0, True], ["B", 1.0, 21.0, True], [None, 1.0, 22.0, True]]),
        "junction_geodata": frame(["x", "y"], [0, 1, 4], [[0, 0], [100, 0], [100, 50]]),
        "pipe": frame(["name", "from_junction", "to_junction", "std_type", "length_km", "inner_diameter_mm",
                       "in_service"], [0, 3], [["p", 0, 1, None, 0.1, 102.2, True], ["q", 1, 4, None, 0.05, 80, True]]),
        "pipe_geodata": frame(["coords"], [0], [[[[0, 0], [50, 10], [100, 0]]]]),
        "valve": frame(["junction", "element", "et", "inner_diameter_mm", "opened"], [0, 1],
                       [[1, 3, "pi", 80, False], [0, 4, "ju", 50, True]]),
        "ext_grid": frame(["junction", "p_bar", "in_service"], [0], [[0, 1.0, True]]),
        "sink": frame(["name", "junction", "mdot_kg_per_s", "scaling", "in_service"], [0, 1],
                      [["s", 4, 0.02, 2.0, True], ["t", 4, 1.0, 1.0, False]]),
        "source": frame(["junction", "mdot_kg_per_s", "scaling", "in_service"], [0], [[1, 0.01, 1.0, True]]),
    }  # fmt: skip
    return {"_module": "pandapipes.pandapipes_net", "_class": "pandapipesNet", "_object": net | parts}


def test_a_pandapipes_file_gives_junctions_links_and_what_hangs_at_junctions() -> None:
    model = readers.read(json.dumps(pandapipes_net()).encode(), "net.json", "EPSG:4547")
    assert (model.format, model.crs) == ("pandapipes", "EPSG:4547")
    nodes, links, others = (assets(model, group) for group in ("node", "link", "object"))
    assert list(nodes) == ["0", "1", "4", "valve-0-pipe"]
    assert {i: a.type for i, a in links.items()} == {
        "pipe-0": "pipe", "pipe-3": "pipe", "valve-0": "valve", "valve-1": "valve"
    }  # fmt: skip
    assert {i: a.type for i, a in others.items()} == {
        "sink-0": "consumer", "sink-1": "consumer", "source-0": "source", "ext_grid-0": "source"
    }  # fmt: skip
    assert links["pipe-0"].geometry[0].vertices.tolist()[1] == [50, 10, pytest.approx(20.5)]
    assert links["pipe-0"].attributes["length_m"] == pytest.approx(100)
    assert links["pipe-0"].attributes["diameter_m"] == pytest.approx(0.1022)
    network = model.networks[0]
    assert network.system == "gas"
    assert network.demand.tolist() == pytest.approx([0, -0.01 * 4500, 0.04 * 4500, 0])
    ends = {e: (network.node[a], network.node[b]) for e, a, b in
            zip(network.edge, network.start, network.end, strict=True)}  # fmt: skip
    assert ends["valve-0"] == ("1", "valve-0-pipe")  # a valve between a junction and a pipe's end
    assert ends["pipe-3"] == ("valve-0-pipe", "4")
    assert ends["valve-1"] == ("0", "4")
    assert network.is_open.tolist() == [True, True, False, True]
    assert model.metadata["counts"]["links"] == {"pipes": 2, "valves": 2}


@pytest.mark.parametrize(("parts", "place"), [
    ({"pipe": frame(["from_junction", "to_junction"], [0], [[0, 9]])}, "object pipe-0, to: names no node: 9"),
    ({"pipe": frame(["from_junction", "to_junction"], [0, 0], [[0, 1], [1, 4]])}, "object pipe-0, id: "),
    ({"pipe": frame(["from_junction", "to_junction", "length_km"], [0], [[0, 1, "x"]])}, "object pipe 0, length_km"),
    ({"pipe": frame(["from_junction", "to_junction"], [0], [[0]])}, "object pipe: has rows that do not fit"),
    ({"pipe": {"_class": "DataFrame", "_object": "{"}}, "object pipe: is no table"),
    ({"pipe": 3}, "object pipe: is no table"),
    ({"sink": frame(["junction"], [0], [[8]])}, "object sink 0, junction: names no junction: 8"),
    ({"junction": frame([], [], [])}, "holds no node"),
    ({"junction_geodata": frame(["x", "y"], [0], [["a", 1e300]])}, "object junction_geodata 0, y: is not a number"),
    ({"name": "a\0b"}, "holds zero characters"),
    ({"valve": frame(["junction", "element", "et"], [0], [[4, 0, "pi"]])}, "object valve 0, element"),
])  # fmt: skip
def test_a_pandapipes_file_with_mistakes_is_refused_with_their_objects(parts: dict[str, Any], place: str) -> None:
    said = problems(json.dumps(pandapipes_net(**parts)).encode(), "net.json")
    assert any(place in problem for problem in said), said


def test_json_that_nests_without_end_or_is_cut_off_is_refused() -> None:
    whole = json.dumps(pandapipes_net()).encode()
    deep = b'{"_class": "pandapipesNet", "_object": {"pipe": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}}"
    assert problems(deep, "net.json")
    assert problems(whole[:-200], "net.json")
    assert "known format" in problems(whole.replace(b"pandapipesNet", b"somethingElse"), "net.json")[0]


def test_numbers_that_are_not_finite_are_read_as_unknown_and_words_stay() -> None:
    """pandapipes writes NaN for what its standard types do not say, as Python's json does and JSON does not."""
    nan = math.nan
    types = {"pipe": {"80_GGG": {"inner_diameter_mm": 86.0, "u_w_per_mk": nan, "u_w_per_m2k": -math.inf}}}
    junctions = frame(
        ["name", "pn_bar", "height_m", "geo"], [0, 1, 4],
        [['"NaN, \\', 1.0, nan, '{"type": "Point", "coordinates": [NaN, NaN]}'], ["-Infinity", math.inf, 21.0, None],
         ["C", 1.0, 22.0, None]],
    )  # fmt: skip
    text = json.dumps(pandapipes_net(std_types=types, junction=junctions, name="NaN and Infinity", user_pf_options=nan))
    assert '"u_w_per_m2k": -Infinity' in text
    model = readers.read(text.encode(), "net.json")
    assert model.metadata["title"] == ["NaN and Infinity"]
    known = {asset.local: asset for asset in model.assets if asset.group == "node"}
    assert [known[id_].attributes["name"] for id_ in "014"] == ['"NaN, \\', "-Infinity", "C"]
    assert "pn_bar" not in known["1"].attributes
    assert "height_m" not in known["0"].attributes
    begun = time.process_time()
    assert problems(text.encode() + b'NaN "' + b'\\"' * 2_000_000, "net.json")
    assert time.process_time() - begun < 5


def test_what_pandapipes_itself_writes_is_read() -> None:
    """A net made with pandapipes 0.16, as it writes it but for its standard types of pipes and pumps."""
    path = Path(__file__).parent / "files" / "pandapipes_net.json"
    model = readers.read(path.read_bytes(), path.name)
    assert model.metadata["counts"] == {
        "nodes": {"junctions": 6},
        "links": {"pipes": 3, "valves": 1, "compressors": 1, "press_controls": 1},
        "objects": {"sinks": 1, "sources": 1, "ext_grids": 1},
    }
    assert model.metadata["title"] == ["a small gas net"]
    assert not model.notes
    network = model.networks[0]
    assert network.system == "gas"
    assert network.is_open.tolist() == [edge != "valve-0" for edge in network.edge]
    assert network.direction.tolist() == [int(type_ in ("compressor", "regulator")) for type_ in network.edge_type]
    assert 0.02 * 3600 / 0.9 < network.demand[5] < 0.02 * 3600 / 0.7  # natural gas at 20 °C


@settings(max_examples=150, deadline=None)
@given(spoiled(SMALL))
def test_a_spoiled_matgas_file_is_read_or_refused(text: str) -> None:
    is_read_or_refused(text.encode("utf-8", "replace"), "gas.m")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(("junction", "junction_geodata", "pipe", "pipe_geodata", "valve", "sink", "source", "fluid")),
    st.integers(0, 40), st.one_of(st.sampled_from(NASTY), st.just(1e300), st.none(), st.lists(st.floats(), max_size=3)),
    st.integers(0, 3),
)  # fmt: skip
def test_a_spoiled_pandapipes_file_is_read_or_refused(part: str, at: int, value: Any, way: int) -> None:
    net = pandapipes_net()
    if way == 0:
        net["_object"][part] = value
    elif way == 1:
        inner = json.loads(net["_object"][part]["_object"])
        inner[list(inner)[at % len(inner)]] = value
        net["_object"][part]["_object"] = json.dumps(inner)
    elif way == 2 and part != "fluid":
        inner = json.loads(net["_object"][part]["_object"])
        row = inner["data"][at % len(inner["data"])]
        row[at % len(row)] = value
        net["_object"][part]["_object"] = json.dumps(inner)
    else:
        text = net["_object"][part]["_object"]
        net["_object"][part]["_object"] = text[:at] + str(value) + text[at + 3 :]
    is_read_or_refused(json.dumps(net).encode(), "net.json")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("filler", [b"\n", b" ", b"\r\n", b'"', b"{", b"[", b"<a ", b"[A]\n", b";", b"mgc."])
def test_what_is_of_no_format_is_soon_known_to_be_none(filler: bytes) -> None:
    assert readers.recognise(filler * (1 << 16), "hostile") is None
