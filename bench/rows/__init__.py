"""The rows of the bench, by name. A row takes the `Bench` and gives figures; to add one, write it and name it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.report import Figure
from bench.rows import city_models, imports, judging, latency, models, network, replay, sensors, throughput
from bench.services import Bench


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    measure: Callable[[Bench], list[Figure]]


ROWS: Final = (
    Row("single", "single-reading messages stored and judged, mosquitto", throughput.single),
    Row("single-nats", "the same through the embedded broker", throughput.single_nats),
    Row("packs", "readings in packs of 50, packed form, mosquitto", throughput.packs),
    Row("packs-senml", "the same in SenML", throughput.packs_senml),
    Row("packs-nats", "packed form through the embedded broker", throughput.packs_nats),
    Row("redelivered", "everything once more: all duplicates", throughput.redelivered),
    Row("sensors", "100,000 sensors: import, start, memory", sensors.load),
    Row("import", "back-filling history from Parquet, beside COPY alone", imports.parquet),
    Row("import-csv", "the same from CSV", imports.plain_csv),
    Row("judging", "judging alone, default pack, 100,000 sensors", judging.alone),
    Row("latency", "publish to committed and to alert frame at 5,000 messages/s", latency.steady),
    Row("replay", "a replay of 24 h of 1,000 sensors: rate, seeks", replay.alone),
    Row("replay-beside", "live ingest beside three replays", replay.beside_live),
    Row("trace", "traces through networks of 20,000 and 200,000 edges", network.traces),
    Row("isolate", "isolations in networks of 12,500 and 125,000 nodes", network.isolations),
    Row("models-import", "20,000 LoD2 buildings and 100,000 pipes imported", city_models.imported),
    Row("models-box", "boxes over a million assets", city_models.boxes),
    Row("models-epanet", "an EPANET file of 12,500 nodes read, and one ten times as large", models.epanet),
)
BY_NAME: Final = {row.name: row for row in ROWS}
