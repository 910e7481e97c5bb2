"""A storm in the made-up district in which a pump trips: what the devices of the drainage would tell, minute by minute.

    python -m twin.demo.storm --out DIR        storm.sensors.csv, storm.readings.csv, storm.rules.toml (contract 8)

It rains steadily, below any signal of the weather service. Pump 1 of the station at the end of the storm sewer runs
(pump 2 is under repair) until it trips. What it no longer lifts backs up: first in the trunk, then up the four streets
that drain into it, manhole by manhole, until some forty stand under pressure. It starts again, and the sewer empties.

The water's surface is taken to rise evenly at the pump and to slope up the sewer a little less than the streets do,
nowhere above the ground: an engineer's sketch of backwater, not hydraulics.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from alerts.packs import default_text
from ingest.recorded import Recorded
from twin.demo.city import DRAINAGE, city_sensors
from twin.demo.district import asset_places, models
from twin.model import MINUTE, SECOND, Floats, Micros, Sensor, iso, parse_time

START: Final = parse_time("2024-07-10T12:00:00Z")
EVERY: Final = MINUTE
LASTS: Final = 240  # minutes
PUMP, PUMP_UNDER_REPAIR = "pu-01", "pu-02"
TRIPS, STARTS_AGAIN = 30, 120
RAIN_FADES, RAIN_ENDS = 100, 130
RAIN_MM: Final = 0.25  # a minute: 15 mm/h
FILLED_AFTER: Final = 50  # minutes from the trip until the water stands just under the ground
EMPTIED_AFTER: Final = 40  # minutes from the start until it is gone
STREETS: Final = (4, 5, 6, 7)  # of the rain sewer, as their manholes are numbered, that drain into the trunk
NEAR: Final = range(17, 27)  # the manholes of each street that are nearest to it
FAR: Final = (3, 6)  # and two further up that stay as they are
UP_THE_TRUNK, UP_THE_STREET = 0.0008, 0.0024  # slope of the surface; the streets rise 0.003

EVENTS: Final[tuple[tuple[float, str, str], ...]] = (
    (0.0, "正在下雨,2号泵检修,1号泵运行", "it rains; pump 2 is under repair, pump 1 runs"),
    (60.0 * TRIPS, "雨水泵站1号泵跳闸", "pump 1 of the storm-water station trips"),
    (60.0 * STARTS_AGAIN, "1号泵恢复运行", "pump 1 runs again"),
    (60.0 * RAIN_ENDS, "雨停", "the rain ends"),
)

RULES: Final = """
# ------------------------------------------------------------------- the storm of the demo / 演示暴雨

[[rule]]
id = "duty-pump-stopped" # for pumps that have to run while it rains
title = { zh = "当班水泵停运", en = "Duty pump stopped" }
kind = "drainage.pump_running"
where = { tag = "duty" }
detector = "threshold"
side = "below"
levels = { orange = 0 }
hold = "2min"
clear = { margin = 0.5, hold = "5min" } # 1 runs, 0 stands
source = "engineering default"
mark = "E"
instruction.zh = "立即派员到泵站查明跳闸原因，能启动备用泵的先启动备用泵，并通知上游片区值守。"
instruction.en = "Send somebody to find why it tripped, start the stand-by if there is one, warn those upstream."

[[rule]]
id = "storm-sewer-surcharged"
title = { zh = "雨水井高水位", en = "Storm sewer under pressure" }
kind = "drainage.level"
where = { tag = "storm-sewer" }
detector = "threshold"
side = "above"
levels = { yellow = 2.0, orange = 3.0 }
hold = "3min"
clear = { margin = "10%", hold = "10min" }
source = "engineering default: pipes here are 0.6 to 2.8 m wide, manholes 2.6 to 6.3 m deep"
mark = "E"
instruction.zh = "核查下游泵站和排口是否正常，准备移动泵车，关注附近道路积水。"
instruction.en = "Check pumping station and outfall downstream, get mobile pumps ready, watch for ponding near by."
"""


def rules() -> str:
    """The default pack, and what the storm needs beside it."""
    return default_text() + RULES


def sensors() -> list[Sensor]:
    """The storm's measuring points: pumps, their forebay, manholes along the storm sewer, rain gauges."""
    tags = {"dw": ("storm-sewer",), "pu-01": ("duty",), "pu-02": (), "rg": ()}
    found = []
    for sensor in city_sensors():
        key = sensor.device if sensor.device in tags else sensor.device[:2]
        if key in tags:
            found.append(replace(sensor, tags=("demo", "storm", *tags[key])))
    places = asset_places()

    def add(device: str, asset: str, *tags: str) -> None:
        lon, lat = places[asset]
        found.append(
            Sensor(device, "level", "drainage.level", "m", DRAINAGE, asset, lon, lat, 60.0, 0, 10,
                   ("demo", "storm", *tags))
        )  # fmt: skip

    add("fb-01", "雨水泵站前池")
    for street in STREETS:
        for number in (*FAR, *NEAR):
            add(f"sw-{street}-{number:02}", f"雨水井{street}-{number:02}", "storm-sewer")
    return found


def readings(start: Micros = START, seed: int = 1) -> Recorded:
    """A reading of each sensor every minute, in time order."""
    points = sensors()
    draw = np.random.default_rng(seed)
    minute = np.arange(LASTS, dtype=np.float64)
    rain = RAIN_MM * np.clip((RAIN_ENDS - minute) / (RAIN_ENDS - RAIN_FADES), 0, 1)
    is_tripped = (minute >= TRIPS) & (minute < STARTS_AGAIN)
    full = np.clip((minute - TRIPS) / FILLED_AFTER, 0, 1)
    full = np.where(minute < STARTS_AGAIN, full, np.clip(1 - (minute - STARTS_AGAIN) / EMPTIED_AFTER, 0, 1))
    network = next(net for model in models().values() for net in model.networks if net.system == "drainage")
    place = {name: number for number, name in enumerate(network.node)}
    x, y, invert, ground = (column.astype(np.float64) for column in (network.x, network.y, network.z, network.ground))
    pump = place["雨水泵站前池"]
    rises_from, rises_to = invert[pump] + 1.5, ground[pump] - 0.3
    columns: list[Floats] = []
    for sensor in points:
        if sensor.kind == "drainage.rainfall":
            fallen = np.cumsum(rain * (0.95 + 0.05 * (sensor.device == "rg-01")))
            columns.append(np.round(np.diff(np.floor(fallen / 0.2), prepend=0) * 0.2, 1))
        elif sensor.kind == "drainage.pump_running":
            columns.append(np.where((sensor.device == PUMP) & ~is_tripped, 1.0, 0.0))
        else:
            node = place[sensor.asset or ""]
            along_trunk, up_street = x[pump] - x[node], max(0.0, y[node] - y[pump] - 45)
            slope = UP_THE_TRUNK * along_trunk + UP_THE_STREET * up_street
            surface = rises_from + (rises_to - rises_from) * full + np.where(full > 0, slope, 0.0)
            flowing = 1.2 if node == pump else 0.25 + 1.4 * rain
            level = np.maximum(flowing, np.minimum(surface, ground[node] - 0.05) - invert[node])
            columns.append(np.round(level + draw.normal(0, 0.01, LASTS), 3))
    count = len(points)
    at = start + np.repeat(np.arange(LASTS, dtype=np.int64) * EVERY, count)
    at += np.tile(np.arange(count, dtype=np.int64) * SECOND // 2, LASTS)  # they do not all speak at once
    return Recorded(
        [(sensor.device, sensor.property) for sensor in points],
        np.tile(np.arange(count, dtype=np.int32), LASTS),
        at,
        np.stack(columns, axis=1).ravel(),
        np.arange(2, count * LASTS + 2, dtype=np.int64),
    )


def sensors_csv() -> str:
    """The sensor list as `cimtwin import` takes it."""
    lines = ["device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags"]
    for s in sensors():
        low, high = ("" if bound is None else f"{bound:g}" for bound in (s.min, s.max))
        lines.append(
            f"{s.device},{s.property},{s.kind},{s.unit},{s.tenant},{s.asset},{s.lon},{s.lat},{s.interval_s:g},"
            f"{low},{high},{';'.join(s.tags)}"
        )
    return "\n".join(lines) + "\n"


def readings_csv(recorded: Recorded) -> str:
    """Readings as `cimtwin import`, `judge` and `publish` take them."""
    names = [",".join(pair) for pair in recorded.sensors]
    columns = recorded.sensor.tolist(), recorded.observed_at.tolist(), recorded.value.tolist()
    lines = [f"{names[n]},{iso(at)},{value:g}" for n, at, value in zip(*columns, strict=True)]
    return "\n".join(["device,property,observed_at,value", *lines]) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m twin.demo.storm", description=__doc__)
    options.add_argument("--start", default=iso(START), help=f"RFC 3339; default {iso(START)}")
    options.add_argument("--out", type=Path, default=Path())
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    recorded = readings(parse_time(given.start))
    for name, text in (
        ("sensors.csv", sensors_csv()),
        ("readings.csv", readings_csv(recorded)),
        ("rules.toml", rules()),
    ):
        path = given.out / f"storm.{name}"
        path.write_text(text, "utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()
