"""`cimtwin demo`: the service with a demo city, its devices as another process, and what goes on in the terminal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from models3d.readers import nothing
from twin import app
from twin.demo import district, storm
from twin.demo.city import EVENTS, city_sensors
from twin.demo.devices import flood_readings, flood_sensors, start_of
from twin.importing_models import ModelWords, place
from twin.model import SECOND, Refused, iso
from twin.settings import Settings
from twin.store.models import lock_model, save_model

MARK: Final = "demo"  # a file that says: this folder is the demo's, and may be emptied
STYLES: Final = {"blue": "bold blue", "yellow": "bold yellow", "orange": "bold dark_orange", "red": "bold red"}
SIGNS: Final = {"blue": "● 蓝", "yellow": "▲ 黄", "orange": "◆ 橙", "red": "■ 红"}
WORDS: Final = {
    "raised": "报警 raised",
    "escalated": "升级 escalated",
    "deescalated": "降级 eased",
    "cleared": "解除 cleared",
    "acknowledged": "确认 acknowledged",
    "closed": "关闭 closed",
    "noted": "备注 noted",
    "assigned": "指派 assigned",
    "confirmed": "核实 confirmed",
    "false_alarm": "误报 false alarm",
    "shelved": "搁置 shelved",
    "unshelved": "搁置结束 unshelved",
    "suppressed": "抑制 suppressed",
    "unsuppressed": "不再抑制 unsuppressed",
    "out_of_service": "退出服务 out of service",
    "returned_to_service": "恢复服务 back in service",
    "chattering": "抖动 chattering",
    "steady": "稳定 steady",
    "withdrawn": "撤回 withdrawn",
}
STATUS_EVERY_S: Final = 10.0  # where the output is no terminal


def fresh_folder(path: Path) -> None:
    """Empty the demo's folder. Raises `Refused` where it holds something that the demo has not made."""
    if path.exists() and any(path.iterdir()):
        if not (path / MARK).exists():
            text = "holds data that is not the demo's; choose another --data-dir / 目录中有非演示数据,请另选 --data-dir"
            raise Refused([], f"{path} {text}")
        from twin.embedded import DataDir, EmbeddedBroker, EmbeddedPostgres
        from twin.settings import MQTT_LISTEN

        if DataDir(path).owner() is None:
            # What an earlier demo left running when it was killed.
            for server in (EmbeddedPostgres(path), EmbeddedBroker(path, MQTT_LISTEN)):
                if server.pid is not None:
                    server.start()
                    server.stop()
            shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARK).touch()


def run(settings: Settings, duration_s: float | None, speed: float, scenario: str = "district") -> None:
    """Run the demo until Ctrl-C or for `duration_s` seconds."""
    stopping = threading.Event()
    parts: list[threading.Thread] = []
    devices: list[subprocess.Popen[bytes]] = []

    def begin(service: app.Service) -> None:
        sensors = {sensor.id: sensor for sensor in (*flood_sensors(service.kinds), *city_sensors())}
        if scenario == "storm":
            sensors |= {sensor.id: sensor for sensor in storm.sensors()}

        def prepare() -> None:
            import_district(service.database_url, service.settings.default_tenant)
            service.commands.put_sensors(list(sensors.values())).result()
            if scenario == "storm":
                service.commands.put_rules(storm.rules(), "demo").result()
            environ = {**os.environ, "CIMTWIN_MQTT_URL": service.mqtt_url}
            command = [sys.executable, "-m", "twin.demo.devices", "--speed", str(speed), "--scenario", scenario]
            # They end when this pipe does: also if this process is killed.
            devices.append(subprocess.Popen(command, env=environ, stdin=subprocess.PIPE))
            _show(service, speed, scenario, stopping)

        thread = threading.Thread(target=prepare, name="demo", daemon=True)
        parts.append(thread)
        thread.start()

    try:
        app.serve(settings, begin, duration_s)
    finally:
        stopping.set()
        for process in devices:
            process.terminate()
            process.wait(10)
        for thread in parts:
            thread.join(5)


def import_district(dsn: str, tenant: str) -> None:
    """The made-up district's models, as an import would bring them."""
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin demo") as connection:
        for name, model in district.models().items():
            file = f"{name}.demo"
            placed = place(model, name, ModelWords(name, "", tenant, "demo"), file, 0, hashlib.sha256(b"").digest())
            with connection.transaction():
                lock_model(connection, name)
                save_model(connection, placed, [], nothing)


def _show(service: app.Service, speed: float, scenario: str, stopping: threading.Event) -> None:
    console = Console(highlight=False)
    if scenario == "storm":
        start, happenings = storm.START, iter(storm.EVENTS)
        about = f"模拟示范新区的一场雨与水泵跳闸,{speed:g} 倍速 / rain and a pump trip in a simulated district"
    else:
        start, happenings = start_of(flood_readings()), iter(EVENTS)
        about = f"2023-12-18 纽约真实内涝(NYC Open Data, FloodNet)与模拟示范新区,{speed:g} 倍速 / a real flood day and"
        about += " a simulated district"
    console.print(
        Text("cimtwin 演示城市 / demo city", style="bold"),
        f"  页面 page            {service.http_url}/",
        f"  接口文档 API docs   {service.http_url}/docs",
        f"  未解除报警 open alerts  {service.http_url}/api/v1/alerts?state=open",
        f"  统计 statistics     {service.http_url}/api/v1/stats",
        f"  实时推送 live       {service.http_url.replace('http', 'ws', 1)}/ws/v1/live",
        f"  MQTT               {service.mqtt_url.rpartition('@')[2].removeprefix('mqtt://')}",
        f"  {about}, {speed:g} times faster",
        "  按 Ctrl-C 结束 / Ctrl-C ends it",
        "",
        sep="\n",
    )
    began = time.monotonic()
    upcoming = next(happenings, None)
    next_line = began + STATUS_EVERY_S
    last, last_at, rate = 0, began, 0.0
    screen = Screen(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    with screen or contextlib.nullcontext():
        for event in _events(service, stopping):
            now = time.monotonic()
            simulated = (now - began) * speed
            while upcoming is not None and simulated >= upcoming[0]:
                console.print(Text(f"  ··· {upcoming[1]} / {upcoming[2]}", style="dim"))
                upcoming = next(happenings, None)
            if event is not None:
                console.print(_line(event))
            stats = service.stats()
            received = int(stats["readings_received"])
            if now - last_at >= 1:
                rate, last, last_at = (received - last) / (now - last_at), received, now
            status = (
                f"模拟时间 {(iso(start + int(simulated) * SECOND) or '')[:19]}Z  读数 readings {received:,}"
                f" ({rate:,.0f}/s)  入库 stored {stats['readings_stored']:,}  隔离 refused"
                f" {stats['readings_quarantined']:,}  活动报警 active {stats['alerts_active']}"
                f"  延迟 lag {float(stats['lag_s']) * 1000:.0f} ms"
            )
            if screen is not None:
                screen.update(Text(status, style="reverse"))
            elif now >= next_line:
                next_line = now + STATUS_EVERY_S
                console.print(status)


def _line(event: dict[str, Any]) -> Text:
    level = event["level"]
    line = Text(f"{event['observed_at'][:19]}Z ")
    line.append(f"{SIGNS[level]} {WORDS.get(event['transition'], event['transition']):<14}", style=STYLES[level])
    line.append(f" {event['message']['zh']}  ")
    line.append(event["message"]["en"], style="dim")
    return line


def _events(service: app.Service, stopping: threading.Event) -> Iterator[dict[str, Any] | None]:
    """Alert events as a WebSocket client gets them, None every quarter of a second between them."""
    url = service.http_url.replace("http", "ws", 1) + "/ws/v1/live"
    subscribe: dict[str, Any] = {"type": "subscribe", "alerts": {}, "readings": None, "resume": None}
    if service.settings.api_token is not None:
        subscribe["token"] = service.settings.api_token
    with contextlib.suppress(WebSocketException, OSError), connect(url, max_size=None) as socket:
        socket.send(json.dumps(subscribe))
        while not stopping.is_set():
            try:
                frame = json.loads(socket.recv(0.25))
            except TimeoutError:
                yield None
                continue
            if frame["type"] == "alert":
                yield frame["event"]
