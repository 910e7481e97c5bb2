"""Who is told what, and when: decides from the plan, the alerts as they stand and what was told before. Pure; what it
decides is written down by `twin.notifying` in the transaction of the alert events that it was decided from.

A change of an alert waits a little (`wait`) for others of its group, then all of them are one notice for each
receiver. A group is an incident, or for alerts in none what the route's `group` names, asset and rule by default. More
of a group that was told of already waits for `interval`, but for what is worse, red, or the end of all of it.
Where nobody acknowledges, the next stage is told after `escalate_after`, and all of it again every `repeat`.

Alerts with a flag of `HELD` are not told of: what would have been sent is written down as held, and sent if they are
still active when the flag is gone. Quiet hours hold back in the same way, by receiver.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alerts.holds import HELD
from alerts.notify.notice import Notice, is_active, worst_first
from alerts.notify.plan import Plan, Receiver, Route
from twin.model import HOUR, LEVELS, MINUTE, Alert, AlertState, Level, Micros
from twin.telling import Delivery, Group, HeldBack, Watched

LOOK_AGAIN: Final = HOUR  # at what is held: the end of a hold is an event, so this is for safety only
TOGETHER: Final = MINUTE  # escalations and repetitions of a group that are due so close are one notice
MOST_ALERTS: Final = 500  # in one notice; more are several
OVER_BEFORE: Final = "over before it was told, and the receiver wants no end / 通知前已解除，且接收端不收解除"
CLEARED_WHILE: Final = "cleared while held back / 保留期间已解除"


@dataclass(frozen=True, slots=True)
class Facts:
    """What routes look at: the alert, what is known of its sensor and asset, and the incident it is in. `shown`: the
    alert as HTTP gives it. `area`: the asset's, `district/street/grid`."""

    alert: Alert
    shown: Mapping[str, Any]
    kind: str | None = None
    tags: tuple[str, ...] = ()
    area: str = ""
    incident: str | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to be written down: a new one, or (`id`) one that was held back. `state`: waiting, held or lapsed;
    `next_at`: when it may go, or be looked at again."""

    receiver: str
    notice: Notice
    state: str
    next_at: Micros
    reason: str | None = None
    id: str | None = None

    def delivery(self) -> Delivery:
        """As it is written down."""
        return delivery(self.receiver, self.notice, self.state, self.next_at, self.reason, id_=self.id)


def delivery(
    receiver: str, notice: Notice, state: str, next_at: Micros, reason: str | None = None,
    instead_of: str | None = None, id_: str | None = None,
) -> Delivery:  # fmt: skip
    """A notice for a receiver as it is written down."""
    ids = tuple(str(alert["id"]) for alert in notice.alerts)
    level = LEVELS.index(notice.level) + 1
    return Delivery(
        receiver, notice.kind, level, notice.group, notice.incident, ids, notice.as_json(), state, next_at, reason,
        instead_of, id_,
    )  # fmt: skip


@dataclass(slots=True)
class Decision:
    """What is to be written down. `lapsed`: held deliveries that nobody needs any more, and why."""

    due: list[Due] = field(default_factory=list)
    lapsed: list[tuple[str, str]] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    groups: dict[str, tuple[Micros, int]] = field(default_factory=dict)
    unrouted: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known when deciding: facts by alert; `reached`: by alert, the receivers that were told of it; what is
    held back; groups by key, `active` counting their alerts of which nothing is pending."""

    facts: Mapping[str, Facts]
    reached: Mapping[str, Collection[str]]
    held: Sequence[HeldBack]
    groups: Mapping[str, Group]


def fits(route: Route, facts: Facts, level: int) -> bool:
    """Whether a route takes an alert, were it of this level."""
    alert = facts.alert
    area = tuple(part for part in facts.area.split("/") if part)
    has: dict[str, Collection[str]] = {
        "level": (LEVELS[level - 1],),
        "domain": (alert.domain,),
        "tenant": (alert.tenant,),
        "tag": facts.tags,
        "rule": (alert.rule,),
        "asset": (alert.asset or "",),
        "kind": (facts.kind or "",),
        "area": {*area, *("/".join(area[:n]) for n in range(1, len(area) + 1))},
    }
    if any(not set(words) & set(has[name]) for name, words in route.where.items()):
        return False
    if route.box is None:
        return True
    if alert.lon is None or alert.lat is None:
        return False
    west, south, east, north = route.box
    return west <= alert.lon <= east and south <= alert.lat <= north


def routes_of(plan: Plan, facts: Facts, level: int) -> list[Route]:
    """The routes that take an alert of this level: the first that fits, and those after one that goes on."""
    taken = []
    for route in plan.routes:
        if fits(route, facts, level):
            taken.append(route)
            if not route.goes_on:
                break
    return taken


def on_duty(plan: Plan, names: Iterable[str], at: Micros) -> tuple[list[str], list[str]]:
    """Receivers and people behind names of receivers and rosters, at a moment."""
    receivers: dict[str, None] = {}
    people: dict[str, None] = {}
    for name in names:
        if name in plan.rosters:
            who, persons = plan.rosters[name].on_duty(at)
            receivers.update(dict.fromkeys(who))
            people.update(dict.fromkeys(persons))
        else:
            receivers[name] = None
    return list(receivers), list(people)


def stage_names(plan: Plan, facts: Facts, level: int, stage: int) -> list[str]:
    """Who is told at a stage of escalation (0: at first): what the routes say, or whoever the next higher level would
    go to. Nobody where there is no such stage."""
    routes = routes_of(plan, facts, level)
    names: dict[str, None] = {}
    for route in routes:
        if stage == 0:
            names.update(dict.fromkeys(route.receivers))
        elif route.escalate:
            names.update(dict.fromkeys(route.escalate[stage - 1] if stage <= len(route.escalate) else ()))
    if stage > 0 and routes and not any(route.escalate for route in routes):
        higher = level + stage
        if higher <= Level.RED or (level == Level.RED and stage == 1):
            for route in routes_of(plan, facts, min(higher, Level.RED)):
                names.update(dict.fromkeys(route.receivers))
    return list(names)


def escalates_after(plan: Plan, facts: Facts, level: int) -> Micros | None:
    """How long the next stage waits, by the routes that name who that is, or by all of them; the shortest."""
    routes = routes_of(plan, facts, level)
    several = [route for route in routes if route.escalate] or routes
    return min((after for route in several if (after := route.escalate_after[level - 1]) is not None), default=None)


def repeating(plan: Plan, facts: Facts, level: int) -> tuple[list[str], Micros | None]:
    """Who is told again where nobody acknowledges, and how often: those of the routes that do not say never."""
    names: dict[str, None] = {}
    times = []
    for route in routes_of(plan, facts, level):
        every = route.repeat[level - 1]
        if every is not None:
            names.update(dict.fromkeys(route.receivers))
            times.append(every)
    return list(names), min(times, default=None)


def group_of(route: Route | None, facts: Facts) -> str:
    """The key of the group that an alert is told with."""
    if facts.incident is not None:
        return f"incident:{facts.incident}"
    alert = facts.alert
    has = {
        "asset": alert.asset or alert.sensor or "", "rule": alert.rule, "sensor": alert.sensor or alert.asset or "",
        "domain": alert.domain, "tenant": alert.tenant, "area": facts.area,
    }  # fmt: skip
    return "|".join(f"{name}:{has[name]}" for name in (route.group if route else ("asset", "rule")))


def first_due(plan: Plan, facts: Facts, changed_at: Micros) -> Micros:
    """When a change that was seen at a moment is to be told, without regard to what was told before."""
    routes = routes_of(plan, facts, _level(facts.alert))
    wait = min((route.wait[_level(facts.alert) - 1] or 0 for route in routes), default=0)
    return changed_at + wait


def holds_of(alert: Alert) -> list[str]:
    return sorted(HELD & set(alert.flags)) if alert.state.is_active else []


def _level(alert: Alert) -> int:
    return max(1, int(alert.level or alert.peak_level))


def news(watched: Watched, alert: Alert) -> str | None:
    """What there is to tell of an alert: `raised`, `level`, `cleared` or nothing."""
    if alert.state.is_active:
        if not watched.told_active:
            return "raised"
        return "level" if _level(alert) != watched.told_level else None
    return "cleared" if watched.told_active or watched.told_level == 0 else None


def decide(plan: Plan, watched: Sequence[Watched], standing: Standing, at: Micros) -> Decision:
    """What is to be told now of these alerts. All watched alerts with something pending have to be among them, so that
    what belongs together is told together."""
    return _Desk(plan, standing, at).decide(watched)


class _Desk:
    def __init__(self, plan: Plan, standing: Standing, at: Micros) -> None:
        self.plan = plan
        self.standing = standing
        self.at = at
        self.result = Decision()
        self.used: set[str] = set()  # held deliveries that were taken up
        self.held_of: defaultdict[str, list[HeldBack]] = defaultdict(list)  # by alert, and by group
        for row in standing.held:
            for key in (*row.alerts, f"group {row.group}"):
                self.held_of[key].append(row)
        self.settled: Counter[str] = Counter()  # by group, alerts that had something pending that is no news

    def decide(self, watched: Sequence[Watched]) -> Decision:
        pending: defaultdict[str, list[Watched]] = defaultdict(list)
        late: dict[str, list[Watched]] = {"escalation": [], "repeat": []}
        for w in watched:
            facts = self.standing.facts.get(w.alert)
            if facts is None:
                self.result.finished.append(w.alert)
                continue
            self.result.watched.append(w)
            if not facts.alert.state.is_active and not w.told_level and self._is_held(w.alert):
                w.told_level = _level(facts.alert)  # held from its beginning to its end: there is nothing to tell
            if news(w, facts.alert) is None:
                group = w.group if facts.incident is None else f"incident:{facts.incident}"
                self.settled[group] += w.told_active and w.due_at is not None
                w.changed_at = w.due_at = None
            elif w.due_at is not None or not holds_of(facts.alert):
                if w.due_at is None:
                    w.due_at = self.at
                route = next(iter(routes_of(self.plan, facts, _level(facts.alert))), None)
                pending[group_of(route, facts)].append(w)
            if facts.alert.state is not AlertState.ACTIVE_UNACKNOWLEDGED:
                w.escalate_at = w.repeat_at = None
        for group, members in pending.items():
            if any(w.due_at is not None and w.due_at <= self.at for w in members):
                self._flush(group, members)
        for w in self.result.watched:
            if w.due_at is None and w.escalate_at is not None and w.escalate_at <= self.at + TOGETHER:
                late["escalation"].append(w)
            if w.due_at is None and w.repeat_at is not None and w.repeat_at <= self.at + TOGETHER:
                late["repeat"].append(w)
        self._remind("escalation", late["escalation"])
        self._remind("repeat", late["repeat"])
        self._look_at_held()
        for w in self.result.watched:
            if w.next_at is None and not self.standing.facts[w.alert].alert.state.is_active:
                self.result.finished.append(w.alert)
        gone = set(self.result.finished)
        self.result.watched = [w for w in self.result.watched if w.alert not in gone]
        return self.result

    # News

    def _flush(self, group: str, members: list[Watched]) -> None:
        alerts = {w.alert: self.standing.facts[w.alert].alert for w in members}
        held = [w for w in members if holds_of(alerts[w.alert])]
        free = [w for w in members if not holds_of(alerts[w.alert])]
        for w in held:
            self._hold(group, w)
        silent = [w for w in free if self._was_held_to_its_end(w)]
        untold = {w.alert for w in silent}
        free = [w for w in free if w.alert not in untold]
        for w in silent:
            w.told_level, w.told_active, w.due_at, w.changed_at = _level(alerts[w.alert]), False, None, None
        if not free:
            return
        known = self.standing.groups.get(group, Group())
        active = known.active + self.settled[group] + sum(alerts[w.alert].state.is_active for w in free)
        until = self._postponed(free, known, active)
        if until is not None:
            for w in free:
                w.due_at = until
            return
        by_receiver: defaultdict[str, list[Watched]] = defaultdict(list)
        people: dict[str, None] = {}
        for w in free:
            receivers, persons = self._receivers(w)
            if not receivers and not w.told_level:
                self.result.unrouted += 1
            people.update(dict.fromkeys(persons))
            for name in receivers:
                by_receiver[name].append(w)
        is_new = not known.active and not self.settled[group] and all(not w.told_active for w in free)
        kind = "resolved" if not active else "alert" if is_new else "update"
        goes_at: dict[str, Micros] = {}
        for name, concerned in by_receiver.items():
            receiver = self.plan.receivers[name]
            shown = [w for w in concerned if receiver.resolved or alerts[w.alert].state.is_active]
            missed = [] if receiver.resolved else [
                w.alert for w in concerned if not w.told_level and not alerts[w.alert].state.is_active
            ]  # fmt: skip
            if missed:
                notice = self._notice("resolved", group, missed, active, people, 0, {})
                self.result.due.append(Due(name, notice, "lapsed", self.at, OVER_BEFORE))
            if not shown:
                continue
            ids = [w.alert for w in shown]
            gone_at = self._tell(receiver, kind, group, ids, active, people, 0, self._told(shown))
            for id_ in ids:
                goes_at[id_] = min(gone_at, goes_at.get(id_, gone_at))
        worst = max(_level(alerts[w.alert]) for w in free)
        self.result.groups[group] = (self.at, worst)
        for w in free:
            self._note(w, alerts[w.alert], group, goes_at.get(w.alert, self.at))

    def _was_held_to_its_end(self, w: Watched) -> bool:
        """Whether an alert was held back before it was told of and is over now: nobody is told, but it is on record."""
        alert = self.standing.facts[w.alert].alert
        if alert.state.is_active or w.told_level:
            return False
        held = sorted(HELD & set(alert.flags))
        if not held:
            return False
        receivers, people = self._receivers(w)
        for name in receivers:
            notice = self._notice("resolved", w.group, [w.alert], 0, people, 0, {})
            self.result.due.append(Due(name, notice, "lapsed", self.at, f"{', '.join(held)}; {CLEARED_WHILE}"))
        return True

    def _is_held(self, alert: str) -> bool:
        return bool(self.held_of.get(alert))

    def _hold(self, group: str, w: Watched) -> None:
        """Write down what would have been sent, and look again later."""
        reason = ", ".join(holds_of(self.standing.facts[w.alert].alert))
        w.due_at = None
        receivers, people = self._receivers(w)
        if not receivers:
            return
        for name in receivers:
            if any(row.receiver == name for row in self.held_of.get(w.alert, ())):
                continue
            notice = self._notice("alert", group, [w.alert], 1, people, 0, self._told([w]))
            self.result.due.append(Due(name, notice, "held", self.at + LOOK_AGAIN, reason))

    def _postponed(self, members: list[Watched], known: Group, active: int) -> Micros | None:
        """Until when more of a group that was told of lately waits; None if it is told now."""
        if known.told_at is None or not active:
            return None
        facts = [self.standing.facts[w.alert] for w in members]
        for one in facts:
            if one.alert.state.is_active and (_level(one.alert) > known.level or _level(one.alert) == Level.RED):
                return None
        intervals = [r.interval for one in facts for r in routes_of(self.plan, one, _level(one.alert))]
        until = known.told_at + min(intervals, default=0)
        return until if until > self.at else None

    def _receivers(self, w: Watched) -> tuple[list[str], list[str]]:
        """Whom news of an alert concern, and the people on duty there."""
        facts = self.standing.facts[w.alert]
        reached = [name for name in self.standing.reached.get(w.alert, ()) if name in self.plan.receivers]
        if not facts.alert.state.is_active and w.told_level:
            return reached, []
        names, people = on_duty(
            self.plan, stage_names(self.plan, facts, _level(facts.alert), 0), self.at
        )  # fmt: skip
        return list(dict.fromkeys([*names, *(reached if w.told_active else ())])), people

    def _note(self, w: Watched, alert: Alert, group: str, goes_at: Micros) -> None:
        """Write down that an alert was told of as it stands; the time to acknowledge runs from when the first receiver
        gets it, which may be the end of quiet hours."""
        level = _level(alert)
        w.told_level, w.told_active, w.told_at, w.group = level, alert.state.is_active, self.at, group
        w.changed_at = w.due_at = w.escalate_at = w.repeat_at = None
        w.stage = 0
        facts = self.standing.facts[w.alert]
        if alert.state is not AlertState.ACTIVE_UNACKNOWLEDGED:
            return
        after, (_, repeat) = escalates_after(self.plan, facts, level), repeating(self.plan, facts, level)
        if after is not None and stage_names(self.plan, facts, level, 1):
            w.escalate_at = goes_at + after
        if repeat is not None:
            w.repeat_at = goes_at + repeat

    def _told(self, members: Iterable[Watched]) -> dict[str, str | None]:
        return {w.alert: LEVELS[w.told_level - 1] if w.told_active else None for w in members}

    # Not acknowledged

    def _remind(self, kind: str, several: list[Watched]) -> None:
        """Tell the next stage, or the same receivers again, of what nobody acknowledged, by group."""
        groups: defaultdict[tuple[str, int], list[Watched]] = defaultdict(list)
        for w in several:
            groups[w.group, w.stage].append(w)
        for (group, stage), members in groups.items():
            times = [w.escalate_at if kind == "escalation" else w.repeat_at for w in members]
            if min(at for at in times if at is not None) > self.at:
                continue
            by_receiver: defaultdict[str, list[Watched]] = defaultdict(list)
            people: dict[str, None] = {}
            for w in members:
                facts = self.standing.facts[w.alert]
                level = _level(facts.alert)
                if holds_of(facts.alert) or not routes_of(self.plan, facts, level):
                    self._put_off(w, kind, self.at + 5 * MINUTE)
                    continue
                if kind == "escalation":
                    after = escalates_after(self.plan, facts, level)
                    if after is None:  # a new plan says never
                        w.escalate_at = None
                        continue
                    w.stage += 1
                    more = stage_names(self.plan, facts, level, w.stage + 1)
                    w.escalate_at = self.at + after if more else None
                    whom = stage_names(self.plan, facts, level, w.stage)
                else:
                    whom, repeat = repeating(self.plan, facts, level)
                    w.repeat_at = None if repeat is None else self.at + repeat
                names, persons = on_duty(self.plan, whom, self.at)
                people.update(dict.fromkeys(persons))
                for name in names:
                    by_receiver[name].append(w)
            for name, concerned in by_receiver.items():
                ids = [w.alert for w in concerned]
                number = stage + 1 if kind == "escalation" else stage
                self._tell(self.plan.receivers[name], kind, group, ids, len(ids), people, number, self._told(concerned))

    def _put_off(self, w: Watched, kind: str, until: Micros) -> None:
        if kind == "escalation":
            w.escalate_at = until
        else:
            w.repeat_at = until

    # Held back

    def _look_at_held(self) -> None:
        """Let go what quiet hours held back, and let lapse what ended while it was held."""
        for row in self.standing.held:
            if row.id in self.used:
                continue
            if row.receiver not in self.plan.receivers:
                self.result.lapsed.append((row.id, "there is no such receiver any more / 接收端已不存在"))
                continue
            facts = {id_: self.standing.facts[id_] for id_ in row.alerts if id_ in self.standing.facts}
            active = [id_ for id_ in row.alerts if id_ in facts and facts[id_].alert.state.is_active]
            known = [
                id_ for id_ in row.alerts
                if id_ not in active and id_ in facts and row.receiver in self.standing.reached.get(id_, ())
            ]  # fmt: skip
            if not active and not known:
                self.result.lapsed.append((row.id, CLEARED_WHILE))
            elif row.next_at is not None and row.next_at <= self.at:
                free = [id_ for id_ in active if not holds_of(facts[id_].alert)]
                receiver = self.plan.receivers[row.receiver]
                ids = [*free, *(known if receiver.resolved else ())]
                still = [id_ for id_ in active if id_ not in free]
                if still and not free:
                    reason = ", ".join(sorted({flag for id_ in still for flag in holds_of(facts[id_].alert)}))
                    notice = self._notice("alert", row.group, still, len(still), (), 0, {})
                    self.result.due.append(
                        Due(row.receiver, notice, "held", self.at + LOOK_AGAIN, reason, row.id)
                    )  # fmt: skip
                elif ids:
                    self.used.add(row.id)
                    kind = "resolved" if not free else "update" if row.kind == "resolved" else row.kind
                    self._tell(receiver, kind, row.group, ids, len(free), (), row.stage, {}, row)
                else:
                    self.result.lapsed.append((row.id, CLEARED_WHILE))

    # Deliveries

    def _notice(
        self, kind: str, group: str, ids: Sequence[str], active: int, people: Iterable[str], stage: int,
        told: Mapping[str, str | None],
    ) -> Notice:  # fmt: skip
        facts = [self.standing.facts[id_] for id_ in ids]
        shown = worst_first([{**one.shown, "told_level": told.get(one.alert.id)} for one in facts])
        lit = [alert for alert in shown if is_active(alert)] or list(shown)
        incident = next((one.incident for one in facts if one.incident is not None), None)
        persons = tuple(
            {"name": p.name, "mobile": p.mobile, "mail": p.mail} for p in map(self.plan.people.__getitem__, people)
        )
        level = max((str(alert["level"]) for alert in lit), key=LEVELS.index)
        return Notice(kind, level, group, self.at, shown, active, incident, stage, persons, self.plan.zone)

    def _tell(
        self, receiver: Receiver, kind: str, group: str, ids: Sequence[str], active: int, people: Iterable[str],
        stage: int, told: Mapping[str, str | None], row: HeldBack | None = None,
    ) -> Micros:  # fmt: skip
        """Write down a delivery; what was held back for this receiver of the same goes with it. When it may go."""
        goes_at = self.at
        ids = list(dict.fromkeys(ids))
        rows = [] if row is None else [row]
        told_of, seen = set(ids), {one.id for one in rows} | self.used
        for other in [one for key in (*ids, f"group {group}") for one in self.held_of.get(key, ())]:
            if other.receiver != receiver.name or other.id in seen:
                continue
            seen.add(other.id)
            facts = {id_: self.standing.facts.get(id_) for id_ in other.alerts if id_ not in told_of}
            extra = [one.alert for one in facts.values() if one is not None and one.alert.state.is_active]
            if not any(holds_of(alert) for alert in extra):
                ids += [alert.id for alert in extra]
                told_of.update(alert.id for alert in extra)
                rows.append(other)
        people = list(people)
        for first in range(0, len(ids), MOST_ALERTS):
            notice = self._notice(kind, group, ids[first : first + MOST_ALERTS], active, people, stage, told)
            quiet = None if receiver.quiet is None else self.plan.quiets[receiver.quiet]
            until = None if quiet is None else quiet.until(self.at, LEVELS.index(notice.level) + 1)
            again = rows.pop(0).id if rows and not first else None
            if again is not None:
                self.used.add(again)
            if until is None:
                self.result.due.append(Due(receiver.name, notice, "waiting", self.at, None, again))
            else:
                goes_at = max(goes_at, until)
                reason = f"quiet hours {quiet.name if quiet else ''}"
                self.result.due.append(Due(receiver.name, notice, "held", until, reason, again))
        for other in rows:
            self.used.add(other.id)
            self.result.lapsed.append((other.id, "told together with another / 已并入另一条通知"))
        return goes_at
