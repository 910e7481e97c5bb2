"""A healthy city, and how often the rules cry wolf in it: the production engine over readings with nothing wrong.

    python -m bench.healthy [--sensors 100000 --days 30 --rules FILE]

Healthy is not quiet. Pressure and flow follow the day and the week, bridges the temperature, sewers the rain (which
stays below the signals of the weather service: under 50 mm in 12 h); roads and underpasses stay under the lowest level.
Values are noisy, drift within the instruments' tolerance and come in their resolution. There are spikes that physics
explains: air in a turbidimeter, exhaust at a gas cell, a lorry over a cover, foam under an ultrasonic head, a water
hammer. Clocks are off, messages are late, lost, repeated and out of order; devices and gateways are out for hours, and
then send what they kept, or have lost it.

What counts as false: every alert but one that says `offline` of something that was. An outage of a device or gateway
is real, and an alert on it true; one that only lost messages, lateness or clocks brought about is false.

Numbers are from the domain notes (kinds of sensor, ranges, resolution and reporting intervals) or, marked E, an
engineer's guess. Readings are made and judged a few hours at a time; what is kept of the past is what late ones need.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from scipy.signal import lfilter

from alerts.lifecycle import JUDGEMENTS
from alerts.packs import default_text
from alerts.rules import RuleSet, parse_rules
from bench import machine
from ingest.codecs import Decoded
from ingest.judgement import Decision, Judgement
from twin.catalog import AssetFacts, Catalog
from twin.model import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Alert,
    AlertEvent,
    Bools,
    Floats,
    Indices,
    Ints,
    Micros,
    Outcome,
    Readings,
    Sensor,
    iso,
    parse_time,
)
from twin.units import load_kinds

BEGIN: Final = parse_time("2026-06-30T16:00:00Z")  # midnight in China; a Wednesday in the rainy season
BLOCK: Final = 3 * HOUR
STEP: Final = 5 * MINUTE  # of weather and demand
BATCH: Final = 50_000  # readings handed to the engine at once
SNAPSHOT: Final = HOUR  # of event time between two snapshots, from which late readings are judged
KEPT: Final = 600  # readings of a disorderly device that are at hand: two days of one every 5 minutes
GOAL: Final = 1.0  # false alerts per 1,000 sensors and day

# By local hour, of the mean: the shape of domestic demand [E].
DEMAND: Final = (
    0.45, 0.40, 0.38, 0.37, 0.40, 0.55, 0.95, 1.35, 1.40, 1.25, 1.15, 1.15,
    1.25, 1.15, 1.05, 1.05, 1.10, 1.25, 1.45, 1.60, 1.55, 1.35, 1.00, 0.65,
)  # fmt: skip
LATER_ON_WEEKENDS: Final = 1.5  # hours [E]
RAINS: Final = 0.2  # a day [E]
MOST_RAIN: Final = 42.0  # mm in one rain at one place: the lowest signal is 50 mm in 12 h
LOST, LOST_BY_GATEWAY, LOST_WHERE_WEAK = 0.005, 0.001, 0.03  # of the messages [E]; 1 of 20 places has a weak signal
REPEATED: Final = 0.005  # of the messages, some seconds later [E]
DISORDERLY: Final = 0.02  # of the devices [E]: one message of 100 comes up to three intervals late
WRONG_CLOCKS: Final = 0.002  # of the devices are six minutes ahead [E]
OUTAGES, GATEWAY_OUTAGES = 1 / 90, 1 / 60  # a day and device; median 3 h, of which half are made up for later [E]
SHAKES: Final = 0.05  # a cover and day: a lorry passes, and the device tells [E]
TRUCKS: Final = 1500  # a day over a bridge's scale, which tells of those above 3.5 t only [E]
SCALE_ERROR: Final = 0.05  # at most, of a vehicle's weight: class 5 of OIML R 134 in service [M]


@dataclass(frozen=True, slots=True)
class Point:
    """What one measuring point shows: base + day's demand + temperature + wetness + wander + drift + noise + spikes.

    Pairs are drawn evenly, one a device. `demand` is by 1 of the mean demand, `heat` by °C off the mean, `wet` by 1 of
    wetness (20 mm/h for an hour), `drift` by day; `wander` (slow) and `noise` are deviations; `relative`: all of them
    are parts of the base. `step` is the resolution, `spike` = (chance a reading, least, most, readings at the most).
    `low`, `high`: the sensor's believable range.
    """

    property: str
    kind: str
    low: float
    high: float
    step: float
    base: tuple[float, float]
    demand: tuple[float, float] = (0, 0)
    heat: tuple[float, float] = (0, 0)
    wet: tuple[float, float] = (0, 0)
    drift: tuple[float, float] = (0, 0)
    wander: float | tuple[float, float] = 0.0
    noise: float | tuple[float, float] = 0.0
    relative: bool = False
    spike: tuple[float, float, float, int] = (0, 0, 0, 1)
    least: float = -np.inf
    most: float = np.inf
    tags: tuple[str, ...] = ()
    statistic: str | None = None
    course: str = ""  # of those that are not a sum: rain, pump, forebay, pond, truck


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices of a sort: `share` of the city's sensors (%), how often they report (s), in rain too; `behind`: so many
    of them at a gateway (0: each by itself)."""

    name: str
    share: float
    points: tuple[Point, ...]
    interval_s: int
    in_rain_s: int = 0
    behind: int = 0


_BATTERY: Final = Point("battery", "device.battery", 0, 100, 1, (45, 100), heat=(0, 0.1), drift=(-0.3, -0.05),
                        noise=0.3, least=25, most=100)  # fmt: skip
_H2S: Final = Point("h2s", "confined.h2s", 0, 150, 0.1, (0.3, 3), demand=(-0.6, 0), heat=(0, 0.1), wander=0.3,
                    noise=0.15, spike=(1e-4, 5, 20, 1), least=0, most=9)  # fmt: skip
_QUALITY: Final = (
    Point("turbidity", "water.turbidity", 0, 20, 0.01, (0.1, 0.45), demand=(0, 0.06), wander=0.03, noise=0.015,
          spike=(2e-4, 1, 5, 2), least=0.02),
    Point("chlorine", "water.chlorine", 0, 5, 0.01, (0.25, 0.6), demand=(-0.05, 0.05), heat=(-0.006, 0),
          drift=(-0.002, 0.002), wander=(0.005, 0.02), noise=(0.003, 0.01), least=0.1),
    Point("ph", "water.ph", 0, 14, 0.01, (7.1, 8.0), demand=(-0.05, 0.05), drift=(-0.003, 0.003), wander=(0.005, 0.02),
          noise=(0.002, 0.01)),
)  # fmt: skip
_PLANT: Final = (
    _QUALITY[0],
    Point(
        "chlorine", "water.chlorine", 0, 5, 0.01, (0.5, 0.8), wander=(0.005, 0.02), noise=(0.003, 0.01), tags=("plant",)
    ),
    _QUALITY[2],
)
# Zero within the instrument's error (0.05 %VOL below 1 %VOL), and sewer gas in some.
_METHANE: Final = Point("methane", "gas.methane", 0, 100, 0.01, (-0.04, 0.05), drift=(-0.0005, 0.0005),
                        wander=(0.0005, 0.003), noise=(0.0005, 0.006), spike=(5e-5, 0.5, 2, 1), least=0)  # fmt: skip
_SEWER_METHANE: Final = Point("methane", "manhole.methane", 0, 100, 0.01, (-0.05, 0.2), demand=(-0.03, 0),
                              heat=(0, 0.004), wander=(0.005, 0.02), noise=(0.001, 0.006), spike=(5e-5, 0.5, 2, 1),
                              least=0, most=0.42)  # fmt: skip


def _pressure(least: float, most: float, *tags: str) -> Point:
    return Point("pressure", "water.pressure", -0.1, 1.6, 0.001, (least, most), demand=(-0.05, -0.004),
                 drift=(-0.0002, 0.0002), wander=(0.0005, 0.004), noise=(0.0002, 0.002), spike=(2e-4, -0.25, 0.15, 1),
                 tags=tags)  # fmt: skip


_BRIDGE: Final = (
    *(Point(f"strain_{n}", "bridge.strain", -3000, 3000, 0.1, (40, 160), demand=(0.5, 3), heat=(-9, 9),
            drift=(-0.2, 0.2), wander=1, noise=1) for n in range(1, 19)),
    *(Point(f"deflection_{n}", "bridge.deflection", -500, 500, 0.01, (2, 20), demand=(0.1, 0.5), heat=(-0.3, 0.3),
            wander=0.1, noise=0.1) for n in range(1, 7)),
    *(Point(f"tilt_{n}", "bridge.tilt", -15, 15, 0.001, (-0.5, 0.5), heat=(-0.004, 0.004), wander=(0.0003, 0.001),
            noise=(0.0003, 0.001)) for n in range(1, 7)),
    *(Point(f"cable_{n}", "bridge.cable_force", 0, 20_000, 0.1, (2000, 8000), demand=(1, 5), heat=(-6, 2), wander=3,
            noise=2) for n in range(1, 7)),
    *(Point(f"crack_{n}", "bridge.crack", 0, 10, 0.001, (0.04, 0.16), heat=(-0.002, 0.002), wander=0.001, noise=0.001,
            least=0) for n in range(1, 4)),
    *(Point(f"crack_{n}", "bridge.crack", 0, 10, 0.001, (0.01, 0.07), heat=(-0.001, 0.001), wander=0.001, noise=0.001,
            least=0, tags=("prestressed",)) for n in range(4, 6)),
    *(Point(f"temperature_{n}", "bridge.temperature", -40, 80, 0.1, (26, 32), heat=(0.6, 1.4), wander=0.3, noise=0.1)
      for n in range(1, 5)),
    *(Point(f"acc_{n}.rms", "bridge.acceleration", 0, 20, 0.0001, (0.02, 0.12), demand=(0.3, 0.6), noise=0.1,
            relative=True, least=0.001, statistic="rms") for n in range(1, 5)),
    Point("vehicle_weight", "bridge.vehicle_weight", 0, 200, 0.01, (0, 0), course="truck"),
)  # fmt: skip

# Shares and intervals: 60 % water and drainage, 20 % gas, 15 % manholes, 5 % bridges; intervals of the domain notes.
FLEETS: Final = (
    Fleet("pressure", 8, (_pressure(0.24, 0.42),), 900),
    Fleet("storeys", 4, (_pressure(0.37, 0.48, "six-floors"),), 900),
    Fleet("meter", 10, (Point("flow", "water.flow", 0, 10_000, 0.1, (20, 500), demand=(0.7, 1.0), wander=0.03,
                              noise=0.03, relative=True, least=0), _pressure(0.26, 0.45)), 900),
    Fleet("quality", 5.4, _QUALITY, 300, behind=10),
    Fleet("plant", 0.6, _PLANT, 300, behind=10),
    Fleet("tank", 2, (Point("level", "water.level", 0, 10, 0.01, (2.5, 4), demand=(-1, -0.3), wander=0.05,
                            noise=0.005),), 900),
    Fleet("leak", 1, (Point("noise", "water.noise", 0, 120, 1, (8, 25), noise=2, least=0),), 86_400),
    Fleet("well", 12, (Point("level", "drainage.level", 0, 10, 0.01, (0.1, 0.5), demand=(0.02, 0.2), wet=(0.2, 1.2),
                             drift=(-0.001, 0.001), wander=0.02, noise=0.005, spike=(1e-4, 0.5, 2, 1), least=0),
                       _BATTERY), 1800, 300),
    Fleet("road", 6, (Point("depth", "drainage.ponding_depth", 0, 150, 0.1, (-0.8, 0.8), wander=0.1, noise=0.2,
                            spike=(5e-5, 5, 40, 1), least=0, course="pond", most=8.5),), 1800, 300),
    Fleet("underpass", 1.5, (Point("depth", "drainage.ponding_depth", 0, 150, 0.1, (-0.8, 0.8), wander=0.1, noise=0.2,
                                   spike=(5e-5, 5, 40, 1), least=0, course="pond", most=4.2,
                                   tags=("underpass",)),), 1800, 300),
    Fleet("gauge", 1, (Point("rainfall", "drainage.rainfall", 0, 50, 0.2, (0.96, 1.04), course="rain"),), 300),
    Fleet("drain", 3.5, (Point("flow", "drainage.flow", 0, 50, 0.001, (0.02, 0.3), demand=(0.4, 0.7), wet=(1, 4),
                               wander=0.03, noise=0.03, relative=True, least=0),
                         Point("level", "drainage.level", 0, 10, 0.01, (0.2, 0.5), demand=(0.02, 0.2), wet=(0.2, 1.2),
                               wander=0.01, noise=0.005, least=0)), 300),
    Fleet("station", 3, (Point("level", "drainage.level", 0, 10, 0.01, (1.0, 1.5), course="forebay"),
                         Point("pump_1", "drainage.pump_running", 0, 1, 1, (0.7, 0.7), course="pump"),
                         Point("pump_2", "drainage.pump_running", 0, 1, 1, (0.85, 0.85), course="pump")),
          300, behind=10),
    Fleet("sewer", 2, (_H2S,
                       Point("co", "confined.co", 0, 1250, 0.1, (0, 3), demand=(0, 1.5), wander=0.3, noise=0.3,
                             spike=(1e-4, 20, 50, 1), least=0),
                       Point("oxygen", "confined.oxygen", 0, 30, 0.1, (20.6, 21.1), drift=(-0.01, 0), wander=0.05,
                             noise=0.05)), 1800),
    Fleet("gas-well", 12, (_METHANE, _BATTERY), 1800),
    Fleet("regulator", 4, (Point("pressure", "gas.pressure", 0, 10, 0.01, (2.3, 2.9), demand=(-0.03, -0.01),
                                 wander=0.003, noise=0.003, relative=True),
                           Point("flow", "gas.flow", 0, 10_000, 0.1, (50, 800), demand=(0.5, 0.9), wander=0.05,
                                 noise=0.05, relative=True, least=0)), 900, behind=20),
    Fleet("district-regulator", 4, (Point("pressure", "gas.pressure", 0, 400, 0.1, (180, 220), demand=(-0.02, -0.005),
                                          wander=0.002, noise=0.001, relative=True),
                                    Point("flow", "gas.flow", 0, 10_000, 0.1, (200, 3000), demand=(0.5, 0.9),
                                          wander=0.05, noise=0.03, relative=True, least=0)), 900, behind=20),
    Fleet("cover", 9, (Point("tilt", "manhole.tilt", 0, 180, 0.1, (0, 3), noise=0.3, least=0),
                       Point("open", "manhole.open", 0, 1, 1, (0, 0)), _BATTERY), 43_200),
    Fleet("manhole", 6, (Point("level", "manhole.level", 0, 10, 0.01, (-0.1, 0.3), wet=(0, 0.4), wander=0.01,
                               noise=0.003, least=0), _SEWER_METHANE, _H2S), 1800),
    Fleet("bridge", 5, _BRIDGE, 600, behind=1),
)  # fmt: skip
_PARTS: Final = ("base", "demand", "heat", "wet", "drift", "wander", "noise")


def _designed(point: Point, base: float) -> dict[str, float]:
    """What an asset of this point would be designed for [E]: with the room that a sound one has, and no more."""
    if point.kind == "gas.pressure":
        return {"set_point_kpa": base}
    if point.kind == "water.pressure":
        return {"floors_served": float(max(1, (base - 0.16) // 0.04)), "working_pressure_mpa": base + 0.04}
    if point.course == "forebay":
        return {"ground_m": 4.0, "invert_m": 0.0, "startup_depth_m": base + 1.2}
    if point.kind in ("drainage.level", "manhole.level"):
        return {"ground_m": 3.5 if point.kind == "drainage.level" else 1.8, "invert_m": 0.0}
    if point.kind == "bridge.strain":
        return {"design_strain_ue": base + 250}
    if point.kind == "bridge.deflection":
        return {"design_deflection_mm": base + 10}
    if point.kind == "bridge.cable_force":
        return {"design_cable_force_kn": 1.4 * base}
    return {"posted_weight_t": 49.0} if point.course == "truck" else {}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something real: from `begin` to `end` (hours of the city) sensor `sensor` shows `value`, or, without one, always
    what it showed first."""

    sensor: str
    begin: float
    end: float
    value: float | None = None


class Sky:
    """Weather and demand of the city's zones, a column each 5 minutes: `rain` (mm in them), `fallen` (mm so far),
    `wet`, `heat` (°C off the mean, of the whole city), `demand` (of the mean), `inflow` (of pumping stations, so far).
    """

    def __init__(self, draw: np.random.Generator, zones: int, days: int) -> None:
        steps = days * DAY // STEP
        hours = np.arange(steps) * (STEP / HOUR)
        self.steps = steps
        self.rain = np.zeros((zones, steps))
        for _ in range(max(1, draw.poisson(RAINS * days))):
            begin, lasts = draw.uniform(0, days * 24 - 2), draw.uniform(1.5, 8)
            mm = min(float(draw.lognormal(2.6, 0.6)), MOST_RAIN / 1.3)
            here = begin + draw.uniform(-0.5, 0.5, zones)
            peak = draw.uniform(0.2, 0.6)
            x = (hours[None, :] - here[:, None]) / lasts
            shape = np.where((x >= 0) & (x < 1), np.where(x < peak, x / peak, (1 - x) / (1 - peak)), 0.0)
            shape /= np.maximum(shape.sum(axis=1, keepdims=True), 1e-9)
            self.rain += mm * draw.uniform(0.6, 1.3, (zones, 1)) * shape
        # Two rains that follow each other are one.
        in_12_h = lfilter(np.ones(12 * HOUR // STEP), [1.0], self.rain)
        self.rain *= np.minimum(1.0, MOST_RAIN / np.maximum(in_12_h.max(axis=1, keepdims=True), 1e-9))
        self.fallen = np.cumsum(self.rain, axis=1)
        keeps = np.exp(-STEP / HOUR)
        self.wet = lfilter([1 - keeps], [1, -keeps], self.rain * (HOUR / STEP / 20))
        swing = 5 * np.cos(2 * np.pi * (hours - 15) / 24)
        self.heat = swing + lfilter([0.055], [1, -0.9988], draw.normal(0, 1, steps)) * 2
        local, day = hours % 24, (hours // 24).astype(np.int64)
        is_weekend = np.isin((day + 2) % 7, (5, 6))  # the first day is a Wednesday
        local = np.where(is_weekend, local - LATER_ON_WEEKENDS, local) % 24
        shape = np.interp(local, np.arange(25), [*DEMAND, DEMAND[0]])
        rough = lfilter([0.3], [1, -0.7], draw.normal(0, 0.03, (zones, steps)))
        level = draw.normal(1, 0.03, (zones, days + 1))[:, day]
        self.demand = (shape * level * (1 + rough)).clip(0.2, 2.2)
        self.inflow = np.cumsum(self.demand + 6 * self.wet, axis=1) * (STEP / HOUR)


@dataclass(slots=True)
class _Group:
    """A fleet's devices: their sensors are `first + number * points + point`."""

    fleet: Fleet
    first: int
    size: int
    zone: Ints
    phase: Ints
    offset: Ints
    lost: Floats
    gateway: Ints  # -1: by itself
    is_disorderly: Bools
    keeps: Bools  # during an outage, for later
    parts: list[dict[str, Floats]]
    wander: list[Floats] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outages:
    """By start within device (or gateway): `owner`, `begin`, `end`."""

    owner: Ints
    begin: Ints
    end: Ints

    @classmethod
    def drawn(cls, draw: np.random.Generator, owners: int, rate: float, days: int) -> Outages:
        count = draw.poisson(rate * days, owners)
        owner = np.repeat(np.arange(owners), count)
        begin = BEGIN + (draw.random(len(owner)) * days * DAY).astype(np.int64)
        end = begin + (draw.lognormal(np.log(3), 1, len(owner)).clip(0.3, 48) * HOUR).astype(np.int64)
        order = np.lexsort((begin, owner))
        return cls(owner[order], begin[order], end[order])

    def ends(self, owner: Ints, at: Ints) -> Ints:
        """By (owner, time), when the outage is over that it falls into; 0 for none."""
        result = np.zeros(len(at), np.int64)
        low, high = int(at.min(initial=0)), int(at.max(initial=0))
        for number in np.flatnonzero((self.begin <= high) & (self.end > low)).tolist():
            begin, end = self.begin[number], self.end[number]
            rows = slice(*np.searchsorted(owner, [self.owner[number], self.owner[number] + 1]))
            within = (at[rows] >= begin) & (at[rows] < end)
            np.maximum(result[rows], np.where(within, end, 0), out=result[rows])
        return result

    def overlapping(self, owner: int, begin: Micros, end: Micros) -> int:
        """How many outages of one device or gateway touch a span of time."""
        rows = slice(*np.searchsorted(self.owner, [owner, owner + 1]))
        return int(((self.begin[rows] <= end) & (self.end[rows] >= begin)).sum())

    def explains(self, owner: int, at: Micros, slack: Micros) -> bool:
        rows = slice(*np.searchsorted(self.owner, [owner, owner + 1]))
        return bool(((self.begin[rows] <= at) & (at <= self.end[rows] + slack)).any())


Columns = tuple[Indices, Ints, Ints, Floats]  # sensor, observed_at, received_at, value


class HealthyCity:
    """About `sensors` sensors (each sort of device at least once) over `days` days; the same for the same numbers."""

    def __init__(self, sensors: int, days: int, seed: int = 1, faults: Sequence[Fault] = ()) -> None:
        self.days = days
        self.draw = draw = np.random.default_rng(seed)
        self.zones = max(2, min(100, sensors // 500))
        self.sky = Sky(draw, self.zones, days)
        self.sensors: list[Sensor] = []
        self.groups: list[_Group] = []
        gateways = 0
        devices: list[Ints] = []
        kinds = load_kinds()
        for fleet in FLEETS:
            size = max(1, round(sensors * fleet.share / 100 / len(fleet.points)))
            gateway = np.full(size, -1)
            if fleet.behind:
                gateway = gateways + np.arange(size) // fleet.behind
                gateways = int(gateway[-1]) + 1
            parts = [{name: _spread(draw, getattr(p, name), size) for name in _PARTS} for p in fleet.points]
            group = _Group(
                fleet, len(self.sensors), size, draw.integers(0, self.zones, size),
                draw.integers(0, fleet.interval_s, size) * SECOND,
                (draw.normal(0, 10, size).clip(-60, 60) + 360 * (draw.random(size) < WRONG_CLOCKS)).astype(np.int64)
                * SECOND,
                np.where(draw.random(size) < 0.05, LOST_WHERE_WEAK, LOST) if not fleet.behind
                else np.full(size, LOST_BY_GATEWAY),
                gateway, (draw.random(size) < DISORDERLY) & (fleet.interval_s <= 1800), draw.random(size) < 0.5, parts,
                [draw.normal(0, 1, size) for _ in fleet.points],
            )  # fmt: skip
            devices.append(np.repeat(np.arange(size) + sum(g.size for g in self.groups), len(fleet.points)))
            self.groups.append(group)
            for n in range(size):
                tenant = f"works-{gateway[n]:04}" if fleet.behind else f"owner-{fleet.name}"
                self.sensors += [
                    Sensor(f"{fleet.name}-{n:05}", p.property, p.kind, kinds[p.kind].unit, tenant,
                           f"{fleet.name} {n:05}", 117.0 + 0.004 * group.zone[n], 31.8 + n % 100 * 1e-4,
                           None if p.course == "truck" else float(fleet.interval_s), p.low, p.high, p.tags,
                           statistic=p.statistic)
                    for p in fleet.points
                ]  # fmt: skip
        self.device = np.concatenate(devices)  # by sensor
        by_device = [g.gateway for g in self.groups]
        self.gateway = np.concatenate(by_device)  # by device
        self.outages = Outages.drawn(draw, len(self.gateway), OUTAGES, days)
        self.gateway_outages = Outages.drawn(draw, gateways, GATEWAY_OUTAGES, days)
        # Of these a reading may come after a newer one.
        self.is_late = np.concatenate([g.is_disorderly | (g.fleet.name == "cover") for g in self.groups])[self.device]
        self._frozen: dict[int, float] = {}
        numbers = {sensor.id: n for n, sensor in enumerate(self.sensors)}
        self.faults = [(numbers[f.sensor], f) for f in faults]

    def __len__(self) -> int:
        return len(self.sensors)

    def facts(self) -> dict[int, AssetFacts]:
        """By sensor, what the city model says of its asset, as far as it gives limits."""
        found: dict[int, AssetFacts] = {}
        for group in self.groups:
            points = group.fleet.points
            for p, point in enumerate(points):
                for n, base in enumerate(group.parts[p]["base"].tolist()):
                    if numbers := _designed(point, base):
                        index = group.first + n * len(points) + p
                        found[index] = AssetFacts(self.sensors[index].asset or "", "", numbers)
        return found

    def batches(self) -> Iterator[Readings]:
        """Everything in order of arrival."""
        waiting: list[Columns] = []
        for begin in range(BEGIN, BEGIN + self.days * DAY, BLOCK):
            end = begin + BLOCK
            made = [part for group in self.groups for part in self._block(group, begin, end)]
            sensor, at, received, value = (np.concatenate(column) for column in zip(*waiting, *made, strict=True))
            later = received >= end
            waiting = [(sensor[later], at[later], received[later], value[later])]
            now = np.flatnonzero(~later)
            now = now[np.argsort(received[now], kind="stable")]
            for first in range(0, len(now), BATCH):
                rows = now[first : first + BATCH]
                yield Readings(sensor[rows], at[rows], received[rows], value[rows], np.zeros(len(rows), np.uint8))

    # ---- what is sent

    def _block(self, group: _Group, begin: Micros, end: Micros) -> Iterator[Columns]:
        fleet = group.fleet
        interval = fleet.interval_s * SECOND
        row = (begin - BEGIN) // STEP
        now_wet = self.sky.wet[:, row : row + BLOCK // STEP]
        is_wet = bool(fleet.in_rain_s and (now_wet > 0.02).any())
        every = fleet.in_rain_s * SECOND if is_wet else interval
        # Message k of device d is due at BEGIN + phase + k * interval; in rain more of them.
        first = -((BEGIN + group.phase - begin) // every)
        count = -((begin - end + (BEGIN + group.phase + first * every - begin)) // every)
        number = np.repeat(np.arange(group.size), count)
        k = np.repeat(first, count) + (np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count))
        due = BEGIN + group.phase[number] + k * every
        inside = (due >= begin) & (due < end) & (k >= 0)
        if is_wet:
            wet = self.sky.wet[group.zone[number], np.minimum((due - BEGIN) // STEP, self.sky.steps - 1)]
            inside &= (k % (interval // every) == 0) | (wet > 0.02)
        number, due = number[inside], due[inside]
        extra = np.zeros(len(number))  # the angle that a shaken cover shows
        if fleet.name == "cover":
            number, due, extra = self._shaken(group, begin, number, due)
        values = [self._value(group, p, number, due, begin) for p in range(len(fleet.points))]
        if fleet.name == "cover":
            values[0] = values[0] + extra
        at, received, sent, by = self._sent(group, number, due)
        for p, value in enumerate(values):
            sensor = (group.first + number * len(fleet.points) + p).astype(np.int32)
            self._fail(sensor, due, value)
            if fleet.points[p].course != "truck":
                yield sensor[sent][by], at[sent][by], received, value[sent][by]
        if fleet.name == "bridge":
            yield self._trucks(group, begin)

    def _sent(self, group: _Group, number: Ints, due: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """When messages are timed and received: `at` by message; `received` by delivery, `sent` the messages that are,
        and `by` their places in it (some twice)."""
        draw, n = self.draw, len(due)
        at = due + group.offset[number] + (draw.normal(0, 0.7, n).clip(-3, 3) * SECOND).astype(np.int64)
        at = at // 1000 * 1000
        slow = 0.3 if group.fleet.behind else 2.0
        received = due + 3 * SECOND + (draw.exponential(slow, n).clip(0, 60) * SECOND).astype(np.int64)
        lost = draw.random(n) < group.lost[number]
        late = group.is_disorderly[number] & (draw.random(n) < 0.01)
        received[late] += (draw.uniform(0.5, 3, int(late.sum())) * group.fleet.interval_s * SECOND).astype(np.int64)
        device = number + self.device[group.first]
        back = self.outages.ends(device, due)
        if group.fleet.behind:
            owner = group.gateway[number]
            back = np.maximum(back, self.gateway_outages.ends(owner, due))
        out = back > 0
        # Those who keep what they could not send do so when they are back, in order.
        lost |= out & ~group.keeps[number]
        kept = out & ~lost
        received[kept] = back[kept] - (back[kept] - due[kept]) // 100_000
        sent = np.flatnonzero(~lost)
        again = np.flatnonzero((draw.random(len(sent)) < REPEATED) & ~kept[sent])
        arrivals = np.concatenate([received[sent], received[sent][again] + 4 * SECOND])
        return at, arrivals, sent, np.concatenate([np.arange(len(sent)), again])

    def _shaken(self, group: _Group, begin: Micros, number: Ints, due: Ints) -> tuple[Ints, Ints, Floats]:
        """Covers that a lorry shakes tell at once, and again some seconds later, at rest."""
        draw = self.draw
        which = np.flatnonzero(draw.random(group.size) < SHAKES * BLOCK / DAY)
        when = begin + (draw.random(len(which)) * (BLOCK - MINUTE)).astype(np.int64)
        number = np.concatenate([number, which, which])
        due = np.concatenate([due, when, when + 8 * SECOND])
        extra = np.zeros(len(number))
        extra[len(number) - 2 * len(which) : len(number) - len(which)] = draw.uniform(3, 28, len(which))
        order = np.lexsort((due, number))
        return number[order], due[order], extra[order]

    def _trucks(self, group: _Group, begin: Micros) -> Columns:
        """One reading a vehicle, legal all of them; the scale errs."""
        draw, points = self.draw, len(group.fleet.points)
        count = draw.poisson(TRUCKS * BLOCK / DAY, group.size)
        number = np.repeat(np.arange(group.size), count)
        due = begin + (draw.random(len(number)) * BLOCK).astype(np.int64) // 1000 * 1000
        order = np.lexsort((due, number))
        due = due[order]
        apart = np.append(True, (np.diff(due) > 0) | (np.diff(number) > 0))  # one at a time
        number, due = number[apart], due[apart]
        is_full = draw.random(len(number)) < 0.1  # the largest, loaded to what is allowed [E]
        others = 3.5 + draw.gamma(2, 5, len(number)).clip(0, 34)
        weight = np.where(is_full, draw.triangular(38, 48, 49, len(number)), others)
        weight = weight * (1 + draw.normal(0, SCALE_ERROR / 3, len(number)).clip(-SCALE_ERROR, SCALE_ERROR))
        device = number + self.device[group.first]
        back = np.maximum(self.outages.ends(device, due), self.gateway_outages.ends(group.gateway[number], due))
        sensor = (group.first + number * points + points - 1).astype(np.int32)
        value = np.round(weight, 2)
        self._fail(sensor, due, value)
        sent = back == 0
        return sensor[sent], due[sent], due[sent] + 2 * SECOND, value[sent]

    # ---- what is measured

    def _value(self, group: _Group, p: int, number: Ints, due: Ints, begin: Micros) -> Floats:
        point, draw, sky = group.fleet.points[p], self.draw, self.sky
        own = group.parts[p]
        if point.course == "truck":
            return np.zeros(len(number))
        zone, step = group.zone[number], np.minimum((due - BEGIN) // STEP, sky.steps - 1)
        base = own["base"][number]
        if point.course == "rain":
            fallen = sky.fallen[zone, step] * base
            before = np.where(step > 0, sky.fallen[zone, step - 1] * base, 0.0)
            return np.round((np.floor(fallen / point.step) - np.floor(before / point.step)) * point.step, 1)
        if point.course in ("pump", "forebay"):
            return self._station(group, point, base, number, zone, step)
        value = self._drawn(point.demand, own["demand"], number, sky.demand[zone, step] - 1)
        value += self._drawn(point.heat, own["heat"], number, sky.heat[step])
        value += self._drawn(point.wet, own["wet"], number, sky.wet[zone, step])
        value += self._drawn(point.drift, own["drift"], number, (due - BEGIN) / DAY)
        if point.wander:
            now = group.wander[p]
            then = 0.8 * now + 0.6 * draw.normal(0, 1, group.size)
            group.wander[p] = then
            value += own["wander"][number] * (now[number] + (then - now)[number] * ((due - begin) / BLOCK))
        if point.noise:
            value += own["noise"][number] * draw.normal(0, 1, len(number))
        value = base * (1 + value) if point.relative else base + value
        if point.course == "pond":
            # A film of water where the rain is hardest, at a place of four.
            share = (number % 4 == 0) * (0.3 + 0.6 * (number % 7) / 6)
            value += point.most * share * np.minimum(sky.wet[zone, step] / 0.8, 1.0)
        value = np.clip(value, point.least, point.most)
        chance, least, most, readings = point.spike
        if chance:
            struck = draw.random(len(number)) < chance
            if readings > 1:
                struck[1:] |= struck[:-1] & (draw.random(len(number) - 1) < 0.2) & (number[1:] == number[:-1])
            value[struck] = np.maximum(value[struck] + draw.uniform(least, most, int(struck.sum())), point.low)
        return _told(value, point.step)

    @staticmethod
    def _drawn(given: tuple[float, float], own: Floats, number: Ints, by: Floats) -> Floats:
        return np.zeros(len(number)) if given == (0, 0) else own[number] * by

    def _station(self, group: _Group, point: Point, base: Floats, number: Ints, zone: Ints, step: Ints) -> Floats:
        """A forebay that fills and is pumped empty in turn; the level never stands above where the pumps start."""
        turn = (self.sky.inflow[zone, step] * 0.6 + number * 0.37) % 1.0
        if point.course == "pump":
            return (turn >= base).astype(np.float64)
        filled = np.where(turn < 0.7, turn / 0.7, (1 - turn) / 0.3)
        return _told(base + 1.2 * filled + 0.005 * self.draw.normal(0, 1, len(turn)), point.step)

    def _fail(self, sensor: Indices, due: Ints, value: Floats) -> None:
        for number, fault in self.faults:
            begin, end = BEGIN + int(fault.begin * HOUR), BEGIN + int(fault.end * HOUR)
            hit = np.flatnonzero((sensor == number) & (due >= begin) & (due < end))
            if len(hit):
                value[hit] = fault.value if fault.value is not None else self._frozen.setdefault(number, value[hit[0]])


def _told(value: Floats, step: float) -> Floats:
    """In the instrument's resolution, as its few digits say it."""
    return np.round(np.round(value / step) * step, 4)


def _spread(draw: np.random.Generator, given: float | tuple[float, float], size: int) -> Floats:
    return draw.uniform(min(given), max(given), size) if isinstance(given, tuple) else np.full(size, float(given))


# ---- judging it


class _Past:
    """What deciding asks of the database: readings of those sensors that may be late, alerts and what was told of
    them."""

    def __init__(self, city: HealthyCity) -> None:
        self._is_late = city.is_late
        self._rows: dict[int, deque[tuple[int, int, float, int]]] = {}
        self._alerts: dict[str, Alert] = {}
        self._told: dict[str, list[AlertEvent]] = {}  # by alert
        self._on: dict[int, dict[str, None]] = {}  # alerts by sensor

    def take(self, outcome: Outcome) -> None:
        stored = outcome.readings.take(self._is_late[outcome.readings.sensor])
        columns = stored.sensor, stored.observed_at, stored.received_at, stored.value, stored.quality
        for sensor, at, received, value, quality in zip(*(c.tolist() for c in columns), strict=True):
            self._rows.setdefault(sensor, deque(maxlen=KEPT)).append((at, received, value, quality))
        for alert in outcome.alerts:
            self._alerts[alert.id] = alert
            self._on.setdefault(alert.sensor_index, {})[alert.id] = None
        for event in outcome.events:
            told = self._told.setdefault(event.alert_id, [])
            if event.transition in JUDGEMENTS:
                told.append(event)
            elif event.transition == "withdrawn":
                told[:] = [other for other in told if other.id != event.replaces]

    def known(self, sensor: Indices, observed_at: Ints, table: str = "readings") -> Bools:
        self._check(sensor)
        return np.array([
            any(row[0] == at for row in self._rows.get(index, ()))
            for index, at in zip(sensor.tolist(), observed_at.tolist(), strict=True)
        ], bool)  # fmt: skip

    def history(self, sensor: Indices, after: Ints) -> Readings:
        self._check(sensor)
        rows = [
            (index, *row)
            for index, since in zip(sensor.tolist(), after.tolist(), strict=True)
            for row in self._rows.get(index, ())
            if row[0] > since
        ]
        if not rows:
            return Readings.empty()
        index, at, received, value, quality = zip(*rows, strict=True)
        return Readings(
            np.array(index, np.int32), np.array(at, np.int64), np.array(received, np.int64), np.array(value),
            np.array(quality, np.uint8),
        )  # fmt: skip

    def said(self, sensor: Indices, after: Ints) -> list[AlertEvent]:
        found = [
            event
            for index, since in zip(sensor.tolist(), after.tolist(), strict=True)
            for id_ in self._on.get(index, ())
            for event in self._told.get(id_, ())
            if event.observed_at > since
        ]
        return sorted(found, key=lambda event: event.observed_at)

    def course(self, ids: Sequence[str], rules: Sequence[str] = (), after: Micros = 0) -> list[AlertEvent]:
        wanted = {a.id for a in self._alerts.values() if a.rule in rules and a.raised_at >= after} if rules else set()
        found = [event for id_ in sorted(wanted.union(ids)) for event in self._told.get(id_, ())]
        return sorted(found, key=lambda event: event.observed_at)

    def alerts(self, ids: Sequence[str]) -> list[Alert]:
        return [self._alerts[id_] for id_ in ids if id_ in self._alerts]

    def _check(self, sensor: Indices) -> None:
        if not self._is_late[sensor].all():
            raise RuntimeError("a reading of a sensor that is always in order came late: a fault of this bench")


@dataclass(slots=True)
class Verdict:
    """What the rules said of a city. `false` by rule, with some of each as `examples` (sensor, event time, value);
    `outages` alerts of silence that were true; `missed` of the `long` outages (over five intervals) nobody was told."""

    sensors: int
    days: int
    readings: int = 0
    judging_s: float = 0.0
    making_s: float = 0.0
    false: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, Micros, float | None]]] = field(default_factory=dict)
    outages: int = 0
    long: int = 0
    missed: int = 0
    late: int = 0
    raised: set[tuple[str, str]] = field(default_factory=set)

    def rate(self, count: int) -> float:
        """Alerts per 1,000 sensors and day."""
        return count / (self.sensors * self.days / 1000)


def judge(city: HealthyCity, rules: RuleSet, say: Callable[[str], None] = lambda _: None) -> Verdict:
    """All of the city's readings, as the pipeline would decide over them: quality, lanes, rules, silence, late ones."""
    catalog = Catalog(load_kinds())
    catalog.put(list(enumerate(city.sensors)))
    catalog.describe(city.facts(), rules.attributes)
    judgement = Judgement(
        catalog, rules, 1, lateness=DAY, default_tenant="default", max_bytes=1 << 20, started_at=BEGIN
    )  # fmt: skip
    past = _Past(city)
    by_gateway = city.gateway[city.device] >= 0
    found = Verdict(len(city), city.days)
    silences: set[tuple[str, Micros]] = set()
    next_snapshot = BEGIN + SNAPSHOT
    next_day = BEGIN + DAY
    begun = time.process_time()

    def stand(decision: Decision) -> None:
        judgement.apply(decision)
        past.take(decision.outcome)
        for event in decision.outcome.events:
            if event.transition == "raised":
                subject = event.sensor or event.asset or ""
                found.raised.add((event.rule, subject))
                is_silence = rules.by_id[event.rule].detector == "offline"
                if is_silence and _is_out(city, event):
                    found.outages += 1
                    silences.add((subject, event.observed_at))
                    continue
                found.false[event.rule] += 1
                if len(examples := found.examples.setdefault(event.rule, [])) < 10:
                    examples.append((subject, event.observed_at, event.value))

    for readings in city.batches():
        made = time.process_time()
        found.making_s += made - begun
        now = int(readings.received_at[-1])
        nothing = np.zeros(len(readings), np.int32)
        decoded = Decoded(
            readings.sensor, readings.observed_at, readings.received_at, readings.value, nothing, nothing,
            by_gateway[readings.sensor], [], [], [], len(readings),
        )  # fmt: skip
        decision = judgement.decide([], decoded, past, now)
        found.readings += len(decision.outcome.readings)
        if decision.judged_again is not None:
            found.late += len(decision.judged_again[0])
        stand(decision)
        stand(judgement.tick(now, False, past))
        if now >= next_snapshot:
            next_snapshot = now + SNAPSHOT
            judgement.keep_snapshot(judgement.snapshot(found.readings, now))
        begun = time.process_time()
        found.judging_s += begun - made
        if now >= next_day:
            next_day += DAY
            say(f"day {(now - BEGIN) // DAY}: {found.readings:,} readings, {sum(found.false.values())} false alerts")
    if judgement.engine.failures:
        raise RuntimeError(f"judging failed for {', '.join(judgement.engine.failures)}; see the log")
    _look_for_outages(city, found, silences)
    return found


def _is_out(city: HealthyCity, event: AlertEvent) -> bool:
    """Whether an alert of silence is of an outage."""
    if event.sensor_index >= 0:
        device = int(city.device[event.sensor_index])
        slack = round((city.sensors[event.sensor_index].interval_s or 0) * SECOND) + 2 * MINUTE
        gateway = int(city.gateway[device])
        return city.outages.explains(device, event.observed_at, slack) or (
            gateway >= 0 and city.gateway_outages.explains(gateway, event.observed_at, slack)
        )
    tenant, _, what = (event.asset or "").partition("/")
    if what != "gateway":
        return False
    gateway = int(tenant.rpartition("-")[2])
    # A gateway is as silent if the only device behind it is out.
    devices = np.flatnonzero(city.gateway == gateway)
    return city.gateway_outages.explains(gateway, event.observed_at, 10 * MINUTE) or all(
        city.outages.explains(int(device), event.observed_at, 10 * MINUTE) for device in devices
    )


def _look_for_outages(city: HealthyCity, found: Verdict, silences: set[tuple[str, Micros]]) -> None:
    """Count the long outages of devices, and of those the ones that nobody was told of; without those that another
    outage of the device or of its gateway overlaps, of which people knew before."""
    told: dict[str, list[Micros]] = {}
    for subject, at in silences:
        told.setdefault(subject, []).append(at)
    last = BEGIN + city.days * DAY
    first = np.searchsorted(city.device, np.arange(len(city.gateway)))
    outages = city.outages
    for owner, begin, end in zip(outages.owner.tolist(), outages.begin.tolist(), outages.end.tolist(), strict=True):
        sensor = city.sensors[first[owner]]
        interval = round((sensor.interval_s or 0) * SECOND)
        if end - begin < 5 * interval or end > last or begin < BEGIN + 5 * interval:
            continue
        if outages.overlapping(owner, begin, end) > 1:
            continue
        gateway = int(city.gateway[owner])
        if gateway >= 0 and city.gateway_outages.overlapping(gateway, begin, end):
            continue
        found.long += 1
        subjects = [sensor.id, f"{sensor.tenant}/gateway"]
        slack = interval + 10 * MINUTE
        found.missed += not any(begin - slack <= at <= end + slack for name in subjects for at in told.get(name, ()))


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.healthy", description=__doc__.partition("\n")[0])
    options.add_argument("--sensors", type=int, default=100_000)
    options.add_argument("--days", type=int, default=30)
    options.add_argument("--rules", type=Path, help="instead of the default pack")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--examples", action="store_true", help="show some of the false alerts")
    given = options.parse_args()
    text = given.rules.read_text("utf-8") if given.rules else default_text()
    city = HealthyCity(given.sensors, given.days, given.seed)
    found = judge(city, parse_rules(text, load_kinds()), lambda line: print(line, file=sys.stderr, flush=True))
    for line in lines_of(found, given.examples):
        print(line)
    print(f"memory at the highest: {machine.memory_mb(os.getpid())[1]:.0f} MB")
    return 0


def lines_of(found: Verdict, examples: bool = False) -> list[str]:
    """What a verdict comes to, for people."""
    total = sum(found.false.values())
    lines = [
        f"{found.sensors:,} sensors, {found.days} days, {found.readings:,} readings, of which {found.late:,} sensors"
        " were judged again for late ones",
        f"made in {found.making_s:.0f} s of CPU, judged in {found.judging_s:.0f}"
        f" ({found.readings / max(found.judging_s, 1e-9) / 1e6:.2f} million a second)",
        f"false alerts: {total}, {found.rate(total):.3f} per 1,000 sensors and day (goal: at most {GOAL:g})",
    ]
    for rule, count in found.false.most_common():
        lines.append(f"  {rule:28} {count:7} {found.rate(count):8.3f}")
        if examples:
            lines += [f"    {sensor} {iso(at)} {value}" for sensor, at, value in found.examples[rule]]
    lines.append(
        f"true alerts of outages: {found.outages}, {found.rate(found.outages):.2f} per 1,000 sensors and day; of"
        f" {found.long} outages over five intervals {found.missed} were not told"
    )
    return lines


if __name__ == "__main__":
    sys.exit(main())
