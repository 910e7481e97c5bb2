"""Replays (回放): stored readings and alert events played again, on a clock of their own."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StrictBool
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from twin.api.errors import Invalid
from twin.api.parameters import (
    After,
    Key,
    Limit,
    box,
    cursor,
    example,
    instant,
    json_answer,
    json_model,
    json_request,
    once,
    page,
    parse_cursor,
)  # fmt: skip
from twin.api.rules import rules_given
from twin.api.view import ServiceView
from twin.model import Micros, StoreUnavailable, iso
from twin.replay_worker import SPEEDS, Wanted, is_speed, selection

ACTIONS: Final = ("play", "pause", "seek", "speed", "stop")
ANSWER_S: Final = 60.0

EXAMPLE: Final[dict[str, Any]] = {
    "id": "4be1f0c2d3a9", "state": "playing", "time": "2023-12-18T06:15:00Z", "from": "2023-12-18T00:00:00Z",
    "to": "2023-12-19T00:00:00Z", "speed": 60, "sensors": 67, "readings": 1204, "events": 9,
    "digest": "68c08e1864f75a8a01ba322dfc520fe2", "recorded": None, "rules": "recorded", "received_before": None,
    "created_at": "2026-07-01T08:00:00Z", "error": None,
}  # fmt: skip
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class NewReplay(BaseModel):
    """[from, to) of event time. `speed`: times faster than recorded, 0 as fast as possible. `area`: a box; with
    `sensors`, those of them inside. `rules`: TOML, or JSON as `GET /rules` gives it, instead of the recorded ones.
    `received_before`: only what was known then. `paused`: stand at the start until `play`."""

    from_: str = Field(alias="from", max_length=64, examples=["2023-12-18T00:00:00Z"])
    to: str = Field(max_length=64, examples=["2023-12-19T00:00:00Z"])
    speed: Number = 1.0
    area: str | list[Number] | None = Field(None, examples=[[-74.1, 40.6, -73.8, 40.8]])
    sensors: list[str] | None = Field(None, max_length=100_000)
    rules: str | dict[str, Any] | list[dict[str, Any]] | None = None
    received_before: str | None = Field(None, max_length=64)
    paused: StrictBool = False


class Control(BaseModel):
    """`time` goes with `seek`, `speed` with `speed` (or with `play`)."""

    action: str = Field(max_length=64, examples=["seek"])
    time: str | None = Field(None, max_length=64, examples=["2023-12-18T06:00:00Z"])
    speed: Number | None = None


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["回放 replays"])
    acting = asyncio.Lock()  # so that of two requests with one Idempotency-Key the second finds the answer of the first

    @routes.post(
        "/replays",
        summary="开始回放 / Begin a replay",
        description="按事件时间回放 `[from, to)` 内的读数与报警事件，只读。用 `/ws/v1/replays/{id}` 观看；"
        "首个客户端订阅后（至多 3 秒）开始播放。 / "
        "Plays the readings and alert events of `[from, to)` by event time; changes nothing. It begins to move when a "
        "first client has subscribed at `/ws/v1/replays/{id}`, after 3 s at the latest.",
        responses=example(EXAMPLE)
        | {
            404: {"description": "没有该测点 / no such sensor"},
            409: {"description": "同时进行的回放过多 / as many replays run as may"},
        },
        openapi_extra=json_request(
            NewReplay, {"from": "2023-12-18T00:00:00Z", "to": "2023-12-19T00:00:00Z", "speed": 60}
        ),
    )
    async def start(request: Request, key: Key = None) -> Response:
        repeated = await once(request, key)
        async with acting:
            known = service.replays.answered(repeated)
            if known is not None:
                return json_answer(known)
            given = await json_model(request, NewReplay)
            wanted = await run_in_threadpool(_wanted, given, service)
            view = await run_in_threadpool(service.replays.start, wanted, given.paused)
            return json_answer(service.replays.answer(repeated, orjson.dumps(view.status())))

    @routes.get(
        "/replays",
        summary="回放列表，新的在前 / Replays, newest first",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def all_replays(limit: Limit = 100, after: After = None) -> Response:
        last = parse_cursor("replays", after, int, str)
        found = [view for view in service.replays.listed() if last is None or (view.created_at, view.id) < last]
        following = cursor("replays", found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
        return page([view.status() for view in found[:limit]], following)

    @routes.get(
        "/replays/{id}",
        summary="一个回放 / One replay",
        responses=example(EXAMPLE) | {404: {"description": "没有该回放 / no such replay"}},
    )
    async def one_replay(id: str) -> Response:
        return json_answer(service.replays.find(id).status())

    @routes.post(
        "/replays/{id}/control",
        summary="播放、暂停、定位、变速、停止 / Play, pause, seek, speed, stop",
        responses=example(EXAMPLE | {"state": "paused"})
        | {
            404: {"description": "没有该回放 / no such replay"},
            409: {"description": "回放已结束 / the replay has been stopped"},
        },
        openapi_extra=json_request(Control, {"action": "seek", "time": "2023-12-18T06:00:00Z"}),
    )
    async def control(id: str, request: Request, key: Key = None) -> Response:
        repeated = await once(request, key)
        known = service.replays.answered(repeated)
        if known is not None:
            return json_answer(known)
        view = service.replays.find(id)
        given = await json_model(request, Control)
        if given.action not in ACTIONS:
            raise Invalid("action", f"must be one of {', '.join(ACTIONS)}", f"只能是 {'、'.join(ACTIONS)}")
        argument: float | int | None = None
        if given.action == "seek":
            argument = time_given("time", given.time)
            if not view.wanted.start <= argument <= view.wanted.end:
                span = f"{iso(view.wanted.start)} … {iso(view.wanted.end)}"
                raise Invalid("time", f"must lie within {span}", f"必须在 {span} 之内")
        elif given.action == "speed":
            if given.speed is None:
                raise Invalid("speed", "is needed", "缺少 speed")
            argument = _speed(given.speed)
        elif given.action == "play" and given.speed is not None:
            await _done(await run_in_threadpool(view.control, "speed", _speed(given.speed)))
        await _done(await run_in_threadpool(view.control, given.action, argument))
        return json_answer(service.replays.answer(repeated, orjson.dumps(view.status())))

    return routes


def _wanted(given: NewReplay, service: ServiceView) -> Wanted:
    begin, end = span_given(given.from_, given.to)
    return Wanted(
        begin,
        end,
        _speed(given.speed),
        selection(service.catalog, given.sensors, _area(given)),
        None if given.rules is None else rules_given(given.rules, service).text,
        None if given.received_before is None else time_given("received_before", given.received_before),
    )


async def _done(future: Any) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            await asyncio.wrap_future(future)
    except TimeoutError:
        raise StoreUnavailable(f"a replay did not answer within {ANSWER_S:g} s") from None


def time_given(field: str, text: str | None) -> Micros:
    """A time that must be there."""
    at = instant(field, text)
    if at is None:
        raise Invalid(field, "is needed", f"缺少 {field}")
    return at


def span_given(start: str, end: str) -> tuple[Micros, Micros]:
    """[from, to), not empty."""
    begin, stop = time_given("from", start), time_given("to", end)
    if begin >= stop:
        raise Invalid("from", f"must be before to ({iso(stop)})", "必须早于 to")
    return begin, stop


def _speed(speed: float) -> float:
    if not is_speed(speed):
        text = " … ".join(f"{end:g}" for end in SPEEDS)
        raise Invalid("speed", f"must be {text}, or 0 for as fast as possible", f"应为 {text}，0 为尽快")
    return speed


def _area(given: NewReplay) -> tuple[float, float, float, float] | None:
    area = given.area if isinstance(given.area, str) or given.area is None else ",".join(map(repr, given.area))
    return box(area, "area")
