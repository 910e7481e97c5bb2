"""A city of 100,000 sensors: how long `cimtwin import` and the start take with them, and what memory they cost."""

from __future__ import annotations

from typing import Final

import psycopg

from bench import machine
from bench.city import PACK, City
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, Service, until
from twin.embedded import EmbeddedPostgres

SENSORS: Final = 100_000
SECONDS_GOAL: Final = 5
MEMORY_GOAL: Final = 600


def load(bench: Bench) -> list[Figure]:
    """On the service's own embedded servers; the first start is measured again by starting anew."""
    size = bench.scaled(SENSORS, 20 * PACK)
    city = City(size, PACK)
    imported, started, settled, highest = [], [], [], []
    found = stored = 0
    for _ in range(bench.runs):
        service = Service(bench.folder, None, None)
        service.command("migrate")  # makes the cluster: once in a service's life, and not what this row asks
        imported.append(service.import_sensors(city))
        try:
            started.append(service.start())
            machine_now = machine.memory_mb(service.pid)
            server = EmbeddedPostgres(service.data_dir)
            url = server.start()
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    row = connection.execute("select count(*) from sensors").fetchone()
                    found += int(row[0]) if row else 0
                    running = Running(service, connection, url, server.pid or 0, service.broker_pid() or 0)
                    stream = city.packed(bench.file("all.npz"), 0, size // PACK)
                    with bench.publisher(service.mqtt_port, stream) as publisher:
                        publisher.go()
                        publisher.result()
                    stored += _wait_for(running, stream.readings)
            finally:
                server.stop()
            settled.append(machine_now[0])
            highest.append(machine.memory_mb(service.pid)[1])
        finally:
            service.stop()
    expected = size * bench.runs
    return [
        Figure(
            "sensors", f"`cimtwin import` of {size:,} sensors", "s", imported, SECONDS_GOAL, "at most",
            verified=found, expected=expected,
        ),
        Figure(
            "sensors", f"start to ready with {size:,} sensors", "s", started, SECONDS_GOAL, "at most",
            verified=found, expected=expected,
        ),
        Figure(
            "sensors", f"service's memory with {size:,} sensors, ready", "MB", settled, MEMORY_GOAL, "at most",
            verified=found, expected=expected,
        ),
        Figure(
            "sensors", "its highest, after a reading of each in one burst", "MB", highest, MEMORY_GOAL, "at most",
            verified=stored, expected=expected,
        ),
    ]  # fmt: skip


def _wait_for(running: Running, readings: int) -> int:
    def rows() -> int:
        row = running.connection.execute("select readings_stored from counters").fetchone()
        return int(row[0]) if row else 0

    until(lambda: rows() >= readings, f"{readings} readings", pause_s=0.05)
    verified = running.stored_rows(0)[0]
    if verified != readings:
        raise RowFailed(f"{verified} of {readings} readings are stored")
    return verified
