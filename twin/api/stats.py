"""The service's numbers, and how complete a day's readings are."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from twin.api.errors import Invalid
from twin.api.health import all_stats
from twin.api.parameters import After, Limit, cursor, example, json_answer, page, parse_cursor
from twin.api.view import ServiceView
from twin.model import DAY, EPOCH, Micros, micros
from twin.store.reader import DayCount

KEEP_S: Final = 60.0  # counting a day goes through all its readings: not for every look at a screen
KEEP_DAYS: Final = 16


@dataclass(slots=True)
class Tally:
    received: int = 0
    refused: int = 0
    late: int = 0
    expected: float = 0
    found: float = 0


def tally(
    service: ServiceView,
    counts: list[DayCount],
    refused: list[tuple[str | None, str | None, int]],
    start: Micros,
    now: Micros,
    by: str,
) -> list[dict[str, Any]]:
    """Totals by tenant or device. `complete` is the share of the readings that the sensors' intervals promise for the
    part of the day that is over; more than promised from one sensor does not make up for another. Readings derived
    from waveforms do not count."""
    catalog = service.catalog
    elapsed = min(max(now - start, 0), DAY)
    totals: defaultdict[str, Tally] = defaultdict(Tally)
    by_sensor = {sensor: (received, late) for sensor, received, late in counts}
    intervals = catalog.interval_us.tolist()
    for index, sensor in enumerate(catalog.sensors[: len(intervals)]):
        if sensor.statistic is not None:
            continue
        total = totals[sensor.tenant if by == "tenant" else sensor.device]
        received, late = by_sensor.get(index, (0, 0))
        total.received += received
        total.late += late
        if intervals[index] > 0:
            expected = elapsed // intervals[index]
            total.expected += expected
            total.found += min(received, expected)
    for tenant, device, count in refused:
        totals[(tenant if by == "tenant" else device) or ""].refused += count
    return [
        {
            by: name or None,
            "received": t.received,
            "refused": t.refused,
            "late": t.late,
            "complete": round(t.found / t.expected, 4) if t.expected else None,
        }
        for name, t in sorted(totals.items())
    ]


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["统计 stats"])
    kept: dict[tuple[str, Micros], tuple[float, list[dict[str, Any]]]] = {}
    turn = asyncio.Lock()

    async def of_day(by: str, start: Micros) -> list[dict[str, Any]]:
        async with turn:  # one such count at a time
            loop = asyncio.get_running_loop()
            found = kept.get((by, start))
            if found is not None and loop.time() - found[0] < KEEP_S:
                return found[1]
            counts = await service.reader.counts_by_sensor(start, start + DAY)
            refused = await service.reader.refused_by_device(start, start + DAY)
            rows = tally(service, counts, refused, start, service.clock(), by)
            if len(kept) >= KEEP_DAYS:
                kept.clear()
            kept[by, start] = (loop.time(), rows)
            return rows

    @routes.get(
        "/stats",
        summary="计数与状态；按单位或设备的日统计 / Counters and state; a day by tenant or device",
        description="`by` + `day`: received（按观测日）, refused（按最近一次拒收日）, late（迟到超过 5 分钟）, "
        "complete（按上报间隔应到的比例）；结果最多滞后 60 秒。 / counts of a UTC day, up to 60 s old.",
        responses=example(
            {"messages_received": 120, "readings_received": 240, "readings_stored": 238, "readings_duplicate": 2,
             "readings_quarantined": 0, "alert_events": 3, "epoch": "5d41402abc4b", "seq": 3, "lag_s": 0.004,
             "ws_clients": 1}
        ),
    )  # fmt: skip
    async def stats(
        by: Annotated[Literal["tenant", "device"] | None, Query()] = None,
        day: Annotated[str | None, Query(description="UTC 日期 / date", examples=["2026-07-01"])] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        if by is None:
            if day is not None:
                raise Invalid("by", "is needed with day: tenant or device", "给出 day 时必须给出 by")
            return json_answer(all_stats(service))
        try:
            date = None if day is None else dt.date.fromisoformat(day)
        except ValueError:
            raise Invalid("day", "must be a date, e.g. 2026-07-01", "必须是日期，如 2026-07-01") from None
        if date is not None and not 2000 <= date.year < 2200:
            raise Invalid("day", "must be in 2000 or later", "不得早于 2000 年")
        if date is None:
            start = service.clock() // DAY * DAY
        else:
            start = micros(EPOCH.replace(year=date.year, month=date.month, day=date.day))
        first = (parse_cursor("stats", after, int) or (0,))[0]
        rows = await of_day(by, start)
        following = cursor("stats", first + limit) if first + limit < len(rows) else None
        return page(
            rows[first : first + limit], following, day=(EPOCH + dt.timedelta(microseconds=start)).date().isoformat()
        )

    return routes
