"""The demo's devices, a process of its own: a real flood day and a simulated district, published over MQTT.

`python -m twin.demo.devices --speed 60`, the broker's address in CIMTWIN_MQTT_URL; it ends when its input does, and so
with whoever started it. What is published follows the
simulated time, which starts just before the first flood of the recorded day and runs `speed` times faster than the
clock; readings recorded before that are published at once, as a device does that was offline. With `--scenario storm`
it is the storm of `twin.demo.storm` instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from importlib import resources
from typing import Final

import numpy as np

from ingest.mqtt import Publisher
from ingest.publisher import DeviceMessage, device_messages
from ingest.recorded import Recorded, read_recorded
from twin.demo import storm
from twin.demo.city import DRAINAGE, District
from twin.model import MINUTE, SECOND, Micros, Sensor
from twin.sensors import parse_sensors_csv
from twin.units import Kind

DAY: Final = "floodnet-2023-12-18"
FLOOD_IN: Final = 3.94  # inches: 10 cm, the blue level of the default rule for roads
BEFORE: Final = 8 * MINUTE
STEP_S: Final = 0.1


def flood_sensors(kinds: dict[str, Kind]) -> list[Sensor]:
    """The street sensors of the recorded day."""
    return parse_sensors_csv(_data(f"{DAY}.sensors.csv"), kinds, f"{DAY}.sensors.csv")


def flood_readings() -> Recorded:
    """The recorded day, in time order; values in inches."""
    return read_recorded(_data(f"{DAY}.readings.csv"), f"{DAY}.readings.csv").in_time_order()


def start_of(recorded: Recorded) -> Micros:
    """The moment the demo starts at: shortly before the first reading that a road's blue level would notice."""
    first = int(np.argmax(recorded.value >= FLOOD_IN))
    return int(recorded.observed_at[first]) - BEFORE


def _data(name: str) -> bytes:
    return resources.files("twin.demo").joinpath("data").joinpath(name).read_bytes()


def run(url: str, speed: float, tenant: str, scenario: str = "district") -> None:
    """Publish until stopped, or until nobody holds the other end of the input."""
    if scenario == "storm":
        start, district = storm.START, None
        messages = list(device_messages(storm.readings(start), DRAINAGE))
    else:
        recorded = flood_readings()
        start = start_of(recorded)
        messages = list(device_messages(recorded, tenant))
        district = District(start)
    publisher = Publisher(url, f"cimtwin-demo-{os.getpid()}")
    publisher.connect()
    began = time.monotonic()
    done_until, position = start, 0
    orphaned = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        orphaned.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        while not orphaned.wait(STEP_S):
            now = start + round((time.monotonic() - began) * speed * SECOND)
            for _, topic, payload in district.messages(done_until, now) if district is not None else ():
                publisher.publish(topic, payload)
            position = _publish_until(publisher, messages, position, now)
            done_until = now
    finally:
        publisher.close()


def _publish_until(publisher: Publisher, messages: list[DeviceMessage], position: int, now: Micros) -> int:
    while position < len(messages) and messages[position].observed_at <= now:
        publisher.publish(messages[position].topic, messages[position].payload)
        position += 1
    return position


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m twin.demo.devices", description=__doc__)
    parser.add_argument("--speed", type=float, default=60.0)
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--scenario", choices=("district", "storm"), default="district")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        run(os.environ["CIMTWIN_MQTT_URL"], options.speed, options.tenant, options.scenario)


if __name__ == "__main__":
    main()
