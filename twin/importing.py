"""`cimtwin import`: files into the database, recognised by content, each all or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psycopg

from alerts.rules import RuleSet, parse_rules
from ingest import quality
from ingest.recorded import read_recorded
from twin.catalog import Catalog
from twin.model import InvalidReadings, InvalidRules, Problem, Readings, Refused
from twin.sensors import parse_sensors_csv
from twin.settings import Settings
from twin.state import SensorState
from twin.store.backfill import import_readings, unknown_sensors
from twin.store.catalog import refresh, save_rules, upsert_sensors
from twin.store.migrate import migrate
from twin.units import Kind, load_kinds

FileKind = Literal["sensors", "readings", "rules"]


def recognise(data: bytes, name: str) -> FileKind:
    """What a file most likely is, by what it holds; its own reader then says what is wrong with it. Raises `Refused`
    where it is none of ours, or no text."""
    if data.startswith(b"PAR1"):
        return "readings"
    text = decode_text(data, name)
    first = next((line for line in text.splitlines() if line.strip()), "")
    header = {cell.strip().strip('"').lower() for cell in re.split("[,;\\t]", first)}
    if header & {"device", "property"}:
        return "readings" if header & {"observed_at", "time", "value", "timestamp"} else "sensors"
    if name.lower().endswith(".toml") or re.search(r"^\s*\[\[\s*[A-Za-z_]", text, re.MULTILINE):
        return "rules"
    if not text.strip():
        raise Refused([Problem(name, "", "is empty / 文件为空")], name)
    text = "neither a sensor list, recorded readings nor rules / 不是测点表、历史读数或规则文件"
    raise Refused([Problem(f"{name}, line 1", "", text)], name)


def decode_text(data: bytes, name: str) -> str:
    """The text of a file in UTF-8, with or without a BOM. Raises `Refused` naming the line of the first wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = "is not UTF-8; save it as UTF-8 / 不是 UTF-8 编码,请另存为 UTF-8"
        raise Refused([Problem(f"{name}, line {line}", "", text)], name) from None


def parse_named_rules(data: bytes, name: str, kinds: dict[str, Kind]) -> RuleSet:
    """The rules of a file; its mistakes with the file's name."""
    try:
        return parse_rules(data, kinds)
    except InvalidRules as refused:
        raise InvalidRules([replace(p, place=f"{name}, {p.place}") for p in refused.problems], name) from None


def import_files(dsn: str, files: Sequence[Path], settings: Settings, tenant: str | None) -> Iterator[str]:
    """Import each file in turn and say in a line what came of it. A file with mistakes changes nothing and ends it."""
    from twin.app import now

    migrate(dsn)
    kinds = load_kinds(settings.kinds)
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin import") as connection:
        for file in files:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise Refused([Problem(str(file), "", str(error.strerror))], str(file)) from None
            what = recognise(data, str(file))
            if what == "sensors":
                yield _import_sensors(connection, file, data, kinds, tenant or settings.default_tenant)
            elif what == "rules":
                rules = parse_named_rules(data, str(file), kinds)
                with connection.transaction():
                    version = save_rules(connection, rules.text, "import")
                yield f"{file}: {len(rules)} rules, version {version} / {len(rules)} 条规则,版本 {version}"
            else:
                yield _import_readings(connection, file, data, kinds, now())


def _import_sensors(
    connection: psycopg.Connection, file: Path, data: bytes, kinds: dict[str, Kind], tenant: str
) -> str:
    sensors = parse_sensors_csv(data, kinds, str(file))
    if tenant != "default":
        sensors = [replace(s, tenant=tenant) if s.tenant == "default" else s for s in sensors]
    with connection.transaction():
        created, updated = upsert_sensors(connection, sensors, kinds)
    return f"{file}: {created} sensors created, {updated} updated / 新增 {created} 个测点,更新 {updated} 个"


def _import_readings(connection: psycopg.Connection, file: Path, data: bytes, kinds: dict[str, Kind], at: int) -> str:
    catalog = Catalog(kinds)
    with connection.transaction():
        refresh(connection, catalog)
    recorded = read_recorded(data, str(file), latest=at + 3_600_000_000)
    ids = [f"{device}/{prop}" for device, prop in recorded.sensors]
    unknown = unknown_sensors(catalog, ids)
    if unknown:
        first_line = {
            n: int(recorded.line[np.argmax(recorded.sensor == n)]) for n, i in enumerate(ids) if i in set(unknown)
        }
        raise InvalidReadings(
            [Problem(f"{file}, line {line}", "property", f"unknown sensor {ids[n]}") for n, line in first_line.items()],
            str(file),
        )
    index = np.array([catalog.find(i) for i in ids], np.int32)
    sensor = index[recorded.sensor] if len(ids) else np.empty(0, np.int32)
    value = recorded.value * catalog.factor[sensor] + catalog.offset[sensor]
    received_at = np.full(len(sensor), at, np.int64)
    nothing_new = np.zeros(len(sensor), bool)
    state = SensorState.of(len(catalog))
    bits = quality.judge(sensor, recorded.observed_at, received_at, value, catalog, state, nothing_new)
    readings = Readings(sensor, recorded.observed_at, received_at, value, bits)
    stored, repeated = import_readings(connection, file.name, readings)
    return f"{file}: {stored} readings stored, {repeated} already there / 存入 {stored} 条读数,{repeated} 条已有"
