"""Decoding while the batch before is committed changes nothing but the speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest

from alerts.rules import parse_rules
from ingest.inbox import Inbox
from ingest.judgement import Judgement
from ingest.pipeline import AHEAD_FROM, Pipeline
from tests.conftest import until
from twin.catalog import Catalog
from twin.model import DAY, HOUR, MINUTE, SECOND, Micros, Outcome, RawMessage, Sensor
from twin.store.catalog import refresh, upsert_sensors
from twin.store.migrate import migrate
from twin.store.writer import Committed, Writer
from twin.units import load_kinds

pytestmark = pytest.mark.system

KINDS = load_kinds()
NOON = 1_790_000_000 * SECOND // DAY * DAY + 12 * HOUR
SENSORS = 100
RULES = """
[[rule]]
id = "deep"
kind = "drainage.level"
detector = "threshold"
levels = { red = 5 }
"""


def now() -> Micros:
    return time.time_ns() // 1000


class Acknowledged:
    """A source that remembers how much was in the database when it was told of each batch."""

    def __init__(self, url: str) -> None:
        self.is_connected = True
        self.payloads: list[bytes] = []
        self.batches: list[int] = []
        self.too_early = 0
        self._connection = psycopg.connect(url, autocommit=True)

    def acknowledge(self, messages: Sequence[RawMessage]) -> None:
        self.payloads += [message.payload for message in messages]
        self.batches.append(len(messages))
        row = self._connection.execute("select messages_received from counters").fetchone()
        self.too_early += row is None or row[0] < len(self.payloads)

    def close(self) -> None:
        self._connection.close()


class House:
    """A pipeline on a real database, without a broker: messages are put into its inbox."""

    def __init__(self, url: str) -> None:
        self.url = url
        migrate(url)
        self.writer = Writer(url, "test")
        self.writer.connect()
        self.add_sensors(range(SENSORS))
        catalog = Catalog(KINDS)
        self.writer.transact(lambda c: int(refresh(c, catalog)))
        standing = self.writer.standing()
        self.judgement = Judgement(
            catalog,
            parse_rules(RULES, KINDS),
            standing.rules_version,
            lateness=HOUR,
            default_tenant="default",
            max_bytes=1 << 20,
        )
        self.source = Acknowledged(url)
        self.pipeline = Pipeline(
            self.judgement, self.writer, Inbox(65535, 1 << 28), lambda *_: None, now, lambda t: parse_rules(t, KINDS)
        )
        self.pipeline.take_up(standing)
        self.pipeline.source = self.source

    def add_sensors(self, numbers: range) -> None:
        sensors = [Sensor(f"d{n}", "level", "drainage.level", "m") for n in numbers]
        self.writer.transact(lambda c: upsert_sensors(c, sensors, KINDS)[0])

    def put(self, device: int, step: int, value: float) -> None:
        body = b'{"ts":%d,"values":{"level":%g}}' % ((NOON + step * MINUTE) // 1000, value)
        topic = f"cim/v1/default/d{device}/telemetry"
        self.pipeline.inbox.put(RawMessage(topic, body, max(now(), NOON + step * MINUTE)))

    def flood(self, steps: range, deep_at: int = -1) -> None:
        for step in steps:
            for device in range(SENSORS):
                self.put(device, step, 9.0 if step == deep_at else 1.0)

    def wait(self, messages: int) -> None:
        until(lambda: len(self.source.payloads) >= messages or not self.pipeline.is_running, "all to be acknowledged")
        assert self.pipeline.is_running

    def ask(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()

    def stop(self) -> None:
        self.pipeline.stop()
        self.writer.close()
        self.source.close()


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    house = House(database_url)
    yield house
    house.stop()


def test_a_flood_is_stored_once_acknowledged_after_its_commit_and_judged_in_order(house: House) -> None:
    house.flood(range(60))
    house.pipeline.start()
    house.flood(range(60, 300), deep_at=200)
    house.wait(30_000)
    assert house.source.too_early == 0
    assert max(house.source.batches) > AHEAD_FROM
    assert house.ask("select count(*), count(distinct (sensor_id, observed_at)) from readings") == [(30_000, 30_000)]
    assert house.ask("select messages_received, readings_stored, readings_duplicate from counters") == [
        (30_000, 30_000, 0)
    ]
    raised = house.ask(
        "select sensor_id, observed_at, count(*) from alert_events where transition = 'raised' group by 1, 2"
    )
    assert len(raised) == SENSORS
    assert len({at for _, at, _ in raised}) == 1
    assert house.ask(
        "select count(*), min(seq), max(seq) from alert_events where transition in ('raised', 'cleared')"
    ) == [(2 * SENSORS, 1, 2 * SENSORS)]
    # In the order in which they came, whatever was decoded when.
    expected = [f"{(NOON + step * MINUTE) // 1000}".encode() for step in range(300) for _ in range(SENSORS)]
    assert [payload[6:19] for payload in house.source.payloads] == expected


def test_connections_lost_in_the_middle_of_commits_cost_nothing_and_double_nothing(house: House) -> None:
    house.pipeline.start()
    kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'cimtwin serve test%'"
    for part in range(6):
        before = house.pipeline.batch
        house.flood(range(part * 50, part * 50 + 50))
        until(lambda before=before: house.pipeline.batch > before, "a commit of it")
        house.ask(kill)
    house.wait(30_000)
    assert house.source.too_early == 0
    assert house.ask("select count(*) from readings") == [(30_000,)]
    assert house.ask("select messages_received, readings_stored, readings_duplicate from counters") == [
        (30_000, 30_000, 0)
    ]


def test_sensors_that_come_while_their_readings_are_decoded_ahead_are_found(house: House) -> None:
    house.flood(range(105))
    for step in range(105, 155):
        for device in range(2 * SENSORS):
            house.put(device, step, 1.0)
    commit = house.writer.commit

    def adding(outcome: Outcome, on_sent: Callable[[], object] | None = None) -> Committed:
        """As another process would, while a large batch is committed."""
        if len(outcome.readings) > AHEAD_FROM:
            house.writer.commit = commit  # type: ignore[method-assign]
            until(lambda: len(house.pipeline._ahead.messages) == 10_000, "what waits to be decoded meanwhile")
            with psycopg.connect(house.url) as connection:
                sensors = [Sensor(f"d{n}", "level", "drainage.level", "m") for n in range(SENSORS, 2 * SENSORS)]
                upsert_sensors(connection, sensors, KINDS)
        return commit(outcome, on_sent)

    house.writer.commit = adding  # type: ignore[method-assign]
    house.pipeline.start()
    house.wait(20_500)
    assert house.ask("select readings_stored, readings_quarantined from counters") == [(20_500, 0)]


def test_what_was_taken_ahead_stays_unacknowledged_when_the_service_stops(house: House) -> None:
    house.flood(range(300))
    commit = house.writer.commit

    def stopping(outcome: Outcome, on_sent: Callable[[], object] | None = None) -> Committed:
        if len(outcome.readings) > AHEAD_FROM:
            until(lambda: len(house.pipeline._ahead.messages) == 10_000, "what waits to be decoded meanwhile")
            house.pipeline._stopping.set()
        return commit(outcome, on_sent)

    house.writer.commit = stopping  # type: ignore[method-assign]
    house.pipeline.start()
    until(lambda: not house.pipeline.is_running, "the pipeline to end")
    assert len(house.source.payloads) == 10_500
    assert len(house.pipeline._ahead.messages) == 10_000
    assert house.pipeline.waiting == 19_500
    assert house.ask("select messages_received, readings_stored from counters") == [(10_500, 10_500)]
