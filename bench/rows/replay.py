"""Replays: how fast, how quickly anywhere, and what they take from the live stream."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
import urllib.request
from typing import Any, Final

import numpy as np

from bench.city import City
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, until
from twin.model import DAY, MINUTE, Readings, iso
from twin.store.backfill import import_readings

SENSORS: Final = 1_000
STEPS: Final = 1_440  # a day, a reading a minute
SEEKS: Final = 20
AT_ONCE: Final = 3
LIVE_SENSORS: Final = 10_000
LIVE_MESSAGES: Final = 200_000
RATE_GOAL: Final = 150_000
SEEK_GOAL: Final = 1.0
BESIDE_GOAL: Final = 0.9


def alone(bench: Bench) -> list[Figure]:
    """A storm of a day on 1,000 sensors: played as fast as possible, then from moment to moment."""
    city = City(SENSORS)
    rates, first_seeks, seeks, told = [], [], [], 0
    with bench.service(city) as running:
        start = _a_stormy_day(running, city, bench.scaled(STEPS))
        end = start + bench.scaled(STEPS) * MINUTE
        for number in range(bench.runs):
            replay = _Replay(running, start, end)
            begun = time.perf_counter()
            replay.control(action="play")
            until(replay.has_ended, "the replay to end", pause_s=0.01)
            rates.append(replay.status()["readings"] / (time.perf_counter() - begun))
            told += replay.status()["readings"]
            replay.stop()
            replay = _Replay(running, start, end)
            first_seeks.append(replay.seek(end - MINUTE))
            chance = random.Random(number)
            seeks.append(max(replay.seek(start + int(chance.random() * (end - start))) for _ in range(SEEKS)))
            replay.stop()
    expected = city.size * bench.scaled(STEPS) * bench.runs
    return [
        Figure("replay", "readings played as fast as possible, 1,000 sensors, 24 h", "readings/s", rates, RATE_GOAL,
               verified=told, expected=expected),
        Figure("replay", "first seek, to the end of the day", "s", first_seeks, SEEK_GOAL, "at most"),
        Figure("replay", f"slowest of {SEEKS} seeks anywhere after it", "s", seeks, SEEK_GOAL, "at most"),
    ]  # fmt: skip


def beside_live(bench: Bench) -> list[Figure]:
    """The rate of single messages with three replays playing as fast as possible, over that without, in turn."""
    city = City(LIVE_SENSORS)
    count = bench.scaled(LIVE_MESSAGES)
    ratios, without, beside, verified, played = [], [], [], 0, 0
    with bench.service(city) as running:
        start = _a_stormy_day(running, City(SENSORS), STEPS)
        warm_up = city.singles(bench.file("warm-up.npz"), 0, city.size)
        running.take(bench, warm_up)
        position = city.size
        for _ in range(bench.runs):
            rates = []
            for has_replays in (False, True):
                stream = city.singles(bench.file("beside.npz"), position, count)
                position += count
                playing = [_Endless(running, start, start + DAY) for _ in range(AT_ONCE if has_replays else 0)]
                run = running.take(bench, stream)
                played += sum(endless.end() for endless in playing)
                rates.append(count / run.seconds)
                verified += run.verified
            without.append(rates[0])
            beside.append(rates[1])
            ratios.append(rates[1] / rates[0])
    return [
        Figure(
            "replay-beside", f"single messages a second beside {AT_ONCE} replays as fast as possible", "messages/s",
            beside, ratio=statistics.median(ratios), ratio_to="the same without them", verified=verified,
            expected=2 * count * bench.runs,
            details={"without replays, messages/s": statistics.median(without),
                     "readings played meanwhile, all runs": played},
        ),
        Figure("replay-beside", "that ratio", "", ratios, BESIDE_GOAL),
    ]  # fmt: skip


def _a_stormy_day(running: Running, city: City, steps: int) -> int:
    """Import a day of readings, ten days ago: half of the sensors swing far out of their ordinary values once."""
    start = (int(time.time()) // 86_400 - 10) * DAY
    minute = np.arange(steps)
    peak = np.random.default_rng(1).uniform(0.2, 0.8, city.size) * steps
    hump = np.exp(-(((minute[None, :] - peak[:, None]) / (0.04 * steps)) ** 2))
    swing = np.where(np.arange(city.size) % 2 == 0, 20, 1) * city.swing
    value = city.base[:, None] + swing[:, None] * hump
    at = np.broadcast_to(start + minute * MINUTE, value.shape).reshape(-1)
    names = {"{}/{}".format(*city.name(n)): n for n in range(city.size)}
    found = running.connection.execute("select device || '/' || property, id from sensors").fetchall()
    ids = np.zeros(city.size, np.int32)
    for name, id_ in found:
        if name in names:
            ids[names[name]] = id_
    readings = Readings(np.repeat(ids, steps), at, at, value.reshape(-1), np.zeros(value.size, np.uint8))
    if import_readings(running.connection, "a stormy day", readings)[0] != value.size:
        raise RowFailed("the stormy day is not stored")
    running.connection.execute("analyze readings")
    return start


class _Replay:
    """A replay of the running service, paused at its start."""

    def __init__(self, running: Running, start: int, end: int) -> None:
        self.api = f"http://{running.service.http}/api/v1/replays"
        body = {"from": iso(start), "to": iso(end), "speed": 0, "paused": True}
        self.url = f"{self.api}/{_asked(self.api, body)['id']}"
        until(lambda: self.status()["state"] == "paused", "the replay to stand at its start", pause_s=0.01)

    def status(self) -> dict[str, Any]:
        return _asked(self.url)

    def has_ended(self) -> bool:
        state = self.status()["state"]
        if state in ("failed", "stopped"):
            raise RowFailed(f"the replay has {state}: {self.status()['error']}")
        return bool(state == "ended")

    def control(self, **body: Any) -> dict[str, Any]:
        return _asked(f"{self.url}/control", body)

    def seek(self, at: int) -> float:
        begun = time.perf_counter()
        self.control(action="seek", time=iso(at))
        return time.perf_counter() - begun

    def stop(self) -> None:
        self.control(action="stop")


class _Endless(threading.Thread):
    """A replay that begins again whenever it has ended."""

    def __init__(self, running: Running, start: int, end: int) -> None:
        super().__init__(daemon=True)
        self.replay = _Replay(running, start, end)
        self.begin = iso(start)
        self.played = 0
        self.is_wanted = True
        self.replay.control(action="play")
        self.start()

    def run(self) -> None:
        while self.is_wanted:
            if self.replay.has_ended():
                self.played += self.replay.status()["readings"]
                self.replay.control(action="seek", time=self.begin)
            time.sleep(0.2)

    def end(self) -> int:
        self.is_wanted = False
        self.join(30)
        self.played += self.replay.status()["readings"]
        self.replay.stop()
        return self.played


def _asked(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
