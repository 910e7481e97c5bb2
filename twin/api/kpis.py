"""Figures about how well alerts serve the people who answer them (ISA-18.2, EEMUA 191)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from alerts.floods import SOURCE
from alerts.holds import HELD
from twin.api.errors import Invalid
from twin.api.parameters import From, Limit, To, check_order, example, instant, json_answer, page
from twin.api.view import ServiceView
from twin.live import level_word
from twin.model import DAY, EPOCH, MINUTE, SECOND, Micros, iso, micros
from twin.store import incidents as store
from twin.store.kpis import BIN_S, CHATTER, figures, floods_in

BIN: Final[Micros] = BIN_S * SECOND
LONGEST: Final[Micros] = 366 * DAY
# What ANSI/ISA-18.2-2016 and EEMUA 191 give for a well managed system; facts to compare with, no conformity is claimed.
BENCHMARKS: Final[dict[str, Any]] = {
    "alerts_per_operator_hour": {"acceptable": 6, "most": 12, "source": "ANSI/ISA-18.2, EEMUA 191"},
    "flood_share": {"most": 0.01, "source": "ANSI/ISA-18.2: about 1 % of the time in flood"},
    "flood": {"above": 10, "per": "10 min, operator", "source": SOURCE},
    "chattering": {"most": 0, "source": "ANSI/ISA-18.2: none, plans to correct any"},
    "stale": {"most": 5, "source": "ANSI/ISA-18.2: fewer than 5 on any day"},
    "by_level": {"low": 0.8, "medium": 0.15, "high": 0.05, "source": "ANSI/ISA-18.2, EEMUA 191: about 80, 15, 5 %"},
    "top_rules_share": {"most": 0.05, "source": "ANSI/ISA-18.2: the ten most frequent, 1 to 5 %"},
}
EXAMPLE: Final[dict[str, Any]] = {
    "from": "2026-07-01T00:00:00Z", "to": "2026-07-02T00:00:00Z", "operators": 1, "alerts": 120,
    "alerts_per_operator_hour": 5.0, "floods": {"number": 1, "share": 0.0208, "peak": 41, "items": []},
    "chattering": {"number": 1, "items": [{"rule": "road-ponding", "subject": "ponding-17/depth", "times": 4}]},
    "stale": {"number": 0, "items": []}, "standing": 3,
    "acknowledge": {"acknowledged": 118, "raised": 120, "p50_s": 41.0, "p90_s": 210.0},
    "false_alarms": [{"rule": "road-ponding", "false_alarm": 1, "confirmed": 9, "rate": 0.1}],
    "by_level": {"blue": 96, "yellow": 18, "orange": 5, "red": 1},
    "top_rules": [{"rule": "road-ponding", "alerts": 40}],
    "top_rules_share": 0.9, "benchmarks": BENCHMARKS,
}  # fmt: skip
_FLOOD: Final = {"started_at": "2026-07-01T08:00:00Z", "ended_at": None, "peak": 41, "alerts": 57}


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["报警 alerts"])

    @routes.get(
        "/kpis",
        summary="报警管理指标 / Figures about alerts",
        description="默认最近 24 小时。按通知时刻统计：报警产生或升级即计一次。`chatter_s`：同一规则同一测点在该时长内"
        "产生 3 次为抖动（ISA-18.2 举例为 1 分钟；城市测点多为分钟级上报，默认 10 分钟 [E]）。 / "
        "The last 24 h by default. An alert counts when it is told, raised or become worse. `chatter_s`: three "
        "raises of one rule on one subject within so long are chatter (ISA-18.2 has a minute as an example; a city's "
        "sensors report by the minute, so 10 minutes by default [E]).",
        responses=example(EXAMPLE),
    )
    async def kpis(
        from_: From = None, to: To = None, chatter_s: Annotated[float, Query(gt=0, le=86_400)] = 600.0
    ) -> Response:
        start, end = _span(service, from_, to)
        found = await figures(service.reader, start, end, round(chatter_s * SECOND), HELD)
        settings = service.settings
        operators, hours = settings.operators, (end - start) / (60 * MINUTE)
        calls = sum(count for _, count in found.bins)
        most, few = operators * settings.flood_alerts, operators * settings.flood_over
        runs = floods_in(found.bins, most, few)
        bins = max(1, math.ceil(end / BIN) - start // BIN)
        return json_answer(
            {
                "from": iso(start),
                "to": iso(end),
                "operators": operators,
                "alerts": calls,
                "alerts_per_operator_hour": round(calls / operators / hours, 3),
                "floods": {
                    "number": len(runs),
                    "share": round(sum(run["last"] - run["first"] + 1 for run in runs) / bins, 6),
                    "peak": max((count for _, count in found.bins), default=0),
                    "items": [
                        {"from": iso(run["first"] * BIN), "to": iso((run["last"] + 1) * BIN), "alerts": run["alerts"],
                         "peak": run["peak"]}
                        for run in runs[-1000:]
                    ],
                },
                "chattering": {
                    "number": found.chattering,
                    "times": CHATTER,
                    "within_s": chatter_s,
                    "items": [{"rule": c.rule, "subject": c.subject, "times": c.times} for c in found.chatter],
                },
                "stale": {
                    "number": found.stale_count,
                    "after_s": DAY // SECOND,
                    "items": [{"rule": c.rule, "subject": c.subject, "hours": c.times} for c in found.stale],
                },
                "standing": found.standing,
                "acknowledge": {
                    "acknowledged": found.acknowledged,
                    "raised": found.raised,
                    "p50_s": found.acknowledged_s[0],
                    "p90_s": found.acknowledged_s[1],
                },
                "false_alarms": [
                    {"rule": rule, "false_alarm": false, "confirmed": true, "rate": round(false / (false + true), 6)}
                    for rule, false, true in found.verdicts
                ],
                "by_level": {level_word(level): count for level, count in sorted(found.by_level.items()) if level},
                "top_rules": [{"rule": c.rule, "alerts": c.times} for c in found.by_rule],
                "top_rules_share": round(sum(c.times for c in found.by_rule) / calls, 6) if calls else None,
                "benchmarks": BENCHMARKS,
            }
        )  # fmt: skip

    @routes.get(
        "/floods",
        summary="报警洪水 / Alert floods",
        description="`now` 为当前状态。每名值班人员 10 分钟内超过 10 条即为洪水（`CIMTWIN_OPERATORS`、"
        "`CIMTWIN_FLOOD_ALERTS`），少于 5 条时结束（`CIMTWIN_FLOOD_OVER`）。洪水期间请看事件列表，或 "
        "`GET /alerts?first_out=true`。 / "
        "`now` says how it is. More than 10 alerts in 10 minutes for each operator on duty are a flood, fewer than 5 "
        "end it. Meanwhile look at the incidents, or at `GET /alerts?first_out=true`.",
        responses=example({"now": {"active": True, "started_at": "2026-07-01T08:00:00Z", "rate": 41, "peak": 41,
                                   "alerts": 57, "begins_above": 10, "ends_below": 5, "operators": 1,
                                   "source": SOURCE}, "items": [_FLOOD], "next": None}),
    )  # fmt: skip
    async def floods(from_: From = None, to: To = None, limit: Limit = 100) -> Response:
        low, high = instant("from", from_), instant("to", to)
        check_order(low, high)
        start = micros(EPOCH) if low is None else low
        end = service.clock() + DAY if high is None else high
        items = [
            {"started_at": iso(f.started_at), "ended_at": iso(f.ended_at), "peak": f.peak, "alerts": f.alerts}
            for f in await store.floods(service.reader, start, end, limit)
        ]
        return page(items, None, now=service.desk.flood())

    return routes


def _span(service: ServiceView, from_: str | None, to: str | None) -> tuple[Micros, Micros]:
    start, end = instant("from", from_), instant("to", to)
    if end is None:
        end = service.clock() if start is None else max(service.clock(), start + SECOND)
    if start is None:
        start = end - DAY
    check_order(start, end)
    if not SECOND <= end - start <= LONGEST:
        raise Invalid("from", "the span must be between a second and 366 days", "时段须在 1 秒至 366 天之间")
    return start, end
