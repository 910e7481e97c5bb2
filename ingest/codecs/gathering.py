"""What all payload formats share: finding the measuring point, reading times, and gathering readings into columns.

A codec appends every reading it meets, usable or not, to one set of lists (an unusable one with sensor -1), so that a
reading's place in its message and the counts of the contract follow from the lists alone.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

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
    """Sensor index by `device/property`, filled as asked; -1 for what needs a closer look."""

    def __init__(self, out: Gathering, tenant: str) -> None:
        super().__init__()
        self._out = out
        self._tenant = tenant

    def __missing__(self, name: str) -> int:
        device, _, prop = name.partition("/")
        properties = self._out.properties(device, self._tenant)
        found = self[name] = -1 if properties is None else properties.get(prop, -1)
        return found


class Gathering:
    """The columns of one batch while its messages are decoded, one after the other.

    `sensor`, `at` (µs, or ms where the message's `scale` says 1000) and `value` hold one row a reading met; `first` is
    the row at which the current message begins. Bound: the batch's own size.
    """

    __slots__ = (
        "_catalog", "_devices", "_ids", "_named", "_refused", "_successors", "_tenants", "_timed", "at", "blocks",
        "blocks_met", "by_gateway", "counts", "first", "messages", "number", "received_at", "scale", "senml_factors",
        "sensor", "statuses", "unread", "value",
    )  # fmt: skip

    def __init__(self, messages: Sequence[RawMessage], catalog: Catalog) -> None:
        self._catalog = catalog
        self._devices = catalog.devices
        self._tenants = catalog.tenants
        self._timed = catalog.replacements.keys() | catalog.retired.keys()
        self._successors: dict[str, list[Replacement]] = {}
        for replacement in catalog.replacements.values():
            self._successors.setdefault(replacement.device, []).append(replacement)
        self._ids: dict[str, _Ids] = {}
        self._refused: dict[tuple[int, Reason, str | None], tuple[str, list[int]]] = {}
        self._named = 0
        self.senml_factors: dict[tuple[str, str], tuple[float, float] | None] = {}  # by a pack's unit and a sensor's
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

    def properties(self, device: str, tenant: str) -> Mapping[str, int] | None:
        """Sensor index by property of a device whose messages need no closer look (known, of this tenant, never
        replaced), else None."""
        found = self._devices.get(device)
        if found is None or self._tenants[device] != tenant or (self._timed and device in self._timed):
            return None
        return found

    def ids(self, tenant: str) -> Mapping[str, int]:
        """Sensor index by `device/property` for a tenant, -1 for what `properties` cannot answer."""
        known = self._ids.get(tenant)
        if known is None:
            known = self._ids[tenant] = _Ids(self, tenant)
        return known

    def resolve(self, device: str, tenant: str, at: Micros) -> tuple[str, Mapping[str, int], Reason | None, str]:
        """The device whose measuring points `device` reports at `at`, their indices, and why not, if so.

        Hardware that stands in for another device reports that one's points from its first day on; a replaced device
        reports nothing from then on (contract: the measuring points keep their history).
        """
        target = device
        if device in self._timed:
            fault = time_fault(at, self.received_at)
            if fault is not None:
                return device, NO_PROPERTIES, Reason.BAD_TIME, fault
            since = NOT_A_TIME
            stand_in = self._catalog.replacements.get(device)
            if stand_in is not None and at >= stand_in.since:
                target, since = stand_in.device, stand_in.since
            elif device not in self._devices:
                return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, f"{shown(device)} was not yet in service"
            for other in self._successors.get(target, ()):
                if other.hardware != device and since < other.since <= at:
                    detail = f"replaced by {shown(other.hardware)} from {iso(other.since)} on"
                    return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, detail
        properties = self._devices.get(target)
        if properties is None:
            return device, NO_PROPERTIES, Reason.UNKNOWN_DEVICE, f"no device {shown(device)}"
        if self._tenants[target] != tenant:
            detail = f"device {shown(device)} is not of tenant {shown(tenant)}"
            return device, NO_PROPERTIES, Reason.FORBIDDEN, detail
        return target, properties, None, ""

    def is_known(self, device: str) -> bool:
        """Whether any tenant has such a device, or hardware that stands in for one."""
        return device in self._devices or device in self._timed

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
        counts = np.array(self.counts, np.int64)
        sensor = np.array(self.sensor, np.int32)
        message = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        position = (np.arange(len(sensor)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.int32)
        at = np.clip(_int64(self.at), NOT_A_TIME, LAST_TIME)
        at *= np.repeat(np.array(self.scale, np.int64), counts)
        received_at = np.repeat(np.array([m.received_at for m in self.messages], np.int64), counts)
        value = _float64(self.value)
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
        by_gateway = np.repeat(np.array(self.by_gateway, np.bool_), counts)
        if used.all():
            return sensor, at, received_at, value, message, position, by_gateway
        return (
            sensor[used], at[used], received_at[used], value[used], message[used], position[used], by_gateway[used],
        )  # fmt: skip

    def _refuse_row(self, reason: Reason, detail: str, number: int, position: int, sensor: int) -> None:
        if number != self.number:
            self.number, self._named = number, 0
        self._put(number, reason, detail, self._catalog.sensors[sensor].device, position)

    def received(self) -> int:
        """Readings received, as the contract counts: each reading of each delivery, each block, one for a message that
        cannot be decoded."""
        return len(self.sensor) + self.blocks_met + self.unread

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
