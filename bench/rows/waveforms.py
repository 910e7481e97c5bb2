"""Bridges: what a city's blocks of fast sampling cost in CPU, stored and summarised as they come."""

from __future__ import annotations

import datetime as dt
import math
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psycopg
from numpy.typing import NDArray

from bench.city import BEGIN_MS, Stream, write_stream
from bench.report import Figure
from bench.services import Bench, RowFailed, Running
from twin.store.waveforms import expanded

BRIDGES: Final = 150
CHANNELS: Final = 50
RATE_HZ: Final = 50
BLOCK_S: Final = 5
SAMPLES: Final = RATE_HZ * BLOCK_S
SECONDS: Final = 30
GOAL: Final = 1.0
STATISTICS: Final = 4
LOOKED_AT: Final = 200  # blocks compared sample by sample
BARE_S: Final = 10


class Bridges:
    """150 gateways of 50 accelerometers; message `n` is block `n // 150` of bridge `n % 150`."""

    def csv(self, interval_s: int) -> str:
        lines = ["device,property,kind,unit,lon,lat,interval_s,min,max"]
        for bridge in range(BRIDGES):
            for channel in range(CHANNELS):
                place = f"{117.2 + bridge / 1000:.4f},31.8"
                lines.append(f"br-{bridge:03d},acc_{channel:02d},bridge.acceleration,m/s2,{place},{interval_s},-20,20")
        return "\n".join(lines) + "\n"

    def at_ms(self, n: int) -> int:
        return BEGIN_MS + n // BRIDGES * BLOCK_S * 1000 + n % BRIDGES * (BLOCK_S * 1000 // BRIDGES)

    def frequency(self, bridge: int) -> float:
        """Of its strongest vibration, Hz."""
        return 2.0 + 0.02 * bridge

    def samples(self, n: int) -> NDArray[np.float64]:
        """(channels, samples) in m/s², four decimals, about what a 16-bit converter gives: a swaying bridge."""
        chance = np.random.default_rng(n)
        seconds = np.arange(SAMPLES) / RATE_HZ
        phase = chance.uniform(0, 2 * math.pi, (CHANNELS, 1))
        wave = 0.03 * np.sin(2 * math.pi * self.frequency(n % BRIDGES) * seconds + phase)
        return np.round(wave + chance.normal(0, 0.006, wave.shape), 4)

    def payload(self, n: int) -> bytes:
        values = {f"acc_{channel:02d}": column for channel, column in enumerate(self.samples(n))}
        body = {"ts": self.at_ms(n), "rate_hz": RATE_HZ, "values": values}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def stream(self, path: Path, first: int, count: int) -> Stream:
        """`count` messages of a block of each channel, about 93 kB of JSON each."""

        def make(number: int) -> tuple[str, bytes]:
            n = first + number
            return f"cim/v1/default/br-{n % BRIDGES:03d}/waveform", self.payload(n)

        return write_stream(path, count, count * CHANNELS, make)


def bridges(bench: Bench) -> list[Figure]:
    """At the rate at which they come, so that the cost is that of the small batches of real life."""
    city = Bridges()
    rate = BRIDGES / BLOCK_S
    count = bench.scaled(round(SECONDS * rate))
    used: list[dict[str, float]] = []
    stored = checked = summaries = size = blocks = 0
    late: list[float] = []
    bare: list[float] = []
    with bench.service(city) as running:
        running.take(bench, city.stream(bench.file("warm-up.npz"), 0, BRIDGES))
        position = BRIDGES
        for _ in range(bench.runs):
            stream = city.stream(bench.file("waves.npz"), position, count)
            before, cpu = running.standing(), running.cpu()
            with bench.publisher(running.service.mqtt_port, stream, "--rate", f"{rate:g}") as publisher:
                publisher.go()
                sent = publisher.result()
            running.wait_until_stored(before.stored + stream.readings)
            after = running.cpu()
            seconds = count / rate
            used.append({name: (after[name] - cpu[name]) / seconds for name in after})
            late.append(running.standing().at - sent["begun"] - seconds)
            found = _found(running, before.batch)
            stored += found["samples"]
            blocks += found["blocks"]
            size += found["bytes"]
            summaries += found["summaries"]
            checked += _equal(running, city, position, count)
            bare.append(_bare(running, city, position, min(count, round(BARE_S * rate))) * rate)
            position += count
    expected = count * CHANNELS * SAMPLES * bench.runs
    looked = min(LOOKED_AT, count) * bench.runs
    fault = "" if checked == looked else f"{checked} of {looked} blocks looked at are as they were sent"
    fault = fault or ("" if summaries == blocks * STATISTICS else f"{summaries} summaries of {blocks} blocks")
    per_second = count * CHANNELS * SAMPLES / (count / rate)
    return [
        Figure(
            "waveforms", f"CPU of {per_second:,.0f} samples/s stored and summarised, all three", "cores",
            [sum(parts.values()) for parts in used], GOAL, "at most", verified=stored, expected=expected, fault=fault,
            ratio=statistics.median(sum(parts.values()) / b for parts, b in zip(used, bare, strict=True)),
            ratio_to="a program that only reads the JSON and copies float32 blocks in, no broker",
            details={f"{name}, cores": statistics.median(parts[name] for parts in used) for name in used[0]}
            | {
                "stored, bytes a sample": size / max(1, stored),
                "table and indexes, bytes a sample": found["table"] / max(1, (blocks + BRIDGES * CHANNELS) * SAMPLES),
                "blocks found as they were sent": f"{checked} of {looked}",
                "summaries found": f"{summaries:,} of {blocks * STATISTICS:,}",
                "all committed after the last was due, s": statistics.median(late),
            },
        )
    ]  # fmt: skip


def _found(running: Running, after_batch: int) -> dict[str, int]:
    """What SELECT finds of batches after that one."""
    row = running.connection.execute(
        "select count(*), coalesce(sum(octet_length(samples)), 0),"
        " coalesce(sum(octet_length(samples) / case when decimals is null then 4 else 2 end), 0),"
        " (select count(*) from readings where batch > %(batch)s),"
        " (select sum(pg_total_relation_size(inhrelid)) from pg_inherits"
        "  where inhparent = 'waveform_blocks'::regclass)"
        " from waveform_blocks where batch > %(batch)s",
        {"batch": after_batch},
    ).fetchone()
    if row is None:
        raise RowFailed("the blocks cannot be counted")
    return dict(zip(("blocks", "bytes", "samples", "summaries", "table"), map(int, row), strict=True))


def _equal(running: Running, city: Bridges, first: int, count: int) -> int:
    """Of one block in each of some messages, how many hold what was sent, with the frequency that it has."""
    equal = 0
    for n in np.linspace(first, first + count - 1, min(LOOKED_AT, count)).astype(int).tolist():
        channel = n % CHANNELS
        sent = city.samples(n)[channel]
        name = f"acc_{channel:02d}"
        row: Any = running.connection.execute(
            "select b.samples, b.decimals, f.value from sensors s join waveform_blocks b on b.sensor_id = s.id"
            " join sensors fs on fs.device = s.device and fs.property = s.property || '.frequency'"
            " join readings f on f.sensor_id = fs.id and f.observed_at = b.started_at"
            " where s.device = %s and s.property = %s and b.started_at = to_timestamp(%s)",
            (f"br-{n % BRIDGES:03d}", name, city.at_ms(n) / 1000),
        ).fetchone()
        if row is None:
            continue
        found = expanded(row[0], row[1])
        is_near = abs(row[2] - city.frequency(n % BRIDGES)) < 1 / BLOCK_S
        equal += bool(is_near and np.array_equal(found, sent.astype(np.float32)))
    return equal


def _bare(running: Running, city: Bridges, first: int, count: int) -> float:
    """CPU s a message, here and in PostgreSQL, of reading its JSON and copying its blocks as float32 into a table like
    `waveform_blocks`, a commit a message."""
    payloads = [city.payload(n) for n in range(first, first + count)]
    with psycopg.connect(running.url) as connection:
        connection.execute("create table bare_blocks (like waveform_blocks including all)")
        connection.commit()
        begun = time.process_time() + running.cpu()["PostgreSQL"]
        for number, payload in enumerate(payloads):
            body = orjson.loads(payload)
            started_at = dt.datetime.fromtimestamp(body["ts"] / 1000 + number, dt.UTC)
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    "copy bare_blocks (sensor_id, started_at, received_at, rate_hz, samples, quality, batch)"
                    " from stdin (format binary)"
                ) as copy,
            ):
                copy.set_types(["int4", "timestamptz", "timestamptz", "float8", "bytea", "int2", "int8"])
                for channel, samples in enumerate(body["values"].values()):
                    block = np.array(samples, "<f4").tobytes()
                    copy.write_row((channel, started_at, started_at, RATE_HZ, block, 0, 1))
            connection.commit()
        used = time.process_time() + running.cpu()["PostgreSQL"] - begun
        connection.execute("drop table bare_blocks")
    return used / count
