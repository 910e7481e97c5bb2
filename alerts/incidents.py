"""Incidents (事件): alerts that belong together by cause, network, place and time, with the probable root of all.

Pure. `IncidentBook.take` is given what each alert event told, one by one in the order of `seq`, so the outcome follows
from that order alone, however the events were batched. What belongs to what is decided when an alert is first seen and
stays, until people merge or split; which of an incident's alerts is the root follows from those that it has.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from alerts.causes import (
    ALONG_M,
    AROUND_M,
    CAUSES,
    EFFECTS,
    EXPLAINS,
    FAMILY,
    FAR_SIGNS,
    NEAR_FAMILIES,
    NEAR_IN_TIME,
    NEAR_M,
    SIGNS,
    SPREAD_M,
    Row,
)
from alerts.reach import Reach
from twin.incident import Entry, Incident, Member
from twin.model import DAY, SECOND, AlertState, Conflict, Level, Micros, NotFound

KEPT: Final[Micros] = DAY  # an incident that closed longer before the newest alert takes no more in
CANDIDATES: Final = 24  # looked at as the root of an incident; of one of more than MANY alerts, FEW
MANY, FEW = 1000, 8
CROWD: Final = 64  # of one incident's alerts around a place, or on an asset, the newest so many are looked at
FAR_KEPT: Final = 256  # far-reaching signs that are looked through
SERIOUS: Final = 10  # so many affected assets make an incident a level worse [E]
TOGETHER: Final[Micros] = 60 * SECOND  # beginnings no further apart count as one: then the most upstream is first
FAR_M: Final = 10_000.0  # no row of the table looks as far
METRES: Final = 111_320.0  # a degree of latitude


class Told(NamedTuple):
    """What one alert event tells, with what the alert is about. `subject`: its sensor, or the group its asset names.
    `sign`: a key of `alerts.causes.SIGNS`. `since`: where the run that led to the alert began."""

    seq: int
    id: str
    alert: str
    rule: str
    subject: str
    asset: str | None
    sign: str
    tenant: str
    domain: str
    transition: str
    state: AlertState
    level: int
    observed_at: Micros
    since: Micros
    raised_at: Micros
    lon: float | None = None
    lat: float | None = None
    place: str = ""
    title_zh: str = ""
    title_en: str = ""
    flags: tuple[str, ...] = ()
    replaces: str | None = None


class Reason(NamedTuple):
    """Why some of an incident's alerts are in it."""

    zh: str
    en: str
    alerts: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What can be said of an incident now. `root`: the alert that probably caused the others; `first`: the one raised
    first. `explained`: by alert, the row (its Chinese and English) by which the root explains it. `causes`: the alerts
    that explain some, the root first, and how many."""

    root: Member | None
    first: Member | None
    level: int
    peak: int
    title_zh: str
    title_en: str
    reasons: tuple[Reason, ...]
    causes: tuple[tuple[Member, int], ...]
    explained: Mapping[str, tuple[str, str]]
    alerts: int
    active: int
    unacknowledged: int
    held: int
    assets: tuple[str, ...]
    domains: tuple[str, ...]


class _Link(NamedTuple):
    """Why an alert belongs to an incident; the strongest decides."""

    rank: int
    why: str
    by: str | None


class IncidentBook:
    """The incidents that are open or closed lately, with all of their alerts.

    Bounds: what `forget` leaves, namely open incidents and those closed within `KEPT` before the newest alert;
    `FAR_KEPT` far-reaching signs. `changed`, `touched` and `entries` grow until `drained`.
    """

    def __init__(self, pipes: Reach) -> None:
        self._pipes = pipes
        self.incidents: dict[str, Incident] = {}
        self.members: dict[str, Member] = {}
        self.newest: Micros = 0
        self.number = 0
        self.changed: dict[str, None] = {}  # incidents, in the order of their change
        self.touched: dict[str, None] = {}  # alerts
        self.entries: list[Entry] = []
        self._reaches: dict[str, _Reached] = {}  # of far-reaching causes, until drained
        # Where members are looked for: by asset, by sign (the far-reaching), around a place by sign.
        self._on: dict[str, dict[str, Member]] = {}
        self._far: dict[str, dict[str, Member]] = {sign: {} for sign in FAR_SIGNS}
        self._around: dict[tuple[int, int], dict[tuple[str, str], dict[str, Member]]] = {}
        self._by_sign: dict[str, dict[str, Member]] = {}

    def load(self, incidents: Iterable[Incident], newest: Micros, number: int) -> None:
        """Take in incidents as they were stored, with their members, unless they are known."""
        self.newest, self.number = max(self.newest, newest), max(self.number, number)
        found = sorted((i for i in incidents if i.id not in self.incidents), key=lambda i: i.number)
        for incident in found:
            self.incidents[incident.id] = incident
            incident.members = _in_order(incident.members)
            incident.active = sum(m.is_active for m in incident.members.values())
        # In the order in which they came, as without a restart.
        for member in sorted((m for i in found for m in i.members.values()), key=lambda m: m.seq):
            self.members[member.alert] = member
            self._index(member)
        if found and len(found) < len(self.incidents):  # old ones come behind newer ones
            for index, keys in (
                (self._on, {m.asset or m.subject for i in found for m in i.members.values()}),
                (self._far, set(self._far)),
                (self._by_sign, {m.sign for i in found for m in i.members.values()}),
            ):
                for key in keys:
                    index[key] = _in_order(index[key])

    def forget(self) -> None:
        """Let go of what no alert can join any more."""
        for incident in [i for i in self.incidents.values() if i.state != "open" and not self._is_recent(i)]:
            del self.incidents[incident.id]
            for member in incident.members.values():
                self.members.pop(member.alert, None)
                self._unindex(member)

    def _is_recent(self, incident: Incident) -> bool:
        """Whether a closed incident may still take something in."""
        return incident.closed_at is not None and incident.closed_at >= self.newest - KEPT

    def drained(self) -> tuple[list[str], list[str], list[Entry]]:
        """The incidents and alerts changed since the last call, and what happened."""
        result = list(self.changed), list(self.touched), self.entries
        self.changed, self.touched, self.entries = {}, {}, []
        self._reaches.clear()
        return result

    # Events

    def take(self, told: Told) -> None:
        """Take in one alert event."""
        member = self.members.get(told.alert)
        if told.transition == "withdrawn":
            if member is not None:
                self._take_back(member, told)
            return
        if member is None:
            if told.transition == "raised" or told.state.is_active:
                self._enter(told)
            return
        before = member.is_active
        if told.transition == "raised":  # again, after it was taken back
            member.is_withdrawn, member.cleared_at = False, None
            member.since, member.raised_at, member.raised_by = told.since, told.raised_at, told.id
            member.worsened_at = told.observed_at
        elif told.transition == "escalated":
            member.worsened_at = max(member.worsened_at, told.observed_at)
        member.level, member.peak = told.level, max(member.peak, told.level)
        member.state, member.flags = told.state.value, told.flags
        if told.state.is_active:
            member.cleared_at = None
        elif before or member.cleared_at is None:
            member.cleared_at = max(told.observed_at, member.raised_at)
        self._settle(member, before, told.observed_at)

    def _take_back(self, member: Member, told: Told) -> None:
        before = member.is_active
        member.state, member.flags = told.state.value, told.flags
        if told.replaces == member.raised_by:
            member.is_withdrawn = True
            member.cleared_at = member.cleared_at or told.observed_at
        elif told.state.is_active:
            member.cleared_at = None
        self._settle(member, before, told.observed_at)

    def _settle(self, member: Member, before: bool, at: Micros) -> None:
        """Bring an alert's incident to what its alerts now are; `before`: whether the alert was active."""
        self.touched[member.alert] = None
        incident = self.incidents[member.incident]
        incident.active += member.is_active - before
        if incident.state != "open" and (member.is_withdrawn or incident.state == "withdrawn"):
            incident.state = "closed" if incident.alerts else "withdrawn"
        self._restate(incident, at, member.alert)

    def _restate(self, incident: Incident, at: Micros, alert: str | None = None) -> None:
        """Open while an alert is active, whatever it was before, unless people ended it."""
        self.changed[incident.id] = None
        if incident.ended_by is not None or (incident.state == "open") is (incident.active > 0):
            return
        if incident.active:
            incident.state, incident.closed_at = "open", None
            self._note(incident, at, "reopened", alert)
            return
        alerts = incident.alerts
        incident.state = "closed" if alerts else "withdrawn"
        incident.closed_at = max((m.cleared_at or m.raised_at for m in alerts), default=at)
        self._note(incident, incident.closed_at, incident.state, alert)

    def _enter(self, told: Told) -> None:
        """An alert that is new here: into the incidents that it belongs to, which become one, or into one of its
        own."""
        member = Member(
            told.alert, told.seq, told.rule, told.subject, told.asset, told.sign, told.tenant, told.domain, told.since,
            told.raised_at, told.id, told.observed_at, told.level, told.level, told.state.value, told.lon, told.lat,
            told.place, told.title_zh, told.title_en, flags=told.flags,
        )  # fmt: skip
        if not told.state.is_active:
            member.cleared_at = max(told.observed_at, member.raised_at)
        self.newest = max(self.newest, member.raised_at)
        links = self._links(member)
        if links:
            into = self._join(links)
            member.why, member.by = links[into.id].why, links[into.id].by
            what = "joined"
        else:
            self.number += 1
            into = Incident(_id("incident", member.alert), self.number, member.since)
            if into.id in self.incidents:  # its alert was split off, withdrawn and raised again
                into.id = _id("incident", member.alert, str(self.number))
            self.incidents[into.id] = into
            what = "opened"
        member.incident = into.id
        into.members[member.alert] = member
        into.opened_at = min(into.opened_at, member.since)
        self.members[member.alert] = member
        self._index(member)
        self._note(into, member.raised_at, what, member.alert)
        self._settle(member, False, told.observed_at)

    def _join(self, links: dict[str, _Link]) -> Incident:
        """Make one of the incidents linked, but of those that people keep apart: there the strongest link decides, the
        older incident of equal ones."""
        order = sorted(links, key=lambda id_: (-links[id_].rank, self.incidents[id_].number))
        chosen: list[Incident] = []
        for id_ in order:
            incident = self.incidents[id_]
            if not any(incident.id in other.apart for other in chosen):
                chosen.append(incident)
        oldest = min(chosen, key=lambda incident: incident.number)
        best = max((links[i.id] for i in chosen), key=lambda link: link.rank)
        for other in chosen:
            if other is not oldest:
                self._merge(oldest, other, self.newest, None, None)
        links[oldest.id] = best
        return oldest

    def _merge(self, into: Incident, other: Incident, at: Micros, by: str | None, note: str | None) -> None:
        moved = list(other.members.values())
        for member in moved:
            if by is not None:
                member.why, member.by = "hand", None
        self._move(moved, other, into)
        for id_ in other.apart - {into.id}:
            into.apart.add(id_)
            if id_ in self.incidents:
                self.incidents[id_].apart.add(into.id)
                self.changed[id_] = None
        into.opened_at = min(into.opened_at, other.opened_at)
        if into.confirmed_by is None:
            into.confirmed_by, into.confirmed_at = other.confirmed_by, other.confirmed_at
        other.state, other.merged_into, other.closed_at = "merged", into.id, at
        for incident, what in ((other, "merged"), (into, "took_in")):
            self._note(incident, at, what, None, by, note, into.id if incident is other else other.id)
        if by is not None and into.active:
            into.ended_by = None
        self._restate(into, at)

    def _move(self, moved: Sequence[Member], source: Incident, into: Incident) -> None:
        """Put alerts of one incident into another, all in the order of `seq`."""
        for member in moved:
            self._unplace(member)
            del source.members[member.alert]
            member.incident = into.id
            into.members[member.alert] = member
            self.touched[member.alert] = None
        into.members = _in_order(into.members)
        for incident in (source, into):
            incident.active = sum(m.is_active for m in incident.members.values())
        cells = {(_cell(m.lon, m.lat), m.sign) for m in moved if m.lon is not None and m.lat is not None}
        for member in moved:
            self._place(member)
        for cell, sign in cells:
            crowds = self._around[cell]
            crowds[sign, into.id] = _in_order(crowds[sign, into.id])

    # What belongs together

    def _links(self, m: Member) -> dict[str, _Link]:
        """The incidents that an alert belongs to, and why."""
        found: dict[str, _Link] = {}
        for other in self._same(m):
            self._link(found, other, 6, "same")
        for other in self._causes_and_effects(m, found):
            self._link(found, other, SIGNS[other.sign].rank, "cause")
        if found or SIGNS[m.sign].family not in NEAR_FAMILIES:
            return found
        for other in self._near(m):
            self._link(found, other, 0, "near")
        if not found and m.asset is not None:
            for asset in self._pipes.reached(m.asset, "both", ALONG_M):
                for other in self._on.get(asset, {}).values():
                    if SIGNS[other.sign].family == SIGNS[m.sign].family and self._is_near(m, other):
                        self._link(found, other, 0, "along")
        return found

    def _link(self, found: dict[str, _Link], other: Member, rank: int, why: str) -> None:
        known = found.get(other.incident)
        if known is None or rank > known.rank:
            found[other.incident] = _Link(rank, why, other.alert)

    def _is_open_to(self, other: Member) -> bool:
        """Whether the incident of a member takes alerts in."""
        incident = self.incidents[other.incident]
        return incident.ended_by is None and (incident.state == "open" or self._is_recent(incident))

    def _same(self, m: Member) -> Iterator[Member]:
        """What was told of the same asset, the same rule first, of what can have one cause: a device's own troubles
        are not its asset's."""
        standing = islice(reversed(self._on.get(m.asset or m.subject, {}).values()), CROWD)
        others: list[Member] = []
        # Chatter, and what late data put in the place of another: where the one before went, even if by hand.
        for other in standing:
            if other.rule == m.rule and other.subject == m.subject and _in_time(m, other) and self._is_open_to(other):
                yield other
                return
            if not other.is_withdrawn:
                others.append(other)
        is_device = SIGNS[m.sign].rank == 0
        for other in others:
            if (SIGNS[other.sign].rank == 0) is is_device and _in_time(m, other) and self._is_open_to(other):
                yield other

    def _causes_and_effects(self, m: Member, found: Mapping[str, _Link]) -> Iterator[Member]:
        seen = set(found)
        for sign, others in self._far.items():
            for other in others.values() if (sign, m.sign) in EXPLAINS else ():
                if self._is_new(other, seen) and self._reach_of(other).row(m) is not None:
                    seen.add(other.incident)
                    yield other
        if m.sign in self._far:
            reach = self._reach_of(m)
            for sign in EFFECTS[m.sign]:
                for other in self._by_sign.get(sign, {}).values():
                    if self._is_new(other, seen) and reach.touches(other):
                        seen.add(other.incident)
                        yield other
            return
        for sign, crowd in self._crowds(m, {*CAUSES[m.sign], *EFFECTS[m.sign]} - self._far.keys(), seen):
            is_cause, is_effect = (sign, m.sign) in EXPLAINS, (m.sign, sign) in EXPLAINS
            for other in crowd:
                if self._is_new(other, seen) and (
                    (is_cause and self.explains(other, m) is not None)
                    or (is_effect and self.explains(m, other) is not None)
                ):
                    seen.add(other.incident)
                    yield other
                    break

    def _is_new(self, other: Member, seen: set[str]) -> bool:
        return other.incident not in seen and not other.is_withdrawn and self._is_open_to(other)

    def _near(self, m: Member) -> Iterator[Member]:
        seen: set[str] = set()
        for _, crowd in self._crowds(m, FAMILY[m.sign], seen):
            for other in crowd:
                if _metres(m, other) <= NEAR_M and self._is_near(m, other):
                    seen.add(other.incident)
                    yield other
                    break

    def _is_near(self, m: Member, other: Member) -> bool:
        """Of two that are near: whether they are so in time, and the incident is not yet spread wide."""
        if other.is_withdrawn or not _in_time(m, other) or not self._is_open_to(other):
            return False
        first = next(iter(self.incidents[other.incident].members.values()))
        return not _metres(m, first) > SPREAD_M  # nan where one is not on the map

    def _crowds(
        self, m: Member, signs: Collection[str], seen: Collection[str]
    ) -> Iterator[tuple[str, Iterator[Member]]]:
        """What is around a place, by sign (one of `signs`) and incident, the newest `CROWD` of each; not of incidents
        in `seen`."""
        if m.lon is None or m.lat is None:
            return
        x, y = _cell(m.lon, m.lat)
        for cell in ((x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
            crowds = self._around.get(cell)
            wanted = [key for key in crowds if key[0] in signs] if crowds else []
            if len(wanted) > 1:  # as they would be after a restart
                wanted.sort(key=lambda key: (self.incidents[key[1]].number, key[0]))
            for sign, incident in wanted:
                if crowds is not None and incident not in seen:
                    yield sign, islice(reversed(crowds[sign, incident].values()), CROWD)

    def _reach_of(self, cause: Member) -> _Reached:
        found = self._reaches.get(cause.alert)
        if found is None:
            found = self._reaches[cause.alert] = _Reached(self._pipes, cause)
        return found

    def explains(self, cause: Member, effect: Member) -> Row | None:
        """The row of the table by which one alert explains another, if there is one."""
        return _Reached(self._pipes, cause).row(effect)

    def _index(self, m: Member) -> None:
        self._on.setdefault(m.asset or m.subject, {})[m.alert] = m
        self._by_sign.setdefault(m.sign, {})[m.alert] = m
        if m.sign in self._far:
            far = self._far[m.sign]
            far[m.alert] = m
            while len(far) > FAR_KEPT:
                del far[next(iter(far))]
        self._place(m)

    def _place(self, m: Member) -> None:
        if m.lon is not None and m.lat is not None:
            self._around.setdefault(_cell(m.lon, m.lat), {}).setdefault((m.sign, m.incident), {})[m.alert] = m

    def _unindex(self, m: Member) -> None:
        _drop(self._on, m.asset or m.subject, m.alert)
        _drop(self._by_sign, m.sign, m.alert)
        self._far.get(m.sign, {}).pop(m.alert, None)
        self._reaches.pop(m.alert, None)
        self._unplace(m)

    def _unplace(self, m: Member) -> None:
        if m.lon is not None and m.lat is not None:
            cell = _cell(m.lon, m.lat)
            _drop(self._around.get(cell, {}), (m.sign, m.incident), m.alert)
            if cell in self._around and not self._around[cell]:
                del self._around[cell]

    # People

    def find(self, id_: str) -> Incident:
        """An incident that is known here. Raises `NotFound`."""
        incident = self.incidents.get(id_)
        if incident is None:
            raise NotFound(f"no incident {id_} / 没有事件 {id_}")
        return incident

    def merge(self, id_: str, others: Sequence[str], at: Micros, by: str | None, note: str | None) -> Incident:
        """Make the `others` part of one. Raises `NotFound`, `Conflict`."""
        into = self.find(id_)
        found = [self.find(other) for other in dict.fromkeys(others)]
        if into in found:
            raise Conflict(f"{id_} cannot become part of itself / 事件不能并入自身")
        for incident in (into, *found):
            if incident.state == "merged":
                raise Conflict(f"{incident.id} is part of {incident.merged_into} / 事件已并入 {incident.merged_into}")
        for other in found:
            into.apart.discard(other.id)
            other.apart.discard(into.id)
            self._merge(into, other, at, by or "", note)
        return into

    def split(self, id_: str, alerts: Sequence[str], at: Micros, by: str | None, note: str | None) -> Incident:
        """Take some alerts out of an incident into one of their own, which keeps apart from it. Raises `NotFound`,
        `Conflict`."""
        incident = self.find(id_)
        parted = [incident.members[alert] for alert in dict.fromkeys(alerts) if alert in incident.members]
        unknown = [alert for alert in alerts if alert not in incident.members]
        if unknown:
            raise NotFound(f"no alert {unknown[0]} in incident {id_} / 事件 {id_} 中没有报警 {unknown[0]}")
        if not parted or len(parted) == len(incident.members):
            raise Conflict("some alerts must go and some stay / 必须只拆出部分报警")
        self.number += 1
        new = Incident(_id("split", id_, str(self.number), *(m.alert for m in parted)), self.number, 0)
        self.incidents[new.id] = new
        for member in parted:
            member.why, member.by = "hand", None
        self._move(parted, incident, new)
        new.apart = {incident.id, *incident.apart}
        for other in new.apart:
            if other in self.incidents:
                self.incidents[other].apart.add(new.id)
                self.changed[other] = None
        for each in (incident, new):
            each.opened_at = min(m.since for m in each.members.values())
        self._note(incident, at, "split", None, by, note, new.id)
        self._note(new, at, "opened", None, by, note, incident.id)
        for each in (incident, new):
            self._restate(each, at)
        return new

    def note(self, id_: str, at: Micros, by: str | None, note: str | None) -> Incident:
        """Add a remark. Raises `NotFound`."""
        incident = self.find(id_)
        self._note(incident, at, "noted", None, by, note)
        return incident

    def confirm(self, id_: str, at: Micros, by: str | None, note: str | None) -> Incident:
        """Somebody says that it is so. Raises `NotFound`, `Conflict`."""
        incident = self.find(id_)
        if incident.state in ("merged", "withdrawn"):
            raise Conflict(f"the incident is {incident.state} / 事件状态为 {incident.state}")
        incident.confirmed_by, incident.confirmed_at = by or "", at
        self._note(incident, at, "confirmed", None, by, note)
        return incident

    def close(self, id_: str, at: Micros, by: str | None, note: str | None) -> Incident:
        """End it for good: it takes nothing more in. Raises `NotFound`; `Conflict` while an alert of it is active that
        nobody holds back."""
        incident = self.find(id_)
        if incident.state in ("merged", "withdrawn") or incident.ended_by is not None:
            raise Conflict("the incident is closed already / 事件已关闭")
        if any(m.is_active and m.counts for m in incident.members.values()):
            raise Conflict("alerts of the incident are active / 事件中仍有活动报警")
        if incident.state == "open":
            incident.state, incident.closed_at = "closed", at
        incident.ended_by = by or ""
        self._note(incident, at, "ended", None, by, note)
        return incident

    def _note(
        self, incident: Incident, at: Micros, what: str, alert: str | None = None, by: str | None = None,
        note: str | None = None, other: str | None = None,
    ) -> None:  # fmt: skip
        self.changed[incident.id] = None
        self.entries.append(Entry(incident.id, at, what, alert, by, note, other))

    # What can be said of one

    def summary(self, incident: Incident) -> Summary:
        """Root, severity, title and reasons, as follows from the alerts that the incident has now."""
        alerts = incident.alerts
        counted = [m for m in alerts if m.counts]
        active = [m for m in alerts if m.is_active]
        assets = tuple(dict.fromkeys(m.asset or m.subject for m in alerts))
        level = _severity([(m.level, m) for m in counted if m.is_active])
        causes, explained = self._root(alerts)
        root = causes[0][0] if causes else None
        reasons = tuple(_reasons(causes, alerts, explained))
        zh, en = _title(root, alerts, explained) if incident.state != "merged" else _MERGED
        return Summary(
            root=root,
            first=min(alerts, key=lambda m: (m.raised_at, m.alert), default=None),
            level=level,
            peak=max(level, _severity([(m.peak, m) for m in counted])),
            title_zh=zh,
            title_en=en,
            reasons=reasons,
            causes=tuple(causes),
            explained={alert: (row.zh, row.en) for alert, row in explained.items()},
            alerts=len(alerts),
            active=len(active),
            unacknowledged=sum(m.state.endswith("unacknowledged") for m in alerts),
            held=len(alerts) - len(counted),
            assets=assets,
            domains=tuple(sorted({m.domain for m in alerts})),
        )

    def _root(self, alerts: list[Member]) -> tuple[list[tuple[Member, int]], dict[str, Row]]:
        """The alerts that explain others, the probable root first, with how many they explain; and what the root
        explains. The root is the highest in rank of those that explain at least half as many as any does; of equal ones
        one that explains the others, then the earliest, then the most upstream. Where nothing explains anything it is
        the earliest, most upstream one."""
        if len(alerts) == 1:
            return [(alerts[0], 0)], {}
        signs = Counter(m.sign for m in alerts)
        candidates = [
            m for m in alerts
            if any((m.sign, sign) in EXPLAINS and (sign != m.sign or n > 1) for sign, n in signs.items())
        ]  # fmt: skip
        candidates.sort(key=lambda m: (-SIGNS[m.sign].rank, *_by_time(m)))
        told: list[tuple[Member, dict[str, Row]]] = []
        for candidate in candidates[: FEW if len(alerts) > MANY else CANDIDATES]:
            reach = self._reach_of(candidate)
            rows = {m.alert: row for m in alerts if m is not candidate and (row := reach.row(m)) is not None}
            if rows:
                told.append((candidate, rows))
        if not told:
            first = self._first(alerts)
            return [(m, 0) for m in alerts if m is first], {}
        most = max(len(rows) for _, rows in told)
        able = [(m, rows) for m, rows in told if 2 * len(rows) >= most]
        rank = max(SIGNS[m.sign].rank for m, _ in able)
        able = [(m, rows) for m, rows in able if SIGNS[m.sign].rank == rank]
        # One that is explained by another without explaining it is no root, where there is another.
        heads = [
            (m, rows) for m, rows in able
            if not any(m.alert in others and other.alert not in rows for other, others in able)
        ] or able  # fmt: skip
        by_alert = {m.alert: rows for m, rows in heads}
        root = self._first([m for m, _ in heads])
        assert root is not None
        rest = sorted(
            ((m, len(rows)) for m, rows in told if m is not root),
            key=lambda one: (-SIGNS[one[0].sign].rank, -one[1], *_by_time(one[0])),
        )
        return [(root, len(by_alert[root.alert])), *rest], by_alert[root.alert]

    def _first(self, members: Sequence[Member]) -> Member | None:
        """The earliest; of those that begin together, the one with the most others downstream of it."""
        if not members:
            return None
        order = sorted(members, key=_by_time)
        together = [m for m in order[:CANDIDATES] if m.since <= order[0].since + TOGETHER]
        if len(together) == 1:
            return order[0]

        def below(member: Member) -> int:
            reached = self._pipes.reached(member.asset, "downstream") if member.asset is not None else {}
            return sum(other.asset in reached for other in together if other.asset != member.asset)

        return max(together, key=below)


class _Reached:
    """What one alert can explain: its network's answers, asked for when needed."""

    def __init__(self, pipes: Reach, cause: Member) -> None:
        self._pipes = pipes
        self._cause = cause
        self._maps: dict[tuple[str, float], Mapping[str, float]] = {}
        self._is_known: bool | None = None

    def row(self, effect: Member) -> Row | None:
        """The row by which it explains an alert, in place and in time."""
        cause = self._cause
        for row in EXPLAINS.get((cause.sign, effect.sign), ()):
            ends = cause.since + row.after
            if cause.cleared_at is not None:
                ends = min(ends, cause.cleared_at + row.tail)
            # One that stood before is explained only if it became worse.
            if max(effect.since, effect.worsened_at) < cause.since - row.slack or effect.since > ends:
                continue
            if effect.since < cause.since - row.slack and effect.worsened_at <= effect.raised_at:
                continue
            if self._reaches(row, effect):
                return row
        return None

    def touches(self, effect: Member) -> bool:
        """Whether it lies where this could explain it, and stood when this began or began after: one that stood
        already is of the same incident, though not explained."""
        cause = self._cause
        if effect.is_withdrawn or not _in_time(cause, effect):
            return False
        return any(self._reaches(row, effect) for row in EXPLAINS.get((cause.sign, effect.sign), ()))

    def _reaches(self, row: Row, effect: Member) -> bool:
        cause = self._cause
        if cause.asset is not None and effect.asset is not None:
            if cause.asset == effect.asset:
                return True
            if row.along is not None:
                if self._is_known is None:
                    self._is_known = self._pipes.knows(cause.asset)
                if self._is_known:
                    if effect.asset in self._map(row):
                        return True
                    # The plane speaks for what is in no network only.
                    return _metres(cause, effect) <= row.near_m and not self._pipes.knows(effect.asset)
        return _metres(cause, effect) <= row.near_m

    def _map(self, row: Row) -> Mapping[str, float]:
        assert row.along is not None
        assert self._cause.asset is not None
        key = row.along, row.within_m
        found = self._maps.get(key)
        if found is None:
            most = None if math.isinf(row.within_m) else row.within_m
            found = self._maps[key] = self._pipes.reached(self._cause.asset, row.along, most)
        return found


def _severity(alerts: Sequence[tuple[int, Member]]) -> int:
    """The worst level, one worse where `SERIOUS` assets are affected; 0 of none."""
    worst = max((level for level, _ in alerts), default=0)
    is_wide = len({m.asset or m.subject for _, m in alerts}) >= SERIOUS
    return min(worst + is_wide, int(Level.RED)) if worst else 0


def _by_time(m: Member) -> tuple[Micros, Micros, str, str]:
    return m.since, m.raised_at, m.subject, m.alert


def _in_order(members: dict[str, Member]) -> dict[str, Member]:
    return {m.alert: m for m in sorted(members.values(), key=lambda m: m.seq)}


def _in_time(a: Member, b: Member) -> bool:
    """Whether the times of two alerts are no further apart than `NEAR_IN_TIME`."""
    return max(a.since, b.since) - min(a.ends, b.ends) <= NEAR_IN_TIME


def _metres(a: Member, b: Member) -> float:
    """The distance in the plane (beyond `FAR_M` at least so much); NaN where one of them is not on the map."""
    if a.lon is None or a.lat is None or b.lon is None or b.lat is None:
        return math.nan
    y = (a.lat - b.lat) * METRES
    if not -FAR_M <= y <= FAR_M:
        return abs(y)
    return math.hypot((a.lon - b.lon) * METRES * math.cos(math.radians((a.lat + b.lat) / 2)), y)


def _cell(lon: float, lat: float) -> tuple[int, int]:
    """Cells at least `AROUND_M` wide: by bands of whole degrees of latitude, so that neighbours fit together."""
    width = METRES * max(math.cos(math.radians(min(abs(math.floor(lat)) + 1, 89))), 0.01)
    return math.floor(lon * width / AROUND_M), math.floor(lat * METRES / AROUND_M)


def _drop(index: dict[Any, dict[str, Member]], key: Any, alert: str) -> None:
    members = index.get(key)
    if members is not None:
        members.pop(alert, None)
        if not members:
            del index[key]


def _id(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()


# Words

_BESIDE: Final = ("{}与之同处同时发生", "{} about the same place and time")
_CONTRIBUTES: Final = ("{}也可能有影响", "{} may have contributed")
_BY_HAND: Final = ("{}由人工归并", "{} put here by hand")
_MERGED: Final = ("已并入其他事件", "Part of another incident")


def _several(sign: str, count: int) -> tuple[str, str]:
    known = SIGNS[sign]
    return f"{count} 条{known.zh}报警", f"{count} {known.many_en if count > 1 else known.en}"


def _reasons(
    causes: Sequence[tuple[Member, int]], alerts: Sequence[Member], explained: Mapping[str, Row]
) -> Iterator[Reason]:
    """Why the others belong to the root: what it explains, and what is here for something else."""
    able = {member.alert for member, _ in causes}
    groups: Counter[tuple[str, str, str]] = Counter()
    for member in alerts:
        if causes and member is causes[0][0]:
            continue
        row = explained.get(member.alert)
        if row is not None:
            words = row.zh, row.en
        elif member.why == "hand":
            words = _BY_HAND
        else:
            words = _CONTRIBUTES if member.alert in able else _BESIDE
        groups[member.sign, *words] += 1
    for (sign, zh, en), count in sorted(groups.items(), key=lambda one: (-one[1], one[0])):
        several = _several(sign, count)
        yield Reason(zh.format(several[0]), en.format(several[1]), count)


def _title(root: Member | None, alerts: Sequence[Member], explained: Mapping[str, Row]) -> tuple[str, str]:
    if root is None:
        return "报警已全部撤回", "All alerts taken back"
    place = root.place or root.asset or root.subject
    if len(alerts) == 1:
        return f"{root.title_zh}：{place}", f"{root.title_en}: {place}"
    sign = SIGNS[root.sign]
    others = Counter(m.sign for m in alerts if m is not root)
    listed = sorted(others.items(), key=lambda one: (-one[1], one[0]))
    zh = "、".join(f"{SIGNS[name].zh} {count} 条" for name, count in listed)
    en = ", ".join(_several(name, count)[1] for name, count in listed)
    if explained:
        return f"{place}{sign.zh}，波及：{zh}", f"{place}: {sign.en}, and with it {en}"
    return f"{place}等处{sign.zh}：另有{zh}", f"{place} and around: {sign.en}, beside it {en}"


__all__ = ["Entry", "Incident", "IncidentBook", "Member", "Reach", "Reason", "Summary", "Told"]
