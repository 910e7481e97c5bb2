"""Back-filling history: `cimtwin import` of a Parquet file and of CSV beside COPY alone of the same rows."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Final

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from bench import machine
from bench.city import BEGIN_MS, City
from bench.report import Figure
from bench.services import Bench, RowFailed, Service, until
from ingest.arrow import ROWS
from twin.importing import import_files
from twin.model import Ints, Readings
from twin.settings import load as load_settings
from twin.store.database import packed_readings

SENSORS: Final = 1_000
READINGS: Final = 2_000_000
STEP_MS: Final = 40_000
RATIO_GOAL: Final = 0.8


def parquet(bench: Bench) -> list[Figure]:
    return [_figure(bench, "parquet", order) for order in ("sorted", "random")]


def plain_csv(bench: Bench) -> list[Figure]:
    return [_figure(bench, "csv", "sorted")]


def _figure(bench: Bench, form: str, order: str) -> Figure:
    """`sorted`: the file by sensor and time; `random`: its rows shuffled. COPY gets the very same rows, batch by batch
    in the file's order, each batch of as many rows as the import takes at once and sorted and packed beforehand, a
    commit a batch; into a table like `readings`, partition and indexes and all."""
    city = City(SENSORS)
    readings = bench.scaled(READINGS, SENSORS)
    i = np.arange(readings, dtype=np.int64)
    sensor, step = i // (readings // SENSORS), i % (readings // SENSORS)
    if order == "random":
        mixed = np.random.default_rng(1).permutation(readings)
        sensor, step = sensor[mixed], step[mixed]
    at_ms = BEGIN_MS + step * STEP_MS + sensor
    value = np.round(city.base[sensor] + city.swing[sensor] * ((sensor * 31 + step * 17) % 97) / 97, 4)
    file = bench.file(f"history.{form}")
    (_write_parquet if form == "parquet" else _write_csv)(file, city, sensor, at_ms, value)
    rates, bare, ratios, verified = [], [], [], 0
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for _ in range(bench.runs):
        with bench.database() as url:
            service = Service(bench.folder, url, None)
            service.import_sensors(city)
            with psycopg.connect(url, autocommit=True) as connection:
                clock = _Clock(bench)
                for _line in import_files(url, [file], load_settings({}), None):
                    pass
                took, *spent = clock.read()
                ours.append(spent)
                row = connection.execute(
                    "select count(*), sum(value), count(distinct sensor_id) from readings"
                ).fetchone()
                assert row is not None
                if row[2] != SENSORS or abs(row[1] - value.sum()) > 1e-6 * abs(value.sum()):
                    raise RowFailed(f"the rows stored are not those of the file: {row}")
                verified += int(row[0])
                rates.append(readings / took)
                alone, *spent = _bare(bench, connection, sensor, at_ms, value)
                theirs.append(spent)
                bare.append(readings / alone)
                ratios.append(rates[-1] / bare[-1])
    return Figure(
        "import", f"import of recorded readings, {form}, {order} order", "readings/s", rates,
        verified=verified, expected=readings * bench.runs,
        ratio=statistics.median(ratios), ratio_to="bare sorted binary COPY into such a table, same batch size",
        details={
            "bare COPY, readings/s": statistics.median(bare),
            **{
                f"CPU µs a reading, {name}": " / ".join(
                    f"{statistics.median(run[n] for run in runs) / readings * 1e6:.2f}" for runs in (ours, theirs)
                )
                for n, name in enumerate(("own process, import / bare", "PostgreSQL, import / bare"))
            },
            "ratio asked for": RATIO_GOAL if form == "parquet" else "-",
            "readings a batch": min(ROWS, readings),
            "bytes of the file a reading": file.stat().st_size / readings,
        },
    )  # fmt: skip


def _write_parquet(file: Path, city: City, sensor: Ints, at_ms: Ints, value: np.ndarray) -> None:
    names = [city.name(n) for n in range(city.size)]
    device = pa.DictionaryArray.from_arrays(sensor.astype(np.int32), [device for device, _ in names])
    prop = pa.DictionaryArray.from_arrays(np.zeros(len(sensor), np.int8), ["value"])
    at = pa.array(at_ms, pa.timestamp("ms", "UTC"))
    table = pa.table({"device": device, "property": prop, "observed_at": at, "value": value})
    pq.write_table(table, file, row_group_size=250_000)


def _write_csv(file: Path, city: City, sensor: Ints, at_ms: Ints, value: np.ndarray) -> None:
    names = [",".join(city.name(n)) for n in range(city.size)]
    with file.open("w", encoding="utf-8") as opened:
        opened.write("device,property,observed_at,value\n")
        texts = np.datetime_as_string(at_ms.astype("M8[ms]"), timezone="UTC").tolist()
        for n, at, number in zip(sensor.tolist(), texts, value.tolist(), strict=True):
            opened.write(f"{names[n]},{at},{number}\n")


class _Clock:
    """Seconds since it was made: by the wall, and of CPU in this process and in PostgreSQL."""

    def __init__(self, bench: Bench) -> None:
        self._postgres = bench.postgres().pid or 0
        self._begun = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), machine.family_cpu_s(self._postgres)

    def read(self) -> list[float]:
        wall, own, _ = self._now()
        # The CPU of a backend that has ended counts only when it is buried.
        until(lambda: _importers(self._postgres) == 0, "the import's backends to be gone")
        times = (wall, own, machine.family_cpu_s(self._postgres))
        return [now - begun for now, begun in zip(times, self._begun, strict=True)]


def _importers(postgres: int) -> int:
    names = [machine.command_of(pid) for pid in machine.children(postgres)]
    return sum(b"bench_" in name for name in names) - 1  # ours


def _bare(
    bench: Bench, connection: psycopg.Connection, sensor: Ints, at_ms: Ints, value: np.ndarray
) -> list[float]:  # fmt: skip
    columns = Readings(sensor.astype(np.int32), at_ms * 1000, at_ms * 1000, value, np.zeros(len(sensor), np.uint8))
    days = np.unique(columns.observed_at // 86_400_000_000).tolist()
    blocks = [
        b"".join(packed_readings(columns.take(np.arange(begin, min(begin + ROWS, len(sensor)))).in_order(), 1))
        for begin in range(0, len(sensor), ROWS)
    ]
    connection.execute("create table bare (like readings including all) partition by range (observed_at)")
    for day in days:
        connection.execute(
            f"create table bare_{day} partition of bare for values from"
            f" (to_timestamp({day * 86_400})) to (to_timestamp({(day + 1) * 86_400}))".encode()
        )
    clock = _Clock(bench)
    for block in blocks:
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "copy bare (sensor_id, observed_at, received_at, value, quality, batch) from stdin (format binary)"
            ) as copy,
        ):
            copy.write(block)
    spent = clock.read()
    row = connection.execute("select count(*) from bare").fetchone()
    if row is None or row[0] != len(sensor):
        raise RowFailed("bare COPY did not store all rows")
    return spent
