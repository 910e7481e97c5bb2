"""How well the anomaly detector finds labelled anomalies: the published standard scoring of the Numenta Anomaly
Benchmark (Lavin and Ahmad 2015, "Evaluating Real-time Anomaly Detection Algorithms"), written anew.

A window around each labelled anomaly counts once, for its earliest detection: nearly 1 at its left edge, 0 at its right
one; a window without detection -1. Each detection outside costs up to 0.11, less just behind a window. The first 15 %
of a series (at most 750 readings) do not count. One threshold serves the whole corpus, the one that gives the best
score; a detector that says nothing scores 0, a perfect one 100.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from alerts.detectors.anomaly import LEAVE_OUT, AnomalyWatches
from alerts.detectors.together import LEAVE_OUT as TOGETHER_LEAVE_OUT
from alerts.detectors.together import TogetherWatches
from alerts.engine import Engine
from alerts.rules import parse_rules
from twin.catalog import Catalog
from twin.model import DAY, MINUTE, Readings, Sensor, parse_time
from twin.units import load_kinds

FALSE_POSITIVE: Final = 0.11
PROBATION: Final = 0.15
PROBATION_MOST: Final = 750


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled series: `at` (µs, as the file orders them), `value`, and the windows as `(first, last)` places."""

    name: str
    at: NDArray[np.int64]
    value: NDArray[np.float64]
    windows: list[tuple[int, int]]


def read_corpus(folder: Path) -> list[Series]:
    """The series of a folder with `combined_windows.json` and `data/**/*.csv` (`timestamp,value`)."""
    labels: dict[str, list[list[str]]] = json.loads((folder / "combined_windows.json").read_text())
    return [_series(folder / "data" / name, name, windows) for name, windows in sorted(labels.items())]


def _series(path: Path, name: str, windows: list[list[str]]) -> Series:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    at = np.array([_micros(row["timestamp"]) for row in rows], np.int64)
    places = [(int(np.flatnonzero(at == _micros(a))[0]), int(np.flatnonzero(at == _micros(b))[0])) for a, b in windows]
    return Series(name, at, np.array([float(row["value"]) for row in rows]), places)


def _micros(text: str) -> int:
    return parse_time(text.strip().replace(" ", "T") + "Z")


def worth(series: Series) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """By reading: what a detection there is worth, and the window it lies in (-1: none, -2: not counted)."""
    n = len(series.at)
    place = np.arange(n)
    relative = np.full(n, np.inf)
    window = np.full(n, -1)
    for number, (first, last) in enumerate(series.windows):
        behind = place > last
        relative[behind] = (place[behind] - last) / max(last - first, 1)
        inside = (place >= first) & (place <= last)
        relative[inside] = -(last - place[inside] + 1) / (last - first + 1)
        window[inside] = number
    value = np.where(relative > 3, -1.0, 2 / (1 + np.exp(5 * np.minimum(relative, 3.0))) - 1)
    value = np.where(window >= 0, value / (2 / (1 + np.exp(-5.0)) - 1), value * FALSE_POSITIVE)
    window[: int(min(PROBATION * n, PROBATION_MOST))] = -2
    return value, window


@dataclass(frozen=True, slots=True)
class Outcome:
    """`score` of 100 at the best `threshold`; by series name: windows found, windows, detections outside."""

    score: float
    threshold: float
    by_series: dict[str, tuple[int, int, int]]


def score(corpus: list[Series], scores: list[NDArray[np.float64]], threshold: float | None = None) -> Outcome:
    """The standard score of the readings' `scores`; at `threshold`, where one is given, else at the best one."""
    parts: list[tuple[float, float]] = []  # (score from which on it counts, what it adds)
    windows = 0
    worths = [worth(series) for series in corpus]
    for (value, window), own in zip(worths, scores, strict=True):
        outside = window == -1
        parts += zip(own[outside].tolist(), value[outside].tolist(), strict=True)
        for number in range(window.max(initial=-1) + 1):
            inside = np.flatnonzero(window == number)
            windows += len(inside) > 0
            # From the highest score down, a reading adds what it is worth above the best one before it.
            best = -1.0
            for place in inside[np.argsort(-own[inside], kind="stable")].tolist():
                if value[place] > best:
                    parts.append((float(own[place]), float(value[place]) - best))
                    best = float(value[place])
    levels = np.array([level for level, _ in parts])
    gain = np.array([gain for _, gain in parts])
    order = np.argsort(-levels, kind="stable")
    levels, total = levels[order], np.cumsum(gain[order])
    last = np.append(levels[1:] != levels[:-1], True)  # equal scores come together
    total = np.where(last, total, -np.inf)
    if threshold is None:
        best_at = int(np.argmax(total))
        threshold = float(levels[best_at]) if total[best_at] > 0 else np.inf
    reached = int(np.searchsorted(-levels, -threshold, "right"))
    gained = float(total[reached - 1]) if reached else 0.0
    labelled = sum(len(series.windows) for series in corpus)
    by_series = {}
    for series, (_, window), own in zip(corpus, worths, scores, strict=True):
        hit = own >= threshold
        found = len(np.unique(window[hit & (window >= 0)]))
        by_series[series.name] = (found, len(series.windows), int((hit & (window == -1)).sum()))
    return Outcome(100 * gained / max(labelled + windows, 1), threshold, by_series)


def judged(corpus: list[Series], without: Sequence[str] = ()) -> list[NDArray[np.float64]]:
    """By series the readings' scores from the production engine, with one anomaly rule. Of several readings of one
    time, as after a change of the clocks, the first is judged, and the others have its score."""
    kinds = load_kinds()
    catalog = Catalog(kinds)
    catalog.put([(n, Sensor(f"s{n}", "value", "signal.value", "")) for n in range(len(corpus))])
    rules = parse_rules('[[rule]]\nid = "anomaly"\nkind = "signal.value"\ndetector = "anomaly"\n', kinds)
    sensor = np.repeat(np.arange(len(corpus), dtype=np.int32), [len(series.at) for series in corpus])
    at = np.concatenate([series.at for series in corpus])
    value = np.concatenate([series.value for series in corpus])
    order = np.lexsort((at, sensor))
    first = np.ones(len(order), bool)
    first[1:] = (sensor[order][1:] != sensor[order][:-1]) | (at[order][1:] != at[order][:-1])
    kept = order[first]
    engine = Engine(rules, catalog)
    watches = engine.families["anomaly"]
    assert isinstance(watches, AnomalyWatches)
    watches.without = frozenset(without)
    _, update = engine.observe(Readings(sensor[kept], at[kept], at[kept], value[kept], np.zeros(len(kept), np.uint8)))
    if engine.failures or update.score is None:
        raise RuntimeError("judging failed; see the log")
    score = np.empty(len(at))
    score[order] = update.score[np.cumsum(first) - 1]
    return np.split(score, np.cumsum([len(series.at) for series in corpus])[:-1])


@dataclass(frozen=True, slots=True)
class Loop:
    """One run of a labelled test bench: `at` (µs), `value` [n, channels], `label` (bool)."""

    name: str
    at: NDArray[np.int64]
    value: NDArray[np.float64]
    label: NDArray[np.bool_]


LOOP_LEARNT: Final = 400  # samples of each run that are learnt from and not counted, as published


def read_loops(folder: Path) -> list[Loop]:
    """The runs of a folder of `*/*.csv` (`datetime;channel;…;anomaly;changepoint`); those without labels are all
    ordinary."""
    found = []
    for path in sorted(folder.glob("*/*.csv"), key=lambda path: (path.parent.name, len(path.stem), path.stem)):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        channels = [name for name in rows[0] if name not in ("datetime", "anomaly", "changepoint")]
        found.append(
            Loop(
                f"{path.parent.name}/{path.name}",
                np.array([_micros(row["datetime"]) for row in rows], np.int64),
                np.array([[float(row[name]) for name in channels] for row in rows]),
                np.array([float(row.get("anomaly", 0)) > 0 for row in rows]),
            )
        )
    return found


def judged_loops(
    loops: list[Loop], without: Sequence[str] = ()
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_], int]]:
    """By run: the samples' scores, whether an alert is open after them, and the number of alerts; from the production
    engine, with one anomaly rule over each device."""
    kinds = load_kinds()
    catalog = Catalog(kinds)
    names = [(n, c) for n, loop in enumerate(loops) for c in range(loop.value.shape[1])]
    catalog.put([(i, Sensor(f"loop{n}", f"c{c}", "signal.value", "")) for i, (n, c) in enumerate(names)])
    rules = parse_rules('[[rule]]\nid = "loop"\nkind = "signal.value"\ndetector = "anomaly"\nover = "device"\n', kinds)
    parts = []
    for i, (n, c) in enumerate(names):
        at, first = np.unique(loops[n].at, return_index=True)
        parts.append(
            Readings(np.full(len(at), i, np.int32), at, at, loops[n].value[first, c], np.zeros(len(at), np.uint8))
        )
    engine = Engine(rules, catalog)
    watches = engine.families["together"]
    assert isinstance(watches, TogetherWatches)
    watches.without = frozenset(without)
    readings = Readings.join(parts)
    told, update = engine.observe(readings)
    if engine.failures or update.score is None:
        raise RuntimeError("judging failed; see the log")
    result = []
    for n, loop in enumerate(loops):
        pivot = names.index((n, 0))
        own = readings.sensor == pivot
        score = update.score[own][np.searchsorted(readings.observed_at[own], loop.at)]
        changes = [t for t in told if t.sensor == pivot]
        after = np.array([False, *(t.after > 0 for t in changes)])
        is_open = after[np.searchsorted(np.array([t.observed_at for t in changes]), loop.at, "right")]
        result.append((score, is_open, sum(t.after > 0 for t in changes)))
    return result


def counted(flags: list[NDArray[np.bool_]], loops: list[Loop]) -> tuple[float, float, float]:
    """F1, the share of ordinary samples flagged and the share of labelled ones missed, over all samples behind those
    that each run is learnt from."""
    flag = np.concatenate([f[LOOP_LEARNT:] for f in flags])
    label = np.concatenate([loop.label[LOOP_LEARNT:] for loop in loops])
    hit = int((flag & label).sum())
    false, missed = int((flag & ~label).sum()), int((~flag & label).sum())
    return 2 * hit / max(2 * hit + false + missed, 1), false / max((~label).sum(), 1), missed / max(label.sum(), 1)


NOISES: Final[dict[str, Callable[[np.random.Generator, NDArray[np.float64]], NDArray[np.float64]]]] = {
    "normal": lambda draw, day: draw.normal(10, 1, day.shape),
    "daily": lambda draw, day: 10 + 5 * np.sin(2 * np.pi * day) + draw.normal(0, 1, day.shape),
    "skewed": lambda draw, day: draw.lognormal(0, 0.7, day.shape),
    "counts": lambda draw, day: draw.poisson(4 * np.exp(np.sin(2 * np.pi * day))).astype(float),
    "lasting": lambda draw, day: np.stack([lfilter([1], [1, -0.95], x) for x in draw.normal(0, 1, day.shape)]),
    "rain": lambda draw, day: np.where(draw.random(day.shape) < 0.02, draw.gamma(0.7, 2, day.shape).round(1), 0.0),
}


def false_alerts(
    budget: float, sensors: int = 50, days: int = 180, minutes: int = 5, together: int = 1
) -> dict[str, float]:
    """Alerts per sensor and year on series in which nothing happens, by kind of series; with `together`, per group of
    so many sensors."""
    kinds = load_kinds()
    catalog = Catalog(kinds)
    names = list(NOISES)
    count = sensors * len(names)
    catalog.put([(n, Sensor(f"s{n // together}", f"c{n % together}", "signal.value", "")) for n in range(count)])
    text = f'[[rule]]\nid = "anomaly"\nkind = "signal.value"\ndetector = "anomaly"\nbudget = {budget}\n'
    engine = Engine(parse_rules(text + ('over = "device"\n' if together > 1 else ""), kinds), catalog)
    draw = np.random.default_rng(0)
    length = days * 1440 // minutes
    at = np.arange(length) * minutes * MINUTE
    part = np.broadcast_to(at / DAY, (sensors, length))
    value = np.concatenate([NOISES[name](draw, part) for name in names]).ravel()
    sensor = np.repeat(np.arange(count, dtype=np.int32), length)
    at = np.tile(at, count)
    told, _ = engine.observe(Readings(sensor, at, at, value, np.zeros(len(at), np.uint8)))
    raised = np.bincount([t.sensor // sensors for t in told if t.after], minlength=len(names))
    watched = sensors / together * days / 365
    return {name: float(n) / watched for name, n in zip(names, raised, strict=True)}


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.detection", description=__doc__)
    options.add_argument("--nab", type=Path, metavar="PATH", help="folder of the corpus")
    options.add_argument("--skab", type=Path, metavar="PATH", help="folder of labelled runs of a pump loop")
    parts = [*LEAVE_OUT, *TOGETHER_LEAVE_OUT]
    options.add_argument("--without", action="append", default=[], choices=parts, help="leave a part out")
    options.add_argument("--ablation", action="store_true", help="leave every part out in turn")
    options.add_argument("--threshold", type=float, help="score there, instead of at the best threshold")
    options.add_argument("--quiet", type=float, metavar="BUDGET", help="count alerts on series without any anomaly")
    given = options.parse_args()
    if given.quiet is not None:
        for name, rate in false_alerts(given.quiet).items():
            print(f"{name:10} {rate:.2f} alerts per sensor and year")
        for name, rate in false_alerts(given.quiet, together=5).items():
            print(f"{name:10} {rate:.2f} alerts per group of five and year")
    if given.skab:
        _score_loops(given)
    return _score(given) if given.nab else 0


def _score_loops(given: argparse.Namespace) -> None:
    loops = read_loops(given.skab)
    _tell_loops("all parts", loops, judged_loops(loops, given.without), is_long=True)
    for part in TOGETHER_LEAVE_OUT if given.ablation else ():
        _tell_loops(f"without {part}", loops, judged_loops(loops, [*given.without, part]), is_long=False)


def _tell_loops(
    word: str, loops: list[Loop], results: list[tuple[NDArray[np.float64], NDArray[np.bool_], int]], is_long: bool
) -> None:
    labelled = [n for n, loop in enumerate(loops) if loop.label.any()]
    folders = sorted({loops[n].name.partition("/")[0] for n in labelled})
    if is_long:
        for loop, (score_, is_open, alerts) in zip(loops, results, strict=True):
            f1, false, missed = counted([is_open], [loop])
            own = counted([score_ >= 0.5], [loop])[0]
            print(
                f"{loop.name:32} alerts {alerts}, F1 {f1:.2f}, false {false:.3f}, missed {missed:.2f}; score {own:.2f}"
            )
    for folder in [*folders, ""] if len(folders) > 1 else [""]:
        chosen = [n for n in labelled if loops[n].name.startswith(folder)]
        runs = [loops[n] for n in chosen]
        f1, false, missed = counted([results[n][1] for n in chosen], runs)
        by_score, false_, missed_ = counted([results[n][0] >= 0.5 for n in chosen], runs)
        print(
            f"{word}, {folder or 'all'} ({len(runs)} runs): open alerts F1 {f1:.3f}, false {false:.3f}, missed "
            f"{missed:.3f}; score >= 0.5 F1 {by_score:.3f}, false {false_:.3f}, missed {missed_:.3f}"
        )


def _score(given: argparse.Namespace) -> int:
    corpus = read_corpus(given.nab)
    outcome = score(corpus, judged(corpus, given.without), given.threshold)
    for name, (found, windows, outside) in outcome.by_series.items():
        print(f"{name:50} {found} of {windows} windows, {outside} outside")
    print(f"score {outcome.score:.1f} at threshold {outcome.threshold:.4f}, {len(corpus)} series")
    for part in LEAVE_OUT if given.ablation else ():
        less = score(corpus, judged(corpus, [*given.without, part]), given.threshold)
        print(f"without {part:10} {less.score:.1f} at {less.threshold:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
