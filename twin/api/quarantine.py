"""What was refused and why (隔离区), and trying it again."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from twin.api.errors import done
from twin.api.parameters import (
    After,
    Key,
    Limit,
    Text,
    cursor,
    example,
    json_answer,
    json_model,
    json_request,
    once,
    page,
    parse_cursor,
)
from twin.api.view import ServiceView
from twin.model import Reason, iso
from twin.store.reader import Quarantined


class Redrive(BaseModel):
    """Which rows to try again; all of them where none are named."""

    ids: list[Annotated[int, Field(ge=1, lt=2**63)]] | None = Field(None, max_length=100_000, examples=[[17, 18]])


def quarantined_json(row: Quarantined) -> dict[str, Any]:
    """A refused message: its bytes in base64, and as text where they are UTF-8."""
    try:
        text = row.payload.decode()
    except UnicodeDecodeError:
        text = None
    return {
        "id": row.id,
        "topic": row.topic,
        "payload": base64.b64encode(row.payload).decode(),
        "text": text,
        "size": row.size,
        "is_truncated": row.is_truncated,
        "reason": row.reason,
        "detail": row.detail,
        "tenant": row.tenant,
        "device": row.device,
        "positions": [] if row.positions == (-1,) else list(row.positions),
        "deliveries": row.deliveries,
        "readings": row.readings,
        "first_at": iso(row.first_at),
        "last_at": iso(row.last_at),
    }


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["隔离区 quarantine"])

    @routes.get(
        "/quarantine",
        summary="被拒收的消息，新的在前 / Refused messages, newest first",
        responses=example(
            {"items": [{"id": 17, "topic": "cim/v1/default/x-1/telemetry", "payload": "eyJ0ZW1wIjogMX0=",
                        "text": '{"temp": 1}', "size": 11, "is_truncated": False, "reason": "unknown-device",
                        "detail": "no device x-1", "tenant": "default", "device": "x-1", "positions": [],
                        "deliveries": 1, "readings": 1, "first_at": "2026-07-01T08:00:00Z",
                        "last_at": "2026-07-01T08:00:00Z"}], "next": None}
        ),
    )  # fmt: skip
    async def list_quarantine(
        reason: Reason | None = None,
        tenant: Text = None,
        device: Text = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        before = (parse_cursor("quarantine", after, int) or (None,))[0]
        word = None if reason is None else reason.value
        rows, has_more = await service.reader.quarantine(limit, before, word, tenant, device)
        items = [quarantined_json(row) for row in rows]
        return page(items, cursor("quarantine", rows[-1].id) if has_more and rows else None)

    @routes.post(
        "/quarantine/redrive",
        summary="原因消除后重新处理 / Try again after the cause is mended",
        description="不给请求体则全部重试。一次提交至多 1000 条；服务在两次提交之间中断时，以同一键重复则处理剩余部分。"
        " / "
        "Without a body everything is tried. At most 1000 messages a commit; where the service dies between two, a "
        "repetition with the same key goes on with what is left.",
        responses=example({"tried": 2, "stored": 1, "duplicate": 0, "quarantined": 1}),
        openapi_extra=json_request(Redrive, {"ids": [17, 18]}, required=False),
    )
    async def redrive(request: Request, key: Key = None) -> Response:
        has_body = (await request.body()).strip() not in (b"", b"null")
        ids = (await json_model(request, Redrive)).ids if has_body else None
        return json_answer(await done(service.commands.redrive(ids, await once(request, key))))

    return routes
