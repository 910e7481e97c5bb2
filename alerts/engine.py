"""Which rules look at which sensors, and one call a batch that judges them all.

The engine decides, then does: `observe`, `heard` and `tick` change nothing and return transitions and an update;
`apply` takes the update in, after the database has the outcome. Readings handed to `observe` are sorted by (sensor,
observed_at), judgeable (`Readings.judgeable`) and newer than all their sensor showed before; how late and repeated ones
are judged is below, at `fork`.
"""

from __future__ import annotations

import io
import itertools
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alerts.composites import Change, Clock, Composites, Finding, Redone
from alerts.composition import Composition
from alerts.detectors import FAMILIES, JOINED, family_of
from alerts.detectors.joined import Groups, JoinedFamily
from alerts.detectors.offline import Heard, OfflineWatches, Silence
from alerts.detectors.rows import NEVER, Batch, Columns, Family, Patch, Rows, Verdicts, spans
from alerts.groups import Nearby, concerned, groups_of
from alerts.parameters import Joined, Neighbours
from alerts.reach import Reach
from alerts.rules import Rule, RuleSet, Where
from alerts.scopes import Fitted, Lack, effective, fit
from twin.catalog import Catalog
from twin.model import DAY, Alert, Bools, Floats, Indices, Ints, Micros, Readings, Transition

_log = logging.getLogger(__name__)
NO_NETWORK: Final = "its asset is in no network / 其设施不在任何管网中"
_MAX_STATE: Final = 4 << 30  # bytes of a saved state unpacked

_BLOCK: Final = 512  # rows
_FOUND_BY: Final = frozenset(("rule", "sensor", "join_through"))  # columns by which rows of a table are looked for

Group = tuple[str, int]  # a family that joins sensors, and a row of it
GroupTimes = dict[Group, dict[int, Micros]]  # by group and member's slot, a reading's time, the earliest


@dataclass(frozen=True, slots=True)
class Update:
    """What `Engine.apply` takes in: patches by family, or a change of who was heard. `score`: by reading observed, the
    highest of the detectors that have one (NaN: none). `steps`: the transitions that composites follow, told or not;
    they are for `compose`, whose own change is `composed`."""

    patches: dict[str, list[Patch]]
    silence: Heard | Silence | None = None
    score: Floats | None = None
    steps: Sequence[Transition] = ()
    composed: Change | None = None


class Packed:
    """A column that is seldom asked for, and of few rows then: compressed by blocks of rows."""

    def __init__(self, column: NDArray[Any]) -> None:
        self._dtype, self._shape = column.dtype, column.shape[1:]
        parts = (column[n : n + _BLOCK] for n in range(0, len(column), _BLOCK))
        self._blocks = [zlib.compress(part.tobytes(), 1) for part in parts]

    def __getitem__(self, rows: Ints) -> NDArray[Any]:
        result = np.empty((len(rows), *self._shape), self._dtype)
        block = rows // _BLOCK
        for number in np.unique(block).tolist():
            mine = block == number
            plain = np.frombuffer(zlib.decompress(self._blocks[number]), self._dtype).reshape(-1, *self._shape)
            result[mine] = plain[rows[mine] - number * _BLOCK]
        return result

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._blocks))


class _Deflated(io.RawIOBase):
    """A file in memory that takes in what is written compressed: all of a city's state beside it would be too much."""

    def __init__(self) -> None:
        super().__init__()
        self._deflate = zlib.compressobj(1)
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(self._deflate.compress(data))
        return memoryview(data).nbytes

    def value(self) -> bytes:
        return b"".join([*self._parts, self._deflate.flush()])


@dataclass(frozen=True, slots=True)
class EngineState:
    """A copy of all state that is not at rest, by family; independent of any engine.

    `tables[family]` has columns `rule` (fingerprint) and `sensor` (catalogue index), sorted by sensor, and the
    family's own. A watch that is not in it is at rest. So a state can be taken in by an engine with other rules or
    more sensors. `packed`: of a state that is kept for late readings, most columns of the tables.
    """

    tables: dict[str, Columns]
    offline: Columns
    composites: Columns = field(default_factory=dict)
    packed: dict[str, dict[str, Packed]] = field(default_factory=dict)

    def pack(self) -> EngineState:
        """The same in a third to a twentieth of the memory, for `fork` and `fork_groups` only."""
        if self.packed:
            return self
        tables = {
            family: {name: column for name, column in table.items() if name in _FOUND_BY}
            for family, table in self.tables.items()
        }
        packed = {
            family: {name: Packed(column) for name, column in table.items() if name not in _FOUND_BY}
            for family, table in self.tables.items()
        }
        return EngineState(tables, {}, {}, packed)

    def rows(self, family: str, rows: Ints) -> Columns:
        """These rows of a family's table."""
        packed = {name: column[rows] for name, column in self.packed.get(family, {}).items()}
        return {name: column[rows] for name, column in self.tables[family].items()} | packed

    def through(self, family: str, fingerprint: int, pivot: int) -> Micros:
        """The newest time at which a group was judged; `NEVER` where it was not yet."""
        table = self.tables.get(family, {})
        if "join_through" not in table:
            return NEVER
        begin, end = np.searchsorted(table["sensor"], [pivot, pivot + 1]).tolist()
        rows = np.flatnonzero(table["rule"][begin:end] == fingerprint)
        return int(table["join_through"][begin + rows[0]]) if len(rows) else NEVER

    def to_bytes(self) -> bytes:
        """Compact and without pickled objects; `from_bytes` reads it. Not of what `pack` gave."""
        if self.packed:
            raise ValueError("what is packed for late readings has not all of the state")
        arrays = {f"{family}/{name}": column for family, table in self.tables.items() for name, column in table.items()}
        arrays |= {f"offline/{name}": column for name, column in self.offline.items()}
        arrays |= {f"composites/{name}": column for name, column in self.composites.items()}
        file = _Deflated()
        savez: Callable[..., None] = np.savez  # its own signature does not know names from a mapping
        savez(file, **arrays)
        return file.value()

    @classmethod
    def from_bytes(cls, packed: bytes) -> EngineState:
        """ValueError if it is not what `to_bytes` made."""
        try:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(packed, _MAX_STATE)
            tables: dict[str, Columns] = {}
            with np.load(io.BytesIO(plain), allow_pickle=False) as arrays:
                for key in arrays.files:
                    family, _, name = key.partition("/")
                    tables.setdefault(family, {})[name] = arrays[key]
        except (zlib.error, zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"not an engine state: {error}") from error
        offline, composites = tables.pop("offline", {}), tables.pop("composites", {})
        return cls(tables, offline, composites)


class Engine:
    """All rules over all sensors (or, forked, over some).

    `failures` counts, by family, the batches in which judging raised an error; such a family keeps its state as it
    was, and the others go on. `started_at`: silence is counted from here on at the earliest. `reach`: the networks that
    composites and neighbours follow, as they are now. `only`: the sensors that there will be readings of (all, if
    None); composites are judged where they need no others.
    """

    def __init__(
        self,
        rules: RuleSet,
        catalog: Catalog,
        started_at: Micros = 0,
        reach: Reach | None = None,
        only: Bools | None = None,
    ) -> None:
        self.rules = rules
        self.failures: dict[str, int] = {}
        self.gateways: list[str] = []
        self._gateway_of: dict[str, int] = {}
        self._size = len(catalog)
        self._local: Indices | None = None  # the sensors of a fork, ascending; None = all
        # Within families a watch's rule is a variant of `fitted`; whatever goes out names the rule's place in `rules`.
        self.fitted = fitted(rules, catalog)
        self._prints = np.array([rule.fingerprint for rule in self.fitted.rules], np.int64)
        self._rule_of = {rule.fingerprint: index for index, rule in enumerate(self.fitted.rules)}
        families: dict[str, list[tuple[int, Indices]]] = {name: [] for name in FAMILIES}
        joined: dict[str, list[tuple[int, Indices]]] = {name: [] for name in JOINED}
        silent: list[tuple[int, Indices]] = []
        watching: dict[int, list[Indices]] = {}
        for index, sensors in self.fitted.parts:
            rule, place = self.fitted.rules[index], int(self.fitted.public[index])
            if isinstance(rule.parameters, Composition):
                if rule.kind or rule.sensors or rule.where != Where():
                    watching.setdefault(place, []).append(sensors)
                continue
            watching.setdefault(place, []).append(sensors)
            if rule.detector == "offline":
                silent.append((index, sensors if rule.after else sensors[catalog.interval_us[sensors] > 0]))
                continue
            if rule.detector == "range":
                has_low = ~np.isnan(catalog.low[sensors]) if rule.min is None else True
                has_high = ~np.isnan(catalog.high[sensors]) if rule.max is None else True
                sensors = sensors[np.broadcast_to(has_low | has_high, len(sensors))]
            family = family_of(rule)
            if family in JOINED:
                joined[family].append((index, sensors))
                continue
            families[family].append((index, sensors))
        self.families: dict[str, Family] = {}
        for name, kind in FAMILIES.items():
            rows = _rows(families[name], self._size)
            self.families[name] = kind.build(self.fitted.rules, rows, catalog.low, catalog.high)
        self.joined: dict[str, JoinedFamily] = {}
        sensors_of = {place: np.unique(np.concatenate(parts)) for place, parts in watching.items()}
        nearby = Nearby(catalog, reach)
        for name, joins in JOINED.items():
            parts = []
            for n, sensors in joined[name]:
                rule, place = self.fitted.rules[n], int(self.fitted.public[n])
                parts.append((n, groups_of(rule, sensors, catalog, nearby, sensors_of[place])))
                if isinstance(rule.parameters, Neighbours) and rule.parameters.along:
                    lost = nearby.nowhere(sensors, sensors_of[place], rule.parameters)
                    self.fitted.lacking.extend(Lack(s, place, ("along",), False, NO_NETWORK) for s in lost.tolist())
            groups = _grouped(self.fitted.rules, parts, self._size)
            self.joined[name] = joins.grouped(self.fitted.rules, *groups)
        self.families |= self.joined
        self.offline = self._offline(silent, catalog, started_at)
        self.composites = Composites(rules, catalog, sensors_of, reach, only)

    def _offline(self, silent: list[tuple[int, Indices]], catalog: Catalog, started_at: Micros) -> OfflineWatches:
        rows = _rows(silent, self._size)
        rules = self.fitted.rules
        fixed = np.array([rule.after for rule in rules] or [0], np.int64)[rows.rule]
        times = np.array([rule.after_intervals for rule in rules] or [0.0])[rows.rule]
        prints = self._prints[rows.rule]
        # A rule's alert on a gateway or a domain is one, so its watches are all of the rule, whatever its variants.
        rows = Rows(rows.sensor, self.fitted.public[rows.rule].astype(np.int32), self._size)
        after = np.where(fixed > 0, fixed, (times * catalog.interval_us[rows.sensor]).astype(np.int64))
        domains = sorted({kind.domain for kind in catalog.kinds.values()})
        number = {kind.name: domains.index(kind.domain) for kind in catalog.kinds.values()}
        domain = np.array([number[sensor.kind] for sensor in catalog.sensors], np.int64)
        return OfflineWatches(self.rules.rules, rows, after, domain, domains, self.gateways, started_at, prints)

    # readings

    def observe(self, readings: Readings) -> tuple[list[Transition], Update]:
        """Judge readings by event time. Transitions are ordered by (observed_at, sensor, rule); those of conditions are
        among the update's `steps` only."""
        sensor = self._own(readings.sensor)
        at, value = readings.observed_at, readings.value
        known = (sensor >= 0) & (sensor < self._size)
        if not known.all():  # a sensor younger than this engine: no rule of it looks there
            sensor, at, value = sensor[known], at[known], value[known]
        if not len(sensor):
            return [], Update({})
        batch = Batch.of(sensor, at, value)
        patches: dict[str, list[Patch]] = {}
        told: list[Transition] = []
        score: Floats | None = None
        for name, family in self.families.items():
            if not len(family.rows):
                continue
            try:
                verdicts, patches[name] = family.observe(batch)
                if verdicts.score is not None:
                    score = np.full(len(known), np.nan) if score is None else score
                    score[known] = np.fmax(score[known], verdicts.score)
                if len(verdicts):
                    told.extend(self._transitions(family, verdicts))
            except Exception:  # noqa: BLE001 - one family's error must not silence the other rules
                patches.pop(name, None)
                self.failures[name] = self.failures.get(name, 0) + 1
                _log.exception("rules of family %s failed on a batch of %d readings", name, len(batch.sensor))
        told.sort(key=_order)
        told, steps = self.composites.split(told) if told else (told, ())
        return told, Update(patches, score=score, steps=steps)

    def compose(
        self,
        steps: Sequence[Transition] = (),
        redone: Redone | None = None,
        *,
        clock: Clock | None = None,
        until: Micros | None = None,
    ) -> tuple[list[Finding], Update]:
        """Judge composites: by new steps of their members, those of members judged again, and time (as
        `Composites.decide`)."""
        try:
            findings, change = self.composites.decide(steps, redone, clock=clock, until=until)
        except Exception:  # noqa: BLE001 - as in observe
            self.failures["composites"] = self.failures.get("composites", 0) + 1
            _log.exception("composite rules failed on %d transitions", len(steps))
            return [], Update({})
        return findings, Update({}, composed=change)

    def apply(self, update: Update) -> None:
        """Take in what `observe`, `compose`, `heard`, `tick` or `merge` decided, before anything else is decided."""
        for name, patches in update.patches.items():
            self.families[name].apply(patches)
        self.offline.apply(update.silence)
        self.composites.apply(update.composed)

    def _own(self, sensor: NDArray[Any]) -> Indices:
        """Catalogue indices to this engine's own; -1 for sensors it does not have."""
        if self._local is None:
            return sensor
        if not len(self._local):
            return np.full(len(sensor), -1, np.int32)
        place = np.minimum(np.searchsorted(self._local, sensor), len(self._local) - 1)
        return np.where(self._local[place] == sensor, place, -1).astype(np.int32)

    def _lasting(self, sensor: NDArray[Any]) -> Indices:
        return (sensor if self._local is None else self._local[sensor]).astype(np.int32)

    def _transitions(self, family: Family, verdicts: Verdicts) -> Iterator[Transition]:
        columns = (
            self.fitted.public[family.rows.rule[verdicts.row]].tolist(),
            self._lasting(family.rows.sensor[verdicts.row]).tolist(),
            verdicts.at.tolist(),
            verdicts.before.tolist(),
            verdicts.after.tolist(),
            verdicts.value.tolist(),
            verdicts.threshold.tolist(),
            verdicts.since.tolist(),
            verdicts.peak.tolist(),
            itertools.repeat(None),
            itertools.repeat(0) if verdicts.note is None else verdicts.note.tolist(),
        )
        return map(Transition, *columns)

    # silence

    def gateway(self, tenant: str) -> int:
        """The index of a tenant's gateway, for `heard`; lasting within this engine and those that take its state in."""
        if len(self._gateway_of) != len(self.gateways):  # a state was taken in
            self._gateway_of = {name: number for number, name in enumerate(self.gateways)}
        number = self._gateway_of.get(tenant)
        if number is None:
            number = self._gateway_of[tenant] = len(self.gateways)
            self.gateways.append(tenant)
            self.offline.grow()
        return number

    def heard(
        self, sensor: NDArray[Any], received_at: Ints, gateway: NDArray[Any] | None = None
    ) -> tuple[list[Transition], Update]:
        """Anything came of these sensors (one entry a reading, whatever its quality or age); `gateway`: the index of
        the tenant's gateway it came by, -1 for the device's own topic."""
        if gateway is None:
            gateway = np.full(len(sensor), -1, np.int32)
        return self._silence(lambda: self.offline.heard(sensor, received_at, gateway))

    def tick(self, now: Micros, deaf: bool = False) -> tuple[list[Transition], Update]:
        """Judge silence at `now`, up to which everything that arrived was given to `heard`. `deaf`: the link to the
        broker is down."""
        return self._silence(lambda: self.offline.tick(now, deaf))

    def _silence(
        self, decide: Callable[[], tuple[list[Transition], Heard | Silence | None]]
    ) -> tuple[list[Transition], Update]:
        try:
            told, change = decide()
        except Exception:  # noqa: BLE001 - as in observe
            self.failures["offline"] = self.failures.get("offline", 0) + 1
            _log.exception("rules of family offline failed")
            return [], Update({})
        told.sort(key=_order)
        return told, Update({}, change)

    # what is open

    def extremes(self, rule: int, sensor: int) -> tuple[float, float, int]:
        """`(last value, peak value, peak level)` of the open alert of a rule on a sensor; NaNs and 0 if none is."""
        return self.extremes_of([rule], [sensor])[0]

    def extremes_of(self, rules: Sequence[int], sensors: Sequence[int]) -> list[tuple[float, float, int]]:
        """`extremes` of many at once, one a (rule, sensor)."""
        found = [(float("nan"), float("nan"), 0)] * len(rules)
        own = self._own(np.array(sensors, np.int32))
        families: dict[str, list[int]] = {}
        for place, rule in enumerate(rules):
            if 0 <= own[place] < self._size and 0 <= rule < len(self.rules):
                families.setdefault(family_of(self.rules.rules[rule]), []).append(place)
        for name, places in families.items():
            family = self.families.get(name)
            if family is None:
                continue
            level = family.level()
            rows = self._rows_of(family.rows, own[places], np.array([rules[place] for place in places]))
            for place, row in zip(places, rows.tolist(), strict=True):
                if row >= 0 and level[row]:
                    found[place] = family.extremes(row)
        return found

    def _rows_of(self, rows: Rows, sensor: NDArray[Any], rule: NDArray[Any]) -> Ints:
        """The row in which each of these rules (by place) watches a sensor; -1 where none does."""
        first = self.fitted.first
        return rows.within(sensor, first[rule], first[rule + 1])

    def levels(self) -> tuple[Ints, Indices, NDArray[np.int8]]:
        """Columns `rule`, `sensor`, `level` of all open alerts on sensors."""
        rules, sensors, levels = [], [], []
        for family in self.families.values():
            row = np.flatnonzero(family.level())
            rules.append(self.fitted.public[family.rows.rule[row]])
            sensors.append(self._lasting(family.rows.sensor[row]))
            levels.append(family.level()[row])
        row = self.offline.open_rows()
        rule = self.offline.rows.rule[row].astype(np.int64)
        rules.append(rule)
        sensors.append(self._lasting(self.offline.rows.sensor[row]))
        levels.append(np.array([self.rules.rules[r].level for r in rule.tolist()], np.int8))
        return np.concatenate(rules), np.concatenate(sensors), np.concatenate(levels)

    # state

    def snapshot(self) -> EngineState:
        """A copy of the state."""
        tables: dict[str, Columns] = {}
        for name, family in self.families.items():
            rows = np.flatnonzero(~family.resting())
            table: Columns = {column: values[rows] for column, values in family.columns.items()}
            table["rule"] = self._prints[family.rows.rule[rows]]
            table["sensor"] = self._lasting(family.rows.sensor[rows])
            tables[name] = table
        sensors = np.arange(self._size) if self._local is None else self._local.astype(np.int64)
        return EngineState(tables, self.offline.save(sensors), self.composites.save() if self._local is None else {})

    def restore(self, state: EngineState) -> None:
        """Take a state in. Watches that it does not know start at rest; those that do not exist any more are left
        out. A table of another shape than this version's is left out as a whole, and logged."""
        for name, table in state.tables.items():
            self._take(name, table)
        if state.offline:
            public = self.fitted.public.tolist()
            self.offline.load(state.offline, {print_: public[index] for print_, index in self._rule_of.items()})
        own = {rule.fingerprint: place for place, rule in enumerate(self.rules.rules)}
        self.composites.load(state.composites, own)

    def adopt(self, old: Engine, newest: Ints | None = None) -> None:
        """Carry on from `old`: equal rules keep their state, on every sensor that both have. Composite rules that are
        new count from the `newest` event times on, by sensor."""
        self.restore(old.snapshot())
        newest = np.zeros(self._size, np.int64) if newest is None else newest
        self.composites.align(*self.levels(), newest)
        known = {old.rules.rules[index].fingerprint for index in old.composites.plans}
        self.composites.begin(known, newest)

    def _take(self, name: str, table: Columns) -> None:
        family = self.families.get(name)
        fits = family is not None and table.keys() == family.columns.keys() | {"rule", "sensor"}
        if family is None or not fits:
            _log.warning("saved state of family %s is of another version and is left out", name)
            return
        rule = _lookup(table["rule"], self._rule_of)
        own = self._own(table["sensor"])
        known = np.flatnonzero((rule >= 0) & (own >= 0) & (own < self._size))
        row = family.rows.find(own[known], rule[known])
        known, row = known[row >= 0], row[row >= 0]
        taken = {column: table[column][known] for column in family.columns}
        if name in self.joined:
            join = self.joined[name].join
            family.apply(join.fitting(row, taken, family.columns, self.joined[name].lasts))
            return
        family.apply([Patch(row, taken)])

    def settle(self, alerts: Iterable[Alert]) -> None:
        """Bring the open levels in line with the alerts that stand active: what was told is what counts. A watch that
        is open without an alert goes back to rest, and tells again at its next reading, unless it is a condition, which
        has none; silence told after the state was saved is taken up, so that it can clear."""
        standing = list(alerts)
        told = {(a.rule, a.sensor_index) for a in standing}
        names = [rule.id for rule in self.rules.rules]
        variants = [rule.id for rule in self.fitted.rules]
        public = self.fitted.public.tolist()
        for family in self.families.values():
            rows = np.flatnonzero(family.level())
            untold = [
                (variants[r], s) not in told and not self.composites.conditions[public[r]]
                for r, s in zip(family.rows.rule[rows].tolist(), family.rows.sensor[rows].tolist(), strict=True)
            ]
            rows = rows[np.array(untold, bool)]
            if len(rows):
                at_rest = family.subset(Rows(family.rows.sensor[rows], family.rows.rule[rows], self._size), rows)
                family.apply([Patch(rows, at_rest.columns)])
        for alert in standing:
            if alert.sensor_index < 0 and (alert.asset or "").endswith("/gateway"):
                self.gateway((alert.asset or "").removesuffix("/gateway"))
        self.offline.settle({name: index for index, name in enumerate(names)}, standing)

    def open(self, alerts: Iterable[Alert]) -> None:
        """Take up, in watches at rest or open at another level, the level of alerts that stand active."""
        for alert in alerts:
            rule = self.rules.by_id.get(alert.rule)
            family = self.families.get(family_of(rule)) if rule else None
            own = int(self._own(np.array([alert.sensor_index], np.int32))[0])
            if rule is None or family is None or not 0 <= own < self._size:
                continue
            row = self._rows_of(family.rows, np.array([own]), np.array([self.rules.index(alert.rule)]))
            if row[0] >= 0 and family.level()[row[0]] != alert.level:
                family.apply([Patch(row, {"level": np.array([alert.level], np.int8)})])

    def rules_on(self, sensor: int) -> list[int]:
        """The places, ascending, of the rules that look at this sensor."""
        own = self._own(np.array([sensor], np.int32))
        if not 0 <= own[0] < self._size:
            return []
        rules = set(self.offline.rows.rule[self.offline.rows.of_sensors(own)].tolist())
        for family in self.families.values():
            rules.update(self.fitted.public[family.rows.rule[family.rows.of_sensors(own)]].tolist())
        for group in self.groups_with(own, np.zeros(1, np.int64)):
            rule, _ = self.watch_of(group)
            if int(own[0]) in concerned(self.rules.rules[rule], self.members(group).tolist()):
                rules.add(rule)
        return sorted(rules)

    def changed(self, before: Engine, alerts: Iterable[Alert]) -> list[Alert]:
        """Those of these alerts whose rule comes to something else on their sensor than with `before`."""
        old, new = before.fitted.print_of, self.fitted.print_of
        return [a for a in alerts if old(a.rule, a.sensor_index) != new(a.rule, a.sensor_index)]

    def memory(self) -> Ints:
        """By sensor, the span of readings (µs) after which how its watches stand rests on what they showed since."""
        result = np.zeros(self._size, np.int64)
        by_rule = np.array([rule.memory for rule in self.fitted.rules] or [0], np.int64)
        for rule, reach in self.composites.reached_by().items():
            # Nothing is on record of a condition: what says that it holds may be as old as a report of health.
            more = reach + (DAY if self.composites.conditions[rule] else 0)
            by_rule[int(self.fitted.first[rule]) : int(self.fitted.first[rule + 1])] += more
        for family in self.families.values():
            np.maximum.at(result, family.rows.sensor, by_rule[family.rows.rule])
        for joined in self.joined.values():
            member = joined.join.groups.member
            row, slot = np.nonzero(member >= 0)
            np.maximum.at(result, member[row, slot], by_rule[joined.rows.rule][row])
        return result

    def known_gateway(self, sensor: NDArray[Any]) -> Indices:
        """By sensor, the gateway its last message came by, as `heard` takes it."""
        return np.asarray(self.offline.state.gateway[sensor])

    # late readings

    def fork(self, sensors: NDArray[Any], states: Sequence[EngineState | None], pick: NDArray[Any]) -> Engine:
        """A small engine with these sensors' watches only (not the offline ones), to judge them again from an earlier
        state: sensor `sensors[i]` starts from `states[pick[i]]`, at rest where that is None or `pick[i]` is -1."""
        small = object.__new__(Engine)
        small.rules, small.fitted, small.failures, small.gateways = self.rules, self.fitted, self.failures, []
        small.composites = self.composites  # which transitions they follow; their state stays here
        small._prints, small._rule_of = self._prints, self._rule_of
        chosen, first = np.unique(sensors, return_index=True)
        small._local = chosen.astype(np.int32)
        small._size = len(chosen)
        inside = np.flatnonzero((chosen >= 0) & (chosen < self._size))
        own = chosen[inside] if self._local is None else self._own(chosen)
        if self._local is not None:
            inside = np.flatnonzero(own >= 0)
            own = own[inside]
        small.families = {}
        for name, family in self.families.items():
            if name in self.joined:
                continue
            origin = family.rows.of_sensors(own)
            sensor = np.repeat(inside, family.rows.number[own]).astype(np.int32)
            small.families[name] = family.subset(Rows(sensor, family.rows.rule[origin], small._size), origin)
        small.joined = {}
        small.offline = self._no_silence(small.gateways)
        picks = np.asarray(pick)[first]
        for number, state in enumerate(states):
            mine = small._local[picks == number]
            if state is None or not len(mine):
                continue
            for name, table in state.tables.items():
                if name in self.joined:
                    continue
                begin = np.searchsorted(table["sensor"], mine)
                end = np.searchsorted(table["sensor"], mine, "right")
                small._take(name, state.rows(name, spans(begin, end - begin)))
        return small

    def _no_silence(self, gateways: list[str]) -> OfflineWatches:
        nothing = np.empty(0, np.int64)
        no_rows = Rows(np.empty(0, np.int32), np.empty(0, np.int32), 0)
        return OfflineWatches(self.rules.rules, no_rows, nothing, nothing, [], gateways, 0)

    def late_for_groups(self, sensor: Indices, at: Ints) -> GroupTimes:
        """Which groups readings, newer than all their sensors showed, come too late for to be judged by `observe`."""
        return self._groups({name: family.join.late(sensor, at) for name, family in self._with_groups()})

    def groups_with(self, sensor: Indices, at: Ints) -> GroupTimes:
        """Which groups readings belong to."""
        return self._groups({name: family.join.memberships(sensor, at) for name, family in self._with_groups()})

    def _with_groups(self) -> Iterator[tuple[str, JoinedFamily]]:
        """The families that join anything; asked of an engine of all sensors only."""
        return ((name, family) for name, family in self.joined.items() if len(family.rows))

    @staticmethod
    def _groups(found: dict[str, tuple[Ints, Ints, Ints]]) -> GroupTimes:
        times: GroupTimes = {}
        for name, (row, slot, at) in found.items():
            order = np.lexsort((at, slot, row))
            row, slot, at = row[order], slot[order], at[order]
            first = np.ones(len(row), bool)
            first[1:] = (row[1:] != row[:-1]) | (slot[1:] != slot[:-1])
            for r, m, t in zip(row[first].tolist(), slot[first].tolist(), at[first].tolist(), strict=True):
                times.setdefault((name, r), {})[m] = t
        return times

    def members(self, group: Group) -> Indices:
        """A group's sensors, its pivot first."""
        member = self.joined[group[0]].join.groups.member[group[1]]
        return np.asarray(member[member >= 0])

    def watch_of(self, group: Group) -> tuple[int, int]:
        """The rule and the pivot of a group, as transitions have them."""
        rows = self.joined[group[0]].rows
        return int(self.fitted.public[rows.rule[group[1]]]), int(rows.sensor[group[1]])

    def fingerprint_of(self, group: Group) -> int:
        """What the group's rule comes to there, as saved states know it."""
        return int(self._prints[self.joined[group[0]].rows.rule[group[1]]])

    def through(self, group: Group) -> Micros:
        """The newest time at which the group was judged."""
        return int(self.joined[group[0]].join.columns["join_through"][group[1]])

    def subjects(self, transition: Transition) -> Sequence[int]:
        """The sensors that a transition is about: of most detectors the one it is on."""
        rule = self.rules.rules[transition.rule]
        family = self.joined.get(family_of(rule))
        if family is None:
            return [transition.sensor]
        row = int(self._rows_of(family.rows, np.array([transition.sensor]), np.array([transition.rule]))[0])
        return concerned(rule, self.members((family_of(rule), row)).tolist())

    def fork_groups(self, groups: Sequence[Group], state: EngineState | None) -> Engine:
        """A small engine with these groups only, from an earlier state (None: at rest), to judge them again."""
        small = object.__new__(Engine)
        small.rules, small.fitted, small.failures, small.gateways = self.rules, self.fitted, self.failures, []
        small.composites = self.composites  # which transitions they follow; their state stays here
        small._prints, small._rule_of = self._prints, self._rule_of
        small._local = np.unique(np.concatenate([self.members(group) for group in groups])).astype(np.int32)
        small._size = len(small._local)
        small.families, small.joined = {}, {}
        for name, family in self.joined.items():
            origin = np.array(sorted(row for family_, row in groups if family_ == name), np.int64)
            if not len(origin):
                continue
            own = family.join.groups.take(origin)
            member = np.where(own.member >= 0, np.searchsorted(small._local, own.member), -1).astype(np.int32)
            rows = Rows(member[:, 0], family.rows.rule[origin], small._size)
            small.joined[name] = family.regrouped(rows, origin, replace(own, member=member))
        small.families |= small.joined
        small.offline = self._no_silence(small.gateways)
        if state is None:
            return small
        for name, table in state.tables.items():
            if name in small.joined:
                pivots = small._local[np.unique(small.joined[name].rows.sensor)]
                begin = np.searchsorted(table["sensor"], pivots)
                many = np.searchsorted(table["sensor"], pivots, "right") - begin
                small._take(name, state.rows(name, spans(begin, many)))
        return small

    def unjudged(self, groups: Sequence[Group]) -> list[Group]:
        """Of the groups of a fork by `fork_groups(groups, …)` those that were never judged."""
        rows = {name: sorted(row for family, row in groups if family == name) for name in self.joined}
        return [
            (name, row)
            for name, own in rows.items()
            for row, at in zip(own, self.joined[name].join.columns["join_through"].tolist(), strict=True)
            if at == NEVER
        ]

    def read_again(self, groups: Sequence[Group], begins: Mapping[Group, Micros]) -> dict[Group, Micros]:
        """Of a fork by `fork_groups(groups, …)`: forget which readings the groups remember. By group, the time
        after which all its members' readings are needed to judge it on: those of its samples that were not judged yet,
        none of them before `begins` where none was judged at all, and what these look back upon."""
        found = {}
        for name, family in self.joined.items():
            own = sorted(row for family_, row in groups if family_ == name)
            columns, max_age = family.join.columns, family.join.groups.max_age
            for n, row in enumerate(own):  # as `fork_groups` numbers them
                through = int(columns["join_through"][n])
                if through == NEVER:
                    waiting = columns["join_at"][n, 0]
                    through = min([begins[name, row], *waiting[waiting != NEVER].tolist()]) - 1
                    columns["join_through"][n] = through
                found[name, row] = through - int(max_age[n])
            for column, nothing in (("join_at", NEVER), ("join_value", np.nan), ("join_floor", NEVER)):
                columns[column][:] = nothing
        return found

    def merge(self, small: Engine) -> Update:
        """The update that gives this engine's watches the state of a fork of it."""
        patches: dict[str, list[Patch]] = {}
        for name, family in self.families.items():
            part = small.families.get(name)
            if part is None:
                continue
            own = self._own(small._lasting(part.rows.sensor))
            row = family.rows.find(own, part.rows.rule)
            there = np.flatnonzero(row >= 0)
            patches[name] = [Patch(row[there], {column: values[there] for column, values in part.columns.items()})]
        return Update(patches)


def fitted(rules: RuleSet, catalog: Catalog) -> Fitted:
    """What the rules come to on each sensor of the catalogue."""
    return fit(rules, catalog, _Matcher(catalog).of)


def effective_on(rules: RuleSet, catalog: Catalog, sensor: int) -> Fitted:
    """What the rules come to on one sensor, which then has the index 0."""
    return effective(rules, catalog, sensor, lambda alone: _Matcher(alone).of)


def _grouped(rules: Sequence[Rule], parts: list[tuple[int, Indices]], size: int) -> tuple[Rows, Groups]:
    """Rows of (rule index, its groups) pairs, sorted by pivot and rule."""
    width = max((groups.shape[1] for _, groups in parts), default=1)
    none = np.empty((0, width), np.int32)
    wide = [np.pad(groups, ((0, 0), (0, width - groups.shape[1])), constant_values=-1) for _, groups in parts]
    member = np.concatenate([none, *wide]).astype(np.int32)
    rule = np.repeat(np.array([r for r, _ in parts], np.int32), np.array([len(g) for _, g in parts], np.int64))
    order = np.lexsort((rule, member[:, 0]))
    member, rule = member[order], rule[order]
    times = np.array([(p.max_age, p.patience) if isinstance(p := r.parameters, Joined) else (0, 0) for r in rules])
    own = times.reshape(-1, 2)[rule].astype(np.int64)
    return Rows(member[:, 0], rule, size), Groups(member, member, own[:, 0], own[:, 1])


def _order(transition: Transition) -> tuple[int, int, int]:
    return transition.observed_at, transition.sensor, transition.rule


def _lookup(prints: Ints, rule_of: dict[int, int]) -> Ints:
    distinct, which = np.unique(prints, return_inverse=True)
    numbers = np.array([rule_of.get(fingerprint, -1) for fingerprint in distinct.tolist()], np.int64)
    return numbers[which.reshape(-1)] if len(prints) else np.empty(0, np.int64)


def _rows(parts: list[tuple[int, Indices]], size: int) -> Rows:
    """Rows of (rule index, its sensors) pairs, sorted by sensor and rule."""
    sensor = np.concatenate([np.empty(0, np.int32), *(sensors for _, sensors in parts)]).astype(np.int32)
    rule = np.repeat(np.array([r for r, _ in parts], np.int32), np.array([len(s) for _, s in parts], np.int64))
    order = np.lexsort((rule, sensor))
    return Rows(sensor[order], rule[order], size)


class _Matcher:
    """Which sensors a rule looks at. Each property of the sensors is coded into integers when a rule first asks."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._codes: dict[str, tuple[dict[str, int], Ints]] = {}
        self._tags: dict[str, Ints] | None = None

    def of(self, rule: Rule) -> Indices:
        """The indices of the sensors that `rule` looks at, ascending."""
        if rule.sensors:
            devices = self.catalog.devices
            found = (devices.get(d, {}).get(p) for d, _, p in (name.partition("/") for name in rule.sensors))
            return np.array(sorted(index for index in found if index is not None), np.int32)
        where = rule.where
        mask = np.ones(len(self.catalog), bool)
        kinds = [set(words) for words in ((rule.kind,) if rule.kind else (), where.kind) if words and "*" not in words]
        if where.domain:
            kinds.append({name for name, kind in self.catalog.kinds.items() if kind.domain in where.domain})
        if kinds:
            mask &= self._in("kind", set.intersection(*kinds))
        for name in ("tenant", "asset", "device"):
            words: tuple[str, ...] = getattr(where, name)
            if words:
                mask &= self._in(name, set(words))
        # A waveform's summaries share its kind, but a limit on the quantity is not one on its mean or frequency.
        if where.statistic or not isinstance(rule.parameters, Composition):
            mask &= self._in("statistic", set(where.statistic) if where.statistic else {""})
        if where.tag:
            mask &= self._tagged(where.tag)
        if where.not_tag:
            mask &= ~self._tagged(where.not_tag)
        return np.flatnonzero(mask).astype(np.int32)

    def _in(self, name: str, words: set[str]) -> Bools:
        if name not in self._codes:
            numbers: dict[str, int] = {}
            values = [getattr(sensor, name) or "" for sensor in self.catalog.sensors]
            column = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
            self._codes[name] = (numbers, column)
        numbers, column = self._codes[name]
        wanted = np.zeros(len(numbers) + 1, bool)
        wanted[[numbers[word] for word in words if word in numbers]] = True
        return wanted[column]

    def _tagged(self, words: tuple[str, ...]) -> Bools:
        if self._tags is None:
            lists: dict[str, list[int]] = {}
            for index, sensor in enumerate(self.catalog.sensors):
                for tag in sensor.tags:
                    lists.setdefault(tag, []).append(index)
            self._tags = {tag: np.array(indices, np.int64) for tag, indices in lists.items()}
        mask = np.zeros(len(self.catalog), bool)
        for word in words:
            if word in self._tags:
                mask[self._tags[word]] = True
        return mask
