"""Judging alone: the engine with the whole default pack, without broker and database, over every kind it looks at."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from alerts.engine import Engine
from alerts.packs import default_text
from alerts.rules import parse_rules
from bench.city import BEGIN_MS, City
from bench.report import Figure
from bench.services import Bench
from twin.catalog import Catalog
from twin.model import Ints, Readings, Sensor, Transition
from twin.units import Kind, load_kinds

SENSORS: Final = 100_000
FEW: Final = 1_000
BATCH: Final = 10_000
BATCHES: Final = 300
WARM_UP: Final = 15
SECOND: Final = 1_000_000
GOAL: Final = 3_000_000
GROWTH_GOAL: Final = 1.5


@dataclass(slots=True)
class Judged:
    """What one pass over a city gave; rates by the median batch, as other processes interrupt some."""

    rate: float
    rate_with_sorting: float
    raised: int
    expected: int


def alone(bench: Bench) -> list[Figure]:
    kinds = load_kinds(None)
    many, few = [], []
    for _ in range(bench.runs):
        many.append(_pass(kinds, SENSORS, bench.scaled(BATCHES)))
        few.append(_pass(kinds, FEW, bench.scaled(BATCHES)))
    raised, expected = sum(j.raised for j in many + few), sum(j.expected for j in many + few)
    fault = "" if raised == expected else f"{raised} of {expected} opened covers raised an alert"
    growth = [f.rate / m.rate for f, m in zip(few, many, strict=True)]
    return [
        Figure(
            "judging", "judging alone, 100,000 sensors", "readings/s", [j.rate for j in many], GOAL, is_later=True,
            fault=fault,
            details={
                "with sorting by sensor and time, readings/s": float(np.median([j.rate_with_sorting for j in many])),
                "opened covers, each with its alert (there is no database here)": f"{raised} of {expected}",
            },
        ),
        Figure(
            "judging", "cost a reading, 100,000 sensors over 1,000", "times", growth, GROWTH_GOAL, "at most",
            is_later=True, fault=fault,
            details={"with 1,000 sensors, readings/s": float(np.median([j.rate for j in few]))},
        ),
    ]  # fmt: skip


def _pass(kinds: dict[str, Kind], size: int, batches: int) -> Judged:
    """Batches of 10,000 readings of random sensors through a new engine, the first ones not timed; a few covers open
    on the way and must raise one alert each."""
    rng = np.random.default_rng(1)
    city = City(size)
    catalog = catalog_of(kinds, city)
    rules = parse_rules(default_text(), kinds)
    engine = Engine(rules, catalog)
    opening = np.array(city.covers[::50], np.int32)
    is_open = np.zeros(size, bool)
    newest: Ints = np.zeros(size, np.int64)
    told: list[Transition] = []
    seconds, sorting = [], []
    met: set[int] = set()
    for number in range(WARM_UP + batches):
        if number == WARM_UP + batches // 2:
            is_open[opening] = True
        readings = _batch(rng, city, number, newest, is_open)
        begun = time.perf_counter()
        ordered = readings.in_order()
        sorted_at = time.perf_counter()
        transitions, update = engine.observe(ordered)
        engine.apply(update)
        ended = time.perf_counter()
        told += transitions
        met |= set(np.unique(readings.sensor[is_open[readings.sensor]]).tolist())
        if number >= WARM_UP:
            seconds.append(ended - sorted_at)
            sorting.append(ended - begun)
    open_rule = rules.index("manhole-open")
    raised = sum(t.rule == open_rule and t.before == 0 and t.after > 0 for t in told)
    return Judged(BATCH / statistics.median(seconds), BATCH / statistics.median(sorting), raised, len(met))


def _batch(
    rng: np.random.Generator, city: City, number: int, newest: Ints, is_open: np.ndarray
) -> Readings:  # fmt: skip
    """10,000 readings of random sensors, newer than all before, in order of arrival."""
    sensor = rng.integers(0, city.size, BATCH).astype(np.int32)
    at = (
        BEGIN_MS * 1000 + number * 60 * SECOND + np.sort(rng.choice(60 * SECOND, BATCH, replace=False)).astype(np.int64)
    )
    value = city.base[sensor] + city.swing[sensor] * rng.random(BATCH)
    value[is_open[sensor]] = 1.0
    newest[sensor] = at
    return Readings(sensor, at, at, value, np.zeros(BATCH, np.uint8))


def catalog_of(kinds: dict[str, Kind], city: City) -> Catalog:
    catalog = Catalog(kinds)
    rows = []
    for n in range(city.size):
        device, prop = city.name(n)
        room = float(10 * city.swing[n] + 1)
        low, high = float(city.base[n]) - room, float(city.base[n]) + room
        kind = city.kinds[n]
        tags = (city.tags[n],) if city.tags[n] else ()
        statistic = "rms" if kind == "bridge.acceleration" else None  # what is judged of waveforms
        rows.append((n, Sensor(device, prop, kind, kinds[kind].unit, interval_s=60.0, min=low, max=high, tags=tags,
                               statistic=statistic)))  # fmt: skip
    catalog.put(rows)
    return catalog
