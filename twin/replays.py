"""The replays of a running service: each a worker process, seen here as something that WebSocket clients can watch.

Bounds: `CIMTWIN_REPLAYS` workers at once (one more is refused, unless one stands unwatched at its end and makes room);
the status of the last 100 that are over is remembered; each keeps its newest 100,000 alert events for clients that
resume. One that nobody watched or controlled for half an hour is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

from alerts.lifecycle import AlertBook, listed
from ingest.commands import OTHER_REQUEST, Once
from twin.catalog import Catalog
from twin.live import Limits, Live
from twin.model import Alert, AlertEvent, Conflict, Micros, NotFound, Problem, Readings, Refused, StoreUnavailable, iso
from twin.replay_worker import Progress, Wanted, work
from twin.state import SensorState

log = logging.getLogger(__name__)

EVENTS_KEPT: Final = 100_000
ENDED_KEPT: Final = 100
WAIT_FOR_CLIENT_S: Final = 3.0  # a new replay stands at its start until it is watched, but not longer
IDLE_S: Final = 1800.0
WAITING_MOST: Final = 32  # actions that were not carried out yet; one more is refused
BEHIND_S: Final = 5.0  # for which a replay waits for slow clients at a time; then they are closed, and resume
ANSWERS_KEPT: Final = 1000
BUSY_READINGS_S: Final = 25_000  # what a replay plays a second at most while live work needs the machine
FINAL: Final = ("stopped", "failed")
ENDED: Final = 1000


class Surroundings(Protocol):
    """What a replay needs of the service."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def settings(self) -> Any: ...

    @property
    def clock(self) -> Callable[[], Micros]: ...

    @property
    def database_url(self) -> str: ...

    @property
    def is_busy(self) -> bool:
        """Whether live work needs the machine."""
        ...


class ReplayView:
    """One replay as the service sees it; a `twin.live.Source`."""

    def __init__(self, service: Surroundings, wanted: Wanted, is_paused: bool) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.wanted = wanted
        self.settings: Limits = service.settings
        self.created_at = service.clock()
        self.epoch = self.id
        self.sensors = len(service.catalog) if wanted.sensors is None else len(wanted.sensors)
        self.reader = self
        self.progress = Progress("preparing", wanted.start, wanted.speed)
        self._service = service
        self._lock = threading.Lock()
        self._state = SensorState.of(len(service.catalog))
        self._book = AlertBook()
        self._seq = 0
        self._events: list[AlertEvent] = []
        self._waiting: dict[int, Future[Progress]] = {}
        self._number = 0
        self._is_held = not is_paused
        self._used_at = time.monotonic()
        self._ready_at = float("inf")
        self.live = Live(self, self.id)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe: Connection = ours
        self._sending = threading.Lock()
        kinds: Path | None = service.settings.kinds
        self._process = context.Process(
            target=work, args=(theirs, service.database_url, kinds, wanted), name=f"replay-{self.id}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._thread = threading.Thread(target=self._listen, name=f"replay-{self.id}", daemon=True)
        self._thread.start()

    # As a source of frames

    @property
    def catalog(self) -> Catalog:
        return self._service.catalog

    @property
    def state(self) -> SensorState:
        return self._state

    def snapshot(self) -> tuple[int, list[Alert]]:
        """The number of the last alert event told and the alerts open as of it."""
        with self._lock:
            return self._seq, listed(self._book.open.values())

    async def events_after(self, seq: int, limit: int) -> list[AlertEvent]:
        """The first `limit` alert events told with a higher number, as far as they are kept."""
        with self._lock:
            if not self._events:
                return []
            first = max(0, seq + 1 - self._events[0].seq)
            return self._events[first : min(first + limit, self._seq + 1 - self._events[0].seq)]

    # What people do

    @property
    def is_over(self) -> bool:
        return self.progress.state in FINAL

    def status(self) -> dict[str, Any]:
        """As HTTP gives it."""
        now, wanted = self.progress, self.wanted
        recorded = now.recorded
        return {
            "id": self.id,
            "state": now.state,
            "time": iso(now.time),
            "from": iso(wanted.start),
            "to": iso(wanted.end),
            "speed": now.speed,
            "sensors": self.sensors,
            "readings": now.readings,
            "events": now.events,
            "digest": now.digest,
            "recorded": None if recorded is None else {"events": recorded[0], "digest": recorded[1]},
            "rules": "recorded" if wanted.rules is None else "given",
            "received_before": iso(wanted.received_before),
            "created_at": iso(self.created_at),
            "error": now.error,
        }

    def control(self, action: str, argument: float | int | None = None) -> Future[Progress]:
        """Play, pause, seek (to a time), speed or stop. The future is done when it has taken effect."""
        self._used_at = time.monotonic()
        if action not in ("seek", "speed"):
            self._is_held = False
        if action == "stop":
            self.end()
            ended: Future[Progress] = Future()
            ended.set_result(self.progress)
            return ended
        with self._lock:
            if self.is_over:
                raise Conflict(f"the replay has {self.progress.state} / 回放已结束")
            self._number += 1
            number = self._number
            if len(self._waiting) >= WAITING_MOST:
                raise Conflict("the replay is busy, try again / 回放正忙，请稍后重试")
            future: Future[Progress] = Future()
            future.set_running_or_notify_cancel()  # who gives up waiting for it cancels nothing
            self._waiting[number] = future
        self._send((number, action, argument))
        return future

    async def ready(self) -> None:
        """Return once it stands at its start, or is over."""
        while self.progress.state == "preparing":
            await asyncio.sleep(0.02)

    def watched(self) -> None:
        """Somebody subscribed: a new replay now plays."""
        self._used_at = time.monotonic()
        if self.is_over:
            self.live.end(ENDED, "the replay has ended / 回放结束")
        self._tell_clock()
        if self._is_held and self.progress.state == "paused":
            self._begin()

    def _begin(self) -> None:
        with contextlib.suppress(Conflict):
            self.control("play")

    def look(self, now: float) -> None:
        """What the passing of time asks for."""
        if len(self.live):
            self._used_at = now
        if self.is_over:
            return
        if self._is_held and self.progress.state == "paused" and (len(self.live) or now > self._ready_at):
            self._begin()
        if now - self._used_at > IDLE_S:
            log.info("replay %s ended: nobody watched it", self.id)
            self.end()

    def end(self) -> None:
        """Stop the worker and close the clients; again does nothing."""
        self._over("stopped")
        with contextlib.suppress(ValueError):
            self._process.terminate()
        self._release()

    def _release(self) -> None:
        """Let go of the worker and of what only it needed."""
        with contextlib.suppress(ValueError):
            self._process.join(5)
            self._process.close()
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _over(self, state: str, error: str | None = None) -> None:
        with self._lock:
            if self.is_over:
                return
            self.progress = replace(self.progress, state=state, error=error)
            waiting, self._waiting = self._waiting, {}
            self._events, self._state, self._book = [], SensorState.of(0), AlertBook()
        self._tell_clock()
        for future in waiting.values():
            if state == "failed":
                future.set_exception(StoreUnavailable(error or "the replay failed"))
            else:
                future.set_result(self.progress)
        self.live.end(ENDED, f"replay {state} / 回放结束")

    # The worker

    def _send(self, message: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError), self._sending:
            self._pipe.send(message)

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._pipe.recv())
        except (EOFError, OSError):
            self._over("failed", "the replay's process has ended / 回放进程已终止")
            if self.progress.state == "failed":
                self._release()
        except Exception as error:
            log.exception("replay %s failed", self.id)
            self._over("failed", f"{type(error).__name__}: {error}")
            self._process.terminate()

    def _take(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "failed":
            self._over("failed", message[1])
        elif kind == "answer":
            self._stand(message[2])
            with self._lock:
                future = self._waiting.pop(message[1], None)
            if future is not None:
                future.set_result(message[2])
        elif kind == "clock":
            self._stand(message[1])
            self._tell_clock()
        elif kind == "moved":
            self._moved(*message[1:])
        elif kind == "told":
            self._told(*message[1:])

    def _stand(self, progress: Progress) -> None:
        with self._lock:
            if not self.is_over:
                self.progress = progress

    def _tell_clock(self) -> None:
        now = self.progress
        self.live.tell({"type": "clock", "time": iso(now.time), "state": now.state, "speed": now.speed})

    def _moved(self, progress: Progress, events: list[AlertEvent], alerts: list[Alert], latest: Readings) -> None:
        self._ready_at = min(self._ready_at, time.monotonic() + WAIT_FOR_CLIENT_S)
        latest = self._known(latest)
        state = SensorState.of(max(len(self.catalog), len(self._state)))
        state.apply(latest)
        with self._lock:
            self._keep(events)
            self._state, self._book, self._seq = state, AlertBook(alerts), progress.events
        self._stand(progress)
        self.live.begin_anew()
        self._tell_clock()
        if len(self.live):
            self.watched()

    def _told(
        self,
        progress: Progress,
        events: list[AlertEvent],
        alerts: list[Alert],
        values: list[tuple[str, float, float]],
        latest: Readings,
    ) -> None:
        latest = self._known(latest)
        begun, played = time.monotonic(), progress.readings - self.progress.readings
        with self._lock:
            self._keep(events)
            self._state.grow(len(self.catalog))
            self._state.apply(latest)
            self._book.apply(alerts)
            for id_, value, peak in values:
                alert = self._book.open.get(id_)
                if alert is not None:
                    self._book.apply([replace(alert, value=value, peak_value=peak)])
            self._seq = progress.events
        self._stand(progress)
        self.live.publish(events, latest)
        while not (self._waiting or self.is_over):
            waited = time.monotonic() - begun
            is_for_clients = self.live.is_behind and waited < BEHIND_S
            is_for_live = self._service.is_busy and waited < played / BUSY_READINGS_S
            if not (is_for_clients or is_for_live):
                break
            time.sleep(0.01)
        self._send(("passed",))

    def _known(self, latest: Readings) -> Readings:
        """Without sensors that the service has yet to hear of: an import puts them into the database itself."""
        return latest.take(latest.sensor < len(self.catalog))

    def _keep(self, events: list[AlertEvent]) -> None:
        """Number n is the same event whenever it is told, so what is kept needs no change when a replay goes back."""
        last = self._events[-1].seq if self._events else 0
        fresh = [event for event in events if event.seq > last]
        if fresh and self._events and fresh[0].seq != last + 1:
            self._events.clear()  # a jump forward over what was played before and has been let go
        self._events += fresh
        del self._events[:-EVENTS_KEPT]


class Replays:
    """All of them, by id; and the answers to requests that are to act once (1,000, as long as the service runs: so do
    replays)."""

    def __init__(self, service: Surroundings, most: int) -> None:
        self._service = service
        self._most = most
        self._lock = threading.Lock()
        self._all: dict[str, ReplayView] = {}
        self._answers: dict[str, tuple[str, bytes]] = {}

    def answered(self, once: Once | None) -> bytes | None:
        """The answer that this request got before. Raises `Refused` where its key came with another."""
        route, answer = ("", None) if once is None else self._answers.get(once.key, (once.route, None))
        if once is not None and route != once.route:
            raise Refused([Problem("Idempotency-Key", "", OTHER_REQUEST)])
        return answer

    def answer(self, once: Once | None, answer: bytes) -> bytes:
        """Keep the answer to a request for its repetition."""
        if once is not None:
            self._answers[once.key] = once.route, answer
            while len(self._answers) > ANSWERS_KEPT:
                del self._answers[next(iter(self._answers))]
        return answer

    def start(self, wanted: Wanted, is_paused: bool) -> ReplayView:
        """Begin one. Raises `Conflict` where as many run as may."""
        with self._lock:
            running = [view for view in self._all.values() if not view.is_over]
            if len(running) >= self._most:
                # One that stands at its end unwatched makes room.
                for view in sorted(running, key=lambda view: view.created_at):
                    if view.progress.state == "ended" and not len(view.live):
                        view.end()
                        running.remove(view)
                        break
            if len(running) >= self._most:
                text = f"{self._most} replays are running: stop one first / 已有 {self._most} 个回放在运行,请先停止一个"
                raise Conflict(text)
            over = [view.id for view in self._all.values() if view.is_over]
            for id_ in over[: max(0, len(over) - ENDED_KEPT)]:
                del self._all[id_]
            view = ReplayView(self._service, wanted, is_paused)
            self._all[view.id] = view
        return view

    def find(self, id_: str) -> ReplayView:
        view = self._all.get(id_)
        if view is None:
            raise NotFound(f"no replay {id_} / 没有回放 {id_}")
        return view

    def listed(self) -> list[ReplayView]:
        """The newest first."""
        return sorted(self._all.values(), key=lambda view: (view.created_at, view.id), reverse=True)

    @property
    def running(self) -> int:
        return sum(not view.is_over for view in list(self._all.values()))

    def look(self) -> None:
        """To be called about every half second."""
        now = time.monotonic()
        for view in list(self._all.values()):
            view.look(now)

    def end(self) -> None:
        for view in list(self._all.values()):
            view.end()
