"""Alerts to very many WebSocket clients while messages come in: when each event was at each client, and none lost."""

from __future__ import annotations

import statistics
from typing import Any, Final

import numpy as np

from bench.city import City, Stream
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, child, free_port, until

RATE: Final = 10_000
ALERTS: Final = 20  # a second
SECONDS: Final = 8
BARE_SECONDS: Final = 4
SENSORS: Final = 10_000  # so that a second's messages are a reading of each
GOALS: Final = {1_000: 100, 5_000: 250}


def many(bench: Bench) -> list[Figure]:
    figures = []
    for clients, goal in GOALS.items():
        city = City(SENSORS)
        seconds = bench.scaled(SECONDS)
        told: list[dict[str, Any]] = []
        bare: list[np.ndarray] = []
        with bench.service(city) as running:
            running.take(bench, city.singles(bench.file("warm-up.npz"), 0, city.size))
            for number in range(bench.runs):
                first = number * seconds
                if (first + seconds) * ALERTS > len(city.covers):
                    raise RowFailed(f"{len(city.covers)} covers are not enough for so many runs")
                position = (1 + first) * city.size
                opening = _openings(city, position, first, seconds)
                city.open_covers(opening)
                stream = city.singles(bench.file("many.npz"), position, seconds * city.size)
                told.append(_run(bench, running, city, stream, position, opening, clients))
                bare.append(_bare(bench, clients))
        faults = [run["fault"] for run in told if run["fault"]]
        lost, expected = (sum(run[key] for run in told) for key in ("lost", "expected"))
        fault = faults[0] if faults else f"{lost} of {expected} frames were lost" if lost else ""
        for percent, bound in ((50, None), (99, goal)):
            took = [float(np.percentile(run["took"], percent)) * 1000 for run in told]
            limits = [float(np.percentile(run, percent)) * 1000 for run in bare]
            figures.append(
                Figure(
                    "clients", f"publish to alert frame at {clients:,} clients, p{percent}", "ms",
                    took, bound, "at most", fault=fault,
                    ratio=statistics.median(own / limit for own, limit in zip(took, limits, strict=True)),
                    ratio_to="what a bare sender takes to as many, nothing else running",
                    verified=sum(run["stored"] for run in told), expected=bench.runs * seconds * city.size,
                    details={"bare sender, ms": statistics.median(limits)} | ({} if bound is None else {
                        "largest, ms": max(float(run["took"].max()) * 1000 for run in told),
                        "frames that came": f"{expected - lost:,} of {expected:,}",
                        "service CPU, share of a core": float(np.median([run["service"] for run in told])),
                        "clients' CPU, share of a core": float(np.median([run["crowd"] for run in told])),
                    }),
                )
            )  # fmt: skip
    return figures


def _bare(bench: Bench, clients: int) -> np.ndarray:
    """Seconds from a bare sender's first send of a frame until it was at a client, of all frames and clients."""
    port = free_port()
    times_file, crowd_file = bench.file("cried.npy"), bench.file("heard.npz")
    with (
        child("bench.crier", str(port), str(clients), str(ALERTS), str(BARE_SECONDS), str(times_file)) as crier,
        child("bench.clients", f"127.0.0.1:{port}", str(clients), str(crowd_file)) as crowd,
    ):
        crier.go()
        last = crier.line()["last"]
        crowd.go(str(last))
        crowd.result()
    with np.load(crowd_file) as came:
        under_way: np.ndarray = came["times"] - np.load(times_file)
    if np.isnan(under_way).any():
        raise RowFailed("a bare sender's frames were lost")
    return under_way.ravel()


def _openings(city: City, position: int, first: int, seconds: int) -> dict[int, int]:
    """Which covers open, so many each second and evenly, each at a reading of its own; by the reading's number."""
    apart = len(city.covers) // ALERTS
    opening = {}
    for second in range(seconds):
        for n in city.covers[first + second :: apart][:ALERTS]:
            opening[n] = position + second * city.size + n
    return opening


def _run(
    bench: Bench, running: Running, city: City, stream: Stream, position: int, opening: dict[int, int], clients: int
) -> dict[str, Any]:  # fmt: skip
    before = running.standing()
    times_file, crowd_file = bench.file("times.npy"), bench.file("crowd.npz")
    with child("bench.clients", running.service.http, str(clients), str(crowd_file)) as crowd:
        used = running.cpu()["service"]
        with bench.publisher(
            running.service.mqtt_port, stream, "--rate", str(RATE), "--times", str(times_file)
        ) as publisher:
            publisher.go()
            sent = publisher.result()
        until(lambda: running.standing().stored - before.stored >= stream.readings, "the readings to be committed")
        used = running.cpu()["service"] - used
        crowd.go(str(running.service.stats()["seq"]))
        result = crowd.result()
    took = sent["ended"] - sent["begun"]
    if took > stream.messages / RATE * 1.2:
        raise RowFailed(f"the publisher could not keep {RATE} messages/s")
    handed = np.load(times_file)
    with np.load(crowd_file) as came:
        times, sensors = came["times"], came["sensors"].tolist()
    begun = {"{}/{}".format(*city.name(n)): handed[i - position] for n, i in opening.items()}
    columns = [column for column, sensor in enumerate(sensors) if sensor in begun]
    under_way = times[:, columns] - np.array([begun[sensors[column]] for column in columns])
    lost = int(result["lost"]) + (len(opening) - len(columns)) * clients
    return {
        "took": under_way[~np.isnan(under_way)],
        "expected": len(opening) * clients,
        "lost": lost,
        "fault": result["fault"],
        "stored": running.stored_rows(before.batch)[0],
        "service": used / took,
        "crowd": result["cpu_s"] / took,
    }
