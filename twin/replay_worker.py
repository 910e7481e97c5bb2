"""A replay at work: paced by a clock of its own, in a process of its own.

The process reads the database by a read-only connection and talks to the service through one pipe; it changes nothing
anywhere. It is nice to the live service: its priority is the lowest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from alerts.lifecycle import Digest, listed
from alerts.packs import default_text
from alerts.rules import RuleSet, parse_rules
from ingest.replay import Replay
from twin.catalog import Catalog
from twin.live import box_mask
from twin.model import SECOND, Alert, AlertEvent, Micros, Readings, Refused, StoreUnavailable
from twin.reach import Reach
from twin.store.tape import Tape
from twin.units import load_kinds

TICK_S: Final = 0.05  # what was played goes out at most this often
CLOCK_S: Final = 0.2
WAIT_FOR_NETWORKS_S: Final = 120.0
CREDIT: Final = 2  # stretches told before the service must have passed on the first of them
NICENESS: Final = 19
SPEEDS: Final = (0.1, 3600.0)  # slowest and fastest; 0 is as fast as possible


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to play: [start, end); `sensors` by index, None for all; `rules` (TOML) instead of the recorded ones;
    `received_before`: only what was known then. `speed`: times faster than recorded, 0 as fast as possible."""

    start: Micros
    end: Micros
    speed: float = 1.0
    sensors: tuple[int, ...] | None = None
    rules: str | None = None
    received_before: Micros | None = None
    is_paused: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a replay stands. `state`: preparing, playing, paused, ended, stopped, failed. `recorded`: how many alert
    events were told live in the range, and their digest; known once the end was reached."""

    state: str
    time: Micros
    speed: float
    readings: int = 0
    events: int = 0
    digest: str = str(Digest())
    recorded: tuple[int, str] | None = None
    error: str | None = None


def is_speed(speed: float) -> bool:
    """Whether a replay can have this speed."""
    slowest, fastest = SPEEDS
    return speed == 0 or slowest <= speed <= fastest


def selection(
    catalog: Catalog, sensors: Iterable[str] | None, box: tuple[float, float, float, float] | None
) -> tuple[int, ...] | None:
    """The indices of the sensors named that lie inside; None for all. Raises `NotFound` for one that there is not."""
    if sensors is None and box is None:
        return None
    chosen = np.ones(len(catalog), bool)
    if sensors is not None:
        chosen[:] = False
        chosen[[catalog.find(name) for name in sensors]] = True
    if box is not None:
        chosen &= box_mask(catalog, box)[: len(chosen)]
    return tuple(np.flatnonzero(chosen).tolist())


def open_replay(tape: Tape, kinds_file: Path | None, wanted: Wanted) -> Replay:
    """The replay, at its start. Raises `StoreUnavailable`; `Refused` where the given rules are bad."""
    kinds = load_kinds(kinds_file)
    catalog = Catalog(kinds)

    def parse(text: str) -> RuleSet:
        return parse_rules(text, kinds)

    attributes: frozenset[str] | None = None
    reach: Reach | None = None
    for text in [text for _, _, text in tape.rules()] if wanted.rules is None else [wanted.rules]:
        with contextlib.suppress(Refused):  # of a time when other kinds were known
            rules = parse(text)
            if rules.attributes is not None:
                attributes = rules.attributes | (attributes or frozenset())
            if reach is None and rules.follows_networks:
                reach = Reach(tape.dsn)
                reach.start()
                reach.ready(WAIT_FOR_NETWORKS_S)
                reach.stop()  # the pipes stay as they are for as long as the replay goes on
    tape.load_catalog(catalog, attributes)
    result = Replay(
        tape,
        catalog,
        parse,
        wanted.start,
        wanted.end,
        sensors=None if wanted.sensors is None else np.array(wanted.sensors, np.int32),
        given=None if wanted.rules is None else parse(wanted.rules),
        reach=reach,
    )
    result.prepare()
    return result


class ReplayTape(Tape):
    """A tape of a database that no service ran on yet has the default pack."""

    def rules(self) -> list[tuple[int, Micros, str]]:
        return super().rules() or [(0, 0, default_text())]


class Pace:
    """How far a replay may have come: `speed` times the real time since it was set going."""

    def __init__(self, speed: float, at: Micros) -> None:
        self.speed = speed
        self.set(at)

    def set(self, at: Micros) -> None:
        self._at, self._begun = at, time.monotonic()

    def due(self, end: Micros) -> Micros:
        if self.speed == 0:
            return end
        return min(end, self._at + int((time.monotonic() - self._begun) * self.speed * SECOND))

    def keep_to(self, at: Micros, due: Micros) -> None:
        """Where playing cannot keep up by more than a second, the clock waits for it."""
        if self.speed and due - at > SECOND * self.speed:
            self.set(at)


# In a process of its own


def work(pipe: Connection, dsn: str, kinds_file: Path | None, wanted: Wanted) -> None:
    """Play until the process is ended, or the service is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then tells us
    os.nice(NICENESS)
    try:
        try:
            replay = open_replay(ReplayTape(dsn, wanted.received_before), kinds_file, wanted)
        except Exception as error:  # noqa: BLE001 - told to whoever asked; there is nothing else to end here
            pipe.send(("failed", _line(error)))
            return
        Player(pipe, replay, wanted).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the service has gone
    except Exception as error:  # noqa: BLE001 - as above
        pipe.send(("failed", _line(error)))


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, StoreUnavailable) else f"{type(error).__name__}: {text}"


class Player:
    """Plays one replay to the service at the other end of a pipe.

    Comes in: `(number, action, argument)`, action one of play, pause, seek, speed; and `("passed",)` for each
    stretch that was passed on. Goes out: `("moved", Progress, events, open alerts, latest readings)` at the start and
    after a seek; `("told", Progress, events, changed alerts, values, latest readings)`; `("clock", Progress)`;
    `("answer", number, Progress)`.
    """

    def __init__(self, pipe: Connection, replay: Replay, wanted: Wanted) -> None:
        self.pipe = pipe
        self.replay = replay
        self.is_playing = not wanted.is_paused
        self.pace = Pace(wanted.speed, replay.time)
        self.credit = CREDIT
        self.recorded: tuple[int, str] | None = None
        self._next_clock = 0.0

    @property
    def progress(self) -> Progress:
        replay = self.replay
        is_at_end = replay.time >= replay.end
        state = "ended" if is_at_end else "playing" if self.is_playing else "paused"
        return Progress(
            state, replay.time, self.pace.speed, replay.told, replay.digest.count, str(replay.digest), self.recorded
        )

    def run(self) -> None:
        self._tell_moved([])
        while True:
            is_moving = self.is_playing and self.replay.time < self.replay.end
            may_tell = self.credit > 0
            wait = None if not is_moving else TICK_S if not may_tell or self.pace.speed else 0
            while self.pipe.poll(wait):
                self._take(self.pipe.recv())
                wait = 0
            if self.is_playing and self.replay.time < self.replay.end and self.credit > 0:  # also after what came in
                self._play()

    def _play(self) -> None:
        replay = self.replay
        due = self.pace.due(replay.end)
        told = replay.advance(due)
        self.pace.keep_to(replay.time, due)
        if replay.time >= replay.end:
            self._look_at_recorded()
        progress = self.progress
        if told.readings or told.events:
            latest = Readings.join(told.readings).newest()
            values = replay.current(self._concerned(latest))
            self.credit -= 1
            self.pipe.send(("told", progress, told.events, told.alerts, values, latest))
        now = time.monotonic()
        if now >= self._next_clock or progress.state == "ended":
            self._next_clock = now + CLOCK_S
            self.pipe.send(("clock", progress))

    def _concerned(self, latest: Readings) -> list[Alert]:
        """The open alerts on these sensors."""
        book = self.replay.judgement.book.open
        if not book or not len(latest):
            return []
        there = set(latest.sensor.tolist())
        return [alert for alert in book.values() if alert.sensor_index in there]

    def _look_at_recorded(self) -> None:
        if self.recorded is None:
            digest = self.replay.recorded_digest()
            self.recorded = digest.count, str(digest)

    def _tell_moved(self, events: list[AlertEvent]) -> None:
        replay = self.replay
        if replay.time >= replay.end:
            self._look_at_recorded()
        state = replay.judgement.state
        known = np.flatnonzero(state.observed_at >= replay.start).astype(np.int32)
        latest = Readings(
            known, state.observed_at[known], state.received_at[known], state.value[known], state.quality[known]
        )
        alerts = listed(replay.judgement.book.open.values())
        values = {id_: (value, peak) for id_, value, peak in replay.current(alerts)}
        alerts = [
            replace(alert, value=values[alert.id][0], peak_value=values[alert.id][1]) if alert.id in values else alert
            for alert in alerts
        ]
        self.pipe.send(("moved", self.progress, events, alerts, latest))

    def _take(self, message: tuple[Any, ...]) -> None:
        if message[0] == "passed":
            self.credit += 1
            return
        number, action, argument = message
        if action == "play":
            self.is_playing = True
            self.pace.set(self.replay.time)
        elif action == "pause":
            self.is_playing = False
        elif action == "speed":
            self.pace = Pace(argument, self.replay.time)
        elif action == "seek":
            self._tell_moved(self.replay.seek(argument).events)
            self.pace.set(self.replay.time)
        self.pipe.send(("answer", number, self.progress))
        self.pipe.send(("clock", self.progress))
