"""Every recorded street flood, with dry readings between: each level is raised at the first sample that its hold
allows, by a computation of its own, and nothing while dry."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import numpy as np

from alerts.packs import default_text
from alerts.rules import parse_rules
from bench.floods import Street, streets, verdicts
from twin.demo.floodnet import Flood, floods
from twin.model import HOUR, MINUTE, parse_time
from twin.units import load_kinds

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "floodnet" / "flood-events.csv"
RULES = parse_rules(default_text(), load_kinds())
DEPTH = RULES.index("road-ponding")
# The rule road-ponding, written down once more: limits in cm, holds in minutes, clear 10 % below for 10 minutes.
LIMITS = (10, 15, 25, 40)
HOLDS = (5, 5, 2, 2)
CLEAR_MINUTES = 10

Told = tuple[int, int, int]  # when, level before, level after


def recorded() -> list[Flood]:
    """All floods of the source or, where it is not at hand, those of the day that the project carries."""
    if SOURCE.exists():
        return floods(SOURCE.read_bytes())
    file = resources.files("twin.demo").joinpath("data").joinpath("floodnet-2023-12-18.readings.csv")
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for row in csv.DictReader(file.read_text("utf-8").splitlines()):
        at = parse_time(row["observed_at"])
        profiles = found.setdefault(row["device"], [])
        if not profiles or at - profiles[-1][-1][0] > HOUR:
            profiles.append([])
        profiles[-1].append((at, float(row["value"])))
    return [Flood(device, p[0][0], p) for device, profiles in found.items() for p in profiles]


def by_plain_counting(street: Street) -> list[Told]:
    """Sample by sample, level by level. Dry readings of which the last hour was dry too change nothing."""
    wet = np.flatnonzero(street.is_recorded)
    last_wet = street.at[wet[np.maximum(np.searchsorted(wet, np.arange(len(street.at)), "right") - 1, 0)]]
    matters = street.is_recorded | ((street.at - last_wet >= 0) & (street.at - last_wet <= HOUR))
    above: list[int | None] = [None] * 4
    below: list[int | None] = [None] * 4
    is_up = [False] * 4
    level, told = 0, []
    for at, depth in zip(street.at[matters].tolist(), street.depth[matters].tolist(), strict=True):
        for k in range(4):
            above[k] = (at if above[k] is None else above[k]) if depth >= LIMITS[k] else None
            below[k] = (at if below[k] is None else below[k]) if depth < 0.9 * LIMITS[k] else None
            begun, ended = above[k], below[k]
            if begun is not None and at - begun >= HOLDS[k] * MINUTE:
                is_up[: k + 1] = [True] * (k + 1)  # with a level all lower ones stand
            elif is_up[k] and ended is not None and at - ended >= CLEAR_MINUTES * MINUTE:
                is_up[k] = False
        now = max((k + 1 for k in range(4) if is_up[k]), default=0)
        if now != level:
            told.append((at, level, now))
        level = now
    return told


def test_each_level_is_raised_at_the_first_sample_that_its_hold_allows_and_nothing_while_dry() -> None:
    source = recorded()
    raised = 0
    for street in streets(source):
        said = verdicts(street, RULES)
        told = [(t.observed_at, t.before, t.after) for t in said if t.rule == DEPTH]
        assert told == by_plain_counting(street), street.device
        worse = np.array([t.observed_at for t in said if t.after > t.before], np.int64)
        assert street.is_recorded[np.searchsorted(street.at, worse)].all(), street.device
        raised += sum(before == 0 for _, before, _ in told)
    assert (len(source), raised) == (1195, 701) if SOURCE.exists() else raised > 0
