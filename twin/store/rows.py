"""Rows to nouns and back: the columns of alerts, alert events and quarantine in one place."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from twin.model import EPOCH, Alert, AlertEvent, AlertState, Micros, Refusal, micros

Row = tuple[Any, ...]


def moment(at: Micros | None) -> dt.datetime | None:
    """µs as the datetime that psycopg takes."""
    return None if at is None else EPOCH + dt.timedelta(microseconds=at)


def times(column: NDArray[np.int64]) -> list[dt.datetime]:
    return [EPOCH + dt.timedelta(microseconds=at) for at in column.tolist()]


def instant(value: dt.datetime | None) -> Micros | None:
    return None if value is None else micros(value)


_ALERT: Final = (
    "id", "rule", "rule_version", "sensor_id", "asset", "tenant", "domain", "level", "peak_level", "state", "flags",
    "since", "raised_at", "cleared_at", "value", "peak_value", "threshold", "lon", "lat", "place", "message_zh",
    "message_en", "instruction_zh", "instruction_en", "assignee", "verdict", "suppressed_by", "shelved_until",
)  # fmt: skip
_SENSOR_OF_A: Final = "(select s.device || '/' || s.property from sensors s where s.id = a.sensor_id)"
_SENSOR_OF_E: Final = "(select s.device || '/' || s.property from sensors s where s.id = e.sensor_id)"
ALERT_COLUMNS: Final = ", ".join(f"a.{name}" for name in _ALERT) + f", {_SENSOR_OF_A}"
_STANDS_NOW: Final = " on conflict (id) do update set " + ", ".join(
    f"{name} = excluded.{name}" for name in _ALERT if name != "id"
)
UPSERT_ALERT: Final = (
    f"insert into alerts ({', '.join(_ALERT)}) values ({', '.join(['%s'] * len(_ALERT))}){_STANDS_NOW}"
)
MANY_ALERTS: Final = 100  # from so many on they go by COPY and a table of the session, which costs a commit 1 ms


def upsert_alerts(cursor: psycopg.Cursor[Any], alerts: list[Alert]) -> None:
    """Make these alerts, each named once, what stands in the database."""
    if len(alerts) < MANY_ALERTS:
        cursor.executemany(UPSERT_ALERT, [alert_values(a) for a in alerts])
        return
    columns = ", ".join(_ALERT)
    cursor.execute(
        "create temporary table if not exists alerts_to_be (like alerts including defaults) on commit delete rows"
    )
    with cursor.copy(f"copy alerts_to_be ({columns}) from stdin".encode()) as copy:
        for a in alerts:
            copy.write_row(alert_values(a))
    cursor.execute(f"insert into alerts ({columns}) select {columns} from alerts_to_be{_STANDS_NOW}".encode())


def alert(row: Row) -> Alert:
    """An alert from `ALERT_COLUMNS`."""
    (id_, rule, version, index, asset, tenant, domain, level, peak_level, state, flags, since, raised_at, cleared_at,
     value, peak_value, threshold, lon, lat, place, zh, en, instruction_zh, instruction_en, assignee, verdict,
     suppressed_by, shelved_until, sensor) = row  # fmt: skip
    return Alert(
        id_, rule, version, sensor, -1 if index is None else index, asset, tenant, domain, level, peak_level,
        AlertState(state), micros(since), micros(raised_at), value, peak_value, threshold, instant(cleared_at),
        tuple(flags), lon, lat, place, zh, en, instruction_zh, instruction_en, assignee, verdict,
        tuple(suppressed_by), instant(shelved_until),
    )  # fmt: skip


def alert_values(a: Alert) -> Row:
    return (
        a.id, a.rule, a.rule_version, None if a.sensor_index < 0 else a.sensor_index, a.asset, a.tenant, a.domain,
        a.level, a.peak_level, a.state.value, list(a.flags), moment(a.since), moment(a.raised_at),
        moment(a.cleared_at), a.value, a.peak_value, a.threshold, a.lon, a.lat, a.place, a.message_zh, a.message_en,
        a.instruction_zh, a.instruction_en, a.assignee, a.verdict, list(a.suppressed_by), moment(a.shelved_until),
    )  # fmt: skip


_EVENT: Final = (
    "seq", "id", "alert_id", "rule", "rule_version", "sensor_id", "asset", "tenant", "domain", "level",
    "previous_level", "state", "transition", "value", "threshold", "observed_at", "at", "lon", "lat", "message_zh",
    "message_en", "is_retroactive", "replaces", "by", "note", "flags", "detail",
)  # fmt: skip
EVENT_COLUMNS: Final = ", ".join(f"e.{name}" for name in _EVENT) + f", {_SENSOR_OF_E}"
COPY_EVENTS: Final = f"copy alert_events ({', '.join(_EVENT)}) from stdin"


def event(row: Row) -> AlertEvent:
    """An alert event from `EVENT_COLUMNS`."""
    (seq, id_, alert_id, rule, version, index, asset, tenant, domain, level, previous, state, transition, value,
     threshold, observed_at, at, lon, lat, zh, en, is_retroactive, replaces, by, note, flags,
     detail, sensor) = row  # fmt: skip
    return AlertEvent(
        id_, alert_id, rule, version, sensor, -1 if index is None else index, asset, tenant, domain, level, previous,
        AlertState(state), transition, value, threshold, micros(observed_at), micros(at), lon, lat, zh, en,
        is_retroactive, replaces, by, note, seq, tuple(flags), detail,
    )  # fmt: skip


def event_values(e: AlertEvent) -> Row:
    return (
        e.seq, e.id, e.alert_id, e.rule, e.rule_version, None if e.sensor_index < 0 else e.sensor_index, e.asset,
        e.tenant, e.domain, e.level, e.previous_level, e.state.value, e.transition, e.value, e.threshold,
        moment(e.observed_at), moment(e.at), e.lon, e.lat, e.message_zh, e.message_en, e.is_retroactive, e.replaces,
        e.by, e.note, list(e.flags), None if e.detail is None else Jsonb(e.detail),
    )  # fmt: skip


def quarantine_key(refusal: Refusal) -> bytes:
    """What makes two refusals the same: topic, bytes and reason. Where bytes were left out, their number stands for
    them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (refusal.topic.encode("utf-8", "surrogateescape"), refusal.reason.value.encode()):
        digest.update(len(part).to_bytes(4, "big") + part)
    digest.update(refusal.payload)
    if refusal.left_out:
        digest.update(b"+%d" % refusal.left_out)
    return digest.digest()


def upsert_refusals(cursor: psycopg.Cursor[Any], refusals: list[Refusal], keep_bytes: int) -> None:
    """Add to quarantine; a refusal that is there already counts up."""
    merged: dict[bytes, list[Any]] = {}
    for r in refusals:
        key = quarantine_key(r)
        if key in merged:
            merged[key][10] += r.deliveries
            merged[key][11] += r.readings
            merged[key][9] = sorted({*merged[key][9], *r.positions})
            continue
        merged[key] = [
            key, r.topic, r.payload[:keep_bytes], len(r.payload) + r.left_out,
            len(r.payload) > keep_bytes or r.left_out > 0, r.reason.value, r.detail, r.tenant, r.device,
            list(r.positions), r.deliveries, r.readings, moment(r.received_at), moment(r.received_at),
        ]  # fmt: skip
    cursor.executemany(
        "insert into quarantine (key, topic, payload, size, is_truncated, reason, detail, tenant, device, positions,"
        " deliveries, readings, first_at, last_at) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " on conflict (key) do update set deliveries = quarantine.deliveries + excluded.deliveries,"
        " readings = quarantine.readings + excluded.readings, last_at = excluded.last_at,"
        " positions = (select array_agg(distinct p order by p)"
        "  from unnest(quarantine.positions || excluded.positions) as p), detail = excluded.detail",
        list(merged.values()),
    )
