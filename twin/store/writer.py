"""The one writer: commits outcomes, each in one transaction, and answers what deciding a late reading needs."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from twin.model import (
    DAY,
    LATEST,
    Alert,
    AlertEvent,
    Counts,
    Indices,
    Ints,
    Micros,
    Outcome,
    Readings,
    StoreRefused,
    StoreUnavailable,
    WaveformBlock,
)
from twin.store import holds, rows
from twin.store.database import READING_COLUMNS, Connection, packed_readings, read_readings, translated
from twin.store.migrate import flavour_of
from twin.store.partitions import Partitions
from twin.store.waveforms import pack_waveforms

LOCK_S: Final = 3
SERVE_LOCK: Final = 0x63696D75  # one service on one database
QUARANTINE_BYTES: Final = 1 << 20  # of a message that is larger, quarantine keeps this much


class DatabaseInUse(Exception):  # noqa: N818
    """Another service writes to this database."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the database stands: the numbers of the service row."""

    instance: str
    epoch: str
    batch: int
    seq: int
    catalog_version: int
    rules_version: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit was given: its batch number, the events with their `seq`, and the versions now in force."""

    batch: int
    events: list[AlertEvent]
    catalog_version: int
    rules_version: int


class Writer:
    """A connection that holds the service's lock. Used by one thread.

    Methods raise `StoreUnavailable` (reconnect with `connect`, then try again) or `StoreRefused` (this content never).
    """

    def __init__(self, dsn: str, name: str = "") -> None:
        self.dsn = dsn
        # Told to others, and the mark by which this very object knows its own lost connections again.
        self.name = f"cimtwin serve {name} pid {os.getpid()}@{socket.gethostname()} {uuid.uuid4().hex[:6]}"[:63]
        self.is_timescale = False
        self.partitions = Partitions(False)
        self._connection: Connection | None = None
        self._token = ""

    def connect(self) -> Standing:
        """(Re)connect, take the service's lock, and tell where the database stands."""
        self.close()
        with translated():
            connection = psycopg.connect(
                self.dsn,
                autocommit=True,
                application_name=self.name,
                connect_timeout=10,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
            )
            try:
                self._lock(connection)
                connection.execute("set timezone to 'UTC'")
                # An import that stores the very same readings and waits for our commit, while we wait for its rows:
                # we give way, and try again.
                connection.execute(f"set lock_timeout to '{LOCK_S}s'")
                self.is_timescale = flavour_of(connection) == "timescale"
                self.partitions = Partitions(self.is_timescale)
                if not self.is_timescale:
                    self.partitions.load(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return self.standing()

    def _lock(self, connection: Connection) -> None:
        row = connection.execute("select pg_try_advisory_lock(%s)", (SERVE_LOCK,)).fetchone()
        if row and row[0]:
            return
        holder = connection.execute(
            "select coalesce(a.application_name, ''), l.pid"
            " from pg_locks l left join pg_stat_activity a on a.pid = l.pid"
            " where l.locktype = 'advisory' and l.objid::bigint = %s and l.granted and l.database ="
            " (select oid from pg_database where datname = current_database())",
            (SERVE_LOCK,),
        ).fetchone()
        if holder is None:
            raise StoreUnavailable("the lock was given back just now")
        name = str(holder[0])
        if name == self.name:
            # A connection of ours that the server has not yet noticed to be dead.
            connection.execute("select pg_terminate_backend(%s)", (holder[1],))
            raise StoreUnavailable("an earlier connection of this service still holds the lock")
        raise DatabaseInUse(f"this database is served by {name} / 该数据库已由 {name} 提供服务")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable("not connected to the database")
        return self._connection

    def standing(self) -> Standing:
        with translated():
            row = self.connection.execute(
                "select instance, epoch, batch, seq, catalog_version, rules_version, messages_received,"
                " readings_received, readings_stored, readings_duplicate, readings_quarantined from service, counters"
            ).fetchone()
        if row is None:
            raise StoreUnavailable("the database has no service row")
        instance, epoch, batch, seq, catalog_version, rules_version, *counts = row
        return Standing(instance, epoch, batch, seq, catalog_version, rules_version, Counts(*counts))

    # Deciding

    def known(self, sensor: Indices, observed_at: Ints, table: str = "readings") -> NDArray[np.bool_]:
        """Which of these (sensor, time) keys are stored already."""
        time_column = "started_at" if table == "waveform_blocks" else "observed_at"
        mask = np.zeros(len(sensor), bool)
        days = observed_at // DAY
        with translated():
            # Day by day, so that each question looks into one partition only. The limit keeps it a walk along the
            # index, key by key, whatever the planner thinks of the table.
            for day in np.unique(days).tolist():
                rows_of_day = np.flatnonzero(days == day)
                found = self.connection.execute(
                    "select k.n from unnest(%s::int[], %s::int8[]) with ordinality as k(sensor_id, at, n)"
                    f" cross join lateral (select from {table} r where r.sensor_id = k.sensor_id"
                    f" and r.{time_column} = timestamptz 'epoch' + k.at * interval '1 microsecond'"
                    f" and r.{time_column} >= %s and r.{time_column} < %s limit 1) r".encode(),
                    (
                        sensor[rows_of_day].tolist(),
                        observed_at[rows_of_day].tolist(),
                        rows.moment(day * DAY),
                        rows.moment((day + 1) * DAY),
                    ),
                    binary=True,
                    prepare=False,
                ).fetchall()
                mask[rows_of_day[[n - 1 for (n,) in found]]] = True
        return mask

    def history(self, sensor: Indices, after: Ints) -> Readings:
        """The judged readings of these sensors newer than `after` (one time a sensor), by sensor and time; imported
        history was never judged, and is left out."""
        query = (
            f"select {READING_COLUMNS} from unnest(%(sensor)s::int[], %(after)s::timestamptz[]) as w(s, after)"
            " join lateral (select * from readings r where r.sensor_id = w.s and r.observed_at > w.after"
            " and r.observed_at > %(first)s) r on true"
            " where not exists (select from imports i where i.batch = r.batch) order by 1, 2"
        )
        first = rows.moment(int(after.min()) if len(after) else 0)
        params = {"sensor": sensor.tolist(), "after": rows.times(after), "first": first}
        with translated():
            return read_readings(self.connection, query, params)

    def said(self, sensor: Indices, after: Ints) -> list[AlertEvent]:
        """The judgements told of these sensors for times after `after`, in the order of those times, without those
        taken back since."""
        with translated():
            found = self.connection.execute(
                f"select {rows.EVENT_COLUMNS} from unnest(%s::int[], %s::timestamptz[]) as w(s, after)"
                " join alert_events e on e.sensor_id = w.s and e.observed_at > w.after"
                " where e.transition in ('raised', 'escalated', 'deescalated', 'cleared')"
                " and not exists (select from alert_events w where w.alert_id = e.alert_id and w.replaces = e.id)"
                " order by e.observed_at, e.seq".encode(),
                (sensor.tolist(), rows.times(after)),
            ).fetchall()
        return [rows.event(row) for row in found]

    def course(self, ids: Sequence[str], rules: Sequence[str] = (), after: Micros = 0) -> list[AlertEvent]:
        """The judgements told of these alerts, and of those that these rules raised from `after` on, in the order of
        their event times, without those taken back since."""
        with translated():
            found = self.connection.execute(
                f"select {rows.EVENT_COLUMNS} from (select unnest(%s::text[]) as id union"
                " select id from alerts where rule = any(%s) and raised_at >= %s) a join alert_events e on"
                " e.alert_id = a.id where e.transition in ('raised', 'escalated', 'deescalated', 'cleared')"
                " and not exists (select from alert_events w where w.alert_id = e.alert_id and w.replaces = e.id)"
                " order by e.observed_at, e.seq".encode(),
                (list(ids), list(rules), rows.moment(min(max(after, 0), LATEST))),
            ).fetchall()
        return [rows.event(row) for row in found]

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        with translated():
            found = self.connection.execute(
                f"select {rows.ALERT_COLUMNS} from alerts a where id = any(%s)".encode(), (list(ids),)
            ).fetchall()
        return [rows.alert(row) for row in found]

    def open_alerts(self) -> list[Alert]:
        with translated():
            found = self.connection.execute(
                f"select {rows.ALERT_COLUMNS} from alerts a where state <> 'cleared' order by raised_at, id".encode()
            ).fetchall()
        return [rows.alert(row) for row in found]

    def answered(self, key: str) -> tuple[str, int, bytes] | None:
        """`(route, status, body)` of an action done before under this Idempotency-Key."""
        with translated():
            row = self.connection.execute(
                "select route, status, answer::text from idempotency where key = %s", (key,)
            ).fetchone()
        return None if row is None else (row[0], row[1], row[2].encode())

    def batch_readings(self, first: int, last: int) -> Readings:
        """Readings of batches `first` to `last`, by sensor and time, without those of imports."""
        query = (
            f"select {READING_COLUMNS} from readings where batch between %(first)s and %(last)s"
            " and observed_at between %(low)s and %(high)s"
            " and not exists (select from imports i where i.batch = readings.batch) order by 1, 2"
        )
        with translated():
            span = self.connection.execute("select tail_from, tail_to from service").fetchone()
            if span is None or span[0] is None:
                return Readings.empty()
            params = {"first": first, "last": last, "low": span[0], "high": span[1]}
            return read_readings(self.connection, query, params)

    def imported(self, first: int, last: int) -> Readings:
        """The first and the last reading of each sensor that imports of batches `first` to `last` touched, as far as
        no checkpoint has taken them in; found by the index, however many came between."""
        query = (
            f"select {READING_COLUMNS} from (select distinct sensor_id as s, at from import_spans,"
            " lateral (values (first_at), (last_at)) t(at) where batch between %(first)s and %(last)s) e"
            " join lateral (select * from readings where sensor_id = e.s and observed_at = e.at limit 1) r on true"
        )
        with translated():
            return read_readings(self.connection, query, {"first": first, "last": last})

    # Committing

    def commit(self, outcome: Outcome, on_sent: Callable[[], object] | None = None) -> Committed:
        """Write it all in one transaction; `on_sent` is called once its readings are on their way. Safe to call again
        with the same outcome after `StoreUnavailable` and `connect`: if the first try did take place, it is recognised
        and not repeated."""
        if self._token:
            done = self._recognise(outcome)
            if done is not None:
                self._token = ""
                return done
        self._token = uuid.uuid4().hex
        try:
            with translated():
                try:
                    done = self._commit(outcome, on_sent)
                except psycopg.errors.CheckViolation:
                    # A partition that we knew was dropped by retention since.
                    self.partitions.load(self.connection)
                    done = self._commit(outcome, on_sent)
        except StoreRefused:
            self._token = ""
            raise
        self._token = ""
        return done

    def _recognise(self, outcome: Outcome) -> Committed | None:
        with translated():
            row = self.connection.execute(
                "select batch, seq, catalog_version, rules_version from service where token = %s", (self._token,)
            ).fetchone()
        if row is None:
            return None
        batch, seq, catalog_version, rules_version = row
        return Committed(batch, _numbered(outcome.events, seq), catalog_version, rules_version)

    def _commit(self, outcome: Outcome, on_sent: Callable[[], object] | None) -> Committed:
        connection = self.connection
        readings, counts = outcome.readings, outcome.counts
        self.partitions.cover(connection, "readings", readings.observed_at)
        if outcome.waveforms:
            starts = np.array([block.started_at for block in outcome.waveforms], np.int64)
            self.partitions.cover(connection, "waveform_blocks", starts)
        low, high = _span(readings)
        in_order = readings.in_order()
        with connection.transaction():
            row = connection.execute(
                "with c as (update counters set messages_received = messages_received + %s,"
                " readings_received = readings_received + %s, readings_stored = readings_stored + %s,"
                " readings_duplicate = readings_duplicate + %s, readings_quarantined = readings_quarantined + %s)"
                " update service set batch = batch + 1, seq = seq + %s, token = %s,"
                " tail_from = least(tail_from, %s::timestamptz), tail_to = greatest(tail_to, %s::timestamptz)"
                " returning batch, seq, catalog_version, rules_version",
                (
                    counts.messages,
                    counts.received,
                    counts.stored,
                    counts.duplicate,
                    counts.quarantined,
                    len(outcome.events),
                    self._token,
                    low,
                    high,
                ),
            ).fetchone()
            if row is None:
                raise StoreUnavailable("the database has no service row")
            batch, seq, catalog_version, rules_version = row
            events = _numbered(outcome.events, seq)
            with connection.cursor() as cursor:
                if len(readings):
                    with cursor.copy(
                        "copy readings (sensor_id, observed_at, received_at, value, quality, batch)"
                        " from stdin (format binary)"
                    ) as copy:
                        for piece in packed_readings(in_order, batch):
                            copy.write(piece)
                        if on_sent is not None:
                            on_sent()
                if outcome.waveforms:
                    _write_waveforms(cursor, outcome.waveforms, batch)
                if outcome.alerts:
                    rows.upsert_alerts(cursor, outcome.alerts)
                if events:
                    with cursor.copy(rows.COPY_EVENTS) as copy:
                        for event in events:
                            copy.write_row(rows.event_values(event))
                if outcome.holds:
                    holds.put(cursor, outcome.holds)
                if outcome.redriven:
                    cursor.execute("delete from quarantine where id = any(%s)", (outcome.redriven,))
                if outcome.refusals:  # after the deletion: what is refused again has the same key
                    rows.upsert_refusals(cursor, outcome.refusals, QUARANTINE_BYTES)
                if outcome.statuses:
                    cursor.executemany(
                        "update devices set is_online = %s, status_at = %s where id = %s",
                        [(s.is_online, rows.moment(s.at), s.device) for s in outcome.statuses],
                    )
                if outcome.answer:
                    key, route, status, body = outcome.answer
                    cursor.execute(
                        "insert into idempotency (key, route, status, answer) values (%s, %s, %s, %s::text::jsonb)",
                        (key, route, status, body.decode()),
                    )
        return Committed(batch, events, catalog_version, rules_version)

    def transact(self, work: Callable[[Connection], int]) -> int:
        """Run `work` in one transaction and return what it returns."""
        with translated(), self.connection.transaction():
            return work(self.connection)


def _span(readings: Readings) -> tuple[object, object]:
    if not len(readings):
        return None, None
    return rows.moment(int(readings.observed_at.min())), rows.moment(int(readings.observed_at.max()))


def _numbered(events: list[AlertEvent], last: int) -> list[AlertEvent]:
    first = last - len(events) + 1
    return [replace(event, seq=first + n) for n, event in enumerate(events)]


def _write_waveforms(cursor: psycopg.Cursor[Any], blocks: list[WaveformBlock], batch: int) -> None:
    with cursor.copy(
        "copy waveform_blocks (sensor_id, started_at, received_at, rate_hz, quality, batch, decimals, samples)"
        " from stdin (format binary)"
    ) as copy:
        copy.write(pack_waveforms(blocks, batch))
