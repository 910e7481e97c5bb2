"""HTTP and WebSocket over the running service: they read, and hand commands to the pipeline; they change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import WebSocketRoute

from twin.api import (
    alerts,
    assets,
    auth,
    backtests,
    cap,
    description,
    devices,
    errors,
    health,
    holds,
    incidents,
    kpis,
    models,
    network,
    notify,
    page,
    quarantine,
    readings,
    replays,
    rules,
    sensors,
    stats,
    street,
    tiles,
)
from twin.api.protection import Protection
from twin.api.socket import LiveSocket, ReplaySocket
from twin.api.view import ServiceView

DESCRIPTION = """城市生命线监测与数字孪生。时间为 UTC（RFC 3339），长度单位米，坐标 WGS 84。
列表返回 `{"items", "next"}`；错误为 RFC 9457 `application/problem+json`。执行操作的 POST 接受 `Idempotency-Key`。
实时推送：WebSocket `/ws/v1/live`；令牌放在 Authorization、首帧的 `token`，或子协议 `["cimtwin", "bearer.<令牌>"]`。

Monitoring and digital twin of a city's lifelines. Times are UTC (RFC 3339), coordinates WGS 84. Lists answer
`{"items", "next"}`; errors are RFC 9457 problems. POSTs that act take an `Idempotency-Key`. Live: WebSocket
`/ws/v1/live`; its token is in Authorization, in the first frame's `token`, or among the subprotocols as
`["cimtwin", "bearer.<token>"]` or `["bearer", "<token>"]`."""


def create_app(service: ServiceView) -> FastAPI:
    """The ASGI application over `service`. Its lifespan starts and stops the fan-out and closes the reader."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.live.start()
        try:
            yield
        finally:
            service.live.stop()
            for replay in service.replays.listed():
                replay.live.stop()
            await service.reader.close()

    app = FastAPIOffline(
        title="cimtwin",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    errors.install(app)
    app.include_router(health.router(service))
    api = APIRouter(prefix="/api/v1")
    # The rules before the sensors: a sensor's property takes what is left of a path.
    for subject in (
        stats, rules, sensors, readings, alerts, incidents, kpis, holds, quarantine, devices, replays, backtests,
        notify,
    ):  # fmt: skip
        api.include_router(subject.router(service))
    networks = assets.Networks()
    api.include_router(cap.router(service, networks))
    # Before the assets: an asset's id may hold any sign, so `/assets/{id}` takes every path that is left.
    api.include_router(network.router(service, networks))
    api.include_router(street.router(service, networks))
    api.include_router(assets.router(service, networks))
    api.include_router(models.router(service))
    app.include_router(api)
    app.include_router(tiles.router(service), prefix="/api/v1")
    app.include_router(tiles.router(service), include_in_schema=False)  # at the root, too: where map clients look
    app.router.routes.append(WebSocketRoute("/ws/v1/live", LiveSocket(service), name="live"))
    app.router.routes.append(WebSocketRoute("/ws/v1/replays/{id}", ReplaySocket(service), name="replay"))
    page_files = page.files(page.FOLDER)
    app.router.routes.extend(page.routes(page_files))
    description.install(app, has_token=service.settings.api_token is not None)
    # The last added is the outermost: nothing goes out without the headers, nothing is read that may not come in.
    open_paths = auth.OPEN_PATHS | page_files.keys() | {"/"}
    app.add_middleware(auth.Gate, token=service.settings.api_token, open_paths=open_paths)
    app.add_middleware(Protection, model_bytes=service.settings.max_model_bytes)
    return app


def _version() -> str:
    try:
        return version("cimtwin")
    except PackageNotFoundError:
        return "0"
