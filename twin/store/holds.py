"""What holds alerts back, as rows: written with the commit that tells of it, read at start and for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from twin.model import Alert, Hold, Micros, micros
from twin.store import rows
from twin.store.database import Connection
from twin.store.reader import Reader

_COLUMNS: Final = (
    "id", "kind", "matchers", "times", "starts_at", "ends_at", "by", "note", "created_at", "ended_at", "ended_by",
    "end_note",
)  # fmt: skip
_ALL: Final = ", ".join(_COLUMNS)
_UPSERT: Final = (
    f"insert into holds ({_ALL}) values ({', '.join(['%s'] * len(_COLUMNS))})"
    " on conflict (id) do update set ended_at = excluded.ended_at, ended_by = excluded.ended_by,"
    " end_note = excluded.end_note"
)


def put(cursor: psycopg.Cursor[Any], holds: Sequence[Hold]) -> None:
    """Write holds that were begun or ended."""
    cursor.executemany(
        _UPSERT.encode(),
        [
            (
                h.id, h.kind, Jsonb({label: list(words) for label, words in h.matchers.items()}),
                None if h.times is None else Jsonb(dict(h.times)), rows.moment(h.starts_at), rows.moment(h.ends_at),
                h.by, h.note, rows.moment(h.created_at), rows.moment(h.ended_at), h.ended_by, h.end_note,
            )
            for h in holds
        ],
    )  # fmt: skip


def standing(connection: Connection, now: Micros) -> list[Hold]:
    """The holds that hold back, or will."""
    found = connection.execute(
        f"select {_ALL} from holds where ended_at is null and (ends_at is null or ends_at > %s)"
        " order by created_at, id".encode(),
        (rows.moment(now),),
    ).fetchall()
    return [_hold(row) for row in found]


def by_id(connection: Connection, id_: str) -> list[Hold]:
    found = connection.execute(f"select {_ALL} from holds where id = %s".encode(), (id_,)).fetchall()
    return [_hold(row) for row in found]


def raised(connection: Connection, rules: Sequence[str], span: Micros) -> list[Alert]:
    """The alerts of these rules that were raised within `span` before the newest of each rule, late data's corrections
    left out."""
    newest = connection.execute(
        "select w.rule, n.raised_at from unnest(%s::text[]) as w(rule) join lateral"
        " (select raised_at from alerts a where a.rule = w.rule order by raised_at desc limit 1) n on true",
        (list(rules),),
    ).fetchall()
    # Rule by rule: asked for all of them at once, the planner would rather read a million alerts through.
    found = [
        row
        for rule, at in newest
        for row in connection.execute(
            f"select {rows.ALERT_COLUMNS} from alerts a where rule = %s and raised_at > %s"
            " and not 'withdrawn' = any(flags)".encode(),
            (rule, at - dt.timedelta(microseconds=span)),
        )
    ]
    return [rows.alert(row) for row in found]


async def listed(
    reader: Reader,
    kinds: Sequence[str],
    is_standing: bool | None,
    now: Micros,
    limit: int,
    after: tuple[Micros, str] | None,
) -> list[Hold]:
    """Holds, the newest first. `is_standing`: those that hold back or will, or only those that are over."""
    is_over = "(ended_at is not null or (ends_at is not null and ends_at <= %(now)s))"
    conditions = ["true"]
    if kinds:
        conditions.append("kind = any(%(kinds)s)")
    if is_standing is not None:
        conditions.append(f"not {is_over}" if is_standing else is_over)
    if after is not None:
        conditions.append("(created_at, id) < (%(after_at)s, %(after_id)s)")
    params: dict[str, object] = {
        "kinds": list(kinds),
        "now": rows.moment(now),
        "limit": limit,
        "after_at": None if after is None else rows.moment(after[0]),
        "after_id": None if after is None else after[1],
    }
    found = await reader.ask(
        f"select {_ALL} from holds where {' and '.join(conditions)} order by created_at desc, id desc limit %(limit)s",
        params,
    )
    return [_hold(row) for row in found]


async def one(reader: Reader, id_: str) -> Hold | None:
    found = await reader.ask(f"select {_ALL} from holds where id = %s", (id_,))
    return _hold(found[0]) if found else None


def _hold(row: rows.Row) -> Hold:
    id_, kind, matchers, times, starts_at, ends_at, by, note, created_at, ended_at, ended_by, end_note = row
    return Hold(
        id_, kind, {label: tuple(words) for label, words in matchers.items()}, micros(starts_at),
        rows.instant(ends_at), times, by, note, micros(created_at), rows.instant(ended_at), ended_by, end_note,
    )  # fmt: skip
