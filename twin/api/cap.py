"""Alerts and incidents as CAP 1.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from alerts import cap
from alerts.rules import Words
from twin.api.alerts import no_alert
from twin.api.assets import Networks, find_asset, geojson_of, reached
from twin.api.view import ServiceView
from twin.model import Alert, AlertEvent, AlertState, Conflict, NotFound
from twin.network.tracing import trace
from twin.store import assets as store
from twin.store import incidents
from twin.store.notify import alerts_of_incident

CAP: Final = "application/cap+xml"
WITHIN_M: Final = 2000.0  # of a trace, for an area
AREA_ASSETS: Final = 5000
AREA_ALERTS: Final = 200  # of an incident, whose places make its area
AREA_NAMES: Final = 10

AreaWord = Literal["asset", "upstream", "downstream"]
Number = Annotated[
    int | None,
    Query(ge=1, le=100_000, description="链中第几条，缺省为最新 / which of the chain, by default the newest"),
]
Around = Annotated[
    AreaWord,
    Query(description="asset：设施周围；upstream、downstream：沿管网 2 km 内 / around the asset, or along its network"),
]
_EXAMPLE: Final = (
    '<alert xmlns="urn:oasis:names:tc:emergency:cap:1.2"><identifier>00000000000000_20260701160500_1-0f5b</identifier>'
    "<sender>cimtwin</sender><sent>2026-07-01T16:05:00+08:00</sent><status>Actual</status><msgType>Alert</msgType>"
    "<scope>Restricted</scope> … </alert>"
)
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "CAP 1.2", "content": {CAP: {"schema": {"type": "string"}, "example": _EXAMPLE}}},
    404: {"description": "没有 / there is none"},
}


def router(service: ServiceView, networks: Networks) -> APIRouter:
    routes = APIRouter(tags=["预警 CAP"])
    reader = service.reader

    def title(alert: Alert) -> Words:
        for rule in service.rules.rules:
            given = rule.raw.get("title") if rule.id == alert.rule else None
            if isinstance(given, dict):
                return Words(str(given.get("zh", alert.rule)), str(given.get("en", alert.rule)))
            if isinstance(given, str):
                return Words(given, given)
        return Words(alert.rule, alert.rule)

    async def shapes_of(alert: Alert, which: AreaWord) -> list[dict[str, Any] | None]:
        """What the area is to hold: the asset's shape, or all that a trace reaches; else the sensor's point."""
        point = None if alert.lon is None else {"type": "Point", "coordinates": [alert.lon, alert.lat]}
        if not alert.asset:
            return [point]
        try:
            asset = await find_asset(reader, alert.asset, None)
        except NotFound:
            return [point]
        shapes: list[dict[str, Any] | None] = [await run_in_threadpool(geojson_of, asset) or point]
        if which != "asset":
            try:
                known, place, _ = await networks.find(reader, asset, None)
            except Conflict:
                return shapes
            found = await run_in_threadpool(trace, known.graph, place, which, limit_m=WITHIN_M)
            items = await run_in_threadpool(reached, known, found, place)
            shapes += await store.points_of(reader, [key for key, *_ in items[:AREA_ASSETS]])
        return shapes

    async def written(
        matter: cap.Matter, events: Sequence[AlertEvent], number: int | None, status: str
    ) -> Response:  # fmt: skip
        terms = service.notifier.plan.cap
        messages = await run_in_threadpool(lambda: cap.chain(matter, cap.steps_of(events), terms, status))
        if not messages or (number is not None and number > len(messages)):
            raise NotFound(f"the chain has {len(messages)} messages / 共 {len(messages)} 条")
        message = messages[-1 if number is None else number - 1]
        headers = {"X-Cap-Messages": str(len(messages))}
        return Response(cap.to_xml(message, terms), media_type=CAP, headers=headers)

    async def around(words: str, alerts: Sequence[Alert], which: AreaWord) -> cap.Area:
        shapes = [shape for alert in alerts for shape in await shapes_of(alert, which)]
        return await run_in_threadpool(cap.area_of, words, shapes, service.notifier.plan.cap.radius_m)

    async def of_alert(alert: Alert, which: AreaWord) -> cap.Matter:
        words = alert.place or alert.asset or alert.sensor or alert.id
        return cap.matter_of(alert, title(alert), await around(words, [alert], which))

    @routes.get(
        "/alerts/{id}/cap",
        summary="报警的 CAP 1.2 消息 / An alert as CAP 1.2",
        description="Alert、Update、Cancel 依次相链；范围为 Restricted：测点报警本身从不构成对公众的预警。 / "
        "Alert, Update and Cancel refer to each other. The scope is Restricted: a sensor alone never warns the public.",
        responses=_ANSWER,
    )
    async def alert_cap(
        id: str, number: Number = None, area: Around = "asset", test: Annotated[bool, Query()] = False
    ) -> Response:
        alert = service.alert(id) or await reader.alert(id)
        if alert is None:
            raise no_alert(id)
        events = await reader.alert_events(id)
        return await written(await of_alert(alert, area), events, number, "Test" if test else "Actual")

    @routes.get(
        "/incidents/{id}/cap",
        summary="事件的 CAP 1.2 消息 / An incident as CAP 1.2",
        description="首个报警为 Alert，加入、升降级为 Update，全部解除为 Cancel。 / "
        "Alert with its first alert, Update with each that joins and each change of its worst level, Cancel with the "
        "end of the last.",
        responses=_ANSWER,
    )
    async def incident_cap(id: str, number: Number = None, area: Around = "asset") -> Response:
        ids = await alerts_of_incident(reader, id)
        if not ids:
            merged = (await incidents.one(reader, id) or {}).get("merged_into")
            part = "" if merged is None else f": it is part of {merged} / 已并入 {merged}"
            raise NotFound(f"no alerts in an incident {id} / 事件 {id} 没有报警{part}")
        alerts = await reader.alerts_of(ids)
        events = await reader.events_of(ids)
        shown = alerts[:AREA_ALERTS]
        places = "、".join(dict.fromkeys(alert.place or alert.id for alert in shown[:AREA_NAMES]))
        matter = cap.matter_of_incident(
            id, alerts, [title(alert) for alert in alerts], await around(places, shown, area)
        )  # fmt: skip
        return await written(matter, events, number, "Actual")

    @routes.get(
        "/replays/{id}/alerts/{alert}/cap",
        summary="回放中报警的 CAP 1.2 消息 / An alert of a replay as CAP 1.2",
        description="状态为 Exercise（演练）。 / Its status is Exercise.",
        responses=_ANSWER,
    )
    async def replay_cap(id: str, alert: str, number: Number = None, area: Around = "asset") -> Response:
        replay = service.replays.find(id)
        events = [event for event in await replay.events_after(0, 1 << 30) if event.alert_id == alert]
        if not events:
            raise no_alert(alert)
        standing = next((one for one in replay.snapshot()[1] if one.id == alert), None)
        matter = await of_alert(standing or _alert_of(events[-1]), area)
        return await written(matter, events, number, "Exercise")

    return routes


def _alert_of(event: AlertEvent) -> Alert:
    """What an event tells of its alert, for one that is over and gone from memory."""
    return Alert(
        event.alert_id, event.rule, event.rule_version, event.sensor, event.sensor_index, event.asset, event.tenant,
        event.domain, event.level, event.level, AlertState.CLEARED, event.observed_at, event.observed_at, event.value,
        event.value, event.threshold, None, (), event.lon, event.lat, event.asset, event.message_zh, event.message_en,
    )  # fmt: skip
