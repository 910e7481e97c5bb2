"""What all payload formats share: finding the measuring point, reading times, and gathering readings into columns.

A codec appends every reading it meets, usable or not, to one set of lists (an unusable one with sensor -1), so that a
reading's place in its message and the counts of the contract follow from the lists alone.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from ingest.messages import Messages
from twin.catalog import Catalog, Replacement
from twin.model import (
    HOUR,
    Bools,
    Floats,
    Indices,
    Ints,
    Micros,
    RawMessage,
    Reason,
    Reject,
    WaveformBlock,
    iso,
    micros,
    parse_time,
)

NUMERIC: Final = frozenset((float, int, bool, type(None)))
NOT_A_TIME: Final = -9_000_000_000_000_000
LAST_TIME: Final = -NOT_A_TIME  # the year 2255; in ms it still fits int64 after * 1000
MAX_VALUE: Final = 1e150  # nothing measured is larger, and sums of any number of such values stay finite
FIRST_TIME: Final = micros(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
MAX_DEVICES_NAMED: Final = 100  # of one message's rejects; those of further devices share one without a name
NO_PROPERTIES: Final[Mapping[str, int]] = {}
RELATIVE_BELOW: Final = 2**28 * 1_000_000  # µs; RFC 8428, 4.5.3: smaller times are relative to now
LISTS_BYTES: Final = 32 << 20
_BYTES_A_NAME: Final = 8

_DECODER: Final = msgspec.json.Decoder()


class Unreadable(ValueError):  # noqa: N818 - an outcome, as in twin.model
    """A message that cannot be decoded at all; its text says why."""


def read_json(payload: bytes) -> Any:
    """The JSON value; `Unreadable` if there is none. A number beyond float64 reads as infinity, to be refused alone."""
    try:
        return _DECODER.decode(payload)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        if "out of range" in str(error):
            return _read_wide(payload)
        raise Unreadable(f"not JSON: {error}") from None


def _read_wide(payload: bytes) -> Any:
    """As `read_json`, for messages with a number that the fast decoder refuses (1e999): one bad reading must not cost
    its neighbours."""
    try:
        return json.loads(payload.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def time_of(ts: object) -> Micros:
    """Epoch milliseconds or an RFC 3339 text in µs; `NOT_A_TIME` for anything else."""
    if type(ts) is int:  # not bool
        return ts * 1000
    if isinstance(ts, float) and abs(ts) < LAST_TIME:
        return round(ts * 1000)
    if isinstance(ts, str):
        try:
            return parse_time(ts.upper())
        except (ValueError, OverflowError):
            return NOT_A_TIME
    return NOT_A_TIME


def time_fault(at: Micros, received_at: Micros) -> str | None:
    """Why `at` is no time to store, or None: before 2000, or more than 1 h ahead of `received_at`."""
    if FIRST_TIME <= at <= received_at + HOUR:
        return None
    if not NOT_A_TIME < at < LAST_TIME:  # 1684 to 2255
        return "not a time of our days: epoch milliseconds, or RFC 3339 with its zone"
    if at < FIRST_TIME:
        return f"{iso(at)} is before 2000"
    return f"{iso(at)} is more than 1 h ahead of the time of receipt"


def shown(name: str) -> str:
    """A name from outside, short and printable, for a reason's text."""
    name = name if len(name) <= 80 else f"{name[:80]}…"
    return name if name.isprintable() else ascii(name)[1:-1]


class _Ids(dict[str, int]):
    """Sensor index by `device/property`, kept as asked; -1 for what needs a closer look. Bound: a tenant's sensors."""

    def __init__(self, points: Points, tenant: str) -> None:
        super().__init__()
        self._points = points
        self._tenant = tenant

    def __missing__(self, name: str) -> int:
        device, _, prop = name.partition("/")
        properties = self._points.properties(device, self._tenant)
        found = -1 if properties is None else properties.get(prop, -1)
        if found >= 0:
            self[name] = found
        return found


class Points:
    """What decoding has looked up in a catalogue, to be kept from batch to batch until the catalogue changes.

    `by_topic`: of topics that belong to one plain device, its properties. Bound: the devices, each of which has one
    such topic. `lists`: by tenant and the bytes of a list of names, their indices. Bound: LISTS_BYTES, then emptied.
    """

    __slots__ = (
        "_ids", "_lists_bytes", "by_topic", "catalog", "changes", "devices", "lists", "senml_factors", "successors",
        "tenants", "timed",
    )  # fmt: skip

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.changes = catalog.changes
        self.devices = catalog.devices
        self.tenants = catalog.tenants
        self.timed = catalog.replacements.keys() | catalog.retired.keys()
        self.successors: dict[str, list[Replacement]] = {}
        for replacement in catalog.replacements.values():
            self.successors.setdefault(replacement.device, []).append(replacement)
        self.by_topic: dict[bytes, dict[str, int]] = {}
        self.senml_factors: dict[tuple[str, str], tuple[float, float] | None] = {}  # by a pack's unit and a sensor's
        self.lists: dict[tuple[str, bytes], list[int]] = {}
        self._lists_bytes = 0
        self._ids: dict[str, _Ids] = {}

    def properties(self, device: str, tenant: str) -> dict[str, int] | None:
        """Sensor index by property of a device whose messages need no closer look (known, of this tenant, never
        replaced), else None."""
        found = self.devices.get(device)
        if found is None or self.tenants[device] != tenant or (self.timed and device in self.timed):
            return None
        return found

    def ids(self, tenant: str) -> Mapping[str, int]:
        """Sensor index by `device/property` for a tenant, -1 for what `properties` cannot answer."""
        known = self._ids.get(tenant)
        if known is None:
            known = _Ids(self, tenant)
            if tenant in self.catalog.owners:  # others come and go with their messages
                self._ids[tenant] = known
        return known

    def keep_list(self, tenant: str, names: bytes, found: list[int]) -> None:
        """Remember which sensors the names of this list are."""
        self._lists_bytes += len(names) + _BYTES_A_NAME * len(found)
        if self._lists_bytes > LISTS_BYTES:
            self.lists.clear()
            self._lists_bytes = len(names) + _BYTES_A_NAME * len(found)
        self.lists[tenant, names] = found


@dataclass(frozen=True, slots=True)
class Columns:
    """Readings of some messages of a batch, in their order; a message's readings are all in one of these.

    `numbers`, `counts`: the messages and how many readings each has; the rest one row a reading, sensor -1 for one that
    cannot be used, time in µs within `NOT_A_TIME` and `LAST_TIME`, the value as sent, NaN for null.
    """

    numbers: Indices
    counts: Ints
    sensor: Indices
    at: Ints
    value: Floats

    def known(self) -> tuple[Columns, list[int]]:
        """Without the messages that have a reading which cannot be used, and the numbers of those."""
        message = np.repeat(np.arange(len(self.numbers)), self.counts)
        keep = np.ones(len(self.numbers), np.bool_)
        keep[message[self.sensor < 0]] = False
        rows = keep[message]
        kept = Columns(self.numbers[keep], self.counts[keep], self.sensor[rows], self.at[rows], self.value[rows])
        return kept, self.numbers[~keep].tolist()


class Packs:
    """Packs of readings timed in seconds from a base, gathered as lists: of each pack its message, number of readings
    and base (µs); of each reading sensor, seconds and value."""

    __slots__ = ("base", "counts", "numbers", "seconds", "sensor", "value")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.counts: list[int] = []
        self.base: list[Micros] = []
        self.sensor: list[int] = []
        self.seconds: list[float] = []
        self.value: list[float] = []

    def columns(self, received: Ints) -> Columns:
        """With the times in µs; `received` is when each message of the batch came, which times that are small enough to
        be relative (RFC 8428, 4.5.3) count from."""
        numbers, counts = np.array(self.numbers, np.int32), np.array(self.counts, np.int64)
        seconds = np.array(self.seconds, np.float64)
        is_time = np.abs(seconds) < LAST_TIME / 1e6
        base = np.repeat(np.array(self.base, np.int64), counts)
        at = base + np.rint(np.where(is_time, seconds, 0.0) * 1e6).astype(np.int64)
        is_relative = at < RELATIVE_BELOW
        if is_relative.any():
            at[is_relative] += np.repeat(received[numbers], counts)[is_relative]
        at[~is_time] = NOT_A_TIME
        np.clip(at, NOT_A_TIME, LAST_TIME, out=at)
        return Columns(numbers, counts, np.array(self.sensor, np.int32), at, np.array(self.value, np.float64))


class Gathering:
    """The columns of one batch while its messages are decoded, one after the other.

    `sensor`, `at` (µs, or ms where the message's `scale` says 1000) and `value` hold one row a reading met; `first` is
    the row at which the current message begins. Messages that were decoded all together are in `columns_met`, packs
    whose times wait to be reckoned all together in `packs`. Bound: the batch's own size.
    """

    __slots__ = (
        "_catalog", "_named", "_refused", "at", "blocks", "blocks_met", "by_gateway", "columns_met", "counts", "first",
        "messages", "number", "packs", "points", "received_at", "scale", "sensor", "statuses", "unread", "value",
    )  # fmt: skip

    def __init__(self, messages: Messages, points: Points) -> None:
        self._catalog = points.catalog
        self.points = points
        self._refused: dict[tuple[int, Reason, str | None], tuple[str, list[int]]] = {}
        self._named = 0
        self.columns_met: list[Columns] = []
        self.packs = Packs()
        self.messages = messages
        self.sensor: list[int] = []
        self.at: list[int] = []
        self.value: list[Any] = []
        self.counts = [0] * len(messages)
        self.scale = [1] * len(messages)
        self.by_gateway = [False] * len(messages)
        self.blocks_met = 0
        self.unread = 0  # messages refused whole
        self.blocks: list[WaveformBlock] = []
        self.statuses: list[tuple[str, str, bool, Micros]] = []
        self.number = 0
        self.first = 0
        self.received_at = 0

    def resolve(self, device: str, tenant: str, at: Micros) -> tuple[str, Mapping[str, int], Reason | None, str]:
        """The device whose measuring points `device` reports at `at`, their indices, and why not, if so.

        Hardware that stands in for another device reports that one's points from its first day on; a replaced device
        reports nothing from then on (contract: the measuring points keep their history).
        """
        points, target = self.points, device
        if device in points.timed:
            fault = time_fault(at, self.received_at)
            if fault is not None:
                return device, NO_PROPERTIES, Reason.BAD_TIME, fault
            since = NOT_A_TIME
            stand_in = self._catalog.replacements.get(device)
            if stand_in is not None and at >= stand_in.since:
                target, since = stand_in.device, stand_in.since
            elif device not in points.devices:
                return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, f"{shown(device)} was not yet in service"
            for other in points.successors.get(target, ()):
                if other.hardware != device and since < other.since <= at:
                    detail = f"replaced by {shown(other.hardware)} from {iso(other.since)} on"
                    return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, detail
        properties = points.devices.get(target)
        if properties is None:
            return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, f"no device {shown(device)}"
        if points.tenants[target] != tenant:
            detail = f"device {shown(device)} is not of tenant {shown(tenant)}"
            return device, NO_PROPERTIES, Reason.FORBIDDEN, detail
        return target, properties, None, ""

    def is_known(self, device: str) -> bool:
        """Whether any tenant has such a device, or hardware that stands in for one."""
        return device in self.points.devices or device in self.points.timed

    def factors(self, index: int) -> tuple[float, float]:
        """(factor, offset) with canonical = value * factor + offset."""
        return float(self._catalog.factor[index]), float(self._catalog.offset[index])

    def unit(self, device: str, tenant: str, prop: str, at: Micros) -> str | None:
        """The unit that a sensor reports in, or None where there is no such sensor."""
        index = self.resolve(device, tenant, at)[1].get(prop)
        return None if index is None else self.unit_of(index)

    def unit_of(self, index: int) -> str:
        """The unit that a sensor reports in."""
        return self._catalog.sensors[index].unit

    def add_one(self, device: str, tenant: str, prop: str, value: object, at: Micros) -> None:
        """One reading, looked at closely."""
        _, properties, why, detail = self.resolve(device, tenant, at)
        index = properties.get(prop, -1)
        if why is not None:
            self.refuse(why, detail, device)
        elif index < 0:
            self.refuse(Reason.UNKNOWN_PROPERTY, f"{shown(device)} has no property {shown(prop)}", device)
        elif type(value) not in NUMERIC:
            self.refuse(Reason.BAD_VALUE, f"{shown(prop)}: {_what(value)} is no value", device)
            index = -1
        self.sensor.append(index)
        self.at.append(at)
        self.value.append(value if index >= 0 else None)

    def add_refused(self, reason: Reason, detail: str, device: str | None) -> None:
        """A reading, or what stands in the place of one, that cannot be used."""
        self.refuse(reason, detail, device)
        self.sensor.append(-1)
        self.at.append(0)
        self.value.append(None)

    def refuse(self, reason: Reason, detail: str, device: str | None, position: int | None = None) -> None:
        """Put the reading about to be appended (or the one at `position`) among the current message's rejects."""
        self._put(self.number, reason, detail, device, len(self.sensor) - self.first if position is None else position)

    def refuse_message(self, reason: Reason, detail: str, device: str | None = None) -> None:
        """Refuse the current message as a whole; it counts as one received."""
        self.unread += 1
        self._put(self.number, reason, detail, device, -1)

    def _put(self, number: int, reason: Reason, detail: str, device: str | None, position: int) -> None:
        if device is not None and (len(device) > 128 or not device.isprintable()):
            device = None
        group = self._refused.get((number, reason, device))
        if group is None:
            if device is not None and self._named >= MAX_DEVICES_NAMED:
                self._put(number, reason, detail, None, position)
                return
            self._named += 1
            group = self._refused[(number, reason, device)] = (detail, [])
        group[1].append(position)

    def begin(self, number: int, message: RawMessage) -> None:
        """What follows is of this message."""
        self.number = number
        self.received_at = message.received_at
        self.first = len(self.sensor)
        self._named = 0

    def columns(self) -> tuple[Indices, Ints, Ints, Floats, Indices, Indices, Bools]:
        """The usable readings: sensor, observed_at, received_at, value (canonical unit), message, position, by_gateway.

        Times and values that no column can hold are refused here, at once for the whole batch.
        """
        received = self.messages.received()
        parts = list(self.columns_met)
        if self.packs.numbers:
            parts.append(self.packs.columns(received))
        if self.sensor or not parts:
            parts.append(self._listed())
        numbers, counts, sensor, at, value = (
            np.concatenate([getattr(part, name) for part in parts]) if len(parts) > 1 else getattr(parts[0], name)
            for name in ("numbers", "counts", "sensor", "at", "value")
        )
        message = np.repeat(numbers, counts)
        position = (np.arange(len(sensor)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.int32)
        if len(parts) > 1:
            order = np.argsort(message, kind="stable")
            sensor, at, value = sensor[order], at[order], value[order]
            message, position = message[order], position[order]
        received_at = received[message]
        used = sensor >= 0
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused below
            value = value * self._catalog.factor[sensor] + self._catalog.offset[sensor] if len(self._catalog) else value
        bad_time = used & ((at < FIRST_TIME) | (at > received_at + HOUR))
        if bad_time.any():
            for row in np.flatnonzero(bad_time).tolist():
                fault = time_fault(int(at[row]), int(received_at[row])) or ""
                self._refuse_row(Reason.BAD_TIME, fault, int(message[row]), int(position[row]), int(sensor[row]))
            used &= ~bad_time
        bad_value = used & (np.abs(value) > MAX_VALUE)
        if bad_value.any():
            for row in np.flatnonzero(bad_value).tolist():
                detail = f"not a number within {MAX_VALUE:g}"
                self._refuse_row(Reason.BAD_VALUE, detail, int(message[row]), int(position[row]), int(sensor[row]))
            used &= ~bad_value
        by_gateway = np.array(self.by_gateway, np.bool_)[message]
        if used.all():
            return sensor, at, received_at, value, message, position, by_gateway
        return (
            sensor[used], at[used], received_at[used], value[used], message[used], position[used], by_gateway[used],
        )  # fmt: skip

    def _listed(self) -> Columns:
        """What the lists hold."""
        counts = np.array(self.counts, np.int64)
        at = np.clip(_int64(self.at), NOT_A_TIME, LAST_TIME)
        at *= np.repeat(np.array(self.scale, np.int64), counts)
        numbers = np.arange(len(counts), dtype=np.int32)
        return Columns(numbers, counts, np.array(self.sensor, np.int32), at, _float64(self.value))

    def _refuse_row(self, reason: Reason, detail: str, number: int, position: int, sensor: int) -> None:
        if number != self.number:
            self.number, self._named = number, 0
        self._put(number, reason, detail, self._catalog.sensors[sensor].device, position)

    def received(self) -> int:
        """Readings received, as the contract counts: each reading of each delivery, each block, one for a message that
        cannot be decoded."""
        together = sum(len(part.sensor) for part in self.columns_met) + len(self.packs.sensor)
        return len(self.sensor) + together + self.blocks_met + self.unread

    def rejects(self) -> list[Reject]:
        """What was refused, by message; positions ascending."""
        found = [
            Reject(number, reason, tuple(sorted(positions)), detail, device)
            for (number, reason, device), (detail, positions) in self._refused.items()
        ]
        found.sort(key=lambda reject: reject.message)
        return found


def _what(value: object) -> str:
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _int64(numbers: list[int]) -> Ints:
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        return np.array([min(max(n, NOT_A_TIME), LAST_TIME) for n in numbers], np.int64)


def _float64(numbers: list[Any]) -> Floats:
    """None becomes NaN; an integer beyond float64 becomes infinity, to be refused."""
    try:
        return np.array(numbers, np.float64)
    except OverflowError:
        return np.array([_float(n) for n in numbers], np.float64)


def _float(number: float | None) -> float:
    if number is None:
        return math.nan
    try:
        return float(number)
    except OverflowError:
        return math.inf
