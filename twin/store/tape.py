"""What a replay reads: stored readings, alert events and rule sets, as they stood at one moment, read-only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import psycopg

from twin.catalog import Catalog
from twin.model import MINUTE, Alert, AlertEvent, Indices, Ints, Micros, Readings, StoreUnavailable, TooMany, micros
from twin.store import rows
from twin.store.catalog import load_facts, refresh
from twin.store.database import POSTGRES_EPOCH, Connection, translated

_SETUP: Final = (
    "set timezone to 'UTC'; set default_transaction_read_only to on; set plan_cache_mode to force_custom_plan"
)
# One descent of the index a sensor, whatever else the day's partition holds; and one row a sensor, its readings packed
# end to end: COPY hands over row by row, which takes Python three times as long as the server needs to read them.
_READINGS: Final = (
    "select wanted.id, r.packed from unnest(%(sensors)s::int[], %(starts)s::timestamptz[]) as wanted (id, start)"
    " cross join lateral (select string_agg(timestamptz_send(observed_at) || timestamptz_send(received_at)"
    " || float8send(coalesce(value, 'NaN')) || int2send(quality), '') as packed from readings"
    " where sensor_id = wanted.id and observed_at >= wanted.start and observed_at >= %(first)s"
    " and observed_at < %(end)s and batch <= %(batch)s{known}) r where r.packed is not null"
)
_PACKED: Final = np.dtype([("observed_at", ">i8"), ("received_at", ">i8"), ("value", ">f8"), ("quality", ">i2")])
# How many there are, up to one more than so many.
_NUMBER: Final = (
    "select count(*) from (select from unnest(%(sensors)s::int[], %(starts)s::timestamptz[])"
    " as wanted (id, start) cross join lateral (select from readings where sensor_id = wanted.id"
    " and observed_at >= wanted.start and observed_at >= %(first)s and observed_at < %(end)s limit %(most)s + 1) r"
    " limit %(most)s + 1) found"
)
LOAD_MOST: Final = 1_000_000
_KNOWN: Final = " and received_at < %(received_before)s"


class Tape:
    """A connection that sees what was committed when it was opened: readings up to a batch, alert events up to a
    number. `received_before`: only what had come by then. Used by one thread, with a second one that reads ahead.
    Raises `StoreUnavailable`."""

    def __init__(self, dsn: str, received_before: Micros | None = None) -> None:
        self.dsn = dsn
        self.received_before = received_before
        self._reader = ThreadPoolExecutor(1, "tape")
        self._ahead: tuple[Micros, Micros, Future[Readings]] | None = None
        with translated():
            self.connection: Connection = psycopg.connect(
                dsn, autocommit=True, application_name="cimtwin replay", connect_timeout=10, prepare_threshold=None
            )
            self.connection.execute(_SETUP.encode())
            row = self.connection.execute("select batch, seq from service").fetchone()
        if row is None:
            raise StoreUnavailable("the database has no service row")
        self.batch, self.seq = row
        self._rate = 0.0  # readings a µs in the last span that was loaded

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)
        self.connection.close()

    def load_catalog(self, catalog: Catalog, attributes: frozenset[str] | None = None) -> None:
        """The sensors, and what the models now say of their assets, with these attributes (None: nothing)."""
        with translated():
            refresh(self.connection, catalog)
            load_facts(self.connection, catalog, attributes)

    def rules(self) -> list[tuple[int, Micros, str]]:
        """`(version, created_at, text)` of every rule set there was, oldest first."""
        with translated():
            found = self.connection.execute(
                "select version, created_at, text from rule_sets order by version"
            ).fetchall()
        return [(version, micros(created_at), text) for version, created_at, text in found]

    def readings(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> Readings:
        """Readings of `sensors` observed within [max(first, starts[i]), end), in no order. Raises `TooMany` where they
        are over `LOAD_MOST` and the last span did not let expect so many."""
        asked, self._ahead = self._ahead, None
        if asked is not None and asked[:2] == (first, end):
            return asked[2].result()
        return self._read(sensors, starts, first, end)

    def read_ahead(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> None:
        """These readings will most likely be asked for next: they are read meanwhile."""
        if first < end:
            self._ahead = first, end, self._reader.submit(self._read, sensors, starts, first, end)

    def _read(self, sensors: Indices, starts: Ints, first: Micros, end: Micros) -> Readings:
        if not len(sensors) or first >= end:
            return Readings.empty()
        params: dict[str, object] = {
            "sensors": sensors.tolist(),
            "starts": rows.times(starts),
            "first": rows.moment(first),
            "end": rows.moment(end),
            "batch": self.batch,
            "received_before": rows.moment(self.received_before),
        }
        if end - first > 10 * MINUTE and self._rate * (end - first) < LOAD_MOST / 16:
            with translated():
                row = self.connection.execute(_NUMBER.encode(), params | {"most": LOAD_MOST}).fetchone()
            if row is None or not row[0]:
                return Readings.empty()
            if row[0] > LOAD_MOST:
                raise TooMany
        with translated():
            query = _READINGS.format(known=self._known).encode()
            found = self.connection.execute(query, params, binary=True).fetchall()
        packed_rows = np.frombuffer(b"".join([packed for _, packed in found]), _PACKED)
        counts = [len(packed) // _PACKED.itemsize for _, packed in found]
        self._rate = len(packed_rows) / (end - first)
        return Readings(
            np.repeat(np.array([sensor for sensor, _ in found], np.int32), counts),
            packed_rows["observed_at"].astype(np.int64) + POSTGRES_EPOCH,
            packed_rows["received_at"].astype(np.int64) + POSTGRES_EPOCH,
            packed_rows["value"].astype(np.float64),
            packed_rows["quality"].astype(np.uint8),
        )

    @property
    def _known(self) -> str:
        return "" if self.received_before is None else _KNOWN

    def received_within(self, sensors: Indices, start: Micros, end: Micros) -> tuple[Micros, Micros]:
        """First and last receive time of the readings observed within [start, end); zeros if there are none."""
        row = self._aggregate("min(received_at), max(received_at)", sensors, start, end)
        return (0, 0) if row[0] is None else (micros(row[0]), micros(row[1]))

    def last_observed_before(self, sensors: Indices, then: Micros, start: Micros, end: Micros) -> Micros:
        """The newest event time within [start, end) of what had come before `then`; 0 if nothing had."""
        row = self._aggregate("max(observed_at) filter (where received_at < %(then)s)", sensors, start, end, then)
        return 0 if row[0] is None else micros(row[0])

    def _aggregate(self, what: str, sensors: Indices, start: Micros, end: Micros, then: Micros = 0) -> tuple[Any, ...]:
        query = (
            f"select {what} from readings where sensor_id = any(%(sensors)s) and observed_at >= %(first)s"
            f" and observed_at < %(end)s and batch <= %(batch)s{self._known}"
        )
        params = {
            "sensors": sensors.tolist(),
            "first": rows.moment(start),
            "end": rows.moment(end),
            "batch": self.batch,
            "then": rows.moment(then),
            "received_before": rows.moment(self.received_before),
        }
        with translated():
            row = self.connection.execute(query.encode(), params).fetchone()
        assert row is not None
        return row

    def events(self, start: Micros, end: Micros) -> list[AlertEvent]:
        """Alert events observed within [start, end), in the order they were told."""
        return self._events("e.observed_at >= %(start)s and e.observed_at < %(end)s", start=start, end=end)

    def _events(self, condition: str, **params: object) -> list[AlertEvent]:
        given: dict[str, Any] = {
            name: rows.moment(value) if isinstance(value, int) else value for name, value in params.items()
        }
        known = "" if self.received_before is None else " and e.at < %(received_before)s"
        given |= {"seq": self.seq, "received_before": rows.moment(self.received_before)}
        query = f"select {rows.EVENT_COLUMNS} from alert_events e where {condition} and e.seq <= %(seq)s{known}"
        with translated():
            return [rows.event(row) for row in self.connection.execute(f"{query} order by e.seq".encode(), given)]

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        """Alerts by id, as they are now."""
        with translated():
            found = self.connection.execute(
                f"select {rows.ALERT_COLUMNS} from alerts a where a.id = any(%s)".encode(), (list(ids),)
            )
            return [rows.alert(row) for row in found]

    def open_between(self, start: Micros, end: Micros) -> tuple[list[Alert], list[AlertEvent]]:
        """The alerts raised before `end` that may have been open at `start` or later, as they are now, and their
        events observed before `end`."""
        span = {"start": rows.moment(start), "end": rows.moment(end)}
        with translated():
            found = self.connection.execute(
                f"select {rows.ALERT_COLUMNS} from alerts a where a.raised_at < %(end)s and (a.state <> 'cleared'"
                " or a.cleared_at >= %(start)s or exists (select from alert_events e where e.alert_id = a.id"
                " and (e.observed_at >= %(start)s or e.at >= %(known)s)))".encode(),
                span | {"known": rows.moment(self.received_before)},
            )
            alerts = [rows.alert(row) for row in found]
        events = self._events(
            "e.alert_id = any(%(ids)s) and e.observed_at < %(end)s", ids=[alert.id for alert in alerts], end=end
        )
        return alerts, events
