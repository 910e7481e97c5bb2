"""`cimtwin export`: what the database holds, as files. Each is written beside its place and moved there when whole."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from models3d import crs as systems
from twin import placing
from twin.city import Asset, CityModel
from twin.model import NotFound, Problem, Refused, parse_time
from twin.store.migrate import migrate
from twin.store.models import load_files, load_model, version_of
from twin.store.rows import moment

FORMATS: Final = ("source", "geojson")


def export_model(
    dsn: str, name: str, format_: str, out: Path | None, as_of: str | None = None, number: int | None = None
) -> str:
    """Write a model, its newest version, the one of a time or the one of this number: its own files as they were
    imported (`source`), or its assets as GeoJSON. What came of it, in a line. Raises `Refused`, `NotFound`."""
    if format_ not in FORMATS:
        raise Refused([Problem("--format", "", f"must be one of {', '.join(FORMATS)} / 只能是 {'、'.join(FORMATS)}")])
    try:
        at: dt.datetime | None = None if as_of is None else moment(parse_time(as_of))
    except (ValueError, OverflowError):
        raise Refused([Problem("--as-of", "", "must be an RFC 3339 time with its zone / 须为带时区的时间")]) from None
    migrate(dsn)
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin export") as connection:
        version = version_of(connection, name, at, number)
        if format_ == "geojson":
            model, ids = load_model(connection, version)
            file = out or Path(f"{name}.geojson")
            _write(file, _collection(model, ids))
            return f"{file}: {len(ids)} assets / 设施 {len(ids)}"
        written: list[str] = []
        for place, pieces in load_files(connection, version):
            # The first file goes where it is wanted, what else the model has beside it, under its own name.
            file = (out or Path(Path(place).name)) if not written else (out or Path()).parent / Path(place).name
            _write(file, pieces)
            written.append(str(file))
    if not written:
        raise NotFound(f"the files of {name} were too large to be kept / {name} 的文件过大,未保存")
    return ", ".join(written)


def _write(file: Path, pieces: Iterator[bytes]) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as opened:
            for piece in pieces:
                opened.write(piece)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _collection(model: CityModel, ids: list[str]) -> Iterator[bytes]:
    """A FeatureCollection, one asset a line; geometries are null where the CRS is not known."""
    try:
        to_map = systems.parse(model.crs).to_map if model.crs else None
    except systems.UnknownCrs:
        to_map = None
    yield b'{"type":"FeatureCollection","features":['
    for n, (asset, id_) in enumerate(zip(model.assets, ids, strict=True)):
        yield (b",\n" if n else b"\n") + orjson.dumps(_feature(asset, id_, to_map), option=orjson.OPT_SERIALIZE_NUMPY)
    yield b"\n]}\n"


def _feature(asset: Asset, id_: str, to_map: placing.ToMap | None) -> dict[str, Any]:
    properties = {
        name: getattr(asset, name)
        for name in ("type", "element", "name_zh", "name_en", "system", "area", "code", "tenant", "parent")
        if getattr(asset, name)
    }
    shape = None if to_map is None else placing.geojson(asset.geometry, to_map)
    level = {"level": f"CIM{asset.level}"} if asset.level else {}
    return {"type": "Feature", "id": id_, "geometry": shape, "properties": {**asset.attributes, **level, **properties}}
