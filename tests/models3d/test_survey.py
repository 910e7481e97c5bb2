"""Survey tables: what headers, cells and names mean, which axis is which, what is refused and where; and there and
back again."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models3d.readers import read, recognise, survey
from models3d.writers import csv as writer
from twin.city import CityModel, InvalidModel

POINTS = """Map_No,Exp_No,X,Y,High,Feature,Subsid,SurfBldg,WellDeep,Belong,MDate
1,{c}1,2530100.00,{e}345.00,12.50,三通,{s},,1.80,某水务集团,2008-05
2,{c}2,2530130.00,{e}385.00,12.40,弯头,,,,某水务集团,2008
3,{c}3,2530160.00,{e}385.00,12.30,直线点,消防栓,,,某水务集团,20080501
"""
LINES = """S_Point,E_Point,S_Deep,E_Deep,Material,D_S,Pressure,FlowDirect,MDate,Belong
{c}1,{c}2,1.50,1.60,球墨铸铁,DN300,0.4MPa,,2008,某水务集团
{c}2,{c}3,1.60,1.70,PE,{d},,,2010,某水务集团
"""


def points(code: str = "JS", east: str = "512", subsid: str = "阀门井") -> str:
    return POINTS.format(c=code, e=east, s=subsid)


def lines(code: str = "JS", size: str = "200") -> str:
    return LINES.format(c=code, d=size)


def tables(*files: tuple[str, str], crs: str = "") -> CityModel:
    return survey.read_tables([(name, text.encode()) for name, text in files], crs)


def problems(*files: tuple[str, str], crs: str = "") -> list[str]:
    with pytest.raises(InvalidModel) as refused:
        tables(*files, crs=crs)
    return [str(problem) for problem in refused.value.problems]


def test_point_and_line_tables_are_a_network_with_levels_sections_and_what_else_the_cells_say() -> None:
    found = tables(("JSPoint.csv", points()), ("JSLine.csv", lines()), crs="EPSG:4547")
    (network,) = found.networks
    assert (network.system, found.crs) == ("water", "EPSG:4547")
    assert list(network.node) == ["JS1", "JS2", "JS3"]
    assert list(network.node_type) == ["valve", "fitting", "hydrant"]
    assert network.x.tolist() == [512345.0, 512385.0, 512385.0]  # Y is the easting
    assert network.y.tolist() == [2530100.0, 2530130.0, 2530160.0]
    assert network.ground.tolist() == [12.5, 12.4, 12.3]
    assert network.start.tolist() == [0, 1]
    assert network.end.tolist() == [1, 2]
    np.testing.assert_allclose(network.length, [50.0, 30.0])
    np.testing.assert_allclose(network.diameter, [0.3, 0.2])
    np.testing.assert_allclose(network.invert_start, [12.5 - 1.5 - 0.3, 12.4 - 1.6 - 0.2])  # depths are to the top
    by_id = {asset.local: asset for asset in found.assets}
    told = by_id["JS1-JS2"].attributes
    assert (told["material"], told["year"], told["owner"], told["pressure_class"]) == (
        "球墨铸铁",
        2008,
        "某水务集团",
        "0.4MPa",
    )
    assert by_id["JS1"].attributes["Map_No"] == "1"
    assert by_id["JS3"].attributes["year"] == 2008
    assert (by_id["JS1"].element, by_id["JS1-JS2"].element) == ("JSPoint", "JSLine")
    notes = [str(note) for note in found.notes]
    assert any("northing" in note for note in notes)


def test_drains_are_measured_to_the_invert_and_fall() -> None:
    text = lines("WS").replace("1.50,1.60", "1.90,1.60")
    found = tables(("WSPoint.csv", points("WS", subsid="污水检查井")), ("WSLine.csv", text))
    (network,) = found.networks
    assert network.system == "drainage"
    assert network.node_type[0] == "manhole"
    # 12.5 - 1.9 = 10.6 lies below 12.4 - 1.6 = 10.8: no direction is given, so the water runs the other way.
    assert (network.start.tolist(), network.end.tolist()) == ([1, 1], [0, 2])
    np.testing.assert_allclose(network.invert_start, [10.8, 10.8])
    np.testing.assert_allclose(network.invert_end, [10.6, 10.6])
    assert network.direction.tolist() == [1, 1]
    assert network.z[0] == pytest.approx(12.5 - 1.8)
    forward = text.replace("DN300,0.4MPa,", "DN300,0.4MPa,正")
    assert tables(("WSPoint.csv", points("WS")), ("WSLine.csv", forward)).networks[0].start.tolist() == [0, 1]


def test_tables_of_several_systems_may_follow_each_other_in_one_file() -> None:
    parts = []
    for code in ("JS", "YS", "RQ"):
        parts += [f"{code}Point", points(code), "", f"{code}Line,,,", lines(code)]
    for data in (
        "\n".join(parts).encode("utf-8-sig"),
        "\r\n".join(parts).replace(",", "\t").encode("gb18030"),
        "\n".join(parts).replace(",", ";").encode(),
        "\n".join(parts).encode("utf-16"),
    ):
        assert recognise(data, "x") == "survey"
        found = read(data, "管线.csv")
        assert [(n.system, len(n.node), len(n.edge)) for n in found.networks] == [
            ("water", 3, 2),
            ("drainage", 3, 2),
            ("gas", 3, 2),
        ]


def test_chinese_headers_in_any_order_and_units_in_brackets_are_understood() -> None:
    point = (
        "地面高程(m),纵坐标,横坐标,附属物,物探点号,备注\n"
        "5.5,2530000,512000,检查井,W1,旧\n5.4,2530000,512040,雨水篦,W2,\n"
    )
    line = "终点点号,起点点号,断面尺寸(mm),材质,起点埋深(cm),终点埋深(cm),管线类别\nW2,W1,1000×800,砼,150,160,雨水\n"
    found = tables(("a.csv", point), ("b.csv", line))
    (network,) = found.networks
    assert network.system == "drainage"
    assert network.x.tolist() == [512000.0, 512040.0]
    assert network.diameter[0] == pytest.approx(0.8)
    assert network.invert_start[0] == pytest.approx(4.0)
    by_id = {asset.local: asset for asset in found.assets}
    assert by_id["W1-W2"].attributes["width_m"] == pytest.approx(1.0)
    assert by_id["W1"].attributes["备注"] == "旧"
    assert [by_id[k].type for k in ("W1", "W2")] == ["manhole", "inlet"]


def test_rows_that_are_point_and_line_tell_every_line_once() -> None:
    text = """物探点号,连接点号,特征,附属物,X坐标,Y坐标,地面高程,埋深(m),管径(mm),材质,管线类别
WS1,WS2,起点,污水检查井,2530100,512345,10.1,1.5,400,砼,WS
WS2,WS1,直线点,污水检查井,2530130,512345,10.1,1.6,400,砼,WS
,WS3,,,,,,1.6,400,砼,WS
WS3,WS2,终点,出水口,2530160,512345,10.0,1.7,400,砼,WS
"""
    (network,) = read(text.encode(), "成果表.csv").networks
    assert list(network.edge) == ["WS1-WS2", "WS2-WS3"]
    np.testing.assert_allclose(network.invert_end, [8.5, 8.3])


def test_a_line_table_with_coordinates_needs_no_points_and_one_without_does() -> None:
    text = "S_Point,E_Point,S_X,S_Y,E_X,E_Y,D_S\nRQ1,RQ2,2530000,512000,2530000,512100,Φ160\n"
    (network,) = read(text.encode(), "RQLine.csv").networks
    assert (network.system, network.length[0], network.diameter[0]) == ("gas", 100.0, 0.16)
    (told,) = problems(("JSLine.csv", lines()))
    assert "point table" in told
    assert not tables(("JSPoint.csv", points())).networks


@pytest.mark.parametrize(
    ("x", "y", "crs", "east"),
    [
        (2530100.5, 512345.5, "", 512345.5),  # survey habit
        (512345.5, 2530100.5, "", 512345.5),  # the other way round, told by the size
        (2530100.5, 38512345.5, "", 38512345.5),  # with its zone
        (2530100.5, 38512345.5, "EPSG:4526", 38512345.5),
        (2530100.5, 38512345.5, "EPSG:4547", 512345.5),  # the same zone, without its number
        (12345.5, 67890.5, "", 67890.5),  # a local grid: habit
        (39.9, 116.4, "", 116.4),
        (116.4, 39.9, "", 116.4),
    ],
)
def test_which_axis_is_east_is_decided_by_the_numbers_and_said(x: float, y: float, crs: str, east: float) -> None:
    found = tables(("JSPoint.csv", f"点号,X,Y\nJS1,{x},{y}\n"), crs=crs)
    assert found.assets[0].geometry[0].vertices[0, 0] == pytest.approx(east)
    assert any("X is read as" in str(note) for note in found.notes)
    assert found.crs == (crs or ("EPSG:4326" if x < 200 else ""))


def test_numbers_used_twice_belong_to_the_systems_they_are_in() -> None:
    parts = [
        (f"{code}{kind}.csv", text)
        for code in ("JS", "WS")
        for kind, text in (("Point", points("P")), ("Line", lines("P")))
    ]
    found = tables(*parts)
    assert [list(n.node) for n in found.networks] == [["JS:P1", "JS:P2", "JS:P3"], ["WS:P1", "WS:P2", "WS:P3"]]


def test_codes_of_the_citys_lists_are_checked() -> None:
    text = "点号,X,Y,部件码\nJS1,2530100,512345,3205080101000001\n"
    text += "JS2,2530100,512346,3205080101000001234\nJS3,2530100,512347,12AB\n"
    found = tables(("JSPoint.csv", text))
    assert [asset.code for asset in found.assets] == ["3205080101000001", "3205080101000001234", ""]
    assert any("line 4" in str(note) and "12AB" in str(note) for note in found.notes)


def test_every_mistake_is_listed_with_file_line_and_column() -> None:
    bad_points = (
        points()
        + "4,JS1,2530100,512345,1\n5,JS5,,,1\n6,,2530100,512345,1\n7,JS7,25x,512345,1\n8,JS8,2530100,512345,1,,,,250\n"
    )
    bad_lines = (
        lines()
        + "JS1,JS9,1,1\nJS2,JS2,1,1\nJS2,JS3,-1.1,abc,铸铁,DNx\nJS1,JS3,1,1,铁,0\nJS1,,1,1\nJS1,JS5,1,1,,,,,,,,extra\n"
    )
    told = problems(("JSPoint.csv", bad_points), ("JSLine.csv", bad_lines))
    expected = [
        ("JSPoint.csv, line 5, Exp_No", "line 2"),
        ("JSPoint.csv, line 6", "coordinates"),
        ("JSPoint.csv, line 7, Exp_No", "点号"),
        ("JSPoint.csv, line 8, X", "25x"),
        ("JSPoint.csv, line 9, WellDeep", "250"),
        ("JSLine.csv, line 4, E_Point", "JS9"),
        ("JSLine.csv, line 5, E_Point", "JS2"),
        ("JSLine.csv, line 6, S_Deep", "-1.1"),
        ("JSLine.csv, line 6, E_Deep", "abc"),
        ("JSLine.csv, line 6, D_S", "DNx"),
        ("JSLine.csv, line 7, D_S", "size"),
        ("JSLine.csv, line 8, E_Point", "点号"),
        ("JSLine.csv, line 9", "cells"),
    ]
    for place, text in expected:
        assert any(line.startswith(place) and text in line for line in told), (place, text, told)
    assert len(told) == len(expected)


def test_absurd_places_and_lengths_are_refused_and_overhead_pipes_are_not() -> None:
    far = points().replace("2530160.00", "2560160.00")
    assert any(
        "km long" in text and "JSLine.csv, line 3" in text
        for text in problems(("JSPoint.csv", far), ("JSLine.csv", lines()))
    )
    farther = points().replace("2530160.00", "25301600.00")
    assert any("JSPoint.csv, line 4" in text for text in problems(("JSPoint.csv", farther), ("JSLine.csv", lines())))
    overhead = (
        lines()
        .replace("FlowDirect", "埋设方式")
        .replace("1.50,1.60,球墨铸铁,DN300,0.4MPa,,", "-2.5,-2.5,钢,DN300,,架空,")
    )
    assert len(tables(("JSPoint.csv", points()), ("JSLine.csv", overhead)).networks[0].edge) == 2
    assert any("degrees" in text for text in problems(("JSPoint.csv", points()), crs="EPSG:4326"))
    assert any("zone" in text for text in problems(("JSPoint.csv", points(east="38512")), crs="EPSG:4549"))


@pytest.mark.parametrize(
    "text",
    [
        "device,property,kind\na,b,c\n",
        "device,property,observed_at,value\n",
        "a,b\n1,2\n",
        '{"type":"FeatureCollection"}',
        "[TITLE]\n;ID,X,Y\n",
        "",
        "\0\0\0",
        "<x/>",
        "x,y,value\n1,2,3\n",
    ],
)
def test_other_tables_are_not_taken_for_surveys(text: str) -> None:
    assert not survey.recognise(text.encode(), "JSPoint.csv")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [
        b"Exp_No,X,Y\n" + b"1" * (3 << 20),
        b'Exp_No,X,Y\n"' + b"1,\n" * 200_000,
        b"Exp_No,X,Y\n" + b"\xff\xff,1,2\n",
        b"," * 500_000,
        b"Exp_No,X,Y\n" + b"1," * 50_000,
        b"Exp_No,X,Y\nJS1,1e999,nan\n",
    ],
)
def test_hostile_tables_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidModel):
        survey.read(data, "JSPoint.csv")


@pytest.mark.parametrize(
    ("header", "row"),
    [("Exp_No,X,Y", "JS1,3000000,500000"), ("S_Point,E_Point,管线编号", "JS1,JS2,L1"), ("Exp_No,X,Y", "JS1,,x")],
)
def test_a_table_of_one_row_again_and_again_is_not_read_to_its_end(header: str, row: str) -> None:
    data = f"{header}\n{(row + chr(10)) * 500_000}".encode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModel) as refused:
            survey.read(data, "JSPoint.csv")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert len(refused.value.problems) == 201
    assert re.match(r"and 180[0-9] more", refused.value.problems[-1].text)


SEED = ("JSPoint\n" + points() + "JSLine\n" + lines()).encode()


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
        assert isinstance(survey.read(data, "f"), CityModel)


def test_what_is_written_in_the_surveys_layout_reads_back_the_same() -> None:
    first = tables(
        *(
            (f"{code}{kind}.csv", text)
            for code in ("JS", "PS")
            for kind, text in (("Point", points(code)), ("Line", lines(code, "1000X800")))
        ),
        crs="EPSG:4547",
    )
    written = writer.survey(first)
    assert list(written) == ["JSPoint.csv", "JSLine.csv", "PSPoint.csv", "PSLine.csv"]
    second = survey.read_tables(list(written.items()), "EPSG:4547")
    for one, two in zip(first.networks, second.networks, strict=True):
        for column in ("node", "node_type", "edge"):
            assert list(getattr(one, column)) == list(getattr(two, column))
        for column in (
            "x",
            "y",
            "z",
            "ground",
            "start",
            "end",
            "length",
            "diameter",
            "invert_start",
            "invert_end",
            "direction",
            "is_open",
        ):
            np.testing.assert_allclose(getattr(one, column), getattr(two, column), atol=1e-6, err_msg=column)
    assert writer.survey(second) == written
    widths = [asset.attributes.get("width_m") for asset in second.assets if asset.type == "pipe"]
    assert widths == [None, 1.0, None, 1.0]


def test_the_table_of_assets_opens_in_a_spreadsheet_and_starts_no_formula() -> None:
    found = tables(("JSPoint.csv", points().replace("JS1", "=1+1")), crs="EPSG:4547")
    data = writer.assets(found.assets, found.crs)
    assert data.startswith(b"\xef\xbb\xbfid,type,")
    assert b"\r\n'=1+1,valve," in data
    row = data.decode("utf-8-sig").split("\r\n")[2].split(",")
    lon, lat = map(float, row[11:13])
    assert (lon, lat) == pytest.approx((114.12, 22.87), abs=0.02)


def test_the_tables_shown_in_the_documents_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "survey-tables.md").read_text("utf-8")
    shown = page.split("```csv survey\n")[1].split("```")[0]
    (network,) = read(shown.encode(), "shown.csv").networks
    assert (network.system, list(network.edge), network.length[0]) == ("water", ["JS1-JS2"], 50.0)
