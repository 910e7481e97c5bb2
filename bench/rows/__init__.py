"""The rows of the bench, by name. A row takes the `Bench` and gives figures; to add one, write it and name it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.report import Figure
from bench.rows import (
    burst,
    city_models,
    clients,
    healthy,
    imports,
    judging,
    latency,
    models,
    network,
    questions,
    replay,
    sensors,
    stages,
    starting,
    steady,
    storm,
    throughput,
    tiles,
    waveforms,
)
from bench.services import Bench


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    measure: Callable[[Bench], list[Figure]]
    is_long: bool = False  # measured only where it is named


ROWS: Final = (
    Row("single", "single-reading messages stored and judged, mosquitto", throughput.single),
    Row("single-nats", "the same through the embedded broker", throughput.single_nats),
    Row("packs", "readings in packs of 50, packed form, mosquitto", throughput.packs),
    Row("packs-senml", "the same in SenML", throughput.packs_senml),
    Row("packs-nats", "packed form through the embedded broker", throughput.packs_nats),
    Row("stages", "where the service's time goes: decode, decide, write, take in", stages.one_by_one),
    Row("redelivered", "everything once more: all duplicates", throughput.redelivered),
    Row("sensors", "100,000 sensors: import, start, memory", sensors.load),
    Row("import", "back-filling history from Parquet, beside COPY alone", imports.parquet),
    Row("import-csv", "the same from CSV", imports.plain_csv),
    Row("start", "starting with 100,000 sensors and a million alerts", starting.long_past),
    Row("judging", "judging alone, default pack, 100,000 sensors", judging.alone),
    Row("healthy", "false alerts of the default pack in a healthy city", healthy.false_alerts),
    Row("latency", "publish to committed and to alert frame at 5,000 and 20,000 messages/s", latency.steady),
    Row("clients", "alerts to 1,000 and 5,000 WebSocket clients while messages come in", clients.many),
    Row("burst", "10,000 alerts raised in one second, and cleared in another", burst.alerts),
    Row("storm", "a storm in the demo district in which a pump trips: incidents, root", storm.incidents),
    Row("http", "questions over HTTP beside 50 million readings", questions.asked, is_long=True),
    Row("waveforms", "150 bridges x 50 channels x 50 Hz in blocks of 5 s: CPU of all", waveforms.bridges),
    Row("replay", "a replay of 24 h of 1,000 sensors: rate, seeks", replay.alone),
    Row("replay-beside", "live ingest beside three replays", replay.beside_live),
    Row("trace", "traces through networks of 20,000 and 200,000 edges", network.traces),
    Row("isolate", "isolations in networks of 12,500 and 125,000 nodes", network.isolations),
    Row("models-import", "20,000 LoD2 buildings and 100,000 pipes imported", city_models.imported),
    Row("models-box", "boxes over a million assets", city_models.boxes),
    Row("tiles", "3D Tiles of 20,000 buildings and 100,000 pipes", tiles.written),
    Row("models-epanet", "an EPANET file of 12,500 nodes read, and one ten times as large", models.epanet),
    Row("cities", "what cities of three sizes ask of a machine when busiest", steady.cities),
    Row("long", "ten minutes at 60 % of the top rate, with upkeep", steady.long, is_long=True),
)
BY_NAME: Final = {row.name: row for row in ROWS}
