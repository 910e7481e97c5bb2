"""Alive, ready, and Prometheus' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from twin.api.errors import RETRY_S, problem
from twin.api.parameters import example, json_answer
from twin.api.view import ServiceView

# What only grows; the rest are gauges.
COUNTERS: Final = frozenset(
    [
        "messages_received",
        "readings_received",
        "readings_stored",
        "readings_duplicate",
        "readings_quarantined",
        "alert_events",
        "inbox_waits",
        "pipeline_failures",
        "rule_failures",
        "upkeep_failures",
        "mqtt_failures",
        "database_stalls",
        "notify_sent",
        "notify_failed",
        "notify_unrouted",
        "notify_failures",
        "ws_frames_sent",
        "ws_closed_slow",
        "ws_refused",
        "ws_resumed",
        "ws_gaps",
    ]
)


_METRICS: Final = """# HELP cimtwin_readings_stored_total readings stored
# TYPE cimtwin_readings_stored_total counter
cimtwin_readings_stored_total 238.0
# HELP cimtwin_ready whether a part is ready
# TYPE cimtwin_ready gauge
cimtwin_ready{part="database"} 1.0
"""


def all_stats(service: ServiceView) -> dict[str, int | float | str]:
    return service.stats() | service.live.stats()


class StatsCollector(Collector):
    """The service's own numbers as `cimtwin_…`."""

    def __init__(self, service: ServiceView) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        texts: dict[str, str] = {}
        for name, value in all_stats(self.service).items():
            if isinstance(value, str):
                texts[name] = value
            elif name in COUNTERS:
                yield CounterMetricFamily(f"cimtwin_{name}", name.replace("_", " "), value=value)
            else:
                yield GaugeMetricFamily(f"cimtwin_{name}", name.replace("_", " "), value=value)
        yield InfoMetricFamily("cimtwin", "the service", value=texts)
        ready = GaugeMetricFamily("cimtwin_ready", "whether a part is ready", labels=["part"])
        for part, is_ready in self.service.readiness().items():
            ready.add_metric([part], float(is_ready))
        yield ready


def router(service: ServiceView) -> APIRouter:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(service))
    ProcessCollector(registry=registry)
    routes = APIRouter(tags=["运行 health"])

    @routes.get("/healthz", summary="存活 / Alive", responses=example({"status": "alive"}))
    async def healthz() -> Response:
        return json_answer({"status": "alive"})

    @routes.get(
        "/readyz",
        summary="就绪 / Ready",
        responses=example({"status": "ready", "parts": {"database": True, "broker": True, "pipeline": True}})
        | {503: {"description": "未就绪 / not ready"}},
    )
    async def readyz() -> Response:
        parts = service.readiness()
        missing = ", ".join(name for name, is_ready in parts.items() if not is_ready)
        if missing:
            detail = f"not ready: {missing} / 未就绪：{missing}"
            return problem(503, detail, {"Retry-After": str(RETRY_S)}, parts=parts)
        return json_answer({"status": "ready", "parts": parts})

    @routes.get(
        "/metrics",
        summary="Prometheus 指标 / Prometheus metrics",
        response_class=PlainTextResponse,
        responses=example(_METRICS, media="text/plain"),
    )
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return routes
