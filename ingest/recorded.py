"""Recorded readings from files (contract 8)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ingest.codecs.gathering import FIRST_TIME, LAST_TIME, NOT_A_TIME, time_of
from twin.model import Floats, Indices, Ints, InvalidReadings, Micros, Problem, iso
from twin.sensors import decode_text, name_fault

COLUMNS: Final = ("device", "property", "observed_at", "value")
IGNORED: Final = ("quality",)  # what our own export adds
MAX_LISTED: Final = 1000
_WORDS: Final = {"": math.nan, "null": math.nan, "true": 1.0, "false": 0.0}


@dataclass(frozen=True, slots=True)
class Recorded:
    """Columns of recorded readings in the order of the file: `sensor` int32 index into `sensors` (device, property),
    `observed_at` int64 µs, `value` float64 in the sensor's own unit (NaN = missing), `line` int64 where it stands."""

    sensors: list[tuple[str, str]]
    sensor: Indices
    observed_at: Ints
    value: Floats
    line: Ints

    def __len__(self) -> int:
        return len(self.sensor)

    def in_time_order(self) -> Recorded:
        """By time, device, property; of equal ones the first in the file comes first."""
        rank = np.empty(len(self.sensors), np.int64)
        rank[sorted(range(len(self.sensors)), key=self.sensors.__getitem__)] = np.arange(len(self.sensors))
        order = np.lexsort((rank[self.sensor], self.observed_at))
        return Recorded(self.sensors, self.sensor[order], self.observed_at[order], self.value[order], self.line[order])

    @classmethod
    def join(cls, parts: Sequence[Recorded]) -> Recorded:
        """The readings of all parts, one after the other; lines stay those of their files."""
        sensors = list(dict.fromkeys(pair for part in parts for pair in part.sensors))
        index = {pair: place for place, pair in enumerate(sensors)}
        codes = [np.array([index[pair] for pair in part.sensors], np.int32)[part.sensor] for part in parts]
        return cls(
            sensors,
            np.concatenate([np.empty(0, np.int32), *codes]),
            np.concatenate([np.empty(0, np.int64), *(part.observed_at for part in parts)]),
            np.concatenate([np.empty(0), *(part.value for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.line for part in parts)]),
        )


def read_recorded(data: bytes, name: str = "", *, latest: Micros | None = None) -> Recorded:
    """Recorded readings in any format we know, recognised by content. Raises `InvalidReadings`."""
    if data[:4] == b"PAR1":
        text = "is a Parquet file; those cannot be read yet: convert it to CSV (device,property,observed_at,value)"
        raise InvalidReadings([Problem(name, "", text)], name)
    return parse_readings_csv(data, name, latest=latest)


def parse_readings_csv(data: bytes, name: str = "", *, latest: Micros | None = None) -> Recorded:
    """The readings of a CSV file with the columns of `COLUMNS` in any order; `name` is the file's, for messages.

    Times are epoch milliseconds or RFC 3339 with a zone, from 2000 to `latest` (None: whenever); values are numbers,
    true, false, or empty or null for a missing one. Raises `InvalidReadings` with the first `MAX_LISTED` mistakes,
    and the number of the others.
    """
    problems = _Problems(name)
    text = decode_text(data)
    if isinstance(text, Problem):
        raise InvalidReadings([Problem(f"{name}, {text.place}" if name else text.place, "", text.text)], name)
    line, (devices, properties, times, values) = _plain_columns(text) or _columns(text, problems)
    sensors, sensor = _sensors(devices, properties, line, problems)
    observed_at = _times(times, line, latest, problems)
    value = _values(values, line, problems)
    problems.raise_if_any()
    return Recorded(sensors, sensor, observed_at, value, line)


class _Problems:
    """Mistakes of a file. Bound: `MAX_LISTED` kept, the rest counted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listed: list[tuple[int, str, str]] = []
        self._more = 0

    def add(self, line: int, field: str, text: str) -> None:
        if len(self._listed) < MAX_LISTED:
            self._listed.append((line, field, text))
        else:
            self._more += 1

    def raise_if_any(self) -> None:
        if not self._listed:
            return
        prefix = f"{self._name}, line " if self._name else "line "
        found = [Problem(f"{prefix}{line}", field, text) for line, field, text in sorted(self._listed)]
        if self._more:
            found.append(Problem(self._name, "", f"and {self._more} more mistakes"))
        raise InvalidReadings(found, self._name)


def _plain_columns(text: str) -> tuple[Ints, list[list[str]]] | None:
    """As `_columns`, six times as fast, for a file as most are: the four columns in their order, no quotes, every line
    whole. None for any other."""
    header, _, body = text.partition("\n")
    if tuple(header.rstrip("\r").split(",")) != COLUMNS or '"' in body or not body:
        return None
    if "\r" in body:
        body = body.replace("\r\n", "\n")
        if "\r" in body:
            return None
    body = body.removesuffix("\n")
    signs = np.frombuffer(body.encode(), np.uint8)
    signs = signs[(signs == ord(",")) | (signs == ord("\n"))]
    line_ends = np.flatnonzero(signs == ord("\n"))
    count = len(line_ends) + 1
    if len(signs) != 4 * count - 1 or (line_ends != np.arange(3, 4 * count - 1, 4)).any():
        return None
    cells = body.replace("\n", ",").split(",")
    return np.arange(2, count + 2), [cells[place::4] for place in range(4)]


def _columns(text: str, problems: _Problems) -> tuple[Ints, list[list[str]]]:
    """Line numbers, and the texts of device, property, observed_at and value."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in COLUMNS]
    try:
        header = [field.strip() for field in next(reader, [])]
        _check_header(header, problems)
        problems.raise_if_any()
        width = len(header)
        places = [header.index(column) for column in COLUMNS]
        number = reader.line_num + 1
        for row in reader:
            if len(row) == width:
                lines.append(number)
                for column, place in zip(columns, places, strict=True):
                    column.append(row[place])
            elif row:
                problems.add(number, "", f"has {len(row)} fields; the header has {width}")
            number = reader.line_num + 1
    except csv.Error as error:
        problems.add(max(reader.line_num, 1), "", f"is not CSV: {error}")
    return np.array(lines, np.int64), columns


def _check_header(header: list[str], problems: _Problems) -> None:
    if not any(header):
        problems.add(1, "", f"is empty; recorded readings begin with the header {','.join(COLUMNS)}")
        return
    for field in dict.fromkeys(header):
        if field not in COLUMNS and field not in IGNORED:
            problems.add(1, _quoted(field), "unknown column")
        elif header.count(field) > 1:
            problems.add(1, field, "column given twice")
    for field in COLUMNS:
        if field not in header:
            problems.add(1, field, "column missing")


def _sensors(
    devices: Sequence[str], properties: Sequence[str], line: Ints, problems: _Problems
) -> tuple[list[tuple[str, str]], Indices]:
    device_names, device_code = _codes(devices)
    property_names, property_code = _codes(properties)
    found, code = np.unique(device_code * len(property_names) + property_code, return_inverse=True)
    sensor = code.reshape(-1).astype(np.int32)
    pairs = [(device_names[i // len(property_names)], property_names[i % len(property_names)]) for i in found.tolist()]
    clean = [(device.strip(), prop.strip()) for device, prop in pairs]
    for place, field in enumerate(("device", "property")):
        faults = [name_fault(pair[place]) for pair in clean]
        is_faulty = np.array([fault is not None for fault in faults], np.bool_)
        for row in np.flatnonzero(is_faulty[sensor]).tolist():
            problems.add(int(line[row]), field, faults[sensor[row]] or "")
    if len(set(clean)) < len(clean):  # spaces about a name made two of one
        merged = {pair: index for index, pair in enumerate(dict.fromkeys(clean))}
        sensor = np.array([merged[pair] for pair in clean], np.int32)[sensor]
        clean = list(merged)
    return clean, sensor


def _codes(texts: Sequence[str]) -> tuple[list[str], Ints]:
    names = list(dict.fromkeys(texts))
    codes = {name: code for code, name in enumerate(names)}
    return names, np.array(list(map(codes.__getitem__, texts)), np.int64)


class _Minutes(dict[str, Micros]):
    """Times by their text to the minute (`2026-07-01T08:00`); `NOT_A_TIME` for what is none."""

    def __missing__(self, text: str) -> Micros:
        self[text] = at = time_of(f"{text}Z") if len(text) == 16 else NOT_A_TIME
        return at


class _Rests(dict[str, Micros]):
    """What follows the minute (`:30.5Z`, `:30+08:00`) in µs; `NOT_A_TIME` for what does not."""

    def __missing__(self, text: str) -> Micros:
        at = time_of(f"2000-01-01T00:00{text}")
        self[text] = rest = at if at == NOT_A_TIME else at - FIRST_TIME
        return rest


def _times(texts: Sequence[str], line: Ints, latest: Micros | None, problems: _Problems) -> Ints:
    try:
        at = np.clip(np.array(list(map(int, texts)), np.int64), NOT_A_TIME // 1000, LAST_TIME // 1000) * 1000
        is_plain = "_" not in "".join(texts)  # int() reads 1_000
    except (ValueError, OverflowError):
        is_plain = False
    if not is_plain:
        minutes, rests = _Minutes(), _Rests()
        whole = np.array([minutes[text[:16]] for text in texts], np.int64)
        rest = np.array([rests[text[16:]] for text in texts], np.int64)
        at = whole + rest
        for row in np.flatnonzero((whole == NOT_A_TIME) | (rest == NOT_A_TIME)).tolist():
            at[row] = _time(texts[row])
    last = LAST_TIME - 1 if latest is None else latest
    for row in np.flatnonzero((at < FIRST_TIME) | (at > last)).tolist():
        moment = int(at[row])
        if moment <= NOT_A_TIME or moment >= LAST_TIME:
            text = f"{_quoted(texts[row])} is not a time: epoch milliseconds, or RFC 3339 with its zone"
        elif moment < FIRST_TIME:
            text = f"{iso(moment)} is before 2000"
        else:
            text = f"{iso(moment)} lies in the future"
        problems.add(int(line[row]), "observed_at", text)
    return at


def _time(text: str) -> Micros:
    text = text.strip()
    if text[:1] == "-" or (text[:1].isdigit() and "-" not in text):
        try:
            number = int(text) if text.isdecimal() and len(text) < 19 else float(text)
        except ValueError:
            return NOT_A_TIME
        at = NOT_A_TIME if "_" in text else time_of(number)
    else:
        at = time_of(text)
    return min(max(at, NOT_A_TIME), LAST_TIME)


def _values(texts: Sequence[str], line: Ints, problems: _Problems) -> Floats:
    try:
        value = np.array(list(map(float, texts)), np.float64)
        is_plain = bool(np.isfinite(value).all()) and "_" not in "".join(texts)  # float() reads 1_000
    except ValueError:
        is_plain = False
    if not is_plain:
        value = np.array(list(map(_value, texts)), np.float64)
    for row in np.flatnonzero(np.isinf(value)).tolist():
        text = f"{_quoted(texts[row])} is not a number"
        problems.add(int(line[row]), "value", text)
    return value


def _value(text: str) -> float:
    """The number; infinity for what is none, NaN for a missing one."""
    text = text.strip()
    word = _WORDS.get(text.lower())
    if word is not None:
        return word
    try:
        number = math.inf if "_" in text else float(text)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(number) else number


def _quoted(text: str) -> str:
    text = text if len(text) <= 60 else f"{text[:60]}…"
    return f'"{text}"' if text.isprintable() else ascii(text)
