"""Sensors (测点): the list, one of them, adding and changing them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from alerts.rules import Rule
from twin.api.errors import Invalid, done
from twin.api.parameters import (
    After,
    Box,
    Key,
    Limit,
    Text,
    box,
    cursor,
    decoded,
    example,
    json_answer,
    json_object,
    number,
    once,
    page,
    parse_cursor,
    text_field,
    words,
)
from twin.api.view import ServiceView
from twin.live import box_mask
from twin.model import LEVELS, Bools, NotFound, Sensor
from twin.sensors import parse_sensors_csv, sensor_to_json, sensors_from_json
from twin.store.assets import names_of

EXAMPLE = {
    "id": "ponding-17/depth", "device": "ponding-17", "property": "depth", "kind": "drainage.ponding_depth",
    "unit": "cm", "tenant": "drainage-co", "asset": "underpass-3", "lon": 114.05, "lat": 22.54, "interval_s": 60,
    "min": 0, "max": 300, "tags": ["underpass"], "mode": "normal", "statistic": None,
}  # fmt: skip
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
                "example": [
                    {"device": "ponding-17", "property": "depth", "kind": "drainage.ponding_depth", "unit": "cm",
                     "lon": 114.05, "lat": 22.54, "interval_s": 60, "min": 0, "max": 300}
                ],
            },
            "text/csv": {
                "schema": {"type": "string"},
                "example": "device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags\n"
                "ponding-17,depth,drainage.ponding_depth,cm,,underpass-3,114.05,22.54,60,0,300,underpass\n",
            },
        },
    }
}  # fmt: skip


_KIND: Final = {"name": "drainage.ponding_depth", "unit": "cm", "zh": "积水深度", "en": "Ponding depth"}
_RULE: Final[dict[str, Any]] = {
    "id": "road-ponding", "title": {"zh": "道路积水", "en": "Road ponding"}, "detector": "threshold", "side": "above",
    "levels": {"blue": 10, "yellow": 15, "orange": 25, "red": 40}, "min": None, "max": None, "unit": "cm",
}  # fmt: skip


def _rule(service: ServiceView, rule: Rule, index: int) -> dict[str, Any]:
    """A rule as it looks at a sensor: its limits there."""
    catalog = service.catalog
    low, high = rule.min, rule.max
    if rule.detector == "range":
        low = float(catalog.low[index]) if low is None else low
        high = float(catalog.high[index]) if high is None else high
    limits = zip(LEVELS, rule.levels, strict=True)
    return {
        "id": rule.id,
        "title": {"zh": rule.title.zh, "en": rule.title.en},
        "detector": rule.detector,
        "side": rule.side,
        "levels": {word: limit for word, limit in limits if not math.isnan(limit)},
        "level": rule.level.word,
        "min": None if low is None else number(low),
        "max": None if high is None else number(high),
        "unit": catalog.kind(index).unit,
    }


async def names_of_asset(service: ServiceView, asset: str) -> frozenset[str]:
    """Every text by which sensors and alerts may name this asset. NotFound where no sensor, model or alert does."""
    names = await names_of(service.reader, asset)
    if any(sensor.asset == asset for sensor in service.catalog.sensors):
        names.add(asset)
    if not names:
        raise NotFound(f"no asset {asset} / 没有设施 {asset}")
    return frozenset(names)


def matching(
    service: ServiceView,
    after: int,
    limit: int,
    *,
    within: Bools | None,
    kinds: tuple[str, ...] = (),
    domains: tuple[str, ...] = (),
    tenant: str | None = None,
    device: str | None = None,
    assets: Collection[str] | None = None,
    q: str | None = None,
) -> list[int]:
    """Indices above `after` of the first `limit` sensors that fit."""
    catalog = service.catalog
    needle = q.casefold() if q else None
    is_narrowed = device is not None or kinds or domains or tenant is not None or assets is not None or needle
    if device is not None:
        candidates = sorted(catalog.devices.get(device, {}).values())
    elif within is not None:
        candidates = (np.flatnonzero(within[after + 1 :]) + after + 1)[: None if is_narrowed else limit].tolist()
    else:
        candidates = list(range(after + 1, len(catalog)))
    found: list[int] = []
    if not is_narrowed:
        return candidates[:limit]
    for index in candidates:
        if index <= after or (within is not None and not (index < len(within) and within[index])):
            continue
        s = catalog.sensors[index]
        if (
            (kinds and s.kind not in kinds)
            or (domains and s.kind.partition(".")[0] not in domains)
            or (tenant is not None and s.tenant != tenant)
            or (assets is not None and s.asset not in assets)
            or (needle is not None and not _mentions(s, needle))
        ):
            continue
        found.append(index)
        if len(found) >= limit:
            break
    return found


def _mentions(sensor: Sensor, needle: str) -> bool:
    texts = (sensor.device, sensor.property, sensor.kind, sensor.tenant, sensor.asset or "", *sensor.tags)
    return needle in sensor.id.casefold() or any(needle in text.casefold() for text in texts)


def check_kinds(service: ServiceView, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        if kind not in service.kinds:
            raise NotFound(f"no kind {kind} / 没有指标 {kind}")


def within_box(service: ServiceView, text: str | None) -> Bools | None:
    """Which sensors are inside the `bbox` of a query; None if there is none."""
    corners = box(text)
    return None if corners is None else box_mask(service.catalog, corners)


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["测点 sensors"])

    @routes.get(
        "/sensors",
        summary="测点列表 / List sensors",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def list_sensors(
        q: Annotated[
            str | None, Query(max_length=200, description="编号、设施、标签等含此文字 / text to look for")
        ] = None,
        tenant: Text = None,
        kind: Text = None,
        domain: Text = None,
        bbox: Box = None,
        asset: Text = None,
        device: Text = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        last = (parse_cursor("sensors", after, int) or (-1,))[0]
        kinds = words("kind", kind)
        check_kinds(service, kinds)
        assets = None if asset is None else await names_of_asset(service, asset)
        if device is not None and device not in service.catalog.devices:
            raise NotFound(f"no device {device} / 没有设备 {device}")
        found = matching(
            service, last, limit + 1, within=within_box(service, bbox), kinds=kinds, domains=words("domain", domain),
            tenant=tenant, device=device, assets=assets, q=q,
        )  # fmt: skip
        items = [sensor_to_json(service.catalog.sensors[index]) for index in found[:limit]]
        return page(items, cursor("sensors", found[limit - 1]) if len(found) > limit else None)

    @routes.get(
        "/kinds",
        summary="指标目录 / The catalogue of kinds",
        responses=example({"items": [_KIND], "next": None}),
    )
    async def kinds() -> Response:
        return page([{"name": k.name, "unit": k.unit, "zh": k.zh, "en": k.en} for k in service.kinds.values()], None)

    @routes.post(
        "/sensors",
        summary="新增或更新测点（单个、列表或 CSV） / Create or update sensors (one, a list, or CSV)",
        description="整体接受或整体拒绝，列出全部错误。 / All or nothing, with every mistake listed.",
        responses=example({"created": 1, "updated": 0}) | {422: {"description": "有误 / mistakes, all listed"}},
        openapi_extra=_BODY,
    )
    async def put_sensors(request: Request, key: Key = None) -> Response:
        data = await request.body()
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media.endswith("json") or (media != "text/csv" and data.lstrip()[:1] in (b"{", b"["))
        tenant = service.settings.default_tenant
        if is_json:
            given = json_list(data)
            sensors = await run_in_threadpool(sensors_from_json, given, service.kinds, default_tenant=tenant)
        else:
            sensors = await run_in_threadpool(parse_sensors_csv, data, service.kinds, default_tenant=tenant)
        return json_answer(await done(service.commands.put_sensors(sensors, await once(request, key))))

    @routes.get(
        "/sensors/{device}/{property:path}",
        summary="一个测点 / One sensor",
        description="`rules` 为监视该测点的现行规则，限值按指标的标准单位。 / "
        "`rules` are those in force that look at it, limits in the kind's canonical unit.",
        responses=example(EXAMPLE | {"rules": [_RULE]}) | {404: {"description": "没有该测点 / no such sensor"}},
    )
    async def get_sensor(device: str, property: str) -> Response:
        index = service.catalog.find(f"{device}/{property}")
        rules = [_rule(service, rule, index) for rule in service.rules_on(index)]
        return json_answer(sensor_to_json(service.catalog.sensors[index]) | {"rules": rules})

    @routes.patch(
        "/sensors/{device}/{property:path}",
        summary="修改测点；检定、试验模式 / Change a sensor; put it in calibration or test",
        responses=example(EXAMPLE | {"mode": "calibration"}),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"type": "object"},
                        "example": {"mode": "calibration", "reason": "年度检定 yearly calibration", "by": "li.wei"},
                    }
                },
            }
        },
    )
    async def patch_sensor(device: str, property: str, request: Request) -> Response:
        sensor_id = f"{device}/{property}"
        service.catalog.find(sensor_id)
        changes = await json_object(request)
        by = text_field(changes, "by")
        changes.pop("by", None)
        if "reason" in changes:
            changes["reason"] = text_field(changes, "reason", 1000)
        if not changes.keys() - {"reason"}:
            raise Invalid("", "names nothing to change", "没有要修改的内容")
        if "mode" in changes and not isinstance(changes["mode"], str):
            raise Invalid("mode", "must be normal, test or calibration", "只能是 normal、test 或 calibration")
        return json_answer(sensor_to_json(await done(service.commands.patch_sensor(sensor_id, changes, by))))

    return routes


def json_list(data: bytes) -> list[Any]:
    """The objects of a JSON body: one, a list, or a list under `items`."""
    given = decoded(data)
    if isinstance(given, dict):
        items = given.get("items")
        return items if isinstance(items, list) and "device" not in given else [given]
    if not isinstance(given, list):
        raise Invalid("", "the body must be an object or a list of objects", "请求体必须是对象或对象列表")
    return given
