"""The fan-out to WebSocket clients: nothing missed, nothing twice, nobody slowed by a slow neighbour."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from twin import live as live_module
from twin.catalog import Catalog
from twin.live import BadFrame, Client, Live, isos, parse_subscription
from twin.model import Alert, AlertEvent, AlertState, Readings, Sensor, iso
from twin.state import SensorState
from twin.units import Kind

T0 = 1_790_000_000_000_000
KIND = Kind("drainage.ponding_depth", "cm", "积水深度", "Ponding depth")


def event(seq: int, level: int = 3, before: int = 0, **more: Any) -> AlertEvent:
    fields: dict[str, Any] = {
        "id": f"e{seq}", "alert_id": f"a{seq}", "rule": "r", "rule_version": 1, "sensor": "d0/p", "sensor_index": 0,
        "asset": None, "tenant": "t", "domain": "drainage", "level": level, "previous_level": before,
        "state": AlertState.ACTIVE_UNACKNOWLEDGED, "transition": "raised", "value": 1.0, "threshold": 1.0,
        "observed_at": T0, "at": T0, "lon": 114.0, "lat": 22.5, "message_zh": "积水", "message_en": "ponding",
        "seq": seq,
    }  # fmt: skip
    return AlertEvent(**(fields | more))


def alert(number: int, level: int = 3) -> Alert:
    return Alert(
        f"a{number}", "r", 1, "d0/p", 0, None, "t", "drainage", level, level, AlertState.ACTIVE_UNACKNOWLEDGED, T0, T0,
        1.0, 1.0, 1.0, lon=114.0, lat=22.5,
    )  # fmt: skip


@dataclass
class Limits:
    ws_queue: int = 1000


@dataclass
class City:
    """A service that commits alert events and readings, each event an alert of its own."""

    settings: Limits = field(default_factory=Limits)
    epoch: str = "e1"
    events: list[AlertEvent] = field(default_factory=list)
    reads: int = 0
    before_read: Callable[[], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.catalog = Catalog({KIND.name: KIND})
        sensors = [Sensor(f"d{n}", "p", KIND.name, "cm", lon=114 + n / 100, lat=22.5) for n in range(20)]
        self.catalog.put(list(enumerate(sensors)))
        self.state = SensorState.of(20)
        self.live = Live(self)

    @property
    def reader(self) -> City:
        return self

    def snapshot(self) -> tuple[int, list[Alert]]:
        with self.lock:
            return len(self.events), [alert(e.seq, e.level) for e in self.events]

    async def events_after(self, seq: int, limit: int) -> list[AlertEvent]:
        self.reads += 1
        if self.before_read is not None:
            await self.before_read()
        found = self.events[seq : seq + limit]
        await asyncio.sleep(0)
        return found

    def commit(self, number: int = 1, **more: Any) -> None:
        with self.lock:
            fresh = [event(len(self.events) + n + 1, **more) for n in range(number)]
            self.events += fresh
        self.live.publish(fresh, None)

    def read(self, sensors: list[int], at: int, value: float = 1.0) -> None:
        n = len(sensors)
        readings = Readings(
            np.array(sensors, np.int32), np.full(n, at), np.full(n, at), np.full(n, value), np.zeros(n, np.uint8)
        )
        self.state.apply(readings)
        self.live.publish([], readings)


class Screen:
    """A client that takes every frame at once (or, `is_slow`, none)."""

    def __init__(self, city: City, is_slow: bool = False) -> None:
        self.city = city
        self.client = Client()
        self.frames: list[dict[str, Any]] = []
        self.task = None if is_slow else asyncio.ensure_future(self.take())

    async def take(self) -> None:
        while self.client.close_code is None:
            frame = self.city.live.next_frame(self.client)
            if frame is None:
                await self.client.wait()
            else:
                self.frames.append(orjson.loads(frame))

    async def subscribe(self, **frame: Any) -> Screen:
        data = orjson.dumps({"type": "subscribe", **frame})
        await self.city.live.subscribe(self.client, parse_subscription(data, self.city.catalog))
        return self

    def drain(self) -> list[dict[str, Any]]:
        while (frame := self.city.live.next_frame(self.client)) is not None:
            self.frames.append(orjson.loads(frame))
        return self.frames

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.of("alert")]


def run(scenario: Callable[[City], Coroutine[Any, Any, None]], **settings: int) -> City:
    async def main() -> City:
        city = City(Limits(**settings))
        city.live.start()
        await scenario(city)
        city.live.stop()
        return city

    return asyncio.run(main())


async def settle(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def test_a_snapshot_is_followed_by_exactly_the_events_after_it() -> None:
    async def scenario(city: City) -> None:
        city.commit(3)
        screen = await Screen(city).subscribe(alerts={})  # the three are still on their way to the loop
        city.commit(2)
        await settle()
        snapshot = screen.frames[0]
        assert snapshot["type"] == "snapshot"
        assert (snapshot["seq"], snapshot["epoch"], len(snapshot["alerts"])) == (3, "e1", 3)
        assert screen.seqs == [4, 5]

    run(scenario)


def test_a_good_resume_gives_the_missed_events_and_no_snapshot() -> None:
    async def scenario(city: City) -> None:
        city.commit(5)

        async def commit_meanwhile() -> None:
            city.commit()
            await settle()

        city.before_read = commit_meanwhile
        screen = await Screen(city).subscribe(alerts={}, resume={"epoch": "e1", "seq": 2})
        city.commit()
        await settle()
        assert [frame["type"] for frame in screen.frames] == ["alert"] * 4 + ["ping", "alert"]
        assert screen.seqs == [3, 4, 5, 6, 7]
        assert screen.of("ping")[0]["seq"] == 6

    run(scenario)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 40),
    known=st.integers(0, 40),
    storms=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=12),
)
def test_a_resumed_client_knows_every_event_once_whatever_happens_meanwhile(
    before: int, known: int, storms: list[tuple[int, int]]
) -> None:
    async def scenario(city: City) -> None:
        city.commit(before)
        waiting = list(storms)

        async def storm() -> None:
            if waiting:
                number, pauses = waiting.pop()
                city.commit(number)
                await settle(pauses)

        city.before_read = storm
        screen = await Screen(city).subscribe(alerts={}, resume={"epoch": "e1", "seq": min(known, before)})
        while waiting:
            await storm()
        await settle()
        assert screen.seqs == list(range(min(known, before) + 1, len(city.events) + 1))

    page, live_module.MISSED_PAGE = live_module.MISSED_PAGE, 8
    try:
        run(scenario)
    finally:
        live_module.MISSED_PAGE = page


@pytest.mark.parametrize(
    ("resume", "gap"),
    [
        ({"epoch": "another", "seq": 2}, (3, 5)),
        ({"epoch": "e1", "seq": 9}, (5, 5)),
    ],
)
def test_a_resume_that_cannot_be_met_gives_a_gap_and_a_snapshot(resume: dict[str, Any], gap: tuple[int, int]) -> None:
    async def scenario(city: City) -> None:
        city.commit(5)
        screen = await Screen(city).subscribe(alerts={}, resume=resume)
        await settle()
        assert [frame["type"] for frame in screen.frames] == ["gap", "snapshot"]
        assert (screen.frames[0]["from"], screen.frames[0]["to"]) == gap
        assert screen.frames[1]["seq"] == 5

    run(scenario)


def test_too_many_missed_events_give_a_gap_and_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MISSED_MOST", 10)

    async def scenario(city: City) -> None:
        city.commit(12)
        screen = await Screen(city).subscribe(alerts={}, resume={"epoch": "e1", "seq": 1})
        await settle()
        assert [frame["type"] for frame in screen.frames] == ["gap", "snapshot"]
        assert city.reads == 0

    run(scenario)


def test_events_that_the_database_has_no_longer_give_a_gap() -> None:
    async def scenario(city: City) -> None:
        city.commit(6)
        kept = city.events[4:]
        city.events[4:] = [replace(e, seq=e.seq + 3) for e in kept]  # 5, 6, 7 are gone
        screen = await Screen(city).subscribe(alerts={}, resume={"epoch": "e1", "seq": 2})
        await settle()
        assert [frame["type"] for frame in screen.frames] == ["gap", "snapshot"]

    run(scenario)


def test_the_filter_looks_at_the_level_before_and_after() -> None:
    async def scenario(city: City) -> None:
        screen = await Screen(city).subscribe(alerts={"min_level": "orange"})
        city.commit(level=2)
        city.commit(level=3, before=2)
        city.commit(level=2, before=3)
        city.commit(level=0, before=4, transition="cleared")
        await settle()
        assert screen.seqs == [2, 3, 4]
        assert screen.of("alert")[2]["event"]["level"] == "red"

    run(scenario)


def test_boxes_and_domains_filter_events_and_snapshot() -> None:
    async def scenario(city: City) -> None:
        city.commit()
        inside = await Screen(city).subscribe(alerts={"bbox": [113, 22, 115, 23], "domains": ["drainage"]})
        outside = await Screen(city).subscribe(alerts={"bbox": [0, 0, 1, 1]})
        gas = await Screen(city).subscribe(alerts={"domains": ["gas"]})
        city.commit()
        city.commit(lon=None)
        city.commit(domain="gas")
        await settle()
        assert inside.seqs == [2]
        assert len(inside.frames[0]["alerts"]) == 1
        assert outside.seqs == []
        assert outside.frames[0]["alerts"] == []
        assert gas.seqs == [4]

    run(scenario)


def test_without_alerts_a_client_still_learns_epoch_and_seq() -> None:
    async def scenario(city: City) -> None:
        city.commit(2)
        screen = await Screen(city).subscribe()
        city.commit()
        await settle()
        assert screen.frames == [{"type": "snapshot", "epoch": "e1", "seq": 2, "alerts": []}]

    run(scenario)


def test_a_client_that_takes_nothing_is_closed_and_the_others_are_not() -> None:
    async def scenario(city: City) -> None:
        slow = await Screen(city, is_slow=True).subscribe(alerts={})
        fast = await Screen(city).subscribe(alerts={})
        for _ in range(30):
            city.commit()
            await settle(2)
        assert slow.client.close_code == 4008
        assert city.live.stats()["ws_closed_slow"] == 1
        assert len(city.live) == 1
        assert fast.seqs == list(range(1, 31))

    run(scenario, ws_queue=20)


def test_a_storm_larger_than_the_queue_reaches_those_who_keep_up() -> None:
    async def scenario(city: City) -> None:
        screen = await Screen(city).subscribe(alerts={})
        city.commit(5000)
        while len(screen.seqs) < 5000:
            await asyncio.sleep(0)
        assert screen.seqs == list(range(1, 5001))

    run(scenario, ws_queue=10)


def test_frames_handed_over_at_once_and_those_of_the_queue_keep_their_order() -> None:
    async def scenario(city: City) -> None:
        screen = Screen(city)
        has_room = itertools.cycle([True, True, False])

        def take_now(wire: bytes) -> bool:
            if not next(has_room):
                return False
            while wire:  # frames of a server, 126 to 65,535 bytes
                size = int.from_bytes(wire[2:4], "big")
                assert wire[:2] == b"\x81\x7e"
                screen.frames.append(orjson.loads(wire[4 : 4 + size]))
                wire = wire[4 + size :]
            return True

        screen.client.take_now = take_now
        await screen.subscribe(alerts={})
        for number, pauses in [(1, 0), (3, 5), (2, 0), (1, 1), (4, 0), (1, 5)] * 5:
            city.commit(number)
            await settle(pauses)
        await settle()
        assert screen.seqs == list(range(1, len(city.events) + 1))

    run(scenario)


def test_a_backlog_over_its_bound_closes_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "BACKLOG_EVENTS", 1000)

    async def scenario(city: City) -> None:
        screen = await Screen(city).subscribe(alerts={})
        city.commit(2000)
        await settle()
        assert screen.client.close_code == 4008

    run(scenario)


def test_readings_start_with_the_latest_values_and_go_on() -> None:
    async def scenario(city: City) -> None:
        city.read([0, 1], T0)
        screen = await Screen(city).subscribe(readings={"sensors": ["d1/p", "d2/p"]})
        await settle()
        assert screen.of("readings")[0]["items"] == [
            {"sensor": "d1/p", "observed_at": iso(T0), "value": 1.0, "quality": "good"}
        ]
        city.read([0, 2], T0 + 1000, float("nan"))
        await settle()
        assert screen.of("readings")[1]["items"] == [
            {"sensor": "d2/p", "observed_at": iso(T0 + 1000), "value": None, "quality": "good"}
        ]

    run(scenario)


def test_a_late_reading_is_not_told_as_the_latest() -> None:
    async def scenario(city: City) -> None:
        city.read([0], T0)
        screen = await Screen(city).subscribe(readings={"bbox": [113, 22, 115, 23]})
        city.read([0], T0 - 1000)
        await asyncio.sleep(0.1)
        assert [item["observed_at"] for frame in screen.of("readings") for item in frame["items"]] == [iso(T0)]

    run(scenario)


def test_a_slow_client_gets_the_latest_of_each_sensor_only() -> None:
    async def scenario(city: City) -> None:
        slow = await Screen(city, is_slow=True).subscribe(readings={"sensors": ["d0/p", "d1/p"]})
        slow.drain()
        for n in range(10):
            city.read([0, 1] if n < 5 else [0], T0 + n)
            await asyncio.sleep(0.06)
        frames = [frame["items"] for frame in slow.drain() if frame["type"] == "readings"]
        assert len(frames) == 2  # the first, and all since as one
        assert {item["sensor"]: item["observed_at"] for item in frames[1]} == {
            "d0/p": iso(T0 + 9),
            "d1/p": iso(T0 + 4),
        }

    run(scenario)


def test_nobody_subscribed_means_no_work() -> None:
    async def scenario(city: City) -> None:
        await Screen(city).subscribe(alerts={})
        city.read([0], T0)
        await settle()
        assert city.live._pending == []

    run(scenario)


def test_a_second_subscribe_replaces_the_filter() -> None:
    async def scenario(city: City) -> None:
        screen = await Screen(city).subscribe(alerts={}, readings={"sensors": ["d0/p"]})
        await screen.subscribe(alerts={"domains": ["gas"]})
        city.commit()
        city.commit(domain="gas")
        city.read([0], T0)
        await asyncio.sleep(0.1)
        assert screen.seqs == [2]
        assert screen.of("readings") == []
        assert len(city.live) == 1

    run(scenario)


def test_pings_tell_no_more_than_was_sent_and_close_who_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "PING_S", 0.05)

    async def scenario(city: City) -> None:
        fast = await Screen(city).subscribe(alerts={})
        slow = await Screen(city, is_slow=True).subscribe(alerts={})
        city.commit(2)
        await asyncio.sleep(0.3)
        assert fast.of("ping")[-1]["seq"] == 2
        assert fast.client.close_code is None
        assert slow.client.close_code == 4008

    run(scenario)


def test_events_published_from_another_thread_arrive_in_order() -> None:
    async def scenario(city: City) -> None:
        thread = threading.Thread(target=lambda: [city.commit() for _ in range(2000)])
        thread.start()
        screens = []
        for _ in range(20):
            screens.append(await Screen(city).subscribe(alerts={}))
            await asyncio.sleep(0.002)
        await asyncio.to_thread(thread.join)
        await settle(100)
        for screen in screens:
            first = screen.frames[0]
            assert len(first["alerts"]) == first["seq"]
            assert screen.seqs == list(range(first["seq"] + 1, 2001))

    run(scenario, ws_queue=100_000)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"type": "hello"}',
        b'{"type": "subscribe", "alerts": []}',
        b'{"type": "subscribe", "alerts": {"min_level": "purple"}}',
        b'{"type": "subscribe", "alerts": {"min_level": 3}}',
        b'{"type": "subscribe", "alerts": {"domains": "gas"}}',
        b'{"type": "subscribe", "alerts": {"bbox": [1, 2, 3]}}',
        b'{"type": "subscribe", "alerts": {"bbox": [3, 2, 1, 4]}}',
        b'{"type": "subscribe", "alerts": {"bbox": [1, 2, 3, "4"]}}',
        b'{"type": "subscribe", "alerts": {"bbox": [1, 2, 3, 1e999]}}',
        b'{"type": "subscribe", "readings": {}}',
        b'{"type": "subscribe", "readings": {"sensors": ["no/such"]}}',
        b'{"type": "subscribe", "readings": {"sensors": [1]}}',
        b'{"type": "subscribe", "readings": {"sensors": [], "bbox": [1, 2, 3, 4]}}',
        b'{"type": "subscribe", "resume": {"epoch": "e", "seq": -1}}',
        b'{"type": "subscribe", "resume": {"epoch": "e", "seq": true}}',
        b'{"type": "subscribe", "resume": {"seq": 1}}',
        b'{"type": "subscribe", "token": 5}',
        b'{"type": "subscribe", "x": ' + b"[" * 20000 + b"]" * 20000 + b"}",
        b'{"type": "subscribe", "x": "' + b"x" * 70000 + b'"}',
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(frame: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        parse_subscription(frame, City().catalog)
    assert " / " in str(refused.value)


def test_times_of_a_column_are_written_as_single_ones() -> None:
    column = np.array([T0, T0 + 1000, T0 + 1, T0 + 999_999, -1], np.int64)
    assert isos(column) == [iso(at) for at in column.tolist()]
    assert isos(column[:0]) == []
