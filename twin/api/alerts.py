"""Alerts (报警): the list, one with its history, and what people do about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from alerts.lifecycle import FLAGS
from ingest.commands import ACTIONS
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
from twin.api.sensors import names_of_asset
from twin.api.view import ServiceView
from twin.live import alert_json, alerts_json, event_json
from twin.model import HOUR, LEVELS, Alert, AlertState, Level, Micros, NotFound
from twin.store.incidents import incidents_of
from twin.store.reader import AlertQuery

EXAMPLE: Final[dict[str, Any]] = {
    "id": "0f5b3c8a9d7e6f001122", "rule": "road-ponding", "rule_version": 1, "sensor": "ponding-17/depth",
    "asset": "underpass-3", "tenant": "drainage-co", "domain": "drainage", "level": "orange", "peak_level": "orange",
    "state": "active_unacknowledged", "flags": [], "suppressed_by": [], "shelved_until": None, "assignee": None,
    "verdict": None, "since": "2026-07-01T08:00:00Z", "raised_at": "2026-07-01T08:05:00Z", "cleared_at": None,
    "value": 26.1, "peak_value": 27.4, "threshold": 25,
    "place": {"lon": 114.05, "lat": 22.54, "name": "underpass-3"},
    "instruction": {"zh": "封闭下穿通道", "en": "Close the underpass"},
    "message": {"zh": "道路积水 26.1 cm", "en": "Road ponding 26.1 cm"}, "incident": "5d0c4d6a9b7e6f001122",
}  # fmt: skip
EVENT: Final[dict[str, Any]] = {
    "seq": 41, "id": "a1b2c3d4e5f60718293a", "alert_id": EXAMPLE["id"], "rule": "road-ponding",
    "sensor": "ponding-17/depth", "asset": "underpass-3", "level": "orange", "state": "active_unacknowledged",
    "transition": "raised", "value": 26.1, "threshold": 25, "observed_at": "2026-07-01T08:05:00Z",
    "at": "2026-07-01T08:05:00.310Z", "flags": [], "detail": None,
    "message": {"zh": "道路积水 26.1 cm", "en": "Road ponding 26.1 cm"},
}  # fmt: skip


class Action(BaseModel):
    """What somebody does about an alert. `by` says who, `note` why; `until` is for shelving, `to` says whom to assign
    it to (else `by`)."""

    action: str = Field(examples=["acknowledge"], max_length=64)
    by: str | None = Field(None, min_length=1, max_length=200, examples=["li.wei"])
    note: str | None = Field(None, max_length=4000, examples=["已派人 / crew sent"])
    until: str | None = Field(None, max_length=64, examples=["2026-07-01T20:00:00Z"])
    to: str | None = Field(None, min_length=1, max_length=200, examples=["wang.fang"])


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["报警 alerts"])

    @routes.get(
        "/alerts",
        summary="报警列表，新的在前 / List alerts, newest first",
        description="`[from, to)` 内任一时刻未结束的报警；`state=open` 为除 cleared 外的全部；"
        "level、state、domain 等可用逗号给出多个。 / "
        "Alerts open at any time within the range; `state=open` is all but `cleared`; comma lists.",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def list_alerts(
        state: Annotated[str | None, Query(max_length=200, examples=["open"])] = None,
        level: Annotated[str | None, Query(max_length=200, examples=["orange,red"])] = None,
        domain: Text = None,
        sensor: Text = None,
        asset: Text = None,
        tenant: Text = None,
        rule: Text = None,
        flag: Annotated[str | None, Query(max_length=200, examples=["shelved,suppressed"])] = None,
        tag: Annotated[str | None, Query(max_length=512, description="现行规则的标签 / of rules in force")] = None,
        first_out: Annotated[
            bool, Query(description="只列各事件最先的报警和可能原因 / the first and the probable root of each incident")
        ] = False,
        from_: From = None,
        to: To = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        start, end = instant("from", from_), instant("to", to)
        check_order(start, end)
        assets = frozenset[str]() if asset is None else await names_of_asset(service, asset)
        rules = words("rule", rule)
        if tag is not None:
            tags = set(words("tag", tag))
            rules = tuple(r.id for r in service.rules.rules if tags & set(r.tags) and (not rules or r.id in rules))
            if not rules:
                return page([], None)
        query = AlertQuery(
            start,
            end,
            states=words("state", state, ("open", *(s.value for s in AlertState))),
            levels=tuple(int(Level.of(word)) for word in words("level", level, LEVELS)),
            domains=words("domain", domain),
            tenants=words("tenant", tenant),
            rules=rules,
            flags=words("flag", flag, FLAGS),
            sensors=(service.catalog.find(sensor),) if sensor is not None else (),
            assets=tuple(assets),
            first_outs=first_out,
        )
        place = parse_cursor("alerts", after, int, str)
        if start is not None and start == end:
            return page([], None)
        seen = None if place is None else (place[0], place[1])
        # The database has an open alert as of its last event; its values of now are in memory.
        if query.states and AlertState.CLEARED.value not in query.states:
            ids = await service.reader.alert_ids(query, limit + 1, seen)
            following = cursor("alerts", *ids[limit - 1]) if len(ids) > limit else None
            found = {alert.id: alert for alert in service.alerts(id_ for _, id_ in ids[:limit])}
            gone = [id_ for _, id_ in ids[:limit] if id_ not in found]  # cleared since we asked
            found |= {alert.id: alert for alert in await service.reader.alerts_of(gone)}
            return page(await _told(service, [found[id_] for _, id_ in ids[:limit] if id_ in found]), following)
        listed = await service.reader.alerts(query, limit + 1, seen)
        following = cursor("alerts", listed[limit - 1].raised_at, listed[limit - 1].id) if len(listed) > limit else None
        standing = {alert.id: alert for alert in service.alerts(a.id for a in listed[:limit])}
        return page(await _told(service, [standing.get(alert.id, alert) for alert in listed[:limit]]), following)

    @routes.get(
        "/alerts/{id}",
        summary="一条报警及其全部过程 / One alert with its whole history",
        responses=example(EXAMPLE | {"events": [EVENT]}) | {404: {"description": "没有该报警 / no such alert"}},
    )
    async def one_alert(id: str) -> Response:
        alert = service.alert(id) or await service.reader.alert(id)
        if alert is None:
            raise no_alert(id)
        events = await service.reader.alert_events(id)
        history = [{"seq": event.seq, **event_json(event)} for event in events]
        return json_answer((await _told(service, [alert]))[0] | {"events": history})

    @routes.post(
        "/alerts/{id}/actions",
        summary="确认、指派、搁置、退出服务、核实、备注、关闭 / Acknowledge, assign, shelve, judge, note, close",
        description="`shelve` 须有 `until`；搁置与退出服务作用于报警点（规则与对象），"
        "其后再次产生的报警同样处于该状态。`assign` 以 `to` 指定处理人，缺省为 `by`。 / "
        "`shelve` needs `until`. A shelf and being out of service are on the alert point (rule and subject), for what "
        "is raised on it later, too. `assign` takes `to`, else `by`.",
        responses=example(EXAMPLE | {"state": "active_acknowledged"})
        | {
            404: {"description": "没有该报警 / no such alert"},
            409: {"description": "状态不允许 / state does not allow it"},
        },
        openapi_extra=json_request(Action, {"action": "acknowledge", "by": "li.wei", "note": "已派人 / crew sent"}),
    )
    async def act(id: str, request: Request, key: Key = None) -> Response:
        given = await json_model(request, Action)
        if given.action not in ACTIONS:
            raise Invalid("action", f"must be one of {', '.join(ACTIONS)}", f"只能是 {'、'.join(ACTIONS)}")
        if given.action == "note" and not (given.note or "").strip():
            raise Invalid("note", "must not be empty", "不能为空")
        for name, text in (("by", given.by), ("note", given.note), ("to", given.to)):
            if text is not None and "\0" in text:
                raise Invalid(name, "must not contain NUL", "不能含有 NUL 字符")
        if "\0" in id:  # the database has no way to ask for it
            raise no_alert(id)
        if given.action == "assign" and not (given.to or given.by or "").strip():
            raise Invalid("to", "is missing: to whom", "缺少处理人")
        until = _until(given, service) if given.action == "shelve" else None
        repeated = await once(request, key)
        acting = service.commands.act(id, given.action, given.by, given.note, repeated, to=given.to, until=until)
        return json_answer(await done(acting))

    return routes


def _until(given: Action, service: ServiceView) -> Micros:
    """The end of a shelf. That it lies ahead is seen to by the command: a repetition may come after it."""
    until, most = instant("until", given.until), service.settings.shelve_h
    if until is None:
        raise Invalid("until", "is needed to shelve", "搁置须给出截止时刻")
    if until > service.clock() + round(most * HOUR):
        raise Invalid("until", f"a shelf lasts at most {most:g} h", f"搁置最长 {most:g} 小时")
    return until


async def _told(service: ServiceView, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """Alerts as JSON, each with the incident that it is in; null until the desk has seen it, a moment after."""
    known = {alert.id: service.desk.incident_of(alert.id) for alert in alerts}
    unknown = [id_ for id_, incident in known.items() if incident is None]
    known |= await incidents_of(service.reader, unknown)
    return [told | {"incident": known[told["id"]]} for told in alerts_json(alerts)]


def no_alert(id: str) -> NotFound:
    return NotFound(f"no alert {id} / 没有报警 {id}")


__all__ = ["ACTIONS", "alert_json", "event_json", "router"]
