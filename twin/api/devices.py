"""Devices (设备): another one in place of a broken one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from twin.api.errors import Invalid, done
from twin.api.parameters import Key, example, instant, json_answer, json_model, json_request, once
from twin.api.view import ServiceView
from twin.model import NotFound, iso
from twin.sensors import name_fault


class Replace(BaseModel):
    """From `since` (RFC 3339; now if left out) on, what the hardware `by` sends are readings of the device."""

    by: str = Field(min_length=1, max_length=128, examples=["ponding-17-b"])
    since: str | None = Field(None, max_length=64, examples=["2026-07-01T08:00:00Z"])
    person: str | None = Field(None, min_length=1, max_length=200, examples=["li.wei"])


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["设备 devices"])

    @routes.post(
        "/devices/{device}/replace",
        summary="更换设备，测点历史保留 / Replace a device; its measuring points keep their history",
        responses=example({"device": "ponding-17", "hardware": "ponding-17-b", "since": "2026-07-01T08:00:00Z"})
        | {404: {"description": "没有该设备 / no such device"}, 409: {"description": "不允许 / not possible"}},
        openapi_extra=json_request(Replace, {"by": "ponding-17-b", "since": "2026-07-01T08:00:00Z"}),
    )
    async def replace(device: str, request: Request, key: Key = None) -> Response:
        if device not in service.catalog.devices:
            raise NotFound(f"no device {device} / 没有设备 {device}")
        given = await json_model(request, Replace)
        fault = name_fault(given.by)
        if fault is not None or given.by == "gateway":
            raise Invalid("by", fault or "must not be gateway", "不是有效的设备编号")
        since = instant("since", given.since)
        person, repeated = given.person, await once(request, key)
        if person is not None and "\0" in person:
            raise Invalid("person", "must not contain NUL", "不能含有 NUL 字符")
        answer = await done(service.commands.replace_device(device, given.by, since, person, repeated))
        if isinstance(answer.get("since"), int):
            answer = answer | {"since": iso(answer["since"])}
        return json_answer(answer)

    return routes
