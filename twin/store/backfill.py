"""Recorded readings into the database beside a running service, or without one: history, stored and not judged."""

from __future__ import annotations

import numpy as np

from twin.catalog import Catalog
from twin.model import Readings, StoreUnavailable
from twin.store.database import Connection, pack_readings
from twin.store.migrate import flavour_of
from twin.store.partitions import Partitions


def import_readings(connection: Connection, name: str, readings: Readings) -> tuple[int, int]:
    """Store what is not stored yet, first value wins, in one transaction; `(stored, repeated)`.

    `name` is kept with the import. A service that runs on the database takes the new rows in with its next commit.
    """
    order = np.lexsort((np.arange(len(readings)), readings.observed_at, readings.sensor))
    s, t = readings.sensor[order], readings.observed_at[order]
    first = np.ones(len(order), bool)
    first[1:] = (s[1:] != s[:-1]) | (t[1:] != t[:-1])
    distinct = readings.take(order[first])
    partitions = Partitions(flavour_of(connection) == "timescale")
    if not partitions.is_timescale:
        partitions.load(connection)
    partitions.cover(connection, "readings", distinct.observed_at)
    with connection.transaction():
        connection.execute("create temporary table incoming (like readings) on commit drop")
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "copy incoming (sensor_id, observed_at, received_at, value, quality, batch) from stdin (format binary)"
            ) as copy,
        ):
            copy.write(pack_readings(distinct, 0))
        # Last, so that the service's own commits wait for this lock only while the rows move over.
        row = connection.execute("update service set batch = batch + 1 returning batch").fetchone()
        if row is None:
            raise StoreUnavailable("the database has no service row")
        stored = connection.execute(
            "insert into readings (sensor_id, observed_at, received_at, value, quality, batch)"
            " select sensor_id, observed_at, received_at, value, quality, %s from incoming"
            " order by sensor_id, observed_at on conflict do nothing",
            (row[0],),
        ).rowcount
        connection.execute("insert into imports (batch, name, readings) values (%s, %s, %s)", (row[0], name, stored))
        connection.execute(
            "update counters set readings_received = readings_received + %s, readings_stored = readings_stored + %s,"
            " readings_duplicate = readings_duplicate + %s",
            (len(readings), stored, len(readings) - stored),
        )
        if len(distinct):
            connection.execute(
                "update service set tail_from = least(tail_from, i.low), tail_to = greatest(tail_to, i.high)"
                " from (select min(observed_at) as low, max(observed_at) as high from incoming) i"
            )
    return stored, len(readings) - stored


def unknown_sensors(catalog: Catalog, ids: list[str]) -> list[str]:
    """Those of `ids` (device/property) that are no sensor."""
    return [i for i in ids if i.partition("/")[2] not in catalog.devices.get(i.partition("/")[0], {})]
