"""Ten thousand alerts raised in one second, and cleared in another: when the last was pushed, and none lost or doubled.

Every cover of a city opens in the same second, each by a message of its own; some minutes of event time later all are
closed again. A WebSocket client watches."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from bench.city import COVER, City
from bench.report import Figure
from bench.services import Bench, Running, child, until

ALERTS: Final = 10_000
SECONDS: Final = 1.0
GOAL: Final = 2.0  # s
STEPS: Final = 12  # minutes of event time that a run takes: open, closed for five minutes, and room


def alerts(bench: Bench) -> list[Figure]:
    city = City(bench.scaled(ALERTS), only=COVER)
    told: dict[str, list[dict[str, Any]]] = {"raised": [], "cleared": []}
    with bench.service(city) as running:
        _publish(bench, running, city, 0)
        for number in range(bench.runs):
            first = 1 + number * STEPS
            city.open_covers({n: first * city.size + n for n in range(city.size)})
            city.close_covers({n: (first + 1) * city.size + n for n in range(city.size)})
            told["raised"].append(_burst(bench, running, city, first, "raised"))
            _publish(bench, running, city, first + 1)
            told["cleared"].append(_burst(bench, running, city, first + 7, "cleared"))
    figures = []
    for word, runs in told.items():
        faults = [run["fault"] for run in runs if run["fault"]]
        figures.append(
            Figure(
                "burst", f"{city.size:,} alerts {word} in {SECONDS:g} s: last publish to last frame", "s",
                [run["after"] for run in runs], GOAL, "at most", fault=faults[0] if faults else "",
                verified=sum(run["stored"] for run in runs), expected=bench.runs * city.size,
                details={
                    "publish to frame, p50 and p99, s": "{:.2f} and {:.2f}".format(
                        *np.median([np.percentile(run["took"], (50, 99)) for run in runs], axis=0)
                    ),
                    "from the first publish to the last, s": float(np.median([run["published"] for run in runs])),
                    "frames that came": f"{sum(run['frames'] for run in runs):,} of {bench.runs * city.size:,}",
                    "service CPU, s": float(np.median([run["service"] for run in runs])),
                    "PostgreSQL CPU, s": float(np.median([run["PostgreSQL"] for run in runs])),
                },
            )
        )  # fmt: skip
    return figures


def _publish(bench: Bench, running: Running, city: City, step: int) -> None:
    """A reading of every cover, as fast as it goes."""
    running.take(bench, city.singles(bench.file("calm.npz"), step * city.size, city.size))


def _burst(bench: Bench, running: Running, city: City, step: int, word: str) -> dict[str, Any]:
    """A reading of every cover within a second; each must tell of one event."""
    stream = city.singles(bench.file("burst.npz"), step * city.size, city.size)
    before, last_seq = running.standing(), _seq(running)
    times_file, crowd_file = bench.file("times.npy"), bench.file("crowd.npz")
    rate = str(city.size / SECONDS)
    with child("bench.clients", running.service.http, "1", str(crowd_file)) as client:
        used = running.cpu()
        with bench.publisher(
            running.service.mqtt_port, stream, "--rate", rate, "--window", str(city.size), "--times", str(times_file)
        ) as publisher:
            publisher.go()
            publisher.result()
        until(lambda: running.standing().stored - before.stored >= stream.readings, "the readings to be committed")
        until(lambda: _seq(running) >= last_seq + city.size, "the alert events", pause_s=0.1)
        client.go(str(_seq(running)))
        result = client.result()
        now = running.cpu()
    handed = np.load(times_file)
    with np.load(crowd_file) as came:
        columns = [n for n, told in enumerate(came["events"].tolist()) if told.startswith(f"{word} ")]
        names = [told.partition(" ")[2] for told in came["events"][columns].tolist()]
        times = came["times"][0, columns]
    stored = running.connection.execute(
        "select count(*), count(distinct sensor_id) from alert_events where seq > %s and transition = %s",
        (last_seq, word),
    ).fetchone()
    assert stored is not None
    fault = result["fault"]
    if stored[0] != stored[1]:
        fault = fault or f"{stored[0] - stored[1]:,} events are stored twice"
    if sorted(names) != sorted("{}/{}".format(*city.name(n)) for n in range(city.size)):
        fault = fault or f"{len(names):,} frames on {len(set(names)):,} covers came, of {city.size:,}"
    number = {"{}/{}".format(*city.name(n)): n for n in range(city.size)}
    took = times - handed[[number.get(name, 0) for name in names]]
    return {
        "fault": fault,
        "after": float(times.max(initial=0.0) - handed.max()),
        "took": took if len(took) else np.zeros(1),
        "published": float(handed.max() - handed.min()),
        "frames": len(times),
        "stored": int(stored[0]),
        "service": now["service"] - used["service"],
        "PostgreSQL": now["PostgreSQL"] - used["PostgreSQL"],
    }


def _seq(running: Running) -> int:
    """The number of the last alert event that is committed."""
    row = running.connection.execute("select seq from service").fetchone()
    assert row is not None
    return int(row[0])
