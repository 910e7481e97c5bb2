"""What queries and answers have in common: times, boxes, cursors, words, bodies."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from ingest.commands import Once
from twin.api.errors import Invalid
from twin.model import EARLIEST, EPOCH, HOUR, LATEST, Micros, iso, micros, parse_time

JSON: Final = "application/json"
CSV: Final = "text/csv"
BOM: Final = b"\xef\xbb\xbf"  # Excel reads a CSV as UTF-8 only with it
TOML: Final = "application/toml"
# Named TOML, or not named at all: curl says x-www-form-urlencoded of what it is given to send.
_TOML_TYPES: Final = (TOML, "application/x-toml", "text/toml", "text/x-toml", "text/plain")
_NO_TYPES: Final = ("", "application/octet-stream", "application/x-www-form-urlencoded")

BEGINNING: Final = micros(EPOCH.replace(year=2000))  # no reading is older (contract 3)

Limit = Annotated[int, Query(ge=1, le=1000, description="每页条数 / items on a page")]
After = Annotated[str | None, Query(description="上一页的 next / `next` of the page before", max_length=512)]
Text = Annotated[str | None, Query(max_length=512)]
From = Annotated[
    str | None,
    Query(alias="from", description="起始时刻（含），RFC 3339 / from, included", examples=["2026-07-01T00:00:00Z"]),
]
To = Annotated[
    str | None,
    Query(description="结束时刻（不含），RFC 3339 / to, excluded", examples=["2026-07-02T00:00:00+08:00"]),
]
Box = Annotated[
    str | None, Query(description="minlon,minlat,maxlon,maxlat (WGS 84)", examples=["113.9,22.4,114.2,22.7"])
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="相同的键、路径和请求体只执行一次，重复时得到首次的回答；键用于其他请求则 422。保留 7 天。 / "
        "The same key, path and body act once, and a repetition gets the first answer; with another path or body 422. "
        "Kept for 7 days.",
        min_length=1,
        max_length=255,
        examples=["6f1e2c0a-52b7-4c1e-9a52-0d7c2f6b8e11"],
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description="所改的版本，GET 的 ETag；已变则 412 / the version that was changed, GET's ETag; 412 if it is not "
        "in force any more",
        max_length=200,
        examples=['"3"'],
    ),
]
Model = TypeVar("Model", bound=BaseModel)


def json_answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON; numpy's numbers and NaN (as null) included."""
    body = data if isinstance(data, bytes) else orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def example(value: Any, description: str = "OK", media: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route with one example."""
    return {200: {"description": description, "content": {media: {"example": value}}}}


def instant(field: str, text: str | None) -> Micros | None:
    """An RFC 3339 time with zone from a query."""
    if text is None or text == "":
        return None
    # A + that was not percent-encoded arrives as a space.
    text = re.sub(r" (\d\d:?\d\d)$", r"+\1", text.strip())
    try:
        at = parse_time(text)
    except (ValueError, OverflowError):
        raise Invalid(
            field,
            "must be an RFC 3339 time with its zone, e.g. 2026-07-01T08:00:00Z",
            "必须是带时区的 RFC 3339 时间",
        ) from None
    return min(max(at, EARLIEST), LATEST)


def span(start: str | None, end: str | None, now: Micros) -> tuple[Micros, Micros]:
    """`[from, to)`, by default all there can be: nothing is stored from before 2000 or more than an hour ahead. Empty,
    with both ends equal, where only one is given and nothing is beyond it."""
    low, high = instant("from", start), instant("to", end)
    check_order(low, high)
    if low is None:
        low = BEGINNING if high is None else min(BEGINNING, high)
    return low, max(now + 2 * HOUR, low) if high is None else high


def check_order(low: Micros | None, high: Micros | None) -> None:
    if low is not None and high is not None and low > high:
        raise Invalid("from", f"must not be after to ({iso(high)})", "不得晚于 to")


def box(text: str | None, field: str = "bbox") -> tuple[float, float, float, float] | None:
    if text is None or text == "":
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise Invalid(field, "must be minlon,minlat,maxlon,maxlat", "必须为 minlon,minlat,maxlon,maxlat")
    west, south, east, north = numbers
    if west > east or south > north:
        raise Invalid(field, "minlon must not exceed maxlon, nor minlat maxlat", "最小值不能大于最大值")
    return west, south, east, north


def words(field: str, text: str | None, allowed: Iterable[str] | None = None) -> tuple[str, ...]:
    """The parts of a comma list, each one of `allowed`."""
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if allowed is not None:
        known = list(allowed)
        for part in parts:
            if part not in known:
                raise Invalid(field, f"must be of {', '.join(known)}", f"只能是 {'、'.join(known)}")
    return parts


def cursor(kind: str, *values: int | str) -> str:
    """An opaque cursor that `parse_cursor` takes back."""
    return base64.urlsafe_b64encode(orjson.dumps([kind, *values])).decode().rstrip("=")


def parse_cursor(kind: str, text: str | None, *types: type) -> tuple[Any, ...] | None:
    """The values in a cursor of this kind; `Invalid` for anything that `cursor` did not make for it."""
    if text is None or text == "":
        return None
    try:
        given = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        given = None
    if (
        not isinstance(given, list)
        or len(given) != len(types) + 1
        or given[0] != kind
        or not all(type(value) is wanted for value, wanted in zip(given[1:], types, strict=True))
        or not all(-(2**62) < value < 2**62 for value in given[1:] if isinstance(value, int))
    ):
        raise Invalid("after", "is not a cursor of this list", "不是此列表的游标")
    return tuple(given[1:])


def page(items: Sequence[Any], following: str | None, **more: Any) -> Response:
    return json_answer({"items": items, "next": following, **more})


def accepted(request: Request, offered: Sequence[str]) -> str:
    """Which of the offered media types the client wants most, the first where it does not care; 406 if none."""
    header = request.headers.get("accept", "").strip()
    if not header:
        return offered[0]
    best, best_q = "", 0.0
    for part in header.split(","):
        name, *options = (piece.strip().lower() for piece in part.split(";"))
        q = 1.0
        for option in options:
            if option.startswith("q="):
                try:
                    q = float(option[2:])
                except ValueError:
                    q = 0.0
        # Later wildcards do not win over an earlier name of equal weight.
        for media in offered:
            fits = name in (media, "*/*") or (name.endswith("/*") and media.startswith(name[:-1]))
            if fits and q > best_q:
                best, best_q = media, q
    if not best:
        names = ", ".join(offered)
        raise Invalid("Accept", f"this can be given as {names}", f"可提供的格式：{names}", 406)
    return best


def decoded(data: bytes) -> Any:
    """What a JSON body says, whatever Content-Type it came with; `Invalid` if it is none."""
    if not data.strip():
        raise Invalid("", "the body is empty, JSON is needed", "请求体为空，需要 JSON")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Invalid("", f"the body is not JSON: {error}", "请求体不是 JSON") from None


async def json_object(request: Request) -> dict[str, Any]:
    given = decoded(await request.body())
    if not isinstance(given, dict):
        raise Invalid("", "the body must be a JSON object", "请求体必须是 JSON 对象")
    return given


def is_json_body(request: Request, data: bytes) -> bool:
    """Whether a body is JSON, else it is TOML; 415 where it is called anything else."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media.endswith("json") or (media in _NO_TYPES and data.lstrip()[:1] == b"{")
    if not is_json and media not in _TOML_TYPES + _NO_TYPES:
        raise Invalid("Content-Type", f"must be {TOML} or {JSON}", f"必须是 {TOML} 或 {JSON}", 415)
    return is_json


async def json_model(request: Request, model: type[Model]) -> Model:
    """The JSON body as `model`; a problem with every mistake if it is not one."""
    given = await json_object(request)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError([item | {"loc": ("body", *item["loc"])} for item in error.errors()]) from None


def json_request(model: type[BaseModel], example: Any, *, required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes `json_model`."""
    content = {"application/json": {"schema": model.model_json_schema(), "example": example}}
    return {"requestBody": {"required": required, "content": content}}


def version_named(if_match: str | None) -> int | None:
    """The version that `If-Match` names; None where any will do."""
    text = (if_match or "*").strip()
    found = re.fullmatch(r'(?:W/)?"(\d{1,9})"', text)
    if found is None and text != "*":
        raise Invalid("If-Match", 'must be the ETag of a version, such as "3"', '必须是某版本的 ETag，如 "3"')
    return None if found is None else int(found[1])


async def once(request: Request, key: str | None) -> Once | None:
    """What makes a request with an Idempotency-Key one that acts once."""
    if key is None:
        return None
    digest = hashlib.blake2b(await request.body(), digest_size=16).hexdigest()
    return Once(key, f"{request.method} {request.url.path} {digest}")


def text_field(given: dict[str, Any], field: str, most: int = 200, *, required: bool = False) -> str | None:
    """A text of the body, without control characters."""
    value = given.get(field)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value.strip():
        raise Invalid(field, "must be a text", "必须是非空文本")
    if len(value) > most or any(ord(sign) < 32 and sign not in "\n\t" for sign in value):
        raise Invalid(field, f"must have at most {most} characters, none of control", f"最多 {most} 个字符")
    return value.strip()


def number(value: float) -> float | None:
    return None if math.isnan(value) else value
