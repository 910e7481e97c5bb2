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

CAP: Final = "application/cap+xml"
WITHIN_M: Final = 2000.0  # of a trace, for an area
AREA_ASSETS: Final = 5000

AreaWord = Literal["asset", "upstream", "downstream"]
Number = Annotated[
    int | None,
    Query(ge=1, le=100_000, description="链中第几条，缺省为最新 / which of the chain, by default the newest"),
]
Around = Annotated[
    AreaWord,
    Query(description="asset：设施周围；upstream、downstream：沿管网 2 km 内 / around the asset, or along its network"),
]
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "CAP 1.2", "content": {CAP: {"schema": {"type": "string"}}}},
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

    async def shapes_of(alert: Alert, around: AreaWord) -> list[dict[str, Any] | None]:
        """What the area is to hold: the asset's shape, or all that a trace reaches; else the sensor's point."""
        point = None if alert.lon is None else {"type": "Point", "coordinates": [alert.lon, alert.lat]}
        if not alert.asset:
            return [point]
        try:
            asset = await find_asset(reader, alert.asset, None)
        except NotFound:
            return [point]
        shapes: list[dict[str, Any] | None] = [await run_in_threadpool(geojson_of, asset) or point]
        if around != "asset":
            try:
                known, place, _ = await networks.find(reader, asset, None)
            except Conflict:
                return shapes
            found = await run_in_threadpool(trace, known.graph, place, around, limit_m=WITHIN_M)
            items = await run_in_threadpool(reached, known, found, place)
            shapes += await store.points_of(reader, [key for key, *_ in items[:AREA_ASSETS]])
        return shapes

    async def written(
        alert: Alert, events: Sequence[AlertEvent], around: AreaWord, number: int | None, status: str
    ) -> Response:
        terms = service.notifier.plan.cap
        words = alert.place or alert.asset or alert.sensor or alert.id
        shapes = await shapes_of(alert, around)
        area = await run_in_threadpool(cap.area_of, words, shapes, terms.radius_m)
        matter = cap.matter_of(alert, title(alert), area)
        messages = cap.chain(matter, cap.steps_of(events), terms, status)
        if not messages or (number is not None and number > len(messages)):
            raise NotFound(f"the chain has {len(messages)} messages / 共 {len(messages)} 条")
        message = messages[-1 if number is None else number - 1]
        headers = {"X-Cap-Messages": str(len(messages))}
        return Response(cap.to_xml(message, terms), media_type=CAP, headers=headers)

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
        return await written(alert, events, area, number, "Test" if test else "Actual")

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
        return await written(standing or _alert_of(events[-1]), events, area, number, "Exercise")

    return routes


def _alert_of(event: AlertEvent) -> Alert:
    """What an event tells of its alert, for one that is over and gone from memory."""
    return Alert(
        event.alert_id, event.rule, event.rule_version, event.sensor, event.sensor_index, event.asset, event.tenant,
        event.domain, event.level, event.level, AlertState.CLEARED, event.observed_at, event.observed_at, event.value,
        event.value, event.threshold, None, (), event.lon, event.lat, event.asset, event.message_zh, event.message_en,
    )  # fmt: skip
