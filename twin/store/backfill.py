"""Recorded readings into the database beside a running service, or without one: history, stored and not judged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy as np
import psycopg

from twin.catalog import Catalog
from twin.model import DAY, Ints, Readings, StoreUnavailable
from twin.store.database import POSTGRES_EPOCH, Connection, packed_readings
from twin.store.migrate import flavour_of
from twin.store.partitions import Partitions

T = TypeVar("T")

IMPORT_LOCK: Final = 0x63696D76  # imports take turns
AHEAD: Final = 1_000_000_000  # commits that a service may make during one import; 11 days of a thousand a second
TRIES: Final = 60  # of what a deadlock with the service's commit ended; one takes a second

_COLUMNS: Final = "(sensor_id, observed_at, received_at, value, quality, batch)"
_SPAN: Final = np.dtype([
    ("fields", ">i2"), ("n1", ">i4"), ("batch", ">i8"), ("n2", ">i4"), ("sensor", ">i4"),
    ("n3", ">i4"), ("first", ">i8"), ("n4", ">i4"), ("last", ">i8"),
])  # fmt: skip


def in_storing_order(readings: Readings) -> Readings:
    """Without repetitions, of which the first is kept; by day, sensor and time: partition by partition, and the unique
    index costs least where keys ascend."""
    if not len(readings):
        return readings
    sensor, at = readings.sensor, readings.observed_at
    day = at // DAY
    first_day = int(day.min())
    days, sensors = int(day.max()) - first_day, int(sensor.max())
    if days.bit_length() + sensors.bit_length() + DAY.bit_length() > 63:
        order = np.lexsort((at, sensor, day))
        is_same = (sensor[order[1:]] == sensor[order[:-1]]) & (at[order[1:]] == at[order[:-1]])
    else:
        # All in one number, which is sorted several times as fast as three.
        key = (((day - first_day) << sensors.bit_length()) | sensor) << DAY.bit_length()
        key |= at - day * DAY
        if (key[1:] > key[:-1]).all():
            return readings
        order = np.argsort(key)
        is_same = key[order[1:]] == key[order[:-1]]
        if is_same.any():
            order = np.argsort(key, kind="stable")
    if is_same.any():
        order = order[np.concatenate([[True], ~is_same])]
    return readings.take(order)


class Backfill:
    """One file's readings on their way into the database: `with Backfill(…) as b: b.add(…); b.finish()`. One
    transaction: a service sees all of them with its next commit, or none.

    The rows carry a commit number far ahead of the service's, which becomes the service's number when all is there: so
    the service commits on meanwhile, its numbers still ascend in the order of commits, and every row is written once.
    Rows go straight into the table; where a reading is there already, those of that `add` go by a staging table, and
    the first value wins. Only a service that stores one of the very same readings waits until the import has ended.

    Bound: two arrays by sensor index, and what `add` is given.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        """`name` is kept with the import; `connection` commits by itself."""
        self._connection = connection
        self._name = name
        self._partitions = Partitions(flavour_of(connection) == "timescale")
        self._stack = ExitStack()
        self._low: Ints = np.empty(0, np.int64)
        self._high: Ints = np.empty(0, np.int64)
        self._meets_repeats = False
        self.batch = 0
        self.received = self.stored = 0

    def __enter__(self) -> Self:
        connection, stack = self._connection, self._stack
        with stack:
            if not self._partitions.is_timescale:
                # Partitions are made by commits of their own, or the service would wait to make some.
                info = connection.info
                dsn = psycopg.conninfo.make_conninfo(**info.get_parameters() | {"password": info.password})
                self._other = stack.enter_context(psycopg.connect(dsn, autocommit=True))
                self._partitions.load(self._other)
            connection.execute("select pg_advisory_lock(%s)", (IMPORT_LOCK,))
            stack.callback(self._unlock)
            stack.enter_context(connection.transaction())
            if self._partitions.is_timescale:
                # Rows of a compressed chunk are looked at for repetitions; their number is the file's business.
                connection.execute("set local timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
            connection.execute("create temporary table incoming on commit drop as select * from readings with no data")
            row = connection.execute("select batch from service").fetchone()
            if row is None:
                raise StoreUnavailable("the database has no service row")
            self.batch = row[0] + AHEAD
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _unlock(self) -> None:
        if not self._connection.closed:
            self._connection.execute("select pg_advisory_unlock(%s)", (IMPORT_LOCK,))

    def add(self, readings: Readings, received: int | None = None) -> None:
        """Store these, in the order and without repetitions as from `in_storing_order`; `received`: how many there
        were before that."""
        self.received += len(readings) if received is None else received
        if not len(readings):
            return
        if not self._partitions.is_timescale:
            self._partitions.cover(self._other, "readings", readings.observed_at)
        stored = None if self._meets_repeats else self._again(lambda: self._copy(readings))
        if stored is None:
            stored = self._again(lambda: self._merge(readings))
        self._meets_repeats = stored < len(readings)
        self.stored += stored
        self._note(readings)

    def _copy(self, readings: Readings) -> int | None:
        """Straight into the table; None where something of it is there."""
        try:
            with self._connection.transaction():
                self._write("readings", readings)
        except psycopg.errors.UniqueViolation:
            return None
        return len(readings)

    def _merge(self, readings: Readings) -> int:
        with self._connection.transaction():
            self._connection.execute("truncate incoming")
            self._write("incoming", readings)
            return self._connection.execute(
                f"insert into readings {_COLUMNS} select sensor_id, observed_at, received_at, value, quality, batch"
                " from incoming on conflict do nothing".encode()
            ).rowcount

    def _write(self, table: str, readings: Readings) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"copy {table} {_COLUMNS} from stdin (format binary)".encode()) as copy,
        ):
            for piece in packed_readings(readings, self.batch):
                copy.write(piece)

    def _again(self, work: Callable[[], T]) -> T:
        """`work`, once more where it and a commit of the service, which tries again as well, waited for each other."""
        for _ in range(TRIES - 1):
            try:
                return work()
            except psycopg.errors.DeadlockDetected:
                continue
        return work()

    def _note(self, readings: Readings) -> None:
        size = int(readings.sensor.max()) + 1
        if size > len(self._low):
            grow = size - len(self._low)
            self._low = np.append(self._low, np.full(grow, np.iinfo(np.int64).max))
            self._high = np.append(self._high, np.full(grow, np.iinfo(np.int64).min))
        np.minimum.at(self._low, readings.sensor, readings.observed_at)
        np.maximum.at(self._high, readings.sensor, readings.observed_at)

    def finish(self) -> tuple[int, int]:
        """Make it one of the database's commits; `(stored, repeated)`. What comes after is nothing but the commit."""
        connection = self._connection
        connection.execute(
            "insert into imports (batch, name, readings) values (%s, %s, %s)", (self.batch, self._name, self.stored)
        )
        with (
            connection.cursor() as cursor,
            cursor.copy("copy import_spans (batch, sensor_id, first_at, last_at) from stdin (format binary)") as copy,
        ):
            copy.write(self._packed_spans())
        self._again(self._take_number)
        return self.stored, self.received - self.stored

    def _packed_spans(self) -> bytes:
        sensors = np.flatnonzero(self._high >= self._low)
        rows = np.empty(len(sensors), _SPAN)
        rows["fields"] = 4
        rows["n1"] = rows["n3"] = rows["n4"] = 8
        rows["n2"] = 4
        rows["batch"] = self.batch
        rows["sensor"] = sensors
        rows["first"] = self._low[sensors] - POSTGRES_EPOCH
        rows["last"] = self._high[sensors] - POSTGRES_EPOCH
        return b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff"

    def _take_number(self) -> None:
        with self._connection.transaction():
            row = self._connection.execute(
                "update service set batch = %(batch)s where batch < %(batch)s returning batch", {"batch": self.batch}
            ).fetchone()
            if row is None:
                raise StoreUnavailable("the service made too many commits meanwhile; import again")
            self._connection.execute(
                "update counters set readings_received = readings_received + %s,"
                " readings_stored = readings_stored + %s, readings_duplicate = readings_duplicate + %s",
                (self.received, self.stored, self.received - self.stored),
            )


def import_readings(connection: Connection, name: str, readings: Readings) -> tuple[int, int]:
    """Store what is not stored yet, first value wins, in one transaction; `(stored, repeated)`."""
    with Backfill(connection, name) as backfill:
        backfill.add(in_storing_order(readings), len(readings))
        return backfill.finish()


def unknown_sensors(catalog: Catalog, ids: list[str]) -> list[str]:
    """Those of `ids` (device/property) that are no sensor."""
    return [i for i in ids if i.partition("/")[2] not in catalog.devices.get(i.partition("/")[0], {})]
