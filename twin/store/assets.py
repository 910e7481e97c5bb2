"""What HTTP asks of the city model: assets by box, type, owner and text, now or as the model was; models and their
versions; networks. Read-only, over `twin.store.reader.Reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twin.city import ASSET_TYPES, Geometry, Network
from twin.model import Indices, Micros, NotFound, micros
from twin.store import rows
from twin.store.packing import unpack_geometry, unpack_network
from twin.store.reader import Reader

Box = tuple[float, float, float, float]
NEAR: Final = 3_000  # assets that a box may hold to be found by its index alone
WINDOW: Final = 50_000  # assets looked through at a time where it holds more


@dataclass(frozen=True, slots=True)
class AssetQuery:
    """Which assets. `type`: one of `twin.city.ASSET_TYPES`, or a file's own word. `q`: a part of id, names or code.
    `area`: a district, street or grid cell with all within. `at`: as the models were then."""

    box: Box | None = None
    type: str | None = None
    tenant: str | None = None
    q: str | None = None
    model: str | None = None
    system: str | None = None
    area: str | None = None
    code: str | None = None
    parent: str | None = None
    at: Micros | None = None


@dataclass(frozen=True, slots=True)
class StoredAsset:
    """An asset as a version tells of it. `version`, `crs`: of the version that brought this content; None and "" for
    what is only a name that a sensor gave. `packed`: its geometry, if it was asked for."""

    key: int
    id: str
    model: str | None
    version: int | None
    crs: str
    type: str | None
    element: str
    name_zh: str
    name_en: str
    attributes: dict[str, Any]
    parent: str | None
    level: int
    area: str
    code: str
    system: str
    tenant: str
    lon: float | None
    lat: float | None
    extent: Box | None
    packed: bytes | None

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return unpack_geometry(self.packed)


@dataclass(frozen=True, slots=True)
class Change:
    """What a version did to an asset: `added`, `changed` or `removed`."""

    version: int
    imported_at: Micros
    change: str


_CORNERS: Final = "(v.extent[1])[0], (v.extent[1])[1], (v.extent[0])[0], (v.extent[0])[1]"
_COLUMNS: Final = (
    "v.asset, v.id, m.name, mv.version, coalesce(mv.crs, ''), v.type, v.element, v.name_zh, v.name_en, v.attributes,"
    " v.parent, v.level, v.area, v.code, v.system, v.tenant, v.lon, v.lat, v.extent is not null,"
    f" {_CORNERS}"
)
_JOINS: Final = " left join model_versions mv on mv.id = v.since left join models m on m.id = v.model"
# The version of each model at a time; what is only a name has no history.
_VERSIONS_AT: Final = (
    "(select model, max(id) as id from model_versions where imported_at <= %(at)s group by model) n"
)  # fmt: skip
_AT: Final = "v.since <= n.id and (v.until is null or v.until > n.id)"


def _asset(row: tuple[Any, ...]) -> StoredAsset:
    has_extent, *corners = row[18:23]
    packed = None if row[23] is None else bytes(row[23])
    values: tuple[Any, ...] = (*row[:18], tuple(corners) if has_extent else None, packed)
    return StoredAsset(*values)


def box_text(area: Box) -> str:
    west, south, east, north = area
    return f"({east!r},{north!r}),({west!r},{south!r})"


async def matching(
    reader: Reader, which: AssetQuery, after: int, page: int, with_geometry: bool
) -> AsyncIterator[list[StoredAsset]]:
    """The assets whose box meets `which.box` and that fit otherwise, ascending by key, those above `after`, `page` at
    a time. Geometry comes with all of them, or (`with_geometry` False) with those that reach over the edge of the box,
    for the exact test."""
    conditions, params = _conditions(which)
    geometry = "v.geometry"
    if not with_geometry:
        geometry = "null::bytea"
        if which.box is not None:
            geometry = "case when v.extent <@ %(box)s::box then null else v.geometry end"
    source = f"asset_versions v{_JOINS}"
    if which.at is not None:
        source = f"{_VERSIONS_AT} join asset_versions v on v.model = n.model and {_AT}{_JOINS}"
    else:
        conditions.append("v.until is null")
    if which.box is not None:
        params["box"] = box_text(which.box)
        if which.at is None:
            near = await reader.ask("select assets_in_box(%(box)s::box, %(most)s)", params | {"most": NEAR + 1})
            if len(near) > NEAR:
                async for some in _walk(reader, conditions, params, geometry, after, page):
                    yield some
                return
            conditions.append("v.asset = any(%(near)s)")
            params["near"] = sorted(key for (key,) in near if key > after)
        conditions.append("v.extent && %(box)s::box")
    where = " and ".join([*conditions, "v.asset > %(after)s"])
    query = f"select {_COLUMNS}, {geometry} from {source} where {where} order by v.asset limit %(page)s"
    while True:
        found = await reader.ask(query, params | {"after": after, "page": page})
        yield [_asset(row) for row in found]
        if len(found) < page:
            return
        after = found[-1][0]


async def _walk(
    reader: Reader, conditions: Sequence[str], params: dict[str, object], geometry: str, after: int, page: int
) -> AsyncIterator[list[StoredAsset]]:
    """Assets of a box that holds many, in their order, window after window: a first page is there soon, and none costs
    more than to look at each asset once."""
    where = " and ".join([*conditions, "v.extent && %(box)s::box"])
    source = (
        "(select * from asset_versions where until is null and asset > %(after)s order by asset limit %(window)s) v"
    )
    query = f"select {_COLUMNS}, {geometry} from {source}{_JOINS} where {where} order by v.asset limit %(page)s"
    end = (
        "select max(asset) from (select asset from asset_versions where until is null and asset > %(after)s"
        " order by asset limit %(window)s) v"
    )
    while True:
        given = params | {"after": after, "window": WINDOW, "page": page}
        found = await reader.ask(query, given)
        yield [_asset(row) for row in found]
        if len(found) == page:
            after = found[-1][0]
            continue
        last = (await reader.ask(end, given))[0][0]
        if last is None:
            return
        after = last


def _conditions(which: AssetQuery) -> tuple[list[str], dict[str, object]]:
    conditions: list[str] = []
    params: dict[str, object] = {}
    if which.at is not None:
        params["at"] = rows.moment(which.at)
    if which.type is not None:
        word = which.type.lower()
        conditions.append("v.type = %(type)s" if word in ASSET_TYPES else "lower(v.element) = %(type)s")
        params["type"] = word
    for name in ("tenant", "system", "code", "parent"):
        value = getattr(which, name)
        if value is not None:
            conditions.append(f"v.{name} = %({name})s")
            params[name] = value
    if which.model is not None:
        conditions.append("v.model = (select id from models where name = %(model)s)")
        params["model"] = which.model
    if which.area is not None:
        conditions.append("(v.area = %(area)s or starts_with(v.area, %(area)s || '/'))")
        params["area"] = which.area.rstrip("/")
    if which.q is not None:
        conditions.append(
            "position(%(q)s in lower(v.id || chr(10) || v.name_zh || chr(10) || v.name_en || chr(10) || v.code)) > 0"
        )
        params["q"] = which.q.lower()
    return conditions, params


async def resolve(reader: Reader, name: str) -> tuple[int, str]:
    """`(key, id)` of the asset of this id, else of the one present asset that its model calls so. Raises `NotFound`,
    naming those that it could be where there are several."""
    if "\0" not in name:  # no text of PostgreSQL has one
        found = await reader.ask("select key, id from assets where id = %s", (name,))
        if found:
            return int(found[0][0]), str(found[0][1])
        found = await reader.ask(
            "select key, id from assets where local = %s and is_present order by key limit 4", (name,)
        )
        if not found:  # one that is gone is still readable as of then
            found = await reader.ask("select key, id from assets where local = %s order by key limit 4", (name,))
        if len(found) == 1:
            return int(found[0][0]), str(found[0][1])
        if found:
            several = ", ".join(row[1] for row in found)
            raise NotFound(f"{name} may be {several}: give the whole id / {name} 有多个设施,请给出完整编号")
    raise NotFound(f"no asset {name} / 没有设施 {name}")


async def names_of(reader: Reader, name: str) -> set[str]:
    """Every text by which sensors and alerts may name the asset `name`; empty where there is none. A group that only
    alerts name counts as one."""
    if "\0" in name:
        return set()
    try:
        key, id_ = await resolve(reader, name)
    except NotFound:
        found = await reader.ask("select exists (select from alerts where asset = %s)", (name,))
        return {name} if found[0][0] else set()
    bound = await reader.ask(
        "select distinct s.asset from bindings b join sensors s on s.id = b.sensor_id"
        " where b.asset = %s and b.valid_to is null and s.asset is not null",
        (key,),
    )
    return {id_, name, *(row[0] for row in bound)}


async def one(reader: Reader, key: int, at: Micros | None = None) -> StoredAsset | None:
    """An asset with its geometry, now or at a time; None if it was not there."""
    if at is None:
        source, where = f"asset_versions v{_JOINS}", "v.until is null"
    else:
        source, where = f"asset_versions v left join {_VERSIONS_AT} on n.model = v.model{_JOINS}", f"({_AT})"
    found = await reader.ask(
        f"select {_COLUMNS}, v.geometry from {source} where v.asset = %(key)s and {where}",
        {"key": key, "at": rows.moment(at)},
    )
    return _asset(found[0]) if found else None


async def ids_of(reader: Reader, keys: Sequence[int]) -> dict[int, str]:
    """The ids of assets by key."""
    return dict(await reader.ask("select key, id from assets where key = any(%s)", (list(keys),)))


async def sensors_on(reader: Reader, keys: Sequence[int], at: Micros | None = None) -> dict[int, list[str]]:
    """The sensors on assets, now or at a time, by the assets' keys."""
    when = "b.valid_to is null"
    if at is not None:
        when = "b.valid_from <= %(at)s and (b.valid_to is null or b.valid_to > %(at)s)"
    found = await reader.ask(
        "select b.asset, s.device || '/' || s.property from bindings b join sensors s on s.id = b.sensor_id"
        f" where b.asset = any(%(keys)s) and {when} order by s.id",
        {"keys": list(keys), "at": rows.moment(at)},
    )
    result: dict[int, list[str]] = {}
    for key, sensor in found:
        result.setdefault(key, []).append(sensor)
    return result


async def bindings_of(reader: Reader, key: int) -> list[tuple[str, Micros, Micros | None]]:
    """Every binding that an asset ever had: sensor, from, to."""
    found = await reader.ask(
        "select s.device || '/' || s.property, b.valid_from, b.valid_to from bindings b"
        " join sensors s on s.id = b.sensor_id where b.asset = %s order by b.valid_from, s.id",
        (key,),
    )
    return [(sensor, micros(start), rows.instant(end)) for sensor, start, end in found]


async def points_of(reader: Reader, keys: Sequence[int]) -> list[dict[str, Any]]:
    """The corners of where assets lie on the map, as GeoJSON; nothing of those that are not on it."""
    found = await reader.ask(
        f"select {_CORNERS} from asset_versions v where asset = any(%s) and until is null and extent is not null",
        (list(keys),),
    )
    return [{"type": "MultiPoint", "coordinates": [[west, south], [east, north]]} for west, south, east, north in found]


async def history(reader: Reader, key: int) -> list[Change]:
    """What each version did to an asset, in order."""
    found = await reader.ask(
        "select a.version, a.imported_at, b.version, b.imported_at, v.until is not null from asset_versions v"
        " join model_versions a on a.id = v.since left join model_versions b on b.id = v.until"
        " where v.asset = %s order by v.since",
        (key,),
    )
    changes: list[Change] = []
    ended: tuple[int, Micros] | None = None
    for since, since_at, until, until_at, is_over in found:
        if ended is not None and ended[0] != since:
            changes.append(Change(*ended, "removed"))
        is_change = ended is not None and ended[0] == since
        changes.append(Change(since, micros(since_at), "changed" if is_change else "added"))
        ended = (until, micros(until_at)) if is_over else None
    if ended is not None:
        changes.append(Change(*ended, "removed"))
    return changes


# Models

_MODEL: Final = (
    "v.id, m.name, v.version, v.format, v.crs, v.height, v.file, v.size, encode(v.sha256, 'hex'), v.tenant,"
    " v.imported_at, v.by, v.assets, v.nodes, v.links, v.kinds, v.added, v.changed, v.removed, v.orphans, v.notes,"
    " v.extent is not null, (v.extent[1])[0], (v.extent[1])[1], (v.extent[0])[0], (v.extent[0])[1],"
    " (select count(*) from model_networks w where w.version = v.id)"
)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of a model, as `model_versions` has it."""

    id: int
    name: str
    version: int
    format: str
    crs: str
    height: str
    file: str
    size: int
    sha256: str
    tenant: str
    imported_at: Micros
    by: str | None
    assets: int
    nodes: int
    links: int
    kinds: dict[str, int]
    added: int
    changed: int
    removed: int
    orphans: list[str]
    notes: list[dict[str, str]]
    extent: Box | None
    networks: int


def _version(row: tuple[Any, ...]) -> StoredVersion:
    has_extent, *corners = row[21:26]
    extent = tuple(corners) if has_extent else None
    values: tuple[Any, ...] = (*row[:10], micros(row[10]), *row[11:21], extent, row[26])
    return StoredVersion(*values)


async def models(reader: Reader, limit: int, after: str | None = None, at: Micros | None = None) -> list[StoredVersion]:
    """The newest version of each model (at a time), by name, above `after`."""
    found = await reader.ask(
        f"select distinct on (m.name) {_MODEL} from model_versions v join models m on m.id = v.model"
        " where (%(after)s::text is null or m.name > %(after)s)"
        " and (%(at)s::timestamptz is null or v.imported_at <= %(at)s)"
        " order by m.name, v.version desc limit %(limit)s",
        {"after": after, "at": rows.moment(at), "limit": limit},
    )
    return [_version(row) for row in found]


async def versions(reader: Reader, name: str) -> list[StoredVersion]:
    """Every version of a model, the newest first; none for an unknown name."""
    if "\0" in name:
        return []
    found = await reader.ask(
        f"select {_MODEL} from model_versions v join models m on m.id = v.model where m.name = %s"
        " order by v.version desc",
        (name,),
    )
    return [_version(row) for row in found]


async def version(reader: Reader, id_: int) -> StoredVersion:
    """The version of this id. Raises `NotFound`."""
    found = await reader.ask(
        f"select {_MODEL} from model_versions v join models m on m.id = v.model where v.id = %s", (id_,)
    )
    if not found:
        raise NotFound(f"no version {id_} / 没有版本 {id_}")
    return _version(found[0])


async def answered(reader: Reader, key: str) -> tuple[str, int, Any] | None:
    """What an import noted under an Idempotency-Key: route, status, answer."""
    found = await reader.ask("select route, status, answer from idempotency where key = %s", (key,))
    return None if not found else (str(found[0][0]), int(found[0][1]), found[0][2])


async def orphans(reader: Reader, name: str) -> list[tuple[str, str]]:
    """Sensors that sit on an asset which the newest version of a model lacks: sensor, asset."""
    found = await reader.ask(
        "select s.device || '/' || s.property, a.id from models m join assets a on a.model = m.id and not a.is_present"
        " join bindings b on b.asset = a.key and b.valid_to is null join sensors s on s.id = b.sensor_id"
        " where m.name = %s order by s.id",
        (name,),
    )
    return [(row[0], row[1]) for row in found]


async def version_at(reader: Reader, model: str, at: Micros | None) -> int | None:
    """The id of a model's version, now or at a time."""
    found = await reader.ask(
        "select max(v.id) from model_versions v join models m on m.id = v.model where m.name = %(model)s"
        " and (%(at)s::timestamptz is null or v.imported_at <= %(at)s)",
        {"model": model, "at": rows.moment(at)},
    )
    return None if found[0][0] is None else int(found[0][0])


async def number_of(reader: Reader, version: int) -> int:
    """Which version of its model the one with this id is."""
    found = await reader.ask("select version from model_versions where id = %s", (version,))
    return int(found[0][0]) if found else 0


async def shown(
    reader: Reader, model: str, area: Box, least: float, most: int, at: Micros | None = None
) -> list[StoredAsset]:
    """What a map shows of a model in a box: lines, and what else is at least `least` degrees wide or high, with their
    geometry; the `most` largest of them, of equal ones some from everywhere, by key."""
    params = {"model": model, "box": box_text(area), "least": least, "most": most, "at": rows.moment(at)}
    source = f"asset_versions v{_JOINS}" if at is None else (
        f"{_VERSIONS_AT} join asset_versions v on v.model = n.model and {_AT}{_JOINS}"
    )  # fmt: skip
    present = "v.until is null and " if at is None else ""
    found = await reader.ask(
        f"select * from (select {_COLUMNS}, v.geometry from {source} where {present}m.name = %(model)s"
        " and v.extent && %(box)s::box and v.geometry is not null"
        " and (greatest(width(v.extent), height(v.extent)) >= %(least)s or v.type in ('pipe', 'road', 'railway'))"
        " order by greatest(width(v.extent), height(v.extent)) desc, hashint4(v.asset) limit %(most)s) found"
        " order by 1",
        params,
    )
    return [_asset(row) for row in found]


async def in_box(
    reader: Reader,
    area: Box,
    after: int,
    page: int,
    *,
    types: Sequence[str] = (),
    models: Sequence[str] = (),
    at: Micros | None = None,
) -> list[StoredAsset]:
    """Assets with their geometry whose box meets `area`, ascending by key, those above `after`, at most `page`: of
    `types` (or of files' own words; of all, if none is named), of `models` (of all)."""
    params = {"box": box_text(area), "after": after, "page": page, "at": rows.moment(at),
              "types": [word.lower() for word in types], "models": list(models)}  # fmt: skip
    source, present = "asset_versions v", "v.until is null and "
    if at is not None:
        source, present = f"{_VERSIONS_AT} join asset_versions v on v.model = n.model and {_AT}", ""
    conditions = []
    if types:
        conditions.append("(type = any(%(types)s) or lower(element) = any(%(types)s))")
    if models:
        conditions.append("model in (select id from models where name = any(%(models)s))")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    # The box first, in a step of its own: the planner may else read all of a type to find what little is in the box.
    found = await reader.ask(
        f"with near as materialized (select v.asset, v.since, v.model, v.type, v.element from {source}"
        f" where {present}v.extent && %(box)s::box and v.asset > %(after)s),"
        f" picked as materialized (select asset, since from near{where} order by asset limit %(page)s)"
        f" select {_COLUMNS}, v.geometry from picked p join asset_versions v on v.asset = p.asset"
        f" and v.since is not distinct from p.since{_JOINS} order by v.asset",
        params,
    )
    return [_asset(row) for row in found]


async def areas_of(reader: Reader, keys: Sequence[int], version: int) -> dict[int, str]:
    """The administrative areas of assets by key, as a version tells of them."""
    return dict(
        await reader.ask(
            "select asset, area from asset_versions where asset = any(%(keys)s) and area <> ''"
            " and since <= %(version)s and (until is null or until > %(version)s)",
            {"keys": list(keys), "version": version},
        )
    )


async def networks(reader: Reader, version: int) -> list[tuple[Network, Indices, Indices]]:
    """The networks of a version, with the keys of the assets that their nodes and edges are."""
    found = await reader.ask("select system, data from model_networks where version = %s order by number", (version,))
    return [await asyncio.to_thread(unpack_network, system, bytes(data)) for system, data in found]
