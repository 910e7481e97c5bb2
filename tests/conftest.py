"""Real services for tests: PostgreSQL, brokers and cimtwin itself, each a process of its own on free ports.

`CIMTWIN_TEST_DATABASE_URL` names a server (any database of it, as a role that may create databases) to run the suite on
instead of the embedded PostgreSQL, e.g. one with TimescaleDB.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from websockets.sync.client import ClientConnection, connect

from ingest.mqtt import Publisher
from twin.embedded import DataDir

PATIENCE_S = 30.0


def until(condition: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> Any:
    """Wait until `condition()` is true and return its value; fail with `what` after `patience_s`."""
    deadline = time.monotonic() + patience_s
    waiter = time.sleep
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s} s for {what or condition}")
        waiter(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server to make databases on."""
    given = os.environ.get("CIMTWIN_TEST_DATABASE_URL")
    if given:
        yield given
        return
    from twin.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    yield server.start()
    server.stop()


@contextlib.contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """The URL of a new database, which is gone afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
    try:
        yield server_url.rpartition("/")[0] + f"/{name}"
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """An empty database."""
    with empty_database(server_url) as url:
        yield url


class Cimtwin:
    """`cimtwin serve`, or another command that serves, as a process."""

    def __init__(self, data_dir: Path, environ: dict[str, str], *words: str) -> None:
        self.data_dir = data_dir
        self.words = words or ("serve",)
        self.environ = {
            "CIMTWIN_DATA_DIR": str(data_dir),
            "CIMTWIN_HTTP": "127.0.0.1:0",
            "CIMTWIN_MQTT_LISTEN": "127.0.0.1:0",
            "CIMTWIN_CHECKPOINT_S": "1",
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data_dir.parent / f"{data_dir.name}.log"

    @property
    def url(self) -> str:
        return f"http://{self.environ['CIMTWIN_HTTP']}"

    @property
    def mqtt_url(self) -> str:
        return self.environ.get("CIMTWIN_MQTT_URL") or f"mqtt://{self.environ['CIMTWIN_MQTT_LISTEN']}"

    def start(self) -> Cimtwin:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "twin", *self.words],
                env={**os.environ, **self.environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._has_addresses, f"cimtwin to say where it is; its log: {self.log}")
        until(self.is_ready, f"cimtwin to be ready; its log: {self.log}")
        return self

    def _has_addresses(self) -> bool:
        """Whether it serves; from then on the ports that it chose stay its own, over restarts, too."""
        self._fail_if_ended()
        owner = DataDir(self.data_dir).owner()
        if owner is None or owner.pid != (self.process and self.process.pid) or not owner.mqtt:
            return False
        self.environ["CIMTWIN_HTTP"] = owner.http
        if "CIMTWIN_MQTT_URL" not in self.environ:
            self.environ["CIMTWIN_MQTT_LISTEN"] = owner.mqtt.removeprefix("mqtt://")
        return True

    def _fail_if_ended(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"cimtwin ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")

    def is_ready(self) -> bool:
        self._fail_if_ended()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").status_code == 200
        return False

    def kill(self) -> None:
        """kill -9: of the service alone, its embedded servers go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    # Its interfaces

    def get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1{path}", params=params, timeout=30)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/api/v1{path}", json=json, timeout=30, **more)

    def stats(self) -> dict[str, Any]:
        return self.get("/stats")

    def put_rules(self, text: str) -> int:
        answer = httpx.put(
            f"{self.url}/api/v1/rules", content=text.encode(), headers={"content-type": "application/toml"}
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["version"])

    def put_sensors(self, csv: str) -> None:
        answer = httpx.post(
            f"{self.url}/api/v1/sensors", content=csv.encode(), headers={"content-type": "text/csv"}, timeout=60
        )
        assert answer.status_code in (200, 201), answer.text

    def publisher(self, window: int = 1000) -> Publisher:
        publisher = Publisher(self.mqtt_url, f"test-{uuid.uuid4().hex[:8]}", window)
        publisher.connect()
        return publisher

    def publish(self, *messages: tuple[str, Any]) -> None:
        """Publish (topic, payload as bytes or what JSON takes) and wait for the broker's acknowledgement."""
        publisher = self.publisher()
        for topic, payload in messages:
            publisher.publish(topic, payload if isinstance(payload, bytes) else json.dumps(payload).encode())
        publisher.flush()
        publisher.close()

    def watch(self, resume: dict[str, Any] | None = None, path: str = "/ws/v1/live", **filters: Any) -> Watcher:
        return Watcher(self.url, {"alerts": {}, "resume": resume, **filters}, path)

    def drained(self, received: int) -> dict[str, Any]:
        """Wait until `received` readings in all were taken in; the statistics then."""
        until(lambda: self.stats()["readings_received"] >= received, f"{received} readings")
        return self.stats()


class Watcher:
    """A WebSocket client of the live channel, or of a replay's, and what it saw."""

    def __init__(self, url: str, subscribe: dict[str, Any], path: str = "/ws/v1/live") -> None:
        self.open = contextlib.ExitStack()
        self.socket: ClientConnection = self.open.enter_context(
            connect(url.replace("http", "ws", 1) + path, max_size=None, max_queue=None, compression=None)
        )
        self.socket.send(json.dumps({"type": "subscribe", **subscribe}))
        self.frames: list[dict[str, Any]] = []

    def read(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.socket.recv(patience_s))
        self.frames.append(frame)
        return frame

    def until(self, condition: Callable[[dict[str, Any]], bool], patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Read frames until one meets `condition`."""
        deadline = time.monotonic() + patience_s
        while True:
            frame = self.read(max(0.01, deadline - time.monotonic()))
            if condition(frame):
                return frame

    def events(self, number: int, patience_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Read until there are `number` alert frames; all of them."""
        while sum(f["type"] == "alert" for f in self.frames) < number:
            self.read(patience_s)
        return [f for f in self.frames if f["type"] == "alert"]

    def close(self) -> None:
        self.open.close()


@pytest.fixture
def cimtwin(tmp_path: Path, server_url: str, database_url: str) -> Iterator[Callable[..., Cimtwin]]:
    """Makes running services on a database of their own (`embedded=True`: on their own embedded PostgreSQL)."""
    running: list[Cimtwin] = []

    def make(name: str = "数据 1", embedded: bool = False, start: bool = True, **environ: str) -> Cimtwin:
        if not embedded:
            environ.setdefault("CIMTWIN_DATABASE_URL", database_url)
        service = Cimtwin(tmp_path / name, environ)
        running.append(service)
        return service.start() if start else service

    yield make
    for service in running:
        if service.process is not None:
            with contextlib.suppress(Exception):
                service.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[str]:
    """A mosquitto broker with queues large enough for tests; its URL."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert program, "mosquitto is not installed (apt-get install mosquitto)"
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
        "persistence false\nset_tcp_nodelay true\n"
    )
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(answers, "mosquitto")
    yield f"mqtt://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
