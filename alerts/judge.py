"""Rules over recorded readings, without a service: what `cimtwin judge` computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alerts.engine import Engine
from alerts.rules import RuleSet
from twin.catalog import Catalog
from twin.model import Floats, Ints, Readings, Transition

_AT_ONCE: Final = 500_000  # readings judged at once; bounds the scratch memory


@dataclass(frozen=True, slots=True)
class Judged:
    """`readings` sorted by (sensor, observed_at), each such pair once; `level` (int8), the highest level of any rule
    open on the sensor after that reading; `score`, the highest of the detectors that have one (NaN: none);
    `transitions` by (observed_at, sensor, rule); those on an asset or area have no part in `level`."""

    readings: Readings
    level: NDArray[np.int8]
    score: Floats
    transitions: list[Transition]


def judge(rules: RuleSet, catalog: Catalog, readings: Readings) -> Judged:
    """Judge readings given in any order; of two with equal sensor and time the first given counts. Missing and bad
    ones are not judged, and are told with the level that is open. Rules on silence need a clock and say nothing;
    composites are judged as far as the readings' time goes."""
    order = np.lexsort((readings.observed_at, readings.sensor))  # stable: equal ones stay as they were given
    sensor, at = readings.sensor[order], readings.observed_at[order]
    first = np.ones(len(order), bool)
    first[1:] = (sensor[1:] != sensor[:-1]) | (at[1:] != at[:-1])
    kept = readings.take(order[first])
    engine = Engine(rules, catalog)
    told: list[Transition] = []
    steps: list[Transition] = []
    judgeable = kept.judgeable()
    seen = kept.take(judgeable)
    found = np.full(len(seen), np.nan)
    for part in _parts(seen.observed_at):
        transitions, update = engine.observe(seen.take(part))
        engine.apply(update)
        if update.score is not None:
            found[part] = update.score
        told += transitions
        steps += update.steps
    until = int(kept.observed_at.max(initial=0))
    told += [t for finding in engine.compose(steps, until=until)[0] for t in finding.due]
    if engine.failures:
        raise RuntimeError(f"judging failed for {', '.join(engine.failures)}; see the log")
    told.sort(key=lambda t: (t.observed_at, t.sensor, t.rule, t.subject or ""))
    score = np.full(len(kept), np.nan)
    score[judgeable] = found
    return Judged(kept, _levels(kept, told, engine), score, told)


def _parts(at: Ints) -> list[Ints]:
    """Places of the readings judged at once: all of a span of time, as sensors that are looked at together must come
    together."""
    if len(at) <= _AT_ONCE:
        return [np.arange(len(at))] if len(at) else []
    order = np.argsort(at, kind="stable")
    ends = np.unique(np.searchsorted(at[order], at[order][np.arange(_AT_ONCE, len(at), _AT_ONCE)]))
    return [np.sort(part) for part in np.split(order, ends) if len(part)]


def _levels(readings: Readings, told: list[Transition], engine: Engine) -> NDArray[np.int8]:
    """The highest open level after each reading: a step function for each rule and sensor, and their maximum."""
    level = np.zeros(len(readings), np.int8)
    steps: dict[tuple[int, int], list[Transition]] = {}
    for transition in told:
        for sensor in engine.subjects(transition):
            steps.setdefault((sensor, transition.rule), []).append(transition)
    for (sensor, _), changes in steps.items():
        begin, end = np.searchsorted(readings.sensor, [sensor, sensor + 1])
        times = np.array([change.observed_at for change in changes])
        after = np.array([0, *(change.after for change in changes)], np.int8)
        own = level[begin:end]
        np.maximum(own, after[np.searchsorted(times, readings.observed_at[begin:end], "right")], out=own)
    return level
