"""How alerts reach people: the plan, a test of a receiver, and every delivery."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from alerts.notify.desk import on_duty
from alerts.notify.notice import KINDS
from alerts.notify.plan import masked
from twin.api.errors import Invalid
from twin.api.parameters import (
    JSON,
    TOML,
    After,
    IfMatch,
    Key,
    Limit,
    Text,
    accepted,
    cursor,
    example,
    instant,
    is_json_body,
    json_answer,
    json_model,
    json_request,
    once,
    page,
    parse_cursor,
    text_field,
    version_named,
    words,
)
from twin.api.view import ServiceView
from twin.model import NotFound, iso
from twin.store import notify as store
from twin.telling import STATES

_TOML_EXAMPLE: Final = (
    '[receiver.desk]\ntype = "webhook"\nurl = "http://127.0.0.1:9000/alerts"\nsecret = "env:DESK_SECRET"\n\n'
    '[[route]]\nreceivers = ["desk"]\n'
)
_EXAMPLE: Final[dict[str, Any]] = {
    "version": 2,
    "receiver": {"desk": {"type": "webhook", "url": "http://127.0.0.1:9000/alerts", "secret": "env:DESK_SECRET"}},
    "route": [{"receivers": ["desk"]}],
}
DELIVERY: Final[dict[str, Any]] = {
    "id": "5b1f0d8ce0a94c5f9a7e", "receiver": "desk", "kind": "alert", "level": "orange", "state": "sent",
    "reason": None, "alerts": ["0f5b3c8a9d7e6f001122"], "incident": None,
    "group": "asset:underpass-3|rule:road-ponding", "attempts": 1, "last_error": None, "instead_of": None,
    "next_at": None, "created_at": "2026-07-01T08:05:01Z", "changed_at": "2026-07-01T08:05:11Z",
    "sent_at": "2026-07-01T08:05:11Z",
}  # fmt: skip
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            TOML: {"schema": {"type": "string"}, "example": _TOML_EXAMPLE},
            JSON: {"schema": {"type": "object"}, "example": _EXAMPLE},
        },
    }
}
_404: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "没有该投递 / no such delivery"}}


class Test(BaseModel):
    """Which receiver is to get a test message."""

    receiver: str = Field(examples=["desk"], min_length=1, max_length=64)


class Retry(BaseModel):
    """Who lets a delivery go again."""

    by: str | None = Field(None, min_length=1, max_length=200, examples=["li.wei"])


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["通知 notify"])

    @routes.get(
        "/notify",
        summary="现行通知方案，不含密钥 / The notification plan in force, without its secrets",
        responses={
            200: {"description": "OK", "content": {JSON: {"example": _EXAMPLE}, TOML: {"example": _TOML_EXAMPLE}}}
        },
    )
    async def get_plan(request: Request) -> Response:
        media = accepted(request, (JSON, TOML))
        notifier = service.notifier
        headers = {"ETag": f'"{notifier.version}"', "X-Notify-Version": str(notifier.version)}
        if media == TOML:
            text = await run_in_threadpool(notifier.text)
            return Response(text, headers=headers, media_type=f"{TOML}; charset=utf-8")
        return json_answer({"version": notifier.version, **masked(notifier.plan.table)}, headers=headers)

    @routes.put(
        "/notify",
        summary="替换整个通知方案 / Replace the whole notification plan",
        description="整体接受或整体拒绝，列出全部错误。密钥写 `env:NAME`，或直接给出（此后只显示 `***`；"
        "原样写回 `***` 则保留）。仅含注释的文档停止通知。 / "
        "All or nothing, every mistake listed. A secret is `env:NAME`, or given once and shown as `***` from then on; "
        "`***` written back keeps it. A document of comments only ends notifying.",
        responses=example({"version": 3})
        | {
            412: {"description": "现行版本已不是 If-Match 所述 / the version in force is not that of If-Match"},
            415: {"description": "既非 TOML 也非 JSON / neither TOML nor JSON"},
            422: {"description": "有误 / mistakes, all listed"},
        },
        openapi_extra=_BODY,
    )
    async def put_plan(
        request: Request,
        by: Annotated[str | None, Query(max_length=200, description="谁 / who")] = None,
        if_match: IfMatch = None,
    ) -> Response:
        data = await request.body()
        instead_of = version_named(if_match)
        is_json = is_json_body(request, data)
        if not data.strip():
            raise Invalid("", "the body is empty; a comment alone ends notifying", "请求体为空；仅含注释的文档停止通知")
        who = text_field({"by": by}, "by")
        return json_answer({"version": await run_in_threadpool(service.notifier.put, data, who, is_json, instead_of)})

    @routes.post(
        "/notify/test",
        summary="向一个接收端发送测试消息 / Send a test message to a receiver",
        description="最多等待 15 秒，返回该投递。 / Waits up to 15 s for the outcome, and gives the delivery.",
        responses=example(DELIVERY | {"kind": "test", "alerts": []})
        | {404: {"description": "没有该接收端 / no such receiver"}},
        openapi_extra=json_request(Test, {"receiver": "desk"}),
    )
    async def test(request: Request, key: Key = None) -> Response:
        given = await json_model(request, Test)
        again = await once(request, key)
        route = again.route if again else ""
        return json_answer(await run_in_threadpool(service.notifier.test, given.receiver, key, route))

    @routes.get(
        "/notify/duty",
        summary="某时刻谁在值班 / Who is on duty at a moment",
        responses=example(
            {"items": [{"roster": "duty", "receivers": ["desk"], "people": ["张伟"]}], "next": None,
             "at": "2026-07-01T08:00:00Z"}
        ),
    )  # fmt: skip
    async def duty(
        at: Annotated[str | None, Query(description="RFC 3339，缺省为现在 / by default now")] = None,
    ) -> Response:
        moment = instant("at", at) or service.clock()
        plan = service.notifier.plan
        items = []
        for name in plan.rosters:
            receivers, people = on_duty(plan, [name], moment)
            items.append({"roster": name, "receivers": receivers, "people": [plan.people[p].name for p in people]})
        return page(items, None, at=iso(moment))

    @routes.get(
        "/deliveries",
        summary="投递记录，新的在前 / Deliveries, newest first",
        description="state：waiting 待发，held 暂缓（附原因），sent 已送达，dead 放弃，"
        "lapsed 暂缓期间已无必要；可用逗号给出多个。 / "
        "waiting, held (and why), sent, dead, lapsed (nobody needed it any more when the hold ended); comma lists.",
        responses=example({"items": [DELIVERY], "next": None}),
    )
    async def deliveries(
        state: Annotated[str | None, Query(max_length=200, examples=["dead"])] = None,
        alert: Text = None,
        receiver: Text = None,
        kind: Annotated[str | None, Query(max_length=200, examples=["alert,escalation"])] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        states, kinds = words("state", state, STATES), words("kind", kind, KINDS)
        before = (parse_cursor("deliveries", after, int) or (None,))[0]
        if "\0" in (alert or "") + (receiver or ""):
            return page([], None)
        items, following = await store.deliveries(
            service.reader, limit, before, states, alert or None, receiver or None, kinds
        )
        return page(items, None if following is None else cursor("deliveries", following))

    @routes.get(
        "/deliveries/{id}",
        summary="一次投递及其内容 / One delivery with its content",
        responses=example(DELIVERY | {"content": {"kind": "alert", "alerts": []}}) | _404,
    )
    async def delivery(id: Annotated[str, Path(max_length=200)]) -> Response:
        found = await store.delivery(service.reader, id)
        if found is None:
            raise NotFound(f"no delivery {id} / 没有投递 {id}")
        return json_answer(found)

    @routes.post(
        "/deliveries/{id}/retry",
        summary="重新发送已放弃的投递 / Try a dead delivery again",
        responses=example(DELIVERY | {"state": "waiting", "attempts": 0})
        | _404
        | {409: {"description": "未被放弃 / it is not dead"}},
        openapi_extra=json_request(Retry, {"by": "li.wei"}, required=False),
    )
    async def retry(id: Annotated[str, Path(max_length=200)], request: Request, key: Key = None) -> Response:
        if "\0" in id:
            raise NotFound(f"no delivery {id} / 没有投递 {id}")
        given = await json_model(request, Retry) if (await request.body()).strip() else Retry(by=None)
        by = text_field({"by": given.by}, "by")
        again = await once(request, key)
        return json_answer(await run_in_threadpool(service.notifier.retry, id, by, key, again.route if again else ""))

    return routes
