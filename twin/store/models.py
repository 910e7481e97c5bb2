"""City models in the database: saving a version, and giving one back. Every import is one transaction.

Functions take a connection inside a transaction of the caller's, and raise psycopg's own errors.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import orjson
from psycopg.types.json import Jsonb, set_json_loads

from twin.city import Asset, CityModel, InvalidModel, Network, Progress
from twin.model import Floats, Indices, NotFound, Problem
from twin.store.database import Connection
from twin.store.packing import deflated, pack_geometry, pack_network, unpack_geometry, unpack_network

PROBLEMS_MOST: Final = 200
FILES_BYTES: Final = 1 << 30  # a model's files up to here are kept
# Of one name in several groups the first keeps it as its id; the others' ids say which they are.
_GROUPS: Final = ("object", "node", "area", "link")
_CHUNK: Final = 10_000

_COLUMNS: Final = (
    "asset", "since", "model", "id", "type", "element", "name_zh", "name_en", "attributes", "parent", "level", "area",
    "code", "system", "tenant", "lon", "lat", "extent", "geometry", "digest",
)  # fmt: skip
# In COPY's binary form a jsonb is a byte and its text, and a box its four numbers.
_TYPES: Final = (
    "int4", "int4", "int4", "text", "text", "text", "text", "text", "bytea", "text", "int2", "text", "text", "text",
    "text", "float8", "float8", "bytea", "bytea", "bytea",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a model: its name, its bytes (or its map)."""

    name: str
    data: Any


@dataclass(frozen=True, slots=True)
class Placed:
    """A model as it is to be stored. `crs`, `height`: what its coordinates mean, "" if nobody says. `extent` [N, 4]:
    the assets' boxes on the map, NaN where they have none. `sha256`: of its files. `tenant`: of assets that name none.
    """

    name: str
    model: CityModel
    crs: str
    height: str
    extent: Floats
    tenant: str
    file: str
    size: int
    sha256: bytes
    by: str | None = None


def digest(sources: Sequence[Source]) -> bytes:
    """What makes the files of two imports the same: SHA-256 of the file; of several, of their digests in order."""
    each = [hashlib.sha256(source.data).digest() for source in sources]
    return each[0] if len(each) == 1 else hashlib.sha256(b"".join(each)).digest()


def newest_version(connection: Connection, name: str) -> tuple[int, bytes, str, str] | None:
    """`(id, sha256, crs, tenant)` of a model's newest version."""
    row = connection.execute(
        "select v.id, v.sha256, v.crs, v.tenant from model_versions v join models m on m.id = v.model"
        " where m.name = %s order by v.version desc limit 1",
        (name,),
    ).fetchone()
    return None if row is None else (int(row[0]), bytes(row[1]), str(row[2]), str(row[3]))


def lock_model(connection: Connection, name: str) -> None:
    """Until the end of the transaction nobody else imports a model of this name."""
    connection.execute("select pg_advisory_xact_lock(hashtextextended('cimtwin model ' || %s, 0))", (name,))


def save_model(connection: Connection, placed: Placed, sources: Sequence[Source], progress: Progress) -> int:
    """Store a model as the next version of its name, under `lock_model`; the version's id (`model_versions.id`).

    Assets keep their keys and ids; those that did not change keep their row; those that are gone are marked. Names that
    sensors gave, and that this model brings, become its assets. Raises `InvalidModel`.
    """
    name, assets = placed.name, placed.model.assets
    _check_names(assets, placed.file)
    connection.execute("insert into models (name) values (%s) on conflict do nothing", (name,))
    model = _one(connection, "select id from models where name = %s", (name,))
    version = _one(connection, "select nextval(pg_get_serial_sequence('model_versions', 'id'))")
    known = _known(connection, model)
    fresh = [n for n, asset in enumerate(assets) if (asset.group, asset.local) not in known]
    keys = _next_keys(connection, len(fresh))
    ids = _new_ids(name, assets, fresh, {row[1] for row in known.values()})
    key = np.zeros(len(assets), np.int32)
    id_of: list[str] = []
    new = dict(zip(fresh, zip(keys, ids, strict=True), strict=True))
    for n, asset in enumerate(assets):
        key[n], id_ = new[n] if n in new else known[asset.group, asset.local][:2]
        id_of.append(id_)
    tenants = {placed.tenant, *(asset.tenant for asset in assets if asset.tenant)}
    connection.execute("insert into tenants (id) select unnest(%s::text[]) on conflict do nothing", (sorted(tenants),))
    changed = _copy_assets(connection, placed, version, model, key, id_of, known, progress)
    seen = {(asset.group, asset.local) for asset in assets}
    removed = [row[0] for place, row in known.items() if row[2] and place not in seen]
    back = [row[0] for place, row in known.items() if not row[2] and place in seen]
    connection.execute(
        "update asset_versions set until = %s where asset = any(%s) and until is null and since <> %s",
        (version, changed + removed, version),
    )
    progress("networks / 管网", 0.9)
    _copy_networks(connection, placed.model, version, key)
    _copy_files(connection, sources, version)
    # From here on sensors stay as they are: their names may become assets of this model.
    connection.execute("lock table sensors in share row exclusive mode")
    connection.execute("update assets set is_present = false where key = any(%s)", (removed,))
    connection.execute("update assets set is_present = true where key = any(%s)", (back,))
    _take_named(connection, dict(zip(ids, keys, strict=True)))
    with connection.cursor() as cursor, cursor.copy(
        'copy assets (id, key, model, "group", local) from stdin (format binary)'
    ) as copy:  # fmt: skip
        copy.set_types(["text", "int4", "int4", "text", "text"])
        for n, id_, key_ in zip(fresh, ids, keys, strict=True):
            copy.write_row((id_, key_, model, assets[n].group, assets[n].local))
    _bind_named(connection)
    orphans = [
        row[0]
        for row in connection.execute(
            "select s.device || '/' || s.property from bindings b join sensors s on s.id = b.sensor_id"
            " where b.valid_to is null and b.asset = any(%s) order by 1",
            (removed,),
        )
    ]
    counts = len(fresh) + len(back), len(changed) - len(back), len(removed)
    _save_version(connection, placed, version, model, counts, orphans)
    # Sensors' assets may lie elsewhere now, or give other limits; last, as everybody's commits wait for this row.
    connection.execute("update service set catalog_version = catalog_version + 1")
    progress("stored / 入库", 1.0)
    return version


def _one(connection: Connection, query: str, params: tuple[object, ...] = ()) -> int:
    row = connection.execute(query.encode(), params).fetchone()
    assert row is not None
    return int(row[0])


_Known = dict[tuple[str, str], tuple[int, str, bool, bytes | None]]


def _known(connection: Connection, model: int) -> _Known:
    """By (group, local): key, id, whether it is in the newest version, and what that one says, digested."""
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            'select a."group", a.local, a.key, a.id, a.is_present, v.digest from assets a'
            " left join asset_versions v on v.asset = a.key and v.until is null where a.model = %s",
            (model,),
        )
        return {(group, local): (key, id_, here, said) for group, local, key, id_, here, said in cursor}


def _next_keys(connection: Connection, count: int) -> list[int]:
    found = connection.execute(
        "select nextval(pg_get_serial_sequence('assets', 'key')) from generate_series(1, %s)", (count,)
    ).fetchall()
    return [int(row[0]) for row in found]


def _new_ids(name: str, assets: Sequence[Asset], fresh: Sequence[int], taken: set[str]) -> list[str]:
    """The ids of assets that get one now: `model:local`, with the group added where that is taken."""
    rank = {group: n for n, group in enumerate(_GROUPS)}
    found: dict[int, str] = {}
    for n in sorted(fresh, key=lambda n: rank.get(assets[n].group, len(rank))):
        id_ = f"{name}:{assets[n].local}"
        while id_ in taken:
            id_ += f":{assets[n].group}"
        taken.add(id_)
        found[n] = id_
    return [found[n] for n in fresh]


_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _copy_assets(
    connection: Connection,
    placed: Placed,
    version: int,
    model: int,
    key: Indices,
    ids: Sequence[str],
    known: _Known,
    progress: Progress,
) -> list[int]:
    """Write a row for each asset that is new, changed or back; the keys of the latter two."""
    assets, extent = placed.model.assets, placed.extent
    parents = _parents(assets, ids)
    context = hashlib.blake2b(orjson.dumps([placed.crs, placed.tenant]), digest_size=16).digest()
    problems: list[Problem] = []
    changed: list[int] = []
    lon = ((extent[:, 0] + extent[:, 2]) / 2).tolist()
    lat = ((extent[:, 1] + extent[:, 3]) / 2).tolist()
    boxes = extent.tolist()
    with connection.cursor() as cursor, cursor.copy(
        f"copy asset_versions ({', '.join(_COLUMNS)}) from stdin (format binary)".encode()
    ) as copy:  # fmt: skip
        copy.set_types(_TYPES)
        for n, (asset, key_) in enumerate(zip(assets, key.tolist(), strict=True)):
            if n % _CHUNK == 0:
                progress("assets / 设施入库", 0.9 * n / len(assets))
            texts = (
                asset.type, asset.element, asset.name_zh, asset.name_en, parents.get(asset.parent), asset.area,
                asset.code, asset.system, asset.tenant or placed.tenant,
            )  # fmt: skip
            try:
                attributes = orjson.dumps(asset.attributes, option=orjson.OPT_SERIALIZE_NUMPY)
                geometry = pack_geometry(asset.geometry)
                said = orjson.dumps([asset.local, *texts, asset.level])
            except (TypeError, ValueError) as error:
                _add(problems, placed.file, asset, "attributes", f"cannot be stored: {error} / 无法存储")
                continue
            if b"\\u0000" in attributes + said and _NUL.search(attributes + said):
                _add(problems, placed.file, asset, "attributes", "holds a character U+0000 / 含有空字符")
                continue
            hashed = hashlib.blake2b(context, digest_size=16)
            for part in (said, attributes, geometry or b"", struct.pack("<4d", *boxes[n])):
                hashed.update(part)
            digest_ = hashed.digest()
            before = known.get((asset.group, asset.local))
            if before is not None:
                if before[2] and before[3] == digest_:
                    continue
                changed.append(key_)
            type_, element, name_zh, name_en, parent, area, code, system, tenant = texts
            west, south, east, north = boxes[n]
            is_placed = west == west
            copy.write_row(
                (key_, version, model, ids[n], type_, element, name_zh, name_en, b"\1" + attributes, parent,
                 asset.level, area, code, system, tenant, lon[n] if is_placed else None, lat[n] if is_placed else None,
                 struct.pack(">4d", east, north, west, south) if is_placed else None, geometry, digest_)
            )  # fmt: skip
        if problems:
            raise InvalidModel(problems, placed.file)
    return changed


def _check_names(assets: Sequence[Asset], file: str) -> None:
    problems: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for asset in assets:
        place = asset.group, asset.local
        if not asset.local:
            _add(problems, file, asset, "id", "is missing / 没有编号")
        elif place in seen:
            _add(problems, file, asset, "id", "is there twice / 编号重复")
        seen.add(place)
    if problems:
        raise InvalidModel(problems, file)


def _add(problems: list[Problem], file: str, asset: Asset, field: str, text: str) -> None:
    if len(problems) < PROBLEMS_MOST:
        problems.append(Problem(f"{file}, object {asset.local}", field, text))


def _parents(assets: Sequence[Asset], ids: Sequence[str]) -> dict[str, str]:
    """The ids of the assets that others are part of, by local; of several of one local, the first's."""
    wanted = {asset.parent for asset in assets if asset.parent}
    found: dict[str, str] = {}
    if wanted:
        for asset, id_ in zip(assets, ids, strict=True):
            if asset.local in wanted:
                found.setdefault(asset.local, id_)
    return found


def _copy_networks(connection: Connection, model: CityModel, version: int, key: Indices) -> None:
    if not model.networks:
        return
    place = {(asset.group, asset.local): n for n, asset in enumerate(model.assets)}

    def keys(group: str, locals_: Sequence[str]) -> Indices:
        found = [place.get((group, local), -1) for local in locals_]
        return np.array([key[n] if n >= 0 else -1 for n in found], np.int32)

    for number, network in enumerate(model.networks):
        data = pack_network(network, keys("node", network.node), keys("link", network.edge))
        connection.execute(
            "insert into model_networks (version, number, system, nodes, edges, data) values (%s, %s, %s, %s, %s, %s)",
            (version, number, network.system, len(network.node), len(network.edge), data),
        )


def _copy_files(connection: Connection, sources: Sequence[Source], version: int) -> None:
    if sum(len(source.data) for source in sources) > FILES_BYTES:
        return
    with connection.cursor() as cursor, cursor.copy(
        "copy model_files (version, number, part, name, data) from stdin (format binary)"
    ) as copy:  # fmt: skip
        copy.set_types(["int4", "int2", "int4", "text", "bytea"])
        for number, source in enumerate(sources):
            for part, piece in enumerate(deflated(source.data)):
                copy.write_row((version, number, part, source.name, piece))


def _take_named(connection: Connection, fresh: dict[str, int]) -> None:
    """Names that sensors gave and that are ids of assets now come: their bindings move over."""
    rows = connection.execute("select key, id from assets where model is null").fetchall()
    found = [(old, fresh[id_]) for old, id_ in rows if id_ in fresh]
    if found:
        old, new = zip(*found, strict=True)
        connection.execute(
            "update bindings b set asset = w.new from unnest(%s::int[], %s::int[]) as w(old, new)"
            " where b.asset = w.old",
            (list(old), list(new)),
        )
        _forget(connection, list(old))


def _bind_named(connection: Connection) -> None:
    """Names that sensors gave, and that exactly one present asset has in its model: the bindings move over to it."""
    found = connection.execute(
        "with w as (select p.key as old, u.key as new from assets p cross join lateral"
        " (select min(a.key) as key from assets a where a.local = p.id and a.is_present having count(*) = 1) u"
        " where p.model is null), moved as (update bindings b set asset = w.new from w where b.asset = w.old)"
        " select old from w"
    ).fetchall()
    _forget(connection, [row[0] for row in found])


def _forget(connection: Connection, keys: list[int]) -> None:
    connection.execute("delete from asset_versions where asset = any(%s) and model is null", (keys,))
    connection.execute("delete from assets where key = any(%s) and model is null", (keys,))


def bind_sensors(connection: Connection, catalog_version: int) -> None:
    """Bind the sensors last changed with `catalog_version` to the assets that they name: an asset of that id, else the
    one present asset that its model calls so, else a new one that is only a name. What a binding was before stays
    readable with its times."""
    # A table of its own, and analysed, as it may hold one sensor or 100,000.
    for statement in (
        "create temporary table named (sensor int, name text, tenant text, lon float8, lat float8, key int,"
        " is_new boolean not null default false) on commit drop",
        "insert into named select id, asset, tenant, lon, lat from sensors"
        f" where catalog_version = {catalog_version:d}",
        "analyze named",
        "update named n set key = a.key from assets a where a.id = n.name",
        "update named n set key = u.key from (select a.local, min(a.key) as key from assets a join"
        " (select distinct name from named where key is null and name is not null) w on w.name = a.local"
        " where a.is_present group by a.local having count(*) = 1) u where n.key is null and n.name = u.local",
        "with made as (insert into assets (id) select name from named where key is null and name is not null"
        " group by name order by min(sensor) returning key, id)"
        " update named n set key = m.key, is_new = true from made m where m.id = n.name",
        "analyze named",
        "insert into asset_versions (asset, id, tenant, lon, lat, extent) select distinct on (key) key, name, tenant,"
        " lon, lat, box(point(lon, lat)) from named where is_new order by key, sensor",
        "update bindings b set valid_to = now() from named n"
        " where b.sensor_id = n.sensor and b.valid_to is null and b.asset is distinct from n.key",
        "insert into bindings (sensor_id, asset, valid_from) select n.sensor, n.key, now() from named n left join"
        " bindings b on b.sensor_id = n.sensor and b.valid_to is null where n.key is not null and b.asset is null",
        "drop table named",
    ):
        connection.execute(statement.encode())


def _save_version(
    connection: Connection, placed: Placed, version: int, model: int, counts: tuple[int, int, int], orphans: list[str]
) -> None:
    assets = placed.model.assets
    group = Counter(asset.group for asset in assets)
    kinds = Counter(asset.element or asset.type for asset in assets)
    notes = [{"place": p.place, "field": p.field, "text": p.text} for p in placed.model.notes]
    is_placed = ~np.isnan(placed.extent[:, 0]) if len(assets) else np.zeros(0, bool)
    extent = None
    if is_placed.any():
        boxes = placed.extent[is_placed]
        (west, south), (east, north) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
        extent = f"({east!r},{north!r}),({west!r},{south!r})"
    connection.execute(
        "insert into model_versions (id, model, version, format, crs, height, file, size, sha256, tenant, imported_at,"
        " by, assets, nodes, links, kinds, added, changed, removed, orphans, notes, metadata, extent) values (%s, %s,"
        " (select coalesce(max(version), 0) + 1 from model_versions where model = %s), %s, %s, %s, %s, %s, %s, %s,"
        # Later than the version before, whatever the clock does.
        " (select greatest(clock_timestamp(), max(imported_at) + interval '1 us') from model_versions"
        " where model = %s),"
        " %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (version, model, model, placed.model.format, placed.crs, placed.height, placed.file, placed.size,
         placed.sha256, placed.tenant, model, placed.by, len(assets), group["node"], group["link"],
         _json(dict(kinds)), *counts, orphans, _json(notes), _json(placed.model.metadata), extent),
    )  # fmt: skip


def _json(value: Any) -> Jsonb:
    return Jsonb(
        value, dumps=lambda given: orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY).replace(b"\\u0000", b"")
    )


# Giving one back


def version_of(connection: Connection, name: str, as_of: dt.datetime | None = None, number: int | None = None) -> int:
    """The id of a model's newest version, of the newest at a time, or of the version `number`. Raises `NotFound`."""
    row = connection.execute(
        "select v.id from model_versions v join models m on m.id = v.model where m.name = %s"
        " and (%s::timestamptz is null or v.imported_at <= %s) and (%s::int is null or v.version = %s)"
        " order by v.version desc limit 1",
        (name, as_of, as_of, number, number),
    ).fetchone()
    if row is None:
        raise NotFound(f"no model {name}, or not this version / 没有模型 {name} 或该版本")
    return int(row[0])


def load_model(connection: Connection, version: int) -> tuple[CityModel, list[str]]:
    """A version as it was read, and its assets' ids. Assets come in the order of their first import."""
    set_json_loads(orjson.loads, connection)  # as twin.store.reader does
    row = connection.execute(
        "select model, format, crs, height, metadata, tenant from model_versions where id = %s", (version,)
    ).fetchone()
    if row is None:
        raise NotFound(f"no version {version}")
    model, format_, crs, height, metadata, default_tenant = row
    assets: list[Asset] = []
    ids: list[str] = []
    parents: dict[str, str] = {}
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            'select v.id, a.local, v.type, a."group", v.element, v.name_zh, v.name_en, v.attributes, v.geometry,'
            " v.parent, v.level, v.area, v.code, v.system, v.tenant from asset_versions v join assets a on a.key ="
            " v.asset where v.model = %s and v.since <= %s and (v.until is null or v.until > %s) order by v.asset",
            (model, version, version),
        )
        for id_, local, type_, group, element, zh, en, attributes, geometry, parent, *rest in cursor:
            level, area, code, system, tenant = rest
            ids.append(id_)
            parents[id_] = local
            assets.append(
                Asset(local, type_, group, element, zh, en, attributes, unpack_geometry(geometry), parent or "", level,
                      area, code, system, "" if tenant == default_tenant else tenant)
            )  # fmt: skip
    assets = [replace(a, parent=parents.get(a.parent, "")) if a.parent else a for a in assets]
    networks = [network for network, _, _ in load_networks(connection, version)]
    return CityModel(format_, assets, networks, crs, height, metadata), ids


def load_networks(connection: Connection, version: int) -> Iterator[tuple[Network, Indices, Indices]]:
    """The networks of a version, with the keys of the assets that their nodes and edges are (-1: of none)."""
    for system, data in connection.execute(
        "select system, data from model_networks where version = %s order by number", (version,)
    ).fetchall():
        yield unpack_network(system, bytes(data))


def load_files(connection: Connection, version: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a version as they were imported: name, and bytes in pieces; none where they were too large to keep.
    Each is to be read before the next."""
    names = connection.execute(
        "select distinct number, name from model_files where version = %s order by number", (version,)
    ).fetchall()
    for number, name in names:
        yield name, _inflated(connection, version, number)


def _inflated(connection: Connection, version: int, number: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    part = 0
    while True:
        row = connection.execute(
            "select data from model_files where version = %s and number = %s and part = %s", (version, number, part)
        ).fetchone()
        if row is None:
            yield inflate.flush()
            return
        yield inflate.decompress(bytes(row[0]))
        part += 1
