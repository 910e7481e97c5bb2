"""`cimtwin export models`: a model out of the database, as the files that brought it or in another format. A file is
written beside its place and moved there when whole."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from models3d.crs import UnknownCrs
from models3d.writers import cityjson, csv, geojson, tiles
from twin.city import CityModel
from twin.model import NotFound, Problem, Refused, parse_time
from twin.store.migrate import migrate
from twin.store.models import load_files, load_model, version_of
from twin.store.rows import moment

# By name, how a file that is not named is called, and whether it is a folder of several.
FORMATS: Final = {
    "source": "", "cityjson": "{}.city.json", "cityjsonl": "{}.city.jsonl", "geojson": "{}.geojson", "csv": "{}.csv",
    "survey": "{}", "tiles": "{}",
}  # fmt: skip
FOLDERS: Final = ("survey", "tiles")


def export_model(
    dsn: str, name: str, format_: str, out: Path | None, as_of: str | None = None, number: int | None = None
) -> str:
    """Write a model, its newest version, the one of a time or the one of this number: its own files as they were
    imported (`source`), CityJSON 2.0 (`cityjson`, or as a sequence `cityjsonl`), its assets as `geojson` or `csv`, its
    networks as `survey` tables, or 3D `tiles`; the last two into a folder. What came of it, in a line. Raises
    `Refused`, `NotFound`."""
    if format_ not in FORMATS:
        raise Refused([Problem("--format", "", f"must be one of {', '.join(FORMATS)} / 只能是 {'、'.join(FORMATS)}")])
    try:
        at: dt.datetime | None = None if as_of is None else moment(parse_time(as_of))
    except (ValueError, OverflowError):
        raise Refused([Problem("--as-of", "", "must be an RFC 3339 time with its zone / 须为带时区的时间")]) from None
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin export") as connection:
        version = version_of(connection, name, at, number)
        if format_ == "source":
            return _sources(connection, version, name, out)
        model, ids = load_model(connection, version)
    file = out or Path(FORMATS[format_].format(name))
    try:
        if format_ in FOLDERS:
            written = 0
            for path, data in _parts(format_, model, ids, name):
                file.mkdir(parents=True, exist_ok=True)
                _write(file / path, iter([data]))
                written += 1
            if not written:
                raise Refused([Problem(name, "", "holds no network / 不含管网")])
            return f"{file}: {written} files / {written} 个文件"
        _write(file, _pieces(format_, model, ids))
    except UnknownCrs:
        text = "has no CRS and cannot be put on the map; import it with --crs / 没有坐标系,无法上图,请用 --crs 导入"
        raise Refused([Problem(name, "", text)]) from None
    return f"{file}: {len(ids)} assets / 设施 {len(ids)}"


def _sources(connection: psycopg.Connection, version: int, name: str, out: Path | None) -> str:
    written: list[str] = []
    for place, pieces in load_files(connection, version):
        # The first file goes where it is wanted, what else the model has beside it, under its own name.
        file = (out or Path(Path(place).name)) if not written else (out or Path()).parent / Path(place).name
        _write(file, pieces)
        written.append(str(file))
    if not written:
        raise NotFound(f"the files of {name} were too large to be kept / {name} 的文件过大,未保存")
    return ", ".join(written)


def _pieces(format_: str, model: CityModel, ids: list[str]) -> Iterator[bytes]:
    if format_ == "cityjson":  # under the file's own ids, so that it reads back as what it was
        yield cityjson.write(model)
        return
    if format_ == "cityjsonl":
        yield from cityjson.write_sequence(model)
        return
    known = [replace(asset, local=id_) for asset, id_ in zip(model.assets, ids, strict=True)]
    if format_ == "csv":
        yield csv.assets(known, model.crs)
    else:
        yield from geojson.pieces(known, model.crs)


def _parts(format_: str, model: CityModel, ids: list[str], name: str) -> Iterator[tuple[str, bytes]]:
    if format_ == "survey":
        yield from sorted(csv.survey(model).items())
    else:
        features = [tiles.Feature(id_, asset) for asset, id_ in zip(model.assets, ids, strict=True)]
        yield from tiles.write(features, model.crs, name)


def _write(file: Path, pieces: Iterator[bytes]) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as opened:
            for piece in pieces:
                opened.write(piece)
        part.replace(file)
    except OSError as error:
        raise Refused([Problem("--out", "", f"{file}: {error.strerror or error}")]) from None
    finally:
        part.unlink(missing_ok=True)
