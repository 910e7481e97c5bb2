"""offline: what should report and does not. The only detector that looks at a clock: ours, and `received_at`.

A sensor's deadline is `max(last heard, floor) + after`; it is overdue strictly after that. The floor is the start of
the service, or the end of our own deafness (the link to the broker was down): silence while we could not listen proves
nothing. A sensor that was never heard raises nothing.

Behind a gateway one silent sensor and a silent gateway look alike at first, so an overdue sensor waits until it is
known which: the next message by that gateway shows it alive (the sensor raises, timed at its own deadline); or nothing
comes until the gateway's deadline, the last message by it plus the shortest `after` of its sensors not yet known
silent, and then, if at least two of its sensors are overdue, the gateway raises one alert that covers them all. When
the gateway returns, sensors still silent count from its return.

When all heard sensors of a domain (at least two) are silent, each rule also raises one alert on the domain.

Every event's time follows from arrival times alone (`raised`: the deadline, `cleared`: the first message's
`received_at`), so neither the times of ticks nor batching matter, as long as no tick runs ahead of messages that are
still waiting: give `tick` the time up to which everything that arrived has been handed to `heard`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alerts.detectors.rows import FOREVER, NEVER, Columns, Rows
from alerts.rules import Rule
from twin.model import SECOND, Alert, Bools, Indices, Ints, Micros, Transition

FINE: Final = 0
OPEN: Final = 1  # an alert of its own
HELD: Final = 2  # covered by the gateway's alert
WAITING: Final = 3  # overdue, but perhaps it is the gateway
_NO_GATEWAY: Final = -1
_TOGETHER: Final = 2  # sensors from which on a gateway or a domain is told instead of, or beside, its sensors


@dataclass(slots=True)
class Silence:
    """The state. By sensor: `last` (NEVER = never heard), `gateway` (index, -1 = spoke for itself). By row: `status`,
    `silent_at` (event time at which it fell silent), `from_at` (its gateway's return, if it was covered). By gateway:
    `heard`. `groups`: open alerts on (rule, gateway): when raised, and last message before; `domains`: on (rule,
    domain): when raised. `bound`: nothing falls due before."""

    last: Ints
    gateway: Indices
    status: NDArray[np.int8]
    silent_at: Ints
    from_at: Ints
    heard: Ints
    groups: dict[tuple[int, int], tuple[Micros, Micros]] = field(default_factory=dict)
    domains: dict[tuple[int, int], Micros] = field(default_factory=dict)
    floor: Micros = NEVER
    is_deaf: bool = False
    bound: Micros = NEVER

    def copy(self) -> Silence:
        arrays = {name: getattr(self, name).copy() for name in _ARRAYS}
        return replace(self, **arrays, groups=dict(self.groups), domains=dict(self.domains))


_ARRAYS: Final = ("last", "gateway", "status", "silent_at", "from_at", "heard")


@dataclass(frozen=True, slots=True)
class Heard:
    """The usual change: sensors heard in time, nothing else. Columns in order of arrival."""

    sensor: NDArray[np.integer]
    at: Ints
    gateway: Indices
    bound: Micros


class OfflineWatches:
    """All watches of offline rules.

    `rows` are (rule, sensor) pairs with their `after` in µs (> 0) and the fingerprint, in `prints`, of what the rule
    comes to there; `domain` gives every sensor's domain as an index
    into `domains`. Sensors without a row are remembered too, for rules to come.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        rows: Rows,
        after: Ints,
        domain: Ints,
        domains: Sequence[str],
        gateways: list[str],
        started_at: Micros,
        prints: Ints | None = None,
    ) -> None:
        self.rules = rules
        if prints is None:
            prints = np.array([rule.fingerprint for rule in rules] or [0], np.int64)[rows.rule]
        self.prints = prints
        self.rows = rows
        self.after = after
        self.domain = domain
        self.domains = domains
        self.gateways = gateways
        sensors, count = len(rows.number), len(rows)
        self.state = Silence(
            last=np.full(sensors, NEVER),
            gateway=np.full(sensors, _NO_GATEWAY, np.int32),
            status=np.zeros(count, np.int8),
            silent_at=np.full(count, NEVER),
            from_at=np.full(count, NEVER),
            heard=np.full(len(gateways), NEVER),
            floor=started_at or NEVER,
        )
        self.shortest = int(after.min()) if count else FOREVER
        self._row_domain = domain[rows.sensor]
        self._first_after = np.full(sensors, FOREVER)
        watched = np.flatnonzero(rows.number)
        if len(watched):
            self._first_after[watched] = np.minimum.reduceat(after, rows.begin[watched])
        self._attend()

    # decide

    def heard(
        self, sensor: NDArray[np.integer], received_at: Ints, gateway: NDArray[np.integer]
    ) -> tuple[list[Transition], Heard | Silence | None]:
        """Messages came: one entry a reading, sensors may repeat; `gateway` -1 where the device spoke for itself."""
        known = sensor < len(self.state.last)
        if not known.all():
            sensor, received_at, gateway = sensor[known], received_at[known], gateway[known]
        if not len(sensor):
            return [], None
        if (received_at[1:] < received_at[:-1]).any():
            order = np.argsort(received_at, kind="stable")
            sensor, received_at, gateway = sensor[order], received_at[order], gateway[order]
        state, top = self.state, int(received_at[-1])
        calm = not self._alert_sensors[sensor].any() and not self._alert_domains[self.domain[sensor]].any()
        calm = calm and not self._alert_gateways[gateway].any()
        bound = state.bound
        new = state.last[sensor] == NEVER
        if new.any():
            bound = min(bound, int((received_at[new] + self._first_after[sensor[new]]).min()))
        if calm and (top <= bound or state.is_deaf):
            return [], Heard(sensor, received_at, gateway.astype(np.int32), bound)
        work = _Work(self, state.copy())
        work.arrivals(sensor, received_at, gateway)
        return work.told, work.state

    def tick(self, now: Micros, deaf: bool) -> tuple[list[Transition], Silence | None]:
        """The clock shows `now`; `deaf`: our own link is down, nothing can be said about silence."""
        state = self.state
        if deaf:
            new = state.copy()
            new.is_deaf = True
            new.floor = max(state.floor, now)
            new.status[new.status == WAITING] = FINE
            return [], new
        if state.is_deaf:
            new = state.copy()
            new.is_deaf = False
            new.floor = max(state.floor, now)
            new.bound = NEVER
            work = _Work(self, new)
            work.advance(now)
            return work.told, work.state
        if now <= state.bound:
            return [], None
        work = _Work(self, state.copy())
        work.advance(now)
        return work.told, work.state

    # do

    def apply(self, change: Heard | Silence | None) -> None:
        if isinstance(change, Silence):
            self.state = change
            self._attend()
        elif change is not None:
            state = self.state
            self.grow()
            # In order of arrival, so that of a sensor's several messages the last one stays.
            state.last[change.sensor] = np.maximum(state.last[change.sensor], change.at)
            state.gateway[change.sensor] = change.gateway
            by = change.gateway >= 0
            np.maximum.at(state.heard, change.gateway[by], change.at[by])
            state.bound = change.bound

    def grow(self) -> None:
        """Room for gateways named since."""
        self.state.heard = _grown(self.state.heard, len(self.gateways))
        if len(self._alert_gateways) <= len(self.gateways):
            self._attend()

    def _attend(self) -> None:
        """What a message must touch to be more than "heard in time"."""
        state = self.state
        self._alert_sensors = np.zeros(len(state.last), bool)
        self._alert_sensors[self.rows.sensor[state.status != FINE]] = True
        self._alert_domains = np.zeros(len(self.domains) + 1, bool)
        for _, domain in state.domains:
            self._alert_domains[domain] = True
        self._alert_gateways = np.zeros(len(self.gateways) + 1, bool)  # the last one is "no gateway", index -1
        for _, gateway in state.groups:
            self._alert_gateways[gateway] = True
        waiting = self.rows.sensor[state.status == WAITING]
        by = state.gateway[waiting]
        self._alert_gateways[by[by >= 0]] = True

    # save and restore

    def save(self, sensors: Ints) -> Columns:
        """The state as arrays; `sensors` gives each sensor's lasting index."""
        state, rows = self.state, self.rows
        prints = np.array([rule.fingerprint for rule in self.rules], np.int64)
        heard = np.flatnonzero(state.last != NEVER)
        kept = np.flatnonzero((state.status != FINE) | (state.from_at > state.last[rows.sensor]))
        return {
            "sensor": sensors[heard],
            "last": state.last[heard],
            "gateway": state.gateway[heard],
            "gateways": np.array(self.gateways, dtype=np.str_),
            "heard": _grown(state.heard, len(self.gateways)).copy(),
            "row_rule": self.prints[kept],
            "row_sensor": sensors[rows.sensor[kept]],
            "row_status": state.status[kept],
            "row_silent_at": state.silent_at[kept],
            "row_from_at": state.from_at[kept],
            "group_rule": np.array([prints[r] for r, _ in state.groups], np.int64),
            "group": np.array([g for _, g in state.groups], np.int64),
            "group_at": np.array([at for at, _ in state.groups.values()], np.int64),
            "group_since": np.array([since for _, since in state.groups.values()], np.int64),
            "domain_rule": np.array([prints[r] for r, _ in state.domains], np.int64),
            "domain": np.array([self.domains[d] for _, d in state.domains], dtype=np.str_),
            "domain_at": np.array(list(state.domains.values()), np.int64),
            "clock": np.array([state.floor, int(state.is_deaf)], np.int64),
        }

    def load(self, saved: Columns, rule_of: dict[int, int]) -> None:
        """Take a saved state in, by rule fingerprint and lasting sensor index."""
        state = self.state
        inside = saved["sensor"] < len(state.last)
        sensor = saved["sensor"][inside]
        own = []
        for name in saved["gateways"].tolist():
            if name not in self.gateways:
                self.gateways.append(name)
            own.append(self.gateways.index(name))
        state.heard = _grown(state.heard, len(self.gateways))
        numbers = np.array([*own, _NO_GATEWAY], np.int32)
        state.last[sensor] = saved["last"][inside]
        state.gateway[sensor] = numbers[saved["gateway"][inside]]
        state.heard[numbers[:-1]] = saved["heard"][: len(own)]
        rule = np.array([rule_of.get(f, -1) for f in saved["row_rule"].tolist()], np.int64)
        known = np.flatnonzero((rule >= 0) & (saved["row_sensor"] < len(state.last)))
        row = self.rows.find(saved["row_sensor"][known], rule[known])
        same = (row >= 0) & (self.prints[row] == saved["row_rule"][known]) if len(self.rows) else row >= 0
        known, row = known[same], row[same]
        state.status[row] = saved["row_status"][known]
        state.silent_at[row] = saved["row_silent_at"][known]
        state.from_at[row] = saved["row_from_at"][known]
        groups = (saved[name].tolist() for name in ("group_rule", "group", "group_at", "group_since"))
        for f, g, at, since in zip(*groups, strict=True):
            if f in rule_of:
                state.groups[rule_of[f], own[g]] = (at, since)
        for f, d, at in zip(*(saved[name].tolist() for name in ("domain_rule", "domain", "domain_at")), strict=True):
            if f in rule_of and d in self.domains:
                state.domains[rule_of[f], self.domains.index(d)] = at
        floor, deaf = saved["clock"].tolist()
        state.floor = max(state.floor, floor)
        state.is_deaf = bool(deaf)
        state.bound = NEVER
        self._attend()

    def settle(self, rule_of: dict[str, int], alerts: Sequence[Alert]) -> None:
        """Make exactly these alerts the open ones (those of offline rules among them)."""
        state = self.state
        state.status[state.status == OPEN] = FINE
        told_groups, told_domains = dict(state.groups), dict(state.domains)
        state.groups.clear()
        state.domains.clear()
        for alert in alerts:
            rule = rule_of.get(alert.rule, -1)
            if rule < 0 or self.rules[rule].detector != "offline":
                continue
            if alert.sensor_index >= 0:
                row = int(self.rows.find(np.array([alert.sensor_index]), np.array([rule]))[0])
                if row >= 0:
                    state.status[row] = OPEN
                    state.silent_at[row] = alert.raised_at
                continue
            owner, _, rest = (alert.asset or "").partition("/")
            if rest == "gateway" and owner in self.gateways:
                key = rule, self.gateways.index(owner)
                state.groups[key] = told_groups.get(key, (alert.raised_at, alert.since))
            elif owner == "domain" and rest in self.domains:
                key = rule, self.domains.index(rest)
                state.domains[key] = told_domains.get(key, alert.raised_at)
        by = state.gateway[self.rows.sensor]
        is_covered = np.zeros(len(self.rows), bool)
        for (rule, gateway), (raised_at, _) in state.groups.items():
            mine = (self.rows.rule == rule) & (by == gateway)
            is_covered |= mine
            newly = mine & (state.status == FINE)
            state.status[newly] = HELD
            state.silent_at[newly] = raised_at
        state.status[(state.status == HELD) & ~is_covered] = FINE
        state.bound = NEVER
        self._attend()

    def open_rows(self) -> Ints:
        """The rows with an alert of their own."""
        return np.flatnonzero(self.state.status == OPEN)


class _Work:
    """One step's decisions, on a copy of the state."""

    def __init__(self, watches: OfflineWatches, state: Silence) -> None:
        self.watches = watches
        self.rows = watches.rows
        self.state = state
        self.told: list[Transition] = []
        self.state.heard = _grown(state.heard, len(watches.gateways))

    def arrivals(self, sensor: NDArray[np.integer], at: Ints, gateway: NDArray[np.integer]) -> None:
        done = 0
        while done < len(at):
            now = int(at[done])
            if now > self.state.bound and not self.state.is_deaf:
                self.advance(now)
            # Whatever arrives gives deadlines at least the shortest `after` ahead, so that nothing falls due inside
            # this stretch and its messages can be taken together.
            until = now + self.watches.shortest
            if not self.state.is_deaf:
                until = min(until, self.state.bound)
            end = int(np.searchsorted(at, max(until, now), "right"))
            # Messages that settle whether a waiting sensor or its gateway is silent are taken alone.
            settles = self._settles(sensor[done:end], gateway[done:end])
            if settles.any():
                first = int(at[done + int(np.argmax(settles))])
                end = int(np.searchsorted(at, first, "right" if first == now else "left"))
            self._take(sensor[done:end], at[done:end], gateway[done:end])
            done = end

    def _settles(self, sensor: NDArray[np.integer], gateway: NDArray[np.integer]) -> Bools:
        waiting = self.rows.sensor[self.state.status == WAITING]
        if not len(waiting):
            return np.zeros(len(sensor), bool)
        by = self.state.gateway[waiting]
        return np.asarray(np.isin(sensor, waiting) | ((gateway >= 0) & np.isin(gateway, by)))

    def _take(self, sensor: NDArray[np.integer], at: Ints, gateway: NDArray[np.integer]) -> None:
        """Messages among which nothing falls due."""
        state, rows, domain = self.state, self.rows, self.watches.domain
        waiting = np.flatnonzero(state.status == WAITING)
        if len(waiting):
            settled = np.isin(rows.sensor[waiting], sensor)
            settled |= np.isin(state.gateway[rows.sensor[waiting]], gateway[gateway >= 0])
            self._raise_rows(waiting[settled], self._deadlines()[waiting[settled]])
            self._raise_domains()
        distinct, first = np.unique(sensor, return_index=True)
        first_at = at[first]
        was_new = state.last[distinct] == NEVER
        own = rows.of_sensors(distinct)
        own_at = np.repeat(first_at, rows.number[distinct])
        woken: dict[tuple[int, int], Micros] = {}  # (rule, domain): when its first sensor was heard again

        by = gateway >= 0
        used, first_by = np.unique(gateway[by], return_index=True)
        returns = dict(zip(used.tolist(), at[by][first_by].tolist(), strict=True))
        for rule, group in [key for key in state.groups if key[1] in returns]:
            returned = returns[group]
            held = np.flatnonzero((rows.rule == rule) & (state.status == HELD) & (state.gateway[rows.sensor] == group))
            # A covered sensor that spoke for itself before the gateway returned needs no allowance.
            place = np.minimum(np.searchsorted(distinct, rows.sensor[held]), len(distinct) - 1)
            held = held[(distinct[place] != rows.sensor[held]) | (first_at[place] >= returned)]
            self._tell_group(rule, group, returned, False, state.groups.pop((rule, group)))
            state.status[held] = FINE
            state.silent_at[held] = NEVER
            state.from_at[held] = returned
            state.bound = min([state.bound, *(returned + self.watches.after[held]).tolist()])
            for d in np.unique(self.watches._row_domain[held]).tolist():
                woken[rule, d] = min(returned, woken.get((rule, d), FOREVER))

        silent = state.status[own] != FINE
        opened = own[silent & (state.status[own] == OPEN)]
        for row, when in zip(opened.tolist(), own_at[silent & (state.status[own] == OPEN)].tolist(), strict=True):
            after = int(self.watches.after[row])
            since = int(state.silent_at[row]) - after
            self._tell(int(rows.rule[row]), int(rows.sensor[row]), when, False, after, since, None)
        state.status[own[silent]] = FINE
        state.silent_at[own[silent]] = NEVER

        state.last[sensor] = np.maximum(state.last[sensor], at)  # in order of arrival: the last one stays
        state.gateway[sensor] = gateway
        np.maximum.at(state.heard, gateway[by], at[by])
        fresh = own[silent | np.repeat(was_new, rows.number[distinct])]
        if len(fresh):
            state.bound = min(state.bound, int(self._deadlines()[fresh].min()))

        for rule, d in list(state.domains):
            of_domain = (rows.rule[own] == rule) & (domain[rows.sensor[own]] == d)
            if of_domain.any():
                woken[rule, d] = min(int(own_at[of_domain].min()), woken.get((rule, d), FOREVER))
            if (rule, d) in woken:
                since = state.domains.pop((rule, d))
                self._tell_domain(rule, d, woken[rule, d], False, since)
        self._raise_domains()

    def advance(self, now: Micros) -> None:
        """Nothing more came before `now`: raise what is overdue then."""
        state, rows, after = self.state, self.rows, self.watches.after
        while True:
            deadline = self._deadlines()
            due = np.flatnonzero(((state.status == FINE) | (state.status == WAITING)) & (deadline < now))
            group = state.gateway[rows.sensor[due]]
            alone = due[group < 0]
            self._raise_rows(alone, deadline[alone])
            pending = FOREVER
            changed = False
            keys = {
                (int(rows.rule[row]), int(g)) for row, g in zip(due.tolist(), group.tolist(), strict=True) if g >= 0
            }
            for rule, g in sorted(keys):
                members = np.flatnonzero(
                    (rows.rule == rule) & (state.gateway[rows.sensor] == g) & (state.last[rows.sensor] != NEVER)
                )
                late = members[(state.status[members] != OPEN) & (deadline[members] < now)]
                if len(members) < _TOGETHER:
                    self._raise_rows(late, deadline[late])
                    continue
                heard = max(int(state.heard[g]), state.floor)
                closed = members[state.status[members] != OPEN]
                limit = heard + int(after[closed].min())
                if limit >= now:
                    state.status[late] = WAITING
                    pending = min(pending, limit)
                    continue
                changed = True
                over = closed[deadline[closed] <= limit]
                if len(over) + len(members) - len(closed) >= _TOGETHER:
                    state.status[closed] = HELD
                    state.silent_at[closed] = limit
                    state.groups[rule, g] = (limit, heard)
                    self._tell_group(rule, g, limit, True, (limit, heard))
                else:  # only one: it is the sensor, and its neighbours are looked at again without it
                    self._raise_rows(over, deadline[over])
            if not changed:
                break
        self._raise_domains()
        fine = state.status == FINE
        deadline = self._deadlines()
        state.bound = min(pending, int(deadline[fine].min()) if fine.any() else FOREVER)

    def _deadlines(self) -> Ints:
        """By row; FOREVER for sensors never heard."""
        state, sensor = self.state, self.rows.sensor
        last = state.last[sensor]
        base = np.maximum(np.maximum(last, state.floor), state.from_at)
        return np.where(last == NEVER, FOREVER, base + self.watches.after)

    def _raise_rows(self, rows: Ints, deadline: Ints) -> None:
        state = self.state
        state.status[rows] = OPEN
        state.silent_at[rows] = deadline
        for row, at in zip(rows.tolist(), deadline.tolist(), strict=True):
            sensor, after = int(self.rows.sensor[row]), self.watches.after[row]
            self._tell(int(self.rows.rule[row]), sensor, at, True, after, at - int(after), None)

    def _raise_domains(self) -> None:
        """Raise the domains of which all heard sensors are silent."""
        state, rows = self.state, self.rows
        silent = (state.status == OPEN) | (state.status == HELD)
        if not silent.any():
            return
        heard = state.last[rows.sensor] != NEVER
        width = len(self.watches.domains)
        key = rows.rule.astype(np.int64) * width + self.watches._row_domain
        size = len(self.watches.rules) * width
        number = np.bincount(key[heard], minlength=size)
        quiet = np.bincount(key[heard & silent], minlength=size)
        for place in np.flatnonzero((number >= _TOGETHER) & (quiet == number)).tolist():
            rule, d = divmod(place, width)
            if (rule, d) not in state.domains:
                at = int(state.silent_at[heard & (key == place)].max())
                state.domains[rule, d] = at
                self._tell_domain(rule, d, at, True, at)

    def _tell_group(self, rule: int, group: int, at: Micros, is_raise: bool, raised: tuple[Micros, Micros]) -> None:
        limit, since = raised
        self._tell(rule, -1, at, is_raise, limit - since, since, f"{self.watches.gateways[group]}/gateway")

    def _tell_domain(self, rule: int, domain: int, at: Micros, is_raise: bool, since: Micros) -> None:
        self._tell(rule, -1, at, is_raise, None, since, f"domain/{self.watches.domains[domain]}")

    def _tell(
        self, rule: int, sensor: int, at: Micros, is_raise: bool, after: int | None, since: Micros, subject: str | None
    ) -> None:
        level = int(self.watches.rules[rule].level)
        self.told.append(
            Transition(
                rule=rule,
                sensor=sensor,
                observed_at=at,
                before=0 if is_raise else level,
                after=level if is_raise else 0,
                value=math.nan,
                threshold=math.nan if after is None else int(after) / SECOND,
                since=since,
                subject=subject,
            )
        )


def _grown(heard: Ints, size: int) -> Ints:
    if len(heard) >= size:
        return heard
    new = np.full(size, NEVER)
    new[: len(heard)] = heard
    return new
