"""Holds (抑制): silences, maintenance windows, mute times, suppression by design; shelves and points out of service are
listed with them. One resource with a kind, not one each: all are matchers with a beginning and an end, and a shift has
one question, what is being held back now, by whom and until when."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from alerts.holds import FLAG_OF, POINT_KINDS, hold_json, read_matchers, read_times
from twin.api.errors import Invalid, done
from twin.api.parameters import (
    After,
    Key,
    Limit,
    cursor,
    example,
    instant,
    json_answer,
    json_model,
    json_request,
    once,
    page,
    parse_cursor,
    text_field,
    words,
)
from twin.api.view import ServiceView
from twin.model import Hold, Micros, NotFound, Problem, Refused, iso
from twin.store import holds as store

KINDS: Final = tuple(kind for kind in FLAG_OF if kind not in POINT_KINDS)
EXAMPLE: Final[dict[str, Any]] = {
    "id": "5d1c7a90be3344f0a1b2", "kind": "maintenance", "state": "active", "flag": "suppressed",
    "matchers": {"asset": ["underpass-3"], "level": ["blue", "yellow"]}, "times": None,
    "from": "2026-07-01T08:00:00Z", "until": "2026-07-01T12:00:00Z", "by": "li.wei", "note": "换泵 / new pump",
    "created_at": "2026-07-01T07:55:00Z", "ended_at": None, "ended_by": None, "end_note": None,
}  # fmt: skip


class NewHold(BaseModel):
    """What to hold back: alerts that fit all of `matchers` (by label a text or a list of texts; a text that ends in `*`
    is a beginning), from `from` (now) to `until`, only at `times` where given."""

    kind: str = Field(examples=["silence"], max_length=64)
    matchers: dict[str, Any] = Field(examples=[{"rule": "road-ponding", "asset": ["underpass-3"]}])
    from_: str | None = Field(None, alias="from", max_length=64)
    until: str | None = Field(None, max_length=64, examples=["2026-07-01T12:00:00Z"])
    times: dict[str, Any] | None = Field(
        None, examples=[{"months": [6, 7], "weekdays": [1, 5], "hours": ["22:00-06:00"], "time_zone": "Asia/Shanghai"}]
    )
    by: str | None = Field(None, max_length=200, examples=["li.wei"])
    note: str | None = Field(None, max_length=4000)


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["抑制 holds"])

    @routes.get(
        "/holds",
        summary="静默、检修窗口、免打扰时段、搁置等 / Silences, maintenance, mute times, shelves, newest first",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def list_holds(
        kind: Annotated[str | None, Query(max_length=200, examples=["silence,mute"])] = None,
        state: Annotated[str | None, Query(max_length=20, description="standing, ended")] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        kinds = words("kind", kind, FLAG_OF)
        states = set(words("state", state, ("standing", "ended")))
        is_standing = None if len(states) != 1 else "standing" in states
        place = parse_cursor("holds", after, int, str)
        now = service.clock()
        found = await store.listed(
            service.reader, kinds, is_standing, now, limit + 1, None if place is None else (place[0], place[1])
        )
        following = cursor("holds", found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
        return page([hold_json(hold, now) for hold in found[:limit]], following)

    @routes.post(
        "/holds",
        summary="新建静默、检修窗口等 / Begin a silence, maintenance window, mute time, suppression by design",
        description="`silence` 与 `maintenance` 须有 `until`；`mute` 须有 `times`。报警照常产生，"
        "只是带 `suppressed` 标志、不打扰人。搁置与退出服务在报警上操作。 / "
        "`silence` and `maintenance` need `until`, `mute` needs `times`. Alerts are raised all the same, with the flag "
        "`suppressed`, and nobody is disturbed. Shelving is done on the alert.",
        responses=example(EXAMPLE) | {422: {"description": "有误 / mistakes, all listed"}},
        openapi_extra=json_request(
            NewHold,
            {
                "kind": "maintenance",
                "matchers": {"asset": "underpass-3"},
                "until": "2026-07-01T12:00:00Z",
                "by": "li.wei",
                "note": "换泵 / new pump",
            },
        ),
    )
    async def begin(request: Request, key: Key = None) -> Response:
        given = await json_model(request, NewHold)
        hold = _hold(given, service.clock())
        repeated = await once(request, key)
        return json_answer(await done(service.commands.begin_hold(hold, repeated)))

    @routes.get(
        "/holds/{id}",
        summary="一个抑制 / One hold",
        responses=example(EXAMPLE) | {404: {"description": "没有该抑制 / no such hold"}},
    )
    async def one_hold(id: str) -> Response:
        hold = None if "\0" in id else await store.one(service.reader, id)
        if hold is None:
            raise NotFound(f"no hold {id} / 没有该抑制 {id}")
        return json_answer(hold_json(hold, service.clock()))

    @routes.delete(
        "/holds/{id}",
        summary="立即结束 / End it now",
        responses=example(EXAMPLE | {"state": "ended", "ended_at": "2026-07-01T09:00:00Z", "ended_by": "li.wei"})
        | {404: {"description": "没有该抑制 / no such hold"}, 409: {"description": "已结束 / it has ended"}},
    )
    async def end(
        id: str,
        by: Annotated[str | None, Query(max_length=200, description="谁 / who")] = None,
        note: Annotated[str | None, Query(max_length=4000)] = None,
    ) -> Response:
        if "\0" in id:
            raise NotFound("no such hold / 没有该抑制")
        given = {"by": by, "note": note}
        who, why = text_field(given, "by"), text_field(given, "note", 4000)
        return json_answer(await done(service.commands.end_hold(id, who, why)))

    return routes


def _hold(given: NewHold, now: Micros) -> Hold:
    """What is asked for, checked. Raises `Refused` with every mistake, or `Invalid`."""
    if given.kind in POINT_KINDS:
        raise Invalid("kind", f"{given.kind} is an action on the alert", f"{given.kind} 请在报警上操作")
    problems: list[Problem] = []
    if given.kind not in KINDS:
        problems.append(Problem("kind", "", f"must be one of {', '.join(KINDS)}"))
    matchers, wrong = read_matchers(given.matchers)
    problems += [Problem("matchers", label, text) for label, text in wrong]
    if given.times is not None:
        problems += [Problem("times", name, text) for name, text in read_times(given.times)[1]]
    start, end = instant("from", given.from_), instant("until", given.until)
    if given.kind == "mute" and given.times is None:
        problems.append(Problem("times", "", "is missing: a mute time recurs"))
    if given.kind in ("silence", "maintenance") and end is None:
        problems.append(Problem("until", "", f"is missing: a {given.kind} has an end"))
    if end is not None and start is not None and end <= start:
        problems.append(Problem("until", "", f"must lie after from ({iso(start)})"))
    texts = given.model_dump()
    by, note = text_field(texts, "by"), text_field(texts, "note", 4000)
    if problems:
        raise Refused(problems)
    return Hold("", given.kind, matchers, now if start is None else start, end, given.times, by, note)
