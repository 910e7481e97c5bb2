"""The rule set: as TOML or JSON, and its replacement as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from alerts.rules import RuleSet, parse_rules, parse_rules_json
from twin.api.errors import Invalid, done
from twin.api.parameters import accepted, example, json_answer, text_field
from twin.api.view import RulesView, ServiceView
from twin.model import NotFound, Refused

TOML: Final = "application/toml"
JSON: Final = "application/json"
# Named TOML, or not named at all: curl says x-www-form-urlencoded of what it is given to send.
_TOML_TYPES: Final = (TOML, "application/x-toml", "text/toml", "text/x-toml", "text/plain")
_NO_TYPES: Final = ("", "application/octet-stream", "application/x-www-form-urlencoded")

EXAMPLE: Final[dict[str, Any]] = {
    "id": "road-ponding", "title": {"zh": "道路积水", "en": "Road ponding"}, "kind": "drainage.ponding_depth",
    "detector": "threshold", "side": "above", "levels": {"blue": 10, "yellow": 15, "orange": 25, "red": 40},
    "hold": "5min", "clear": {"margin": "10%", "hold": "5min"},
}  # fmt: skip
_TOML_EXAMPLE: Final = (
    '[[rule]]\nid = "road-ponding"\nkind = "drainage.ponding_depth"\ndetector = "threshold"\n'
    "levels = { blue = 10, yellow = 15, orange = 25, red = 40 }\n"
)
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            TOML: {"schema": {"type": "string"}, "example": _TOML_EXAMPLE},
            JSON: {"schema": {"type": "object"}, "example": {"rule": [EXAMPLE]}},
        },
    }
}


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["规则 rules"])

    async def of_version(version: int | None) -> tuple[int, RulesView]:
        if version is None or version == service.rules_version:
            return service.rules_version, service.rules
        text = await service.reader.rules_text(version)
        if text is None:
            raise NotFound(f"no rule set of version {version} / 没有版本 {version} 的规则集")
        try:
            return version, parse_rules(text, service.kinds)
        except Refused:
            return version, RuleSet((), text, {})  # it is of a time when other kinds were known: as text only

    @routes.get(
        "/rules",
        summary="现行规则集 / The rule set in force",
        responses={
            200: {
                "description": "OK",
                "content": {
                    JSON: {"example": {"version": 3, "rule": [EXAMPLE], "items": [EXAMPLE], "next": None}},
                    TOML: {"example": _TOML_EXAMPLE},
                },
            }
        },
    )
    async def get_rules(
        request: Request,
        version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="以前的版本 / an earlier one")] = None,
    ) -> Response:
        media = accepted(request, (JSON, TOML))
        number, rules = await of_version(version)
        headers = {"ETag": f'"{number}"', "X-Rules-Version": str(number)}
        if media == TOML:
            return Response(rules.text, headers=headers, media_type=f"{TOML}; charset=utf-8")
        tables = [dict(rule.raw) for rule in rules.rules]
        # `rule` as in the file, so that the answer can be PUT back; `items` as in every list.
        return json_answer({"version": number, "rule": tables, "items": tables, "next": None}, headers=headers)

    @routes.put(
        "/rules",
        summary="替换整个规则集 / Replace the whole rule set",
        description="包括默认规则包。整体接受或整体拒绝，列出全部错误；相同的规则保留其状态，被删规则的报警关闭。"
        "空规则集须写明 `rule = []`。 / "
        "The default pack included; all or nothing; equal rules keep their state. An empty set is said by `rule = []`.",
        responses=example({"version": 4})
        | {
            415: {"description": "既非 TOML 也非 JSON / neither TOML nor JSON"},
            422: {"description": "有误 / mistakes, all listed"},
        },
        openapi_extra=_BODY,
    )
    async def put_rules(
        request: Request, by: Annotated[str | None, Query(max_length=200, description="谁 / who")] = None
    ) -> Response:
        data = await request.body()
        is_json = is_json_body(request, data)
        if not data.strip():
            raise Invalid(
                "", "the body is empty; an empty rule set is rule = []", "请求体为空；空规则集应写为 rule = []"
            )
        if is_json:
            text = (await run_in_threadpool(_from_json, data, service)).text
        else:
            text = (await run_in_threadpool(parse_rules, data, service.kinds)).text
        who = text_field({"by": by}, "by")
        return json_answer({"version": await done(service.commands.put_rules(text, who))})

    @routes.get(
        "/rules/{id}",
        summary="一条规则 / One rule",
        responses=example(EXAMPLE | {"version": 3}) | {404: {"description": "没有该规则 / no such rule"}},
    )
    async def one_rule(id: str, request: Request) -> Response:
        media = accepted(request, (JSON, TOML))
        rules, version = service.rules, service.rules_version
        for rule in rules.rules:
            if rule.id == id:
                if media == TOML:
                    text = parse_rules_json(orjson.dumps({"rule": [dict(rule.raw)]}), service.kinds).text
                    return Response(text, media_type=f"{TOML}; charset=utf-8")
                return json_answer(dict(rule.raw) | {"version": version})
        raise NotFound(f"no rule {id} / 没有规则 {id}")

    return routes


def is_json_body(request: Request, data: bytes) -> bool:
    """Whether a body is JSON, else it is TOML; 415 where it is called anything else."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media.endswith("json") or (media in _NO_TYPES and data.lstrip()[:1] == b"{")
    if not is_json and media not in _TOML_TYPES + _NO_TYPES:
        raise Invalid("Content-Type", f"must be {TOML} or {JSON}", f"必须是 {TOML} 或 {JSON}", 415)
    return is_json


def _from_json(data: bytes, service: ServiceView) -> RuleSet:
    """Rules of a JSON body. What `GET /rules` adds to the file's form may stay in it."""
    try:
        given = orjson.loads(data)
    except orjson.JSONDecodeError:
        return parse_rules_json(data, service.kinds)  # says where it is wrong
    if isinstance(given, dict) and given.keys() & _ADDED and "rule" in given:
        data = orjson.dumps({key: value for key, value in given.items() if key not in _ADDED})
    return parse_rules_json(data, service.kinds)


_ADDED: Final = frozenset(("version", "items", "next"))
