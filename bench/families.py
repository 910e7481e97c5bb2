"""What sums, baselines, nights and drifts cost and find.

    python -m bench.families [--gauge ../shared/data/sewer/rain-gauge.csv]

Speed: the family alone, 100,000 sensors in batches of 10,000 readings, best batch and CPU. Finding: 200 districts
whose inflow has a day's curve, weekends and noise that lasts, some with a leak from one day on: by the size of the
leak the share found within 30 days and the median of days until then, and false alerts where there is none.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.signal import lfilter

from alerts.engine import Engine
from alerts.judge import judge
from alerts.rules import parse_rules
from twin.catalog import Catalog
from twin.model import DAY, HOUR, MINUTE, Floats, Ints, Readings, Sensor, iso, parse_time
from twin.units import load_kinds

RULES: Final = {
    "accumulate": 'window = { blue = "12h", yellow = "6h", orange = "3h", red = "3h" }\n'
    "levels = { blue = 50, yellow = 50, orange = 50, red = 100 }\n",
    "baseline": "levels = { blue = 5 }\nhold = '30min'\n",
    "night": 'levels = { blue = 20, yellow = 30 }\nhold = "2d"\n',
    "cusum": "levels = { blue = 5 }\n",
}
MONDAY: Final = parse_time("2024-03-03T16:00:00Z")
SENSORS: Final = 100_000
BATCH: Final = 10_000
BATCHES: Final = 150
DISTRICTS: Final = 200
STEP: Final = 15 * MINUTE
DAYS: Final = 120
LEAK_FROM: Final = 60
LEAKS: Final = (0.0, 0.05, 0.10, 0.20, 0.40)  # of the mean inflow


def rule(detector: str, kind: str = "water.flow") -> str:
    return f'[[rule]]\nid = "{detector}"\nkind = "{kind}"\ndetector = "{detector}"\n{RULES[detector]}'


def city(sensors: int, kind: str = "water.flow") -> Catalog:
    kinds = load_kinds(None)
    catalog = Catalog(kinds)
    catalog.put([(n, Sensor(f"d{n}", "v", kind, kinds[kind].unit)) for n in range(sensors)])
    return catalog


def speed(detector: str) -> tuple[float, float, int]:
    """Readings per second of the median batch, CPU µs a reading, and bytes of state a watch. Batches are a minute
    apart, of random sensors: each has a reading in about ten minutes."""
    catalog = city(SENSORS)
    engine = Engine(parse_rules(rule(detector), catalog.kinds), catalog)
    draw = np.random.default_rng(1)
    taken, cpu = [], []
    for number in range(BATCHES):
        sensor = np.sort(draw.choice(SENSORS, BATCH, replace=False)).astype(np.int32)
        at = np.full(BATCH, MONDAY + HOUR * 3 // 2 + number * MINUTE)
        value = 0.2 + 0.1 * draw.random(BATCH)
        readings = Readings(sensor, at, at, value, np.zeros(BATCH, np.uint8))
        begun, used = time.perf_counter(), time.process_time()
        _, update = engine.observe(readings)
        engine.apply(update)
        taken.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    if engine.failures:
        raise RuntimeError("judging failed; see the log")
    columns = engine.families[detector].columns.values()
    state = sum(column.nbytes if column.base is None else column.itemsize * column.size for column in columns)
    rate = BATCH / float(np.median(taken[10:]))
    return rate, 1e6 * float(np.median(cpu[10:])) / BATCH, state // SENSORS


def inflow(leak: float, draw: np.random.Generator) -> tuple[Ints, Floats]:
    """Inflow of all districts, m³/h by 15 min: mean 20 to 200, little at night, less on days off by a tenth, noise of
    5 % of which half lasts for hours, days that differ by 3 %; a leak of so much of the mean grows over ten days."""
    at = MONDAY + np.arange(DAYS * DAY // STEP) * STEP
    part, day = (at - MONDAY) % DAY / DAY, (at - MONDAY) // DAY
    curve = 1 - 0.55 * np.cos(2 * np.pi * (part - 0.1)) - 0.15 * np.cos(4 * np.pi * part)
    usual = curve * np.where(day % 7 >= 5, 0.9, 1.0)
    white = draw.normal(0, 1, (DISTRICTS, len(at)))
    lasting = lfilter([np.sqrt(1 - 0.9**2)], [1, -0.9], draw.normal(0, 1, white.shape), axis=1)
    by_day = draw.normal(0, 0.03, (DISTRICTS, DAYS))[:, day]
    noise = 1 + by_day + 0.035 * white + 0.035 * lasting
    grown = np.clip(((at - MONDAY) / DAY - LEAK_FROM) / 10, 0, 1)
    mean = draw.uniform(20, 200, (DISTRICTS, 1))
    return at, mean * (usual * noise + leak * grown)


def found(leak: float) -> dict[str, tuple[float, float, float]]:
    """By detector: share of districts told within 30 days of the leak's begin, median days until then, and false alerts
    in 1,000 sensor-days from day 30 to the leak (to the end, where there is none)."""
    at, flow = inflow(leak, np.random.default_rng(3))
    sensor = np.repeat(np.arange(DISTRICTS, dtype=np.int32), len(at))
    times = np.tile(at, DISTRICTS)
    readings = Readings(sensor, times, times, flow.ravel(), np.zeros(len(sensor), np.uint8))
    catalog, result = city(DISTRICTS), {}
    for detector in ("baseline", "night", "cusum"):
        raised = [
            t for t in judge(parse_rules(rule(detector), catalog.kinds), catalog, readings).transitions if not t.before
        ]
        days = [(t.sensor, (t.observed_at - MONDAY) / DAY) for t in raised]
        until = LEAK_FROM if leak else DAYS
        false = sum(30 <= day < until for _, day in days) / (DISTRICTS * (until - 30)) * 1000
        first: dict[int, float] = {}
        for district, day in days:
            if LEAK_FROM <= day < LEAK_FROM + 30:
                first.setdefault(district, day - LEAK_FROM)
        delay = float(np.median(list(first.values()))) if first else float("nan")
        result[detector] = (len(first) / DISTRICTS, delay, false)
    return result


def storms(path: Path) -> list[str]:
    """The alerts of a recorded gauge (local time taken as UTC; inches) at half of the pack's limits."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0].isdigit()]
    zero = datetime.datetime(1970, 1, 1)
    begin = [datetime.datetime(*(int(row[c]) for c in (2, 0, 1, 3, 4))) - zero for row in rows]
    at = np.array([int(one.total_seconds()) * 1_000_000 for one in begin], np.int64)
    rain = np.array([float(row[5]) * 25.4 for row in rows])
    catalog = city(1, "drainage.rainfall")
    text = rule("accumulate", "drainage.rainfall").replace("50", "25").replace("100", "50")
    none = np.zeros(len(at), np.int32)
    judged = judge(parse_rules(text, catalog.kinds), catalog, Readings(none, at, at, rain, none.astype(np.uint8)))
    return [f"{iso(t.observed_at)}  {t.before} -> {t.after}  {t.value:.1f} mm" for t in judged.transitions]


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__)
    options.add_argument("--gauge", type=Path)
    given = options.parse_args(arguments)
    print("detector      readings/s   CPU µs/reading   state B/watch")
    for detector in RULES:
        rate, cpu, state = speed(detector)
        print(f"{detector:12} {rate:11,.0f} {cpu:16.3f} {state:15,}", flush=True)
    print("\nleak   detector   found in 30 days   after days   false/1,000 sensor-days before")
    for leak in LEAKS:
        for detector, (share, delay, false) in found(leak).items():
            print(f"{leak:4.0%}   {detector:10} {share:16.0%} {delay:12.1f} {false:12.2f}", flush=True)
    if given.gauge is not None:
        print("\nstorms of the recorded gauge, at half of the pack's limits")
        print("\n".join(storms(given.gauge)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
