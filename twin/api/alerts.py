"""Alerts (报警): the list, one with its history, and what people do about them."""

from __future__ import annotations

from collections.abc import Sequence
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
from twin.api.sensors import names_of_asset
from twin.api.view import ServiceView
from twin.live import alert_json, alerts_json, event_json
from twin.model import LEVELS, Alert, AlertState, Level, NotFound
from twin.store.incidents import incidents_of
from twin.store.reader import AlertQuery

ACTIONS: Final = ("acknowledge", "note", "close")
LATER: Final = ("assign", "shelve", "unshelve", "out_of_service", "return_to_service", "confirm", "false_alarm")

EXAMPLE: Final[dict[str, Any]] = {
    "id": "0f5b3c8a9d7e6f001122", "rule": "road-ponding", "rule_version": 1, "sensor": "ponding-17/depth",
    "asset": "underpass-3", "tenant": "drainage-co", "domain": "drainage", "level": "orange", "peak_level": "orange",
    "state": "active_unacknowledged", "flags": [], "since": "2026-07-01T08:00:00Z",
    "raised_at": "2026-07-01T08:05:00Z", "cleared_at": None, "value": 26.1, "peak_value": 27.4, "threshold": 25,
    "place": {"lon": 114.05, "lat": 22.54, "name": "underpass-3"},
    "instruction": {"zh": "封闭下穿通道", "en": "Close the underpass"},
    "message": {"zh": "道路积水 26.1 cm", "en": "Road ponding 26.1 cm"}, "incident": "5d0c4d6a9b7e6f001122",
}  # fmt: skip
EVENT: Final[dict[str, Any]] = {
    "seq": 41, "id": "a1b2c3d4e5f60718293a", "alert_id": EXAMPLE["id"], "rule": "road-ponding",
    "sensor": "ponding-17/depth", "asset": "underpass-3", "level": "orange", "state": "active_unacknowledged",
    "transition": "raised", "value": 26.1, "threshold": 25, "observed_at": "2026-07-01T08:05:00Z",
    "at": "2026-07-01T08:05:00.310Z", "message": {"zh": "道路积水 26.1 cm", "en": "Road ponding 26.1 cm"},
}  # fmt: skip


class Action(BaseModel):
    """What somebody does about an alert. `by` says who, `note` why; `until` is for shelving."""

    action: str = Field(examples=["acknowledge"], max_length=64)
    by: str | None = Field(None, min_length=1, max_length=200, examples=["li.wei"])
    note: str | None = Field(None, max_length=4000, examples=["已派人 / crew sent"])
    until: str | None = Field(None, max_length=64)


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
        query = AlertQuery(
            start,
            end,
            states=words("state", state, ("open", *(s.value for s in AlertState))),
            levels=tuple(int(Level.of(word)) for word in words("level", level, LEVELS)),
            domains=words("domain", domain),
            tenants=words("tenant", tenant),
            rules=words("rule", rule),
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
        summary="确认、备注、关闭 / Acknowledge, note, close",
        responses=example(EXAMPLE | {"state": "active_acknowledged"})
        | {
            404: {"description": "没有该报警 / no such alert"},
            409: {"description": "状态不允许 / state does not allow it"},
        },
        openapi_extra=json_request(Action, {"action": "acknowledge", "by": "li.wei", "note": "已派人 / crew sent"}),
    )
    async def act(id: str, request: Request, key: Key = None) -> Response:
        given = await json_model(request, Action)
        if given.action in LATER:
            raise Invalid("action", f"{given.action} is not yet available", f"{given.action} 尚不可用")
        if given.action not in ACTIONS:
            raise Invalid("action", f"must be one of {', '.join(ACTIONS)}", f"只能是 {'、'.join(ACTIONS)}")
        if given.action == "note" and not (given.note or "").strip():
            raise Invalid("note", "must not be empty", "不能为空")
        for name, text in (("by", given.by), ("note", given.note)):
            if text is not None and "\0" in text:
                raise Invalid(name, "must not contain NUL", "不能含有 NUL 字符")
        if "\0" in id:  # the database has no way to ask for it
            raise no_alert(id)
        repeated = await once(request, key)
        return json_answer(await done(service.commands.act(id, given.action, given.by, given.note, repeated)))

    return routes


async def _told(service: ServiceView, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """Alerts as JSON, each with the incident that it is in; null until the desk has seen it, a moment after."""
    known = {alert.id: service.desk.incident_of(alert.id) for alert in alerts}
    unknown = [id_ for id_, incident in known.items() if incident is None]
    known |= await incidents_of(service.reader, unknown)
    return [told | {"incident": known[told["id"]]} for told in alerts_json(alerts)]


def no_alert(id: str) -> NotFound:
    return NotFound(f"no alert {id} / 没有报警 {id}")


__all__ = ["ACTIONS", "LATER", "alert_json", "event_json", "router"]
