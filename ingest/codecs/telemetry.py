"""Plain JSON telemetry: of one device, and of a gateway for many, also packed into three arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from ingest.codecs.gathering import NO_PROPERTIES, NUMERIC, Gathering, Unreadable, read_json, shown, time_of
from twin.model import RawMessage, Reason

_ABSENT: Final = object()
_PACKED_KEYS: Final = frozenset(("s", "t", "v"))
_NOT_READINGS: Final = "must be an object of values, or one with values and ts"


class _Packed(msgspec.Struct):
    """The packed form where nothing is out of the ordinary: whole milliseconds, numbers only."""

    s: list[str]
    t: list[int]
    v: list[float]


_PACKED: Final = msgspec.json.Decoder(_Packed)


def decode_device(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    """`{"depth": 12.5}`, `{"ts": …, "values": {…}}`, or an array of either.

    An element of the array that is neither is refused as one reading; the others stay good. `Unreadable` where the
    whole payload is neither, or holds no reading.
    """
    body = read_json(message.payload)
    if type(body) is dict:
        if ("values" in body or "ts" in body) and type(body.get("values")) is not dict:
            raise Unreadable(_NOT_READINGS)
        _add_entries(out, device, tenant, (body,))
    elif type(body) is list:
        _add_entries(out, device, tenant, body)
    else:
        raise Unreadable(_NOT_READINGS)
    if len(out.sensor) == out.first:
        raise Unreadable("there is no reading in it")


def decode_gateway(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    """`{"device-a": [{"ts": …, "values": {…}}], …}`, or packed `{"s": ["d/p", …], "t": [ms, …], "v": [number, …]}`.

    What stands under a device without being readings is refused as one reading of that device.
    """
    out.by_gateway[out.number] = True
    if message.payload[:4] == b'{"s"' and _add_packed_plainly(out, message.payload, tenant):
        return
    body = read_json(message.payload)
    if type(body) is not dict:
        raise Unreadable("must be an object of devices, or the packed form")
    if _is_packed(body):
        _add_packed(out, body, tenant)
    else:
        for name, entries in body.items():
            if type(entries) is not list:
                entries = (entries,)
            _add_entries(out, name, tenant, entries)
    if len(out.sensor) == out.first:
        raise Unreadable("there is no reading in it")


def _add_entries(out: Gathering, device: str, tenant: str, entries: Iterable[Any]) -> None:
    """The readings of `{"ts": …, "values": {…}}` and flat objects; anything else among them is refused as one."""
    properties = out.properties(device, tenant) or NO_PROPERTIES
    sensors, times, column = out.sensor, out.at, out.value
    for entry in entries:
        values = entry.get("values", _ABSENT) if type(entry) is dict else None
        if type(values) is dict:
            ts = entry.get("ts", _ABSENT)
            at = ts * 1000 if type(ts) is int else out.received_at if ts is _ABSENT else time_of(ts)
        elif values is _ABSENT and "ts" not in entry:
            values, at = entry, out.received_at
        else:
            out.add_refused(Reason.MALFORMED, f"{shown(device)}: an element {_NOT_READINGS}", device)
            continue
        for name, value in values.items():
            if name in properties and type(value) in NUMERIC:
                sensors.append(properties[name])
                times.append(at)
                column.append(value)
            else:
                out.add_one(device, tenant, name, value, at)


def _is_packed(body: dict[str, Any]) -> bool:
    """Whether this is the packed form, be it a faulty one; devices called s and v would carry objects."""
    if not ("s" in body and "v" in body and body.keys() <= _PACKED_KEYS):
        return False
    names = body["s"]
    return not (isinstance(names, dict) or (isinstance(names, list) and names and isinstance(names[0], dict)))


def _add_packed_plainly(out: Gathering, payload: bytes, tenant: str) -> bool:
    """The packed form without a Python step per reading; False, and nothing added, where it takes a closer look."""
    try:
        packed = _PACKED.decode(payload)
    except (ValueError, RecursionError):
        return False
    names = packed.s
    if not names or not len(names) == len(packed.t) == len(packed.v):
        return False
    ids = out.ids(tenant)
    found = list(map(ids.__getitem__, names))
    if min(found) < 0:
        return False
    out.sensor += found
    out.at += packed.t
    out.value += packed.v
    out.scale[out.number] = 1000
    return True


def _add_packed(out: Gathering, body: dict[str, Any], tenant: str) -> None:
    names, values = body["s"], body["v"]
    times = body.get("t", _ABSENT)
    if times is _ABSENT and isinstance(names, list):
        times = [out.received_at / 1000] * len(names)
    if not (isinstance(names, list) and isinstance(times, list) and isinstance(values, list)):
        raise Unreadable("s, t and v must be arrays")
    if not len(names) == len(times) == len(values):
        raise Unreadable(f"s, t and v differ in length: {len(names)}, {len(times)}, {len(values)}")
    ids = out.ids(tenant)
    for name, ts, value in zip(names, times, values, strict=True):
        if type(name) is not str:
            out.add_refused(Reason.MALFORMED, "a name in s must be device/property", None)
            continue
        at = time_of(ts)
        index = ids[name]
        if index >= 0 and type(value) in NUMERIC:
            out.sensor.append(index)
            out.at.append(at)
            out.value.append(value)
        else:
            device, _, prop = name.partition("/")
            out.add_one(device, tenant, prop, value, at)
