"""How far the followers of alert events got."""

from __future__ import annotations

import psycopg

from twin.model import AlertEvent
from twin.store import rows
from twin.store.database import Connection


def connect(dsn: str) -> Connection:
    """A connection for one follower. Raises psycopg's errors."""
    connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="cimtwin follower")
    connection.execute("set timezone to 'UTC'")
    return connection


def begin(connection: Connection, name: str) -> None:
    """Make a follower known, who starts behind the last event told; one of another epoch (a backup was restored) goes
    back to where the events end, if it was further."""
    connection.execute(
        "insert into followers (name, epoch, seq) select %s, epoch, seq from service"
        " on conflict (name) do update set epoch = excluded.epoch, seq = least(followers.seq, excluded.seq)",
        (name,),
    )


def next_events(connection: Connection, name: str, limit: int) -> list[AlertEvent]:
    """The events after those that `name` is done with, in order; the follower's row is locked to the transaction's
    end."""
    row = connection.execute("select seq from followers where name = %s for update", (name,)).fetchone()
    if row is None:
        return []
    found = connection.execute(
        f"select {rows.EVENT_COLUMNS} from alert_events e where seq > %s order by seq limit %s".encode(),
        (row[0], limit),
    ).fetchall()
    return [rows.event(found_row) for found_row in found]


def done(connection: Connection, name: str, seq: int) -> None:
    """`name` is done with the events up to `seq`."""
    connection.execute("update followers set seq = %s where name = %s", (seq, name))
