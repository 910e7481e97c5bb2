"""Files of recorded readings: any order, any of the times of contract 3, refused with every bad line."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.recorded import Recorded, parse_readings_csv, read_recorded
from twin.model import InvalidReadings, iso, parse_time

HEADER = "device,property,observed_at,value\n"
T = parse_time("2026-07-01T08:00:00Z")
NO_TIME = "is not a time: epoch milliseconds, or RFC 3339 with its zone"


def rows(recorded: Recorded) -> list[tuple[str, str, int, float | None]]:
    return [
        (*recorded.sensors[s], at - T, None if math.isnan(v) else v)
        for s, at, v in zip(
            recorded.sensor.tolist(), recorded.observed_at.tolist(), recorded.value.tolist(), strict=True
        )
    ]


def problems(data: str | bytes) -> list[str]:
    with pytest.raises(InvalidReadings) as refused:
        parse_readings_csv(data if isinstance(data, bytes) else data.encode(), "r.csv")
    return [str(problem) for problem in refused.value.problems]


LINES = [
    "b,depth,2026-07-01T08:00:00.000001Z,1.5",
    f"a,depth,{T // 1000 - 1},-2e3",
    "b,flow,2026-07-01T16:00:00+08:00,",
    "a,depth,2026-07-01T08:00:00Z,null",
    f"a,depth,{T / 1000 + 0.5},true",
    "b,depth,2026-07-01T08:01Z,False",
]
ROWS = [
    ("b", "depth", 1, 1.5),
    ("a", "depth", -1000, -2000),
    ("b", "flow", 0, None),
    ("a", "depth", 0, None),
    ("a", "depth", 500, 1),
    ("b", "depth", 60_000_000, 0),
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_readings_are_read_in_the_order_of_the_file(newline: str, bom: str, end: str) -> None:
    text = (bom + HEADER + "\n".join(LINES) + end).replace("\n", newline)
    assert rows(read_recorded(text.encode())) == ROWS


def test_columns_may_come_in_any_order_quoted_and_with_the_quality_of_our_own_export() -> None:
    lines = ["observed_at,quality,value,property,device"]
    for line in LINES:
        device, prop, at, value = line.split(",")
        lines.append(f'{at},good,"{value}",{prop},{device}')
    assert rows(parse_readings_csv("\n".join(lines).encode())) == ROWS


def test_times_in_milliseconds_alone_and_spaces_about_fields_are_read() -> None:
    text = HEADER + f"a,depth,{T // 1000},1\n a ,depth , {T // 1000 + 1} , 2 \n"
    recorded = parse_readings_csv(text.encode())
    assert rows(recorded) == [("a", "depth", 0, 1), ("a", "depth", 1000, 2)]
    assert recorded.sensors == [("a", "depth")]


def test_in_time_order_sorts_by_time_device_property_and_keeps_the_file_s_order_of_equals() -> None:
    text = HEADER + "".join(f"{d},{p},{T // 1000 + at},{v}\n" for d, p, at, v in [
        ("b", "x", 1, 1), ("a", "y", 1, 2), ("a", "x", 1, 3), ("a", "x", 1, 4), ("c", "z", 0, 5),
    ])  # fmt: skip
    assert parse_readings_csv(text.encode()).in_time_order().value.tolist() == [5, 3, 4, 2, 1]


def test_a_header_alone_is_no_reading_and_an_empty_file_a_mistake() -> None:
    assert rows(parse_readings_csv(HEADER.encode())) == []
    assert "is empty" in problems("")[0]


def test_every_bad_line_is_listed_with_its_field() -> None:
    text = HEADER + "\n".join(
        [
            "a,depth,2026-07-01T08:00:00Z,1",
            "a,depth,2026-07-01T08:00:00,1",
            "a,depth,1999-12-31T23:59:59Z,1",
            "a,depth,soon,x",
            "a,depth",
            "a b,depth,1782892800000,1",
            "a,d/p,1782892800000,nan",
            "a,depth,1_782_892_800_000,1_0",
            "a,depth,,inf",
            "a,depth,9e99,1e999",
            ",depth,99999999999999999999999,2",
        ]
    )
    assert problems(text) == [
        f'r.csv, line 3, observed_at: "2026-07-01T08:00:00" {NO_TIME}',
        "r.csv, line 4, observed_at: 1999-12-31T23:59:59Z is before 2000",
        f'r.csv, line 5, observed_at: "soon" {NO_TIME}',
        'r.csv, line 5, value: "x" is not a number',
        "r.csv, line 6: has 2 fields; the header has 4",
        "r.csv, line 7, device: must contain no space and no control character",
        'r.csv, line 8, property: must not contain /',
        'r.csv, line 8, value: "nan" is not a number',
        f'r.csv, line 9, observed_at: "1_782_892_800_000" {NO_TIME}',
        'r.csv, line 9, value: "1_0" is not a number',
        f'r.csv, line 10, observed_at: "" {NO_TIME}',
        'r.csv, line 10, value: "inf" is not a number',
        f'r.csv, line 11, observed_at: "9e99" {NO_TIME}',
        'r.csv, line 11, value: "1e999" is not a number',
        "r.csv, line 12, device: must not be empty",
        f'r.csv, line 12, observed_at: "99999999999999999999999" {NO_TIME}',
    ]  # fmt: skip


def test_plain_integers_that_int_reads_but_json_would_not_are_no_times_and_no_values() -> None:
    assert len(problems(HEADER + "a,depth,1_782_892_800_000,1_0\n")) == 2


def test_the_list_of_mistakes_is_bounded_and_says_how_many_more() -> None:
    found = problems(HEADER + "a,depth,1782892800000,x\n" * 1500)
    assert len(found) == 1001
    assert found[-1] == "r.csv: and 500 more mistakes"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"PAR1\x15\x04", "Parquet file"),
        (b"device,property,value\n", "observed_at: column missing"),
        (b"device,property,observed_at,value,colour\n", '"colour": unknown column'),
        (b"device,property,observed_at,value\n\xff\n", "line 2: is not UTF-8"),
        (b'device,property,observed_at,value\n"a,b\n', "is not CSV"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8"),
    ],
)
def test_what_is_no_file_of_readings_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(InvalidReadings) as refused:
        read_recorded(data, "r.csv")
    assert text in str(refused.value)


def test_times_after_the_latest_allowed_are_refused() -> None:
    text = HEADER + f"a,depth,{T // 1000},1\na,depth,{T // 1000 + 1},1\n"
    with pytest.raises(InvalidReadings, match=r"line 3, observed_at: 2026-07-01T08:00:00\.001Z lies in the future"):
        parse_readings_csv(text.encode(), latest=T)


CELL = st.text(max_size=4) | st.sampled_from(
    ["a", "depth", "1782892800000", "2026-07-01T08:00:00Z", "1.5", "", "nan", '"', "\r", "\n", "2026-07-01T08:00"]
)
FILE = st.binary(max_size=60) | st.lists(st.lists(CELL, min_size=3, max_size=5).map(",".join), max_size=5).map(
    lambda lines: (HEADER + "\n".join(lines)).encode("utf-8", "surrogatepass")
)


@settings(deadline=None, max_examples=300)
@given(FILE)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidReadings):
        read_recorded(data)


READING = st.tuples(
    st.sampled_from(["a", "b"]),
    st.integers(946_684_800_000_000, 4_000_000_000_000_000),
    st.floats(allow_infinity=False),
)


@settings(deadline=None)
@given(st.lists(READING, max_size=20), st.booleans())
def test_what_is_written_is_read_back_the_fast_way_and_the_slow(
    readings: list[tuple[str, int, float]], is_quoted: bool
) -> None:
    lines = [f"{d},p,{iso(at)},{'' if math.isnan(v) else repr(v)}" for d, at, v in readings]
    text = HEADER.replace("device", '"device"') if is_quoted else HEADER
    recorded = parse_readings_csv((text + "\n".join(lines)).encode())
    assert [recorded.sensors[s][0] for s in recorded.sensor.tolist()] == [d for d, _, _ in readings]
    assert recorded.observed_at.tolist() == [at for _, at, _ in readings]
    assert np.array_equal(recorded.value, np.array([v for _, _, v in readings], float), equal_nan=True)
    assert recorded.line.tolist() == list(range(2, 2 + len(readings)))


@pytest.mark.timeout(60)
def test_two_hundred_thousand_lines_are_read() -> None:
    data = (HEADER + "".join(f"d{i % 500},p,{iso(T + i * 1_013_000)},{i / 7}\n" for i in range(200_000))).encode()
    assert len(parse_readings_csv(data)) == 200_000
