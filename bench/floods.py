"""Recorded street floods with dry readings between them: when the default pack's rule on ponding speaks, and when not.

    python -m bench.floods ../shared/data/floodnet

The floods are New York's (FloodNet, NYC Open Data aq7i-eu5q), each a profile of one sensor's depths, some a minute.
Between two floods of a sensor, where the source has nothing, it reads 0 every five minutes here.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from alerts.judge import judge
from alerts.packs import default_text
from alerts.rules import RuleSet, parse_rules
from twin.catalog import Catalog
from twin.demo.floodnet import Flood, floods
from twin.model import HOUR, LEVELS, MINUTE, Bools, Floats, Ints, Readings, Sensor, Transition
from twin.units import conversion, load_kinds

EVERY: Final = 5 * MINUTE
AROUND: Final = HOUR  # dry before a sensor's first flood and after its last
KIND: Final = "drainage.ponding_depth"


@dataclass(frozen=True, slots=True)
class Street:
    """All readings of one sensor, ascending: `at` (µs), `depth` (cm), and which are of a recorded flood."""

    device: str
    at: Ints
    depth: Floats
    is_recorded: Bools


def streets(source: list[Flood]) -> Iterator[Street]:
    """The sensors with a flood, one after the other; of equal times the first in the source counts."""
    factor, _ = conversion("in", "cm") or (2.54, 0.0)
    by_device: dict[str, dict[int, float]] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for flood in source:
        samples = by_device.setdefault(flood.device, {})
        for at, inches in flood.profile:
            samples.setdefault(at, inches)
        times = [at for at, _ in flood.profile]
        spans.setdefault(flood.device, []).append((min(times), max(times)))
    for device in sorted(by_device):
        samples = by_device[device]
        wet_at = np.array(sorted(samples), np.int64)
        depth = np.array([samples[at] for at in wet_at.tolist()]) * factor
        dry: list[Ints] = []
        end = 0
        for first, last in sorted(spans[device]):
            if not end:
                end = first - AROUND - EVERY
            dry.append(np.arange(end + EVERY, first, EVERY, dtype=np.int64))  # nothing where floods overlap
            end = max(end, last)
        dry.append(np.arange(end + EVERY, end + AROUND, EVERY, dtype=np.int64))
        dry_at = np.concatenate(dry)
        at = np.concatenate([wet_at, dry_at])
        order = np.argsort(at, kind="stable")
        is_recorded = np.arange(len(at))[order] < len(wet_at)
        yield Street(device, at[order], np.concatenate([depth, np.zeros(len(dry_at))])[order], is_recorded)


def verdicts(street: Street, rules: RuleSet) -> list[Transition]:
    """What the production engine says of one street."""
    kinds = load_kinds()
    catalog = Catalog(kinds)
    catalog.put([(0, Sensor(street.device, "depth", KIND, kinds[KIND].unit))])
    n = len(street.at)
    readings = Readings(np.zeros(n, np.int32), street.at, street.at, street.depth, np.zeros(n, np.uint8))
    return judge(rules, catalog, readings).transitions


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.floods", description=__doc__.partition("\n")[0])
    options.add_argument("folder", type=Path, help="with flood-events.csv")
    given = options.parse_args()
    source = floods((given.folder / "flood-events.csv").read_bytes())
    rules = parse_rules(default_text(), load_kinds())
    reached: dict[str, Counter[str]] = {}
    recorded = dry = while_dry = sensors = 0
    for street in streets(source):
        sensors += 1
        recorded += int(street.is_recorded.sum())
        dry += int((~street.is_recorded).sum())
        for told in verdicts(street, rules):
            place = int(np.searchsorted(street.at, told.observed_at))
            if told.after > told.before:
                while_dry += not street.is_recorded[place]
                of_rule = reached.setdefault(rules.rules[told.rule].id, Counter())
                of_rule.update([*(["alerts"] if told.before == 0 else []), *LEVELS[told.before : told.after]])
    print(f"{len(source):,} floods of {sensors} sensors, {recorded:,} recorded samples, {dry:,} dry readings between")
    for rule, counted in reached.items():
        levels = ", ".join(f"{level} {counted[level]}" for level in LEVELS)
        print(f"{rule}: {counted['alerts']} alerts; levels reached: {levels}")
    print(f"raised or made worse by a dry reading: {while_dry}")


if __name__ == "__main__":
    main()
