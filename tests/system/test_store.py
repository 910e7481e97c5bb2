"""The store on a real database, plain or TimescaleDB: migrations, commits, lost answers, aggregates, retention."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from twin.catalog import Catalog
from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Alert,
    AlertState,
    Counts,
    InvalidSensors,
    Outcome,
    Quality,
    Readings,
    Refused,
    Sensor,
    StoreRefused,
    StoreUnavailable,
    WaveformBlock,
)
from twin.store.backfill import AHEAD, import_readings
from twin.store.catalog import refresh, upsert_sensors
from twin.store.migrate import migrate, migrations
from twin.store.rows import MANY_ALERTS, moment
from twin.store.upkeep import Upkeep
from twin.store.waveforms import expanded
from twin.store.writer import DatabaseInUse, Writer
from twin.units import load_kinds

pytestmark = pytest.mark.system

KINDS = load_kinds()
NOON = 1_790_000_000 * SECOND // DAY * DAY + 12 * HOUR


def sensor(n: int, **more: object) -> Sensor:
    return Sensor(f"d{n}", "level", "drainage.level", "m", **more)  # type: ignore[arg-type]


def readings(rows: list[tuple[int, int, float]], quality: int = 0) -> Readings:
    """(sensor, event time, value) as columns."""
    s, t, v = (np.array(column) for column in zip(*rows, strict=True))
    return Readings(
        s.astype(np.int32), t.astype(np.int64), t.astype(np.int64) + SECOND, v.astype(float),
        np.full(len(rows), quality, np.uint8),
    )  # fmt: skip


def outcome(stored: Readings) -> Outcome:
    return Outcome(stored, Counts(len(stored), len(stored), len(stored)))


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    migrate(database_url)
    writer = Writer(database_url, "test")
    writer.connect()
    writer.transact(lambda c: upsert_sensors(c, [sensor(n) for n in range(10)], KINDS)[0])
    yield writer
    writer.close()


def test_migrations_run_once_however_many_start_them_together(database_url: str) -> None:
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda: done.append(migrate(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(names) for names in done) == [0, 0, 0, len(migrations("plain"))]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("update migrations set checksum = 'x' where name = '0001_core.sql'")
        with pytest.raises(Refused, match="differs"):
            migrate(database_url)
        connection.execute("delete from migrations")
        connection.execute("insert into migrations values ('9999_future.plain.sql', 'y')")
    with pytest.raises(Refused, match="older"):
        migrate(database_url)


def test_what_is_committed_is_what_is_read_back(writer: Writer) -> None:
    some = readings([(2, NOON, 1.5), (1, NOON, np.nan), (1, NOON - 3 * DAY, 2.5), (1, NOON + 7, 0.1)])
    committed = writer.commit(outcome(some))
    assert committed.batch == 1
    back = writer.history(np.array([1, 2], np.int32), np.array([NOON - 4 * DAY, NOON - 1], np.int64))
    assert back.sensor.tolist() == [1, 1, 1, 2]
    assert back.observed_at.tolist() == [NOON - 3 * DAY, NOON, NOON + 7, NOON]
    np.testing.assert_array_equal(back.value, [2.5, np.nan, 0.1, 1.5])
    assert back.received_at.tolist() == [t + SECOND for t in back.observed_at.tolist()]
    known = writer.known(np.array([1, 1, 2], np.int32), np.array([NOON, NOON + 1, NOON], np.int64))
    assert known.tolist() == [True, False, True]
    with pytest.raises(StoreRefused):
        writer.commit(outcome(readings([(5, NOON, 1), (2, NOON, 9)])))
    assert writer.standing().counts.stored == 4
    with pytest.raises(DatabaseInUse, match="test"):
        Writer(writer.dsn, "another").connect()


def test_waveform_blocks_are_read_back_as_they_were_and_take_two_bytes_a_sample_where_that_suffices(
    writer: Writer,
) -> None:
    decimal, fine = np.round(np.sin(np.arange(250)) / 30, 4), np.sin(np.arange(250))
    given = [decimal, fine, [0.0, -0.5], [1e30, 0.25], -decimal, [32767, -32767]]
    blocks = [
        WaveformBlock(n, NOON + n, NOON + SECOND, 50.0 + n, np.asarray(samples, np.float32), quality=n % 2)
        for n, samples in enumerate(given)
    ]
    writer.commit(Outcome(Readings.empty(), Counts(6, 6, 6, 0, 0), blocks))
    found = writer.connection.execute(
        "select sensor_id, started_at, received_at, rate_hz, quality, batch, decimals, samples from waveform_blocks"
        " order by sensor_id"
    ).fetchall()
    assert [row[:6] for row in found] == [
        (b.sensor, moment(b.started_at), moment(b.received_at), b.rate_hz, b.quality, 1) for b in blocks
    ]
    assert [len(row[7]) / len(b.samples) for row, b in zip(found, blocks, strict=True)] == [2, 4, 2, 4, 2, 2]
    for (*_, decimals, samples), block in zip(found, blocks, strict=True):
        np.testing.assert_array_equal(expanded(samples, decimals), block.samples)
    known = writer.known(np.array([1, 2], np.int32), np.array([NOON + 1, NOON + 1], np.int64), "waveform_blocks")
    assert known.tolist() == [True, False]


def test_a_commit_whose_answer_was_lost_is_recognised_and_not_repeated(writer: Writer) -> None:
    """The connection dies right after the server committed: as seen from here, it is not known whether it did."""
    some = outcome(readings([(1, NOON, 1.0)]))
    done = writer._commit  # the real work
    writer._commit = lambda *of: (done(*of), _lose(writer))[1]  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(StoreUnavailable):
        writer.commit(some)
    writer._commit = done  # type: ignore[method-assign]
    writer.connect()
    assert writer.commit(some).batch == 1
    assert writer.standing().counts == Counts(1, 1, 1, 0, 0)
    writer.commit(outcome(readings([(1, NOON + 1, 1.0)])))
    # And one that never reached the server is done anew.
    with psycopg.connect(writer.dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> 0")
    again = outcome(readings([(1, NOON + 2, 1.0)]))
    with pytest.raises(StoreUnavailable):
        writer.commit(again)
    writer.connect()
    assert writer.commit(again).batch == 3
    assert writer.standing().counts.stored == 3


def test_many_alerts_in_one_commit_stand_as_few_do_and_change_as_few_do(writer: Writer) -> None:
    def alert(n: int, state: AlertState, cleared_at: int | None = None) -> Alert:
        return Alert(
            f"{n:040x}", "rule\t\\N", 1, f"d{n % 10}/level", n % 10, None, "default", "drainage", 3, 3, state, NOON,
            NOON + n, 1.5, None, 1.0, cleared_at, ("shelved", 'a "b", {c}') if n % 2 else (), 117.2, None, "", "积水\n",
            "ponding", "", "",
        )  # fmt: skip

    def put(alerts: list[Alert]) -> None:
        writer.commit(Outcome(Readings.empty(), Counts(), alerts=alerts))

    few, many = MANY_ALERTS // 2, 3 * MANY_ALERTS
    raised = [alert(n, AlertState.ACTIVE_UNACKNOWLEDGED) for n in range(many)]
    put(raised[:few])
    put(raised)  # some of them once more
    assert sorted(writer.open_alerts(), key=lambda a: a.id) == raised
    cleared = [alert(n, AlertState.CLEARED_UNACKNOWLEDGED, NOON + HOUR) for n in range(many)]
    put(cleared[few:])
    put(cleared[:few])
    assert sorted(writer.open_alerts(), key=lambda a: a.id) == cleared


def _lose(writer: Writer) -> None:
    writer.connection.close()
    raise StoreUnavailable("the answer was lost")


def test_sensors_keep_their_index_and_what_would_change_stored_readings_is_refused(writer: Writer) -> None:
    writer.transact(lambda c: upsert_sensors(c, [sensor(20, min=0.0), sensor(3, max=4.0, tags=("井",))], KINDS)[0])
    catalog = Catalog(KINDS)
    writer.transact(lambda c: int(refresh(c, catalog)))
    assert [s.device for s in catalog.sensors] == [*(f"d{n}" for n in range(10)), "d20"]
    assert catalog.sensors[3].tags == ("井",)
    wrong = [Sensor("d3", "level", "drainage.flow", "m³/s"), Sensor("d4", "flow", "drainage.flow", "m³/s", "another")]
    with pytest.raises(InvalidSensors) as refused:
        writer.transact(lambda c: upsert_sensors(c, wrong, KINDS)[0])
    assert [p.field for p in refused.value.problems] == ["kind", "tenant"]
    assert writer.transact(lambda c: int(refresh(c, catalog))) == 0


def expected_buckets(rows: list[tuple[int, int, float]], width: int) -> dict[tuple[int, int], tuple[float, ...]]:
    groups: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for s, t, v in rows:
        if not np.isnan(v):
            groups.setdefault((s, t // width * width), []).append((t, v))
    return {
        key: (min(v for _, v in g), max(v for _, v in g), sum(v for _, v in g), len(g), max(g)[1])
        for key, g in groups.items()
    }


def test_aggregates_equal_the_readings_after_new_late_and_old_ones(writer: Writer) -> None:
    random = np.random.default_rng(1)
    upkeep = Upkeep(writer.dsn)
    rows: list[tuple[int, int, float]] = []
    taken: set[tuple[int, int]] = set()
    spans = [(NOON, 3 * HOUR), (NOON - 2 * DAY, DAY), (NOON - 40 * DAY, HOUR), (NOON, 3 * HOUR)]
    for begin, span in spans:
        fresh = [
            (int(random.integers(0, 4)), int(begin + random.integers(0, span // SECOND) * SECOND), float(v))
            for v in random.integers(0, 100, 300)
        ]
        fresh = [row for row in fresh if row[:2] not in taken and not taken.add(row[:2])]  # type: ignore[func-returns-value]
        fresh[0] = (*fresh[0][:2], float("nan"))
        batch = writer.commit(outcome(readings(fresh))).batch
        bad = [(9, begin + n * SECOND, 5.0) for n in range(3)]
        if begin != NOON or not rows:
            batch = writer.commit(outcome(readings(bad, Quality.TEST))).batch
        rows += fresh
        times = [t for _, t, _ in rows]
        for _ in range(2):  # the second time there is nothing to add
            upkeep.refresh_aggregates(batch, min(times), max(times), None)
        with psycopg.connect(writer.dsn) as connection:
            for name, width in (("readings_1m", MINUTE), ("readings_1h", HOUR), ("readings_1d", DAY)):
                got = connection.execute(
                    "select sensor_id, (extract(epoch from bucket) * 1e6)::bigint, min, max, sum, count, last"
                    f" from {name}".encode()
                ).fetchall()
                assert {row[:2]: tuple(float(x) for x in row[2:]) for row in got if row[5]} == {
                    key: tuple(map(float, value)) for key, value in expected_buckets(rows, width).items()
                }
    upkeep.close()


def test_upkeep_gives_way_to_commits_where_the_server_is_on_this_machine(writer: Writer) -> None:
    upkeep = Upkeep(writer.dsn)
    title = Path(f"/proc/{upkeep.connection.info.backend_pid}/cmdline")
    if not title.exists() or b"127.0.0.1(" not in title.read_bytes():
        pytest.skip("the server is elsewhere")
    own, commits = upkeep.connection.info.backend_pid, writer.connection.info.backend_pid
    assert os.getpriority(os.PRIO_PROCESS, own) > os.getpriority(os.PRIO_PROCESS, commits)
    upkeep.close()


def test_retention_drops_whole_days_and_makes_the_coming_ones(writer: Writer) -> None:
    upkeep = Upkeep(writer.dsn)
    old = [(1, NOON - n * DAY, 1.0) for n in range(12)]
    batch = writer.commit(outcome(readings(old))).batch
    upkeep.refresh_aggregates(batch, NOON - 12 * DAY, NOON, None)
    dropped = upkeep.look_after_partitions(NOON, {"readings": 5, "waveform_blocks": 0, "readings_1m": 0})
    assert len(dropped) == 6
    with psycopg.connect(writer.dsn) as connection:
        assert connection.execute("select count(*) from readings").fetchone() == (6,)
        assert connection.execute("select count(*) from readings_1d where count > 0").fetchone() == (12,)
    # A reading older than what is kept is stored all the same, in a partition made for it.
    writer.connect()
    late = writer.commit(outcome(readings([(2, NOON - 11 * DAY, 3.0)]))).batch
    upkeep.refresh_aggregates(late, NOON - 11 * DAY, NOON, NOON - 4 * DAY)
    with psycopg.connect(writer.dsn) as connection:
        assert connection.execute("select count(*) from readings_1d where count > 0").fetchone() == (12,)
    upkeep.close()


def test_retention_waits_for_nobody(writer: Writer) -> None:
    upkeep = Upkeep(writer.dsn)
    writer.commit(outcome(readings([(1, NOON - n * DAY, 1.0) for n in range(12)])))
    days = {"readings": 5.0, "waveform_blocks": 0.0, "readings_1m": 0.0}
    with psycopg.connect(writer.dsn) as holder:
        holder.execute("lock table readings in row exclusive mode")  # as an import does
        held = upkeep.look_after_partitions(NOON, days)
        holder.rollback()
    assert held == [] or upkeep.is_timescale
    assert len(held + upkeep.look_after_partitions(NOON, days)) == 6
    upkeep.close()


def test_an_import_beside_the_writer_is_stored_once_and_seen_by_it(writer: Writer) -> None:
    writer.commit(outcome(readings([(1, NOON, 1.0)])))
    history = readings([(1, NOON, 9.0), (1, NOON - 400 * DAY, 2.0), (2, NOON, 3.0), (2, NOON, 4.0)])
    with psycopg.connect(writer.dsn, autocommit=True) as connection:
        assert import_readings(connection, "历史.csv", history) == (2, 2)
        assert import_readings(connection, "历史.csv", history) == (0, 4)
    standing = writer.standing()
    assert standing.batch > 2 * AHEAD
    assert standing.counts == Counts(1, 9, 3, 6, 0)
    assert len(writer.batch_readings(2, standing.batch)) == 0
    ends = writer.imported(2, standing.batch).in_order()
    assert ends.value.tolist() == [2.0, 1.0, 3.0]  # of sensor 1 the last one was there
    assert len(writer.history(np.array([1, 2], np.int32), np.array([0, 0], np.int64))) == 1
