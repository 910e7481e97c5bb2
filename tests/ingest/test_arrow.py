"""Parquet files of recorded readings, and the faster way for CSV: the same readings and the same mistakes."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import arrow, recorded
from ingest.arrow import fast_lines, parquet_chunks
from ingest.recorded import Mistakes, Recorded, csv_chunks, read_recorded
from twin.model import InvalidReadings, parse_time

T = parse_time("2026-07-01T08:00:00Z")
TEXT = pa.string()


def parquet(rows: int | None = None, **columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=rows)
    return out.getvalue()


def two(**changed: Any) -> bytes:
    columns: dict[str, Any] = {
        "device": ["a", "b"],
        "property": ["depth", "depth"],
        "observed_at": pa.array([T, T + 1], pa.timestamp("us", "UTC")),
        "value": [1.5, None],
    }
    return parquet(**(columns | changed))


def rows(found: Recorded) -> list[tuple[str, str, int, float | None]]:
    return [
        (*found.sensors[s], at - T, None if math.isnan(v) else v)
        for s, at, v in zip(found.sensor.tolist(), found.observed_at.tolist(), found.value.tolist(), strict=True)
    ]


def problems(data: bytes) -> list[str]:
    with pytest.raises(InvalidReadings) as refused:
        read_recorded(data, "r.parquet", latest=T + 10_000_000)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("times", "step"),
    [
        (pa.array([T // 1_000_000, T // 1_000_000 + 1], pa.timestamp("s")), 1_000_000),
        (pa.array([T // 1000, T // 1000 + 1], pa.timestamp("ms", "Asia/Shanghai")), 1000),
        (pa.array([T, T + 1], pa.timestamp("us")), 1),
        (pa.array([T * 1000, T * 1000 + 1999], pa.timestamp("ns", "UTC")), 1),
        (pa.array([T // 1000, T // 1000 + 1], pa.int64()), 1000),
        (pa.array([T / 1000, T / 1000 + 0.5], pa.float64()), 500),
        (pa.array(["2026-07-01T08:00:00Z", "2026-07-01T16:00:00.25+08:00"]), 250_000),
        (pa.array(["2026-07-01T08:00:00Z", str(T // 1000 + 1)]), 1000),
        (pa.array([str(T // 1000), str(T // 1000 + 1)]).dictionary_encode(), 1000),
    ],
    ids=str,
)
def test_times_of_any_unit_and_form_are_read(times: Any, step: int) -> None:
    assert rows(read_recorded(two(observed_at=times))) == [("a", "depth", 0, 1.5), ("b", "depth", step, None)]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (pa.array([1.5, math.nan], pa.float32()), [1.5, None]),
        (pa.array([7, None], pa.int16()), [7, None]),
        (pa.array([True, False]), [1, 0]),
        (pa.array([None, True]), [None, 1]),
        (pa.array([decimal.Decimal("1.25"), None]), [1.25, None]),
        (pa.nulls(2), [None, None]),
        (pa.array([2.0, 2.0]).dictionary_encode(), [2, 2]),
    ],
    ids=str,
)
def test_numbers_and_booleans_of_any_width_are_read(values: Any, read: list[float | None]) -> None:
    assert [value for *_, value in rows(read_recorded(two(value=values)))] == read


@pytest.mark.parametrize("kind", [TEXT, pa.large_string(), pa.dictionary(pa.int8(), TEXT)], ids=str)
def test_names_are_read_as_text_or_dictionary_over_row_groups(kind: Any) -> None:
    count = 1000
    devices = [f"d{n * 7 % 13}" for n in range(count)]
    data = parquet(
        64,
        value=np.arange(count),
        device=pa.array(devices, kind),
        quality=["good"] * count,
        property=pa.array(["p"] * count, kind),
        observed_at=pa.array(range(T, T + count), pa.timestamp("us")),
    )
    found = rows(read_recorded(data))
    assert found == [(device, "p", n, n) for n, device in enumerate(devices)]


def test_every_bad_row_is_listed_with_its_number_and_column() -> None:
    data = parquet(
        3,
        device=["a", None, "b c", "a", "a", "a"],
        property=["depth", "depth", "depth", "", "depth", "depth"],
        observed_at=pa.array(
            [dt.datetime(2026, 7, 1), dt.datetime(2026, 7, 1), None, dt.datetime(1999, 1, 1), dt.datetime(2027, 1, 1),
             dt.datetime(2026, 7, 1)],
            pa.timestamp("us"),
        ),
        value=[1.0, 2.0, 3.0, 4.0, 5.0, math.inf],
    )  # fmt: skip
    assert problems(data) == [
        "r.parquet, row 2, device: must not be null",
        "r.parquet, row 3, device: must contain no space and no control character",
        "r.parquet, row 3, observed_at: must not be null",
        "r.parquet, row 4, observed_at: 1999-01-01T00:00:00Z is before 2000",
        "r.parquet, row 4, property: must not be empty",
        "r.parquet, row 5, observed_at: 2027-01-01T00:00:00Z lies in the future",
        'r.parquet, row 6, value: "inf" is not a number',
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"PAR1" + bytes(40), "not a whole Parquet file"),
        (two()[:-20], "not a whole Parquet file"),
        (two(value=["1", "2"]), "value: is of type string; numbers or booleans are needed"),
        (two(device=[1, 2]), "device: is of type int64; text is needed"),
        (two(observed_at=[True, False]), "observed_at: is of type bool"),
        (two(colour=["red", "blue"]), '"colour": unknown column'),
        (parquet(device=["a"], value=[1.0]), "observed_at: column missing"),
        (two(observed_at=["soon", "2026-07-01T08:00:00Z"]), 'row 1, observed_at: "soon" is not a time'),
        (two(observed_at=pa.array([2**62, T], pa.int64())), "row 1, observed_at: "),
    ],
)
def test_what_is_no_file_of_readings_is_refused_with_the_reason(data: bytes, text: str) -> None:
    assert text in problems(data)[0]


def test_a_damaged_page_is_a_mistake_and_no_crash() -> None:
    good = parquet(
        device=["a"] * 5000, property=["p"] * 5000, value=np.random.default_rng(1).random(5000),
        observed_at=pa.array(range(T, T + 5000), pa.timestamp("us")),
    )  # fmt: skip
    chance = np.random.default_rng(2)
    for _ in range(60):
        bad = bytearray(good)
        bad[chance.integers(4, len(bad))] ^= 1 << chance.integers(8)
        mistakes = Mistakes("r", "row")
        for _chunk in parquet_chunks(io.BytesIO(bad), mistakes, None):
            pass  # read, or told to be damaged


def test_without_pyarrow_a_parquet_file_is_refused_naming_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "pa", None)
    assert problems(two()) == [f"r.parquet: {arrow.MISSING}"]
    assert "cimtwin[arrow]" in arrow.MISSING
    assert fast_lines() is None


# CSV: with and without pyarrow, cut anywhere

CELLS = st.sampled_from(["1", "-2.5", "1e3", "", "null", "true", "x", " 3", "1_0", "nan", ".5", "5.", "0x1", '"4"'])
TIMES = st.sampled_from(
    [str(T // 1000), "2026-07-01T08:00:00Z", "2026-07-01T16:00:00.123456+08:00", "2026-07-01t08:00z",
     "2026-02-30T08:00:00Z", "2026-07-01 08:00:00Z", "2026-07-01T08:00:00",
     "1999-01-01T00:00:00Z", "2026-07-01T24:00:00Z", ""]
)  # fmt: skip
ORDINARY = st.tuples(st.sampled_from("ab"), st.just("p"), TIMES.filter(lambda t: "T" in t), CELLS)
LINES = st.one_of(
    st.tuples(st.sampled_from(["a", "b", "水", " a", "a b", '"a"', ""]), st.just("p"), TIMES, CELLS).map(",".join),
    ORDINARY.map(",".join),
    st.sampled_from(["a,p", "", "a,p,1,2,3", '"a', "\0"]),
)


def read_in_blocks(data: bytes, size: int, fast: Any) -> tuple[list[Any], list[str]]:
    mistakes = Mistakes("r", "line")
    found = [
        (part.sensors[s], at, str(v), line)
        for part in csv_chunks((data[n : n + size] for n in range(0, len(data), size)), mistakes, None, fast)
        for s, at, v, line in zip(
            part.sensor.tolist(), part.observed_at.tolist(), part.value.tolist(), part.line.tolist(), strict=True
        )
    ]
    try:
        mistakes.raise_if_any()
    except InvalidReadings as refused:
        return [], [str(problem) for problem in refused.problems]
    return found, []


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 200))
def test_csv_reads_the_same_by_pyarrow_and_in_any_blocks(lines: list[str], end: str, ends: bool, size: int) -> None:
    data = (end.join([",".join(recorded.COLUMNS), *lines]) + end * ends).encode()
    whole = read_in_blocks(data, len(data), None)
    fast = read_in_blocks(data, len(data), fast_lines())
    assert fast == whole
    in_blocks = read_in_blocks(data, size, fast_lines())
    assert bool(in_blocks[1]) == bool(whole[1])
    if '"' not in "".join(lines) and "\0" not in "".join(lines):
        assert in_blocks == whole
    else:
        assert in_blocks[0] == whole[0]


def test_ordinary_csv_does_go_the_faster_way() -> None:
    text = "value,observed_at,quality,property,device\r\n" + "".join(
        f"{n},2026-07-01T08:00:{n:02}Z,good,p,d{n % 3}\r\n" for n in range(60)
    )
    fast = fast_lines()
    assert fast is not None
    body = text.partition("\n")[2].encode()
    found = fast(body, ["value", "observed_at", "quality", "property", "device"], 2, None)
    assert found is not None
    assert rows(found) == [(f"d{n % 3}", "p", n * 1_000_000, n) for n in range(60)]
    assert found.line.tolist() == list(range(2, 62))
