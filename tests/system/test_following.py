"""Followers of the alert events, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import until
from twin.following import Follower
from twin.model import SECOND, Alert, AlertEvent, AlertState, Counts, Outcome, Readings
from twin.store.database import Connection
from twin.store.migrate import migrate
from twin.store.writer import Writer

pytestmark = pytest.mark.system

NOW = 1_790_000_000 * SECOND
STATE = AlertState.ACTIVE_UNACKNOWLEDGED


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    migrate(database_url)
    writer = Writer(database_url, "test")
    writer.connect()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create table seen (id text)")
    yield writer
    writer.close()


def tell(writer: Writer, *numbers: int) -> None:
    alerts = [
        Alert(f"a{n}", "r", 1, None, -1, "井-1", "t", "gas", 1, 1, STATE, NOW, NOW, 1.0, 1.0, 1.0) for n in numbers
    ]
    events = [
        AlertEvent(
            f"e{n}", f"a{n}", "r", 1, None, -1, "井-1", "t", "gas", 1, 0, STATE, "raised", 1.0, 1.0, NOW, NOW, None,
            None, "", "",
        )
        for n in numbers
    ]  # fmt: skip
    writer.commit(Outcome(Readings.empty(), Counts(), alerts=alerts, events=events))


def seen(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("select id from seen").fetchall()]


def test_a_follower_does_each_event_once_whatever_fails_and_begins_with_what_is_new(
    writer: Writer, database_url: str
) -> None:
    tell(writer, 1)  # told before anybody followed
    fails = threading.Event()

    def take(connection: Connection, events: list[AlertEvent]) -> None:
        for event in events:
            connection.execute("insert into seen values (%s)", (event.id,))
        if fails.is_set() and events:
            raise RuntimeError("half way")

    first = Follower(database_url, "desk", take)
    first.start()
    tell(writer, 2, 3)
    first.wake()
    until(lambda: seen(database_url) == ["e2", "e3"])
    fails.set()
    tell(writer, 4)
    first.wake()
    until(lambda: first.failures > 0)
    assert seen(database_url) == ["e2", "e3"]
    first.stop()
    fails.clear()
    tell(writer, 5)
    second = Follower(database_url, "desk", take)
    second.start()
    until(lambda: seen(database_url) == ["e2", "e3", "e4", "e5"])
    second.stop()
