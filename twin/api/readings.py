"""Readings: raw, in buckets, as CSV, as Arrow; and the latest of each sensor."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from twin.api.errors import Invalid
from twin.api.parameters import (
    BOM,
    CSV,
    JSON,
    After,
    Box,
    From,
    Limit,
    Text,
    To,
    accepted,
    cursor,
    example,
    instant,
    page,
    parse_cursor,
    span,
    words,
)
from twin.api.protection import AS_GET
from twin.api.sensors import check_kinds, matching, names_of_asset, within_box
from twin.api.view import ServiceView
from twin.arrow import MISSING_EN, MISSING_ZH, STREAM, Stream, buckets_table, is_here, readings_table
from twin.live import isos
from twin.model import SECOND, Micros, Quality, iso
from twin.store.reader import WIDTHS, Bucket

SILENT_INTERVALS: Final = 3
CSV_BUCKETS: Final = 10_000
ARROW_ROWS: Final = 50_000  # of a piece


def latest_items(service: ServiceView, indices: Sequence[int], now: Micros) -> list[dict[str, Any]]:
    """The newest reading of each of these sensors, column by column. `status` is `never` heard,
    `silent` for more than three intervals, else `ok`."""
    catalog, state = service.catalog, service.state
    index = np.array(indices, np.int64)
    if int(index.max(initial=-1)) >= len(state):  # another thread adds sensors: one that came just now has no state
        state = state.copy()
        state.grow(len(catalog))
    observed_at, received_at, heard_at = state.observed_at[index], state.received_at[index], state.heard_at[index]
    value, quality, is_known = state.value[index], state.quality[index], observed_at > 0
    interval = catalog.interval_us[index]
    silent = (interval > 0) & (now - np.maximum(heard_at, received_at) > SILENT_INTERVALS * interval)
    words = {bits: (Quality.word(bits), Quality.reasons(bits)) for bits in np.unique(quality).tolist()}
    sensors, kinds = catalog.sensors, catalog.kinds
    items = []
    for n, known, observed, received, number_, bits, age_s, is_silent in zip(
        indices,
        is_known.tolist(),
        isos(observed_at),
        isos(received_at),
        value.tolist(),  # NaN, a missing value, is written as null
        quality.tolist(),
        np.round((now - observed_at) / SECOND, 3).tolist(),
        silent.tolist(),
        strict=True,
    ):
        sensor = sensors[n]
        kind = kinds[sensor.kind]
        word, reasons = words[bits]
        items.append(
            {
                "sensor": sensor.id,
                "observed_at": observed if known else None,
                "received_at": received if known else None,
                "value": number_ if known else None,
                "quality": word if known else None,
                "reasons": reasons if known else [],
                "age_s": age_s if known else None,
                "unit": kind.unit,
                "kind": kind.name,
                "status": ("silent" if is_silent else "ok") if known else "never",
            }
        )
    return items


def bucket_items(buckets: Sequence[Bucket]) -> list[dict[str, Any]]:
    times = isos(np.array([bucket.at for bucket in buckets], np.int64))
    return [
        {"bucket": at, "min": b.min, "max": b.max, "avg": b.avg, "count": b.count, "last": b.last}
        for at, b in zip(times, buckets, strict=True)
    ]


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["读数 readings"])

    @routes.get(
        "/readings",
        summary="一个测点的读数：原始或分桶，JSON、CSV、Arrow / Readings of a sensor: raw, bucketed; JSON, CSV, Arrow",
        description="`[from, to)`，升序。CSV 和 Arrow 一次给出全部。分桶按 UTC 对齐，不含缺值和坏值，空桶不列。 / "
        "Half-open, ascending; CSV and Arrow give everything at once; buckets are aligned to UTC, without missing and "
        "bad values, empty ones left out. `received_before`: as known at that time.\n\n"
        "CSV 中的设备和测点编号原样写出：以 `=`、`+`、`-`、`@` 开头的编号，请在电子表格中按文本导入。 / "
        "CSV has the ids of device and property as they are, for machines that read it back: where one begins with "
        "`=`, `+`, `-` or `@`, import that column into a spreadsheet as text.",
        responses={
            200: {
                "description": "OK",
                "content": {
                    JSON: {
                        "examples": {
                            "raw": {
                                "value": {
                                    "items": [
                                        {
                                            "observed_at": "2026-07-01T08:00:00Z",
                                            "value": 12.5,
                                            "quality": "good",
                                            "reasons": [],
                                            "received_at": "2026-07-01T08:00:00.120Z",
                                        }
                                    ],
                                    "next": None,
                                }
                            },
                            "bucket=5m": {
                                "value": {
                                    "items": [
                                        {
                                            "bucket": "2026-07-01T08:00:00Z",
                                            "min": 12.1,
                                            "max": 12.9,
                                            "avg": 12.5,
                                            "count": 5,
                                            "last": 12.9,
                                        }
                                    ],
                                    "next": None,
                                }
                            },
                        }
                    },
                    CSV: {
                        "example": "device,property,observed_at,value,quality\n"
                        "ponding-17,depth,2026-07-01T08:00:00Z,12.5,good\n"
                    },
                    STREAM: {"schema": {"type": "string", "format": "binary"}},
                },
            },
            404: {"description": "没有该测点 / no such sensor"},
            406: {"description": "没有该格式 / no such format"},
        },
    )
    async def readings(
        request: Request,
        sensor: Annotated[str, Query(max_length=512, examples=["ponding-17/depth"])],
        from_: From = None,
        to: To = None,
        bucket: Annotated[Literal["1m", "5m", "1h", "1d"] | None, Query()] = None,
        received_before: Annotated[str | None, Query(description="按当时所知 / as known at that time")] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        index = service.catalog.find(sensor)
        start, end = span(from_, to, service.clock())
        known = instant("received_before", received_before)
        width = None if bucket is None else WIDTHS[bucket]
        form = _form(request)
        if form == STREAM:
            pieces = arrow_pieces(index, start, end, width, known)
            return await _streamed(pieces, b"", sensor, STREAM, "arrows", is_head=AS_GET in request.scope)
        if form == CSV:
            lines = raw_csv(index, start, end, known) if width is None else bucket_csv(index, start, end, width, known)
            return await csv_answer(lines, sensor, width is not None, is_head=AS_GET in request.scope)
        # Each kind of page has cursors of its own.
        seen = parse_cursor(f"readings {bucket or 'raw'}", after, int)
        if seen is not None:
            start = max(start, seen[0])
        if start >= end:
            return page([], None)
        following = None
        if width is not None:
            dirty = service.dirty(index)
            found = await service.reader.buckets(index, start, end, width, limit + 1, dirty, known)
            if len(found) > limit:
                following = cursor(f"readings {bucket}", found[limit].at)
            return page(bucket_items(found[:limit]), following)
        rows = await service.reader.readings(index, start, end, limit + 1, known)
        if len(rows) > limit:
            following = cursor("readings raw", int(rows.observed_at[limit]))
        items = [
            {
                "observed_at": observed_at,
                "value": value,
                "quality": Quality.word(bits),
                "reasons": Quality.reasons(bits) if bits else [],
                "received_at": received_at,
            }
            for observed_at, value, bits, received_at in zip(
                isos(rows.observed_at[:limit]),
                rows.value[:limit].tolist(),  # NaN, a missing value, is written as null
                rows.quality[:limit].tolist(),
                isos(rows.received_at[:limit]),
                strict=True,
            )
        ]
        return page(items, following)

    def raw_csv(index: int, start: Micros, end: Micros, known: Micros | None) -> AsyncGenerator[bytes, None]:
        sensor = service.catalog.sensors[index]
        return service.reader.readings_csv(index, sensor.device, sensor.property, start, end, known)

    async def arrow_pieces(
        index: int, start: Micros, end: Micros, width: Micros | None, known: Micros | None
    ) -> AsyncGenerator[bytes, None]:
        sensor = service.catalog.sensors[index]
        name, stream = (sensor.device, sensor.property), Stream()
        while True:
            if width is None:
                rows = await service.reader.readings(index, start, end, ARROW_ROWS, known)
                count, at = len(rows), rows.observed_at
                rows = replace(rows, sensor=np.zeros(count, np.int32))
                table = readings_table([name], rows)
            else:
                found = await service.reader.buckets(index, start, end, width, CSV_BUCKETS, service.dirty(index), known)
                count, at = len(found), np.array([b.at for b in found], np.int64)
                columns = {key: [getattr(b, key) for b in found] for key in ("min", "max", "avg", "count", "last")}
                table = buckets_table(name, at, columns)
            yield stream.add(table)  # the first even where it is empty, for its schema
            if count < (ARROW_ROWS if width is None else CSV_BUCKETS):
                break
            start = int(at[-1]) + (width or 1)
            if start >= end:
                break
        yield stream.end()

    async def bucket_csv(
        index: int, start: Micros, end: Micros, width: Micros, known: Micros | None
    ) -> AsyncGenerator[bytes, None]:
        sensor = service.catalog.sensors[index]
        while start < end:
            dirty = service.dirty(index)
            found = await service.reader.buckets(index, start, end, width, CSV_BUCKETS, dirty, known)
            if not found:
                return
            yield "".join(
                f"{sensor.device},{sensor.property},{iso(b.at)},{b.min!r},{b.max!r},{b.avg!r},{b.count},{b.last!r}\n"
                for b in found
            ).encode()
            start = found[-1].at + width

    @routes.get(
        "/latest",
        summary="各测点最新读数 / The latest reading of each sensor",
        description="从未上报的测点也列出（status = never）。 / Sensors never heard are listed too.",
        responses=example(
            {"items": [{"sensor": "ponding-17/depth", "observed_at": "2026-07-01T08:00:00Z",
                        "received_at": "2026-07-01T08:00:00.120Z", "value": 12.5, "quality": "good", "reasons": [],
                        "age_s": 3.2, "unit": "cm", "kind": "drainage.ponding_depth", "status": "ok"}], "next": None}
        ),
    )  # fmt: skip
    async def latest(
        sensor: Annotated[list[str] | None, Query(description="可重复 / may be repeated", max_length=1000)] = None,
        bbox: Box = None,
        kind: Text = None,
        domain: Text = None,
        tenant: Text = None,
        asset: Text = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        now = service.clock()
        kinds = words("kind", kind)
        check_kinds(service, kinds)
        assets = None if asset is None else await names_of_asset(service, asset)
        within = within_box(service, bbox)
        filters: dict[str, Any] = {"within": within, "kinds": kinds, "domains": words("domain", domain),
                                   "tenant": tenant, "assets": assets}  # fmt: skip
        if sensor:
            # In the order asked for; the cursor is a place in it.
            named = [service.catalog.find(name) for name in sensor]
            is_narrowed = within is not None or kinds or domain or tenant or assets
            fits = set(matching(service, -1, len(service.catalog), **filters)) if is_narrowed else None
            chosen = [index for index in dict.fromkeys(named) if fits is None or index in fits]
            place = (parse_cursor("latest of", after, int) or (0,))[0]
            part = chosen[place : place + limit]
            following = cursor("latest of", place + limit) if place + limit < len(chosen) else None
        else:
            last = (parse_cursor("latest", after, int) or (-1,))[0]
            found = matching(service, last, limit + 1, **filters)
            part = found[:limit]
            following = cursor("latest", part[-1]) if len(found) > limit else None
        return page(latest_items(service, part, now), following)

    return routes


def _form(request: Request) -> str:
    """JSON, CSV or Arrow, as asked for."""
    form = accepted(request, (JSON, CSV, STREAM))
    if form == STREAM and not is_here():
        raise Invalid("Accept", MISSING_EN, MISSING_ZH, 406)
    return form


async def csv_answer(
    lines: AsyncGenerator[bytes, None], sensor: str, is_bucketed: bool, *, is_head: bool = False
) -> Response:
    head = b"device,property,bucket,min,max,avg,count,last\n" if is_bucketed else _RAW_HEAD
    return await _streamed(lines, BOM + head, sensor, "text/csv; charset=utf-8", "csv", is_head=is_head)


async def _streamed(
    body: AsyncGenerator[bytes, None], head: bytes, sensor: str, media: str, ending: str, *, is_head: bool
) -> Response:
    """A download as a stream. The first piece is fetched before anything is sent: what goes wrong until then is a
    problem with a status, what goes wrong later breaks the transfer off."""
    first = await anext(body, b"")

    async def pieces() -> AsyncIterator[bytes]:
        async with aclosing(body):
            yield head + first
            async for piece in body:
                yield piece

    name = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "_" for sign in sensor)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{ending}"'}
    if is_head:
        await body.aclose()
        return Response(headers=headers, media_type=media)
    return StreamingResponse(pieces(), headers=headers, media_type=media)


_RAW_HEAD: Final = b"device,property,observed_at,value,quality\n"
