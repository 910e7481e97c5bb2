"""What goes wrong, as RFC 9457 problems: one table from exceptions to answers."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, Final, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from twin.mistakes import in_chinese
from twin.model import Conflict, NotFound, Overtaken, Problem, Refused, StoreRefused, StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
MEDIA: Final = "application/problem+json"
RETRY_S: Final = 5
COMMAND_S: Final = 30.0
PROBLEMS_MOST: Final = 1000  # shown of one refusal
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

TITLES_ZH: Final = {
    400: "请求无法理解",
    401: "未授权",
    403: "禁止访问",
    404: "未找到",
    405: "不支持该方法",
    406: "没有所要的格式",
    409: "状态不允许",
    412: "已被他人修改",
    413: "请求体过大",
    415: "不支持的格式",
    422: "内容有误",
    500: "内部错误",
    503: "暂时不可用",
}


class Invalid(Exception):  # noqa: N818 - an outcome, named as such in the house's words
    """A request that cannot be met as it was put; `field` names the parameter or field at fault."""

    def __init__(self, field: str, en: str, zh: str, status: int = 422) -> None:
        super().__init__(f"{field}: {en} / {zh}" if field else f"{en} / {zh}")
        self.field = field
        self.status = status


def title(status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    zh = TITLES_ZH.get(status)
    return f"{phrase} / {zh}" if zh else phrase


def problem_body(status: int, detail: str, **more: Any) -> bytes:
    return orjson.dumps({"type": "about:blank", "title": title(status), "status": status, "detail": detail, **more})


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """An `application/problem+json` answer."""
    return Response(problem_body(status, detail, **more), status, headers, MEDIA)


def problem_list(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Each with `zh`, the text in Chinese, where that is known."""
    return [
        {"place": p.place, "field": p.field, "text": p.text} | ({"zh": zh} if (zh := in_chinese(p.text)) else {})
        for p in problems[:PROBLEMS_MOST]
    ]


def _invalid(error: Invalid) -> Response:
    return problem(error.status, str(error), field=error.field)


def _not_found(error: NotFound) -> Response:
    return problem(404, str(error))


def _conflict(error: Conflict) -> Response:
    return problem(409, str(error))


def _overtaken(error: Overtaken) -> Response:
    return problem(412, str(error))


def _refused(error: Refused) -> Response:
    count = len(error.problems)
    detail = f"refused as a whole, {count} mistake(s): {error} / 整体拒绝，共 {count} 处错误"
    return problem(422, detail, problems=problem_list(error.problems), count=count)


def _store_refused(error: StoreRefused) -> Response:
    return problem(422, f"the database refuses this content: {error} / 数据库拒绝该内容")


def _unavailable(error: Exception) -> Response:
    # What exactly is wrong with the database is for the log: it may name hosts and users.
    log.warning("answered 503: %s", error)
    detail = "the database or the pipeline is not available now, try again / 数据库或处理流程暂时不可用，请稍后重试"
    return problem(503, detail, {"Retry-After": str(RETRY_S)})


def _validation(error: RequestValidationError) -> Response:
    problems = [
        {
            "place": str(item["loc"][0]) if item.get("loc") else "",
            "field": ".".join(str(part) for part in item.get("loc", ())[1:]),
            "text": str(item.get("msg", "")),
        }
        for item in error.errors()
    ]
    said = "; ".join(f"{p['field'] or p['place']}: {p['text']}" for p in problems[:10])
    return problem(422, f"{said} / 请求参数有误", problems=problems)


def _allowed(request: Request) -> str:
    """Every method that the path of a request takes, for `Allow`."""
    scope = {name: request.scope[name] for name in ("type", "path", "root_path", "headers") if name in request.scope}
    found = [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.router.routes)
    ]
    return ", ".join(["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found)


def _http(request: Request, error: HTTPException) -> Response:
    detail = str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 404 and detail == "Not Found":
        detail = "there is no such page / 没有此路径"
    elif error.status_code == 405:
        detail = "this path does not take this method / 该路径不支持此方法"
        headers["Allow"] = _allowed(request) or "GET, HEAD"  # none: a file of the pages
    return problem(error.status_code, detail, headers)


def _unexpected(request: Request, error: Exception) -> Response:
    number = uuid.uuid4().hex[:12]
    log.error("error %s at %s %s", number, request.method, request.url.path, exc_info=error)
    return problem(500, f"internal error {number}, see the log / 内部错误 {number}，请查看日志", id=number)


ANSWERS: Final[dict[type[Exception], Callable[[Any], Response]]] = {
    Invalid: _invalid,
    NotFound: _not_found,
    Conflict: _conflict,
    Overtaken: _overtaken,
    Refused: _refused,
    StoreRefused: _store_refused,
    StoreUnavailable: _unavailable,
    RequestValidationError: _validation,
}


def install(app: FastAPI) -> None:
    """Answer every exception of the table, and any other with 500 and an id."""

    def answering(answer: Callable[[Any], Response]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(_request: Request, error: Exception) -> Response:
            return answer(error)

        return handle

    async def unexpected(request: Request, error: Exception) -> Response:
        return _unexpected(request, error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _http(request, error)

    for kind, answer in ANSWERS.items():
        app.add_exception_handler(kind, answering(answer))
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


async def done(future: Future[T]) -> T:
    """The result of a command on the pipeline's thread; `StoreUnavailable` if it is not its turn within 30 s. One that
    has not begun by then is withdrawn."""
    try:
        async with asyncio.timeout(COMMAND_S):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise StoreUnavailable(f"a command waited {COMMAND_S:g} s for the pipeline") from None
