"""Small cities and readings for the tests of alerts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

import twin.units
from alerts.engine import Engine
from alerts.rules import RuleSet, parse_rules
from twin.catalog import Catalog
from twin.model import Readings, Sensor, Transition

KINDS = twin.units.parse_kinds((Path(twin.units.__file__).parent / "kinds.toml").read_text("utf-8"))
T0 = 1_700_000_000_000_000  # µs
SECOND = 1_000_000
MINUTE = 60 * SECOND


def catalog(*sensors: Sensor) -> Catalog:
    city = Catalog(KINDS)
    city.put(list(enumerate(sensors)))
    return city


def sensor(number: int, kind: str = "drainage.ponding_depth", **more: object) -> Sensor:
    fields: dict[str, object] = {"unit": KINDS[kind].unit} | more
    return Sensor(f"d{number}", "v", kind, **fields)  # type: ignore[arg-type]


def rules(text: str) -> RuleSet:
    return parse_rules(text, KINDS)


def readings(rows: Iterable[tuple[int, int, float]]) -> Readings:
    """Sorted readings of (sensor index, µs, value)."""
    ordered = sorted(rows)
    s = np.array([r[0] for r in ordered], np.int32)
    t = np.array([r[1] for r in ordered], np.int64)
    v = np.array([r[2] for r in ordered], np.float64)
    return Readings(s, t, t.copy(), v, np.zeros(len(s), np.uint8))


def feed(engine: Engine, rows: Iterable[tuple[int, int, float]]) -> list[Transition]:
    """Observe and apply."""
    told, update = engine.observe(readings(rows))
    engine.apply(update)
    return told


def key(transition: Transition) -> tuple[object, ...]:
    """A transition as something that compares equal to itself, NaN included."""
    t = transition
    return (t.observed_at, t.sensor, t.rule, t.before, t.after, repr(t.value), repr(t.threshold), t.since, t.subject)


def plain(told: Iterable[Transition]) -> list[tuple[object, ...]]:
    return sorted((key(t) for t in told), key=lambda k: tuple(map(str, k)))
