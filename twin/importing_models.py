"""Models into the database: read, placed on the map, stored as the next version of their name; for `cimtwin import`,
`POST /models` and the demo."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psycopg

from models3d import crs as systems
from models3d import readers
from twin import placing
from twin.city import CityModel, InvalidModel, Progress
from twin.model import Problem, Refused
from twin.store.models import Placed, Source, digest, lock_model, newest_version, save_model

MAPPED_FROM: Final = 8 << 20  # bytes; a larger file is mapped, not read


@dataclass(frozen=True, slots=True)
class ModelWords:
    """What whoever imports a model says of it: its name ("" = the file's), its CRS where the file names none, the
    tenant of assets that name none, and who they are."""

    name: str = ""
    crs: str = ""
    tenant: str = "default"
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of a model's import; `is_unchanged`: its files are those of the newest version, and none was made."""

    name: str
    version_id: int
    is_unchanged: bool


def mapped(file: Path) -> readers.Buffer:
    """A file's bytes; of a large one its map. Raises `Refused` where it cannot be read."""
    try:
        with file.open("rb") as opened:
            if file.stat().st_size < MAPPED_FROM:
                return opened.read()
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Refused([Problem(str(file), "", str(error.strerror))], str(file)) from None


def check_words(words: ModelWords) -> None:
    """Raises `Refused` for a name, CRS or tenant that cannot be."""
    problems = []
    name = words.name
    if name and (len(name) > 100 or name != name.strip() or not name.isprintable() or set(name) & set(':/\\"')):
        text = 'must have at most 100 characters, none of : / \\ " / 最多 100 个字符,不能含 : / \\ "'
        problems.append(Problem("--model", "", text))
    if set("/+# ") & set(words.tenant) or words.tenant == "gateway" or not words.tenant.isprintable():
        text = "must be a tenant's id: without / + # and spaces / 权属单位编号不能含 / + # 和空格"
        problems.append(Problem("--tenant", "", text))
    if words.crs:
        try:
            systems.parse(words.crs)
        except systems.UnknownCrs as error:
            problems.append(Problem("--crs", "", f"{error} / 不是可识别的坐标系"))
    if problems:
        raise Refused(problems)


def name_of(file: str) -> str:
    """The name that a model gets from its file: `城区.city.json` is 城区."""
    stem = re.sub(r"\.(city|osm)$", "", Path(file).stem, flags=re.IGNORECASE)
    return re.sub(r'[:/\\"]|[^\x20-\x7e\xa0-\U0010ffff]', "-", stem).strip()[:100] or "model"


def import_model(
    connection: psycopg.Connection[Any],
    sources: Sequence[Source],
    words: ModelWords,
    progress: Progress = readers.nothing,
    once: tuple[str, str] | None = None,
) -> Imported:
    """Read a model's files and store them as the next version of its name, in one transaction. The newest version's
    files once more make no new one. `once`: an Idempotency-Key and its route, noted in the same transaction. Raises
    `InvalidModel`, `Refused`."""
    check_words(words)
    first = sources[0].name
    name, sha256 = words.name or name_of(first), digest(sources)
    size = sum(len(source.data) for source in sources)
    newest = newest_version(connection, name)
    if newest is not None and _is_same(newest, sha256, words):
        return _noted(connection, Imported(name, newest[0], True), once)
    if len(sources) > 1:
        survey: Any = readers.reader("survey")
        model = survey.read_tables([(s.name, s.data) for s in sources], words.crs, _share(progress, 0.0, 0.7))
    else:
        model = readers.read(sources[0].data, first, words.crs, _share(progress, 0.0, 0.7))
    placed = place(model, name, words, first, size, sha256)
    kept = [Source(Path(source.name).name, source.data) for source in sources]
    with connection.transaction():
        lock_model(connection, name)
        newest = newest_version(connection, name)
        if newest is not None and _is_same(newest, sha256, words):
            return _noted(connection, Imported(name, newest[0], True), once)
        version = save_model(connection, placed, kept, _share(progress, 0.7, 1.0))
        _noted(connection, Imported(name, version, False), once)
    connection.execute("analyze assets, asset_versions, bindings")
    return Imported(name, version, False)


def _noted(
    connection: psycopg.Connection[Any], done: Imported, once: tuple[str, str] | None
) -> Imported:  # fmt: skip
    if once is not None:
        answer = orjson.dumps({"model": done.name, "version_id": done.version_id}).decode()
        connection.execute(
            "insert into idempotency (key, route, status, answer) values (%s, %s, %s, %s::jsonb)"
            " on conflict (key) do nothing",
            (*once, 200 if done.is_unchanged else 201, answer),
        )
    return done


def _is_same(newest: tuple[int, bytes, str, str], sha256: bytes, words: ModelWords) -> bool:
    _, its_sha256, its_crs, its_tenant = newest
    if its_sha256 != sha256 or its_tenant != words.tenant:
        return False
    return not words.crs or (bool(its_crs) and systems.agree(words.crs, its_crs))


def _share(progress: Progress, start: float, end: float) -> Progress:
    return lambda what, share: progress(what, start + (end - start) * share)


def place(model: CityModel, name: str, words: ModelWords, file: str, size: int, sha256: bytes) -> Placed:
    """A model as it is to be stored: what its coordinates mean, and where its assets lie on the map. Raises
    `InvalidModel` where the CRS that was given is not the file's."""
    text, height = model.crs or words.crs, model.height
    extent = np.full((len(model.assets), 4), np.nan)
    if text:
        try:
            crs = systems.parse(text)
        except systems.UnknownCrs as error:
            model.notes.append(Problem(file, "crs", f"{error}: nothing is placed on the map / 坐标系无法识别,未上图"))
        else:
            if words.crs and not systems.agree(words.crs, text):
                said_ = (
                    f"--crs {words.crs} contradicts the file, whose CRS is {crs.name} / 与文件的坐标系 {crs.name} 不符"
                )
                raise InvalidModel([Problem(file, "crs", said_)], file)
            text, height = crs.text, height or crs.height
            extent = placing.extents(model.assets, crs.to_map)
    return Placed(name, model, text, height, extent, words.tenant, Path(file).name, size, sha256, words.by)


def said(connection: psycopg.Connection[Any], done: Imported) -> str:
    """What came of a model's import, in a line."""
    row = connection.execute(
        "select version, format, assets, nodes, links, added, changed, removed, cardinality(orphans), crs,"
        " extent is null from model_versions where id = %s",
        (done.version_id,),
    ).fetchone()
    assert row is not None
    version, format_, assets, nodes, links, added, changed, removed, orphans, crs, is_unplaced = row
    if done.is_unchanged:
        return f"model {done.name} is unchanged, version {version} / 模型 {done.name} 无变化,仍为版本 {version}"
    en = f"model {done.name} ({format_}), version {version}: {assets} assets, {nodes} nodes, {links} links;"
    en += f" {added} added, {changed} changed, {removed} removed, {orphans} sensors orphaned"
    zh = f"模型 {done.name} 版本 {version}:设施 {assets},节点 {nodes},管段 {links};新增 {added},变更 {changed},"
    zh += f"移除 {removed},失去设施的测点 {orphans}"
    if is_unplaced and assets:
        en += "; not on the map" + ("" if crs else ": no CRS, give --crs")
        zh += ";未上图" + ("" if crs else ":无坐标系,请用 --crs 指定")
    return f"{en} / {zh}"
