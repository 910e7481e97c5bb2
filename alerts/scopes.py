"""What a rule comes to on each sensor: its own values, those of the overrides whose scope the sensor lies in (the
narrowest last), and the limits that the sensor's asset gives.

A rule set is fitted to a catalogue once, when either changes: sensors on which a rule comes to the same share a variant
of it. Variants are numbered in the order of the set, those of one rule one after the other, its own values first; so
sorting by variant is sorting by rule. Nothing of this is on the way of a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

from alerts.rules import Override, Rule, RuleSet, disorder, never_clears, overridden, sealed
from twin.catalog import Catalog
from twin.model import LEVELS, Indices, Ints, Problem

_NOTHING: Final = np.empty(0, np.int32)
_COMMENTS: Final = frozenset({"source", "mark"})


@dataclass(frozen=True, slots=True)
class Lack:
    """A sensor whose asset does not give all that a rule (its place) takes from it: limits, or a place in a network.
    `missing`: fields of the rule; `is_watched`: other levels are there. `why`: what else is wrong."""

    sensor: int
    rule: int
    missing: tuple[str, ...]
    is_watched: bool
    why: str = ""


@dataclass(frozen=True)
class Fitted:
    """A rule set over a catalogue. `rules`: all variants; `public`: by variant, its rule's place in the set; `first`:
    by rule, its first variant, and their number at the end. `parts`: variants and the sensors (ascending) that they
    watch. `chains`: by rule, overrides, the widest first, and the sensors that they make its values for; `off`: rules
    and the sensors for which an override switches them off. `problems`: overrides that do not go together on a sensor;
    of two equally narrow ones the later in the file then counts, and of ones that contradict each other the narrowest.
    """

    rules: tuple[Rule, ...]
    public: Ints
    first: Ints
    parts: list[tuple[int, Indices]]
    chains: list[tuple[int, tuple[Override, ...], Indices]] = field(default_factory=list)
    off: list[tuple[int, Indices]] = field(default_factory=list)
    lacking: list[Lack] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _of: dict[int, dict[int, int]] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, Rule]:
        """The rules by id, with their own values."""
        return {self.rules[low].id: self.rules[low] for low in self.first[:-1].tolist()}

    def print_of(self, rule: str, sensor: int) -> int | None:
        """The fingerprint of what a rule comes to on a sensor; 0 where that is nothing, of a rule that is not the same
        everywhere; for no sensor (-1) that of its own values. None where there is no such rule."""
        place = self._places.get(rule)
        if place is None:
            return None
        low, high = int(self.first[place]), int(self.first[place + 1])
        if sensor < 0 or (high - low == 1 and place not in self._with_holes):
            return self.rules[low].fingerprint
        if place not in self._of:
            mine = [part for part in self.parts if low <= part[0] < high]
            self._of[place] = {sensor: variant for variant, sensors in mine for sensor in sensors.tolist()}
        variant = self._of[place].get(sensor)
        return 0 if variant is None else self.rules[variant].fingerprint

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self.rules[low].id: place for place, low in enumerate(self.first[:-1].tolist())}

    @cached_property
    def _with_holes(self) -> set[int]:
        return {place for place, _ in self.off} | {lack.rule for lack in self.lacking}


def fit(rules: RuleSet, catalog: Catalog, sensors_of: Callable[[Rule], Indices]) -> Fitted:
    """The rules over the catalogue's sensors; `sensors_of` gives those that a rule looks at, ascending."""
    overrides: dict[str, list[Override]] = {}
    for override in rules.overrides:
        overrides.setdefault(override.rule, []).append(override)
    scopes = _Scopes(catalog)
    variants: list[Rule] = []
    first: list[int] = []
    result = Fitted((), np.empty(0, np.int64), np.empty(0, np.int64), [])
    for place, rule in enumerate(rules.rules):
        first.append(len(variants))
        own = sorted(overrides.get(rule.id, ()), key=lambda override: override.rank)
        found: dict[int, list[Indices]] = {}
        known = {rule.fingerprint: rule}
        if rule.enabled or any(override.fields.get("enabled") is True for override in own):
            for chain, sensors in _chains(own, sensors_of(rule), scopes):
                merged = _merged(rule, chain, catalog, int(sensors[0]) if len(sensors) else -1, result.problems)
                if chain:
                    result.chains.append((place, chain, sensors))
                if not merged.enabled:
                    result.off.append((place, sensors))
                    continue
                for variant, those in _with_limits(merged, place, sensors, catalog, result.lacking):
                    known.setdefault(variant.fingerprint, variant)
                    found.setdefault(variant.fingerprint, []).append(those)
        for print_, variant in known.items():
            if print_ in found:
                result.parts.append((len(variants), np.sort(np.concatenate(found[print_]))))
            variants.append(variant)
    first.append(len(variants))
    counts = np.diff(first)
    return replace(
        result, rules=tuple(variants), public=np.repeat(np.arange(len(rules)), counts), first=np.array(first, np.int64)
    )


def effective(rules: RuleSet, catalog: Catalog, sensor: int, matcher: Callable[[Catalog], Sensors]) -> Fitted:
    """The rules fitted to this sensor alone, which then has the index 0."""
    alone = Catalog(catalog.kinds)
    alone.put([(0, catalog.sensors[sensor])])
    facts = catalog.facts.get(sensor)
    alone.describe({} if facts is None else {0: facts}, catalog.attributes)
    return fit(rules, alone, matcher(alone))


Sensors = Callable[[Rule], Indices]


def _chains(
    overrides: Sequence[Override], sensors: Indices, scopes: _Scopes
) -> list[tuple[tuple[Override, ...], Indices]]:
    """The sensors grouped by the overrides that apply to them, these as they were given."""
    if not overrides:
        return [((), sensors)]
    chains: dict[int, list[int]] = {}
    for number, override in enumerate(overrides):
        for sensor in np.intersect1d(sensors, scopes.of(override), assume_unique=True).tolist():
            chains.setdefault(sensor, []).append(number)
    groups: dict[tuple[int, ...], list[int]] = {}
    for sensor in sorted(chains):
        groups.setdefault(tuple(chains[sensor]), []).append(sensor)
    touched = np.array(sorted(chains), np.int32)
    result: list[tuple[tuple[Override, ...], Indices]] = [((), np.setdiff1d(sensors, touched).astype(np.int32))]
    for chain, those in groups.items():
        result.append((tuple(overrides[number] for number in chain), np.array(those, np.int32)))
    return result


def _merged(
    rule: Rule, chain: Sequence[Override], catalog: Catalog, example: int, problems: list[Problem]
) -> Rule:  # fmt: skip
    if not chain:
        return rule
    name = catalog.sensors[example].id
    for n, override in enumerate(chain):
        for other in chain[:n]:
            both = (override.fields.keys() & other.fields.keys()) - _COMMENTS
            if both and other.rank == override.rank:
                text = f"sensor {name} has this field from {other.place} too, which is as narrow"
                problems.append(Problem(override.place, min(both), text))
    place = f"{chain[-1].place}, on sensor {name}"
    merged = overridden(rule, [override.fields for override in chain], catalog.kinds, place, problems)
    if merged is None:
        merged = overridden(rule, [chain[-1].fields], catalog.kinds, place, [])
    return rule if merged is None else merged


def _with_limits(
    rule: Rule, place: int, sensors: Indices, catalog: Catalog, lacking: list[Lack]
) -> Iterable[tuple[Rule, Indices]]:
    """The rule with the limits that the sensors' assets give, and the sensors of each; those without are `lacking`."""
    if not rule.from_model:
        return [(rule, sensors)]
    groups: dict[tuple[float | None, ...], list[int]] = {}
    given = [limit for _, limit in rule.from_model]
    of_none = tuple(limit.limit({}) for limit in given)
    for sensor in sensors.tolist():
        facts = catalog.facts.get(sensor)
        found = tuple(limit.limit(facts.numbers) for limit in given) if facts is not None and facts.numbers else of_none
        groups.setdefault(found, []).append(sensor)
    result: list[tuple[Rule, Indices]] = []
    for limits, those in groups.items():
        variant, why = _limited(rule, limits)
        missing = tuple(name for (name, _), limit in zip(rule.from_model, limits, strict=True) if limit is None)
        if variant is not None:
            result.append((variant, np.array(those, np.int32)))
        if missing or variant is None:
            lacking += [Lack(sensor, place, missing, variant is not None, why) for sensor in those]
    return result


def _limited(rule: Rule, limits: Sequence[float | None]) -> tuple[Rule | None, str]:
    """The rule with these limits for its `from_model`; None, and why, where nothing can be judged by them."""
    levels = list(rule.levels)
    bounds = {"min": rule.min, "max": rule.max}
    for (name, _), limit in zip(rule.from_model, limits, strict=True):
        if name in bounds:
            if limit is None:
                return None, ""
            bounds[name] = limit
        elif limit is not None:
            levels[LEVELS.index(name.removeprefix("levels."))] = limit
    if rule.detector != "range" and all(limit != limit for limit in levels):
        return None, ""
    low, high = bounds["min"], bounds["max"]
    why = disorder(rule.side, rule.detector, levels)
    if low is not None and high is not None and low >= high:
        why.append("min must be below max")
    # Of these the levels are amounts, and the side tells the direction.
    if (rule.detector == "rate" or rule.parameters is not None) and any(limit <= 0 for limit in levels):
        why.append("this limit must be above 0")
    if never_clears(rule.detector, rule.side, levels, low, high, rule.clear_margin):
        why.append("the margin is so wide that the alert could never clear")
    if why:
        return None, "; ".join(why)
    four = (levels[0], levels[1], levels[2], levels[3])
    return sealed(replace(rule, levels=four, min=low, max=high, from_model=())), ""


class _Scopes:
    """Which sensors lie in a scope; each part of one is indexed when an override first asks."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._by: dict[str, dict[str, Indices]] = {}

    def of(self, override: Override) -> Indices:
        """The sensors in an override's scope, ascending."""
        found: Indices | None = None
        for name, words in override.scope:
            if name == "sensor":
                devices = self.catalog.devices
                places = (devices.get(d, {}).get(p) for d, _, p in (word.partition("/") for word in words))
                mine = np.array([place for place in places if place is not None], np.int32)
            else:
                index = self._index(name)
                mine = np.concatenate([_NOTHING, *(index[word] for word in words if word in index)])
            mine = np.unique(mine)
            found = mine if found is None else np.intersect1d(found, mine, assume_unique=True)
        return _NOTHING if found is None else found.astype(np.int32)

    def _index(self, name: str) -> dict[str, Indices]:
        if name not in self._by:
            lists: dict[str, list[int]] = {}
            for index in range(len(self.catalog)):
                for word in self._words(name, index):
                    lists.setdefault(word, []).append(index)
            self._by[name] = {word: np.array(those, np.int32) for word, those in lists.items()}
        return self._by[name]

    def _words(self, name: str, index: int) -> Iterable[str]:
        sensor, facts = self.catalog.sensors[index], self.catalog.facts.get(index)
        if name == "tag":
            return sensor.tags
        if name == "tenant":
            return (sensor.tenant,)
        if name == "asset":
            return {word for word in (sensor.asset, facts and facts.id) if word}
        parts = self.catalog.area(index).split("/")
        return ("/".join(parts[: n + 1]) for n in range(len(parts)) if parts[0])
