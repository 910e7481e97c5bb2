"""Alive, ready, and Prometheus' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response

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
        "ws_frames_sent",
        "ws_closed_slow",
        "ws_refused",
        "ws_resumed",
        "ws_gaps",
    ]
)


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
        is_ready = all(parts.values())
        return json_answer({"status": "ready" if is_ready else "not ready", "parts": parts}, 200 if is_ready else 503)

    @routes.get("/metrics", summary="Prometheus 指标 / Prometheus metrics")
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return routes
