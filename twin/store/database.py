"""Connections, and what the database's errors mean to the rest of the house."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from twin.model import Readings, StoreRefused, StoreUnavailable

# PostgreSQL counts binary timestamps from 2000-01-01.
POSTGRES_EPOCH: Final = 946_684_800_000_000

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"
_READING: Final = np.dtype(
    [
        ("fields", ">i2"),
        ("n1", ">i4"), ("sensor", ">i4"),
        ("n2", ">i4"), ("observed_at", ">i8"),
        ("n3", ">i4"), ("received_at", ">i8"),
        ("n4", ">i4"), ("value", ">f8"),
        ("n5", ">i4"), ("quality", ">i2"),
        ("n6", ">i4"), ("batch", ">i8"),
    ]
)  # fmt: skip
_MISSING: Final = np.dtype([(n, _READING[n]) for n in _READING.names or () if n != "value"])
_ROW: Final = np.dtype(
    [
        ("fields", ">i2"),
        ("n1", ">i4"), ("sensor", ">i4"),
        ("n2", ">i4"), ("observed_at", ">i8"),
        ("n3", ">i4"), ("received_at", ">i8"),
        ("n4", ">i4"), ("value", ">f8"),
        ("n5", ">i4"), ("quality", ">i2"),
    ]
)  # fmt: skip
READING_COLUMNS: Final = "sensor_id, observed_at, received_at, coalesce(value, 'NaN'::float8), quality"

Connection = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def translated() -> Iterator[None]:
    """psycopg's errors as the house's: content that the database refuses is `StoreRefused`, everything else
    `StoreUnavailable`, for what is not the content's fault may pass."""
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise StoreRefused(str(error).splitlines()[0]) from error
    except psycopg.Error as error:
        raise StoreUnavailable(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def packed_readings(readings: Readings, batch: int, rows: int = 4000) -> Iterator[bytes]:
    """The rows of `readings` as COPY's binary format, in their own order but for those without a value, which come
    last; the unique index costs least where that is by sensor and time. In pieces: the server works on the first while
    the next is made, and they stay in the cache."""
    missing = np.isnan(readings.value)
    yield COPY_HEADER
    for part, dtype in ((readings, _READING),) if not missing.any() else (
        (readings.take(~missing), _READING), (readings.take(missing), _MISSING)
    ):  # fmt: skip
        for begin in range(0, len(part), rows):
            yield _rows(part.between(begin, begin + rows), batch, dtype).tobytes()
    yield COPY_TRAILER


def _rows(r: Readings, batch: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    rows = np.empty(len(r), dtype)
    rows["fields"] = 6
    rows["n1"] = 4
    rows["n2"] = rows["n3"] = rows["n6"] = 8
    rows["n5"] = 2
    rows["sensor"] = r.sensor
    rows["observed_at"] = r.observed_at - POSTGRES_EPOCH
    rows["received_at"] = r.received_at - POSTGRES_EPOCH
    rows["quality"] = r.quality
    rows["batch"] = batch
    if "value" in (dtype.names or ()):
        rows["n4"] = 8
        rows["value"] = r.value
    else:
        rows["n4"] = -1
    return rows


def unpack_readings(data: bytes) -> Readings:
    """Readings from binary COPY output of `READING_COLUMNS`."""
    if len(data) < len(COPY_HEADER) + 2:
        return Readings.empty()
    rows = np.frombuffer(data, _ROW, count=(len(data) - len(COPY_HEADER) - 2) // _ROW.itemsize, offset=len(COPY_HEADER))
    return Readings(
        rows["sensor"].astype(np.int32),
        rows["observed_at"].astype(np.int64) + POSTGRES_EPOCH,
        rows["received_at"].astype(np.int64) + POSTGRES_EPOCH,
        rows["value"].astype(np.float64),
        rows["quality"].astype(np.uint8),
    )


def read_readings(connection: Connection, query: str, params: dict[str, object]) -> Readings:
    """Readings that a query selecting `READING_COLUMNS` gives."""
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy ({query}) to stdout (format binary)".encode(), params) as copy,
    ):
        return unpack_readings(b"".join(bytes(block) for block in copy))


def read_packed(connection: Connection, columns: str, dtype: np.dtype[np.void], source: str) -> NDArray[np.void]:
    """The rows of `source` in one value, a fifth of the time that rows of their own take: for those that are one a
    sensor, not for readings without end (a value has at most 1 GB). `columns`: what PostgreSQL's `…send` functions
    give, joined by `||`, which `dtype` describes."""
    row = connection.execute(f"select string_agg({columns}, ''::bytea) from {source}".encode(), binary=True).fetchone()
    return np.frombuffer((row and row[0]) or b"", dtype)


def stream_readings(
    connection: Connection, query: str, params: dict[str, object], rows: int = 20_000
) -> Iterator[Readings]:
    """As `read_readings`, in parts of at least `rows` readings but for the last: nothing else is kept."""
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy ({query}) to stdout (format binary)".encode(), params) as copy,
    ):
        rest = bytearray()
        skip = len(COPY_HEADER)
        for block in copy:
            rest += block
            whole = (len(rest) - skip) // _ROW.itemsize
            if whole >= rows:
                end = skip + whole * _ROW.itemsize
                yield unpack_readings(COPY_HEADER + bytes(rest[skip:end]) + COPY_TRAILER)
                del rest[:end]
                skip = 0
        if len(rest) - skip >= _ROW.itemsize:
            yield unpack_readings(COPY_HEADER + bytes(rest[skip:]))
