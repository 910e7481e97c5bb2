"""What notifying keeps: the plan in its versions, the alerts that are being told of, and every delivery."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
import psycopg
from psycopg.types.json import Jsonb

from twin.model import DAY, LEVELS, Micros, Overtaken, Problem, Refused, iso
from twin.store import rows
from twin.store.database import Connection
from twin.store.reader import Reader
from twin.telling import REFRESH, Delivery, Group, HeldBack, KnownAlert, Outgoing, Watched

Secrets = list[tuple[str, str, str | None, str]]
OTHER_REQUEST: Final = "was used for another request / 该键已用于其他请求"


def connect(dsn: str) -> Connection:
    """A connection for notifying. Raises psycopg's errors."""
    connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="cimtwin notify")
    connection.execute("set timezone to 'UTC'")
    return connection


def _json(value: object) -> Jsonb:
    return Jsonb(value, dumps=lambda v: orjson.dumps(v, option=orjson.OPT_SERIALIZE_NUMPY).decode())


# The plan


def plan_version(connection: Connection) -> int:
    """The newest version; 0 where there is none."""
    row = connection.execute("select coalesce(max(version), 0) from notify_plans").fetchone()
    return int(row[0]) if row else 0


def load_plan(connection: Connection, version: int) -> tuple[str, Secrets]:
    """Text and secrets of a version; `("", [])` of version 0."""
    row = connection.execute("select text, secrets from notify_plans where version = %s", (version,)).fetchone()
    return ("", []) if row is None else (str(row[0]), [(r, f, k, v) for r, f, k, v in row[1]])


def save_plan(
    connection: Connection, text: str, secrets: Secrets, by: str | None, instead_of: int | None = None
) -> int:
    """Store the next version. Raises `Overtaken` where the one in force is not `instead_of`."""
    connection.execute("lock table notify_plans in share row exclusive mode")
    version = plan_version(connection) + 1
    if instead_of is not None and version - 1 != instead_of:
        raise Overtaken(version - 1, instead_of)
    connection.execute(
        "insert into notify_plans (version, text, secrets, by) values (%s, %s, %s, %s)",
        (version, text, _json(secrets), by),
    )
    return version


# What is being told of

_WATCHED: Final = (
    "alert", "changed_at", "due_at", "told_level", "told_active", "told_at", "group_key", "stage", "escalate_at",
    "repeat_at",
)  # fmt: skip
_UPSERT_WATCHED: Final = (
    f"insert into notify_watched ({', '.join(_WATCHED)}, next_at) values ({', '.join(['%s'] * 11)})"
    " on conflict (alert) do update set "
    + ", ".join(f"{name} = excluded.{name}" for name in (*_WATCHED[1:], "next_at"))
)


def is_anything_due(connection: Connection, at: Micros) -> bool:
    """Whether anything is to be decided at a moment without any event."""
    row = connection.execute(
        "select exists (select 1 from notify_watched where next_at <= %(at)s)"
        " or exists (select 1 from deliveries where state = 'held' and next_at <= %(at)s)",
        {"at": rows.moment(at)},
    ).fetchone()
    return bool(row and row[0])


def watched(connection: Connection, ids: Iterable[str], at: Micros, until: Micros) -> dict[str, Watched]:
    """Those of these alerts that are watched, all with something pending, all that are due by `until`, and those of
    deliveries that are held until `at`."""
    found = connection.execute(
        f"select {', '.join(_WATCHED)} from notify_watched where alert = any(%s) or due_at is not null or next_at <= %s"
        " or alert in (select unnest(alerts) from deliveries where state = 'held' and next_at <= %s)"
        " order by alert".encode(),
        (list(ids), rows.moment(until), rows.moment(at)),
    ).fetchall()
    return {
        id_: Watched(
            id_, rows.instant(changed), rows.instant(due), level, active, rows.instant(told), group, stage,
            rows.instant(escalate), rows.instant(repeat),
        )
        for id_, changed, due, level, active, told, group, stage, escalate, repeat in found
    }  # fmt: skip


def save_watched(connection: Connection, several: Sequence[Watched], finished: Sequence[str]) -> None:
    if several:
        connection.cursor().executemany(
            _UPSERT_WATCHED,
            [
                (
                    w.alert, rows.moment(w.changed_at), rows.moment(w.due_at), w.told_level, w.told_active,
                    rows.moment(w.told_at), w.group, w.stage, rows.moment(w.escalate_at), rows.moment(w.repeat_at),
                    rows.moment(w.next_at),
                )
                for w in several
            ],
        )  # fmt: skip
    if finished:
        connection.execute("delete from notify_watched where alert = any(%s)", (list(finished),))


def forget(connection: Connection, at: Micros) -> None:
    """Nobody is to be told of anything any more: nothing is watched, and what is held back lapses."""
    connection.execute("delete from notify_watched")
    connection.execute(
        "update deliveries set state = 'lapsed', next_at = null, changed_at = %s,"
        " reason = 'notifying ended / 通知已停止' where state = 'held'",
        (rows.moment(at),),
    )


def groups(connection: Connection, keys: Sequence[str], pending: Sequence[str]) -> dict[str, Group]:
    """What was last told of groups, and how many of their alerts but the `pending` ones stand told of as active."""
    told = {
        key: (rows.instant(at), level)
        for key, at, level in connection.execute(
            "select key, told_at, level from notify_groups where key = any(%s)", (list(keys),)
        )
    }
    active: dict[str, int] = dict(
        connection.execute(
            # By the incident that an alert is in now, which may have taken in the one that it was told with.
            "select 'incident:' || i.incident, count(*) from incident_alerts i join notify_watched w"
            " on w.alert = i.alert_id where i.incident = any(%(incidents)s) and w.told_active"
            " and w.alert <> all(%(pending)s) group by 1"
            " union all select w.group_key, count(*) from notify_watched w where w.group_key = any(%(keys)s)"
            " and w.told_active and w.alert <> all(%(pending)s)"
            " and not exists (select 1 from incident_alerts i where i.alert_id = w.alert) group by 1",
            {
                "incidents": [key.removeprefix("incident:") for key in keys],
                "keys": list(keys),
                "pending": list(pending),
            },
        ).fetchall()
    )
    return {key: Group(*told.get(key, (None, 0)), active.get(key, 0)) for key in keys}


def save_groups(connection: Connection, told: Mapping[str, tuple[Micros, int]], at: Micros) -> None:
    """Note when groups were last told of; what was told more than two days ago is forgotten."""
    if not told:
        return
    connection.cursor().executemany(
        "insert into notify_groups (key, told_at, level) values (%s, %s, %s)"
        " on conflict (key) do update set told_at = excluded.told_at, level = excluded.level",
        [(key, rows.moment(at), level) for key, (at, level) in told.items()],
    )
    connection.execute("delete from notify_groups where told_at < %s", (rows.moment(at - 2 * DAY),))


# Alerts


def alerts(connection: Connection, ids: Iterable[str]) -> dict[str, KnownAlert]:
    """These alerts as they stand."""
    found = connection.execute(
        f"select {rows.ALERT_COLUMNS}, s.kind, s.tags, v.area from alerts a"
        " left join sensors s on s.id = a.sensor_id left join assets b on b.id = a.asset"
        " left join lateral (select area from asset_versions where asset = b.key and until is null limit 1) v on true"
        " where a.id = any(%s)".encode(),
        (list(ids),),
    ).fetchall()
    return {row[0]: KnownAlert(rows.alert(row[:-3]), row[-3], tuple(row[-2] or ()), row[-1] or "") for row in found}


def incidents(connection: Connection, ids: Iterable[str]) -> dict[str, str]:
    """The incident that each of these alerts is in. None where this database keeps no incidents."""
    row = connection.execute("select to_regclass('incident_alerts') is not null").fetchone()
    if not row or not row[0]:
        return {}
    return dict(
        connection.execute(
            "select alert_id, incident from incident_alerts where alert_id = any(%s)", (list(ids),)
        ).fetchall()
    )


async def alerts_of_incident(reader: Reader, incident: str) -> list[str]:
    """The alerts that an incident joins; none where there is no such incident."""
    if "\0" in incident or not (await reader.ask("select to_regclass('incident_alerts') is not null"))[0][0]:
        return []
    found = await reader.ask("select alert_id from incident_alerts where incident = %s order by 1", (incident,))
    return [row[0] for row in found]


# Deliveries

_DELIVERY: Final = (
    "number", "id", "receiver", "kind", "level", "group_key", "incident", "alerts", "state", "reason", "instead_of",
    "attempts", "last_error", "next_at", "created_at", "changed_at", "sent_at",
)  # fmt: skip


def reached(connection: Connection, ids: Sequence[str]) -> dict[str, set[str]]:
    """By alert, the receivers that were told of it, or are about to be."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for id_, receiver in connection.execute(
        # One by one: of thousands together the planner reads all deliveries, and holds each against all of them.
        "select i.id, d.receiver from unnest(%s::text[]) as i(id) cross join lateral (select receiver from deliveries"
        " where alerts @> array[i.id] and state in ('waiting', 'sent', 'dead') and kind <> %s offset 0) d",
        (list(ids), REFRESH),
    ):
        found[id_].add(receiver)
    return found


def held(connection: Connection, at: Micros, ids: Sequence[str], keys: Sequence[str]) -> list[HeldBack]:
    """What is held back and due to be looked at, or of these alerts or groups."""
    return [
        HeldBack(id_, receiver, kind, stage, group, tuple(several), rows.instant(next_at))
        for id_, receiver, kind, stage, group, several, next_at in connection.execute(
            "select id, receiver, kind, (content->>'stage')::int, group_key, alerts, next_at from deliveries"
            " where state = 'held' and (next_at <= %s or group_key = any(%s) or number in (select d.number from"
            " unnest(%s::text[]) as i(id) cross join lateral (select number from deliveries where alerts @> array[i.id]"
            " and state = 'held' offset 0) d)) order by number",
            (rows.moment(at), list(keys), list(ids)),
        )
    ]


def save_deliveries(
    connection: Connection, several: Sequence[Delivery], lapsed: Sequence[tuple[str, str]], at: Micros
) -> list[str]:  # fmt: skip
    """Write down what was decided, and why held ones lapse. The ids of the new ones."""
    new = [(uuid.uuid4().hex[:20], one) for one in several if one.id is None]
    again = [one for one in several if one.id is not None]
    cursor = connection.cursor()
    if new:
        cursor.executemany(
            "insert into deliveries (id, receiver, kind, level, group_key, incident, alerts, content, state, reason,"
            " instead_of, next_at, created_at, changed_at)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    id_, one.receiver, one.kind, one.level, one.group, one.incident, list(one.alerts),
                    _json(one.content), one.state, one.reason, one.instead_of, rows.moment(one.next_at),
                    rows.moment(at), rows.moment(at),
                )
                for id_, one in new
            ],
        )  # fmt: skip
    if again:
        cursor.executemany(
            "update deliveries set kind = %s, level = %s, alerts = %s, content = %s, state = %s, reason = %s,"
            " next_at = %s, changed_at = %s where id = %s",
            [
                (
                    one.kind, one.level, list(one.alerts), _json(one.content), one.state, one.reason,
                    rows.moment(one.next_at), rows.moment(at), one.id,
                )
                for one in again
            ],
        )  # fmt: skip
    if lapsed:
        cursor.executemany(
            "update deliveries set state = 'lapsed', reason = coalesce(reason || '; ', '') || %s, next_at = null,"
            " changed_at = %s where id = %s and state = 'held'",
            [(reason, rows.moment(at), id_) for id_, reason in lapsed],
        )
    return [id_ for id_, _ in new]


def standing_at(connection: Connection, receiver: str, held_flags: Iterable[str]) -> list[str]:
    """The active alerts that a receiver was told of, but for those that are held back by now."""
    found = connection.execute(
        "select w.alert from notify_watched w join alerts a on a.id = w.alert where w.told_active"
        " and a.state like 'active%%' and not a.flags && %s and exists (select 1 from deliveries d"
        " where d.alerts @> array[w.alert] and d.receiver = %s and d.kind <> %s"
        " and d.state in ('waiting', 'sent', 'dead')) order by 1",
        (list(held_flags), receiver, REFRESH),
    ).fetchall()
    return [row[0] for row in found]


def save_refreshes(connection: Connection, receiver: str, several: Sequence[Delivery], at: Micros) -> None:
    """What a receiver is told again and again is on record once: its newest telling."""
    connection.execute(
        "update deliveries set state = 'lapsed', next_at = null, changed_at = %s"
        " where receiver = %s and kind = %s and state <> 'lapsed'",
        (rows.moment(at), receiver, REFRESH),
    )
    for number, one in enumerate(several):
        connection.execute(
            "insert into deliveries (id, receiver, kind, level, group_key, alerts, content, state, next_at, created_at,"
            " changed_at) values (%s, %s, %s, %s, %s, %s, %s, 'waiting', %s, %s, %s)"
            " on conflict (id) do update set level = excluded.level, alerts = excluded.alerts,"
            " content = excluded.content, state = 'waiting', next_at = excluded.next_at, attempts = 0,"
            " changed_at = excluded.changed_at",
            (
                f"{REFRESH}-{receiver}-{number}", receiver, REFRESH, one.level, f"{REFRESH}:{number}",
                list(one.alerts), _json(one.content), rows.moment(at), rows.moment(at), rows.moment(at),
            ),
        )  # fmt: skip


# Sending


def outgoing(
    connection: Connection, at: Micros, not_to: Sequence[str], most: int, most_alerts: int
) -> list[Outgoing]:  # fmt: skip
    """What is to be sent, at most so many for each receiver (one in any case), with no more than `most_alerts` in them,
    the worst first; of a group nothing before what was decided earlier."""
    # Numbered, not each held against the others: in a storm the planner does not yet know how many there are.
    found = connection.execute(
        "select d.id, d.receiver, d.attempts, d.content, d.instead_of from ("
        "  select number, row_number() over w as place, sum(told) over w as told from ("
        "   select number, receiver, level, next_at, cardinality(alerts) as told,"
        "    row_number() over (partition by receiver, group_key order by number) as nth"
        "   from deliveries where state = 'waiting' and receiver <> all(%s)) a"
        "  where nth = 1 and next_at <= %s window w as (partition by receiver order by level desc, number)) p"
        " join deliveries d using (number) where place <= %s and (place = 1 or p.told <= %s)"
        " order by d.receiver, place",
        (list(not_to), rows.moment(at), most, most_alerts),
    ).fetchall()
    return [Outgoing(id_, receiver, attempts, content, instead) for id_, receiver, attempts, content, instead in found]


def sent_lately(connection: Connection, receiver: str, since: Micros) -> list[Micros]:
    """When something was sent to a receiver, for its limit."""
    return [
        rows.instant(row[0]) or 0
        for row in connection.execute(
            "select distinct sent_at from deliveries where receiver = %(receiver)s and sent_at >= %(since)s"
            " and changed_at >= %(since)s order by 1",
            {"receiver": receiver, "since": rows.moment(since)},
        )
    ]


def mark_sent(connection: Connection, ids: Sequence[str], at: Micros, text: str) -> None:
    """These arrived, as one message, if there are several; whatever else waits for that receiver need wait no more."""
    together = f"together with {ids[0]} / 与其合并发送" if len(ids) > 1 else None
    connection.execute(
        "update deliveries set state = 'sent', sent_at = %(at)s, changed_at = %(at)s, next_at = null,"
        " attempts = attempts + 1, last_error = nullif(%(text)s, ''),"
        " reason = case when id = %(first)s then reason else coalesce(%(together)s, reason) end"
        " where id = any(%(ids)s) and state = 'waiting'",
        {"at": rows.moment(at), "text": text, "first": ids[0], "together": together, "ids": list(ids)},
    )


def hurry(connection: Connection, receiver: str, at: Micros) -> None:
    """A receiver answers again: what waits for its next attempt goes now."""
    connection.execute(
        "update deliveries set next_at = %s where state = 'waiting' and receiver = %s and next_at > %s",
        (rows.moment(at), receiver, rows.moment(at)),
    )


def mark_failed(
    connection: Connection, ids: Sequence[str], at: Micros, text: str, again_at: Micros | None, *, counts: bool = True
) -> None:
    """These did not arrive; None: given up."""
    connection.execute(
        "update deliveries set state = %s, next_at = %s, last_error = %s, attempts = attempts + %s, changed_at = %s"
        " where id = any(%s) and state = 'waiting'",
        (
            "dead" if again_at is None else "waiting", rows.moment(again_at), text[:1000], int(counts), rows.moment(at),
            list(ids),
        ),
    )  # fmt: skip


def dead(connection: Connection, id_: str) -> Outgoing | None:
    """A delivery that was given up."""
    row = connection.execute(
        "select id, receiver, attempts, content, instead_of from deliveries where id = %s and state = 'dead'", (id_,)
    ).fetchone()
    return None if row is None else Outgoing(*row)


def one_content(connection: Connection, id_: str) -> dict[str, Any]:
    """What a delivery tells."""
    row = connection.execute("select content from deliveries where id = %s", (id_,)).fetchone()
    assert row is not None
    content: dict[str, Any] = row[0]
    return content


def numbers(connection: Connection) -> dict[str, int]:
    """How many deliveries are waiting, held, dead."""
    # One question each, so that each is answered by its own small index and not by reading all that was ever sent.
    found = connection.execute(
        " union all ".join(
            f"select '{state}', count(*) from deliveries where state = '{state}'"
            for state in ("waiting", "held", "dead")
        ).encode()
    ).fetchall()
    return {state: int(number) for state, number in found}


def retry(connection: Connection, id_: str, by: str | None, at: Micros) -> tuple[str, dict[str, Any]] | None:
    """Let a dead delivery go again. The state it was in, and the delivery; None where there is none."""
    row = connection.execute("select state from deliveries where id = %s for update", (id_,)).fetchone()
    if row is None:
        return None
    if row[0] == "dead":
        connection.execute(
            "update deliveries set state = 'waiting', attempts = 0, next_at = %s, changed_at = %s,"
            " reason = coalesce('tried again by ' || %s::text, reason) where id = %s",
            (rows.moment(at), rows.moment(at), by, id_),
        )
    return row[0], one(connection, id_) or {}


def one(connection: Connection, id_: str) -> dict[str, Any] | None:
    """A delivery as HTTP gives it."""
    row = connection.execute(f"select {', '.join(_DELIVERY)} from deliveries where id = %s".encode(), (id_,)).fetchone()
    return None if row is None else delivery_json(row)


def once(
    connection: Connection, key: str | None, route: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    """What `work` gives, or gave when it was asked for under this Idempotency-Key before."""
    with connection.transaction():
        if key is None:
            return work()
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))
        row = connection.execute("select route, answer from idempotency where key = %s", (key,)).fetchone()
        if row is not None:
            if row[0] != route:
                raise Refused([Problem("Idempotency-Key", "", OTHER_REQUEST)])
            answer: dict[str, Any] = row[1]
            return answer
        given = work()
        connection.execute(
            "insert into idempotency (key, route, status, answer) values (%s, %s, 200, %s)", (key, route, _json(given))
        )
        return given


def delivery_json(row: Sequence[Any], content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A delivery as HTTP gives it, from `_DELIVERY`."""
    given = dict(zip(_DELIVERY, row, strict=True))
    shown = {
        "id": given["id"],
        "receiver": given["receiver"],
        "kind": given["kind"],
        "level": LEVELS[given["level"] - 1],
        "state": given["state"],
        "reason": given["reason"],
        "alerts": given["alerts"],
        "incident": given["incident"],
        "group": given["group_key"],
        "attempts": given["attempts"],
        "last_error": given["last_error"],
        "instead_of": given["instead_of"],
        **{
            name: iso(rows.instant(given[name])) if given[name] is not None else None
            for name in ("next_at", "created_at", "changed_at", "sent_at")
        },
    }
    return shown if content is None else shown | {"content": content}


async def deliveries(
    reader: Reader,
    limit: int,
    before: int | None,
    states: Sequence[str],
    alert: str | None,
    receiver: str | None,
    kinds: Sequence[str],
) -> tuple[list[dict[str, Any]], int | None]:
    """Deliveries as HTTP gives them, newest first, and the number to go on before."""
    found = await reader.ask(
        f"select {', '.join(_DELIVERY)} from deliveries where (%(before)s::bigint is null or number < %(before)s)"
        " and (%(states)s::text[] = '{}' or state = any(%(states)s))"
        " and (%(kinds)s::text[] = '{}' or kind = any(%(kinds)s))"
        " and (%(alert)s::text is null or alerts @> array[%(alert)s::text])"
        " and (%(receiver)s::text is null or receiver = %(receiver)s) order by number desc limit %(limit)s",
        {"before": before, "states": list(states), "kinds": list(kinds), "alert": alert, "receiver": receiver,
         "limit": limit + 1},
    )  # fmt: skip
    following = int(found[limit - 1][0]) if len(found) > limit else None
    return [delivery_json(row) for row in found[:limit]], following


async def delivery(reader: Reader, id_: str) -> dict[str, Any] | None:
    """One delivery with its content."""
    if "\0" in id_:
        return None
    found = await reader.ask(f"select {', '.join(_DELIVERY)}, content from deliveries where id = %s", (id_,))
    return delivery_json(found[0][:-1], found[0][-1]) if found else None
