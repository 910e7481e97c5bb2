"""Real street floods of New York (FloodNet) as a sensor list and recorded readings (contract 8).

    python -m twin.demo.floodnet flood-events.csv sensor-metadata.csv --day 2023-12-18 --out DIR

The source files are those of NYC Open Data, datasets aq7i-eu5q (flood events with their depth profiles) and kb2e-tjy3
(sensors); see data/SOURCE.md. Depths stay in inches, the sensors' own unit; times, which name no zone, are read as UTC.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twin.model import SECOND, Micros, iso, micros

SENSOR_HEADER: Final = "device,property,kind,unit,tenant,asset,lon,lat,interval_s,min,max,tags"
READING_HEADER: Final = "device,property,observed_at,value"
PROPERTY: Final = "depth"


class InvalidSource(ValueError):  # noqa: N818 - an outcome, as in twin.model
    """A source file that is not as NYC Open Data gives it; says where."""


@dataclass(frozen=True, slots=True)
class Flood:
    """One flood at one sensor: `started_at` µs, and (µs, inches) in the order of the source."""

    device: str
    started_at: Micros
    profile: list[tuple[Micros, float]]


def floods(events: bytes) -> list[Flood]:
    """All floods of `flood-events.csv`, in the order of the file; `InvalidSource` where it is not as it should be."""
    found: list[Flood] = []
    for line, row in _rows(events, "flood-events.csv"):
        try:
            start = micros(dt.datetime.fromisoformat(row["flood_start_time"]).replace(tzinfo=dt.UTC))
            depths = json.loads(row["flood_profile_depth_inches"])
            seconds = json.loads(row["flood_profile_time_secs"])
            profile = [
                (start + round(second * SECOND), float(depth)) for second, depth in zip(seconds, depths, strict=True)
            ]
            device = row["sensor_id"]
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidSource(f"flood-events.csv, line {line}: {error}") from None
        found.append(Flood(device, start, profile))
    return found


def convert(events: bytes, metadata: bytes, day: dt.date | None = None, tenant: str = "default") -> tuple[str, str]:
    """Sensor list and recorded readings as CSV texts, from the two files of the source.

    All floods, or those that start on `day` (UTC) and their sensors. Every sensor with a flood is in the list, also
    where the metadata do not know it: without a place then. A time stamp that repeats counts once, the first wins.
    Sensors report only in a flood here, so none has a reporting interval: none is silent between floods.
    """
    chosen = [flood for flood in floods(events) if day is None or _day(flood.started_at) == day]
    places = _places(metadata)
    devices = sorted({flood.device for flood in chosen})
    sensors = io.StringIO()
    writer = csv.writer(sensors, lineterminator="\n")
    writer.writerow(SENSOR_HEADER.split(","))
    for device in devices:
        lon, lat, name = places.get(device, ("", "", ""))
        writer.writerow(
            [device, PROPERTY, "drainage.ponding_depth", "in", tenant, name, lon, lat, "", 0, "", "floodnet"]
        )
    samples: dict[tuple[Micros, str], float] = {}
    for flood in chosen:
        for at, depth in flood.profile:
            samples.setdefault((at, flood.device), depth)
    lines = [READING_HEADER]
    lines += [f"{device},{PROPERTY},{iso(at)},{depth:g}" for (at, device), depth in sorted(samples.items())]
    return sensors.getvalue(), "\n".join(lines) + "\n"


def _day(at: Micros) -> dt.date:
    return dt.datetime.fromtimestamp(at / SECOND, dt.UTC).date()


def _places(metadata: bytes) -> dict[str, tuple[str, str, str]]:
    """Longitude, latitude and street name by sensor; of several deployments the last in the file."""
    found: dict[str, tuple[str, str, str]] = {}
    for line, row in _rows(metadata, "sensor-metadata.csv"):
        try:
            device, lon, lat = row["sensor_id"], row["longitude"], row["latitude"]
            name = " ".join(row["sensor_name"].replace("/", " & ").split())  # an asset's id stands in URLs
            is_placed = math.isfinite(float(lon)) and math.isfinite(float(lat)) if lon and lat else False
        except (KeyError, ValueError, AttributeError) as error:
            raise InvalidSource(f"sensor-metadata.csv, line {line}: {error}") from None
        found[device] = (lon, lat, name) if is_placed else ("", "", name)
    return found


def _rows(data: bytes, name: str) -> list[tuple[int, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidSource(f"{name}: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m twin.demo.floodnet", description="FloodNet to CSV of contract 8")
    parser.add_argument("events", type=Path, help="flood-events.csv")
    parser.add_argument("metadata", type=Path, help="sensor-metadata.csv")
    parser.add_argument("--day", type=dt.date.fromisoformat, help="only floods that start on this day (UTC)")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    try:
        sensors, readings = convert(given.events.read_bytes(), given.metadata.read_bytes(), given.day, given.tenant)
    except (InvalidSource, OSError) as error:
        parser.exit(2, f"{error}\n")
    stem = f"floodnet-{given.day}" if given.day else "floodnet"
    given.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("sensors", sensors), ("readings", readings)):
        path = given.out / f"{stem}.{suffix}.csv"
        path.write_text(text, "utf-8", newline="\n")
        print(f"{path}: {text.count(chr(10)) - 1} lines")


if __name__ == "__main__":
    main()
