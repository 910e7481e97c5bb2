"""How long a reading is under way at steady rates: to its commit, and to an alert frame at a WebSocket client."""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import Any, Final

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bench.city import City, Stream
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, child, until

RATES: Final = (5_000, 20_000)
SECONDS: Final = 8
SENSORS: Final = 10_000
P50_GOAL: Final = 20
P99_GOAL: Final = 100


class Client(threading.Thread):
    """A WebSocket client that writes down when each alert event came."""

    def __init__(self, http: str) -> None:
        super().__init__(daemon=True)
        self.socket = connect(f"ws://{http}/ws/v1/live", max_size=None, compression=None)
        self.socket.send(json.dumps({"type": "subscribe", "alerts": {}}))
        json.loads(self.socket.recv(30))  # the snapshot
        self.came: dict[str, float] = {}
        self.start()

    def run(self) -> None:
        try:
            while True:
                frame: dict[str, Any] = json.loads(self.socket.recv())
                if frame["type"] == "alert" and frame["event"]["transition"] == "raised":
                    self.came[frame["event"]["sensor"]] = time.time()
        except ConnectionClosed:
            return

    def close(self) -> None:
        self.socket.close()
        self.join(10)


def steady(bench: Bench) -> list[Figure]:
    return [figure for rate in RATES for figure in _at(bench, rate)]


def _at(bench: Bench, rate: int) -> list[Figure]:
    city = City(SENSORS)
    count = bench.scaled(rate * SECONDS, SENSORS)
    commits, frames, bare, verified, raised, expected = [], [], [], 0, 0, 0
    with bench.service(city) as running:
        warm_up = city.singles(bench.file("warm-up.npz"), 0, city.size)
        running.take(bench, warm_up)
        position = city.size
        for number in range(bench.runs):
            opening = _openings(city, position, count, number, bench.runs)
            city.open_covers(opening)
            stream = city.singles(bench.file("steady.npz"), position, count)
            until_commit, until_frame, rows = _run(bench, running, city, stream, position, opening, rate)
            bare.append(_bare(bench, running, city.singles(bench.file("bare.npz"), 0, count, "bar"), rate))
            position += count
            commits.append(until_commit)
            frames.append(until_frame)
            verified += rows
            raised += len(until_frame)
            expected += len(opening)
    fault = "" if raised == expected else f"{raised} of {expected} alert frames came"
    figures = []
    for what, parts in (("publish to committed", commits), ("publish to alert frame at a client", frames)):
        for percent, goal in ((50, P50_GOAL), (99, P99_GOAL)):
            took = [float(np.percentile(part, percent)) * 1000 if len(part) else float("nan") for part in parts]
            limits = [float(np.percentile(part, percent)) * 1000 for part in bare]
            figures.append(
                Figure(
                    "latency", f"{what}, p{percent}, {rate:,} messages/s", "ms",
                    took, goal, "at most", is_later=True, fault=fault if parts is frames else "",
                    ratio=statistics.median(own / limit for own, limit in zip(took, limits, strict=True)),
                    ratio_to="what messages take to a bare acknowledging reader",
                    verified=verified, expected=count * bench.runs,
                    details={"bare reader, ms": statistics.median(limits)}
                    | {"largest, ms": max(float(part.max(initial=0)) * 1000 for part in parts)}
                    | ({"alert frames": f"{raised} of {expected}"} if parts is frames else {}),
                )
            )  # fmt: skip
    return figures


def _bare(bench: Bench, running: Running, stream: Stream, rate: int) -> np.ndarray:
    """Seconds from handing over a message until a reader has it that only acknowledges, at the same rate."""
    port, times_file, came_file = running.service.mqtt_port, bench.file("times.npy"), bench.file("came.npy")
    with (
        child("bench.reader", str(port), "bar/#", str(stream.messages), str(came_file)) as reader,
        bench.publisher(port, stream, "--rate", str(rate), "--times", str(times_file)) as publisher,
    ):
        publisher.go()
        publisher.result()
        reader.result()
    under_way: np.ndarray = np.load(came_file) - np.load(times_file)
    return under_way


def _openings(city: City, position: int, count: int, number: int, runs: int) -> dict[int, int]:
    """Which covers open in this run, each at a reading of its own, spread over the whole of it."""
    covers = city.covers[number::runs]
    steps = count // city.size
    return {n: position + (k * steps // len(covers)) * city.size + n for k, n in enumerate(covers)}


def _run(
    bench: Bench, running: Running, city: City, stream: Stream, position: int, opening: dict[int, int], rate: int
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """Seconds from handing over to commit of every message, and to the frame of every alert; rows found."""
    before = running.standing()
    client = Client(running.service.http)
    times_file = bench.file("times.npy")
    try:
        with bench.publisher(
            running.service.mqtt_port, stream, "--rate", str(rate), "--times", str(times_file)
        ) as publisher:
            publisher.go()
            result = publisher.result()
        until(lambda: running.standing().stored - before.stored >= stream.readings, "the readings to be committed")
        until(lambda: len(client.came) >= len(opening), "the alert frames", 10) if opening else None
    except RowFailed:
        if len(client.came) >= len(opening):
            raise
    finally:
        client.close()
    if result["ended"] - result["begun"] > stream.messages / rate * 1.2:
        raise RowFailed(f"the publisher could not keep {rate} messages/s")
    handed = np.load(times_file)
    committed = np.full(stream.readings, np.nan)
    rows = 0
    batches = running.connection.execute(
        "select batch, max(extract(epoch from pg_xact_commit_timestamp(x))::float8) from"
        " (select batch, xmin as x from readings where batch > %s group by batch, xmin) g group by batch",
        (before.batch,),
    ).fetchall()
    moment = dict(batches)
    names = {"{}/{}".format(*city.name(n)): n for n in range(city.size)}
    found = running.connection.execute(
        "select s.device || '/' || s.property, (extract(epoch from r.observed_at) * 1000)::int8, r.batch"
        " from readings r join sensors s on s.id = r.sensor_id where r.batch > %s",
        (before.batch,),
    ).fetchall()
    for name, at_ms, batch in found:
        n = names[name]
        i = (at_ms - city.at_ms(n)) // 60_000 * city.size + n
        committed[i - position] = moment[batch]
        rows += 1
    until_commit = committed - handed
    came = [client.came[name] - handed[i - position] for n, i in opening.items()
            if (name := "{}/{}".format(*city.name(n))) in client.came]  # fmt: skip
    return until_commit[~np.isnan(until_commit)], np.array(came), rows
