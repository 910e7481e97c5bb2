"""The OpenAPI description: errors as the problems they are, and the token."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from twin.api.errors import MEDIA, title

OPEN_PATHS: Final = frozenset(("/healthz", "/readyz"))
FRAMEWORKS_OWN: Final = ("HTTPValidationError", "ValidationError")

_REFERENCE: Final = {"$ref": "#/components/schemas/Problem"}
_PROBLEM: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457. 出错时的回答 / what is answered when something goes wrong.",
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["about:blank"]},
        "title": {"type": "string", "examples": [title(422)]},
        "status": {"type": "integer", "examples": [422]},
        "detail": {"type": "string", "examples": ["from: must not be after to / 不得晚于 to"]},
        "field": {"type": "string", "description": "有误的参数或字段 / the parameter or field at fault"},
        "problems": {
            "type": "array",
            "description": "全部错误 / every mistake",
            "items": {
                "type": "object",
                "required": ["place", "field", "text"],
                "properties": {name: {"type": "string"} for name in ("place", "field", "text")},
            },
        },
        "count": {"type": "integer", "description": "错误总数 / how many mistakes in all"},
    },
}
_BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "CIMTWIN_API_TOKEN；未设置时仅本机可访问，无需令牌。 / "
    "Where none is set, only this machine may call, without a token.",
}
_EXAMPLES: Final = {
    401: "send the token: Authorization: Bearer … / 请提供令牌",
    403: "without a token only loopback names are served / 未设置令牌时仅接受本机名称访问",
    404: "no sensor pond-1/depth / 没有测点 pond-1/depth",
    406: "Accept: this can be given as application/json, text/csv / 可提供的格式：application/json, text/csv",
    409: "the alert is active / 报警仍处于活动状态",
    413: "the body is larger than 1 MiB / 请求体超过 1 MiB",
    415: "Content-Type: must be application/toml or application/json / 必须是 application/toml 或 application/json",
    422: "limit: Input should be less than or equal to 1000 / 请求参数有误",
    503: "the database or the pipeline is not available now, try again / 数据库或处理流程暂时不可用，请稍后重试",
}


def install(app: FastAPI, *, has_token: bool) -> None:
    """Let `/openapi.json` tell of problems and of the token, besides what the routes say of themselves."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        return app.openapi_schema or _completed(plain(), has_token)

    app.openapi = complete  # type: ignore[method-assign] # how FastAPI says that it is done


def _completed(described: dict[str, Any], has_token: bool) -> dict[str, Any]:
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in FRAMEWORKS_OWN:
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {"bearer": _BEARER}
    described["security"] = [{"bearer": []}] if has_token else [{}, {"bearer": []}]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            for status in _statuses(path, operation, has_token):
                responses.setdefault(str(status), {"description": title(status)})
            for status in [int(word) for word in responses if word.isdigit() and int(word) >= 400]:
                response = responses[str(status)]
                if response["description"] == "Validation Error":
                    response["description"] = title(status)
                example: dict[str, Any] = {
                    "type": "about:blank",
                    "title": title(status),
                    "status": status,
                    "detail": _EXAMPLES.get(status, title(status)),
                }
                if path == "/readyz":
                    parts = {"database": True, "broker": False, "pipeline": True}
                    example |= {"detail": "not ready: broker / 未就绪：broker", "parts": parts}
                response["content"] = {MEDIA: {"schema": _REFERENCE, "example": example}}
            operation["responses"] = dict(sorted(responses.items()))
            if path in OPEN_PATHS:
                operation["security"] = []
    return described


def _statuses(path: str, operation: dict[str, Any], has_token: bool) -> list[int]:
    """The errors that every route of this sort has."""
    found = []
    if path not in OPEN_PATHS:
        found.append(401 if has_token else 403)
    if "requestBody" in operation:
        found += [413, 422]
    if operation.get("parameters"):
        found.append(422)
    if path.startswith("/api/"):
        found.append(503)
    return found
