"""What HTTP and WebSocket ask of the database: read-only queries on asyncio, over a few connections made when needed.

Buckets are exact whatever state the aggregates are in: the caller names the span of event times that changed since
their last refresh (`dirty`), and what touches it, or is cut by an end of the range, is computed from the raw rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    Alert,
    AlertEvent,
    AlertState,
    Micros,
    Quality,
    Readings,
    StoreUnavailable,
    micros,
)
from twin.store import rows
from twin.store.database import READING_COLUMNS, translated, unpack_readings

CONNECTIONS: Final = 4  # for questions; each CSV that is being sent has one of its own besides, of so many:
EXPORTS: Final = 4
PATIENCE_S: Final = 5.0  # how long a question waits for a connection to be free
STATEMENT_S: Final = 60
LATE: Final = 5 * MINUTE  # engineering default [E]
RAW_SPAN: Final = 2 * HOUR  # up to here minutes come from the raw rows
CHUNK_BYTES: Final = 1 << 16
PAGE_BYTES: Final = 8 << 20  # payloads on one page of the quarantine

_SETUP: Final = (
    "set timezone to 'UTC'; set default_transaction_read_only to on;"
    f" set statement_timeout to '{STATEMENT_S}s'; set plan_cache_mode to force_custom_plan"
)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Span = tuple[Micros, Micros]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The good and suspect values of a sensor within [at, at + width), in its kind's canonical unit."""

    at: Micros
    min: float
    max: float
    avg: float
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class RuleSetRow:
    """A version of the rules; `size`: characters of its text."""

    version: int
    created_at: Micros
    by: str | None
    note: str | None
    size: int


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts: open at any time within [start, end), and of one of each non-empty list. `states` may hold `open`
    (all but cleared). `first_outs`: only those that are the first, or the probable root, of their incident."""

    start: Micros | None = None
    end: Micros | None = None
    states: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    sensors: tuple[int, ...] = ()
    assets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    first_outs: bool = False


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One row of the quarantine; `payload` is what was kept of `size` bytes."""

    id: int
    topic: str
    payload: bytes
    size: int
    is_truncated: bool
    reason: str
    detail: str
    tenant: str | None
    device: str | None
    positions: tuple[int, ...]
    deliveries: int
    readings: int
    first_at: Micros
    last_at: Micros


class DayCount(NamedTuple):
    """Readings of one sensor observed on a day, and how many of them came more than 5 min after."""

    sensor: int
    received: int
    late: int


class Part(NamedTuple):
    """A stretch of a bucketed range: from the raw rows, or from the aggregate."""

    is_raw: bool
    start: Micros
    end: Micros


def plan(start: Micros, end: Micros, width: Micros, dirty: Span | None) -> list[Part]:
    """Split [start, end) so that the aggregate answers whole buckets that `dirty` (both ends belong to it) does not
    touch, and the raw rows the rest."""
    first, last = -(-start // width) * width, end // width * width
    if first >= last:
        return [Part(True, start, end)] if start < end else []
    clean = [(first, last)]
    if dirty is not None:
        stale_from, stale_to = dirty[0] // width * width, (dirty[1] // width + 1) * width
        clean = [(first, min(last, stale_from)), (max(first, stale_to), last)]
    parts: list[Part] = []
    at = start
    for low, high in clean:
        if low >= high:
            continue
        if at < low:
            parts.append(Part(True, at, low))
        parts.append(Part(False, low, high))
        at = high
    if at < end:
        parts.append(Part(True, at, end))
    return parts


class Reader:
    """Read-only questions. All methods are coroutines of one event loop and raise `StoreUnavailable` when the database
    is away, does not answer in a minute, or has no connection free; the next question tries again by itself.

    Not psycopg's pool: that one goes on trying in growing steps while a question waits, so a database that is down
    makes every request slow, and one that is back is noticed late.
    """

    def __init__(self, dsn: str, connections: int = CONNECTIONS) -> None:
        self.dsn = dsn
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(connections)
        self._exports = asyncio.Semaphore(EXPORTS)

    async def close(self) -> None:
        """Close the idle connections; the reader stays usable."""
        while self._idle:
            await self._idle.pop().close()

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(
            self.dsn,
            autocommit=True,
            prepare_threshold=None,
            application_name="cimtwin read",
            connect_timeout=5,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        # orjson reads numbers beyond 64 bits as floats, and can tell them again; jsonb makes whole numbers of 1e20.
        set_json_loads(orjson.loads, connection)
        await connection.execute(_SETUP)
        return connection

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Connection]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable("all connections for reading are busy") from None
        try:
            with translated():
                connection = await self._alive()
                try:
                    yield connection
                except BaseException:
                    # Cancelled in the middle, or broken: never to be used again.
                    await connection.close()
                    raise
                self._idle.append(connection)
        finally:
            self._free.release()

    async def _alive(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("")  # 50 µs; tells a connection that did not live through a restart
            except psycopg.Error:
                await connection.close()
                continue
            return connection
        return await self._connect()

    async def _rows(self, query: str, params: Sequence[object] | dict[str, object] = ()) -> list[tuple[Any, ...]]:
        async with self._borrowed() as connection:
            cursor = await connection.execute(query.encode(), params, binary=True)
            return await cursor.fetchall()

    async def ask(self, query: str, params: Sequence[object] | dict[str, object] = ()) -> list[tuple[Any, ...]]:
        """The rows that a question of the store's own (`twin.store.assets`) gives."""
        return await self._rows(query, params)

    # Readings

    async def readings(
        self,
        sensor: int,
        start: Micros,
        end: Micros,
        limit: int,
        received_before: Micros | None = None,
    ) -> Readings:
        """The first `limit` readings of a sensor observed within [start, end), ascending; `received_before`: as known
        at that time."""
        query = f"select {READING_COLUMNS} from {_RAW}{_KNOWN if received_before else ''} order by 2 limit %(limit)s"
        params = _range(sensor, start, end, received_before) | {"limit": limit}
        async with (
            self._borrowed() as connection,
            connection.cursor() as cursor,
            cursor.copy(f"copy ({query}) to stdout (format binary)".encode(), params) as copy,
        ):
            return unpack_readings(b"".join([bytes(block) async for block in copy]))

    async def last(self, sensor: int, at: Micros) -> tuple[float, Micros] | None:
        """The last value of a sensor observed at `at` or before, neither null nor bad, and when."""
        found = await self.ask(
            "select value, observed_at from readings where sensor_id = %s and observed_at <= %s and value is not null"
            " and quality < %s order by observed_at desc limit 1",
            (sensor, rows.moment(at), Quality.FIRST_BAD),
        )
        return None if not found else (float(found[0][0]), micros(found[0][1]))

    async def readings_csv(
        self,
        sensor: int,
        device: str,
        prop: str,
        start: Micros,
        end: Micros,
        received_before: Micros | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """All readings of a range as CSV lines `device,property,observed_at,value,quality` without a header, in pieces
        of about 64 KiB, written by the server as they are taken."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._exports.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"{EXPORTS} exports are running") from None
        query = (
            "select %(device)s::text, %(property)s::text, to_char(observed_at, 'YYYY-MM-DD\"T\"HH24:MI:SS') ||"
            " case when date_trunc('second', observed_at) = observed_at then 'Z'"
            " when date_trunc('milliseconds', observed_at) = observed_at then to_char(observed_at, '.MS\"Z\"')"
            " else to_char(observed_at, '.US\"Z\"') end, value,"
            " case when quality = 0 then 'good' when quality < 16 then 'suspect' else 'bad' end"
            f" from {_RAW}{_KNOWN if received_before else ''} order by observed_at"
        )
        params = _range(sensor, start, end, received_before) | {"device": device, "property": prop}
        try:
            with translated():
                connection = await self._connect()
                try:
                    await connection.execute("set statement_timeout to 0")
                    async with connection.cursor() as cursor:
                        statement = f"copy ({query}) to stdout (format csv)".encode()
                        async with cursor.copy(statement, params) as copy:
                            piece: list[bytes] = []
                            size = 0
                            async for block in copy:
                                piece.append(bytes(block))
                                size += len(block)
                                if size >= CHUNK_BYTES:
                                    yield b"".join(piece)
                                    piece, size = [], 0
                            if piece:
                                yield b"".join(piece)
                finally:
                    await connection.close()
        finally:
            self._exports.release()

    async def buckets(
        self,
        sensor: int,
        start: Micros,
        end: Micros,
        width: Micros,
        limit: int,
        dirty: Span | None = None,
        received_before: Micros | None = None,
    ) -> list[Bucket]:
        """The first `limit` buckets, 1 or 5 min, 1 h or 1 d wide and aligned to UTC, of the readings within
        [start, end), without nulls, bad readings and empty buckets. `dirty` spans the event times, both ends
        included, of which the aggregates may not know yet."""
        table, is_whole = _AGGREGATES[width]
        if received_before is not None or (width < HOUR and end - start <= RAW_SPAN):
            parts = [Part(True, start, end)]
        else:
            parts = plan(start, end, width, dirty)
        found: list[Bucket] = []
        async with self._borrowed() as connection:
            for part in parts:
                need = limit - len(found)
                if need <= 0 or part.start >= part.end:
                    break
                params = _range(sensor, part.start, part.end, received_before)
                if part.is_raw:
                    known = _KNOWN if received_before else ""
                    grouped = _GROUPED_RAW.format(known=known)
                    found += await _windows(connection, f"{_RAW}{known}", "observed_at", grouped, params, width, need)
                elif is_whole:
                    params["limit"] = need
                    query = _WHOLE.format(table=table).encode()
                    cursor = await connection.execute(query, params, binary=True)
                    found += [_bucket(row) for row in await cursor.fetchall()]
                else:
                    source = _AGGREGATED.format(table=table)
                    grouped = _GROUPED.format(table=table)
                    found += await _windows(connection, source, "bucket", grouped, params, width, need)
        return found

    # Alerts

    async def alerts(self, which: AlertQuery, limit: int, after: tuple[Micros, str] | None = None) -> list[Alert]:
        """Alerts as last committed, newest first by `(raised_at, id)`; `after` is that of the last one seen."""
        where, params = _chosen(which, after)
        found = await self._rows(f"select {rows.ALERT_COLUMNS} {where} limit %(limit)s", params | {"limit": limit})
        return [rows.alert(row) for row in found]

    async def alert_ids(
        self, which: AlertQuery, limit: int, after: tuple[Micros, str] | None = None
    ) -> list[tuple[Micros, str]]:
        """`(raised_at, id)` of those that `alerts` would give, for who has the rest in memory."""
        where, params = _chosen(which, after)
        found = await self._rows(f"select a.raised_at, a.id {where} limit %(limit)s", params | {"limit": limit})
        return [(micros(at), id_) for at, id_ in found]

    async def alerts_of(self, ids: Sequence[str]) -> list[Alert]:
        """Alerts by their ids, in no order; those that there are."""
        if not ids:
            return []
        query = f"select {rows.ALERT_COLUMNS} from alerts a where a.id = any(%s)"
        return [rows.alert(row) for row in await self._rows(query, (list(ids),))]

    async def alert(self, alert_id: str) -> Alert | None:
        if "\0" in alert_id:  # no text of PostgreSQL has one
            return None
        found = await self._rows(f"select {rows.ALERT_COLUMNS} from alerts a where a.id = %s", (alert_id,))
        return rows.alert(found[0]) if found else None

    async def alert_events(self, alert_id: str) -> list[AlertEvent]:
        """The whole history of an alert, in the order it was told."""
        found = await self._rows(
            f"select {rows.EVENT_COLUMNS} from alert_events e where e.alert_id = %s order by e.seq", (alert_id,)
        )
        return [rows.event(row) for row in found]

    async def events_of(self, ids: Sequence[str]) -> list[AlertEvent]:
        """The whole histories of alerts, in the order they were told."""
        found = await self._rows(
            f"select {rows.EVENT_COLUMNS} from alert_events e where e.alert_id = any(%s) order by e.seq", (list(ids),)
        )
        return [rows.event(row) for row in found]

    async def events_after(self, seq: int, limit: int) -> list[AlertEvent]:
        """The first `limit` alert events with a higher number than `seq`, in order."""
        found = await self._rows(
            f"select {rows.EVENT_COLUMNS} from alert_events e where e.seq > %s order by e.seq limit %s", (seq, limit)
        )
        return [rows.event(row) for row in found]

    # The rest

    async def quarantine(
        self,
        limit: int,
        before: int | None = None,
        reason: str | None = None,
        tenant: str | None = None,
        device: str | None = None,
    ) -> tuple[list[Quarantined], bool]:
        """Refused messages with an id below `before`, newest first, and whether there are more. A page ends early
        where its payloads come to 8 MiB."""
        found = await self._rows(
            "select id, octet_length(payload) from quarantine where (%(before)s::bigint is null or id < %(before)s)"
            " and (%(reason)s::text is null or reason = %(reason)s)"
            " and (%(tenant)s::text is null or tenant = %(tenant)s)"
            " and (%(device)s::text is null or device = %(device)s) order by id desc limit %(limit)s",
            {"before": before, "reason": reason, "tenant": tenant, "device": device, "limit": limit + 1},
        )
        page: list[int] = []
        size = 0
        for id_, length in found[:limit]:
            size += length
            if page and size > PAGE_BYTES:
                break
            page.append(id_)
        kept = await self._rows(
            "select id, topic, payload, size, is_truncated, reason, detail, tenant, device, positions, deliveries,"
            " readings, first_at, last_at from quarantine where id = any(%s) order by id desc",
            (page,),
        )
        return [_quarantined(row) for row in kept], len(found) > len(page)

    async def counts_by_sensor(self, start: Micros, end: Micros) -> list[DayCount]:
        """Readings observed within [start, end), by sensor. Goes through all of them: about a second per 5 million."""
        found = await self._rows(
            "select sensor_id, count(*), count(*) filter (where received_at - observed_at > %s * interval '1 us')"
            " from readings where observed_at >= %s and observed_at < %s group by 1",
            (LATE, rows.moment(start), rows.moment(end)),
        )
        return [DayCount(*row) for row in found]

    async def refused_by_device(self, start: Micros, end: Micros) -> list[tuple[str | None, str | None, int]]:
        """`(tenant, device, readings)` refused, of the messages last refused within [start, end)."""
        return [
            (tenant, device, int(count))
            for tenant, device, count in await self._rows(
                "select tenant, device, sum(readings)::bigint from quarantine"
                " where last_at >= %s and last_at < %s group by 1, 2",
                (rows.moment(start), rows.moment(end)),
            )
        ]

    async def rule_sets(self, limit: int, before: int | None = None) -> list[RuleSetRow]:
        """The newest `limit` rule sets of a lower version than `before`, the newest first."""
        found = await self._rows(
            "select version, created_at, by, note, length(text) from rule_sets"
            " where version < %s order by version desc limit %s",
            (2**31 - 1 if before is None else before, limit),
        )
        return [RuleSetRow(version, micros(at), by, note, size) for version, at, by, note, size in found]

    async def rules_text(self, version: int) -> str | None:
        """The TOML of a rule set, or None if there was no such version."""
        found = await self._rows("select text from rule_sets where version = %s", (version,))
        return found[0][0] if found else None


# width: the table whose rows answer it, and whether one row is one bucket
_AGGREGATES: Final = {
    MINUTE: ("readings_1m", True),
    5 * MINUTE: ("readings_1m", False),
    HOUR: ("readings_1h", True),
    DAY: ("readings_1d", True),
}
WIDTHS: Final = {"1m": MINUTE, "5m": 5 * MINUTE, "1h": HOUR, "1d": DAY}

_RAW: Final = "readings where sensor_id = %(sensor)s and observed_at >= %(start)s and observed_at < %(end)s"
_KNOWN: Final = " and received_at < %(received_before)s"
_AGGREGATED: Final = "{table} where sensor_id = %(sensor)s and bucket >= %(start)s and bucket < %(end)s"
_BIN: Final = "date_bin(%(width)s * interval '1 us', {column}, timestamptz 'epoch')"
# Of the ways to the last value, ordering within the group cost least (0.5 µs a row on both flavours).
_GROUPED_RAW: Final = (
    f"select {_BIN.format(column='observed_at')}, min(value), max(value), avg(value), count(value),"
    f" (array_agg(value order by observed_at desc))[1] from {_RAW}{{known}}"
    " and value is not null and quality < 16 group by 1 order by 1 limit %(limit)s"
)
_GROUPED: Final = (
    f"select {_BIN.format(column='bucket')}, min(min), max(max), sum(sum) / sum(count), sum(count)::bigint,"
    f" (array_agg(last order by last_at desc))[1] from {_AGGREGATED}"
    " group by 1 order by 1 limit %(limit)s"
)
_WHOLE: Final = f"select bucket, min, max, sum / count, count, last from {_AGGREGATED} order by bucket limit %(limit)s"


def _chosen(which: AlertQuery, after: tuple[Micros, str] | None) -> tuple[str, dict[str, object]]:
    """The `from`, `where` and `order by` that give these alerts newest first, and their parameters."""
    conditions: list[str] = []
    params: dict[str, object] = {}
    if which.end is not None:
        conditions.append("a.raised_at < %(end)s")
        params["end"] = rows.moment(which.end)
    if which.start is not None:
        # One that is not yet acknowledged is still open however long ago its condition ended.
        conditions.append("(a.state <> 'cleared' or a.cleared_at > %(start)s or a.raised_at >= %(start)s)")
        params["start"] = rows.moment(which.start)
    if which.states:
        states = set(which.states)
        if "open" in states:
            states = (states - {"open"}) | {state.value for state in AlertState if state is not AlertState.CLEARED}
            if AlertState.CLEARED.value not in states:
                conditions.append("a.state <> 'cleared'")  # in these words the partial index serves
        conditions.append("a.state = any(%(states)s)")
        params["states"] = sorted(states)
    for name, column, values in (
        ("levels", "level", which.levels),
        ("domains", "domain", which.domains),
        ("tenants", "tenant", which.tenants),
        ("rules", "rule", which.rules),
        ("sensors", "sensor_id", which.sensors),
        ("assets", "asset", which.assets),
    ):
        if values:
            conditions.append(f"a.{column} = any(%({name})s)")
            params[name] = list(values)
    if which.flags:
        conditions.append("a.flags && %(flags)s")
        params["flags"] = list(which.flags)
    if which.first_outs:
        conditions.append(
            "a.id in (select root from incidents where state <> 'merged'"
            " union all select first from incidents where state <> 'merged')"
        )
    if after is not None:
        conditions.append("(a.raised_at, a.id) < (%(after_at)s, %(after_id)s)")
        params |= {"after_at": rows.moment(after[0]), "after_id": after[1]}
    where = " where " + " and ".join(conditions) if conditions else ""
    return f"from alerts a{where} order by a.raised_at desc, a.id desc", params


def _range(sensor: int, start: Micros, end: Micros, received_before: Micros | None) -> dict[str, object]:
    return {
        "sensor": sensor,
        "start": rows.moment(start),
        "end": rows.moment(end),
        "received_before": rows.moment(received_before),
    }


def _quarantined(row: tuple[Any, ...]) -> Quarantined:
    (id_, topic, payload, size, is_truncated, reason, detail, tenant, device, positions, deliveries, readings, first_at,
     last_at) = row  # fmt: skip
    return Quarantined(
        id_, topic, bytes(payload), size, is_truncated, reason, detail, tenant, device, tuple(positions), deliveries,
        readings, micros(first_at), micros(last_at),
    )  # fmt: skip


def _bucket(row: tuple[Any, ...]) -> Bucket:
    return Bucket(micros(row[0]), *row[1:])


async def _windows(
    connection: Connection,
    source: str,
    column: str,
    grouped: str,
    params: dict[str, object],
    width: Micros,
    need: int,
) -> list[Bucket]:
    """The first `need` buckets by grouping window after window, so that a page of a long range does not group all of
    it; from one window to the next over what is empty."""
    start, end = params["start"], params["end"]
    at, stop = rows.instant(start), rows.instant(end)  # type: ignore[arg-type]
    assert at is not None
    assert stop is not None
    span = need * width
    found: list[Bucket] = []
    first = f"select {column} from {source} order by {column} limit 1".encode()
    while at < stop and len(found) < need:
        if stop - at > span:
            cursor = await connection.execute(first, params | {"start": rows.moment(at)}, binary=True)
            row = await cursor.fetchone()
            if row is None:
                break
            at = max(at, micros(row[0]) // width * width)
        until = min(stop, at // width * width + span)
        window = {
            "start": rows.moment(at),
            "end": rows.moment(until),
            "width": width,
            "limit": need - len(found),
        }
        cursor = await connection.execute(grouped.encode(), params | window, binary=True)
        fresh = [_bucket(row) for row in await cursor.fetchall()]
        found += fresh
        at = until
        # Sparse readings: wider windows, so that their number stays small.
        span = span * 2 if len(fresh) * 4 < need else need * width
    return found


__all__ = ["WIDTHS", "AlertQuery", "Bucket", "DayCount", "Part", "Quarantined", "Reader", "plan"]
