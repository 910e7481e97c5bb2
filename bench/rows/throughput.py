"""Rates: single readings, packs of 50, and both delivered again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psycopg

from bench.city import BEGIN_MS, PACK, STEP_MS, City, Stream
from bench.report import Figure
from bench.services import Bench, RowFailed, Run, Running
from twin.model import Readings
from twin.store.database import packed_readings

SENSORS: Final = 10_000
SINGLES: Final = 60_000
PACKS: Final = 10_000
# goals: of this issue; CPU and redelivery of the later one
SINGLE_GOAL: Final = 12_000
PACKED_GOAL: Final = 150_000
CPU_SINGLE_GOAL: Final = 0.45
CPU_PACKED_GOAL: Final = 0.18
REDELIVERED_GOAL: Final = 0.4

Make = Callable[[Path, int, int, str], Stream]


def single(bench: Bench) -> list[Figure]:
    return _singles(bench, "mosquitto", "single")


def single_nats(bench: Bench) -> list[Figure]:
    return _singles(bench, "nats", "single-nats")


def packs(bench: Bench) -> list[Figure]:
    city = City(SENSORS, PACK)
    return _packs(bench, "mosquitto", "packs", city, city.packed)


def packs_senml(bench: Bench) -> list[Figure]:
    city = City(SENSORS, PACK)
    return _packs(bench, "mosquitto", "packs-senml", city, city.senml)


def packs_nats(bench: Bench) -> list[Figure]:
    city = City(SENSORS, PACK)
    return _packs(bench, "nats", "packs-nats", city, city.packed)


def _some_covers_open(city: City) -> None:
    """Ten covers open during the stream, so that alerts are raised, written and told as on an ordinary bad day."""
    city.open_covers({n: city.size + n for n in city.covers[:: max(1, len(city.covers) // 10)][:10]})


def _singles(bench: Bench, broker: str, row: str) -> list[Figure]:
    city = City(SENSORS)
    _some_covers_open(city)
    count = bench.scaled(SINGLES)
    rates, bare, bare_cpu, ratios, runs = [], [], [], [], []
    with bench.service(city, broker) as running:
        position = _warm_up(bench, running, city, city.singles, 1)
        for number in range(bench.runs):
            stream = city.singles(bench.file("singles.npz"), position, count)
            position += count
            run = running.take(bench, stream)
            runs.append(run)
            rates.append(count / run.seconds)
            mirror = city.singles(bench.file("bare.npz"), number * count % city.size, count, "bar")
            delivered, cpu_s = bench.bare_delivery(running.service.mqtt_port, mirror, "bar")
            bare.append(delivered)
            bare_cpu.append(cpu_s / count * 1e5)
            ratios.append(rates[-1] / bare[-1])
        alerts = running.service.stats()["alert_events"]
    return [
        Figure(
            row, f"single readings stored and judged, {broker}", "messages/s", rates, SINGLE_GOAL,
            ratio=statistics.median(ratios), ratio_to="what a bare acknowledging reader gets of the same broker",
            verified=sum(r.verified for r in runs), expected=count * len(runs),
            details=_details(runs, count)
            | {"bare reader, messages/s": statistics.median(bare), "alert events": alerts},
        ),
        _cpu(row, f"service CPU per 100,000 single readings, {broker}", runs, count, CPU_SINGLE_GOAL, bare_cpu),
    ]  # fmt: skip


def _packs(bench: Bench, broker: str, row: str, city: City, make: Make) -> list[Figure]:
    _some_covers_open(city)
    count = bench.scaled(PACKS, city.size // PACK)
    readings = count * PACK
    rates, bare, ratios, runs, sizes = [], [], [], [], []
    with bench.service(city, broker) as running:
        position = _warm_up(bench, running, city, make, PACK)
        for number in range(bench.runs):
            stream = make(bench.file("packs.npz"), position, count, "cim")
            position += readings
            run = running.take(bench, stream)
            runs.append(run)
            rates.append(readings / run.seconds)
            sizes.append(readings / max(1, run.batches))
            bare.append(bare_copy(running, city, readings, round(sizes[-1]), number))
            ratios.append(rates[-1] / bare[-1])
        alerts = running.service.stats()["alert_events"]
    form = "SenML" if make == city.senml else "packed form"
    return [
        Figure(
            row, f"readings in packs of 50 stored and judged, {form}, {broker}", "readings/s", rates, PACKED_GOAL,
            ratio=statistics.median(ratios), ratio_to="bare sorted binary COPY into such a table, same batch size",
            verified=sum(r.verified for r in runs), expected=readings * len(runs),
            details=_details(runs, readings)
            | {"bare COPY, readings/s": statistics.median(bare), "alert events": alerts},
        ),
        _cpu(row, f"service CPU per 100,000 packed readings, {form}, {broker}", runs, readings, CPU_PACKED_GOAL),
    ]  # fmt: skip


def redelivered(bench: Bench) -> list[Figure]:
    """Fresh and again, in turn, both forms."""
    figures = []
    for form, city in (("single", City(SENSORS)), ("packs", City(SENSORS, PACK))):
        per_message = 1 if form == "single" else PACK
        count = bench.scaled(SINGLES // 2) if form == "single" else bench.scaled(PACKS // 2, city.size // PACK)
        make: Make = city.singles if form == "single" else city.packed
        fresh, again, ratios, added, duplicates = [], [], [], 0, 0
        with bench.service(city) as running:
            position = _warm_up(bench, running, city, make, per_message)
            for _ in range(bench.runs):
                stream = make(bench.file("again.npz"), position, count, "cim")
                position += stream.readings
                first = running.take(bench, stream)
                second = running.take(bench, stream, fresh=False)
                fresh.append(stream.readings / first.seconds)
                again.append(stream.readings / second.seconds)
                ratios.append(again[-1] / fresh[-1])
                added += second.verified
                duplicates += second.duplicates
        expected = count * per_message * bench.runs
        figures.append(
            Figure(
                "redelivered", f"rate of all duplicates over fresh, {form}", "", ratios, REDELIVERED_GOAL,
                is_later=True, verified=added, expected=0,
                fault="" if duplicates == expected else f"{duplicates} of {expected} were counted as duplicates",
                details={
                    "fresh, readings/s": statistics.median(fresh),
                    "again, readings/s": statistics.median(again),
                    "counted as duplicates": duplicates,
                },
            )
        )  # fmt: skip
    return figures


def _warm_up(bench: Bench, running: Running, city: City, make: Make, per_message: int) -> int:
    """One step of the whole city, so that all is loaded and every partition made; where the stream goes on."""
    stream = make(bench.file("warm-up.npz"), 0, city.size // per_message, "cim")
    run = running.take(bench, stream)
    if run.verified != stream.readings:
        raise RowFailed(f"of {stream.readings} readings {run.verified} are stored after the warm-up")
    return city.size


def _details(runs: list[Run], readings: int) -> dict[str, float]:
    return {
        "readings a batch": statistics.median(readings / max(1, r.batches) for r in runs),
        "delivered twice by the broker": sum(r.duplicates for r in runs),
        "broker had acknowledged all after, s": statistics.median(r.acknowledged_s for r in runs),
        "all was committed after, s": statistics.median(r.seconds for r in runs),
    }


def _cpu(row: str, what: str, runs: list[Run], readings: int, goal: float, bare: Sequence[float] = ()) -> Figure:
    def per_100k(name: str) -> list[float]:
        return [run.cpu[name] / readings * 1e5 for run in runs]

    own = per_100k("service")
    return Figure(
        row, what, "s", own, goal, "at most", is_later=True,
        ratio=statistics.median(mine / its for mine, its in zip(own, bare, strict=True)) if bare else None,
        ratio_to="the CPU of the bare acknowledging reader" if bare else "",
        details={f"{name}, s": statistics.median(per_100k(name)) for name in ("PostgreSQL", "broker")},
    )  # fmt: skip


def bare_copy(running: Running, city: City, readings: int, batch: int, number: int) -> float:
    """Readings a second that COPY alone stores: rows packed and sorted beforehand, a commit a batch, into a table like
    `readings` with its indexes, the same sensors and ascending times."""
    i = np.arange(readings, dtype=np.int64)
    sensor = (i % city.size).astype(np.int32)
    at = (BEGIN_MS + i // city.size * STEP_MS + i % city.size % 50_000) * 1000
    columns = Readings(sensor, at, at, city.base[sensor], np.zeros(readings, np.uint8))
    blocks = [
        b"".join(packed_readings(columns.take(np.arange(begin, min(begin + batch, readings))).in_order(), 1))
        for begin in range(0, readings, batch)
    ]
    table = f"bare_{number}"
    with psycopg.connect(running.url, autocommit=True) as connection:
        connection.execute(f"create table {table} (like readings including all)".encode())
        begun = time.perf_counter()
        for block in blocks:
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    f"copy {table} (sensor_id, observed_at, received_at, value, quality, batch)"
                    " from stdin (format binary)".encode()
                ) as copy,
            ):
                copy.write(block)
        took = time.perf_counter() - begun
        row = connection.execute(f"select count(*) from {table}".encode()).fetchone()
        connection.execute(f"drop table {table}".encode())
    if row is None or row[0] != readings:
        raise RowFailed("bare COPY did not store all rows")
    return readings / took
