"""Fan-out of alert events and readings to WebSocket clients (contract 6), without any web framework.

Everything here lives on one asyncio loop, but `publish`, which the pipeline's thread calls after each commit. A client
is joined first and reads the standing alerts (or the events it missed) after; the number up to which it knows
everything, its `floor`, then tells which live events are news to it: no gap, no double.

Incidents go to clients that ask for them only, of each the newest state.

Buffers: the backlog of published events (`BACKLOG_EVENTS`; over it all clients are closed with 4008 and resume from the
database), each client's alert frames (`queue_frames`; over it that client is closed with 4008), each client's
sensors whose newest reading it has yet to be told (at most one entry a sensor), and its incidents' frames (one each).
`stats` counts what was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import orjson

from twin.catalog import Catalog
from twin.model import (
    LEVELS,
    Alert,
    AlertEvent,
    Bools,
    Indices,
    Ints,
    Level,
    NotFound,
    Quality,
    Readings,
    iso,
)
from twin.state import SensorState

PING_S: Final = 20.0
TICK_S: Final = 0.05  # readings go out at most this often; the first after a pause at once
FRAME_READINGS: Final = 1000
SLICE_EVENTS: Final = 256
PATIENCE_S: Final = 0.02
PACE_FROM_S: Final = 0.005  # where dealing out takes longer, as long again is left to everything else
AT_ONCE_BYTES: Final = 64 * 1024  # handed to a connection past its queue; more waits there for its turn
BACKLOG_EVENTS: Final = 100_000
MISSED_MOST: Final = 50_000
MISSED_PAGE: Final = 2000
FRAME_BYTES: Final = 64 * 1024  # of a frame from a client
SENSORS_MOST: Final = 10_000  # named in one subscription

TOO_SLOW: Final = 4008
BAD_FRAME: Final = 4400
UNAUTHORISED: Final = 4401
GOING_AWAY: Final = 1012


Filter = TypeVar("Filter", "AlertFilter", "ReadingFilter")


class BadFrame(Exception):  # noqa: N818 - an outcome, named as such in the house's words
    """A frame from a client that cannot be used; the text says why, in English and Chinese."""


class Limits(Protocol):
    """The settings that matter here."""

    @property
    def ws_queue(self) -> int: ...


class Events(Protocol):
    """Where missed events are read."""

    async def events_after(self, seq: int, limit: int) -> list[AlertEvent]: ...


class Source(Protocol):
    """What the service tells clients of."""

    @property
    def settings(self) -> Limits: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def state(self) -> SensorState: ...

    @property
    def reader(self) -> Events: ...

    @property
    def epoch(self) -> str: ...

    def snapshot(self) -> tuple[int, list[Alert]]:
        """The number of the last committed alert event and the open alerts as of it, taken in one step with respect
        to the pipeline's thread, which updates both before it calls `Live.publish`."""
        ...


# What clients ask for


@dataclass(frozen=True, slots=True)
class AlertFilter:
    min_level: int = Level.BLUE
    domains: frozenset[str] | None = None
    bbox: tuple[float, float, float, float] | None = None

    def takes(self, level: int, domain: str, lon: float | None, lat: float | None) -> bool:
        if level < self.min_level or (self.domains is not None and domain not in self.domains):
            return False
        if self.bbox is None:
            return True
        if lon is None or lat is None:
            return False
        west, south, east, north = self.bbox
        return west <= lon <= east and south <= lat <= north

    def takes_event(self, event: AlertEvent) -> bool:
        """An event passes if its level before or after does."""
        return self.takes(max(event.level, event.previous_level), event.domain, event.lon, event.lat)

    def takes_alert(self, alert: Alert) -> bool:
        return self.takes(alert.level or alert.peak_level, alert.domain, alert.lon, alert.lat)


def box_mask(catalog: Catalog, bbox: tuple[float, float, float, float]) -> Bools:
    """Which sensors are inside a box, borders included."""
    size = len(catalog)  # another thread adds sensors: both columns to one length
    lon, lat = catalog.lon[:size], catalog.lat[:size]
    west, south, east, north = bbox
    inside: Bools = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    return inside


@dataclass(frozen=True, slots=True)
class ReadingFilter:
    """Sensors by index, or all in a box of degrees."""

    sensors: frozenset[int] | None = None
    bbox: tuple[float, float, float, float] | None = None

    def mask(self, catalog: Catalog) -> Bools:
        if self.bbox is not None:
            return box_mask(catalog, self.bbox)
        mask = np.zeros(len(catalog), bool)
        mask[[index for index in self.sensors or () if index < len(mask)]] = True
        return mask


@dataclass(frozen=True, slots=True)
class Resume:
    epoch: str
    seq: int


@dataclass(frozen=True, slots=True)
class Subscription:
    alerts: AlertFilter | None
    readings: ReadingFilter | None
    resume: Resume | None
    token: str | None = field(default=None, repr=False)
    incidents: bool = False


def parse_subscription(data: str | bytes, catalog: Catalog) -> Subscription:
    """A client's subscribe frame; `BadFrame` says what is wrong with it. Unknown fields are ignored."""
    if len(data) > FRAME_BYTES:
        raise BadFrame(f"frame larger than {FRAME_BYTES >> 10} KiB / 帧超过 {FRAME_BYTES >> 10} KiB")
    try:
        frame = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadFrame(f"not JSON: {error} / 不是 JSON") from None
    if not isinstance(frame, dict):
        raise BadFrame("a frame must be a JSON object / 帧必须是 JSON 对象")
    if frame.get("type") != "subscribe":
        raise BadFrame('"type" must be "subscribe" / "type" 必须为 "subscribe"')
    token = frame.get("token")
    if token is not None and not isinstance(token, str):
        raise _wrong("token", "a text", "文本")
    incidents = frame.get("incidents")
    if incidents is not None and not isinstance(incidents, bool):
        raise _wrong("incidents", "true or false", " true 或 false")
    return Subscription(
        _alert_filter(_object(frame, "alerts")),
        _reading_filter(_object(frame, "readings"), catalog),
        _resume(_object(frame, "resume")),
        token,
        bool(incidents),
    )


def frame_token(data: str | bytes) -> str | None:
    """The token in a client's first frame, if there is one, whatever else is wrong with the frame."""
    if len(data) > FRAME_BYTES:
        return None
    try:
        frame = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    token = frame.get("token") if isinstance(frame, dict) else None
    return token if isinstance(token, str) else None


def _wrong(name: str, what: str, zh: str) -> BadFrame:
    return BadFrame(f'"{name}" must be {what} / "{name}" 必须是{zh}')


def _object(frame: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = frame.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(name, "an object or null", "对象或 null")
    return value


def _alert_filter(given: dict[str, Any] | None) -> AlertFilter | None:
    if given is None:
        return None
    word = given.get("min_level")
    if word is not None and word not in LEVELS:
        raise _wrong("alerts.min_level", f"one of {', '.join(LEVELS)}", f"以下之一：{'、'.join(LEVELS)}")
    domains = given.get("domains")
    if domains is not None and not (isinstance(domains, list) and all(isinstance(name, str) for name in domains)):
        raise _wrong("alerts.domains", "a list of texts", "文本列表")
    return AlertFilter(
        Level.BLUE if word is None else Level.of(word),
        None if domains is None else frozenset(domains),
        _box(given, "alerts.bbox"),
    )


def _reading_filter(given: dict[str, Any] | None, catalog: Catalog) -> ReadingFilter | None:
    if given is None:
        return None
    box = _box(given, "readings.bbox")
    names = given.get("sensors")
    if names is None:
        if box is None:
            raise _wrong("readings", 'an object with "sensors" or "bbox"', '含有 "sensors" 或 "bbox" 的对象')
        return ReadingFilter(bbox=box)
    if box is not None:
        raise BadFrame('"readings" takes either "sensors" or "bbox" / "readings" 只能给出 "sensors" 或 "bbox" 之一')
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _wrong("readings.sensors", "a list of sensor ids", "测点编号列表")
    if len(names) > SENSORS_MOST:
        raise BadFrame(f"more than {SENSORS_MOST} sensors: ask for a bbox / 测点超过 {SENSORS_MOST} 个，请使用 bbox")
    try:
        return ReadingFilter(sensors=frozenset(catalog.find(name) for name in names))
    except NotFound as error:
        raise BadFrame(str(error)) from None


def _box(given: dict[str, Any], name: str) -> tuple[float, float, float, float] | None:
    box = given.get("bbox")
    if box is None:
        return None
    is_numbers = isinstance(box, list) and len(box) == 4
    if not is_numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        raise _wrong(name, "[minlon, minlat, maxlon, maxlat]", " [minlon, minlat, maxlon, maxlat]")
    west, south, east, north = (float(v) for v in box)
    if not (all(map(math.isfinite, (west, south, east, north))) and west <= east and south <= north):
        raise _wrong(name, "minlon <= maxlon and minlat <= maxlat", " minlon <= maxlon、minlat <= maxlat")
    return west, south, east, north


def _resume(given: dict[str, Any] | None) -> Resume | None:
    if given is None:
        return None
    epoch, seq = given.get("epoch"), given.get("seq")
    if not isinstance(epoch, str):
        raise _wrong("resume.epoch", "a text", "文本")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**63:
        raise _wrong("resume.seq", "a whole number, not negative", "非负整数")
    return Resume(epoch, seq)


# Nouns as the outside sees them


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def level_word(level: int) -> str | None:
    return Level(level).word if level else None


def alert_json(alert: Alert) -> dict[str, Any]:
    """An alert as HTTP and WebSocket give it (contract 5). Of one that has ended, the level it had."""
    return _alert_json(alert, iso(alert.since), iso(alert.raised_at))


def alerts_json(alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """`alert_json` of many, in less than half of the time."""
    since = isos(np.array([alert.since for alert in alerts], np.int64))
    raised_at = isos(np.array([alert.raised_at for alert in alerts], np.int64))
    return [*map(_alert_json, alerts, since, raised_at)]


def _alert_json(alert: Alert, since: str | None, raised_at: str | None) -> dict[str, Any]:
    return {
        "id": alert.id,
        "rule": alert.rule,
        "rule_version": alert.rule_version,
        "sensor": alert.sensor,
        "asset": alert.asset,
        "tenant": alert.tenant,
        "domain": alert.domain,
        "level": level_word(alert.level or alert.peak_level),
        "peak_level": level_word(alert.peak_level or alert.level),
        "state": alert.state.value,
        "flags": list(alert.flags),
        "suppressed_by": list(alert.suppressed_by),
        "shelved_until": iso(alert.shelved_until),
        "assignee": alert.assignee,
        "verdict": alert.verdict,
        "since": since,
        "raised_at": raised_at,
        "cleared_at": iso(alert.cleared_at),
        "value": _number(alert.value),
        "peak_value": _number(alert.peak_value),
        "threshold": _number(alert.threshold),
        "place": {"lon": alert.lon, "lat": alert.lat, "name": alert.place},
        "instruction": {"zh": alert.instruction_zh, "en": alert.instruction_en},
        "message": {"zh": alert.message_zh, "en": alert.message_en},
    }


def event_json(event: AlertEvent) -> dict[str, Any]:
    """An alert event as HTTP and WebSocket give it (contract 6); the level of a cleared one is the level it had."""
    return {
        "id": event.id,
        "alert_id": event.alert_id,
        "rule": event.rule,
        "rule_version": event.rule_version,
        "sensor": event.sensor,
        "asset": event.asset,
        "tenant": event.tenant,
        "domain": event.domain,
        "level": level_word(event.level or event.previous_level),
        "previous_level": level_word(event.previous_level),
        "state": event.state.value,
        "transition": event.transition,
        "value": _number(event.value),
        "threshold": _number(event.threshold),
        "observed_at": iso(event.observed_at),
        "at": iso(event.at),
        "place": {"lon": event.lon, "lat": event.lat},
        "message": {"zh": event.message_zh, "en": event.message_en},
        "retroactive": event.is_retroactive,
        "replaces": event.replaces,
        "by": event.by,
        "note": event.note,
        "flags": list(event.flags),
        "detail": event.detail,
    }


def isos(column: Ints) -> list[str]:
    """`iso` of a whole column."""
    result = np.empty(len(column), object)
    is_whole = column % 1_000_000 == 0
    is_milli = (column % 1000 == 0) & ~is_whole
    for which, unit in ((is_whole, "s"), (is_milli, "ms"), (~is_whole & ~is_milli, "us")):
        if which.any():
            texts = np.datetime_as_string(column[which].astype("M8[us]"), unit=unit, casting="unsafe")  # type: ignore[call-overload]
            result[which] = [f"{text}Z" for text in texts.tolist()]
    return result.tolist()


def _text(frame: dict[str, Any]) -> str:
    # ASGI sends text frames from str; one decode serves all clients.
    return orjson.dumps(frame).decode()


def error_frame(detail: str) -> str:
    return _text({"type": "error", "detail": detail})


def wire_frame(text: str) -> bytes:
    """A text frame as a server sends it (RFC 6455, 5.2): the same bytes for every client."""
    data = text.encode()
    size = len(data)
    if size < 126:
        return bytes((0x81, size)) + data
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + data
    return b"\x81\x7f" + size.to_bytes(8, "big") + data


@dataclass(eq=False, slots=True)
class Client:
    """One connection: its filters, what waits to be sent to it, and whether it is to be closed.

    `take_now` hands frames in their last form to the connection, and says whether it would have them; it is asked only
    while nothing else waits or is being sent (`is_idle`). Without it all goes by the queue."""

    alert_filter: AlertFilter | None = None
    reading_filter: ReadingFilter | None = None
    floor: int = 0  # the client knows of every event up to here
    is_ready: bool = False
    is_idle: bool = False  # the queue was found empty, and what was taken from it is sent
    take_now: Callable[[bytes], bool] | None = None
    frames: deque[str] = field(default_factory=deque)
    held: list[tuple[int, str]] = field(default_factory=list)  # live events, while the missed ones are being read
    wants_incidents: bool = False
    told: dict[str, str] = field(default_factory=dict)  # frames of incidents, the newest of each
    reading_frames: deque[str] = field(default_factory=deque)
    behind: Bools | None = None  # sensors whose newest reading is yet to be told, beyond `reading_frames`
    extra: int = 0  # frames of a resume among `frames`: the bound is for live ones
    sent: int = 0
    sent_before: int = -1  # `sent` at the last ping, if something waited then
    close_code: int | None = None
    close_reason: str = ""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    _awake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self._awake.set()

    async def wait(self) -> None:
        """Until there may be something to send, or to close for."""
        await self._awake.wait()
        self._awake.clear()

    def close(self, code: int, reason: str) -> None:
        """To be closed by whoever owns the connection; what waits is given up."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.frames.clear()
        self.held.clear()
        self.told.clear()
        self.reading_frames.clear()
        self.behind = None
        self.closing.set()
        self._awake.set()

    def restart(self) -> None:
        """Forget what waits to be sent; a new subscription begins."""
        self.is_ready = False
        self.floor = self.extra = 0
        self.frames.clear()
        self.held.clear()
        self.told.clear()
        self.reading_frames.clear()
        self.behind = None


class Live:
    """All clients of one service, or of one replay (`replay`, its id, is then in every frame). `publish`, `tell`,
    `begin_anew` and `end` may be called from any one thread; the rest belongs to the loop."""

    def __init__(self, source: Source, replay: str | None = None) -> None:
        self.replay = replay
        self.source = source  # its catalogue and state may be there only when the first client comes
        self.queue_frames = source.settings.ws_queue
        self._step = max(1, min(SLICE_EVENTS, self.queue_frames // 2))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: set[Client] = set()
        # What stands, for clients that want incidents: the open ones, and whether there is a flood of alerts.
        self.standing: Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]] | None = None
        # Clients with equal filters are judged once.
        self._by_alerts: dict[AlertFilter, set[Client]] = {}
        self._by_readings: dict[ReadingFilter, set[Client]] = {}
        self._masks: dict[ReadingFilter, Bools] = {}
        self._masks_of = (-1, -1)
        self._backlog: deque[list[AlertEvent] | dict[str, Any]] = deque()  # slices of events, and frames told between
        self._backlog_events = 0
        self._pump: asyncio.Task[None] | None = None
        self._free_at = -math.inf  # events that come before are dealt out together then
        self._pending: list[Readings] = []
        self._tick: asyncio.TimerHandle | None = None
        self._ticked_at = -math.inf
        self._ping: asyncio.TimerHandle | None = None
        self._seq = 0  # last event dealt out
        self._snapshots: dict[tuple[AlertFilter | None, bool], tuple[int, float, str]] = {}
        self.sent_frames = 0
        self.closed_slow = 0
        self.resumed = 0
        self.gaps = 0
        self.refused = 0

    def __len__(self) -> int:
        """The number of clients."""
        return len(self._clients)

    def start(self) -> None:
        """Begin on the running loop; again does nothing."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._ping = loop.call_later(PING_S, self._send_ping)

    def stop(self) -> None:
        """Close all clients (1012: they come back and resume) and end the timers."""
        for client in list(self._clients):
            client.close(GOING_AWAY, "service restarts / 服务重启")
        for timer in (self._ping, self._tick):
            if timer is not None:
                timer.cancel()
        if self._pump is not None:
            self._pump.cancel()
        self._loop = self._ping = self._tick = self._pump = None
        self._backlog.clear()
        self._backlog_events = 0
        self._pending.clear()

    def end(self, code: int, reason: str) -> None:
        """Close all clients for good, and stop. From any thread."""
        self._on_loop(self._end, code, reason)

    def _end(self, code: int, reason: str) -> None:
        for client in list(self._clients):
            client.close(code, reason)
        self.stop()

    def _frame(self, frame: dict[str, Any]) -> str:
        return _text(frame if self.replay is None else frame | {"replay": self.replay})

    def _event_frame(self, event: AlertEvent) -> str:
        return self._frame({"type": "alert", "seq": event.seq, "event": event_json(event)})

    def stats(self) -> dict[str, int]:
        return {
            "ws_clients": len(self._clients),
            "ws_frames_sent": self.sent_frames,
            "ws_closed_slow": self.closed_slow,
            "ws_refused": self.refused,
            "ws_resumed": self.resumed,
            "ws_gaps": self.gaps,
            "ws_backlog": self._backlog_events,
        }

    # From the pipeline

    def publish(self, events: list[AlertEvent], readings: Readings | None = None) -> None:
        """Tell clients of committed events, in the order of `seq`, and of stored readings. From the pipeline's thread,
        after what `Source.snapshot` answers has taken the events in. Never blocks."""
        loop = self._loop
        if loop is None:
            return
        wanted = readings if readings is not None and self._by_readings and len(readings) else None
        if not events and wanted is None:
            return
        self._on_loop(self._take, events, wanted)

    def _take(self, events: list[AlertEvent], readings: Readings | None) -> None:
        if self._loop is None:
            return
        if readings is not None:
            self._pending.append(readings)
            if self._tick is None:
                delay = self._ticked_at + TICK_S - self._loop.time()
                if delay <= 0:
                    self._deal_readings()
                else:
                    self._tick = self._loop.call_later(delay, self._deal_readings)
        if not events:
            return
        if self._pump is None and len(events) <= self._step and self._loop.time() >= self._free_at:
            self._deal_events(events)
            return
        self._backlog_events += len(events)
        self._backlog.extend(events[n : n + self._step] for n in range(0, len(events), self._step))
        if self._backlog_events > BACKLOG_EVENTS:
            for client in list(self._clients):
                self._close_slow(client)
            self._seq = events[-1].seq
            self._backlog.clear()
            self._backlog_events = 0
        elif self._pump is None:
            self._pump = self._loop.create_task(self._deal_backlog())

    @property
    def is_behind(self) -> bool:
        """Whether what was published is more than the clients have taken by half of what may wait for one of them. May
        be asked from any thread."""
        if self._backlog_events > self.queue_frames // 2:
            return True
        return any(len(client.frames) - client.extra > self.queue_frames // 2 for client in list(self._clients))

    def tell(self, frame: dict[str, Any]) -> None:
        """Give every client this frame with the number of the last alert event, after what was published before,
        unless its queue is full: the next one will say more."""
        self._on_loop(self._tell, frame)

    def _tell(self, frame: dict[str, Any]) -> None:
        if self._pump is not None:
            self._backlog.append(frame)
            return
        self._tell_now(frame)

    def _tell_now(self, frame: dict[str, Any]) -> None:
        if self._tick is not None:  # what came before goes first
            self._tick.cancel()
            self._deal_readings()
        told: dict[int, tuple[list[str], bytes]] = {}
        for client in self._clients:
            if client.is_ready and len(client.frames) < self.queue_frames:
                seq = max(client.floor, self._seq)  # a client may know of events that are on their way
                if seq not in told:
                    text = self._frame(frame | {"seq": seq})
                    told[seq] = [text], wire_frame(text)
                self._give(client, *told[seq])

    def publish_incidents(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Tell the clients that want it of incidents (key and frame); of one key a slow client gets the newest only.
        From any thread."""
        if told and self._loop is not None:
            self._on_loop(self._deal_incidents, told)

    def _deal_incidents(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        clients = [client for client in self._clients if client.wants_incidents and client.is_ready]
        if not clients:
            return
        texts = {key: self._frame(frame) for key, frame in told}
        for client in clients:
            client.told.update(texts)
            client.wake()

    def begin_anew(self) -> None:
        """The source stands elsewhere now: what waits for clients is void, and all get a snapshot."""
        self._on_loop(self._begin_anew)

    def _begin_anew(self) -> None:
        self._snapshots.clear()
        self._pending.clear()
        self._backlog.clear()
        self._backlog_events = 0
        self._seq = self.source.snapshot()[0]
        for client in list(self._clients):
            if client.is_ready:
                client.restart()
                self._begin(client, None)

    def _on_loop(self, work: Callable[..., None], *given: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed: there is nobody left to tell
                self._loop.call_soon_threadsafe(work, *given)

    async def _deal_backlog(self) -> None:
        """A large batch in slices, so that clients who keep up can send between them and their queues hold. Where one
        does not quite, a little patience: it is either through then or soon over its bound, and closed. Small ones
        together, where the clients are so many that dealing out takes long: at most half of the loop's time."""
        loop = asyncio.get_running_loop()
        try:
            while self._backlog:
                if (wait_s := self._free_at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                    continue
                events = self._backlog.popleft()
                if isinstance(events, dict):
                    self._tell_now(events)
                    continue
                while self._backlog and not isinstance(more := self._backlog[0], dict):
                    if len(events) + len(more) > self._step:
                        break
                    events = events + more
                    self._backlog.popleft()
                self._backlog_events -= len(events)
                self._deal_events(events)
                await asyncio.sleep(0)
                if any(len(client.frames) - client.extra > self.queue_frames - self._step for client in self._clients):
                    await asyncio.sleep(PATIENCE_S)
        finally:
            self._pump = None

    def _deal_events(self, events: Sequence[AlertEvent]) -> None:
        self._seq = max(self._seq, events[-1].seq)
        if not self._by_alerts:
            return
        begun = time.thread_time()
        frames: dict[int, str] = {}
        for wanted, clients in list(self._by_alerts.items()):
            passed: list[tuple[int, str]] = []
            for event in events:
                if wanted.takes_event(event):
                    frame = frames.get(event.seq)
                    if frame is None:
                        frame = frames[event.seq] = self._event_frame(event)
                    passed.append((event.seq, frame))
            if not passed:
                continue
            first = passed[0][0]
            texts = [frame for _, frame in passed]
            wire = b"".join(map(wire_frame, texts))
            for client in list(clients):
                news = passed if client.floor < first else [item for item in passed if item[0] > client.floor]
                if not news:
                    continue
                if not client.is_ready:
                    client.held.extend(news)
                    if len(client.held) > self.queue_frames:
                        self._close_slow(client)
                    continue
                if len(client.frames) + len(news) > self.queue_frames + client.extra:
                    self._close_slow(client)
                    continue
                if news is passed:
                    self._give(client, texts, wire)
                else:
                    client.frames.extend([frame for _, frame in news])
                    client.wake()
        if self._loop is not None:
            took = time.thread_time() - begun  # not of the wall: where others take the cores, waiting more helps nobody
            if took > PACE_FROM_S:
                self._free_at = self._loop.time() + took

    def _give(self, client: Client, texts: Sequence[str], wire: bytes) -> None:
        """Send a client these frames, `wire` in their last form: at once where nothing is before them, else in their
        turn. At once costs a fifth: the client's task is not woken, and nothing is made anew for it."""
        is_first = client.is_idle and not client.frames and len(wire) <= AT_ONCE_BYTES
        if is_first and client.take_now is not None and client.take_now(wire):
            client.sent += len(texts)
            self.sent_frames += len(texts)
            return
        client.frames.extend(texts)
        client.wake()

    def _close_slow(self, client: Client) -> None:
        self.closed_slow += 1
        self.leave(client)
        client.close(TOO_SLOW, "too slow: resume / 接收过慢，请续传")

    # Readings

    def _deal_readings(self) -> None:
        loop = self._loop
        self._tick = None
        if loop is None:
            return
        self._ticked_at = loop.time()
        readings, self._pending = Readings.join(self._pending), []
        if not self._by_readings or not len(readings):
            return
        newest = readings.newest()
        # A late reading is not the latest of its sensor; and a replay that has ended knows of none.
        state = self.source.state
        newest = newest.take(newest.sensor < len(state))
        newest = newest.take(newest.observed_at >= state.observed_at[newest.sensor])
        for wanted, clients in list(self._by_readings.items()):
            passed = newest.take(self._mask(wanted)[newest.sensor])
            if not len(passed):
                continue
            frames: list[str] | None = None
            for client in clients:
                if not client.is_ready:
                    continue  # gets the latest values when it is
                if client.reading_frames or client.behind is not None:
                    if client.behind is None or len(client.behind) < len(self.source.catalog):
                        grown = np.zeros(len(self.source.catalog), bool)
                        if client.behind is not None:
                            grown[: len(client.behind)] = client.behind
                        client.behind = grown
                    client.behind[passed.sensor] = True
                    continue
                if frames is None:
                    frames = self._reading_frames(passed)
                client.reading_frames.extend(frames)
                client.wake()

    def _mask(self, wanted: ReadingFilter) -> Bools:
        standing = (self.source.catalog.version, len(self.source.catalog))
        if standing != self._masks_of:
            self._masks.clear()
            self._masks_of = standing
        mask = self._masks.get(wanted)
        if mask is None:
            mask = self._masks[wanted] = wanted.mask(self.source.catalog)
        return mask

    def _reading_frames(self, readings: Readings) -> list[str]:
        return [
            self._reading_frame(
                readings.sensor[n : n + FRAME_READINGS],
                readings.observed_at[n : n + FRAME_READINGS],
                readings.value[n : n + FRAME_READINGS].tolist(),
                readings.quality[n : n + FRAME_READINGS].tolist(),
            )
            for n in range(0, len(readings), FRAME_READINGS)
        ]

    def _reading_frame(self, sensor: Indices | Ints, at: Ints, value: list[float], quality: list[int]) -> str:
        sensors = self.source.catalog.sensors
        items = [
            {
                "sensor": sensors[index].id,
                "observed_at": moment,
                "value": number,  # orjson writes NaN, a missing value, as null
                "quality": Quality.word(bits),
            }
            for index, moment, number, bits in zip(sensor.tolist(), isos(at), value, quality, strict=True)
        ]
        return self._frame({"type": "readings", "items": items})

    def next_frame(self, client: Client) -> str | None:
        """What to send to a client next: alert frames first, then readings; None if there is nothing. Asking says that
        what was given before is sent."""
        frame = self._next_frame(client)
        client.is_idle = frame is None
        return frame

    def _next_frame(self, client: Client) -> str | None:
        if client.frames:
            self.sent_frames += 1
            client.sent += 1
            frame = client.frames.popleft()
            if not client.frames:
                client.extra = 0
            return frame
        if client.told:
            self.sent_frames += 1
            client.sent += 1
            return client.told.pop(next(iter(client.told)))
        if client.reading_frames:
            self.sent_frames += 1
            client.sent += 1
            return client.reading_frames.popleft()
        if client.behind is None:
            return None
        state = self.source.state
        which = np.flatnonzero(client.behind)
        which = which[which < len(state)][:FRAME_READINGS]
        client.behind[which] = False
        if len(which) < FRAME_READINGS:
            client.behind = None
        which = which[state.observed_at[which] > 0]
        if not len(which):
            return None
        self.sent_frames += 1
        client.sent += 1
        return self._reading_frame(
            which, state.observed_at[which], state.value[which].tolist(), state.quality[which].tolist()
        )

    # Clients

    def join(self, client: Client, wanted: Subscription) -> None:
        """Register with these filters. Live events are held until `begin` or `resume` has said what stands."""
        self.leave(client)
        client.alert_filter, client.reading_filter = wanted.alerts, wanted.readings
        client.wants_incidents = wanted.incidents
        self._clients.add(client)
        if wanted.alerts is not None:
            self._by_alerts.setdefault(wanted.alerts, set()).add(client)
        if wanted.readings is not None:
            self._by_readings.setdefault(wanted.readings, set()).add(client)

    def leave(self, client: Client) -> None:
        """Forget a client; again does nothing."""
        self._clients.discard(client)
        _drop(self._by_alerts, client.alert_filter, client)
        _drop(self._by_readings, client.reading_filter, client)
        if client.reading_filter not in self._by_readings and client.reading_filter is not None:
            self._masks.pop(client.reading_filter, None)

    async def subscribe(self, client: Client, wanted: Subscription) -> None:
        """Serve a subscribe frame: missed events after a good resume, else (a gap and) a snapshot, then live frames.
        Raises `StoreUnavailable` where missed events cannot be read."""
        self.start()
        self.leave(client)
        client.restart()
        self._clients.add(client)  # from here on a stall is noticed
        if wanted.resume is None:
            self.join(client, wanted)
            self._begin(client, None)
        else:
            await self._resume(client, wanted, wanted.resume)

    def _begin(self, client: Client, gap_after: int | None) -> None:
        """Snapshot, with a gap before it where numbers after `gap_after` are lost. One step of the loop."""
        seq, frame = self._snapshot(client.alert_filter, client.wants_incidents)
        if gap_after is not None:
            self.gaps += 1
            client.frames.append(self._frame({"type": "gap", "from": min(gap_after + 1, seq), "to": seq}))
        client.frames.append(frame)
        self._go_live(client, seq)

    def _snapshot(self, wanted: AlertFilter | None, with_incidents: bool = False) -> tuple[int, str]:
        loop = asyncio.get_running_loop()
        seq, alerts = self.source.snapshot()
        kept = self._snapshots.get((wanted, with_incidents))
        # Many clients that come back at once get the same text; values in it are at most this old.
        if kept is not None and kept[0] == seq and loop.time() - kept[1] < 0.5:
            return seq, kept[2]
        items = [] if wanted is None else alerts_json([alert for alert in alerts if wanted.takes_alert(alert)])
        told = {"type": "snapshot", "epoch": self.source.epoch, "seq": seq, "alerts": items}
        if with_incidents and self.standing is not None:
            told["incidents"], told["flood"] = self.standing()
        frame = self._frame(told)
        if len(self._snapshots) >= 64:
            self._snapshots.clear()
        self._snapshots[wanted, with_incidents] = (seq, loop.time(), frame)
        return seq, frame

    def _go_live(self, client: Client, floor: int) -> None:
        client.floor = floor
        client.extra = len(client.frames)
        client.frames.extend(frame for seq, frame in client.held if seq > floor)
        client.held.clear()
        client.is_ready = True
        if client.reading_filter is not None:
            client.behind = self._mask(client.reading_filter).copy()
        client.wake()

    async def _resume(self, client: Client, wanted: Subscription, resume: Resume) -> None:
        source, events = self.source, self.source.reader
        last, _ = source.snapshot()
        seq = resume.seq
        lost = resume.epoch != source.epoch or seq > last or last - seq > MISSED_MOST
        # Far behind: page by page, as fast as the client takes them, before live events begin to wait for it.
        while not lost and last - seq > MISSED_PAGE // 2:
            page = await events.events_after(seq, MISSED_PAGE)
            if not page or not _follows(page, seq):
                lost = True
                break
            seq = self._append_missed(client, wanted.alerts, page)
            while client.frames:
                await asyncio.sleep(0.002)
            if client.close_code is not None:
                return
            last, _ = source.snapshot()
        self.join(client, wanted)
        if not lost:
            # Committed before this query: in it. After: published after the client was joined, so held.
            page = await events.events_after(seq, MISSED_MOST)
            # A replay may have gone elsewhere meanwhile, and keeps only so many.
            lost = seq > last or seq + len(page) < last or not _follows(page, seq)
            if client.close_code is not None:
                return
            if page and not lost:
                seq = self._append_missed(client, wanted.alerts, page)
        if lost:
            self._begin(client, seq)
            return
        self.resumed += 1
        # Says that the resume went well, also where nothing was missed.
        ping = self._frame({"type": "ping", "seq": seq})
        client.frames.append(ping)
        if client.wants_incidents and self.standing is not None:  # they have no numbers: what stands is told again
            incidents, flood = self.standing()
            client.told = {one["id"]: self._frame({"type": "incident", "incident": one}) for one in incidents}
            client.told["flood"] = self._frame({"type": "flood", "flood": flood})
        self._go_live(client, seq)

    def _append_missed(self, client: Client, wanted: AlertFilter | None, page: list[AlertEvent]) -> int:
        if wanted is not None:
            client.frames.extend(self._event_frame(event) for event in page if wanted.takes_event(event))
            client.wake()
        return page[-1].seq

    def _send_ping(self) -> None:
        if self._loop is None:
            return
        self._ping = self._loop.call_later(PING_S, self._send_ping)
        shared = self._frame({"type": "ping", "seq": self._seq})
        wire = wire_frame(shared)
        for client in list(self._clients):
            is_waiting = bool(client.frames or client.reading_frames)
            if is_waiting and client.sent == client.sent_before:
                self._close_slow(client)  # took nothing since the last ping
                continue
            client.sent_before = client.sent if is_waiting else -1
            if not client.is_ready or len(client.frames) >= self.queue_frames:
                continue
            # What a client knows may be ahead of what was dealt out: then events are on their way that it has.
            ahead = client.floor > self._seq
            if ahead:
                client.frames.append(self._frame({"type": "ping", "seq": client.floor}))
                client.wake()
            else:
                self._give(client, [shared], wire)


def _drop(groups: dict[Filter, set[Client]], key: Filter | None, client: Client) -> None:
    clients = None if key is None else groups.get(key)
    if clients is not None and key is not None:
        clients.discard(client)
        if not clients:
            del groups[key]


def _follows(page: Sequence[AlertEvent], seq: int) -> bool:
    """Whether the events are numbered without a hole from `seq` + 1 on."""
    return all(event.seq == number for number, event in enumerate(page, seq + 1))


__all__ = [
    "BAD_FRAME",
    "TOO_SLOW",
    "UNAUTHORISED",
    "AlertFilter",
    "BadFrame",
    "Client",
    "Live",
    "ReadingFilter",
    "Resume",
    "Source",
    "Subscription",
    "alert_json",
    "alerts_json",
    "event_json",
    "parse_subscription",
]
