"""The schema's migrations: numbered SQL files, applied in order under an advisory lock, checksummed.

A file `NNNN_name.sql` serves every server; `NNNN_name.plain.sql` and `NNNN_name.timescale.sql` are two ways to the
same tables, of which a database takes one for good, chosen at its first migration.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final

import psycopg

from twin.model import Refused
from twin.store.database import Connection

LOCK_KEY: Final = 0x63696D74  # "cimt"
_NAME: Final = re.compile(r"(\d{4})_[a-z_]+(?:\.(plain|timescale))?\.sql")
TIMESCALE_FROM: Final = (2, 20)


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    flavour: str | None
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(flavour: str) -> list[Migration]:
    """The migrations that a database of this flavour (`plain`, `timescale`) takes, in order."""
    found = []
    for file in resources.files("twin.store").joinpath("schema").iterdir():
        match = _NAME.fullmatch(file.name)
        if match and match[2] in (None, flavour):
            found.append(Migration(int(match[1]), file.name, match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda m: m.number)


def migrate(dsn: str) -> list[str]:
    """Bring the database to this version's schema and return the names of the files applied.

    Raises `Refused` where an applied file has since changed or is unknown to this version (a newer cimtwin has been
    here); psycopg errors pass.
    """
    with psycopg.connect(dsn, autocommit=True, application_name="cimtwin migrate") as connection:
        connection.execute("select pg_advisory_lock(%s)", (LOCK_KEY,))
        connection.execute("set client_min_messages = warning")
        connection.execute(
            "create table if not exists migrations (name text primary key, checksum text not null,"
            " applied_at timestamptz not null default now())"
        )
        applied: dict[str, str] = dict(connection.execute("select name, checksum from migrations").fetchall())
        flavour = _flavour(connection, set(applied))
        wanted = migrations(flavour)
        known = {m.name: m for m in wanted}
        for name, checksum in applied.items():
            if name not in known:
                raise Refused([], f"database has migration {name}, which this cimtwin does not know: it is older")
            if known[name].checksum != checksum:
                raise Refused([], f"migration {name} differs from the one this database was made with")
        done = []
        for migration in wanted:
            if migration.name in applied:
                continue
            with connection.transaction():
                connection.execute(migration.sql.encode())
                connection.execute(
                    "insert into migrations (name, checksum) values (%s, %s)", (migration.name, migration.checksum)
                )
            done.append(migration.name)
        return done


def flavour_of(connection: Connection) -> str:
    """`timescale` or `plain`, as the database was made."""
    row = connection.execute("select 1 from migrations where name like '%.timescale.sql' limit 1").fetchone()
    return "timescale" if row else "plain"


def _flavour(connection: Connection, applied: set[str]) -> str:
    for flavour in ("plain", "timescale"):
        if any(name.endswith(f".{flavour}.sql") for name in applied):
            return flavour
    # Only those who may read settings can see whether the library is loaded; creating an extension whose library is
    # not loaded ends the connection, so it is not simply tried.
    row = connection.execute(
        "select coalesce("
        " (select extversion from pg_extension where extname = 'timescaledb'),"
        " (select default_version from pg_available_extensions where name = 'timescaledb'"
        "  and pg_has_role('pg_read_all_settings', 'usage')"
        "  and (select setting from pg_settings where name = 'shared_preload_libraries') like '%timescaledb%'))"
    ).fetchone()
    if row is None or row[0] is None:
        return "plain"
    version = tuple(int(part) for part in re.findall(r"\d+", str(row[0]))[:2])
    if version < TIMESCALE_FROM:
        return "plain"
    connection.execute("create extension if not exists timescaledb")
    return "timescale"
