"""Ten minutes and more of steady load, with all upkeep: whether anything grows."""

from __future__ import annotations

import os
import statistics
import threading
from typing import Any, Final

from bench import machine
from bench.city import City
from bench.report import Figure
from bench.services import PATIENCE_S, Bench, RowFailed, Running, child, until

SENSORS: Final = 10_000
SHARE: Final = 0.6  # of the top rate
TOP: Final = 200_000  # messages, three times, to find it
LOOK_S: Final = 1.0
MEMORY_GOAL: Final = 1.1
LATENCY_GOAL: Final = 2.0
LAG_GOAL: Final = 1.0
# Sensors, and single messages a second at the busiest: a small city, one of reference, a large one in a storm.
CITIES: Final = ((5_000, 50), (20_000, 1_000), (100_000, 5_000))
CITY_S: Final = 20


class Watch(threading.Thread):
    """Looks at the service's memory and lag, and the machine's load, once a second."""

    def __init__(self, running: Running) -> None:
        super().__init__(daemon=True)
        self.running = running
        self.memory: list[float] = []
        self.lag: list[float] = []
        self.load: list[float] = []
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(LOOK_S):
            self.memory.append(machine.memory_mb(self.running.service.pid)[0])
            self.load.append(os.getloadavg()[0])
            self.lag.append(float(self.running.service.stats()["lag_s"]))

    def end(self) -> None:
        self._end.set()
        self.join(60)


def long(bench: Bench) -> list[Figure]:
    """One run, however many are asked for: minutes of single readings at 60 % of what the same service took just
    before, timed by the clock, so that partitions, aggregates and checkpoints have what they have in real life."""
    city = City(SENSORS)
    seconds = bench.minutes * 60
    with bench.service(city) as running:
        running.take(bench, city.singles(bench.file("warm-up.npz"), 0, city.size))
        top = []
        for number in range(3):
            stream = city.singles(bench.file("top.npz"), city.size + number * TOP, TOP)
            top.append(TOP / running.take(bench, stream).seconds)
        rate = round(SHARE * statistics.median(top) / 100) * 100
        before, cpu = running.standing(), running.cpu()
        with child(
            "bench.steady", str(running.service.mqtt_port), str(city.size), str(rate), str(seconds)
        ) as publisher:
            publisher.go()
            watch = Watch(running)
            sent = publisher.result()
            watch.end()
        used = running.cpu()
        count = round(rate * seconds)
        # Where others took the cores meanwhile, messages wait in the broker: all must be stored nevertheless.
        running.wait_until_stored(before.stored + count, max(PATIENCE_S, seconds))
        lag_s = running.standing().at - (sent["begun"] + seconds)
        until(lambda: running.service.stats()["lag_s"] == 0, "the lag to be nothing", 30)
        stored, batches = running.stored_rows(before.batch)
        minutes = _percentiles(running, before.batch, sent["begun"])
        refreshed: Any = running.connection.execute("select aggregated_batch, batch from service").fetchone()
        aggregated = max(0, refreshed[0] - before.batch)
        if seconds >= 360 and not aggregated:
            raise RowFailed("the aggregates were not refreshed meanwhile")
    p99 = [float(row[2]) * 1000 for row in minutes]
    later = [float(row[2]) * 1000 for row in minutes[1:]] or p99
    quarter = max(1, len(watch.memory) // 4)
    first, last = max(watch.memory[:quarter]), max(watch.memory[-quarter:])
    about = f"{rate:,} messages/s for {bench.minutes:g} min"

    def figure(what: str, value: float, unit: str, goal: float, **details: Any) -> Figure:
        return Figure(
            "long", what, unit, [value], goal, "at most", verified=stored, expected=count, details=details
        )  # fmt: skip

    words = ", ".join
    return [
        figure(
            f"memory, last quarter over first, {about}", last / first, "times", MEMORY_GOAL,
            **{"top rate before, messages/s": statistics.median(top),
               "highest in the first and last quarter, MB": f"{first:.0f} and {last:.0f}"},
        ),
        figure(
            "publish to committed, p99, median of the minutes after over the first minute",
            statistics.median(later) / p99[0], "times", LATENCY_GOAL,
            **{"worst minute over the first, times": max(later) / p99[0],
               "p99 by minute, ms": words(f"{value:.0f}" for value in p99),
               "p50 by minute, ms": words(f"{float(row[1]) * 1000:.0f}" for row in minutes),
               "the publisher was late by at most, s": sent["latest_s"]},
        ),
        figure(
            "from the last message being due to all committed", lag_s, "s", LAG_GOAL,
            **{"largest lag the service told of meanwhile, s": max(watch.lag),
               "readings a batch": stored / max(1, batches),
               "batches aggregated meanwhile": f"{aggregated:,} of {refreshed[1] - before.batch:,}",
               "load of the machine by minute": words(f"{load:.1f}" for load in watch.load[::60])}
            | {f"{name}, cores": (used[name] - cpu[name]) / seconds for name in used},
        ),
    ]  # fmt: skip


def cities(bench: Bench) -> list[Figure]:
    """What cities of three sizes ask of a machine when they are busiest."""
    figures = []
    for size, rate in CITIES:
        city = City(size)
        seconds = bench.scaled(CITY_S)
        cores, parts, stored = [], [], 0
        with bench.service(city) as running:
            running.take(bench, city.singles(bench.file("warm-up.npz"), 0, city.size))
            for _ in range(bench.runs):
                before, cpu = running.standing(), running.cpu()
                with child(
                    "bench.steady", str(running.service.mqtt_port), str(city.size), str(rate), str(seconds)
                ) as publisher:
                    publisher.go()
                    publisher.result()
                running.wait_until_stored(before.stored + rate * seconds)
                used = running.cpu()
                parts.append({name: (used[name] - cpu[name]) / seconds for name in used})
                cores.append(sum(parts[-1].values()))
                rows, batches = running.stored_rows(before.batch)
                stored += rows
            memory = machine.memory_mb(running.service.pid)[1]
        figures.append(
            Figure(
                "cities", f"CPU of {size:,} sensors, {rate:,} messages/s, all three", "cores", cores, verified=stored,
                expected=rate * seconds * bench.runs,
                details={f"{name}, cores": statistics.median(part[name] for part in parts) for name in parts[0]}
                | {"batches a second": batches / seconds, "the service's memory, highest, MB": memory},
            )
        )  # fmt: skip
    return figures


def _percentiles(running: Running, after_batch: int, begun: float) -> list[tuple[Any, ...]]:
    """By minute, its number and p50 and p99 of the seconds from when a reading was due to its commit, of the readings
    of every tenth sensor."""
    connection = running.connection
    connection.execute(
        "create temporary table moments as select batch, max(pg_xact_commit_timestamp(x)) as at from"
        " (select batch, xmin as x from readings where batch > %s and sensor_id %% 10 = 0 group by 1, 2) g group by 1",
        (after_batch,),
    )
    return connection.execute(
        "select floor(extract(epoch from r.observed_at - to_timestamp(%s)) / 60)::int as minute,"
        " percentile_disc(0.5) within group (order by extract(epoch from m.at - r.observed_at)),"
        " percentile_disc(0.99) within group (order by extract(epoch from m.at - r.observed_at))"
        " from readings r join moments m on m.batch = r.batch"
        " where r.batch > %s and r.sensor_id %% 10 = 0 group by 1 order by 1",
        (begun - 0.001, after_batch),
    ).fetchall()
