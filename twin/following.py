"""Followers: what is done about alert events after their commit, each event once and in order, across restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

import psycopg

from twin.model import AlertEvent
from twin.store import following as store
from twin.store.database import Connection

log = logging.getLogger(__name__)

AT_ONCE: Final = 5000  # events given in one transaction
EVERY_S: Final = 1.0
PAUSE_S: Final = 2.0  # after an error

Take = Callable[[Connection, list[AlertEvent]], Callable[[], None] | None]


class Follower:
    """A thread with a connection of its own that gives `take` the committed alert events.

    `take(connection, events)` runs in the transaction that notes how far this follower got: what it writes is written
    once, whatever happens. It is called without events every `EVERY_S`, for what only time brings. What it returns, if
    anything, is called after the commit (and not again after a crash between the two). The first time ever it starts
    with what is told from then on. Counter: `failures`; an error is logged, and the same events are given again.
    """

    def __init__(self, dsn: str, name: str, take: Take) -> None:
        self.failures = 0
        self._dsn = dsn
        self._name = name
        self._take = take
        self._is_due = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Note where to begin, and follow from there on. Raises psycopg's errors."""
        with store.connect(self._dsn) as connection:
            store.begin(connection, self._name)
        self._thread.start()

    def wake(self) -> None:
        """There are new events; from any thread."""
        self._is_due.set()

    def stop(self) -> None:
        self._stopping.set()
        self._is_due.set()
        if self._thread.is_alive():
            self._thread.join(15)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with store.connect(self._dsn) as connection:
                    self._follow(connection)
            except Exception as error:
                self.failures += 1
                known = isinstance(error, psycopg.Error)
                log.warning("%s: %s", self._name, error, exc_info=not known)
                self._stopping.wait(PAUSE_S)

    def _follow(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            self._is_due.clear()
            with connection.transaction():
                events = store.next_events(connection, self._name, AT_ONCE)
                after = self._take(connection, events)
                if events:
                    store.done(connection, self._name, events[-1].seq)
            if after is not None:
                after()
            if len(events) < AT_ONCE:
                self._is_due.wait(EVERY_S)
