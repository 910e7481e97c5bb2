"""Back-tests (回测): what other rules would have given of stored readings, beside the alerts that there were."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from twin.api.alerts import EXAMPLE as ALERT
from twin.api.parameters import example, json_answer, json_model, json_request, page
from twin.api.replays import span_given
from twin.api.rules import rules_given
from twin.api.view import ServiceView
from twin.api.waiting import answered
from twin.backtests import SHOWN, Asked
from twin.replay_worker import selection

_COUNTS: Final = {"would": 3, "was": 2, "same": 1, "added": 2, "missing": 1, "changed": 0}
EXAMPLE: Final[dict[str, Any]] = {
    "from": "2026-06-24T00:00:00Z", "to": "2026-07-01T00:00:00Z", "complete": True, "readings": 604800, "sensors": 60,
    "total": _COUNTS, "by_rule": {"road-ponding": _COUNTS}, "alerts": [ALERT],
    "differences": {
        "added": [{"rule": "road-ponding", "fields": [], "would": ALERT, "was": None}], "missing": [], "changed": [],
    },
    "as_recorded": ["device-offline"],
}  # fmt: skip
STATUS: Final[dict[str, Any]] = {
    "id": "4be1f0c2d3a9", "state": "running", "from": "2026-06-24T00:00:00Z", "to": "2026-07-01T00:00:00Z",
    "time": "2026-06-27T12:00:00Z", "progress": 0.5, "readings": 302400, "alerts": 2,
    "created_at": "2026-07-01T08:00:00Z",
}  # fmt: skip


class NewBacktest(BaseModel):
    """`rules` (TOML, or JSON as `GET /rules` gives it) over [from, to) of event time, for all sensors or these.
    `shown`: how many alerts each list of the answer has at most; all are counted."""

    rules: str | dict[str, Any] | list[dict[str, Any]]
    from_: str = Field(alias="from", max_length=64, examples=["2026-06-24T00:00:00Z"])
    to: str = Field(max_length=64, examples=["2026-07-01T00:00:00Z"])
    sensors: list[str] | None = Field(None, max_length=100_000)
    shown: int = Field(SHOWN, ge=0, le=10_000)


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["规则 rules"])

    @routes.post(
        "/backtests",
        summary="用历史读数检验规则 / Try rules on stored readings",
        description="这些规则在 `[from, to)` 内会给出哪些报警，与实际报警有何差异；只读。完成后回答；客户端断开则取消。"
        "离线规则按记录计（`as_recorded`）。 / "
        "Which alerts those rules would have given in `[from, to)`, and what differs from those that there were; "
        "changes nothing. It answers when it is done, and is cancelled when its client goes. Silence is not judged "
        "again: rules on it count as recorded (`as_recorded`).",
        responses=example(EXAMPLE)
        | {
            404: {"description": "没有该测点 / no such sensor"},
            409: {"description": "同时进行的回测过多，或已被取消 / as many run as may, or it was cancelled"},
        },
        openapi_extra=json_request(
            NewBacktest,
            {"rules": "rule = []", "from": "2026-06-24T00:00:00Z", "to": "2026-07-01T00:00:00Z"},
        ),
    )
    async def start(request: Request) -> Response:
        given = await json_model(request, NewBacktest)
        begin, end = span_given(given.from_, given.to)
        rules = await run_in_threadpool(rules_given, given.rules, service)
        sensors = await run_in_threadpool(selection, service.catalog, given.sensors, None)
        run = await run_in_threadpool(service.backtests.start, Asked(rules.text, begin, end, sensors, given.shown))
        return json_answer(await answered(request, run))

    @routes.get(
        "/backtests",
        summary="回测及其进度，新的在前 / Back-tests and how far they are, newest first",
        responses=example({"items": [STATUS], "next": None}),
    )
    async def listed() -> Response:
        return page([run.status() for run in service.backtests.listed()], None)

    @routes.delete(
        "/backtests/{id}",
        summary="取消一个回测 / Cancel a back-test",
        responses=example(STATUS | {"state": "cancelled"}) | {404: {"description": "没有该回测 / no such back-test"}},
    )
    async def cancel(id: str) -> Response:
        run = service.backtests.find(id)
        run.cancel()
        return json_answer(run.status())

    return routes
