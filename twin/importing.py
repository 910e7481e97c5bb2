"""`cimtwin import`: files into the database, recognised by content, each all or nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import psycopg

from alerts.rules import parse_rules
from ingest import quality
from ingest.recorded import read_recorded
from twin.catalog import Catalog
from twin.model import InvalidReadings, Problem, Readings, Refused
from twin.sensors import parse_sensors_csv
from twin.settings import Settings
from twin.state import SensorState
from twin.store.backfill import import_readings, unknown_sensors
from twin.store.catalog import refresh, save_rules, upsert_sensors
from twin.store.migrate import migrate
from twin.units import Kind, load_kinds

FileKind = Literal["sensors", "readings", "rules"]
_HEAD: Final = 4096


def recognise(data: bytes, name: str) -> FileKind:
    """What a file is, by what it holds. Raises `Refused` for anything else."""
    head = data[:_HEAD].removeprefix(b"\xef\xbb\xbf")
    header = {cell.strip().strip('"') for cell in head.split(b"\n", 1)[0].decode("utf-8", "replace").split(",")}
    if {"device", "property", "observed_at"} <= header or head.startswith(b"PAR1"):
        return "readings"
    if {"device", "property", "kind"} <= header:
        return "sensors"
    try:
        if "rule" in tomllib.loads(data.decode("utf-8")):
            return "rules"
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        pass
    text = "neither a sensor list, recorded readings nor rules / 不是测点表、历史读数或规则文件"
    raise Refused([Problem(name, "", text)], name)


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
                rules = parse_rules(data, kinds)
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
