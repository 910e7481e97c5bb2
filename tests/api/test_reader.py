"""What the database answers: buckets exact whatever state the aggregates are in, lists that page without loss."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import psycopg
import pytest

from twin.model import DAY, HOUR, MINUTE, SECOND, Readings, StoreUnavailable, parse_time
from twin.store.database import packed_readings
from twin.store.migrate import flavour_of, migrate
from twin.store.partitions import Partitions
from twin.store.reader import AlertQuery, Bucket, Part, Reader, plan
from twin.store.rows import moment
from twin.store.upkeep import Upkeep

T0 = parse_time("2026-06-30T00:00:00Z")


def test_a_range_is_split_into_whole_clean_buckets_and_the_rest() -> None:
    h = HOUR
    cases: list[tuple[int, int, tuple[int, int] | None, list[tuple[bool, int, int]]]] = [
        (0, 4 * h, None, [(False, 0, 4 * h)]),
        (1, 4 * h + 1, None, [(True, 1, h), (False, h, 4 * h), (True, 4 * h, 4 * h + 1)]),
        (1, h - 1, None, [(True, 1, h - 1)]),
        (1, h + 1, None, [(True, 1, h + 1)]),
        (0, 4 * h, (h, h), [(False, 0, h), (True, h, 2 * h), (False, 2 * h, 4 * h)]),
        (0, 4 * h, (h + 5, 3 * h - 1), [(False, 0, h), (True, h, 3 * h), (False, 3 * h, 4 * h)]),
        (0, 4 * h, (-5 * h, 9 * h), [(True, 0, 4 * h)]),
        (0, 4 * h, (3 * h, 9 * h), [(False, 0, 3 * h), (True, 3 * h, 4 * h)]),
        (0, 4 * h, (9 * h, 9 * h), [(False, 0, 4 * h)]),
        (0, 4 * h, (-9 * h, -8 * h), [(False, 0, 4 * h)]),
        (5, 4 * h, (0, 10), [(True, 5, h), (False, h, 4 * h)]),
        (5, 5, None, []),
    ]
    for start, end, dirty, expected in cases:
        assert plan(start, end, h, dirty) == [Part(*part) for part in expected], (start, end, dirty)


@pytest.fixture
def dsn(database_url: str) -> str:
    migrate(database_url)
    return database_url


def ask(dsn: str, question: Callable[[Reader], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        reader = Reader(dsn)
        try:
            return await question(reader)
        finally:
            await reader.close()

    return asyncio.run(main())


def fill(dsn: str, times: Any, values: Any, quality: Any = 0, sensor: int = 3, received: int | None = None) -> None:
    times = np.asarray(times, np.int64)
    n = len(times)
    received_at = times + 1000 if received is None else np.full(n, received)
    readings = Readings(
        np.full(n, sensor, np.int32), times, received_at, np.asarray(values, float), np.full(n, quality, np.uint8)
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set timezone to 'UTC'")
        partitions = Partitions(flavour_of(connection) == "timescale")
        partitions.cover(connection, "readings", times)
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "copy readings (sensor_id, observed_at, received_at, value, quality, batch) from stdin (format binary)"
            ) as copy,
        ):
            copy.write(b"".join(packed_readings(readings.in_order(), 1)))


def refresh(dsn: str) -> None:
    """Bring the aggregates up to date by the service's own upkeep."""
    upkeep = Upkeep(dsn)
    assert not upkeep.connection.closed  # connects
    try:
        upkeep.refresh_aggregates(10, T0 - 10 * DAY, T0 + 10 * DAY, None)
    finally:
        upkeep.close()


def expected(times: list[int], values: list[float], start: int, end: int, width: int) -> list[Bucket]:
    groups: dict[int, list[tuple[int, float]]] = {}
    for at, value in zip(times, values, strict=True):
        if start <= at < end and not math.isnan(value):
            groups.setdefault(at // width * width, []).append((at, value))
    result = []
    for at, rows in sorted(groups.items()):
        v = [value for _, value in rows]
        result.append(Bucket(at, min(v), max(v), sum(v) / len(v), len(v), max(rows)[1]))
    return result


def same(found: list[Bucket], wanted: list[Bucket]) -> bool:
    return len(found) == len(wanted) and all(
        (f.at, f.min, f.max, f.count, f.last) == (w.at, w.min, w.max, w.count, w.last)
        and math.isclose(f.avg, w.avg, rel_tol=1e-9, abs_tol=1e-9)
        for f, w in zip(found, wanted, strict=True)
    )


def test_buckets_are_exact_with_fresh_stale_and_no_aggregates(dsn: str) -> None:
    random = np.random.default_rng(5)
    times = np.unique(T0 + random.integers(0, 3 * DAY, 4000))
    values = random.normal(size=len(times)).round(3)
    values[::50] = np.nan
    fill(dsn, times, values)
    fill(dsn, [T0 + 1, T0 + 2], [999.0, -999.0], quality=32)  # bad: in no bucket
    fill(dsn, [T0 + 5 * HOUR], [777.0], sensor=4)
    refresh(dsn)
    # After the refresh: late readings in the middle and new ones at the end, dirty but not aggregated.
    late = np.unique(T0 + DAY + random.integers(0, 2 * HOUR, 50))
    late = late[~np.isin(late, times)]
    fresh = T0 + 3 * DAY + np.arange(0, 2 * HOUR, 17 * SECOND)
    fill(dsn, late, np.full(len(late), 55.5))
    fill(dsn, fresh, np.full(len(fresh), -3.5))
    dirty = (int(late.min()), int(fresh.max()))
    all_times = [*times.tolist(), *late.tolist(), *fresh.tolist()]
    all_values = [*values.tolist(), *[55.5] * len(late), *[-3.5] * len(fresh)]
    ranges = [
        (T0, T0 + 4 * DAY),
        (T0 + 12345, T0 + 3 * DAY + 54321),
        (T0 + 90 * MINUTE + 1, T0 + 91 * MINUTE),
        (T0 + 5 * HOUR, T0 + 6 * HOUR),
        (T0 - 20 * DAY, T0 + HOUR // 2),
        (T0 + DAY + HOUR, T0 + DAY + HOUR + 7 * MINUTE),
    ]

    async def question(reader: Reader) -> None:
        for start, end in ranges:
            for width in (MINUTE, 5 * MINUTE, HOUR, DAY):
                wanted = expected(all_times, all_values, start, end, width)
                for limit in (7, 100_000):
                    found = await reader.buckets(3, start, end, width, limit, dirty)
                    assert same(found, wanted[:limit]), (start - T0, end - T0, width, limit)
                pages: list[Bucket] = []
                at = start
                while at < end:
                    page = await reader.buckets(3, at, end, width, 301, dirty)
                    pages += page[:300]
                    if len(page) <= 300:
                        break
                    at = page[300].at
                assert same(pages, wanted)

    ask(dsn, question)


def test_buckets_as_known_at_a_time_leave_out_what_came_later(dsn: str) -> None:
    fill(dsn, [T0, T0 + MINUTE], [1.0, 2.0], received=T0 + HOUR)
    fill(dsn, [T0 + 2 * MINUTE], [30.0], received=T0 + DAY)
    refresh(dsn)
    found = ask(dsn, lambda r: r.buckets(3, T0, T0 + DAY, HOUR, 10, None, T0 + DAY))
    assert [(b.count, b.max) for b in found] == [(2, 2.0)]
    raw = ask(dsn, lambda r: r.readings(3, T0, T0 + DAY, 10, T0 + DAY))
    assert raw.value.tolist() == [1.0, 2.0]


def test_raw_readings_are_half_open_ascending_and_keep_nulls(dsn: str) -> None:
    fill(dsn, [T0 + n for n in (5, 1, 3, 2, 4)], [5.0, 1.0, float("nan"), 2.0, 4.0])
    found = ask(dsn, lambda r: r.readings(3, T0 + 2, T0 + 5, 10))
    assert (found.observed_at - T0).tolist() == [2, 3, 4]
    assert np.isnan(found.value[1])
    assert len(ask(dsn, lambda r: r.readings(3, T0, T0 + 9, 2))) == 2
    assert len(ask(dsn, lambda r: r.readings(9, T0, T0 + 9, 2))) == 0


def test_the_csv_of_a_range_has_every_row_in_order(dsn: str) -> None:
    times = T0 + np.arange(20_000) * 1500
    fill(dsn, times, np.arange(20_000) / 8)
    fill(dsn, [T0 + 1], [float("nan")], quality=64)

    async def question(reader: Reader) -> bytes:
        return b"".join([p async for p in reader.readings_csv(3, "井,盖 1", 'a"b', T0, T0 + DAY)])

    lines = ask(dsn, question).decode().splitlines()
    assert len(lines) == 20_001
    assert lines[0] == '"井,盖 1","a""b",2026-06-30T00:00:00Z,0,good'
    assert lines[1] == '"井,盖 1","a""b",2026-06-30T00:00:00.000001Z,,bad'
    assert lines[2] == '"井,盖 1","a""b",2026-06-30T00:00:00.0015Z,0.125,good'.replace(".0015Z", ".001500Z")
    assert lines[3].split(",")[-3:] == ["2026-06-30T00:00:00.003Z", "0.25", "good"]


def put_alerts(dsn: str, alerts: list[tuple[str, str, int, int | None, int]]) -> None:
    """(id, state, raised, cleared, level)"""
    with psycopg.connect(dsn, autocommit=True) as c:
        for id_, state, raised, cleared, level in alerts:
            c.execute(
                "insert into alerts (id, rule, rule_version, asset, tenant, domain, level, peak_level, state, since,"
                " raised_at, cleared_at, message_zh, message_en, instruction_zh, instruction_en)"
                " values (%s, 'r', 1, 'underpass', 'default', 'drainage', %s, %s, %s, %s, %s, %s, '', '', '', '')",
                (id_, level, level, state, moment(raised), moment(raised), moment(cleared)),
            )


def test_alerts_are_those_open_within_the_range(dsn: str) -> None:
    h = HOUR
    put_alerts(
        dsn,
        [
            ("before", "cleared", T0 - 3 * h, T0, 1),
            ("into", "cleared", T0 - 2 * h, T0 + 1, 2),
            ("within", "cleared", T0 + h, T0 + 2 * h, 3),
            ("instant", "cleared", T0, T0, 3),
            ("open", "active_unacknowledged", T0 - 5 * h, None, 4),
            ("unseen", "cleared_unacknowledged", T0 - 9 * h, T0 - 8 * h, 4),
            ("after", "active_acknowledged", T0 + 4 * h, None, 1),
        ],
    )

    def ids(query: AlertQuery) -> list[str]:
        return [a.id for a in ask(dsn, lambda r: r.alerts(query, 100))]

    assert ids(AlertQuery(T0, T0 + 4 * h)) == ["within", "instant", "into", "open", "unseen"]
    assert ids(AlertQuery(states=("open",))) == ["after", "open", "unseen"]
    assert ids(AlertQuery(states=("cleared",), levels=(3,))) == ["within", "instant"]
    assert ids(AlertQuery(states=("open", "cleared"), domains=("gas",))) == []
    assert ids(AlertQuery(assets=("underpass",), levels=(1,))) == ["after", "before"]
    assert ids(AlertQuery(sensors=(3,))) == []


def test_pages_of_alerts_lose_and_repeat_nothing_while_new_ones_come(dsn: str) -> None:
    put_alerts(dsn, [(f"a{n:02d}", "cleared", T0 + n // 3, T0 + n, 1) for n in range(30)])
    seen: list[str] = []
    after: tuple[int, str] | None = None
    for turn in range(10):
        page = ask(dsn, lambda r, a=after: r.alerts(AlertQuery(), 7, a))
        if not page:
            break
        seen += [alert.id for alert in page]
        after = (page[-1].raised_at, page[-1].id)
        put_alerts(dsn, [(f"new{turn}", "cleared", T0 + DAY + turn, T0 + 2 * DAY, 1)])
    assert seen == [f"a{n:02d}" for n in sorted(range(30), key=lambda n: (n // 3, f"a{n:02d}"), reverse=True)]


def test_a_page_of_quarantine_is_bounded_in_bytes(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as c:
        for n in range(20):
            c.execute(
                "insert into quarantine (key, topic, payload, size, is_truncated, reason, detail, positions,"
                " deliveries, readings, first_at, last_at)"
                " values (%s, 't', %s, 1000000, false, 'malformed', '', '{-1}', 1, 1, now(), now())",
                (bytes([n]), bytes(1_000_000)),
            )
    found: list[int] = []
    before = None
    while True:
        page, has_more = ask(dsn, lambda r, b=before: r.quarantine(100, b))
        assert 1 <= len(page) <= 8
        found += [row.id for row in page]
        before = found[-1]
        if not has_more:
            break
    assert found == sorted(found, reverse=True)
    assert len(found) == 20
    assert ask(dsn, lambda r: r.quarantine(100, None, "bad-time")) == ([], False)


def test_a_database_that_is_away_is_said_at_once_and_found_again(dsn: str) -> None:
    async def question(reader: Reader) -> None:
        assert await reader.alerts(AlertQuery(), 1) == []
        with psycopg.connect(dsn, autocommit=True) as admin:  # as after a restart: the idle connection is dead
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cimtwin read'"
                " and datname = current_database()"
            )
        assert await reader.alerts(AlertQuery(), 1) == []
        good, reader.dsn = reader.dsn, "postgresql://127.0.0.1:1/nothing"
        await reader.close()
        with pytest.raises(StoreUnavailable):
            await reader.alerts(AlertQuery(), 1)
        reader.dsn = good
        found = await asyncio.gather(*[reader.alerts(AlertQuery(), 1) for _ in range(20)])
        assert found == [[]] * 20
        # A question given up half-way costs its connection only.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader._rows("select pg_sleep(5)"), 0.1)
        assert await reader.alerts(AlertQuery(), 1) == []

    ask(dsn, question)


def test_the_reader_cannot_write(dsn: str) -> None:
    async def question(reader: Reader) -> None:
        with pytest.raises(StoreUnavailable, match="read-only"):
            await reader._rows("delete from sensors returning id")

    ask(dsn, question)
