"""Sensor lists as files and JSON (contract 8): read whole, or refused with every mistake and its place."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twin.units
from twin.model import InvalidSensors, Sensor, SensorMode
from twin.sensors import COLUMNS, parse_sensors_csv, sensor_to_json, sensors_from_json

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
HEADER = "device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags\n"


def parse(text: str | bytes, name: str = "list.csv") -> list[Sensor]:
    return parse_sensors_csv(text if isinstance(text, bytes) else text.encode(), KINDS, name)


def problems(text: str | bytes, name: str = "list.csv") -> list[str]:
    with pytest.raises(InvalidSensors) as refused:
        parse(text, name)
    return [str(problem) for problem in refused.value.problems]


FULL = Sensor(
    "s-1", "depth", "drainage.ponding_depth", "in", "drains", "长江路下穿", 117.3, 31.8, 60.0, 0.0, 120.0,
    ("underpass", "重点"),
)  # fmt: skip


def test_a_full_line_is_read() -> None:
    line = "s-1,depth,drainage.ponding_depth,inch,drains,长江路下穿,117.3,31.8,60,0,120,underpass;重点\n"
    assert parse(HEADER + line) == [FULL]


def test_three_columns_in_any_order_are_enough_and_a_bom_and_crlf_do_not_matter() -> None:
    text = "\ufeffkind,property,device\r\nwater.pressure,p,m1\r\n\r\n,,\r\nwater.ph,ph,m1"
    assert parse(text) == [Sensor("m1", "p", "water.pressure", "MPa"), Sensor("m1", "ph", "water.ph", "")]


def test_a_header_alone_is_an_empty_list_and_an_empty_file_is_a_mistake() -> None:
    assert parse(HEADER) == []
    for text in ("", "\ufeff", "\n\n"):
        assert "is empty" in problems(text)[0]


def test_every_bad_line_is_listed_with_file_line_and_field() -> None:
    text = HEADER + "\n".join(
        [
            "good,p,water.pressure,,,,,,,,,",
            "a b,p/q,water.presure,MPa,,,,,,,,",
            "gateway,p,water.pressure,furlong,,,,,,,,",
            "d,p,water.pressure,m,,,200,31,0,5,4,",
            "good,p,water.pressure,,,,,,,,,",
            "good,q,water.pressure,,other,,1,,,x,inf,",
            "short,line",
            "d,+,,,a#b,,nan,91,-1,1_0,,",
        ]
    )
    found = problems(text)
    assert found == [
        "list.csv, line 3, device: must contain no space and no control character",
        "list.csv, line 3, property: must not contain /",
        'list.csv, line 3, kind: unknown kind "water.presure"; did you mean water.pressure?',
        "list.csv, line 4, device: must not be gateway: that word is taken in topics",
        'list.csv, line 4, unit: unknown unit "furlong"',
        'list.csv, line 5, unit: "m" does not measure water.pressure (MPa)',
        "list.csv, line 5, lon: 200 is outside -180 to 180",
        "list.csv, line 5, interval_s: must be above 0",
        "list.csv, line 5, min: min 5 must be below max 4",
        "list.csv, line 6, property: good/p stands already in line 2",
        'list.csv, line 7, min: "x" is not a number',
        'list.csv, line 7, max: "inf" is not a number',
        "list.csv, line 7, tenant: device good is of tenant default in line 2, of other here",
        "list.csv, line 8: has 2 fields; the header has 12",
        "list.csv, line 9, property: must not contain +",
        "list.csv, line 9, tenant: must not contain #",
        "list.csv, line 9, kind: must not be empty",
        'list.csv, line 9, lon: "nan" is not a number',
        "list.csv, line 9, lat: 91 is outside -90 to 90",
        "list.csv, line 9, interval_s: -1 is outside 0 to 1e+09",
        'list.csv, line 9, min: "1_0" is not a number',
    ]


def test_a_place_has_both_coordinates_or_none() -> None:
    assert problems(HEADER + "d,p,water.ph,,,,1,,,,,\n") == [
        "list.csv, line 2, lat: lon and lat come together or not at all"
    ]
    assert problems(HEADER + "d,p,water.ph,,,,,1,,,,\n") == [
        "list.csv, line 2, lon: lon and lat come together or not at all"
    ]


def test_the_header_is_checked() -> None:
    assert problems("device,property,kind,colour,device\n") == [
        "list.csv, line 1, device: column given twice",
        'list.csv, line 1, "colour": unknown column',
    ]
    assert problems("device;property;kind\n", "") == [
        'line 1, "device;property;kind": unknown column',
        "line 1, device: column missing",
        "line 1, property: column missing",
        "line 1, kind: column missing",
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("device,property,kind,asset\nd,p,water.ph,长江路\n".encode("gbk"), "line 2: is not UTF-8 (it looks like GBK"),
        (b"device,property,kind\nd,p,water.ph\n\xff\xff,p,water.ph\n", "line 3: is not UTF-8; save"),
        (b"\xef\xbb\xbfdevice,property,kind\nd,p,water.ph\xc3\n", "line 2: is not UTF-8"),
        ("device,property,kind\n".encode("utf-16"), "line 1: is UTF-16"),
        (b"device,property,kind\nd,p,water.ph\nd\0,q,water.ph\n", "line 3: has a NUL byte"),
        (b'device,property,kind\nd,p,water.ph\nd,"q,water.ph\n', "line 3: is not CSV"),
        (b'device,property,kind\n"d"x,p,water.ph\n', "line 2: is not CSV"),
        (b"device,property,kind\n" + b"d" * 200_000 + b",p,water.ph\n", "line 2: is not CSV: field larger"),
        (b"device,property,kind\n" + b"d" * 129 + b",p,water.ph\n", "has 129 characters; at most 128"),
        ("device,property,kind\nd\u200be,p,water.ph\n".encode(), "device: must contain no space"),
        ("device,property,kind\nd\u3000e,p,water.ph\n".encode(), "device: must contain no space"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(data: bytes, text: str) -> None:
    (problem,) = problems(data)
    assert text in problem


def test_lines_are_counted_over_fields_with_line_breaks() -> None:
    found = problems('device,property,kind,tags\nd,p,water.ph,"a\nb"\nd,q,water.p,\n')
    assert [problem.partition(":")[0] for problem in found] == ["list.csv, line 2, tags", "list.csv, line 4, kind"]


def test_json_comes_back_as_it_went() -> None:
    sensors = [FULL, Sensor("d", "p.rms", "bridge.acceleration", "m/s²", mode=SensorMode.TEST, statistic="rms")]
    assert sensors_from_json([sensor_to_json(sensor) for sensor in sensors], KINDS) == sensors
    assert sensors_from_json([{"device": "d", "property": "p", "kind": "water.ph", "tags": "a; b;;a"}], KINDS) == [
        Sensor("d", "p", "water.ph", "", tags=("a", "b"))
    ]


def test_json_is_checked_like_a_file_and_more() -> None:
    good = {"device": "d", "property": "p", "kind": "water.ph"}
    objects: list[Any] = [
        5,
        good | {"colour": "red"},
        good | {"property": "q", "lon": "x", "lat": True, "tags": [1], "mode": "off", "asset": 3},
        good | {"property": 7, "kind": ["water.ph"], "unit": 3, "statistic": "max", "id": "x"},
        {"device": None},
        good | {"property": "r", "min": 10**400, "interval_s": [1]},
    ]
    with pytest.raises(InvalidSensors) as refused:
        sensors_from_json(objects, KINDS)
    found = [(problem.place, problem.field) for problem in refused.value.problems]
    assert found == [
        ("item 1", ""),
        ("item 2", "colour"),
        ("item 3", "lon"),
        ("item 3", "lat"),
        ("item 3", "asset"),
        ("item 3", "tags"),
        ("item 3", "mode"),
        ("item 4", "property"),
        ("item 4", "kind"),
        ("item 4", "unit"),
        ("item 4", "statistic"),
        ("item 4", "id"),
        ("item 5", "device"),
        ("item 5", "property"),
        ("item 5", "kind"),
        ("item 6", "interval_s"),
        ("item 6", "min"),
    ]


CELLS = st.text(max_size=6) | st.sampled_from(["d", "p", "water.ph", "1", "-1e999", "MPa", '"', "\n", ",", "\ufeff"])


@settings(deadline=None)
@given(
    st.binary(max_size=80)
    | st.lists(st.lists(CELLS, max_size=12), max_size=4).map(
        lambda lines: (HEADER + "\n".join(map(",".join, lines))).encode("utf-8", "surrogatepass")
    )
)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidSensors):
        parse(data)


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*COLUMNS, "mode", "id", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
                lambda inner: st.lists(inner, max_size=2),
                max_leaves=3,
            ),
        )
    )
)
def test_any_json_is_read_or_refused(objects: list[dict[str, Any]]) -> None:
    with contextlib.suppress(InvalidSensors):
        sensors_from_json(objects, KINDS)


@pytest.mark.timeout(60)
def test_a_hundred_thousand_lines_are_read() -> None:
    lines = [f"dev-{n},depth,drainage.ponding_depth,cm,city,street-{n},117.3,31.8,60,0,100,a;b" for n in range(100_000)]
    assert len(parse(HEADER + "\n".join(lines))) == 100_000
