"""Incidents (事件): alerts that belong together, with their probable cause, and what people do about them."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from twin.api.errors import Invalid, done
from twin.api.parameters import (
    After,
    From,
    Key,
    Limit,
    Text,
    To,
    check_order,
    cursor,
    example,
    instant,
    json_answer,
    json_model,
    json_request,
    once,
    page,
    parse_cursor,
    words,
)
from twin.api.view import ServiceView
from twin.incident_desk import ACTIONS, Action
from twin.live import alerts_json, level_word
from twin.model import LEVELS, Level, NotFound, iso
from twin.store import incidents as store
from twin.store.incidents import IncidentQuery

STATES: Final = ("open", "closed", "merged", "withdrawn")
SHOWN: Final = ("open", "closed")  # unless others are asked for
OTHERS: Final = 10_000  # named in one action
HISTORY: Final = 2000  # entries of one incident's history that are shown
ALERTS: Final = 10_000

EXAMPLE: Final[dict[str, Any]] = {
    "id": "5d0c4d6a9b7e6f001122", "state": "open", "level": "red", "peak_level": "red",
    "title": {"zh": "雨水泵站1号水泵停运，波及：排水水位流量异常 12 条",
              "en": "雨水泵站1号: pump stopped, and with it 12 drain levels"},
    "domains": ["drainage"], "opened_at": "2026-07-01T08:00:00Z", "closed_at": None, "root": "0f5b3c8a9d7e6f001122",
    "first_out": "0f5b3c8a9d7e6f001122",
    "probable_cause": {"alert": "0f5b3c8a9d7e6f001122", "rule": "pump-off", "sensor": "pu-01/running",
                       "asset": "雨水泵站1号", "what": {"zh": "水泵停运", "en": "pump stopped"},
                       "since": "2026-07-01T08:00:00Z", "explains": 12,
                       "place": {"lon": 117.3, "lat": 31.79, "name": "雨水泵站1号"}},
    "other_causes": [],
    "reasons": [{"zh": "12 条排水水位流量异常报警位于停泵上游", "en": "12 drain levels upstream of the pump",
                 "alerts": 12}],
    "alert_count": 13, "active_count": 13, "unacknowledged_count": 13, "held_count": 0,
    "alert_ids": ["0f5b3c8a9d7e6f001122"], "asset_count": 13, "assets": ["雨水泵站1号"],
    "place": {"lon": 117.3, "lat": 31.79, "name": "雨水泵站1号"}, "confirmed": None, "ended_by_hand": False,
    "merged_into": None, "apart": [],
}  # fmt: skip


class Wanted(BaseModel):
    """What somebody does about an incident. `by` says who, `note` why; `incidents`: to merge into it; `alerts`: to
    split off."""

    action: str = Field(examples=["confirm"], max_length=64)
    by: str | None = Field(None, min_length=1, max_length=200, examples=["li.wei"])
    note: str | None = Field(None, max_length=4000, examples=["已核实 / checked on site"])
    incidents: list[str] = Field(default_factory=list, max_length=OTHERS)
    alerts: list[str] = Field(default_factory=list, max_length=OTHERS)


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["事件 incidents"])

    @routes.get(
        "/incidents",
        summary="事件列表，新的在前 / List incidents, newest first",
        description="`[from, to)` 内任一时刻未结束的事件。`state`：open、closed，另有 merged（已并入其他事件）、"
        "withdrawn（报警已被迟到数据撤回），默认不列；`level` 为事件的级别；可用逗号给出多个。 / "
        "Incidents open at any time within the range. `state`: open, closed; also merged and withdrawn, which are not "
        "listed unless asked for. `level` is the incident's own; comma lists.",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def list_incidents(
        state: Annotated[str | None, Query(max_length=200, examples=["open"])] = None,
        level: Annotated[str | None, Query(max_length=200, examples=["orange,red"])] = None,
        domain: Text = None,
        from_: From = None,
        to: To = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        start, end = instant("from", from_), instant("to", to)
        check_order(start, end)
        which = IncidentQuery(
            start,
            end,
            words("state", state, STATES) or SHOWN,
            tuple(int(Level.of(word)) for word in words("level", level, LEVELS)),
            words("domain", domain),
        )
        if any("\0" in word for word in which.domains):
            raise Invalid("domain", "must not contain NUL", "不能含有 NUL 字符")
        place = parse_cursor("incidents", after, int, str)
        seen = None if place is None else (place[0], place[1])
        found = await store.listed(service.reader, which, limit + 1, seen)
        following = cursor("incidents", found[limit - 1][0], found[limit - 1][1]) if len(found) > limit else None
        return page([body for _, _, body in found[:limit]], following)

    @routes.get(
        "/incidents/{id}",
        summary="一个事件：报警、原因、影响、过程 / One incident with its alerts, cause, affected assets and history",
        description="`alerts` 各条另有 `why`：为何归入。`affected`：受影响设施及其最高级别。`history`：事件与其报警的"
        "经过，多于 2000 条时为最近的。 / "
        "Each of `alerts` says why it is here. `affected`: assets with their worst level. `history`: what happened to "
        "it and to its alerts, the last 2000.",
        responses=example(EXAMPLE | {"alerts": [], "affected": [], "history": []})
        | {404: {"description": "没有该事件 / no such incident"}},
    )
    async def one_incident(id: str) -> Response:
        body = await store.one(service.reader, id)
        if body is None:
            raise no_incident(id)
        members = await store.members(service.reader, id)
        ids = [member["alert"] for member in members[:ALERTS]]
        found = {alert.id: alert for alert in service.alerts(ids)}
        found |= {alert.id: alert for alert in await service.reader.alerts_of([i for i in ids if i not in found])}
        why = {member["alert"]: member for member in members}
        alerts = [
            told | {"incident": id, "why": {"how": why[told["id"]]["why"], "by": why[told["id"]]["by"]}}
            for told in alerts_json([found[i] for i in ids if i in found])
        ]
        history = [
            entry | {"at": iso(entry["at"]), "told_at": iso(entry["told_at"]), "level": level_word(entry["level"] or 0)}
            for entry in await store.history(service.reader, id, HISTORY)
        ]
        return json_answer(body | {"alerts": alerts, "affected": _affected(members), "history": history})

    @routes.post(
        "/incidents/{id}/actions",
        summary="确认、备注、关闭、合并、拆分 / Confirm, note, close, merge, split",
        description="`merge`：把 `incidents` 并入本事件；`split`：把 `alerts` 拆成另一事件，其编号为回答中的 "
        "`split_off`。人工所定不会被后来的报警改回：拆开的不再自动合并，`close` 之后不再归入新报警。 / "
        "`merge` makes `incidents` part of this one; `split` makes one of `alerts`, `split_off` in the answer. What "
        "people decide stays: what was split is not joined again by itself, and what was closed takes nothing more in.",
        responses=example(EXAMPLE)
        | {
            404: {"description": "没有该事件 / no such incident"},
            409: {"description": "状态不允许 / state does not allow it"},
        },
        openapi_extra=json_request(Wanted, {"action": "confirm", "by": "li.wei", "note": "已核实 / checked on site"}),
    )
    async def act(id: str, request: Request, key: Key = None) -> Response:
        given = await json_model(request, Wanted)
        if given.action not in ACTIONS:
            raise Invalid("action", f"must be one of {', '.join(ACTIONS)}", f"只能是 {'、'.join(ACTIONS)}")
        if given.action == "note" and not (given.note or "").strip():
            raise Invalid("note", "must not be empty", "不能为空")
        others = {"merge": given.incidents, "split": given.alerts}.get(given.action, [])
        field = "incidents" if given.action == "merge" else "alerts"
        if given.action in ("merge", "split") and not others:
            raise Invalid(field, "must name at least one", "至少要有一个")
        for name, text in (("by", given.by), ("note", given.note), ("id", id), *((field, one) for one in others)):
            if text is not None and "\0" in text:
                raise Invalid(name, "must not contain NUL", "不能含有 NUL 字符")
        action = Action(id, given.action, given.by, given.note, tuple(others), await once(request, key))
        return json_answer(await done(service.desk.act(action)))

    return routes


def no_incident(id: str) -> NotFound:
    return NotFound(f"no incident {id} / 没有事件 {id}")


def _affected(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The assets of an incident's alerts, the worst first."""
    found: dict[str, dict[str, Any]] = {}
    for m in members:
        if m["is_withdrawn"]:
            continue
        one = found.setdefault(
            m["asset"] or m["subject"],
            {"asset": m["asset"], "level": 0, "alerts": 0, "active": 0, "since": m["since"],
             "place": {"lon": m["lon"], "lat": m["lat"], "name": m["place"]}},
        )  # fmt: skip
        one["level"] = max(one["level"], m["peak"])
        one["alerts"] += 1
        one["active"] += m["state"].startswith("active")
        one["since"] = min(one["since"], m["since"])
    order = sorted(found.values(), key=lambda one: (-one["level"], one["since"]))
    return [one | {"level": level_word(one["level"]), "since": iso(one["since"])} for one in order]
