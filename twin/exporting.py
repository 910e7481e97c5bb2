"""`cimtwin export`: readings and alerts to a file, as CSV, JSON lines or Parquet by its ending."""

from __future__ import annotations

import asyncio
import csv
import io
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import orjson
import psycopg

from twin.arrow import MISSING_EN, MISSING_ZH, ParquetFile, is_here, readings_table
from twin.catalog import Catalog
from twin.live import alert_json, isos
from twin.model import Micros, NotFound, Problem, Quality, Readings, Refused, parse_time
from twin.settings import Settings
from twin.store.catalog import refresh
from twin.store.database import READING_COLUMNS, stream_readings
from twin.store.migrate import migrate
from twin.store.reader import AlertQuery, Reader
from twin.store.rows import moment
from twin.units import load_kinds

ENDINGS: Final = (".csv", ".jsonl", ".parquet")
PAGE: Final = 1000
READING_FIELDS: Final = ("device", "property", "observed_at", "value", "quality")
ALERT_FIELDS: Final = {
    "id": "text", "rule": "text", "rule_version": "number", "sensor": "text", "asset": "text", "tenant": "text",
    "domain": "text", "level": "text", "peak_level": "text", "state": "text", "flags": "text", "since": "time",
    "raised_at": "time", "cleared_at": "time", "value": "number", "peak_value": "number", "threshold": "number",
    "lon": "number", "lat": "number", "place": "text", "message_zh": "text", "message_en": "text",
    "instruction_zh": "text", "instruction_en": "text", "assignee": "text", "verdict": "text",
}  # fmt: skip


def export_readings(
    settings: Settings, dsn: str, from_: str | None, to: str | None, sensors: Sequence[str], out: Path
) -> str:
    """Readings observed within [from, to), by time and sensor, values in the kind's unit. Bound: a few thousand."""
    start, end = _span(from_, to)
    migrate(dsn)
    catalog = Catalog(load_kinds(settings.kinds))
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin export") as connection:
        with connection.transaction():
            refresh(connection, catalog)
        names = [(sensor.device, sensor.property) for sensor in catalog.sensors]
        query = f"select {READING_COLUMNS} from readings where true"
        params: dict[str, object] = {}
        for name, sign, at in (("start", ">=", start), ("end", "<", end)):
            if at is not None:
                query += f" and observed_at {sign} %({name})s"
                params[name] = moment(at)
        if sensors:
            query += " and sensor_id = any(%(sensors)s)"
            params["sensors"] = [_sensor(catalog, name) for name in sensors]
        count = 0
        with _opened(out) as file:
            add, end_it = _readings_sink(file, out.suffix.lower(), names)
            for part in stream_readings(connection, f"{query} order by observed_at, sensor_id", params):
                add(part)
                count += len(part)
            end_it()
    return f"{out}: {count} readings / {count} 条读数"


def export_alerts(
    settings: Settings, dsn: str, from_: str | None, to: str | None, sensors: Sequence[str], out: Path
) -> str:
    """Alerts open at any time within [from, to), the newest first."""
    start, end = _span(from_, to)
    migrate(dsn)
    catalog = Catalog(load_kinds(settings.kinds))
    with (
        psycopg.connect(dsn, autocommit=True, application_name="cimtwin export") as connection,
        connection.transaction(),
    ):
        refresh(connection, catalog)
    which = AlertQuery(start, end, sensors=tuple(_sensor(catalog, name) for name in sensors))
    with _opened(out) as file:
        count = asyncio.run(_write_alerts(dsn, which, file, out.suffix.lower()))
    return f"{out}: {count} alerts / {count} 条报警"


async def _write_alerts(dsn: str, which: AlertQuery, file: IO[bytes], ending: str) -> int:
    count = 0
    parquet = ParquetFile(file) if ending == ".parquet" else None
    if ending == ".csv":
        file.write(_csv([list(ALERT_FIELDS)]))
    async for page in _alert_pages(dsn, which):
        count += len(page)
        if ending == ".jsonl":
            file.write(b"".join(orjson.dumps(item) + b"\n" for item in page))
            continue
        rows = [_flat(item) for item in page]
        if parquet is not None:
            parquet.add_objects(rows, ALERT_FIELDS)
        else:
            file.write(_csv([[row[name] for name in ALERT_FIELDS] for row in rows]))
    if parquet is not None:
        if not count:
            parquet.add_objects([], ALERT_FIELDS)
        parquet.close()
    return count


async def _alert_pages(dsn: str, which: AlertQuery) -> AsyncIterator[list[dict[str, Any]]]:
    reader = Reader(dsn)
    try:
        after: tuple[Micros, str] | None = None
        while page := await reader.alerts(which, PAGE, after):
            yield [alert_json(alert) for alert in page]
            after = (page[-1].raised_at, page[-1].id)
    finally:
        await reader.close()


def _flat(item: dict[str, Any]) -> dict[str, Any]:
    place, message, instruction = item["place"], item["message"], item["instruction"]
    return item | {
        "flags": ";".join(item["flags"]), "lon": place["lon"], "lat": place["lat"], "place": place["name"],
        "message_zh": message["zh"], "message_en": message["en"],
        "instruction_zh": instruction["zh"], "instruction_en": instruction["en"],
    }  # fmt: skip


def _readings_sink(
    file: IO[bytes], ending: str, names: Sequence[tuple[str, str]]
) -> tuple[Callable[[Readings], None], Callable[[], None]]:
    if ending == ".parquet":
        parquet = ParquetFile(file)
        parquet.add(readings_table(names, Readings.empty()))
        return lambda part: parquet.add(readings_table(names, part)), parquet.close
    if ending == ".jsonl":

        def write_objects(part: Readings) -> None:
            file.writelines(
                orjson.dumps(dict(zip(READING_FIELDS, row, strict=True))) + b"\n" for row in _rows(names, part)
            )

        return write_objects, lambda: None
    file.write(_csv([READING_FIELDS]))
    return lambda part: _ignore(file.write(_csv(_rows(names, part)))), lambda: None


def _ignore(_: object) -> None:
    pass


def _rows(names: Sequence[tuple[str, str]], part: Readings) -> Iterator[tuple[object, ...]]:
    for sensor, at, value, bits in zip(
        part.sensor.tolist(), isos(part.observed_at), part.value.tolist(), part.quality.tolist(), strict=True
    ):
        yield (*names[sensor], at, None if math.isnan(value) else value, Quality.word(bits))


def _csv(rows: Iterator[tuple[object, ...]] | Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


@contextmanager
def _opened(out: Path) -> Iterator[IO[bytes]]:
    """A file beside `out` that takes its place when all is written, and is gone where that fails."""
    ending = out.suffix.lower()
    if ending not in ENDINGS:
        raise Refused([Problem("--out", "", f"must end with {', '.join(ENDINGS)} / 须以 {'、'.join(ENDINGS)} 结尾")])
    if ending == ".parquet" and not is_here():
        raise Refused([Problem("--out", "", f"{MISSING_EN} / {MISSING_ZH}")])
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, out)
    except OSError as error:
        raise Refused([Problem("--out", "", f"{out}: {error.strerror or error}")]) from None
    finally:
        part.unlink(missing_ok=True)


def _span(from_: str | None, to: str | None) -> tuple[Micros | None, Micros | None]:
    found: list[Micros | None] = []
    for name, text in (("--from", from_), ("--to", to)):
        try:
            found.append(None if text is None else parse_time(text))
        except (ValueError, OverflowError):
            raise Refused([Problem(name, "", "must be RFC 3339 with its zone / 须为带时区的 RFC 3339 时间")]) from None
    if found[0] is not None and found[1] is not None and found[0] >= found[1]:
        raise Refused([Problem("--from", "", "must be before --to / 必须早于 --to")])
    return found[0], found[1]


def _sensor(catalog: Catalog, name: str) -> int:
    try:
        return catalog.find(name)
    except NotFound:
        raise Refused([Problem("--sensor", "", f"unknown sensor {name} / 没有该测点")]) from None
