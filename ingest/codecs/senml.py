"""SenML (RFC 8428) in JSON and CBOR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import cbor2
import msgspec

from ingest.codecs.gathering import (
    LAST_TIME,
    NO_PROPERTIES,
    NOT_A_TIME,
    RELATIVE_BELOW,
    Gathering,
    Unreadable,
    read_json,
    shown,
)
from twin.model import Micros, RawMessage, Reason
from twin.units import UNITS, conversion, spell

VERSION: Final = 10
MAX_NAME: Final = 300  # two names of 128 and what joins them; a longer one is nobody's
MAX_COLONS: Final = 8  # places tried at which a name may part into device and property
LAST_SECOND: Final = LAST_TIME / 1e6
PLAIN_NUMBERS: Final = frozenset((int, float))  # not bool; told apart from CBOR's Decimal and Fraction at little cost
_LABELS: Final = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
# SenML's names for units that we spell in another way, and those that mean something else here (its g is the gram).
_UNITS: Final[dict[str, str | None]] = {
    "Cel": "°C", "l": None, "g": None, "m/s2": "m/s²", "m3/s": "m³/s", "l/s": "L/s", "%RH": "%", "%EL": "%",
    "/": None, "count": None, "pH": "",
}  # fmt: skip


def decode(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    """A pack of records; each with a value is a reading.

    The resolved name is `device:property`, `device/property`, or a property of the topic's device. A value in a unit
    that is not the sensor's own is converted if both are known, and refused if they measure different things; a unit
    we do not know is taken for the sensor's own. `Unreadable` for what is no pack, a newer version, and fields that a
    reader must understand (ending in `_`).
    """
    out.by_gateway[out.number] = device == "gateway"
    is_cbor = message.payload[:1] >= b"\x80"
    if not is_cbor and (
        _add_alike(out, message.payload, tenant, device) or _add_plainly(out, message.payload, tenant, device)
    ):
        return
    pack = _read_cbor(message.payload) if is_cbor else read_json(message.payload)
    if type(pack) is not list:
        raise Unreadable("a SenML pack is an array of records")
    records = [_checked(record) for record in pack]
    base_name, base_unit, base_time, base_value = "", "", 0, 0.0
    for record in records:
        if record is None:
            out.add_refused(Reason.MALFORMED, "a record must be an object with fields of the right types", device)
            continue
        base_name = record.get("bn", base_name)[: MAX_NAME + 1]  # or each record of many would copy a huge one
        base_unit = record.get("bu", base_unit)
        if "bt" in record:
            base_time = _micros(record["bt"])
        base_value = record.get("bv", base_value)
        if _CARRIES_READING.isdisjoint(record):
            continue  # base fields only
        at = _when(base_time, _micros(record.get("t", 0)), message.received_at)
        owner, prop = _split(out, base_name + record.get("n", ""), tenant, device)
        if prop is None:
            out.add_refused(Reason.UNKNOWN_DEVICE, f"no device in the name {shown(owner)}", device)
            continue
        value = _value(record, base_value)
        unit = record.get("u", base_unit)
        if unit and type(value) in PLAIN_NUMBERS:
            fits, value = _convert(out, owner, tenant, prop, at, unit, value)
            if not fits:
                detail = f"{shown(prop)}: {shown(unit)} is not a unit of what it measures"
                out.add_refused(Reason.BAD_VALUE, detail, owner)
                continue
        out.add_one(owner, tenant, prop, value, at)
    if len(out.sensor) == out.first:
        raise Unreadable("there is no reading in it")


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A record as most are: base fields alone, or a number with what little else is usual.

    Whole numbers are read as floats, too: as values they become float64 anyway, and those that are times are exact up
    to 2**53, in µs as well.
    """

    v: float | msgspec.UnsetType = msgspec.UNSET
    n: str | msgspec.UnsetType = msgspec.UNSET
    u: str | msgspec.UnsetType = msgspec.UNSET
    t: float | msgspec.UnsetType = msgspec.UNSET
    bn: str | msgspec.UnsetType = msgspec.UNSET
    bt: float | msgspec.UnsetType = msgspec.UNSET
    bu: str | msgspec.UnsetType = msgspec.UNSET


class _Reading(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A record as nearly all behind the first are: a name and a number."""

    n: str
    v: float
    t: float = 0.0
    u: str = ""


_PLAIN: Final = msgspec.json.Decoder(list[_Plain])
_FIRST: Final = msgspec.json.Decoder(_Plain)
_READINGS: Final = msgspec.json.Decoder(list[_Reading])


def _add_alike(out: Gathering, payload: bytes, tenant: str, device: str) -> bool:
    """A pack whose base fields are all in its first record and whose names are known behind them, without a Python step
    per reading but for units; False, and nothing added, for any other."""
    end = payload.find(b"}") + 1  # a name may hold a brace; then what is before it is no record
    if payload[:2] != b"[{" or payload[end : end + 1] != b",":
        return False
    try:
        first = _FIRST.decode(payload[1:end])
        records = _READINGS.decode(b"[" + payload[end + 1 :])
    except (ValueError, RecursionError):
        return False
    unset = msgspec.UNSET
    base_name = "" if first.bn is unset else first.bn[: MAX_NAME + 1]
    base_unit = "" if first.bu is unset else first.bu
    base_time = 0 if first.bt is unset else _micros(first.bt)
    if base_time == NOT_A_TIME:
        return False
    names = [record.n for record in records]
    values = [record.v for record in records]
    seconds = [record.t for record in records]
    units = [record.u for record in records]
    if first.v is not unset:
        names.insert(0, "" if first.n is unset else first.n)
        values.insert(0, first.v)
        seconds.insert(0, 0.0 if first.t is unset else first.t)
        units.insert(0, "" if first.u is unset else first.u)
    elif not (first.n is unset and first.t is unset):
        return False
    points, others = _points(out, base_name, tenant, device)
    if others is not None:
        text = "\0".join(names)
        if ":" in text or "/" in text or any(name.startswith(base_name) for name in others):
            return False
    try:
        found = [points[name] for name in names]
    except KeyError:
        return False
    if base_unit or any(units):
        known, unit_of = out.points.senml_factors, out.unit_of
        pairs = [(unit or base_unit, unit_of(index)) for unit, index in zip(units, found, strict=True)]
        for pair in set(pairs) - known.keys():
            known[pair] = _factors(*pair) if pair[0] else (1.0, 0.0)
        factors = [known[pair] for pair in pairs]
        if None in factors:
            return False
        values = [value * f[0] + f[1] for value, f in zip(values, factors, strict=True) if f is not None]
    packs = out.packs
    packs.numbers.append(out.number)
    packs.counts.append(len(found))
    packs.base.append(base_time)
    packs.sensor += found
    packs.seconds += seconds
    packs.value += values
    return True


def _add_plainly(out: Gathering, payload: bytes, tenant: str, device: str) -> bool:
    """A pack of plain records of known sensors, several times as fast; False, and nothing added, for any other."""
    try:
        pack = _PLAIN.decode(payload)
    except (ValueError, RecursionError):
        return False
    unset = msgspec.UNSET
    sensors: list[int] = []
    times: list[int] = []
    values: list[float] = []
    received_at = out.received_at
    base_name, base_unit, base_time = "", "", 0
    points, others = _points(out, "", tenant, device)
    found: dict[str, int] = {}
    unit_of, known_factors = out.unit_of, out.points.senml_factors
    for record in pack:
        if record.bn is not unset:
            base_name = record.bn[: MAX_NAME + 1]
            points, others = _points(out, base_name, tenant, device)
        if record.bu is not unset:
            base_unit = record.bu
        if record.bt is not unset:
            base_time = _micros(record.bt)
            if base_time == NOT_A_TIME:
                return False
        value, name = record.v, record.n
        if value is unset:
            if name is unset and record.t is unset:
                continue  # base fields only
            return False
        if name is unset:
            name = ""
        index = points.get(name, -1)
        if index < 0 or (others is not None and (":" in name or "/" in name or base_name + name in others)):
            name = base_name + name
            index = found.get(name, -1)
            if index < 0:
                index = found[name] = _find(out, name, tenant, device)
                if index < 0:
                    return False
        unit = record.u
        if unit is unset:
            unit = base_unit
        if unit:
            pair = unit, unit_of(index)
            try:
                factors = known_factors[pair]
            except KeyError:
                factors = known_factors[pair] = _factors(*pair)
            if factors is None:
                return False
            value = value * factors[0] + factors[1]
        time = record.t
        if time is unset:
            at = base_time
        elif -LAST_SECOND < time < LAST_SECOND:  # as in _micros, without a call per record
            at = base_time + round(time * 1e6)
        else:
            return False
        sensors.append(index)
        times.append(at if at >= RELATIVE_BELOW else received_at + at)
        values.append(value)
    out.sensor += sensors
    out.at += times
    out.value += values
    return bool(sensors)


def _points(out: Gathering, base: str, tenant: str, device: str) -> tuple[Mapping[str, int], Mapping[str, int] | None]:
    """Sensor index by what follows the base name, where that alone tells; none for bases that part names elsewhere.

    A name found there stands for base and name together, as in `_split`, if it holds neither `:` nor `/` and both
    together are no name among the second mapping's; always, if that is None.
    """
    if not base:
        return out.points.properties(device, tenant) or NO_PROPERTIES, NO_PROPERTIES
    owner, end = base[:-1], base[-1]
    if "/" not in owner:
        if end == "/":
            return out.points.properties(owner, tenant) or NO_PROPERTIES, None
        if end == ":" and (points := out.points.properties(owner, tenant)) is not None:
            return points, out.points.properties(device, tenant) or NO_PROPERTIES
    return NO_PROPERTIES, NO_PROPERTIES


def _find(out: Gathering, name: str, tenant: str, device: str) -> int:
    """Index of the sensor so named; -1 for a closer look."""
    owner, prop = _split(out, name, tenant, device)
    properties = out.points.properties(owner, tenant)
    return -1 if prop is None or properties is None else properties.get(prop, -1)


_CARRIES_READING: Final = frozenset(("n", "v", "vs", "vb", "vd", "s", "t"))
_NUMBERS: Final = frozenset(("bt", "bv", "bs", "t", "ut", "s"))
_TEXTS: Final = frozenset(("bn", "bu", "n", "u"))


def _checked(record: Any) -> dict[str, Any] | None:
    """The record with its fields by name, or None where a field is of the wrong type."""
    if type(record) is not dict:
        return None
    fields: dict[Any, Any] = {
        _LABELS.get(key, key) if type(key) is int else key: value for key, value in record.items()
    }
    for name, value in fields.items():
        if name == "bver":
            if type(value) is not int or value > VERSION:
                raise Unreadable(f"SenML version {shown(str(value)[:20])}; we read {VERSION} and below")
        elif name in _NUMBERS:
            if type(value) not in PLAIN_NUMBERS:
                if not isinstance(value, Decimal | Fraction):
                    return None
                fields[name] = _float(value)
        elif name in _TEXTS:
            if type(value) is not str:
                return None
        elif isinstance(name, str) and name.endswith("_"):
            raise Unreadable(f"field {shown(name)} must be understood, and is not")
    return fields


def _micros(seconds: float) -> Micros:
    """Seconds in µs; `NOT_A_TIME` where none."""
    if not abs(seconds) < LAST_SECOND:  # nor NaN
        return NOT_A_TIME
    return seconds * 1_000_000 if isinstance(seconds, int) else round(seconds * 1e6)


def _when(base: Micros, time: Micros, received_at: Micros) -> Micros:
    if NOT_A_TIME in (base, time):
        return NOT_A_TIME
    at = base + time
    return at if at >= RELATIVE_BELOW else received_at + at


def _split(out: Gathering, name: str, tenant: str, device: str) -> tuple[str, str | None]:
    """Device and property that a resolved name stands for; the property None where it names neither."""
    if "/" in name:
        owner, _, prop = name.partition("/")
        return owner, prop
    if ":" not in name:
        return device, name
    if name in (out.points.properties(device, tenant) or ()):
        return device, name
    owner, _, prop = name.rpartition(":")
    end = len(owner)
    for _ in range(MAX_COLONS if len(name) <= MAX_NAME else 0):  # ids may hold colons: urn:dev:mac:…
        if out.is_known(name[:end]):
            return name[:end], name[end + 1 :]
        end = name.rfind(":", 0, end)
        if end < 0:
            break
    return owner, prop


def _value(record: Mapping[str, Any], base: float) -> Any:
    """The value, base value added; a string or array stands for what cannot be one."""
    if "v" in record:
        value = record["v"]
        if type(value) not in PLAIN_NUMBERS and isinstance(value, Decimal | Fraction):
            value = _float(value)
        if type(value) in PLAIN_NUMBERS:
            try:
                total = value + base if base else value
            except OverflowError:
                return math.inf
            return math.inf if total != total else total  # NaN in CBOR is no value; a missing one is null
        return value if value is None else "?"
    if "vb" in record:
        return record["vb"] if type(record["vb"]) is bool else "?"
    return "?"  # a string, data, or a sum alone


def _float(number: Decimal | Fraction) -> float:
    try:
        return float(number)
    except (OverflowError, ValueError):
        return math.inf


def _convert(
    out: Gathering, device: str, tenant: str, prop: str, at: Micros, unit: str, value: float
) -> tuple[bool, float]:
    """The value in the sensor's own unit; False where the two units measure different things."""
    own = out.unit(device, tenant, prop, at)
    factors = (1.0, 0.0) if own is None else _factors(unit, own)
    if factors is None:
        return False, value
    try:
        return True, value if factors == (1.0, 0.0) else value * factors[0] + factors[1]
    except OverflowError:
        return True, math.inf


def _factors(unit: str, own: str) -> tuple[float, float] | None:
    """(factor, offset) from a record's unit to the sensor's; None where they measure different things."""
    known = _UNITS[unit] if unit in _UNITS else spell(unit)
    if known is None or known == own or (unit == "%" and UNITS[own][0] == "gas fraction"):
        return 1.0, 0.0
    return conversion(known, own)


def _read_cbor(payload: bytes) -> Any:
    try:
        return cbor2.loads(payload)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except (cbor2.CBORDecodeError, ValueError, EOFError, TypeError, OverflowError, MemoryError) as error:
        raise Unreadable(f"not CBOR: {error}") from None
