"""Readings as Arrow: a stream over HTTP, Parquet files. The extra `arrow`; without it `is_here` says so.

pyarrow is loaded when it is first used: a service that nobody asks for Arrow is spared its 50 MB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from twin.model import Ints, Quality, Readings

STREAM: Final = "application/vnd.apache.arrow.stream"
MISSING_EN: Final = "Arrow and Parquet need the extra arrow: pip install 'cimtwin[arrow]'"
MISSING_ZH: Final = "Arrow 和 Parquet 需要可选组件 arrow: pip install 'cimtwin[arrow]'"
_WORDS: Final = ("good", "suspect", "bad")


def is_here() -> bool:
    return find_spec("pyarrow") is not None


def readings_table(names: Sequence[tuple[str, str]], readings: Readings) -> Any:
    """device, property (dictionaries), observed_at (timestamp in µs, UTC), value (null where missing), quality; `names`
    are device and property by sensor index."""
    import pyarrow as pa

    used, place = np.unique(readings.sensor, return_inverse=True)
    place = place.reshape(-1).astype(np.int32)
    columns = {
        name: pa.DictionaryArray.from_arrays(place, pa.array([names[n][part] for n in used.tolist()], pa.string()))
        for part, name in enumerate(("device", "property"))
    }
    columns["observed_at"] = pa.array(readings.observed_at, pa.timestamp("us", "UTC"))
    columns["value"] = pa.array(readings.value, pa.float64(), mask=np.isnan(readings.value))
    word = (readings.quality != Quality.GOOD).astype(np.int8) + (readings.quality >= Quality.FIRST_BAD)
    columns["quality"] = pa.DictionaryArray.from_arrays(word.astype(np.int8), pa.array(_WORDS, pa.string()))
    return pa.table(columns)


def buckets_table(name: tuple[str, str], at: Ints, columns: Mapping[str, Sequence[float]]) -> Any:
    """device, property, bucket (its beginning), and the columns given."""
    import pyarrow as pa

    texts = {
        key: pa.DictionaryArray.from_arrays(np.zeros(len(at), np.int32), pa.array([name[part]], pa.string()))
        for part, key in enumerate(("device", "property"))
    }
    numbers = {key: pa.array(values, pa.int64() if key == "count" else pa.float64()) for key, values in columns.items()}
    return pa.table(texts | {"bucket": pa.array(at, pa.timestamp("us", "UTC"))} | numbers)


class Stream:
    """Tables of one schema as the bytes of an IPC stream, piece by piece."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._writer: Any = None

    def add(self, table: Any) -> bytes:
        import pyarrow as pa

        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._sink, table.schema)
        self._writer.write_table(table)
        return self._taken()

    def end(self) -> bytes:
        if self._writer is not None:
            self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


class ParquetFile:
    """A file that tables of one schema are added to."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._writer: Any = None

    def add(self, table: Any) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def add_objects(self, objects: Sequence[dict[str, Any]], types: dict[str, str]) -> None:
        """Rows with these keys; `types` are text, number or time (RFC 3339)."""
        import pyarrow as pa

        named = {"text": pa.string(), "number": pa.float64(), "time": pa.timestamp("us", "UTC")}
        columns = {
            key: pa.array([row[key] for row in objects], pa.string() if kind == "time" else named[kind]).cast(
                named[kind]
            )
            for key, kind in types.items()
        }
        self.add(pa.table(columns))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
