"""The processes that a row needs: PostgreSQL, a broker, cimtwin, publishers and readers; all on 127.0.0.1, on free
ports, in one temporary folder, each ended by its process id."""

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
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from bench import machine
from bench.city import Stream
from twin.embedded import EmbeddedPostgres

PATIENCE_S: Final = 120.0
ROOT: Final = Path(__file__).resolve().parent.parent
# As `docker/mosquitto.conf` in what matters here: no bound on what waits for the service or is under way to it.
_MOSQUITTO: Final = (
    "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    "persistence false\nset_tcp_nodelay true\n"
)


class Sensors(Protocol):
    """Anything that has a sensor list."""

    def csv(self, interval_s: int) -> str: ...


class RowFailed(Exception):  # noqa: N818 - an outcome
    """A row that could not be measured; the text says why."""


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S, pause_s: float = 0.02) -> Any:
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RowFailed(f"waited {patience_s:g} s for {what}")
        time.sleep(pause_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_program() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _environment(extra: dict[str, str]) -> dict[str, str]:
    """Ours without settings of the user's, which would make it another service than the one we describe."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CIMTWIN_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    return own | {"PYTHONPATH": path} | extra


@dataclass(frozen=True, slots=True)
class Standing:
    """The counters in the database and when they were last committed (wall clock, s)."""

    received: int
    stored: int
    duplicate: int
    quarantined: int
    batch: int
    at: float


class Service:
    """`cimtwin serve` as a process; with `database_url` None and `mqtt_url` None on its embedded servers."""

    def __init__(self, folder: Path, database_url: str | None, mqtt_url: str | None) -> None:
        self.folder = folder
        self.data_dir = folder / f"data-{uuid.uuid4().hex[:8]}"
        self.log = self.data_dir.with_suffix(".log")
        self.http = f"127.0.0.1:{free_port()}"
        self.mqtt_port = int(mqtt_url.rpartition(":")[2]) if mqtt_url else free_port()
        self.environment = {"CIMTWIN_DATA_DIR": str(self.data_dir), "CIMTWIN_HTTP": self.http}
        if database_url is not None:
            self.environment["CIMTWIN_DATABASE_URL"] = database_url
        if mqtt_url is not None:
            self.environment["CIMTWIN_MQTT_URL"] = mqtt_url
        else:
            self.environment["CIMTWIN_MQTT_LISTEN"] = f"127.0.0.1:{self.mqtt_port}"
        self.process: subprocess.Popen[bytes] | None = None

    def environ(self) -> dict[str, str]:
        """The environment of this service's commands."""
        return _environment(self.environment)

    def command(self, *words: str) -> float:
        """Run `cimtwin …` to its end; how long it took."""
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "twin", *words],
            env=_environment(self.environment), cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RowFailed(f"cimtwin {words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return time.monotonic() - begun

    def import_sensors(self, city: Sensors, interval_s: int = 3600) -> float:
        """Put the city's sensors into the database; how long the command took."""
        file = self.folder / "sensors.csv"
        file.write_text(city.csv(interval_s), encoding="utf-8")
        return self.command("import", str(file))

    def start(self) -> float:
        """Start and wait until ready; how long that took."""
        begun = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "twin", "serve"],
                env=_environment(self.environment), cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self._is_ready, "cimtwin to be ready", pause_s=0.01)
        return time.monotonic() - begun

    def _is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RowFailed(f"cimtwin ended with {self.process.returncode}: {self.log.read_text()[-1500:]}")
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RowFailed("the service does not run")
        return self.process.pid

    def broker_pid(self) -> int | None:
        """The embedded broker's, if there is one."""
        return next((pid for pid in machine.children(self.pid) if machine.name_of(pid) == "nats-server"), None)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.http}/api/v1/stats", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.process = None


class Child:
    """A process of our own that says `ready` and then one line of JSON."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=_environment({}), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._line() != "ready":
            self.stop()
            raise RowFailed(f"{words[0]} did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self, word: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def line(self) -> dict[str, Any]:
        """Its line of JSON."""
        line = self._line()
        if not line:
            raise RowFailed("a helper process ended without a result")
        found: dict[str, Any] = json.loads(line)
        return found

    def result(self) -> dict[str, Any]:
        """The same, and its end, however long that takes."""
        found = self.line()
        self.process.wait(30)
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def child(*words: str) -> Iterator[Child]:
    started = Child(*words)
    try:
        yield started
    finally:
        started.stop()


class Bench:
    """What rows share: a temporary folder, one embedded PostgreSQL, one mosquitto, and how long to measure."""

    def __init__(self, folder: Path, runs: int, scale: float, minutes: float) -> None:
        self.folder = folder
        self.runs = runs
        self.scale = scale
        self.minutes = minutes
        self._stack = contextlib.ExitStack()
        self._postgres: EmbeddedPostgres | None = None
        self._mosquitto: subprocess.Popen[bytes] | None = None
        self._mosquitto_url = ""

    def close(self) -> None:
        self._stack.close()

    def scaled(self, count: int, multiple: int = 1) -> int:
        """`count` by the scale asked for, a whole number of `multiple`s."""
        return max(1, round(count * self.scale / multiple)) * multiple

    # Servers

    def postgres(self) -> EmbeddedPostgres:
        """The embedded server of cimtwin, with its settings and, to tell when a row was committed, commit times."""
        if self._postgres is None:
            data_dir = self.folder / "database"
            server = EmbeddedPostgres(data_dir)
            with psycopg.connect(server.start(), autocommit=True) as connection:
                connection.execute("alter system set track_commit_timestamp = on")
            server.stop()
            server.start()
            self._stack.callback(server.stop)
            self._postgres = server
        return self._postgres

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """An empty database; dropped afterwards."""
        server = self.postgres().url
        name = f"bench_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"create database {name}".encode())
        yield server.rpartition("/")[0] + f"/{name}"
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)".encode())
            admin.execute("checkpoint")

    def mosquitto(self) -> tuple[str, int]:
        """URL and process id of a mosquitto without bounds on its queues."""
        if self._mosquitto is None:
            program = mosquitto_program()
            if program is None:
                raise RowFailed("mosquitto is not installed (apt-get install mosquitto)")
            port = free_port()
            config = self.folder / "mosquitto.conf"
            config.write_text(_MOSQUITTO.format(port=port))
            process = subprocess.Popen(
                [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            self._mosquitto, self._mosquitto_url = process, f"mqtt://127.0.0.1:{port}"
            self._stack.callback(process.wait, 60)
            self._stack.callback(process.terminate)
            until(lambda: _listens(port), "mosquitto")
        return self._mosquitto_url, self._mosquitto.pid

    @contextlib.contextmanager
    def service(self, city: Sensors, broker: str = "mosquitto") -> Iterator[Running]:
        """A running service that knows the city's sensors, on a database of its own."""
        with self.database() as url:
            mqtt_url = self.mosquitto()[0] if broker == "mosquitto" else None
            service = Service(self.folder, url, mqtt_url)
            service.import_sensors(city)
            try:
                service.start()
                postgres_pid = self.postgres().pid
                broker_pid = self.mosquitto()[1] if broker == "mosquitto" else service.broker_pid()
                with psycopg.connect(url, autocommit=True) as connection:
                    yield Running(service, connection, url, postgres_pid or 0, broker_pid or 0)
            finally:
                service.stop()

    # Load

    def file(self, name: str) -> Path:
        return self.folder / name

    def publisher(self, port: int, stream: Stream, *options: str) -> contextlib.AbstractContextManager[Child]:
        return child("bench.publisher", str(port), str(stream.path), *options)

    def bare_delivery(self, port: int, stream: Stream, root: str) -> tuple[float, float]:
        """Messages a second that the broker delivers to a reader that only acknowledges, and the reader's CPU s."""
        with (
            child("bench.reader", str(port), f"{root}/#", str(stream.messages)) as reader,
            self.publisher(port, stream) as publisher,
        ):
            publisher.go()
            begun = publisher.result()["begun"]
            taken = reader.result()
        return stream.messages / (taken["ended"] - begun), taken["cpu_s"]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass(frozen=True, slots=True)
class Run:
    """One stream through the service: from the first message handed over to the last commit."""

    seconds: float
    verified: int
    batches: int
    duplicates: int
    cpu: dict[str, float]
    acknowledged_s: float


class Running:
    """A running service and a look into its database."""

    def __init__(
        self, service: Service, connection: psycopg.Connection[Any], url: str, postgres_pid: int, broker_pid: int
    ) -> None:
        self.service = service
        self.connection = connection
        self.url = url
        self.postgres_pid = postgres_pid
        self.broker_pid = broker_pid

    def standing(self) -> Standing:
        row = self.connection.execute(
            "select readings_received, readings_stored, readings_duplicate, readings_quarantined, batch,"
            " extract(epoch from pg_xact_commit_timestamp(c.xmin))::float8 from counters c, service"
        ).fetchone()
        assert row is not None
        received, stored, duplicate, quarantined, batch, at = row
        return Standing(received, stored, duplicate, quarantined, batch, at or 0.0)

    def wait_until_stored(self, readings: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until the counters say that so many are stored."""
        until(lambda: self.standing().stored >= readings, f"{readings} stored readings", patience_s, 0.05)

    def stored_rows(self, after_batch: int) -> tuple[int, int]:
        """How many readings there are of batches after that one, and in how many batches: what SELECT finds."""
        row = self.connection.execute(
            "select count(*), count(distinct batch) from readings where batch > %s", (after_batch,)
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def cpu(self) -> dict[str, float]:
        return {
            "service": machine.cpu_s(self.service.pid),
            "PostgreSQL": machine.family_cpu_s(self.postgres_pid),
            "broker": machine.cpu_s(self.broker_pid),
        }

    def take(self, bench: Bench, stream: Stream, *options: str, fresh: bool = True) -> Run:
        """Publish a stream and wait until all of it is committed (`fresh`: as new rows, else as repetitions)."""
        before, cpu = self.standing(), self.cpu()
        with bench.publisher(self.service.mqtt_port, stream, *options) as publisher:
            publisher.go()
            sent = publisher.result()
        expected = stream.readings

        def done() -> bool:
            now = self.standing()
            told = now.stored - before.stored if fresh else now.duplicate - before.duplicate
            return told >= expected or now.received - before.received >= expected + 50_000

        until(done, f"{expected} readings to be committed", pause_s=0.05)
        after, used = self.standing(), self.cpu()
        verified, batches = self.stored_rows(before.batch)
        return Run(
            after.at - sent["begun"],
            verified,
            batches if fresh else after.batch - before.batch,
            after.duplicate - before.duplicate,
            {name: used[name] - cpu[name] for name in used},
            sent["ended"] - sent["begun"],
        )
