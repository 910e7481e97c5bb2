"""Where the service's time goes: the pipeline's stages one after the other, in this process, on a real database."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from alerts.packs import default_text
from alerts.rules import parse_rules
from bench.city import PACK, City
from bench.report import Figure
from bench.rows.throughput import SENSORS, Make
from bench.services import Bench, Service
from ingest.judgement import Judgement
from ingest.wire import Incoming
from twin.catalog import Catalog
from twin.model import SECOND
from twin.store.catalog import load_facts, refresh
from twin.store.dirty import Dirty
from twin.store.writer import Writer
from twin.units import load_kinds

BATCH: Final = 10_000  # readings
BATCHES: Final = 60
WARM_UP: Final = 10
STAGES: Final = ("decode", "decide", "write", "take in")


def one_by_one(bench: Bench) -> list[Figure]:
    alone, packs = City(SENSORS), City(SENSORS, PACK)
    return [
        _measured(bench, "one reading a message (200 B)", alone, 1, alone.singles),
        _measured(bench, "packs of 50, packed form", packs, PACK, packs.packed),
        _measured(bench, "packs of 50, SenML", packs, PACK, packs.senml),
    ]


def _measured(bench: Bench, form: str, city: City, per_message: int, make: Make) -> Figure:
    with bench.database() as url:
        Service(bench.folder, url, None).import_sensors(city)
        writer = Writer(url, "bench")
        standing = writer.connect()
        kinds = load_kinds(None)
        catalog, rules = Catalog(kinds), parse_rules(default_text(), kinds)
        writer.transact(lambda connection: int(refresh(connection, catalog)))
        writer.transact(lambda connection: load_facts(connection, catalog, rules.attributes))
        judgement = Judgement(catalog, rules, 1, lateness=SECOND, default_tenant="default", max_bytes=1 << 20)
        judgement.refit()
        dirty, batch = Dirty(), standing.batch
        spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
        count = bench.scaled(BATCHES) + WARM_UP
        for number in range(count):
            stream = make(bench.file("stage.npz"), number * BATCH, BATCH // per_message, "cim")
            broker = Incoming(False, 0, 1 << 20)
            broker.take(b"\x20\x02\x00\x00", 0)  # CONNACK
            now = round(time.time() * SECOND)
            messages, _ = broker.take(np.load(stream.path)["packets"].tobytes(), now)
            at = [time.process_time()]
            decoded = judgement.decode(messages)
            at.append(time.process_time())
            decision = judgement.decide(messages, decoded, writer, now)
            at.append(time.process_time())
            committed = writer.commit(decision.outcome)
            at.append(time.process_time())
            dirty.note(decision.outcome.readings, committed.batch)
            judgement.apply(decision)
            at.append(time.process_time())
            if number >= WARM_UP:
                for place, stage in enumerate(STAGES):
                    spent[stage].append((at[place + 1] - at[place]) / BATCH * 1e6)
        row = writer.connection.execute("select count(*) from readings where batch > %s", (batch,)).fetchone()
        writer.close()
    return Figure(
        "stages", f"CPU of a reading from the inbox to its commit, {form}", "µs",
        [sum(float(np.median(took)) for took in spent.values())],
        verified=row[0] if row else 0, expected=count * BATCH,
        details={stage: float(np.median(took)) for stage, took in spent.items()},
    )  # fmt: skip
