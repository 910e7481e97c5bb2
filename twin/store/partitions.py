"""Partitions by day of the time series on plain PostgreSQL: made ahead and as readings need them, dropped by retention.

With TimescaleDB the extension does both; `Partitions` then has nothing to make.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import Any, Final

import numpy as np
from psycopg import errors, sql

from twin.model import DAY, EPOCH, Ints, Micros
from twin.store.database import Connection
from twin.store.rows import moment

# table: its time column
TABLES: Final = {"readings": "observed_at", "waveform_blocks": "started_at"}


class Partitions:
    """Which day partitions there are; one thread's."""

    def __init__(self, is_timescale: bool) -> None:
        self.is_timescale = is_timescale
        self._days: dict[str, set[int]] = {table: set() for table in TABLES}

    def load(self, connection: Connection) -> None:
        """Learn from the database what exists."""
        if self.is_timescale:
            return
        for table in TABLES:
            rows = connection.execute(
                "select right(inhrelid::regclass::text, 8) from pg_inherits where inhparent = %s::regclass", (table,)
            ).fetchall()
            self._days[table] = {_day_number(str(name)) for (name,) in rows if str(name).isdigit()}

    def cover(self, connection: Connection, table: str, times: Ints) -> None:
        """Make the partitions that rows with these times (µs) need. To be called outside a transaction that writes:
        attaching commits on its own, and holds no lock that readers or the writer would wait for."""
        if self.is_timescale or not len(times):
            return
        low, high = int(times.min()) // DAY, int(times.max()) // DAY
        days = {low} if low == high else set(np.unique(times // DAY).tolist())
        for day in sorted(days - self._days[table]):
            self._make(connection, table, day)

    def cover_ahead(self, connection: Connection, now: Micros, days: int = 3) -> None:
        """Make today's partitions and those of the next `days` days."""
        ahead = np.arange(now // DAY, now // DAY + days + 1, dtype=np.int64) * DAY
        for table in TABLES:
            self.cover(connection, table, ahead)

    def _make(self, connection: Connection, table: str, day: int) -> None:
        first = EPOCH.date() + dt.timedelta(days=day)
        name = f"{table}_{first:%Y%m%d}"
        with connection.transaction():
            connection.execute(
                sql.SQL("create table if not exists {} (like {} including all)").format(
                    sql.Identifier(name), sql.Identifier(table)
                )
            )
            attached = connection.execute("select 1 from pg_inherits where inhrelid = %s::regclass", (name,)).fetchone()
            if attached is None:
                connection.execute(
                    sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
                        sql.Identifier(table),
                        sql.Identifier(name),
                        sql.Literal(f"{first} 00:00:00+00"),
                        sql.Literal(f"{first + dt.timedelta(days=1)} 00:00:00+00"),
                    )
                )
        self._days[table].add(day)

    def summarize(self, connection: Connection, first: Micros, last: Micros) -> None:
        """Let the index by commit know the readings of `first` .. `last`: what it does not know is looked through by
        whoever asks it for new ones. What is locked is left for the next time."""
        if self.is_timescale:
            return
        with contextlib.suppress(errors.LockNotAvailable), connection.transaction():
            connection.execute("set local lock_timeout = '200ms'")
            connection.execute(
                "select brin_summarize_new_values(c.oid) from pg_inherits h join pg_class p on p.oid = h.inhrelid"
                " join pg_index i on i.indrelid = p.oid join pg_class c on c.oid = i.indexrelid join pg_am m on"
                " m.oid = c.relam where h.inhparent = 'readings'::regclass and m.amname = 'brin'"
                " and right(p.relname, 8) between to_char(%s::timestamptz, 'YYYYMMDD')"
                " and to_char(%s::timestamptz, 'YYYYMMDD')",
                (moment(first), moment(last)),
            )

    def drop_before(self, connection: Connection, table: str, before: Micros) -> list[str]:
        """Drop whole days that ended before `before`; returns what went. What somebody holds, an import for instance,
        is left for the next time: whoever waits for a drop makes everybody else wait behind it."""
        if self.is_timescale:
            rows: list[tuple[Any, ...]] = []
            with contextlib.suppress(errors.LockNotAvailable), connection.transaction():
                connection.execute("set local lock_timeout = '200ms'")
                rows = connection.execute(
                    "select drop_chunks(%s::regclass, older_than => to_timestamp(%s))", (table, before / 1e6)
                ).fetchall()
            return [str(name) for (name,) in rows]
        dropped = []
        for day in sorted(self._days[table]):
            if (day + 1) * DAY > before:
                break
            name = f"{table}_{EPOCH.date() + dt.timedelta(days=day):%Y%m%d}"
            try:
                with connection.transaction():
                    connection.execute("set local lock_timeout = '200ms'")
                    connection.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(name)))
            except errors.LockNotAvailable:
                break
            self._days[table].discard(day)
            dropped.append(name)
        return dropped


def _day_number(digits: str) -> int:
    return (dt.date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) - EPOCH.date()).days
