"""City models (模型): what was imported, its versions, and importing another."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from email.message import EmailMessage
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ingest.commands import OTHER_REQUEST
from twin.api.assets import AsOf
from twin.api.errors import Invalid
from twin.api.parameters import After, Key, Limit, cursor, example, instant, json_answer, page, parse_cursor
from twin.api.view import ServiceView
from twin.importing_models import ModelWords, name_of
from twin.model import NotFound, Problem, Refused, iso
from twin.store import assets as store
from twin.store.assets import StoredVersion

EXAMPLE: Final[dict[str, Any]] = {
    "name": "dn", "version": 2, "format": "epanet", "crs": "EPSG:4547", "height": None, "file": "dn.inp",
    "size": 81234, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "tenant": "water-co",
    "imported_at": "2026-07-01T08:00:00Z", "by": None, "assets": 216, "nodes": 97, "links": 119,
    "kinds": {"JUNCTION": 92, "TANK": 3, "RESERVOIR": 2, "PIPE": 117, "PUMP": 2}, "networks": 1, "added": 0,
    "changed": 4, "removed": 1, "orphans": ["p-7/pressure"], "notes": [], "extent": [114.0, 22.5, 114.1, 22.6],
}  # fmt: skip
_LINK: Final = {"sensor": "p-7/pressure", "asset": "dn:J-7"}


def version_json(version: StoredVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "format": version.format,
        "crs": version.crs or None,
        "height": version.height or None,
        "file": version.file,
        "size": version.size,
        "sha256": version.sha256,
        "tenant": version.tenant,
        "imported_at": iso(version.imported_at),
        "by": version.by,
        "assets": version.assets,
        "nodes": version.nodes,
        "links": version.links,
        "kinds": version.kinds,
        "networks": version.networks,
        "added": version.added,
        "changed": version.changed,
        "removed": version.removed,
        "orphans": version.orphans,
        "notes": version.notes,
        "extent": version.extent,
    }


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["模型 models"])

    @routes.get(
        "/models",
        summary="模型列表 / List models",
        description="每个模型的最新版本（`as_of`：当时的版本）。`nodes`、`links` 与管网文件的计数一致。 / "
        "The newest version of each (with `as_of`, the one of then). `nodes`, `links` as the network file counts them.",
        responses=example({"items": [EXAMPLE], "next": None}),
    )
    async def list_models(as_of: AsOf = None, limit: Limit = 100, after: After = None) -> Response:
        last = (parse_cursor("models", after, str) or (None,))[0]
        found = await store.models(service.reader, limit + 1, last, instant("as_of", as_of))
        following = cursor("models", found[limit - 1].name) if len(found) > limit else None
        return page([version_json(version) for version in found[:limit]], following)

    @routes.get(
        "/models/{name}",
        summary="一个模型与其各版本 / One model and its versions",
        description="`orphans`：所在设施已被移除的测点。 / `orphans`: sensors whose asset the model no longer has.",
        responses=example(EXAMPLE | {"orphans": [_LINK], "versions": [EXAMPLE]})
        | {404: {"description": "没有该模型 / no such model"}},
    )
    async def one_model(name: str) -> Response:
        found = await store.versions(service.reader, name)
        if not found:
            raise NotFound(f"no model {name} / 没有模型 {name}")
        lost = [{"sensor": s, "asset": a} for s, a in await store.orphans(service.reader, name)]
        more = {"orphans": lost, "versions": [version_json(version) for version in found]}
        return json_answer(version_json(found[0]) | more)

    @routes.post(
        "/models",
        status_code=201,
        summary="导入模型文件 / Import a model file",
        description="请求体就是文件本身（任意 Content-Type），格式按内容识别；整体接受或整体拒绝。"
        "同名模型成为新版本，设施编号不变；与最新版本完全相同的文件不产生新版本（200）。 / "
        "The body is the file itself, of any Content-Type; its format is seen by its content; all or nothing. A model "
        "of a name that exists becomes its next version and assets keep their ids; the newest version's own file makes "
        "no new one (200).",
        responses={
            200: {"description": "无变化 / unchanged", "content": {"application/json": {"example": EXAMPLE}}},
            201: {"description": "已导入 / imported", "content": {"application/json": {"example": EXAMPLE}}},
            422: {"description": "文件有误，列出全部错误 / mistakes in the file, all listed"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def post_model(
        request: Request,
        name: Annotated[
            str | None,
            Query(
                max_length=100,
                description="模型名；缺省取 Content-Disposition 的文件名 / the model's name",
                examples=["dn"],
            ),
        ] = None,
        crs: Annotated[
            str,
            Query(
                max_length=20_000, description="文件未写坐标系时 / where the file names none", examples=["EPSG:4547"]
            ),
        ] = "",
        tenant: Annotated[str | None, Query(max_length=200)] = None,
        by: Annotated[str | None, Query(max_length=200)] = None,
        key: Key = None,
    ) -> Response:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media.startswith("multipart/"):
            raise Invalid("Content-Type", "send the file itself as the body", "请求体应为文件本身", 415)
        for field, text in (("name", name), ("tenant", tenant), ("by", by), ("crs", crs)):
            if text is not None and "\0" in text:
                raise Invalid(field, "must hold no character U+0000", "不能含空字符")
        sent = _filename(request)
        digest = hashlib.sha256()
        with service.model_imports.spool() as file:
            size = 0
            with file.open("wb") as out:
                async for chunk in request.stream():
                    size += len(chunk)
                    digest.update(chunk)
                    await run_in_threadpool(out.write, chunk)
            if not size:
                raise Invalid("", "the body is empty, a model file is needed", "请求体为空，需要模型文件")
            called = name or (name_of(sent) if sent else f"model-{digest.hexdigest()[:8]}")
            once = None
            if key is not None:
                query = f"{called}\n{crs}\n{tenant}\n{digest.hexdigest()}"
                route = f"POST {request.url.path} {hashlib.sha256(query.encode()).hexdigest()[:32]}"
                once = key, route
                known = await store.answered(service.reader, key)
                if known is not None:
                    if known[0] != route:
                        raise Refused([Problem("Idempotency-Key", "", OTHER_REQUEST)])
                    return json_answer(await _version(known[2]["version_id"]), known[1])
            words = ModelWords(called, crs, tenant or service.settings.default_tenant, by)
            done = await run_in_threadpool(
                service.model_imports.run, service.database_url, file, sent or called, words, once
            )
        return json_answer(await _version(done.version_id), 200 if done.is_unchanged else 201)

    async def _version(id_: int) -> dict[str, Any]:
        return version_json(await store.version(service.reader, id_))

    return routes


def _filename(request: Request) -> str:
    """The name that a client gives the file it sends, "" if it gives none."""
    message = EmailMessage()
    with suppress(ValueError, IndexError):
        message["Content-Disposition"] = request.headers.get("content-disposition", "")
        return unquote(message.get_filename() or "")[-200:].replace("\0", "")
    return ""
