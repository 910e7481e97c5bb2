"""`cimtwin import`: files into the database, recognised by content, each all or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
import psycopg

from alerts.engine import fitted
from alerts.rules import RuleSet, parse_rules
from ingest import quality
from ingest.codecs.gathering import MAX_VALUE
from ingest.recorded import Mistakes, Recorded, csv_chunks
from models3d import readers
from twin.catalog import Catalog
from twin.city import Progress
from twin.importing_models import ModelWords, check_words, import_model, mapped, said
from twin.model import HOUR, InvalidRules, Micros, Problem, Readings, Refused
from twin.sensors import parse_sensors_csv
from twin.settings import Settings
from twin.state import SensorState
from twin.store.backfill import Backfill, in_storing_order, unknown_sensors
from twin.store.catalog import load_facts, refresh, save_rules, upsert_sensors
from twin.store.migrate import migrate
from twin.store.models import Source
from twin.units import Kind, load_kinds

T = TypeVar("T")
FileKind = Literal["sensors", "readings", "rules", "model"]
BLOCK_BYTES: Final = 16 << 20  # of a CSV file of readings, read at once


def recognise(data: readers.Buffer, name: str) -> FileKind:
    """What a file most likely is, by what it holds; its own reader then says what is wrong with it. Raises `Refused`
    where it is none of ours, or no text."""
    head = bytes(data[: readers.HEAD])
    if head.startswith(b"PAR1"):
        return "readings"
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise Refused([Problem(name, "", "is an archive: unpack it first / 是压缩包,请先解压")], name)
    first = next((line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()), "")
    header = {cell.strip().strip('"').lower() for cell in re.split("[,;\\t]", first)}
    if header & {"device", "property"}:
        # Recorded readings may be larger than the memory: their own reader looks at the rest.
        decode_text(head[: head.rfind(b"\n") + 1] if len(head) == readers.HEAD else head, name)
        return "readings" if header & {"observed_at", "time", "value", "timestamp"} else "sensors"
    if not name.lower().endswith(".toml") and readers.recognise(data, name) is not None:
        return "model"
    text = decode_text(data, name)
    if name.lower().endswith(".toml") or re.search(r"^\s*\[\[\s*[A-Za-z_]", text, re.MULTILINE):
        return "rules"
    if not text.strip():
        raise Refused([Problem(name, "", "is empty / 文件为空")], name)
    text = "neither a sensor list, recorded readings, rules nor a model / 不是测点表、历史读数、规则或模型文件"
    raise Refused([Problem(f"{name}, line 1", "", text)], name)


def decode_text(data: readers.Buffer, name: str) -> str:
    """The text of a file in UTF-8, with or without a BOM. Raises `Refused` naming the line of the first wrong byte."""
    data = bytes(data[:])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = "is not UTF-8; save it as UTF-8 / 不是 UTF-8 编码,请另存为 UTF-8"
        raise Refused([Problem(f"{name}, line {line}", "", text)], name) from None


def parse_named_rules(data: readers.Buffer, name: str, kinds: dict[str, Kind]) -> RuleSet:
    """The rules of a file; its mistakes with the file's name."""
    try:
        return parse_rules(bytes(data[:]), kinds)
    except InvalidRules as refused:
        raise InvalidRules([replace(p, place=f"{name}, {p.place}") for p in refused.problems], name) from None


Show = Callable[[str], AbstractContextManager[Progress]]


def _silent(_file: str) -> AbstractContextManager[Progress]:
    return nullcontext(readers.nothing)


def import_files(
    dsn: str,
    files: Sequence[Path],
    settings: Settings,
    tenant: str | None,
    crs: str = "",
    model: str = "",
    show: Show = _silent,
) -> Iterator[str]:
    """Import each file in turn and say in a line what came of it. A file with mistakes changes nothing and ends it.
    Tables of a survey that follow one another are one model. `show` gives, for a model's file, whom to tell of its
    progress."""
    from twin.app import now

    migrate(dsn)
    kinds = load_kinds(settings.kinds)
    words = ModelWords(model, crs, tenant or settings.default_tenant)
    check_words(words)
    waiting = [Source(str(file), mapped(file)) for file in files]
    named = 0
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin import") as connection:
        while waiting:
            source = waiting.pop(0)
            file, data = Path(source.name), source.data
            what = recognise(data, source.name)
            if what == "model":
                named += 1
                if model and named > 1:
                    text = "names one model, and this would be a second / 只能命名一个模型"
                    raise Refused([Problem("--model", "", text)])
                sources = [source]
                while waiting and _is_table(source) and _is_table(waiting[0]):
                    sources.append(waiting.pop(0))
                with show(file.name) as progress:
                    done = import_model(connection, sources, words, progress)
                yield f"{file}: {said(connection, done)}"
            elif what == "sensors":
                yield _import_sensors(connection, file, data, kinds, tenant or settings.default_tenant)
            elif what == "rules":
                rules = parse_named_rules(data, str(file), kinds)
                with connection.transaction():
                    _refuse_ties(connection, rules, kinds, str(file))
                    version = save_rules(connection, rules.text, "import")
                yield f"{file}: {len(rules)} rules, version {version} / {len(rules)} 条规则,版本 {version}"
            else:
                yield _import_readings(connection, file, kinds, now())


def _refuse_ties(connection: psycopg.Connection, rules: RuleSet, kinds: dict[str, Kind], name: str) -> None:
    """Refuse overrides that do not go together on a sensor that there is."""
    if not rules.overrides:
        return
    catalog = Catalog(kinds)
    refresh(connection, catalog)
    load_facts(connection, catalog, rules.attributes)
    problems = fitted(rules, catalog).problems
    if problems:
        raise InvalidRules([replace(p, place=f"{name}, {p.place}") for p in problems], name)


def _is_table(source: Source) -> bool:
    return readers.recognise(source.data, source.name) == "survey"


# Sensors, readings


def _import_sensors(
    connection: psycopg.Connection, file: Path, data: readers.Buffer, kinds: dict[str, Kind], tenant: str
) -> str:
    sensors = parse_sensors_csv(bytes(data[:]), kinds, str(file))
    if tenant != "default":
        sensors = [replace(s, tenant=tenant) if s.tenant == "default" else s for s in sensors]
    with connection.transaction():
        created, updated = upsert_sensors(connection, sensors, kinds)
    return f"{file}: {created} sensors created, {updated} updated / 新增 {created} 个测点,更新 {updated} 个"


def _import_readings(connection: psycopg.Connection, file: Path, kinds: dict[str, Kind], at: Micros) -> str:
    """Chunk by chunk in one transaction, the next chunk being read while one is stored. After a first mistake nothing
    is stored any more, and the rest is read for its mistakes."""
    from ingest.arrow import fast_lines, parquet_chunks

    catalog = Catalog(kinds)
    with connection.transaction():
        refresh(connection, catalog)
    latest = at + HOUR
    with file.open("rb") as opened:
        is_parquet = opened.read(4) == b"PAR1"
        opened.seek(0)
        mistakes = Mistakes(str(file), "row" if is_parquet else "line")
        if is_parquet:
            chunks = parquet_chunks(opened, mistakes, latest)
        else:
            blocks = iter(lambda: opened.read(BLOCK_BYTES), b"")
            chunks = csv_chunks(blocks, mistakes, latest, fast_lines())
        with Backfill(connection, file.name) as backfill:
            for readings, received in _one_ahead(_believable(chunks, catalog, at, mistakes)):
                if not mistakes:
                    backfill.add(readings, received)
            mistakes.raise_if_any()
            stored, repeated = backfill.finish()
    return f"{file}: {stored} readings stored, {repeated} already there / 存入 {stored} 条读数,{repeated} 条已有"


def _believable(
    chunks: Iterator[Recorded], catalog: Catalog, at: Micros, mistakes: Mistakes
) -> Iterator[tuple[Readings, int]]:
    """Chunks as they are stored, in canonical units and with their quality, and how many rows each had."""
    told: set[str] = set()
    for chunk in chunks:
        if chunk.sensors:
            ids = [f"{device}/{prop}" for device, prop in chunk.sensors]
            unknown = set(unknown_sensors(catalog, ids)) - told
            told |= unknown
            for n, name in enumerate(ids):
                if name in unknown:
                    row = int(chunk.line[np.argmax(chunk.sensor == n)])
                    mistakes.add(row, "property", f"unknown sensor {name}")
        if mistakes or not chunk.sensors:
            continue
        sensor = np.array([catalog.find(i) for i in ids], np.int32)[chunk.sensor]
        with np.errstate(over="ignore"):
            value = chunk.value * catalog.factor[sensor] + catalog.offset[sensor]
        for place in np.flatnonzero(np.abs(value) > MAX_VALUE).tolist():
            mistakes.add(int(chunk.line[place]), "value", f"not a number within {MAX_VALUE:g}")
        if mistakes:
            continue
        received_at = np.full(len(sensor), at, np.int64)
        nothing_new = np.zeros(len(sensor), bool)
        state = SensorState.of(len(catalog))
        bits = quality.judge(sensor, chunk.observed_at, received_at, value, catalog, state, nothing_new)
        yield in_storing_order(Readings(sensor, chunk.observed_at, received_at, value, bits)), len(sensor)


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, the next one being made on another thread meanwhile. Bound: one."""
    with ThreadPoolExecutor(1, "import") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
