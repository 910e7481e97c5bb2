"""Sensors, devices, assets and rule sets in the database.

Functions take a connection inside a transaction of the caller's, and raise psycopg's own errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from twin.catalog import AssetFacts, Catalog, Replacement
from twin.model import Conflict, InvalidSensors, Micros, Overtaken, Problem, Sensor, SensorMode, micros
from twin.store.database import Connection
from twin.store.models import bind_sensors
from twin.store.rows import Row, moment
from twin.units import Kind

_COLUMNS: Final = (
    "device, property, tenant, kind, unit, asset, lon, lat, interval_s, min, max, tags, mode, statistic"
)  # fmt: skip
_MODES: Final = {mode.value: mode for mode in SensorMode}


def _sensor(row: Row, words: dict[Any, Any]) -> Sensor:
    """`words` are kept once each: what thousands of sensors have in common came as a text of its own with every row."""
    same: Any = words.setdefault
    device, prop, tenant, kind, unit, asset, lon, lat, interval_s, low, high, tags, mode, statistic = row
    return Sensor(
        device, same(prop, prop), same(kind, kind), same(unit, unit), same(tenant, tenant), asset, lon, lat,
        interval_s, low, high, same(tuple(tags), tuple(tags)), _MODES[mode], statistic,
    )  # fmt: skip


def refresh(connection: Connection, catalog: Catalog) -> bool:
    """Bring `catalog` to what the database holds; whether anything had changed."""
    version = connection.execute("select catalog_version from service").fetchone()
    if version is None or version[0] == catalog.version:
        return False
    # Sensors are upserted under a lock on the table and marked with the version of their change.
    found = connection.execute(
        f"select id, {_COLUMNS} from sensors where catalog_version > %s order by id".encode(), (catalog.version,)
    ).fetchall()
    words: dict[Any, Any] = {}
    catalog.put([(row[0], _sensor(row[1:], words)) for row in found])
    replacements = connection.execute(
        "select r.device, r.hardware, d.tenant, r.since from replacements r join devices d on d.id = r.device"
    ).fetchall()
    catalog.replace(
        [Replacement(device, hardware, tenant, micros(since)) for device, hardware, tenant, since in replacements]
    )
    catalog.version = version[0]
    return True


_PARENTS: Final = 5  # assets upwards that are asked for what a sensor's own does not say
_OF_SENSORS: Final = (
    "select b.sensor_id, v.id, v.area, v.parent{columns} from bindings b"
    " join asset_versions v on v.asset = b.asset and v.until is null where b.valid_to is null"
)
_OF_ASSETS: Final = (
    "select 0, v.id, v.area, v.parent{columns} from assets a join asset_versions v on v.asset = a.key"
    " and v.until is null where a.id = any(%(ids)s)"
)


def load_facts(connection: Connection, catalog: Catalog, attributes: frozenset[str] | None) -> int:
    """Bring to `catalog` what the newest versions of the models say of the sensors' assets: where they lie, and these
    of their attributes, as far as they are numbers; nothing, where `attributes` is None. How many sensors sit on one.
    0.8 s of CPU for 100,000 sensors."""
    if attributes is None:
        catalog.describe({}, None)
        return 0
    names = sorted(attributes)
    columns = "".join(f", v.attributes ->> %(n{n})s" for n in range(len(names)))
    params: dict[str, object] = {f"n{n}": name for n, name in enumerate(names)}

    def ask(query: str, **more: object) -> list[Row]:
        return connection.execute(query.format(columns=columns).encode(), params | more, binary=True).fetchall()

    rows = ask(_OF_SENSORS)
    asset_of = {row[0]: row[1] for row in rows}
    said = {row[1]: row[2:] for row in rows}
    for _ in range(_PARENTS):
        above = sorted({row[1] for row in said.values() if row[1] and row[1] not in said})
        if not above:
            break
        # Of those that no model has any more there is nothing to say.
        said |= dict.fromkeys(above, ("", None)) | {row[1]: row[2:] for row in ask(_OF_ASSETS, ids=above)}
    facts: dict[str, AssetFacts] = {}

    def facts_of(id_: str, depth: int) -> AssetFacts | None:
        known = facts.get(id_)
        if known is not None or id_ not in said:
            return known
        area, parent, *texts = said[id_]
        numbers = {
            name: number for name, text in zip(names, texts, strict=False) if (number := _number(text)) is not None
        }
        above = facts_of(parent, depth + 1) if parent and depth < _PARENTS else None
        if above is not None:
            area, numbers = area or above.area, {**above.numbers, **numbers}
        facts[id_] = AssetFacts(id_, area, numbers)
        return facts[id_]

    told = ((sensor, facts_of(asset, 0)) for sensor, asset in asset_of.items())
    catalog.describe({sensor: fact for sensor, fact in told if fact is not None}, attributes)
    return len(asset_of)


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def upsert_sensors(connection: Connection, sensors: Sequence[Sensor], kinds: dict[str, Kind]) -> tuple[int, int]:
    """Create or update sensors, their devices, tenants and assets; `(created, updated)`. The mode of an existing sensor
    stays. Raises `InvalidSensors` where one would change what stored readings mean, or move a device to another tenant.
    """
    if not sensors:
        return 0, 0
    connection.execute("lock table sensors in share row exclusive mode")
    connection.execute(
        "create temporary table incoming (n int, device text, property text, tenant text, kind text, unit text,"
        " asset text, lon float8, lat float8, interval_s float8, min float8, max float8, tags text[], statistic text)"
        " on commit drop"
    )
    with connection.cursor() as cursor, cursor.copy("copy incoming from stdin (format binary)") as copy:
        copy.set_types(
            ["int4", "text", "text", "text", "text", "text", "text", *["float8"] * 5, "text[]", "text"]
        )  # fmt: skip
        for n, s in enumerate(sensors):
            copy.write_row(
                (n, s.device, s.property, s.tenant, s.kind, s.unit, s.asset, s.lon, s.lat, s.interval_s, s.min, s.max,
                 list(s.tags), s.statistic)
            )  # fmt: skip
    _check(connection, kinds)
    connection.execute("insert into tenants (id) select distinct tenant from incoming on conflict do nothing")
    connection.execute(
        "insert into devices (id, tenant) select distinct device, tenant from incoming on conflict do nothing"
    )
    version = bump_catalog(connection)
    updated = connection.execute(
        "update sensors s set unit = i.unit, kind = i.kind, asset = i.asset, lon = i.lon, lat = i.lat,"
        " interval_s = i.interval_s, min = i.min, max = i.max, tags = i.tags, updated_at = now(), catalog_version = %s"
        " from incoming i where s.device = i.device and s.property = i.property",
        (version,),
    ).rowcount
    created = connection.execute(
        "insert into sensors (id, device, property, tenant, kind, unit, asset, lon, lat, interval_s, min, max, tags,"
        " statistic, catalog_version)"
        " select (select coalesce(max(id) + 1, 0) from sensors) + row_number() over (order by n) - 1, device, property,"
        " tenant, kind, unit, asset, lon, lat, interval_s, min, max, tags, statistic, %s from incoming i"
        " where not exists (select from sensors s where s.device = i.device and s.property = i.property)",
        (version,),
    ).rowcount
    connection.execute("drop table incoming")
    bind_sensors(connection, version)
    return created, updated


def _check(connection: Connection, kinds: dict[str, Kind]) -> None:
    problems = []
    for n, device, prop, new, old in connection.execute(
        "select i.n, i.device, i.property, i.kind, s.kind from incoming i"
        " join sensors s on s.device = i.device and s.property = i.property where s.kind <> i.kind order by 1"
    ):
        if old in kinds and kinds[old].unit != kinds[new].unit:
            text = f"{device}/{prop} is {old}, whose readings are stored in {kinds[old].unit}; it cannot become {new}"
            problems.append(Problem(f"sensor {n + 1}", "kind", text))
    problems.extend(
        Problem(f"sensor {n + 1}", "tenant", f"device {device} belongs to {owner}, not {tenant}")
        for n, device, tenant, owner in connection.execute(
            "select distinct on (i.device) i.n, i.device, i.tenant, d.tenant from incoming i"
            " join devices d on d.id = i.device where d.tenant <> i.tenant order by i.device, i.n"
        )
    )
    problems.extend(
        Problem(f"sensor {n + 1}", "device", f"{device} is hardware that stands in for device {stands_for}")
        for n, device, stands_for in connection.execute(
            "select i.n, i.device, r.device from incoming i join replacements r on r.hardware = i.device order by 1"
        )
    )
    if problems:
        raise InvalidSensors(problems)


def bump_catalog(connection: Connection) -> int:
    row = connection.execute(
        "update service set catalog_version = catalog_version + 1 returning catalog_version"
    ).fetchone()
    return int(row[0]) if row else 0


def set_mode(connection: Connection, index: int, mode: SensorMode, reason: str | None) -> None:
    connection.execute(
        "update sensors set mode = %s, mode_reason = %s, updated_at = now(), catalog_version = %s where id = %s",
        (mode.value, reason, bump_catalog(connection), index),
    )


def replace_device(connection: Connection, device: str, hardware: str, since: Micros, by: str | None) -> None:
    """Let `hardware` stand in for `device` from `since` on. `Conflict` where `hardware` is a device with sensors of its
    own or stands in for another one."""
    if connection.execute("select 1 from sensors where device = %s limit 1", (hardware,)).fetchone():
        raise Conflict(f"{hardware} has sensors of its own / {hardware} 已有自己的测点")
    taken = connection.execute(
        "select device from replacements where hardware = %s and device <> %s", (hardware, device)
    ).fetchone()
    if taken:
        raise Conflict(f"{hardware} already stands in for {taken[0]} / {hardware} 已替代 {taken[0]}")
    connection.execute(
        "insert into replacements (hardware, device, since, by) values (%s, %s, %s, %s)"
        " on conflict (hardware) do update set since = excluded.since, by = excluded.by",
        (hardware, device, moment(since), by),
    )
    bump_catalog(connection)


def current_rules(connection: Connection) -> tuple[int, str] | None:
    """`(version, text)` of the newest rule set."""
    row = connection.execute("select version, text from rule_sets order by version desc limit 1").fetchone()
    return None if row is None else (int(row[0]), str(row[1]))


def save_rules(
    connection: Connection, text: str, by: str | None, note: str | None = None, instead_of: int | None = None
) -> int:
    """Store `text` as the next version and make it the one in force. Raises `Overtaken` where the one in force is not
    `instead_of`."""
    row = connection.execute("update service set rules_version = rules_version + 1 returning rules_version").fetchone()
    version = int(row[0]) if row else 1
    if instead_of is not None and version - 1 != instead_of:
        raise Overtaken(version - 1, instead_of)
    connection.execute(
        "insert into rule_sets (version, text, by, note) values (%s, %s, %s, %s)", (version, text, by, note)
    )
    return version
