"""HTTP beside a long history: how soon questions of the operations centre are answered."""

from __future__ import annotations

import http.client
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import orjson
import psycopg

from bench.city import BEGIN_MS, City
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, Service
from twin.model import MINUTE, iso
from twin.store.migrate import flavour_of
from twin.store.partitions import Partitions

SENSORS: Final = 20_000
READINGS: Final = 50_000_000  # a reading a minute and sensor
IN_BOX: Final = 10_000
PAGE: Final = 1000
ALERTS: Final = 1000
ASKED: Final = 200
BUCKETS_GOAL: Final = 10
LATEST_GOAL: Final = 50
ALERTS_GOAL: Final = 30
BEGIN: Final = BEGIN_MS * 1000  # the history ends here
WORKERS: Final = 2

_ROWS: Final = (
    "select s.id as sensor_id, timestamptz 'epoch' + (%(begin)s + step * 60000000::bigint + s.n %% 50000 * 1000)"
    " * interval '1 us' as at, step,"
    " round((s.base + s.swing * ((s.n * 31 + step * 17) %% 97) / 97) * 10000) / 10000 as value"
    " from generate_series(%(first)s::bigint, %(last)s::bigint) as step, bench_sensors s"
)
# A minute after the other, as they come to a service; the aggregates five minutes at a time, as it refreshes them.
_READINGS: Final = (
    "insert into readings (sensor_id, observed_at, received_at, value, quality, batch)"
    f" select sensor_id, at, at + interval '1 s', value, 0, %(batch)s from ({_ROWS}) r order by step, sensor_id"
)
_MINUTES: Final = (
    "insert into readings_1m (sensor_id, bucket, min, max, sum, count, last, last_at)"
    f" select sensor_id, date_trunc('minute', at), value, value, value, 1, value, at from ({_ROWS}) r"
    " order by step / 5, sensor_id, step"
)
_HOURS: Final = (
    "insert into readings_1h (sensor_id, bucket, min, max, sum, count, last, last_at)"
    " select sensor_id, date_trunc('hour', at), min(value), max(value), sum(value), count(*),"
    f" (array_agg(value order by at desc))[1], max(at) from ({_ROWS}) r group by 1, 2 order by 2, 1"
)
_DAYS: Final = (
    "insert into readings_1d (sensor_id, bucket, min, max, sum, count, last, last_at)"
    " select sensor_id, date_trunc('day', bucket), min(min), max(max), sum(sum), sum(count),"
    " (array_agg(last order by last_at desc))[1], max(last_at) from readings_1h group by 1, 2 order by 2, 1"
)


def asked(bench: Bench) -> list[Figure]:
    """Each question alone, one after the other over one connection, of sensors chosen by chance."""
    city = City(SENSORS)
    steps = bench.scaled(READINGS) // city.size
    if steps < 1:
        raise RowFailed(f"at this scale there is not a reading of each of the {city.size:,} sensors")
    history = min(steps, 24 * 60)
    with bench.service(city) as running:
        took = _fill(bench, running, city, steps)
        _restart(running.service)
        found = running.connection.execute("select count(*) from readings").fetchone()
        stored = int(found[0]) if found else 0
        city.open_covers({n: n for n in city.covers[:ALERTS]})
        running.take(bench, city.singles(bench.file("now.npz"), 0, city.size))
        open_alerts = _count(running, "select count(*) from alerts where state <> 'cleared'")
        if open_alerts != min(ALERTS, len(city.covers)):
            raise RowFailed(f"{open_alerts} alerts are open")
        asking = _Asking(running.service.http)
        chance = random.Random(1)
        end = BEGIN
        start = BEGIN - history * MINUTE
        buckets, bare, raw = [], [], []
        cpu = [running.cpu()]
        for _ in range(ASKED):
            n = chance.randrange(city.size)
            name = "{}/{}".format(*city.name(n))
            span = f"sensor={name}&from={iso(start)}&to={iso(end)}&limit={PAGE}"
            seconds, answer = asking.get(f"/readings?{span}&bucket=5m")
            buckets.append(seconds)
            _check_buckets(answer["items"], city, n, steps, history)
        cpu.append(running.cpu())
        for _ in range(ASKED):
            n = chance.randrange(city.size)
            bare.append(_bare_buckets(running, city, n, start, end))
            name = "{}/{}".format(*city.name(n))
            span = f"sensor={name}&from={iso(start)}&to={iso(end)}&limit={PAGE}"
            raw.append(asking.get(f"/readings?{span}")[0])
        cpu.append(running.cpu())
        box = f"117,31.7,118,{31.7999 + IN_BOX // 1000 * 0.0002:.4f}"  # City.csv puts 1,000 into a row
        latest = [asking.pages(f"/latest?bbox={box}&limit={PAGE}", lambda items: _check_latest(items, city))
                  for _ in range(max(5, ASKED // 10))]  # fmt: skip
        cpu.append(running.cpu())
        alerts = []
        for _ in range(ASKED):
            seconds, answer = asking.get(f"/alerts?state=open&limit={ALERTS}")
            alerts.append(seconds)
            if len({item["id"] for item in answer["items"]}) != open_alerts:
                raise RowFailed(f"{len(answer['items'])} of {open_alerts} open alerts were answered")
        cpu.append(running.cpu())
    expected = steps * city.size
    about = f"with {expected:,} readings"

    def figure(what: str, seconds: list[float], goal: float, phase: int, **more: Any) -> Figure:
        details = {"p99, ms": float(np.percentile(seconds, 99)) * 1000} | more.pop("details", {})
        details |= {
            f"CPU, {name}, ms": (cpu[phase + 1][name] - cpu[phase][name]) / len(seconds) * 1000
            for name in ("service", "PostgreSQL")
        }
        return Figure(
            "http", what, "ms", [statistics.median(seconds) * 1000], goal, "at most", verified=stored,
            expected=expected, details=details, **more,
        )  # fmt: skip

    return [
        figure(
            f"one sensor, {history / 60:g} h in 5 min buckets, p50, {about}", buckets, BUCKETS_GOAL, 0,
            ratio=statistics.median(buckets) / statistics.median(bare), ratio_to="the same grouped by bare SQL",
            details={
                "bare SQL, ms": statistics.median(bare) * 1000,
                f"the first {PAGE} readings of it as they are, p50, ms": statistics.median(raw) * 1000,
                **took,
            },
        ),
        figure(f"latest of {IN_BOX:,} sensors in a box, {IN_BOX // PAGE} pages, p50", latest, LATEST_GOAL, 2),
        figure(f"open alerts, {open_alerts:,} of them, p50", alerts, ALERTS_GOAL, 3),
    ]  # fmt: skip


class _Asking:
    """One connection that stays."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def get(self, path: str) -> tuple[float, dict[str, Any]]:
        """Seconds to the last byte of the answer, and what it says."""
        begun = time.perf_counter()
        self.connection.request("GET", f"/api/v1{path}")
        answer = self.connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - begun
        if answer.status != 200:
            raise RowFailed(f"{path}: {answer.status} {body[:200].decode(errors='replace')}")
        said: dict[str, Any] = orjson.loads(body)
        return took, said

    def pages(self, path: str, check: Callable[[list[Any]], None]) -> float:
        """Seconds for all pages of a list."""
        items: list[Any] = []
        took, answer = self.get(path)
        while True:
            items += answer["items"]
            if answer["next"] is None:
                break
            seconds, answer = self.get(f"{path}&after={answer['next']}")
            took += seconds
        check(items)
        return took


def _fill(bench: Bench, running: Running, city: City, steps: int) -> dict[str, float]:
    """Make the history in the database, and say how long that took."""
    connection = running.connection
    if flavour_of(connection) != "plain":
        raise RowFailed("the history is made for plain PostgreSQL")
    running.service.stop()  # it would refresh the aggregates of what it did not see come
    begun = time.monotonic()
    begin = BEGIN - steps * MINUTE
    partitions = Partitions(False)
    partitions.load(connection)
    partitions.cover(connection, "readings", np.arange(begin, BEGIN, MINUTE, dtype=np.int64))
    connection.execute("create unlogged table bench_sensors (id integer, n bigint, base float8, swing float8)")
    ids = dict(connection.execute("select device || '/' || property, id from sensors").fetchall())
    with connection.cursor() as cursor, cursor.copy("copy bench_sensors from stdin") as copy:
        for n in range(city.size):
            copy.write_row((ids["{}/{}".format(*city.name(n))], n, float(city.base[n]), float(city.swing[n])))
    row = connection.execute("update service set batch = batch + 1, aggregated_batch = batch + 1 returning batch")
    batch = (row.fetchone() or [0])[0]
    _in_parallel(running.url, _READINGS, begin, steps, batch)
    counted = {"readings": steps * city.size, "batch": batch}
    connection.execute(
        "insert into imports (batch, name, readings) values (%(batch)s, 'history', %(readings)s)", counted
    )
    connection.execute(
        "update counters set readings_received = readings_received + %(readings)s,"
        " readings_stored = readings_stored + %(readings)s",
        counted,
    )
    readings_s = time.monotonic() - begun
    _in_parallel(running.url, _MINUTES, begin, steps, batch)
    _in_parallel(running.url, _HOURS, begin, steps, batch)
    connection.execute(_DAYS.encode())
    connection.execute("drop table bench_sensors")
    connection.execute("vacuum analyze")
    size = _count(running, "select pg_database_size(current_database())")
    days = "(select sum(pg_total_relation_size(inhrelid)) from pg_inherits where inhparent = 'readings'::regclass)"
    minutes = "pg_total_relation_size('readings_1m')"
    each = [_count(running, f"select round({bytes_} / {steps * city.size})") for bytes_ in (days, minutes)]
    return {
        "bytes a reading with its index": each[0],
        "bytes a minute of a sensor, aggregated": each[1],
        "making the readings took, s": readings_s,
        "their aggregates and all the rest, s": time.monotonic() - begun - readings_s,
        "database, GB": size / 1e9,
    }


def _in_parallel(url: str, statement: str, begin: int, steps: int, batch: int) -> None:
    """Run an insertion in as many connections as there are workers, each an hour of event time after the other."""
    hours = [(max(0, first), min(first + 60, steps)) for first in range(-(begin // MINUTE % 60), steps, 60)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("set work_mem to '256MB'")
                while hours and not failures:
                    first, end = hours.pop(0)
                    connection.execute(
                        statement.encode(), {"begin": begin, "first": first, "last": end - 1, "batch": batch}
                    )
        except BaseException as error:  # noqa: BLE001 - told by the one who waits
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _restart(service: Service) -> None:
    service.stop()
    service.start()


def _count(running: Running, query: str) -> int:
    row = running.connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _history(city: City, n: int, steps: int, history: int) -> np.ndarray:
    """The last `history` values of sensor `n`."""
    step = np.arange(steps - history, steps)
    return np.round(city.base[n] + city.swing[n] * ((n * 31 + step * 17) % 97) / 97, 4)


def _check_buckets(items: list[dict[str, Any]], city: City, n: int, steps: int, history: int) -> None:
    """Every bucket's extremes, mean, count and last value, from what was made."""
    value = _history(city, n, steps, history)
    minute = (BEGIN - history * MINUTE) // MINUTE + np.arange(history)
    edges = np.flatnonzero(np.diff(minute // 5, prepend=-1))
    want = zip(np.split(value, edges[1:]), minute[edges] // 5 * 5, strict=True)
    for item, (part, at) in zip(items, want, strict=True):
        got = item["min"], item["max"], item["avg"], item["last"]
        wanted = part.min(), part.max(), part.mean(), part[-1]
        if item["bucket"] != iso(int(at) * MINUTE) or item["count"] != len(part) or not np.allclose(got, wanted):
            raise RowFailed(f"a bucket of sensor {n} is {item}, not {wanted}")


def _check_latest(items: list[dict[str, Any]], city: City) -> None:
    got = {item["sensor"]: item["value"] for item in items}
    if len(got) != len(items) or len(got) != min(IN_BOX, city.size):
        raise RowFailed(f"{len(got)} sensors in the box, {len(items)} items")
    for n in range(0, len(got), 97):
        if got["{}/{}".format(*city.name(n))] != city.value(n):
            raise RowFailed(f"the latest value of sensor {n} is not what it sent last")


def _bare_buckets(running: Running, city: City, n: int, start: int, end: int) -> float:
    """Seconds that one statement needs for those buckets, over a connection at hand."""
    device, prop = city.name(n)
    begun = time.perf_counter()
    running.connection.execute(
        "select date_bin('5 min', bucket, 'epoch'), min(min), max(max), sum(sum) / sum(count), sum(count),"
        " (array_agg(last order by last_at desc))[1] from readings_1m"
        " where sensor_id = (select id from sensors where device = %s and property = %s)"
        " and bucket >= to_timestamp(%s) and bucket < to_timestamp(%s) group by 1 order by 1",
        (device, prop, start / 1e6, end / 1e6),
    ).fetchall()
    return time.perf_counter() - begun
