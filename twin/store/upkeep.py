"""What the database needs from time to time, on a connection and a thread of its own: checkpoints, aggregates,
partitions made ahead, retention."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psycopg

from twin.model import DAY, Ints, Micros, Readings
from twin.state import SensorState
from twin.store.database import (
    POSTGRES_EPOCH,
    READING_COLUMNS,
    Connection,
    read_packed,
    read_readings,
    translated,
)
from twin.store.migrate import flavour_of
from twin.store.partitions import Partitions
from twin.store.rows import moment

# Aggregates by name, and their bucket's width as an SQL interval.
LEVELS: Final = (("readings_1m", "1 minute"), ("readings_1h", "1 hour"), ("readings_1d", "1 day"))
AGGREGATE_LOCK: Final = 0x63696D76
NICENESS: Final = 10  # of the server's process for all this, that commits do not wait for a core
# The quarantine's bound [E]: beyond it the refusals that came last longest ago go. The counters keep counting them.
QUARANTINE_ROWS: Final = 100_000
QUARANTINE_BYTES: Final = 1 << 30
# What nobody waits for any more. Who was told of an alert that still stands has to hear its end, so that stays.
_OLD_DELIVERIES: Final = (
    "delete from deliveries d where changed_at < %s and state in ('sent', 'dead', 'lapsed')"
    " and not exists (select 1 from unnest(d.alerts) as a(id) join notify_watched w on w.alert = a.id)"
)
_ORIGIN: Final = "timestamptz '2000-01-01 00:00:00+00'"
# What was committed since the last refresh, by sensor and minute. The last value: of arrays the largest by its first
# number, which tells µs apart until the year 2100.
_FRESH: Final = (
    f"select sensor_id, date_bin('1 minute', observed_at, {_ORIGIN}) as bucket, min(value) as min, max(value) as max,"
    " sum(value) as sum, count(*) as count, (max(array[date_part('epoch', observed_at), value]))[2] as last,"
    " max(observed_at) as last_at from readings where batch > %(after)s and batch <= %(batch)s"
    " and observed_at >= %(first)s and observed_at < %(last)s and value is not null and quality < 16 group by 1, 2"
)

_SPAN: Final = np.dtype([("sensor", ">i4"), ("low", ">i8"), ("high", ">i8")])
_NEWEST: Final = np.dtype(
    [("sensor", ">i4"), ("observed_at", ">i8"), ("received_at", ">i8"), ("value", ">f8"), ("quality", ">i2"),
     ("heard_at", ">i8")]
)  # fmt: skip


def _added(name: str, width: str) -> str:
    """The part of a query that adds `fresh` to the aggregate `name`."""
    return (
        f"{name}_added as (insert into {name} as a select sensor_id, date_bin('{width}', bucket, {_ORIGIN}), min(min),"
        " max(max), sum(sum), sum(count), (max(array[date_part('epoch', last_at), last]))[2], max(last_at) from fresh"
        " group by 1, 2 on conflict (sensor_id, bucket) do update set min = least(a.min, excluded.min),"
        " max = greatest(a.max, excluded.max), sum = a.sum + excluded.sum, count = a.count + excluded.count,"
        " last = case when excluded.last_at > a.last_at then excluded.last else a.last end,"
        " last_at = greatest(a.last_at, excluded.last_at))"
    )


class Upkeep:
    """One thread's. Methods raise `StoreUnavailable`; after that `close` and the next call connects again."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.partitions = Partitions(False)
        self.is_timescale = False
        self._connection: Connection | None = None
        self._written = SensorState.of(0)

    @property
    def connection(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(
                self.dsn, autocommit=True, application_name="cimtwin upkeep", connect_timeout=10
            )
            connection.execute("set timezone to 'UTC'")
            _stand_back(connection)
            self.is_timescale = flavour_of(connection) == "timescale"
            self.partitions = Partitions(self.is_timescale)
            self._connection = connection
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Checkpoints

    def save_checkpoint(
        self,
        batch: int,
        taken_at: Micros,
        observed_at: Ints,
        engine: bytes,
        state: SensorState,
        keep: Sequence[int],
        changed: dict[int, Ints],
    ) -> None:
        """Keep what the detectors remembered after `batch` and the newest readings then; of the earlier snapshots only
        `keep`, those in `changed` with these newest event times."""
        with translated(), self.connection.transaction():
            self._save_latest(state)
            self.connection.execute(
                "insert into checkpoints (batch, taken_at, observed_at, engine) values (%s, %s, %s, %s)"
                " on conflict (batch) do update set taken_at = excluded.taken_at, observed_at = excluded.observed_at,"
                " engine = excluded.engine",
                (batch, moment(taken_at), _packed(observed_at), engine),
            )
            for earlier, times in changed.items():
                self.connection.execute(
                    "update checkpoints set observed_at = %s where batch = %s", (_packed(times), earlier)
                )
            self.connection.execute("delete from checkpoints where not batch = any(%s)", ([*keep, batch],))
            self.connection.execute("update service set tail_from = null, tail_to = null where batch = %s", (batch,))
            self.connection.execute("delete from import_spans where batch <= %s", (batch,))
        self._written = state

    def _save_latest(self, state: SensorState) -> None:
        heard, observed = np.zeros(len(state), np.int64), np.zeros(len(state), np.int64)
        heard[: len(self._written)] = self._written.heard_at
        observed[: len(self._written)] = self._written.observed_at
        is_changed = (state.heard_at != heard) | (state.observed_at != observed)
        changed = np.flatnonzero(is_changed & (state.observed_at > 0))
        if not len(changed):
            return
        connection = self.connection
        connection.execute("create temporary table if not exists news (like latest) on commit delete rows")
        with connection.cursor() as cursor, cursor.copy("copy news from stdin (format binary)") as copy:
            copy.set_types(["int4", "timestamptz", "timestamptz", "float8", "int2", "timestamptz"])
            for row in zip(
                changed.tolist(),
                state.observed_at[changed].tolist(),
                state.received_at[changed].tolist(),
                state.value[changed].tolist(),
                state.quality[changed].tolist(),
                state.heard_at[changed].tolist(),
                strict=True,
            ):
                value = None if row[3] != row[3] else row[3]
                copy.write_row((row[0], moment(row[1]), moment(row[2]), value, row[4], moment(row[5])))
        connection.execute(
            "insert into latest select * from news order by sensor_id on conflict (sensor_id) do update set"
            " observed_at = excluded.observed_at, received_at = excluded.received_at, value = excluded.value,"
            " quality = excluded.quality, heard_at = excluded.heard_at"
        )

    def load_checkpoints(self) -> list[tuple[int, Micros, Ints, bytes]]:
        """`(batch, taken_at, observed_at, engine)` of the snapshots kept, oldest first."""
        with translated():
            found = self.connection.execute(
                "select batch, (extract(epoch from taken_at) * 1e6)::bigint, observed_at, engine"
                " from checkpoints order by batch"
            ).fetchall()
        return [
            (batch, at, np.frombuffer(zlib.decompress(observed), "<i8").astype(np.int64), bytes(engine))
            for batch, at, observed, engine in found
        ]

    def load_latest(self, size: int) -> SensorState:
        """The newest readings as the last checkpoint left them."""
        state = SensorState.of(size)
        with translated():
            found = read_packed(
                self.connection,
                "int4send(sensor_id) || timestamptz_send(observed_at) || timestamptz_send(received_at)"
                " || float8send(coalesce(value, 'NaN')) || int2send(quality) || timestamptz_send(heard_at)",
                _NEWEST,
                "latest",
            )
        sensor = found["sensor"]
        state.value[sensor] = found["value"]
        state.quality[sensor] = found["quality"]
        for name in ("observed_at", "received_at", "heard_at"):
            getattr(state, name)[sensor] = found[name].astype(np.int64) + POSTGRES_EPOCH
        self._written = state.copy()
        return state

    def newest_of_all(self, size: int) -> Readings:
        """The newest stored reading of every sensor, by the index: for a database that has no checkpoint."""
        query = (
            f"select {READING_COLUMNS} from sensors s join lateral"
            " (select * from readings r where r.sensor_id = s.id order by observed_at desc limit 1) r on true"
        )
        with translated():
            return read_readings(self.connection, query, {}) if size else Readings.empty()

    # Aggregates

    def changed_since_refresh(self) -> Readings:
        """The first and last reading time of each sensor that commits after the last refresh changed."""
        with translated():
            spans = read_packed(
                self.connection,
                "int4send(sensor_id) || timestamptz_send(low) || timestamptz_send(high)",
                _SPAN,
                "(select sensor_id, min(observed_at) as low, max(observed_at) as high from readings"
                " where batch > (select aggregated_batch from service) group by 1) r",
            )
        sensor = np.tile(spans["sensor"].astype(np.int32), 2)
        at = np.concatenate([spans["low"], spans["high"]]).astype(np.int64) + POSTGRES_EPOCH
        return Readings(sensor, at, at, np.zeros(len(at)), np.zeros(len(at), np.uint8))

    def refresh_aggregates(self, batch: int, low: Micros, high: Micros, keep_from: Micros | None) -> None:
        """Bring all aggregates up to commit `batch`, whose changes and those since the last refresh lie within
        `low` .. `high`. Nothing before `keep_from` is refreshed: its readings may be gone, its aggregates are kept."""
        if keep_from is not None:
            low = max(low, keep_from)
        first, last = low // DAY * DAY, (high // DAY + 1) * DAY
        with translated():
            connection = self.connection
            if self.is_timescale:
                for name, _ in LEVELS if first < last else ():
                    connection.execute(
                        "call refresh_continuous_aggregate(%s::regclass, %s::timestamptz, %s::timestamptz)",
                        (name, moment(first), moment(last)),
                    )
                connection.execute("update service set aggregated_batch = greatest(aggregated_batch, %s)", (batch,))
                return
            with connection.transaction():
                self._aggregate(batch, first, last)
            self.partitions.summarize(connection, first, last)

    def _aggregate(self, batch: int, first: Micros, last: Micros) -> None:
        """On plain PostgreSQL: add what the commits since the last refresh brought to the buckets that it falls into.
        Readings never change, and are dropped by whole days only: what was added once stays right."""
        connection = self.connection
        # A service that has not noticed yet that another took its place: nothing may be added twice.
        connection.execute("select pg_advisory_xact_lock(%s)", (AGGREGATE_LOCK,))
        row = connection.execute("select aggregated_batch from service").fetchone()
        if row is None or row[0] >= batch:
            return
        # By index, hashing, in one process: millions of readings must leave the machine to those who wait for commits.
        connection.execute("set local enable_seqscan = off")
        connection.execute("set local enable_sort = off")
        connection.execute("set local max_parallel_workers_per_gather = 0")
        connection.execute("set local work_mem = '64MB'")
        connection.execute(
            f"with fresh as materialized ({_FRESH}), {', '.join(_added(*level) for level in LEVELS)}"
            " select count(*) from fresh".encode(),
            {"after": row[0], "batch": batch, "first": moment(first), "last": moment(last)},
        )
        # Last: commits of the pipeline wait for whoever holds this row.
        connection.execute("update service set aggregated_batch = %s", (batch,))

    # Partitions and retention

    def look_after_partitions(self, now: Micros, keep: dict[str, float]) -> list[str]:
        """Make the coming days' partitions and drop what is older than `keep` says (table: days, 0 = for ever; tables
        `readings`, `waveform_blocks`, `readings_1m`, `deliveries`); returns what was dropped."""
        dropped: list[str] = []
        with translated():
            connection = self.connection
            if not self.is_timescale:
                self.partitions.load(connection)
                self.partitions.cover_ahead(connection, now)
            for table, days in keep.items():
                if not days:
                    continue
                before = now - round(days * DAY)
                if table == "deliveries":
                    gone = connection.execute(_OLD_DELIVERIES.encode(), (moment(before),)).rowcount
                    dropped += [f"{gone} rows of deliveries"] if gone else []
                elif table == "readings_1m" and not self.is_timescale:
                    gone = connection.execute("delete from readings_1m where bucket < %s", (moment(before),)).rowcount
                    dropped += [f"{gone} rows of readings_1m"] if gone else []
                else:
                    dropped += self.partitions.drop_before(connection, table, before)
            connection.execute("delete from idempotency where at < now() - interval '7 days'")
            gone = connection.execute(
                "delete from quarantine where id in (select id from (select id,"
                " row_number() over newest as place, sum(length(payload)) over newest as bytes from quarantine"
                " window newest as (order by last_at desc, id desc)) q where place > %s or bytes > %s)",
                (QUARANTINE_ROWS, QUARANTINE_BYTES),
            ).rowcount
            if gone:
                dropped.append(f"{gone} rows of quarantine, the oldest")
        return dropped


def _stand_back(connection: Connection) -> None:
    """Give what the server does for this connection a low priority, where it runs on this machine and we may."""
    pid = connection.info.backend_pid
    row = connection.execute("select inet_client_port()").fetchone()
    with contextlib.suppress(OSError):
        # PostgreSQL's processes say whom they serve; a number alone could be anybody's, where the server is elsewhere.
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if row is not None and row[0] and title.startswith(b"postgres:") and b"(%d)" % row[0] in title:
            os.setpriority(os.PRIO_PROCESS, pid, NICENESS)


def _packed(times: Ints) -> bytes:
    return zlib.compress(times.astype("<i8").tobytes(), 1)
