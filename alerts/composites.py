"""Rules over other rules: what and, or, not, windows and counts over open alerts come to, place by place.

Members' transitions are all that composites see. Kept as steps of event time, by (rule, sensor), they make when a
composite holds a matter of intervals: whatever the order in which transitions became known, the same steps give the
same composite. A place begins to be followed when a member first opens there; until then it costs nothing.

What was told is kept beside it. Steps that come after all that was told are told as they are; a late transition that
changes the past makes a place be told anew from its base, the moment before which nothing changes any more. Moments
that no transition marks (a hold or a window ends) are due once the place's frontier has passed them: its sensors'
event time where they speak, the clock a minute ago where they are silent. When they are told depends on that; their
event times do not.

Bounds: `MOST_STEPS` a (rule, sensor), what is older than the lateness, or than `KEEP` where a sensor stays silent, goes
at every checkpoint; `cut` counts the places where that came before their time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from alerts.composition import ALL_SENSORS, HERE, Composition, Group, Member, Scope
from alerts.reach import Reach
from alerts.rules import Rule, RuleSet
from alerts.words import holding
from twin.catalog import Catalog
from twin.model import (
    DAY,
    LEVELS,
    MINUTE,
    Alert,
    AlertEvent,
    Bools,
    Floats,
    Indices,
    Ints,
    Micros,
    Site,
    Transition,
    alert_id,
)
from twin.plane import LocalPlane

NEVER: Final = -(1 << 62)
FOREVER: Final = 1 << 62
PATIENCE: Final[Micros] = MINUTE  # for what a sensor that was not heard of late may still have to say
KEEP: Final[Micros] = 7 * DAY
MOST_STEPS: Final = 1000
MOST_TOLD: Final = 5  # members named in a message

Key = tuple[int, int]  # rule, sensor
Step = tuple[Micros, int]  # from then on, this level
Span = tuple[Micros, Micros]  # from, up to
Point = tuple[Micros, int, int]  # told at that event time: level from then on, how many were counted
Steps = Callable[[Key], Sequence[Step] | None]
Columns = dict[str, NDArray[Any]]
Groups = tuple[tuple[int, ...], ...]  # sensors that are counted as one
Memo = dict[Any, list[Any]]  # what several places come to alike, within one decision


@dataclass(frozen=True, slots=True)
class Clock:
    """What is known of time at `at`: by sensor, when it was last heard and its newest event time."""

    at: Micros
    heard_at: Ints
    newest: Ints


@dataclass(frozen=True, slots=True)
class Redone:
    """Members that were judged again, each from after a time on, and the transitions that came of it."""

    after: Mapping[Key, Micros]
    steps: Sequence[Transition]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be told of one place. `due`: transitions by event time; where `is_revision`, all since its base, in
    place of what was told since. `alerts`: ids of the alerts told of since the base; `standing`: the one open at it, by
    (rule, subject). What lies up to `until` was judged before."""

    due: list[Transition]
    is_revision: bool
    alerts: list[str]
    standing: dict[tuple[str, str], str]
    until: Micros
    base: Micros
    sensor: int


@dataclass(eq=False, slots=True)
class Place:
    """One place of one composite rule. `spots`: by atom, the groups of sensors that are counted one by one."""

    plan: _Plan
    subject: str
    sensor: int
    own: tuple[int, ...]
    spots: list[Groups]
    site: Site
    levels: tuple[Key, ...] = ()
    base_at: Micros = NEVER
    base_level: int = 0
    base_raised: Micros = 0
    told: list[Point] = field(default_factory=list)
    until: Micros = NEVER
    pending: Micros = FOREVER

    def level(self) -> int:
        return self.told[-1][1] if self.told else self.base_level

    def raised(self) -> Iterator[Micros]:
        """When the alerts were raised that were told of since the base."""
        level = self.base_level
        if level:
            yield self.base_raised
        for at, after, _ in self.told:
            if not level:
                yield at
            level = after


@dataclass(frozen=True, slots=True)
class Change:
    """What `Composites.apply` takes in."""

    series: dict[Key, list[Step]]
    places: list[tuple[Place, list[Point], Micros, Micros]]


@dataclass(frozen=True, slots=True)
class _Atom:
    rule: int
    at_least: int
    need: int
    window: Micros
    scope: Scope
    by_spot: bool
    is_positive: bool


_Node = int | tuple[str, tuple["_Node", ...], Micros]  # an atom's number, or a group


class _Plan:
    """A composite rule with its members as numbers of rules."""

    def __init__(self, index: int, rule: Rule, rules: RuleSet) -> None:
        assert isinstance(rule.parameters, Composition)
        self.index = index
        self.rule = rule
        self.composition = rule.parameters
        self.hold = rule.hold[rule.level - 1]
        self.clear = rule.clear_hold
        self.reach = self.composition.memory + self.hold + self.clear
        self.atoms: list[_Atom] = []
        self.counted = -1
        self._number = {rule.id: n for n, rule in enumerate(rules.rules)}
        self.tree = self._node(self.composition.holds, True)
        self.level_from = tuple(self._number[name] for name in self.composition.level_from)
        self.own_rules = {atom.rule for atom in self.atoms if atom.scope == HERE} | set(self.level_from)
        self.negated = tuple(dict.fromkeys(a.rule for a in self.atoms if not a.is_positive))

    def _node(self, part: Member | Group, is_positive: bool) -> _Node:
        if isinstance(part, Group):
            sense = is_positive is (part.op != "none")
            return part.op, tuple(self._node(p, sense) for p in part.parts), part.window
        if part == self.composition.counted:
            self.counted = len(self.atoms)
        rule, level = self._number[part.rule], int(part.at_least)
        self.atoms.append(_Atom(rule, level, part.need, part.window, part.scope, part.by_spot, is_positive))
        return len(self.atoms) - 1


class Composites:
    """All composite rules of a rule set over a catalogue.

    `sensors_of` gives, by rule, the sensors that it looks at (for a composite: where its places may be; all where it is
    not there). `decide` changes nothing that lasts; `apply` takes its change in.
    """

    def __init__(
        self,
        rules: RuleSet,
        catalog: Catalog,
        sensors_of: Mapping[int, Indices],
        reach: Reach | None = None,
        only: Bools | None = None,
    ) -> None:
        self.rules = rules
        self.catalog = catalog
        self.reach = reach
        self.cut = 0
        self._only = only  # of a replay of some sensors: only places that lie wholly among them
        composed = [(n, r) for n, r in enumerate(rules.rules) if isinstance(r.parameters, Composition) and r.enabled]
        self.plans = {n: _Plan(n, rule, rules) for n, rule in composed}
        self.members = np.zeros(len(rules), bool)
        self.conditions = np.array([rule.is_condition for rule in rules.rules], bool)
        self._sensors_of = dict(sensors_of)
        self._own: dict[int, list[_Plan]] = {}  # by member rule
        for plan in self.plans.values():
            for rule in plan.own_rules:
                self._own.setdefault(rule, []).append(plan)
            for atom in plan.atoms:
                self.members[atom.rule] = True
            self.members[list(plan.level_from)] = True
        for rule in np.flatnonzero(self.members).tolist():
            self._sensors_of.setdefault(rule, np.empty(0, np.int32))  # one that is switched off looks nowhere
        self.series: dict[Key, list[Step]] = {}
        self.places: dict[tuple[int, str], Place] = {}
        self._nowhere: set[tuple[int, str]] = set()
        # By member, lists of the places that follow it from elsewhere; places with the same sensors share a list.
        self._far: dict[Key, list[list[Place]]] = {}
        self._sharing: dict[tuple[int, int], list[Place]] = {}  # by rule and id of the groups
        self._pending: dict[Place, Micros] = {}
        self._bound = FOREVER
        self._index: dict[tuple[int, str, int], dict[str, tuple[int, ...]]] = {}
        self._trees: dict[int, tuple[Any, Indices]] = {}
        self._metres: tuple[Floats, Floats] | None = None
        self._looked_at: dict[int, frozenset[int]] = {}
        self._scopes: dict[tuple[int, Scope, tuple[int, ...]], tuple[int, ...]] = {}
        self._groups: dict[tuple[bool, tuple[int, ...]], Groups] = {}

    def split(self, told: list[Transition]) -> tuple[list[Transition], list[Transition]]:
        """Of the transitions of rules on readings, those that alerts come of, and those that composites follow."""
        if not self.plans and not self.conditions.any():
            return told, []
        members, conditions = self.members, self.conditions
        return [t for t in told if not conditions[t.rule]], [t for t in told if members[t.rule]]

    def followed(self, sensor: Indices, after: Ints) -> dict[Key, Micros]:
        """The members with steps on these sensors after a time of each, as `Redone` takes them."""
        members = np.flatnonzero(self.members).tolist()
        return {
            (rule, s): at
            for s, at in zip(sensor.tolist(), after.tolist(), strict=True)
            for rule in members
            if (steps := self.series.get((rule, s))) and steps[-1][0] > at
        }

    # Deciding

    def decide(
        self,
        steps: Sequence[Transition] = (),
        redone: Redone | None = None,
        *,
        clock: Clock | None = None,
        until: Micros | None = None,
    ) -> tuple[list[Finding], Change | None]:
        """What the members' new transitions, and the passing of time, come to. `clock`: live; `until`: everything up
        to that event time is there. A step and what it causes at once are told whatever the frontier."""
        if not self.plans:
            return [], None
        changed = self._changed(steps, redone)
        latest: dict[Place, Micros] = {}
        for key, series in changed.items():
            at = series[-1][0] if series else NEVER
            for place in self._places_of(key):
                latest[place] = max(at, latest.get(place, NEVER))
        stirred = set(latest)
        if until is not None or clock is not None:
            most = until if until is not None else clock.at if clock is not None else NEVER
            if self._bound <= most:
                for place, at in self._pending.items():
                    if at <= most:
                        latest.setdefault(place, NEVER)
        if not latest:
            return [], Change(changed, []) if changed else None

        def get(key: Key) -> Sequence[Step] | None:
            found = changed.get(key)
            return self.series.get(key) if found is None else found

        memo: Memo = {}
        spoken: dict[int, Micros] = {}
        findings: list[Finding] = []
        places: list[tuple[Place, list[Point], Micros, Micros]] = []
        for place, newest in latest.items():
            frontier = max(place.until, newest)
            if until is not None:
                frontier = max(frontier, until)
            elif clock is not None:
                frontier = max(frontier, self._frontier(place, clock, spoken))
            if place not in stirred and frontier < place.pending:
                continue
            finding, change = self._look(place, get, memo, frontier)
            places.append(change)
            if finding is not None:
                findings.append(finding)
        return findings, Change(changed, places)

    def _look(
        self, place: Place, get: Steps, memo: Memo, frontier: Micros
    ) -> tuple[Finding | None, tuple[Place, list[Point], Micros, Micros]]:
        course = self._course(place, get, memo)
        due = [point for point in course if point[0] <= frontier]
        pending = course[len(due)][0] if len(due) < len(course) else FOREVER
        points = [(at, level, count) for at, level, count, _ in due]
        change = (place, points, frontier, pending)
        known = len(place.told)
        if points == place.told:
            return None, change
        is_revision = points[:known] != place.told
        levels = [place.base_level, *(level for _, level, _ in points)]
        first = 0 if is_revision else known
        told = [
            self._transition(place, levels[n], point, get, memo) for n, point in enumerate(due[first:], first)
        ]  # fmt: skip
        rule, subject = place.plan.rule.id, place.subject
        standing = {(rule, subject): alert_id(rule, subject, place.base_raised)} if place.base_level else {}
        ids = [alert_id(rule, subject, at) for at in place.raised()] if is_revision else []
        return Finding(told, is_revision, ids, standing, place.until, place.base_at, place.sensor), change

    def _changed(self, steps: Sequence[Transition], redone: Redone | None) -> dict[Key, list[Step]]:
        """The series that are not what they were."""
        changed: dict[Key, list[Step]] = {}
        if redone is not None:
            for key, after in redone.after.items():
                changed[key] = [step for step in self.series.get(key, ()) if step[0] <= after]
            steps = [*redone.steps, *steps]
        for t in steps:
            key = (t.rule, t.sensor)
            series = changed.get(key)
            if series is None:
                series = changed[key] = list(self.series.get(key, ()))
            _append(series, t.observed_at, t.after)
        return {key: series for key, series in changed.items() if series != self.series.get(key, [])}

    def _places_of(self, key: Key) -> Iterator[Place]:
        """The places that a member's steps bear on."""
        rule, sensor = key
        for plan in self._own.get(rule, ()):
            name = self._key(plan.composition.place, sensor)
            place = self._place(plan, name) if name is not None else None
            if place is not None and (plan.index not in self._sensors_of or sensor in place.own):
                yield place
        for places in self._far.get(key, ()):
            yield from places

    def _frontier(self, place: Place, clock: Clock, spoken: dict[int, Micros]) -> Micros:
        """Up to when nothing more is expected: of a sensor that spoke within the patience, its event time; of one
        that did not, the clock less the patience. `spoken` keeps it by group of sensors."""
        found = clock.at
        for groups in place.spots:
            until = spoken.get(id(groups))
            if until is None:
                sensors = np.array([sensor for group in groups for sensor in group], np.int64)
                speaks = clock.heard_at[sensors] > clock.at - PATIENCE
                until = int(np.where(speaks, clock.newest[sensors], clock.at - PATIENCE).min(initial=clock.at))
                spoken[id(groups)] = until
            found = min(found, until)
        return found

    # What a place comes to

    def _course(self, place: Place, get: Steps, memo: Memo) -> list[tuple[Micros, int, int, Micros]]:
        """The composite's own steps from the base on: when, level from then on, how many are counted, since when it
        held; also those yet to come if nothing more happens."""
        plan = place.plan
        spans = self._spans(plan.tree, place, get, memo)
        if not spans and not place.base_level:
            return []
        base = place.base_at
        periods: list[list[Micros]] = []  # open from, up to, held since
        if place.base_level:
            periods.append([base, base, place.base_raised])
        for begin, end in spans:
            close = end if end == FOREVER else end + plan.clear
            if periods and begin <= periods[-1][1]:
                periods[-1][1] = max(periods[-1][1], close)
            elif end > begin + plan.hold and close > base:
                periods.append([max(begin + plan.hold, base), close, begin])
        # A clear that lasts ends what stood before the base, too; of what closed before it, nothing is left to tell.
        level_at = self._levels(place, get)
        counts = self._counts(place, get)
        found: list[tuple[Micros, int, int, Micros]] = []
        for n, (begin, end, since) in enumerate(periods):
            level = place.base_level if n == 0 and place.base_level else 0
            for at in [begin, *(a for a, _ in level_at if begin < a < end)]:
                new = _value_at(level_at, at)
                if new != level and at < end:
                    level = new
                    found.append((at, level, _value_at(counts, at), since))
            if end != FOREVER:
                found.append((end, 0, _value_at(counts, end), since))
        return found

    def _spans(self, node: _Node, place: Place, get: Steps, memo: Memo) -> list[Span]:
        if isinstance(node, int):
            return self._atom(node, place, get, memo)
        op, parts, window = node
        if op == "all":
            found = self._spans(parts[0], place, get, memo)
            for part in parts[1:]:
                if not found:
                    return []
                found = _both(found, self._spans(part, place, get, memo))
        else:
            found = _merged([span for part in parts for span in self._spans(part, place, get, memo)])
            if op == "none":
                found = _outside(found)
        return _lasting(found, window)

    def _atom(self, number: int, place: Place, get: Steps, memo: Memo) -> list[Span]:
        atom, groups = place.plan.atoms[number], place.spots[number]
        key = (atom.rule, atom.at_least, atom.need, atom.window, id(groups))
        if len(groups) > 1 and key in memo:
            return memo[key]
        found = [spans for group in groups if (spans := _open(atom, group, get))]
        need = atom.need if atom.need != ALL_SENSORS else len(groups)
        if len(found) < need:
            result: list[Span] = []
        elif need == 1:
            result = _merged([span for spans in found for span in spans])
        else:
            result = [
                (begin, end)
                for (begin, count), (end, _) in itertools.pairwise([*_counted(found), (FOREVER, 0)])
                if count >= need
            ]
            result = _merged(result)
        if len(groups) > 1:
            memo[key] = result
        return result

    def _levels(self, place: Place, get: Steps) -> list[Step]:
        """The level that the alert has while it is open, as steps."""
        plan = place.plan
        own = int(plan.rule.level)
        if not place.levels:
            return [(NEVER, own)]
        steps = [(at, key, level) for key in place.levels for at, level in get(key) or ()]
        current: dict[Key, int] = {}
        found = [(NEVER, own)]
        for at, group in itertools.groupby(sorted(steps), key=lambda s: s[0]):
            current.update((key, level) for _, key, level in group)
            worst = max(current.values())
            up = plan.composition.level_up
            _append(found, at, max(own, min(worst + up, len(LEVELS))) if worst else own)
        return found

    def _counts(self, place: Place, get: Steps) -> list[Step]:
        number = place.plan.counted
        if number < 0:
            return [(NEVER, 0)]
        atom = place.plan.atoms[number]
        return _counted([spans for group in place.spots[number] if (spans := _open(atom, group, get))])

    def _transition(
        self, place: Place, before: int, point: tuple[Micros, int, int, Micros], get: Steps, memo: Memo
    ) -> Transition:  # fmt: skip
        at, after, count, since = point
        plan = place.plan
        value = threshold = float("nan")
        if plan.counted >= 0:
            value, threshold = float(count), float(plan.atoms[plan.counted].need)
        evidence = self._evidence(place, at, get, memo) if after else ("", "")
        return Transition(
            plan.index, place.sensor, at, before, after, value, threshold, since, value,
            subject=None if place.sensor >= 0 else place.subject, site=place.site, evidence=evidence,
        )  # fmt: skip

    def _evidence(self, place: Place, at: Micros, get: Steps, memo: Memo) -> tuple[str, str]:
        """In words, which members hold at `at`, and since when."""
        plan, rules = place.plan, self.rules.rules
        held: dict[Key, Micros] = {}
        for atom, groups in zip(plan.atoms, place.spots, strict=True):
            if not atom.is_positive:
                continue
            key = (atom.rule, atom.at_least, atom.window, id(groups))
            found = memo.get(key)
            if found is None:
                sensors = itertools.chain.from_iterable(groups)
                found = [(*span, sensor) for sensor in sensors for span in _open(atom, (sensor,), get)]
                if len(groups) > 1:
                    memo[key] = found
            for begin, end, sensor in found:
                if begin <= at < end:
                    held.setdefault((atom.rule, sensor), begin)
        told = sorted((since, rule, sensor) for (rule, sensor), since in held.items())
        return holding(
            [(rules[rule].title, self.catalog.sensors[sensor].id, since) for since, rule, sensor in told[:MOST_TOLD]],
            len(told) - MOST_TOLD,
            [rules[rule].title for rule in plan.negated],
        )

    # Where

    def _key(self, unit: str, sensor: int) -> str | None:
        """The place of a sensor, as alerts name it."""
        known = self.catalog.sensors[sensor]
        if unit == "asset":
            return known.asset or known.device
        if unit == "sensor":
            return known.id
        if unit == "device":
            return known.device
        if unit == "city":
            return "city"
        area = self.catalog.area(sensor)
        return f"area/{area}" if area else None

    def _at(self, rule: int, unit: str, plan: _Plan | None = None) -> dict[str, tuple[int, ...]]:
        """The sensors that a rule looks at, by place; only those that the plan's own selection has."""
        limits = self._sensors_of.get(plan.index) if plan is not None else None
        key = (rule, unit, plan.index if plan is not None and limits is not None else -1)
        found = self._index.get(key)
        if found is None:
            lists: dict[str, list[int]] = {}
            sensors = self._sensors_of[rule]
            for sensor in (sensors if limits is None else np.intersect1d(sensors, limits)).tolist():
                name = self._key(unit, sensor)
                if name is not None:
                    lists.setdefault(name, []).append(sensor)
            found = self._index[key] = {name: tuple(own) for name, own in lists.items()}
        return found

    def _place(self, plan: _Plan, name: str) -> Place | None:
        """The place of a composite, from when it is first asked for; None where the members that it needs are not."""
        key = (plan.index, name)
        place = self.places.get(key)
        if place is not None or key in self._nowhere:
            return place
        place = self._found(plan, name)
        if place is None:
            self._nowhere.add(key)
            return None
        self.places[key] = place
        self._listen(place)
        return place

    def _found(self, plan: _Plan, name: str) -> Place | None:
        unit = plan.composition.place
        here = {rule: self._at(rule, unit, plan).get(name, ()) for rule in plan.own_rules}
        anchors = tuple(sorted({sensor for own in here.values() for sensor in own}))
        if not anchors:
            return None
        spots: list[Groups] = []
        for atom in plan.atoms:
            sensors_there = here[atom.rule] if atom.scope == HERE else self._scoped(atom.rule, atom.scope, anchors)
            spots.append(self._spots(sensors_there, atom.by_spot))
        if not _is_there(plan.tree, plan.atoms, spots):
            return None
        if self._only is not None:
            needed = [sensor for groups in spots for group in groups for sensor in group]
            if not self._only[needed].all():
                return None
        sensors = self.catalog.sensors
        first = sensors[anchors[0]]
        lon = lat = None
        if unit not in ("area", "city"):
            at = next((sensors[s] for s in anchors if sensors[s].lon is not None), first)
            lon, lat = at.lon, at.lat
        kind = next(sensors[group[0]].kind for groups in spots for group in groups)
        return Place(
            plan, name, anchors[0] if unit == "sensor" else -1, anchors, spots,
            Site(first.tenant, self.catalog.kinds[kind].domain, lon, lat),
            tuple((rule, sensor) for rule in plan.level_from for sensor in here[rule]),
        )  # fmt: skip

    def _scoped(self, rule: int, scope: Scope, anchors: tuple[int, ...]) -> tuple[int, ...]:
        """The sensors of a rule within a member's scope, ascending."""
        key = (rule, scope, anchors if scope.on != "city" else ())
        found = self._scopes.get(key)
        if found is None:
            found = self._scopes[key] = tuple(sorted(self._find(rule, scope, anchors)))
        return found

    def _find(self, rule: int, scope: Scope, anchors: tuple[int, ...]) -> set[int]:
        if scope.on:
            names = {self._key(scope.on, sensor) for sensor in anchors}
            at = self._at(rule, scope.on)
            return {sensor for name in names if name is not None for sensor in at.get(name, ())}
        if scope.along:
            at = self._at(rule, "asset")
            names_along: set[str] = set()
            for name in sorted({self.catalog.sensors[s].asset or self.catalog.sensors[s].device for s in anchors}):
                names_along.add(name)
                if self.reach is not None:
                    names_along |= self.reach.reached(name, scope.along, scope.within_m or None).keys()
            return {sensor for name in names_along for sensor in at.get(name, ())}
        tree, sensors = self._tree(rule)
        found = {sensor for sensor in anchors if sensor in self._looks(rule)}
        x, y = self._plane()
        for anchor in anchors if tree is not None else ():
            if x[anchor] == x[anchor] and y[anchor] == y[anchor]:
                found.update(sensors[tree.query_ball_point((x[anchor], y[anchor]), scope.within_m)].tolist())
        return found

    def _looks(self, rule: int) -> frozenset[int]:
        found = self._looked_at.get(rule)
        if found is None:
            found = self._looked_at[rule] = frozenset(self._sensors_of[rule].tolist())
        return found

    def _plane(self) -> tuple[Floats, Floats]:
        """Every sensor's place in metres; NaN for none."""
        if self._metres is None:
            lon, lat = self.catalog.lon, self.catalog.lat
            self._metres = LocalPlane.around(lon, lat).metres(lon, lat)
        return self._metres

    def _tree(self, rule: int) -> tuple[Any, Indices]:
        found = self._trees.get(rule)
        if found is None:
            x, y = self._plane()
            sensors = self._sensors_of[rule]
            sensors = sensors[np.isfinite(x[sensors]) & np.isfinite(y[sensors])]
            places = np.stack([x[sensors], y[sensors]], axis=1)
            found = self._trees[rule] = (cKDTree(places) if len(sensors) else None, sensors)
        return found

    def _spots(self, sensors: tuple[int, ...], by_spot: bool) -> Groups:
        """The sensors in groups that count once each; equal ones are one object, so that they are looked at once."""
        found = self._groups.get((by_spot, sensors))
        if found is None:
            spots: dict[Any, list[int]] = {}
            for sensor in sensors:
                spots.setdefault(self._key("asset", sensor) if by_spot else sensor, []).append(sensor)
            found = self._groups[by_spot, sensors] = tuple(tuple(group) for group in spots.values())
        return found

    def _listen(self, place: Place) -> None:
        """Have the place looked at when a member elsewhere changes."""
        for atom, groups in zip(place.plan.atoms, place.spots, strict=True):
            if atom.scope == HERE:
                continue
            sharing = self._sharing.get((atom.rule, id(groups)))
            if sharing is None:
                sharing = self._sharing[atom.rule, id(groups)] = []
                for sensor in itertools.chain.from_iterable(groups):
                    self._far.setdefault((atom.rule, sensor), []).append(sharing)
            if not sharing or sharing[-1] is not place:
                sharing.append(place)

    # Doing

    def apply(self, change: Change | None) -> None:
        if change is None:
            return
        for key, steps in change.series.items():
            if steps:
                self.series[key] = steps
            else:
                self.series.pop(key, None)
        for place, told, until, pending in change.places:
            place.told, place.until = told, until
            self._await(place, pending)
        self._bound = min(self._pending.values(), default=FOREVER)

    def _await(self, place: Place, pending: Micros) -> None:
        place.pending = pending
        if pending == FOREVER:
            self._pending.pop(place, None)
        else:
            self._pending[place] = pending

    def _look_ahead(self, places: Iterable[Place]) -> None:
        """What is next at these places, from their steps as they are."""
        memo: Memo = {}
        for place in places:
            course = self._course(place, self.series.get, memo)
            due = [(at, level, count) for at, level, count, _ in course if at <= place.until]
            if due != place.told:  # to be told anew, at the next opportunity
                self._await(place, place.until)
            else:
                self._await(place, course[len(due)][0] if len(due) < len(course) else FOREVER)
        self._bound = min(self._pending.values(), default=FOREVER)

    def open(self) -> Iterator[tuple[int, str, int]]:
        """`(rule, subject, level)` of every composite that is open."""
        for (rule, subject), place in self.places.items():
            if level := place.level():
                yield rule, subject, level

    def has(self, rule: str, subject: str) -> bool:
        """Whether the composite is judged there."""
        known = self.rules.by_id.get(rule)
        plan = self.plans.get(self.rules.index(rule)) if known is not None else None
        return plan is not None and self._place(plan, subject) is not None

    def reached_by(self) -> Mapping[int, Micros]:
        """By member rule, how far back its transitions bear on a composite."""
        found: dict[int, Micros] = {}
        for plan in self.plans.values():
            for rule in [*(atom.rule for atom in plan.atoms), *plan.level_from]:
                found[rule] = max(plan.reach, found.get(rule, 0))
        return found

    def prune(self, newest: Ints, lateness: Micros) -> None:
        """Forget what no reading within the lateness can change any more; `newest` event time by sensor."""
        low: dict[Key, Micros] = {}
        spans: dict[int, tuple[Micros, Micros]] = {}
        reached: dict[tuple[int, int], tuple[Groups, Micros]] = {}
        for place in self.places.values():
            first, last = FOREVER, NEVER
            for groups in (*place.spots, (place.own,)):
                span = spans.get(id(groups))
                if span is None:
                    times = newest[[sensor for group in groups for sensor in group]]
                    span = int(times.min(initial=FOREVER)), int(times.max(initial=0))
                    if groups[0] is not place.own:
                        spans[id(groups)] = span
                first, last = min(first, span[0]), max(last, span[1])
            horizon = max(first - lateness, last - KEEP - lateness)
            for rule in place.plan.own_rules:
                for sensor in place.own:
                    steps = self.series.get((rule, sensor))
                    if steps is not None and len(steps) > MOST_STEPS:
                        self.cut += 1
                        horizon = max(horizon, steps[-MOST_STEPS][0])
            self._move_base(place, min(horizon, place.pending, place.until))
            reach = place.base_at - place.plan.reach if place.base_at != NEVER else NEVER
            for atom, groups in zip(place.plan.atoms, place.spots, strict=True):
                key = (atom.rule, id(groups))
                known = reached.get(key)
                if known is None or reach < known[1]:
                    reached[key] = groups, reach
            for member in place.levels:
                low[member] = min(reach, low.get(member, FOREVER))
        for (rule, _), (groups, reach) in reached.items():
            for sensor in itertools.chain.from_iterable(groups):
                low[rule, sensor] = min(reach, low.get((rule, sensor), FOREVER))
        longest = self.reached_by()
        for key in list(self.series):
            rule, sensor = key
            # Of a member with no place that follows it now, one may begin to; so far back as a late reading goes.
            bound = min(low.get(key, FOREVER), int(newest[sensor]) - lateness - longest.get(rule, 0))
            steps = self.series[key]
            kept = next((n for n in range(len(steps), 0, -1) if steps[n - 1][0] <= bound), 1) - 1
            if steps[kept][0] <= bound and not steps[kept][1]:
                kept += 1
            if kept:
                self.series[key] = steps[kept:]
            if not self.series[key]:
                del self.series[key]
        self._forget()

    def _move_base(self, place: Place, to: Micros) -> None:
        if to <= place.base_at:
            return
        level = place.base_level
        for at, after, _ in place.told:
            if at >= to:
                break
            if not level:
                place.base_raised = at
            level = after
        place.told = [point for point in place.told if point[0] >= to]
        place.base_at, place.base_level = to, level

    def _forget(self) -> None:
        """Follow no more the places where nothing is."""
        idle = [
            key
            for key, place in self.places.items()
            if not place.told and not place.base_level and place.pending == FOREVER
            and not any((rule, s) in self.series for rule in place.plan.own_rules for s in place.own)
        ]  # fmt: skip
        if not idle:
            return
        for key in idle:
            del self.places[key]
        self._far.clear()
        self._sharing.clear()
        for place in self.places.values():
            self._listen(place)

    # Beginning, and beginning again

    def stand(self, alerts: Iterable[Alert], at: Micros) -> None:
        """Begin at `at` with exactly these alerts open, whatever the steps before come to."""
        open_ = {(a.rule, a.sensor if a.sensor is not None else a.asset or ""): a for a in alerts}
        for rule, subject in open_:
            self.has(rule, subject)
        for place in self.places.values():
            alert = open_.get((place.plan.rule.id, place.subject))
            place.base_at, place.until, place.told = at, at - 1, []
            place.base_level = int(alert.level) if alert is not None else 0
            place.base_raised = alert.raised_at if alert is not None else 0
        self._look_ahead(self.places.values())

    def align(self, rule: Ints, sensor: Indices, level: NDArray[np.int8], newest: Ints) -> None:
        """Bring the members' steps in line with the levels that stand open: one that is not known to be open counts as
        open from its newest reading on, one that is known and is not, as closed."""
        standing = {
            (r, s): int(v)
            for r, s, v in zip(rule.tolist(), sensor.tolist(), level.tolist(), strict=True)
            if self.members[r]
        }
        for key, now in standing.items():
            series = self.series.setdefault(key, [])
            if not series or series[-1][1] != now:
                _append(series, max(int(newest[key[1]]), series[-1][0] + 1 if series else NEVER), now)
                list(self._places_of(key))
        for key, series in self.series.items():
            if series[-1][1] and key not in standing:
                _append(series, max(int(newest[key[1]]), series[-1][0] + 1), 0)

    def begin(self, known: set[int], newest: Ints) -> None:
        """Composite rules whose fingerprint is not among the `known` come into force now: nothing before counts."""
        for place in self.places.values():
            if place.plan.rule.fingerprint not in known:
                place.base_at = max(int(newest[sensor]) for sensor in place.own)
                place.until = place.base_at - 1
        self._look_ahead(self.places.values())

    def needs(self) -> tuple[list[str], Micros]:
        """The rules of the places that are followed, and since when what was told of them matters."""
        after = FOREVER
        for place in self.places.values():
            after = min(after, place.base_raised if place.base_level else FOREVER)
            if place.base_at != NEVER:
                after = min(after, place.base_at)
            else:
                keys = [(rule, s) for rule in place.plan.own_rules for s in place.own]
                after = min(after, *(self.series[key][0][0] for key in keys if key in self.series), FOREVER)
        return sorted({place.plan.rule.id for place in self.places.values()}), after

    def settle(self, events: Iterable[AlertEvent]) -> None:
        """Take over what was told, by event time: that is what counts."""
        told: dict[tuple[int, str], list[Point]] = {}
        for event in events:
            if event.rule in self.rules.by_id:
                point = (event.observed_at, 0 if event.transition == "cleared" else event.level, int(event.value or 0))
                key = (self.rules.index(event.rule), event.sensor or event.asset or "")
                told.setdefault(key, []).append(point)
        for key, place in self.places.items():
            place.told = [point for point in told.get(key, []) if point[0] >= place.base_at]
            place.until = max([place.until, *(at for at, _, _ in place.told)])
        self._look_ahead(self.places.values())

    def save(self) -> Columns:
        """The state as arrays, by rules' fingerprints."""
        prints = [rule.fingerprint for rule in self.rules.rules]
        steps = [(prints[r], s, at, level) for (r, s), series in self.series.items() for at, level in series]
        rows = [
            (prints[p.plan.index], p.base_at, p.base_level, p.base_raised, p.until) for p in self.places.values()
        ]  # fmt: skip
        told = [(n, *point) for n, p in enumerate(self.places.values()) for point in p.told]
        return {
            "steps": np.array(steps, np.int64).reshape(-1, 4),
            "places": np.array(rows, np.int64).reshape(-1, 5),
            "subjects": np.array([p.subject for p in self.places.values()], np.str_),
            "told": np.array(told, np.int64).reshape(-1, 4),
            "plans": np.array([prints[index] for index in self.plans], np.int64),
        }

    def load(self, saved: Columns, rule_of: Mapping[int, int]) -> None:
        """Take a saved state in; what is of rules or sensors that are no more is left out."""
        if not saved:
            return
        for fingerprint, sensor, at, level in saved["steps"].tolist():
            rule = rule_of.get(fingerprint, -1)
            if rule >= 0 and self.members[rule] and sensor in self._looks(rule):
                self.series.setdefault((rule, sensor), []).append((at, level))
        for key in list(self.series):
            list(self._places_of(key))  # so that they are followed
        found: dict[int, Place] = {}
        rows = zip(saved["places"].tolist(), saved["subjects"].tolist(), strict=True)
        for n, ((fingerprint, base_at, base_level, base_raised, until), subject) in enumerate(rows):
            plan = self.plans.get(rule_of.get(fingerprint, -1))
            place = self._place(plan, subject) if plan is not None else None
            if place is not None:
                found[n] = place
                place.base_at, place.base_level, place.base_raised = base_at, base_level, base_raised
                place.until, place.told = until, []
        for n, at, level, count in saved["told"].tolist():
            if n in found:
                found[n].told.append((at, level, count))
        # A place that was not followed then has its sensors from elsewhere: what they did there was not done here.
        followed = set(found.values())
        for place in self.places.values():
            if place not in followed:
                own = (self.series.get((rule, s)) for rule in place.plan.own_rules for s in place.own)
                place.base_at = max((steps[-1][0] for steps in own if steps), default=NEVER)
                place.until = place.base_at - 1
        self._look_ahead(self.places.values())


# Steps and intervals


def _append(series: list[Step], at: Micros, level: int) -> None:
    """Add a step that comes last; one that changes nothing is none."""
    if series and series[-1][0] >= at:
        while series and series[-1][0] >= at:
            series.pop()
    if (series[-1][1] if series else 0) != level:
        series.append((at, level))


def _value_at(steps: Sequence[Step], at: Micros) -> int:
    value = 0
    for since, new in steps:
        if since > at:
            break
        value = new
    return value


def _open(atom: _Atom, group: tuple[int, ...], get: Steps) -> list[Span]:
    """When a member is open on any sensor of a group, or was within its window."""
    found: list[Span] = []
    for sensor in group:
        steps = get((atom.rule, sensor))
        if not steps:
            continue
        since: Micros | None = None
        for at, level in steps:
            if level >= atom.at_least:
                since = at if since is None else since
            elif since is not None:
                found.append((since, at + atom.window))
                since = None
        if since is not None:
            found.append((since, FOREVER))
    return _merged(found) if len(found) > 1 else found


def _merged(spans: list[Span]) -> list[Span]:
    if len(spans) < 2:
        return spans
    spans = sorted(spans)
    found = [spans[0]]
    for begin, end in spans[1:]:
        if begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _lasting(spans: list[Span], window: Micros) -> list[Span]:
    if not window:
        return spans
    return _merged([(begin, end if end == FOREVER else end + window) for begin, end in spans])


def _both(one: list[Span], other: list[Span]) -> list[Span]:
    found: list[Span] = []
    a = b = 0
    while a < len(one) and b < len(other):
        begin, end = max(one[a][0], other[b][0]), min(one[a][1], other[b][1])
        if begin < end:
            found.append((begin, end))
        if one[a][1] < other[b][1]:
            a += 1
        else:
            b += 1
    return found


def _outside(spans: list[Span]) -> list[Span]:
    ends = [NEVER, *(end for _, end in spans)]
    begins = [*(begin for begin, _ in spans), FOREVER]
    return [(end, begin) for end, begin in zip(ends, begins, strict=True) if end < begin]


def _counted(groups: Sequence[list[Span]]) -> list[Step]:
    """How many of the groups hold, as steps."""
    deltas: dict[Micros, int] = {}
    for spans in groups:
        for begin, end in spans:
            deltas[begin] = deltas.get(begin, 0) + 1
            deltas[end] = deltas.get(end, 0) - 1
    found: list[Step] = []
    count = 0
    for at in sorted(deltas):
        count += deltas[at]
        _append(found, at, count)
    return found


def _is_there(node: _Node, atoms: Sequence[_Atom], spots: Sequence[Groups]) -> bool:
    """Whether the sensors are there that the expression needs."""
    if isinstance(node, int):
        return len(spots[node]) >= max(atoms[node].need, 1)
    op, parts, _ = node
    found = [_is_there(part, atoms, spots) for part in parts]
    return any(found) if op == "any" else all(found)
