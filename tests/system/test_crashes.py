"""kill -9 in full stream: nothing acknowledged is lost, nothing is doubled, the alert sequence is unbroken."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Cimtwin, free_port, until
from tests.proxy import Proxy
from twin.embedded import EmbeddedBroker, EmbeddedPostgres, database_url_for_command
from twin.settings import Address, load

pytestmark = pytest.mark.system

START_MS = 1_790_000_000_000
STEP_MS = 10_000
DEVICES = 20
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15 }
hold = "20s"
"""
SENSORS = "device,property,kind\n" + "".join(f"d{n},depth,drainage.ponding_depth\n" for n in range(DEVICES))


def depth(step: int) -> float:
    """Ten readings dry, ten flooded."""
    return 20.0 if step // 10 % 2 else 1.0


class Stream:
    """Devices that publish one reading every ten seconds of their own time, as fast as the broker acknowledges."""

    def __init__(self, city: Cimtwin, steps: int) -> None:
        self.steps = steps
        self.publisher = city.publisher(window=500)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @property
    def acknowledged(self) -> int:
        return self.publisher.acknowledged

    def _run(self) -> None:
        for step in range(self.steps):
            payload = json.dumps({"ts": START_MS + step * STEP_MS, "values": {"depth": depth(step)}}).encode()
            for device in range(DEVICES):
                self.publisher.publish(f"cim/v1/default/d{device}/telemetry", payload)

    def finish(self) -> int:
        self.thread.join(120)
        self.publisher.flush(120)
        self.publisher.close()
        return self.steps * DEVICES


@contextmanager
def database(city: Cimtwin) -> Iterator[psycopg.Connection[Any]]:
    url = city.environ.get("CIMTWIN_DATABASE_URL")
    settings = load({"data_dir": city.data_dir, "database_url": url}, environ={})
    with database_url_for_command(settings) as dsn, psycopg.connect(dsn) as connection:
        yield connection


def assert_nothing_lost_or_doubled(city: Cimtwin, published: int) -> dict[str, Any]:
    with database(city) as connection:

        def stored() -> bool:
            row = connection.execute(
                "select count(*), count(distinct (sensor_id, observed_at)) from readings"
            ).fetchone()
            connection.rollback()
            return row == (published, published)

        until(stored, f"{published} readings in the database", 90)
        events = connection.execute(
            "select seq, sensor_id, transition, observed_at, id, replaces from alert_events order by seq"
        ).fetchall()
        counters = connection.execute(
            "select readings_received, readings_stored, readings_duplicate, readings_quarantined from counters"
        ).fetchone()
    assert [row[0] for row in events] == list(range(1, len(events) + 1))
    assert len({row[4] for row in events}) == len(events)
    assert counters is not None
    received, stored_, duplicate, quarantined = counters
    assert received == stored_ + duplicate + quarantined
    assert (stored_, quarantined) == (published, 0)
    steps = published // DEVICES
    expected = [(s, "raised") for s in range(steps) if depth(s) > 15 and s % 10 == 2]
    expected += [(s, "cleared") for s in range(steps) if depth(s) < 15 and s % 10 == 0 and s > 0]
    expected.sort()
    # What a broker sends again can come late; what that made us say wrongly is taken back.
    taken_back = {row[5] for row in events if row[5]}
    standing = [row for row in events if row[2] != "withdrawn" and row[4] not in taken_back]
    for sensor in range(DEVICES):
        own = [(int(row[3].timestamp() * 1000 - START_MS) // STEP_MS, row[2]) for row in standing if row[1] == sensor]
        assert sorted(own) == expected
    return {"duplicate": duplicate, "events": len(events)}


def prepared(city: Cimtwin) -> Cimtwin:
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    return city


@pytest.fixture(params=["nats-server", "mosquitto"])
def broker_url(request: pytest.FixtureRequest, mosquitto: str, tmp_path: Path) -> Iterator[str]:
    if request.param == "mosquitto":
        yield mosquitto
        return
    broker = EmbeddedBroker(tmp_path / "broker", Address("127.0.0.1", free_port()))
    yield broker.start()
    broker.stop()


@pytest.mark.parametrize("reader", ["own", "paho"])
def test_killing_the_service_between_commit_and_acknowledgement(
    cimtwin: Callable[..., Cimtwin], broker_url: str, reader: str
) -> None:
    proxy = Proxy(broker_url)
    city = prepared(cimtwin(CIMTWIN_MQTT_URL=proxy.url, CIMTWIN_MQTT_READER=reader))
    stream = Stream(city, 2000)
    for _ in range(4):
        before = city.stats()["readings_stored"]
        proxy.unheard = b"cimtwin-"  # the service's acknowledgements, from now on
        until(
            lambda before=before: city.stats()["readings_stored"] > before or not stream.thread.is_alive(),
            "the stream to flow",
        )
        city.kill()
        proxy.unheard = None
        city.start()
    result = assert_nothing_lost_or_doubled(city, stream.finish())
    assert result["duplicate"], "no kill fell between a commit and its acknowledgement"
    proxy.close()


def test_killing_the_embedded_broker(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    stream = Stream(city, 400)
    for part in (1000, 3000):
        until(lambda part=part: stream.acknowledged > part, f"{part} acknowledged messages")
        pid = kill(broker_of(city).pid)
        until(lambda pid=pid: broker_of(city).pid not in (None, pid), "the broker to be back")
    assert_nothing_lost_or_doubled(city, stream.finish())


def test_killing_postgresql(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin(embedded=True))
    stream = Stream(city, 400)
    for part in (1000, 4000):
        until(lambda part=part: city.stats()["readings_stored"] > part, f"{part} stored readings")
        kill(EmbeddedPostgres(city.data_dir).pid)
        until(lambda: city.is_ready(), "the database to be back")
    assert_nothing_lost_or_doubled(city, stream.finish())


def test_killing_all_three_at_once(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin(embedded=True))
    stream = Stream(city, 300)
    until(lambda: city.stats()["readings_stored"] > 2000, "2000 stored readings")
    city.kill()
    kill(broker_of(city).pid)
    kill(EmbeddedPostgres(city.data_dir).pid)
    city.start()
    assert_nothing_lost_or_doubled(city, stream.finish())


def test_a_restart_with_100_000_readings_waiting_takes_them_all(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    city.kill()  # alone: its broker goes on, and keeps what comes
    publisher = city.publisher()
    pack = 50
    for n in range(100_000 // (DEVICES * pack)):
        for device in range(DEVICES):
            readings = [
                {"ts": START_MS + (n * pack + k) * STEP_MS, "values": {"depth": depth(n * pack + k)}}
                for k in range(pack)
            ]
            publisher.publish(f"cim/v1/default/d{device}/telemetry", json.dumps(readings).encode())
    publisher.flush()
    publisher.close()
    city.start()
    city.drained(100_000)
    assert_nothing_lost_or_doubled(city, 100_000)


def broker_of(city: Cimtwin) -> EmbeddedBroker:
    return EmbeddedBroker(city.data_dir, Address.parse(city.environ["CIMTWIN_MQTT_LISTEN"]))


def kill(pid: int | None) -> int:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid
