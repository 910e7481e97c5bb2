"""Incidents in the database: what the desk writes and takes up again, and what HTTP asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from twin.incident import Entry, Incident, Member
from twin.model import Micros, micros
from twin.store.database import Connection
from twin.store.reader import Reader
from twin.store.rows import instant, moment

_COLUMNS: Final = (
    "id", "number", "opened_at", "state", "closed_at", "merged_into", "apart", "ended_by", "confirmed_by",
    "confirmed_at", "level", "domains", "root", "first", "body",
)  # fmt: skip
# Thousands of rows go as one JSON: to write lists as PostgreSQL's arrays takes longer than all else.
_AT: Final = "'epoch'::timestamptz + (f->>'{0}')::bigint * interval '1 microsecond'"
_LIST: Final = "array(select jsonb_array_elements_text(f->'{0}'))"
_FROM_JSON: Final = {
    "number": "(f->>'number')::bigint", "opened_at": _AT.format("opened_at"), "closed_at": _AT.format("closed_at"),
    "apart": _LIST.format("apart"), "confirmed_at": _AT.format("confirmed_at"), "level": "(f->>'level')::smallint",
    "domains": _LIST.format("domains"), "body": "f->'body'",
}  # fmt: skip
_UPSERT: Final = (
    f"insert into incidents ({', '.join(_COLUMNS)}) select "
    + ", ".join(_FROM_JSON.get(name, f"f->>'{name}'") for name in _COLUMNS)
    + " from jsonb_array_elements(%s::text::jsonb) f on conflict (id) do update set "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in ("id", "number"))
)
_UPSERT_MEMBERS: Final = (
    "insert into incident_alerts (alert_id, incident, raised_at, facts)"
    f" select f->>'alert', f->>'incident', {_AT.format('raised_at')}, f from jsonb_array_elements(%s::text::jsonb) f"
    " on conflict (alert_id) do update set incident = excluded.incident, raised_at = excluded.raised_at,"
    " facts = excluded.facts"
)
_ANY: Final = "any(string_to_array(%s, ','))"  # of ids, which hold no comma


class Shown(NamedTuple):
    """An incident with what is stored beside it: how bad it is, its domains, root and first alert, and its JSON."""

    incident: Incident
    level: int
    domains: tuple[str, ...]
    root: str | None
    first: str | None
    body: bytes


class Known(NamedTuple):
    """What grouping asks of an alert beyond its events."""

    since: Micros
    raised_at: Micros
    place: str | None


class FloodRow(NamedTuple):
    """A time when alerts came faster than people can take them in; `ended_at` is None while it lasts."""

    started_at: Micros
    ended_at: Micros | None
    peak: int
    alerts: int


# The desk


def save(connection: Connection, shown: Sequence[Shown], members: Sequence[Member], entries: Sequence[Entry]) -> None:
    """Write incidents and alerts in them as they now stand, and what happened."""
    with connection.cursor() as cursor:
        if shown:
            cursor.execute(_UPSERT.encode(), (orjson.dumps([_values(one) for one in shown]).decode(),))
        if members:
            cursor.execute(_UPSERT_MEMBERS.encode(), (orjson.dumps(members).decode(),))
        if entries:
            with cursor.copy(
                "copy incident_entries (incident, at, what, alert_id, by, note, other) from stdin"
            ) as copy:  # fmt: skip
                for e in entries:
                    copy.write_row((e.incident, moment(e.at), e.what, e.alert, e.by, e.note, e.other))


def _values(one: Shown) -> dict[str, Any]:
    i = one.incident
    values = (
        i.id, i.number, i.opened_at, i.state, i.closed_at, i.merged_into, sorted(i.apart), i.ended_by, i.confirmed_by,
        i.confirmed_at, one.level, one.domains, one.root, one.first, orjson.Fragment(one.body),
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def marks(connection: Connection) -> tuple[Micros, int]:
    """The newest time at which an alert of any incident was raised (0: none), and the last incident's number."""
    row = connection.execute(
        "select (select max(raised_at) from incident_alerts), (select coalesce(max(number), 0) from incidents)"
    ).fetchone()
    assert row is not None
    return instant(row[0]) or 0, int(row[1])


def standing(connection: Connection, since: Micros) -> list[Incident]:
    """The incidents that are open, or ended at `since` or later."""
    return _incidents(connection, "state = 'open' or closed_at >= %s", moment(since))


def by_ids(connection: Connection, ids: Sequence[str]) -> list[Incident]:
    return _incidents(connection, f"id = {_ANY}", ",".join(ids)) if ids else []


def holding(connection: Connection, alerts: Sequence[str]) -> list[Incident]:
    """The incidents that these alerts are in."""
    ids = connection.execute(
        f"select distinct incident from incident_alerts where alert_id = {_ANY}".encode(), (",".join(alerts),)
    ).fetchall()
    return by_ids(connection, [row[0] for row in ids]) if ids else []


def _incidents(connection: Connection, where: str, given: object) -> list[Incident]:
    found = {
        row[0]: _incident(row)
        for row in connection.execute(
            f"select {', '.join(_COLUMNS[:10])} from incidents where {where}".encode(), (given,)
        )
    }
    for (facts,) in connection.execute(
        f"select facts from incident_alerts where incident = {_ANY} order by (facts->>'seq')::bigint".encode(),
        (",".join(found),),
    ):
        member = Member(**(facts | {"flags": tuple(facts["flags"])}))
        found[member.incident].members[member.alert] = member
    return list(found.values())


def _incident(row: tuple[Any, ...]) -> Incident:
    id_, number, opened_at, state, closed_at, merged_into, apart, ended_by, confirmed_by, confirmed_at = row
    return Incident(
        id_, number, micros(opened_at), state, instant(closed_at), merged_into, set(apart), ended_by, confirmed_by,
        instant(confirmed_at),
    )  # fmt: skip


def alerts(connection: Connection, ids: Iterable[str]) -> dict[str, Known]:
    """Alerts by id."""
    found = connection.execute(
        f"select id, since, raised_at, place from alerts where id = {_ANY}".encode(), (",".join(ids),)
    ).fetchall()  # fmt: skip
    return {id_: Known(micros(since), micros(raised_at), place) for id_, since, raised_at, place in found}


def answered(connection: Connection, key: str) -> tuple[str, bytes] | None:
    """The route and answer of a request that was carried out under this Idempotency-Key."""
    row = connection.execute("select route, answer::text from idempotency where key = %s", (key,)).fetchone()
    return None if row is None else (row[0], row[1].encode())


def answer(connection: Connection, key: str, route: str, status: int, body: bytes) -> None:
    """Note the answer to a request that was carried out, for its repetition."""
    connection.execute(
        "insert into idempotency (key, route, status, answer) values (%s, %s, %s, %s::text::jsonb)",
        (key, route, status, body.decode()),
    )


def told_since(connection: Connection, at: Micros) -> list[Micros]:
    """When alerts asked for attention, from `at` on: raised, or worse than before, and not held back."""
    found = connection.execute(
        "select at from alert_events where at >= %s and transition in ('raised', 'escalated') and flags = '{}'"
        " order by seq",
        (moment(at),),
    ).fetchall()
    return [micros(row[0]) for row in found]


def last_flood(connection: Connection) -> FloodRow | None:
    row = connection.execute(
        "select started_at, ended_at, peak, alerts from floods order by started_at desc limit 1"
    ).fetchone()  # fmt: skip
    return None if row is None else FloodRow(micros(row[0]), instant(row[1]), row[2], row[3])


def save_flood(connection: Connection, flood: FloodRow) -> None:
    connection.execute(
        "insert into floods (started_at, ended_at, peak, alerts) values (%s, %s, %s, %s) on conflict (started_at)"
        " do update set ended_at = excluded.ended_at, peak = excluded.peak, alerts = excluded.alerts",
        (moment(flood.started_at), moment(flood.ended_at), flood.peak, flood.alerts),
    )


# HTTP


@dataclass(frozen=True, slots=True)
class IncidentQuery:
    """Which incidents: open at any time within [start, end), and of one of each non-empty list."""

    start: Micros | None = None
    end: Micros | None = None
    states: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()


async def listed(
    reader: Reader, which: IncidentQuery, limit: int, after: tuple[Micros, str] | None = None
) -> list[tuple[Micros, str, dict[str, Any]]]:
    """`(opened_at, id, body)` of incidents, the newest first; `after` is that of the last one seen."""
    conditions, params = ["true"], dict[str, object](limit=limit)
    if which.start is not None:
        conditions.append("(closed_at is null or closed_at >= %(start)s)")
        params["start"] = moment(which.start)
    if which.end is not None:
        conditions.append("opened_at < %(end)s")
        params["end"] = moment(which.end)
    if which.states:
        conditions.append("state = any(%(states)s)")
        params["states"] = list(which.states)
    if which.levels:
        conditions.append("level = any(%(levels)s)")
        params["levels"] = list(which.levels)
    if which.domains:
        conditions.append("domains && %(domains)s")
        params["domains"] = list(which.domains)
    if after is not None:
        conditions.append("(opened_at, id) < (%(opened_at)s, %(id)s)")
        params |= {"opened_at": moment(after[0]), "id": after[1]}
    found = await reader.ask(
        f"select opened_at, id, body from incidents where {' and '.join(conditions)}"
        " order by opened_at desc, id desc limit %(limit)s",
        params,
    )
    return [(micros(at), id_, body) for at, id_, body in found]


async def one(reader: Reader, id_: str) -> dict[str, Any] | None:
    """An incident's JSON; None where there is none of this id."""
    if "\0" in id_:
        return None
    found = await reader.ask("select body from incidents where id = %s", (id_,))
    return found[0][0] if found else None


async def members(reader: Reader, id_: str) -> list[dict[str, Any]]:
    """What grouping knows of the alerts of an incident, in the order in which they came."""
    found = await reader.ask(
        "select facts from incident_alerts where incident = %s order by (facts->>'seq')::bigint", (id_,)
    )
    return [row[0] for row in found]


async def incidents_of(reader: Reader, alerts: Sequence[str]) -> dict[str, str]:
    """The incident of each of these alerts that is in one."""
    if not alerts:
        return {}
    return dict(
        await reader.ask("select alert_id, incident from incident_alerts where alert_id = any(%s)", (list(alerts),))
    )


async def history(reader: Reader, id_: str, limit: int) -> list[dict[str, Any]]:
    """What happened to an incident and to its alerts, in time order; of more than `limit` the newest."""
    found = await reader.ask(
        "select * from ("
        " select at, told_at, what, alert_id, by, note, other, null::smallint as level, id as number, 0 as sort"
        "  from incident_entries where incident = %(id)s"
        " union all"
        " select e.observed_at, e.at, e.transition, e.alert_id, e.by, e.note, null, e.level, e.seq, 1"
        "  from incident_alerts m join alert_events e on e.alert_id = m.alert_id where m.incident = %(id)s"
        " order by 1 desc, sort, number desc limit %(limit)s) h",
        {"id": id_, "limit": limit},
    )
    found.reverse()
    return [
        {"at": micros(at), "told_at": micros(told_at), "what": what, "alert": alert, "by": by, "note": note,
         "other": other, "level": level}
        for at, told_at, what, alert, by, note, other, level, _, _ in found
    ]  # fmt: skip


async def floods(reader: Reader, start: Micros, end: Micros, limit: int) -> list[FloodRow]:
    """Floods with a part in [start, end), the newest first."""
    found = await reader.ask(
        "select started_at, ended_at, peak, alerts from floods where started_at < %(end)s"
        " and (ended_at is null or ended_at > %(start)s) order by started_at desc limit %(limit)s",
        {"start": moment(start), "end": moment(end), "limit": limit},
    )
    return [FloodRow(micros(at), instant(ended), peak, alerts_) for at, ended, peak, alerts_ in found]
