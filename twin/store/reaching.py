"""What `twin.reach` asks of the database: the networks of the newest versions of all models, whole, with the ids of
their assets and the names that sensors give them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import psycopg

from twin.city import Network
from twin.model import Indices
from twin.store.database import Connection, translated
from twin.store.packing import unpack_network

_NEWEST: Final = "(select max(id) as id from model_versions group by model) v"


class NetworkRow(NamedTuple):
    """A network that there is: of which version of its model, its number there, and how many nodes and edges."""

    version: int
    number: int
    elements: int


@contextlib.contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """A connection for reading. What psycopg raises here and within is `StoreUnavailable`."""
    with (
        translated(),
        psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="cimtwin reach") as connection,
    ):
        connection.execute("set timezone to 'UTC'; set default_transaction_read_only to on")
        yield connection


def mark(connection: Connection) -> Any:
    """What is another after every import of a model and every change of the sensors."""
    return connection.execute(
        "select catalog_version, (select max(id) from model_versions) from service"
    ).fetchone()  # fmt: skip


def newest(connection: Connection) -> list[NetworkRow]:
    """The networks of the newest version of each model, small ones first."""
    found = connection.execute(
        f"select n.version, n.number, n.nodes + n.edges from {_NEWEST} join model_networks n on n.version = v.id"
        " order by 3, 1, 2".encode()
    )
    return [NetworkRow(*row) for row in found]


def network(connection: Connection, row: NetworkRow) -> tuple[Network, Indices, Indices]:
    """A network, with the keys of the assets that its nodes and edges are."""
    found = connection.execute(
        "select system, data from model_networks where version = %s and number = %s", row[:2]
    ).fetchone()  # fmt: skip
    assert found is not None
    return unpack_network(found[0], bytes(found[1]))


def ids_of(connection: Connection, keys: list[int]) -> dict[int, str]:
    """The ids of assets by key."""
    return dict(connection.execute("select key, id from assets where key = any(%s)", (keys,)).fetchall())


def other_names(connection: Connection) -> dict[str, str]:
    """The asset's id by the name that sensors on it were given for it, where that is another text."""
    return dict(
        connection.execute(
            "select distinct on (s.asset) s.asset, a.id from bindings b join sensors s on s.id = b.sensor_id"
            " join assets a on a.key = b.asset where b.valid_to is null and s.asset <> a.id order by s.asset, a.key"
        ).fetchall()
    )
