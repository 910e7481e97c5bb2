"""Lists of sensors as files and JSON (contract 8): read whole or refused whole, with every mistake."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from twin.model import InvalidSensors, Problem, Sensor, SensorMode
from twin.units import Kind, conversion, spell

COLUMNS: Final = (
    "device", "property", "kind", "unit", "tenant", "asset", "lon", "lat", "interval_s", "min", "max", "tags",
)  # fmt: skip
REQUIRED: Final = COLUMNS[:3]
MAX_NAME: Final = 128
MAX_TEXT: Final = 512
MAX_HINTS: Final = 100
MAX_BYTES: Final = 256 << 20
_NUMBERS: Final = (("lon", -180.0, 180.0), ("lat", -90.0, 90.0), ("interval_s", 0.0, 1e9), ("min", -1e15, 1e15),
                   ("max", -1e15, 1e15))  # fmt: skip
_STATISTICS: Final = ("mean", "rms", "peak_to_peak", "frequency")
_EXTRA_FIELDS: Final = frozenset(("mode", "statistic", "id", "rules"))  # `rules` is told, and not taken
_JSON_FIELDS: Final = _EXTRA_FIELDS.union(COLUMNS)


def parse_sensors_csv(
    data: bytes, kinds: Mapping[str, Kind], name: str = "", *, default_tenant: str = "default"
) -> list[Sensor]:
    """The sensors of a CSV list; `name` is the file's, for messages. A header alone is an empty list.

    UTF-8 with or without BOM, columns of `COLUMNS` in any order, the first three required; an empty `unit` means the
    kind's own, an empty `tenant` the default one. Raises `InvalidSensors` with every bad line and field.
    """
    checks = _Checks(kinds, default_tenant, f"{name}, line " if name else "line ")
    for number, row in _rows(data, checks, name):
        checks.take(number, row)
    return checks.result(name)


def sensors_from_json(
    objects: Sequence[Any], kinds: Mapping[str, Kind], *, default_tenant: str = "default"
) -> list[Sensor]:
    """Sensors from JSON objects with the fields of `COLUMNS` (numbers as numbers, `tags` a list or text), `mode`, and
    what `sensor_to_json` adds. Raises `InvalidSensors`; places are `item 1`, `item 2`, …"""
    checks = _Checks(kinds, default_tenant, "item ")
    for place, item in enumerate(objects, 1):
        if not isinstance(item, dict):
            checks.problem(place, "", "must be an object")
            continue
        for field in item.keys() - _JSON_FIELDS:
            checks.problem(place, str(field)[:MAX_NAME], "unknown field")
        checks.take(place, item)
    return checks.result("")


def sensor_to_json(sensor: Sensor) -> dict[str, Any]:
    """A sensor as the API gives it; `sensors_from_json` takes it back."""
    return {
        "id": sensor.id,
        "device": sensor.device,
        "property": sensor.property,
        "kind": sensor.kind,
        "unit": sensor.unit,
        "tenant": sensor.tenant,
        "asset": sensor.asset,
        "lon": sensor.lon,
        "lat": sensor.lat,
        "interval_s": sensor.interval_s,
        "min": sensor.min,
        "max": sensor.max,
        "tags": list(sensor.tags),
        "mode": sensor.mode.value,
        "statistic": sensor.statistic,
    }


def name_fault(name: str) -> str | None:
    """Why a device, property or tenant cannot be called so, or None."""
    if not name:
        return "must not be empty"
    if len(name) > MAX_NAME:
        return f"has {len(name)} characters; at most {MAX_NAME}"
    for sign in "/+#":
        if sign in name:
            return f"must not contain {sign}"
    if not name.isprintable() or any(map(str.isspace, name)):
        return "must contain no space and no control character"
    return None


class _Checks:
    """Takes rows one after the other, and gathers sensors and problems. A place is a line's or an item's number, which
    `prefix` makes readable."""

    def __init__(self, kinds: Mapping[str, Kind], default_tenant: str, prefix: str) -> None:
        self._prefix = prefix
        self._word = prefix.split()[-1]
        self._kinds = kinds
        self._default_tenant = default_tenant
        self._sensors: list[Sensor] = []
        self._problems: list[Problem] = []
        self._seen: dict[tuple[str, str], int] = {}
        self._tenant_of: dict[str, tuple[str, int]] = {}
        self._faults: dict[str, str | None] = {}  # of names met
        self._units: dict[tuple[str, str], str | None] = {}
        self._unknown_kinds: dict[str, str] = {}
        self._known_tags: dict[str, tuple[str, ...]] = {}

    def problem(self, place: int, field: str, text: str) -> None:
        self._problems.append(Problem(f"{self._prefix}{place}", field, text))

    def refuse(self, problem: Problem) -> None:
        self._problems.append(problem)

    def result(self, what: str) -> list[Sensor]:
        if self._problems:
            raise InvalidSensors(self._problems, what)
        return self._sensors

    def take(self, place: int, row: Mapping[str, Any]) -> None:
        before = len(self._problems)
        device = self._name(place, row, "device")
        prop = self._name(place, row, "property")
        if device == "gateway":
            self.problem(place, "device", "must not be gateway: that word is taken in topics")
        tenant = self._name(place, row, "tenant", self._default_tenant)
        kind = self._kind(place, row.get("kind"))
        unit = self._unit(place, row.get("unit"), kind)
        lon, lat, interval_s, least, most = [
            None if (given := row.get(field)) is None or given == "" else self._number(place, field, given, low, high)
            for field, low, high in _NUMBERS
        ]
        asset = self._text(place, row, "asset")
        tags = self._tags(place, row.get("tags"))
        mode, statistic = SensorMode.NORMAL, None
        if not _EXTRA_FIELDS.isdisjoint(row):
            mode, statistic = self._extras(place, row, device, prop)
        if (lon is None) != (lat is None) and len(self._problems) == before:
            self.problem(place, "lat" if lat is None else "lon", "lon and lat come together or not at all")
        if interval_s == 0:
            self.problem(place, "interval_s", "must be above 0")
        if least is not None and most is not None and least >= most:
            self.problem(place, "min", f"min {least:g} must be below max {most:g}")
        self._once(place, device, prop, tenant)
        if len(self._problems) == before:
            self._sensors.append(
                Sensor(
                    device, prop, kind.name if kind else "", unit, tenant, asset, lon, lat, interval_s,
                    least, most, tags, mode, statistic,
                )
            )  # fmt: skip

    def _once(self, place: int, device: str, prop: str, tenant: str) -> None:
        if not device or not prop:
            return
        earlier = self._seen.setdefault((device, prop), place)
        if earlier != place:
            self.problem(place, "property", f"{device}/{prop} stands already in {self._word} {earlier}")
        owner, where = self._tenant_of.setdefault(device, (tenant, place))
        if owner != tenant:
            text = f"device {device} is of tenant {owner} in {self._word} {where}, of {tenant} here"
            self.problem(place, "tenant", text)

    def _name(self, place: int, row: Mapping[str, Any], field: str, default: str = "") -> str:
        name = row.get(field)
        if name is None or name == "":
            name = default
        if not isinstance(name, str):
            self.problem(place, field, "must be a text")
            return ""
        if name in self._faults:
            fault = self._faults[name]
        else:
            fault = self._faults[name] = name_fault(name)
        if fault is not None:
            self.problem(place, field, fault)
            return ""
        return name

    def _kind(self, place: int, name: object) -> Kind | None:
        if not isinstance(name, str) or not name:
            self.problem(place, "kind", "must not be empty" if name in (None, "") else "must be a text")
            return None
        kind = self._kinds.get(name)
        if kind is None:
            if name not in self._unknown_kinds:
                may_hint = len(self._unknown_kinds) < MAX_HINTS  # each takes a tenth of a millisecond
                near = difflib.get_close_matches(name[:MAX_NAME], self._kinds, 1) if may_hint else []
                hint = f"; did you mean {near[0]}?" if near else ""
                self._unknown_kinds[name] = f"unknown kind {_quoted(name)}{hint}"
            self.problem(place, "kind", self._unknown_kinds[name])
        return kind

    def _unit(self, place: int, unit: object, kind: Kind | None) -> str:
        if unit is None or unit == "":
            return kind.unit if kind else ""
        if not isinstance(unit, str):
            self.problem(place, "unit", "must be a text")
            return ""
        if kind is None:
            return ""
        key = (unit, kind.unit)
        if key not in self._units:
            spelt = spell(unit)
            fits = spelt is not None and conversion(spelt, kind.unit) is not None
            self._units[key] = spelt if fits else None
        known = self._units[key]
        if known is None:
            if spell(unit) is None:
                self.problem(place, "unit", f"unknown unit {_quoted(unit)}")
            else:
                self.problem(place, "unit", f"{_quoted(unit)} does not measure {kind.name} ({kind.unit or 'no unit'})")
            return ""
        return known

    def _number(self, place: int, field: str, given: object, low: float, high: float) -> float | None:
        try:
            number = float(given)  # type: ignore[arg-type]
        except (ValueError, OverflowError, TypeError):
            number = math.nan
        if low <= number <= high and type(given) is not bool and not (type(given) is str and "_" in given):
            return number
        if math.isfinite(number) and not low <= number <= high:
            self.problem(place, field, f"{number:g} is outside {low:g} to {high:g}")
        else:
            self.problem(place, field, f"{_quoted(str(given)[:MAX_NAME])} is not a number")
        return None

    def _text(self, place: int, row: Mapping[str, Any], field: str) -> str | None:
        text = row.get(field)
        if text is None or text == "":
            return None
        if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
            self.problem(place, field, f"must be a text of at most {MAX_TEXT} characters, none a control character")
            return None
        return text

    def _tags(self, place: int, tags: object) -> tuple[str, ...]:
        if tags is None or tags == "":
            return ()
        given = tags
        if isinstance(given, str):
            known = self._known_tags.get(given)
            if known is not None:
                return known
            tags = given.split(";")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            self.problem(place, "tags", "must be texts")
            return ()
        found = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
        if not all(tag.isprintable() and len(tag) <= MAX_NAME and ";" not in tag for tag in found):
            self.problem(place, "tags", f"a tag has at most {MAX_NAME} characters, none a control character or ;")
        elif isinstance(given, str):
            self._known_tags[given] = found
        return found

    def _extras(self, place: int, row: Mapping[str, Any], device: str, prop: str) -> tuple[SensorMode, str | None]:
        mode, statistic = row.get("mode"), row.get("statistic")
        if mode is not None and mode not in tuple(SensorMode):
            self.problem(place, "mode", f"must be one of {', '.join(SensorMode)}")
            mode = None
        if statistic is not None and statistic not in _STATISTICS:
            self.problem(place, "statistic", f"must be one of {', '.join(_STATISTICS)}")
        if row.get("id") is not None and row["id"] != f"{device}/{prop}":
            self.problem(place, "id", "must be device/property, or be left out")
        return SensorMode(mode or "normal"), statistic


def _quoted(text: str) -> str:
    text = text if len(text) <= 60 else f"{text[:60]}…"
    return f'"{text}"' if text.isprintable() else ascii(text)


def decode_text(data: bytes) -> str | Problem:
    """The text of a UTF-8 file without its BOM, or what is wrong with it (place: `line n`)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem("line 1", "", "is UTF-16; save the file as UTF-8 (in Excel: CSV UTF-8)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, at) + 1
        hint = ""
        try:
            data.decode("gb18030")
            hint = " (it looks like GBK / GB 18030)"
        except UnicodeDecodeError:
            pass
        return Problem(f"line {line}", "", f"is not UTF-8{hint}; save the file as UTF-8 (in Excel: CSV UTF-8)")
    zero = text.find("\0")
    if zero >= 0:
        return Problem(f"line {text.count(chr(10), 0, zero) + 1}", "", "has a NUL byte in it: is this a text file?")
    return text


def _rows(data: bytes, checks: _Checks, name: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of each line that has as many fields as the header; the rest becomes problems."""
    if len(data) > MAX_BYTES:
        checks.refuse(Problem(name, "", f"has {len(data)} bytes; at most {MAX_BYTES}"))
        return
    text = decode_text(data)
    if isinstance(text, Problem):
        checks.refuse(Problem(f"{name}, {text.place}" if name else text.place, "", text.text))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    header: list[str] | None = None
    try:
        for fields in reader:
            line, number = number, reader.line_num + 1
            if not any(map(str.strip, fields)):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                if not _header_fits(header, checks, line):
                    return
            elif len(fields) != len(header):
                checks.problem(line, "", f"has {len(fields)} fields; the header has {len(header)}")
            else:
                yield line, dict(zip(header, map(str.strip, fields), strict=True))
    except csv.Error as error:
        checks.problem(max(number, reader.line_num), "", f"is not CSV: {error}")
        return
    if header is None:
        checks.refuse(Problem(name or "line 1", "", f"is empty; a list begins with the header {','.join(COLUMNS)}"))


def _header_fits(header: list[str], checks: _Checks, place: int) -> bool:
    fits = True
    for field in dict.fromkeys(header):
        if field not in COLUMNS:
            checks.problem(place, _quoted(field), "unknown column")
            fits = False
        elif header.count(field) > 1:
            checks.problem(place, field, "column given twice")
            fits = False
    for field in REQUIRED:
        if field not in header:
            checks.problem(place, field, "column missing")
            fits = False
    return fits
