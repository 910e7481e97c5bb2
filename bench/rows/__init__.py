"""The rows of the bench, by name. A row takes the `Bench` and gives figures; to add one, write it and name it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.report import Figure
from bench.rows import clients, judging, latency, replay, sensors, throughput
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
    Row("judging", "judging alone, default pack, 100,000 sensors", judging.alone),
    Row("latency", "publish to committed and to alert frame at 5,000 and 20,000 messages/s", latency.steady),
    Row("clients", "alerts to 1,000 and 5,000 WebSocket clients while messages come in", clients.many),
    Row("replay", "a replay of 24 h of 1,000 sensors: rate, seeks", replay.alone),
    Row("replay-beside", "live ingest beside three replays", replay.beside_live),
)
BY_NAME: Final = {row.name: row for row in ROWS}
