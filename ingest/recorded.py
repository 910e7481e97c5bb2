"""Recorded readings from files (contract 8)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ingest.codecs.gathering import FIRST_TIME, LAST_TIME, NOT_A_TIME, time_of
from twin.model import Floats, Indices, Ints, InvalidReadings, Micros, Problem, iso
from twin.sensors import decode_text, name_fault

COLUMNS: Final = ("device", "property", "observed_at", "value")
IGNORED: Final = ("quality",)  # what our own export adds
MAX_LISTED: Final = 1000
MAX_LINE: Final = 16 << 20  # bytes; what has no line end for so long is no CSV
ROWS: Final = 250_000  # of a chunk, where a file's fields are quoted
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
        from ingest.arrow import parquet_chunks

        mistakes = Mistakes(name, "row")
        parts = list(parquet_chunks(io.BytesIO(data), mistakes, latest))
        mistakes.raise_if_any()
        return Recorded.join(parts)
    return parse_readings_csv(data, name, latest=latest)


def parse_readings_csv(data: bytes, name: str = "", *, latest: Micros | None = None) -> Recorded:
    """The readings of a CSV file with the columns of `COLUMNS` in any order; `name` is the file's, for messages.

    Times are epoch milliseconds or RFC 3339 with a zone, from 2000 to `latest` (None: whenever); values are numbers,
    true, false, or empty or null for a missing one. Raises `InvalidReadings` with the first `MAX_LISTED` mistakes,
    and the number of the others.
    """
    mistakes = Mistakes(name, "line")
    parts = list(csv_chunks([data], mistakes, latest))
    mistakes.raise_if_any()
    return Recorded.join(parts)


class Mistakes:
    """Mistakes of a file by the number of its `word` (line, row). Bound: `MAX_LISTED` kept, the rest counted."""

    def __init__(self, name: str, word: str) -> None:
        self._name = name
        self._word = word
        self._listed: list[tuple[int, str, str]] = []
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._listed)

    def add(self, number: int, field: str, text: str) -> None:
        """In line or row `number`; 0: in the file as a whole."""
        if len(self._listed) < MAX_LISTED:
            self._listed.append((number, field, text))
        else:
            self._more += 1

    def raise_if_any(self) -> None:
        if not self._listed:
            return
        prefix = f"{self._name}, {self._word} " if self._name else f"{self._word} "
        found = [
            Problem(f"{prefix}{number}" if number else self._name, field, text)
            for number, field, text in sorted(self._listed)
        ]
        if self._more:
            found.append(Problem(self._name, "", f"and {self._more} more mistakes"))
        raise InvalidReadings(found, self._name)


# A faster way for whole lines: `(lines without their header, header, number of the first, latest)`; None where anything
# of them is not quite ordinary.
Fast = Callable[[bytes, list[str], int, Micros | None], Recorded | None]


def csv_chunks(
    blocks: Iterable[bytes], mistakes: Mistakes, latest: Micros | None = None, fast: Fast | None = None
) -> Iterator[Recorded]:
    """The readings of a CSV file that comes in blocks, cut anywhere, as `parse_readings_csv` describes them: about a
    chunk a block. Mistakes go to `mistakes`; of a chunk with some, the rows are not to be used.

    Bound: two blocks and what one becomes, or `ROWS` rows; `MAX_LINE`.
    """
    header: list[str] = []
    line = 1
    whole = _whole_lines(blocks)
    for data in whole:
        text = decode_text(data)
        if isinstance(text, Problem):
            mistakes.add(line - 1 + int(text.place.removeprefix("line ")), "", text.text)
            return
        if line == 1:
            first, end, text = text.partition("\n")
            if first.count('"') % 2 and not text:
                mistakes.add(1, "", "is not CSV: unexpected end of data")
                return
            header = _header(first, mistakes)
            if mistakes:
                return
            data = text.encode()
            line += bool(end)
        if '"' in text:
            yield from _quoted_chunks(text, whole, header, line, mistakes, latest)
            return
        if not text:
            continue
        made = None if fast is None else fast(data, header, line, latest)
        if made is None:
            lines, columns = _plain_columns(text, header, line) or _columns([text], header, line, mistakes)
            made = _recorded(lines, columns, mistakes, latest)
        yield made
        line += text.count("\n")
    if not header:
        _header("", mistakes)


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    size = 0
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end or size > MAX_LINE:
            yield b"".join([*rest, block[:end] if end else block])
            rest, block = [], block[end:] if end else b""
            size = 0
        rest.append(block)
        size += len(block)
    if size:
        yield b"".join(rest)


def _quoted_chunks(
    text: str, more: Iterator[bytes], header: list[str], line: int, mistakes: Mistakes, latest: Micros | None
) -> Iterator[Recorded]:
    """The rest of a file in which a field may reach over lines."""

    def texts() -> Iterator[str]:
        yield text
        for data in more:
            found = decode_text(data)
            if isinstance(found, Problem):
                mistakes.add(0, "", f"behind line {line}: {found.text}")
                return
            yield found

    for lines, columns in _rows(texts(), header, line, mistakes):
        yield _recorded(lines, columns, mistakes, latest)


def _recorded(lines: Ints, columns: list[list[str]], mistakes: Mistakes, latest: Micros | None) -> Recorded:
    devices, properties, times, values = columns
    sensors, sensor = sensors_of(*codes_of(devices), *codes_of(properties), lines, mistakes)
    observed_at = times_of(times)
    check_times(observed_at, lines, latest, mistakes, times)
    return Recorded(sensors, sensor, observed_at, _values(values, lines, mistakes), lines)


def _plain_columns(text: str, header: list[str], line: int) -> tuple[Ints, list[list[str]]] | None:
    """As `_columns`, six times as fast, for text as most is: no quotes, every line whole. None for any other."""
    width = len(header)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:
            return None
    text = text.removesuffix("\n")
    signs = np.frombuffer(text.encode(), np.uint8)
    signs = signs[(signs == ord(",")) | (signs == ord("\n"))]
    line_ends = np.flatnonzero(signs == ord("\n"))
    count = len(line_ends) + 1
    if len(signs) != width * count - 1 or (line_ends != np.arange(width - 1, width * count - 1, width)).any():
        return None
    cells = text.replace("\n", ",").split(",")
    return np.arange(line, line + count), [cells[header.index(column) :: width] for column in COLUMNS]


def _columns(texts: Iterable[str], header: list[str], line: int, mistakes: Mistakes) -> tuple[Ints, list[list[str]]]:
    """Line numbers, and the texts of device, property, observed_at and value."""
    parts = list(_rows(texts, header, line, mistakes))
    lines = np.concatenate([np.empty(0, np.int64), *(lines for lines, _ in parts)])
    return lines, [[cell for _, columns in parts for cell in columns[n]] for n in range(len(COLUMNS))]


def _rows(
    texts: Iterable[str], header: list[str], line: int, mistakes: Mistakes
) -> Iterator[tuple[Ints, list[list[str]]]]:
    """`ROWS` rows at a time, as `_columns`; `line` is the number of the first."""
    reader = csv.reader((part for text in texts for part in io.StringIO(text, newline="")), strict=True)
    width = len(header)
    places = [header.index(column) for column in COLUMNS]
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in COLUMNS]
    number = line
    try:
        for row in reader:
            if len(row) == width:
                lines.append(number)
                for column, place in zip(columns, places, strict=True):
                    column.append(row[place])
                if len(lines) == ROWS:
                    yield np.array(lines, np.int64), columns
                    lines, columns = [], [[] for _ in COLUMNS]
            elif row:
                mistakes.add(number, "", f"has {len(row)} fields; the header has {width}")
            number = line + reader.line_num
    except csv.Error as error:
        mistakes.add(max(line + reader.line_num - 1, 1), "", f"is not CSV: {error}")
    yield np.array(lines, np.int64), columns


def _header(text: str, mistakes: Mistakes) -> list[str]:
    """The names of the columns, in their order."""
    try:
        header = [field.strip() for field in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        mistakes.add(1, "", f"is not CSV: {error}")
        return []
    check_columns(header, mistakes, 1)
    return header


def check_columns(header: list[str], mistakes: Mistakes, place: int) -> None:
    """Whether these are the columns of recorded readings."""
    if not any(header):
        mistakes.add(place, "", f"is empty; recorded readings begin with the header {','.join(COLUMNS)}")
        return
    for field in dict.fromkeys(header):
        if field not in COLUMNS and field not in IGNORED:
            mistakes.add(place, quoted(field), "unknown column")
        elif header.count(field) > 1:
            mistakes.add(place, field, "column given twice")
    for field in COLUMNS:
        if field not in header:
            mistakes.add(place, field, "column missing")


def sensors_of(
    device_names: Sequence[str],
    device_code: Ints,
    property_names: Sequence[str],
    property_code: Ints,
    line: Ints,
    mistakes: Mistakes,
) -> tuple[list[tuple[str, str]], Indices]:
    """The sensors (device, property) that rows name by the codes of two lists of names, and each row's place among
    them."""
    found, sensor = _distinct(
        device_code * len(property_names) + property_code, len(device_names) * len(property_names)
    )
    pairs = [(device_names[i // len(property_names)], property_names[i % len(property_names)]) for i in found.tolist()]
    clean = [(device.strip(), prop.strip()) for device, prop in pairs]
    for place, field in enumerate(("device", "property")):
        faults = [name_fault(pair[place]) for pair in clean]
        is_faulty = np.array([fault is not None for fault in faults], np.bool_)
        if is_faulty.any():
            for row in np.flatnonzero(is_faulty[sensor]).tolist():
                mistakes.add(int(line[row]), field, faults[sensor[row]] or "")
    if len(set(clean)) < len(clean):  # spaces about a name made two of one
        merged = {pair: index for index, pair in enumerate(dict.fromkeys(clean))}
        sensor = np.array([merged[pair] for pair in clean], np.int32)[sensor]
        clean = list(merged)
    return clean, sensor


def _distinct(code: Ints, size: int) -> tuple[Ints, Indices]:
    """The different ones of `code`, all below `size`, ascending, and each one's place among them."""
    if size > 4 * len(code) + 1_000_000:
        found, place = np.unique(code, return_inverse=True)
        return found.astype(np.int64), place.reshape(-1).astype(np.int32)
    is_there = np.zeros(size, np.bool_)
    is_there[code] = True
    there = np.flatnonzero(is_there)
    places = np.empty(size, np.int32)
    places[there] = np.arange(len(there))
    return there, places[code]


def codes_of(texts: Sequence[str]) -> tuple[list[str], Ints]:
    """The different texts, and each one's place among them."""
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


def times_of(texts: Sequence[str]) -> Ints:
    """Epoch milliseconds or RFC 3339 texts in µs; for what is neither, `NOT_A_TIME` or beyond `LAST_TIME`."""
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
    return at


def check_times(
    at: Ints, line: Ints, latest: Micros | None, mistakes: Mistakes, texts: Sequence[object] | None = None
) -> None:
    """Whether these lie between 2000 and `latest`; `texts` is what they were read from."""
    last = LAST_TIME - 1 if latest is None else latest
    for row in np.flatnonzero((at < FIRST_TIME) | (at > last)).tolist():
        moment = int(at[row])
        if moment <= NOT_A_TIME or moment >= LAST_TIME:
            word = f"{quoted(str(texts[row]))} " if texts is not None else ""
            text = f"{word}is not a time: epoch milliseconds, or RFC 3339 with its zone"
        elif moment < FIRST_TIME:
            text = f"{iso(moment)} is before 2000"
        else:
            text = f"{iso(moment)} lies in the future"
        mistakes.add(int(line[row]), "observed_at", text)


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


def _values(texts: Sequence[str], line: Ints, mistakes: Mistakes) -> Floats:
    try:
        value = np.array(list(map(float, texts)), np.float64)
        is_plain = bool(np.isfinite(value).all()) and "_" not in "".join(texts)  # float() reads 1_000
    except ValueError:
        is_plain = False
    if not is_plain:
        value = np.array(list(map(_value, texts)), np.float64)
    for row in np.flatnonzero(np.isinf(value)).tolist():
        text = f"{quoted(texts[row])} is not a number"
        mistakes.add(int(line[row]), "value", text)
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


def quoted(text: str) -> str:
    """Short and printable, for a message."""
    text = text if len(text) <= 60 else f"{text[:60]}…"
    return f'"{text}"' if text.isprintable() else ascii(text)
