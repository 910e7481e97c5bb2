"""Recorded readings by pyarrow: Parquet files, and ordinary CSV at the speed of C. The extra `arrow`.

Whole columns are converted at once; only texts that are not quite ordinary go through Python one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final

import numpy as np

from ingest.codecs.gathering import FIRST_TIME, LAST_TIME, NOT_A_TIME
from ingest.recorded import (
    COLUMNS,
    Fast,
    Mistakes,
    Recorded,
    check_columns,
    check_times,
    sensors_of,
    times_of,
)
from twin.model import Floats, Ints, Micros
from twin.sensors import name_fault

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq
except ImportError:
    pa = None

ROWS: Final = 500_000  # of a chunk
MISSING: Final = (
    "Parquet files need the extra arrow: pip install 'cimtwin[arrow]'"
    " / Parquet 文件需要可选组件 arrow: pip install 'cimtwin[arrow]'"
)
_TO_MICROS: Final = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
_RFC_3339: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_INTEGER: Final = r"^\d{1,15}$"
_NUMBER: Final = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?$"


def parquet_chunks(file: IO[bytes], mistakes: Mistakes, latest: Micros | None = None) -> Iterator[Recorded]:
    """The readings of a Parquet file with the columns `device`, `property` (text, dictionaries taken as such),
    `observed_at` (timestamp of any unit, UTC where it names no zone; epoch milliseconds; RFC 3339 text) and `value`
    (number, boolean, null; NaN is missing, too), `ROWS` rows at a time; `line` is the row, from 1 on.

    Mistakes go to `mistakes`; of a chunk with some, the rows are not to be used. Bound: a few chunks, and the pages of
    the file that a chunk is made of.
    """
    if pa is None:
        mistakes.add(0, "", MISSING)
        return
    row = 1
    try:
        schema = pq.read_schema(file)
        check_columns([name for name in schema.names if name != "__index_level_0__"], mistakes, 0)
        if not mistakes:
            _check_types(schema, mistakes)
        if mistakes:
            return
        file.seek(0)
        names = [name for name in COLUMNS[:2] if not pa.types.is_dictionary(schema.field(name).type)]
        with pq.ParquetFile(file, read_dictionary=names, pre_buffer=False, buffer_size=1 << 20) as opened:
            for batch in opened.iter_batches(ROWS, columns=list(COLUMNS), use_threads=False):
                yield _chunk(batch, row, mistakes, latest)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        mistakes.add(row, "", f"is not a whole Parquet file: {str(error).splitlines()[0]}")


def _check_types(schema: Any, mistakes: Mistakes) -> None:
    types = pa.types

    def plain(name: str) -> Any:
        found = schema.field(name).type
        return found.value_type if types.is_dictionary(found) else found

    for name in COLUMNS[:2]:
        if not _is_text(plain(name)):
            mistakes.add(0, name, f"is of type {plain(name)}; text is needed")
    at, value = plain("observed_at"), plain("value")
    if not (types.is_timestamp(at) or types.is_integer(at) or types.is_floating(at) or _is_text(at)):
        mistakes.add(0, "observed_at", f"is of type {at}; a timestamp, epoch milliseconds or RFC 3339 text is needed")
    if not (
        types.is_floating(value) or types.is_integer(value) or types.is_boolean(value) or types.is_decimal(value)
        or types.is_null(value)
    ):  # fmt: skip
        mistakes.add(0, "value", f"is of type {value}; numbers or booleans are needed")


def _is_text(found: Any) -> bool:
    types = pa.types
    return bool(types.is_string(found) or types.is_large_string(found) or types.is_string_view(found))


def _chunk(batch: Any, first_row: int, mistakes: Mistakes, latest: Micros | None) -> Recorded:
    line = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)
    columns = {name: batch.column(n) for n, name in enumerate(batch.schema.names)}
    names: list[Any] = []
    for name in COLUMNS[:2]:
        texts, codes = _codes(columns[name])
        missing = np.flatnonzero(codes < 0)
        for row in missing.tolist():
            mistakes.add(int(line[row]), name, "must not be null")
        if len(missing):  # the chunk will not be used
            texts, codes = [*texts, "null"], np.where(codes < 0, len(texts), codes)
        names += [texts, codes]
    sensors, sensor = sensors_of(names[0], names[1], names[2], names[3], line, mistakes)
    at, is_null, shown = _times(columns["observed_at"])
    if is_null.any():
        for row in np.flatnonzero(is_null).tolist():
            mistakes.add(int(line[row]), "observed_at", "must not be null")
        at[is_null] = FIRST_TIME
    check_times(at, line, latest, mistakes, shown)
    value = _numbers(columns["value"])
    is_endless = np.isinf(value)
    if is_endless.any():
        for row in np.flatnonzero(is_endless).tolist():
            mistakes.add(int(line[row]), "value", f'"{value[row]}" is not a number')
    return Recorded(sensors, sensor, at, value, line)


def _codes(column: Any) -> tuple[list[str], Ints]:
    """The texts of a column and each row's place among them, -1 for null."""
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    texts = column.dictionary.to_pylist()
    if None in texts:  # a dictionary may hold null
        codes = np.where(np.array([text is None for text in texts] + [False])[codes], -1, codes)
        texts = ["null" if text is None else text for text in texts]
    return texts, codes


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _times(column: Any) -> tuple[Ints, Any, Any]:
    """µs, which are null, and what they were read from (None where a number says no more than the time)."""
    column = _plain(column)
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    kind = column.type
    if _is_text(kind):
        texts = column.fill_null("2000-01-01T00:00:00Z")
        at = _ordinary_times(texts)
        if at is not None:
            return at, is_null, texts
        listed = texts.to_pylist()
        return times_of(listed), is_null, listed
    if pa.types.is_floating(kind):
        given = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        given = np.nan_to_num(given, nan=NOT_A_TIME, posinf=LAST_TIME, neginf=NOT_A_TIME)
        at = np.rint(np.clip(given, NOT_A_TIME / 1000, LAST_TIME / 1000) * 1000).astype(np.int64)
        return at, is_null, given
    unit = kind.unit if pa.types.is_timestamp(kind) else "ms"
    times, parts = _TO_MICROS[unit]
    given = column.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    at = np.clip(given // parts, NOT_A_TIME // times, LAST_TIME // times) * times
    return at, is_null, given


def _ordinary_times(texts: Any) -> Ints | None:
    """Texts that are all RFC 3339 as most write it, or all whole milliseconds, in µs; None for others."""
    if not len(texts):
        return np.empty(0, np.int64)
    try:
        if pc.all(pc.match_substring_regex(texts, _RFC_3339)).as_py():
            found = pc.cast(texts, pa.timestamp("us", "UTC")).cast(pa.int64())
            at: Ints = found.to_numpy(zero_copy_only=False).copy()
            return at
        if pc.all(pc.match_substring_regex(texts, _INTEGER)).as_py():
            milliseconds: Ints = pc.cast(texts, pa.int64()).to_numpy(zero_copy_only=False)
            return milliseconds * 1000
    except pa.ArrowInvalid:  # the 30th of February
        pass
    return None


def _numbers(column: Any) -> Floats:
    """float64, NaN for null."""
    column = _plain(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    value: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return value


# CSV


def fast_lines() -> Fast | None:
    """The faster way for `csv_chunks`, where pyarrow is here."""
    return None if pa is None else _lines


def _lines(data: bytes, header: list[str], line: int, latest: Micros | None) -> Recorded | None:
    """Whole lines without quotes; None where any of them needs a closer look."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
        if b"\r" in data:
            return None
    text, names = pa.string(), pa.dictionary(pa.int32(), pa.string())
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            pa_csv.ReadOptions(column_names=header, use_threads=False, block_size=len(data) + 1),
            pa_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, text) | dict.fromkeys(COLUMNS[:2], names), strings_can_be_null=False
            ),
        ).combine_chunks()
    except pa.ArrowInvalid:
        return None
    device, prop, times, values = (_one(table.column(name)) for name in COLUMNS)
    at = _ordinary_times(times)
    if at is None or ((at < FIRST_TIME) | (at > (LAST_TIME - 1 if latest is None else latest))).any():
        return None
    value = _ordinary_values(values)
    if value is None:
        return None
    devices, device_code = _codes(device)
    properties, property_code = _codes(prop)
    if any(name_fault(name) for name in (*devices, *properties)):
        return None
    rows = np.arange(line, line + len(at), dtype=np.int64)
    sensors, sensor = sensors_of(devices, device_code, properties, property_code, rows, Mistakes("", "line"))
    return Recorded(sensors, sensor, at, value, rows)


def _one(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else pa.array([], column.type)


def _ordinary_values(texts: Any) -> Floats | None:
    is_number = pc.match_substring_regex(texts, _NUMBER)
    if not pc.all(is_number).as_py():
        is_missing = pc.or_(pc.equal(texts, ""), pc.equal(texts, "null"))
        if not pc.all(pc.or_(is_number, is_missing)).as_py():
            return None
        texts = pc.if_else(is_missing, None, texts)
    value: Floats = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    return value
