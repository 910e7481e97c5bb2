"""What lies up and down the pipes, from a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psycopg
import pytest

from tests.conftest import until
from tests.twin.cities import pipes
from twin.city import CityModel
from twin.importing_models import ModelWords, place
from twin.model import Sensor
from twin.reach import Reach
from twin.store.catalog import upsert_sensors
from twin.store.migrate import migrate
from twin.store.models import Source, lock_model, save_model
from twin.units import load_kinds

pytestmark = pytest.mark.system


@pytest.fixture
def reach(database_url: str) -> Iterator[Reach]:
    migrate(database_url)
    reach = Reach(database_url)
    yield reach
    reach.stop()


def drain(edges: dict[str, tuple[str, str]]) -> CityModel:
    """A drain of 100 m pipes from the first to the last of its wells."""
    model = pipes({name: (100.0 * n, 0.0) for n, name in enumerate("ABCD")}, edges)
    network = model.networks[0]
    one_way = replace(network, system="drainage", direction=np.ones(len(edges), np.int8))
    return replace(model, networks=[one_way])


def put(url: str, model: CityModel) -> None:
    placed = place(model, "drain", ModelWords(), "drain.inp", 1, b"x".ljust(32))
    with psycopg.connect(url) as connection:
        lock_model(connection, "drain")
        save_model(connection, placed, [Source("drain.inp", b"x")], lambda what, share: None)


def sensor_on(url: str, asset: str) -> None:
    sensor = Sensor("w", "level", "drainage.level", "m", asset=asset)
    with psycopg.connect(url) as connection:
        upsert_sensors(connection, [sensor], load_kinds())


def test_what_lies_up_and_down_the_pipes_is_told_with_distances_by_id_and_by_the_names_of_sensors(
    reach: Reach, database_url: str
) -> None:
    put(database_url, drain({"p": ("A", "B"), "q": ("B", "C")}))
    sensor_on(database_url, "B")  # the owner wrote the name that the model's file uses
    reach.start()
    assert reach.id_of("B") == "drain:B"
    upstream = {"drain:C": 0.0, "drain:q": 0.0, "drain:B": 100.0, "B": 100.0, "drain:p": 100.0, "drain:A": 200.0}
    assert reach.reached("drain:C", "upstream") == upstream
    assert reach.reached("B", "upstream", 50) == {"drain:B": 0.0, "B": 0.0, "drain:p": 0.0}
    assert set(reach.reached("B", "both", 0)) == {"drain:B", "B", "drain:p", "drain:q"}
    assert reach.reached("p", "downstream") == {}, "a name of the file that no sensor uses is nobody's id"
    assert reach.reached("nobody", "both") == {}
    with pytest.raises(ValueError, match="sideways"):
        reach.reached("B", "sideways")


def test_a_new_version_of_a_model_is_taken_up_and_the_old_one_answers_until_then(
    reach: Reach, database_url: str
) -> None:
    reach.start()
    assert reach.reached("drain:C", "upstream") == {}
    put(database_url, drain({"p": ("A", "B"), "q": ("B", "C")}))
    reach.look()
    until(lambda: reach.reached("drain:C", "upstream"))
    put(database_url, drain({"p": ("A", "B"), "q": ("B", "C"), "r": ("D", "A")}))
    reach.look()
    until(lambda: reach.reached("drain:C", "upstream").get("drain:D") == 300)
