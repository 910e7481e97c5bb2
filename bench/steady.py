"""A process that publishes single readings at a steady rate for any time, each timed at the moment it is due.

`python -m bench.steady PORT SENSORS RATE SECONDS`: says `ready`, begins at a line on stdin, and at its end prints a
line of JSON: messages acknowledged, wall clock of begin and end, and how late the latest was handed to the broker.

Message `i` is of sensor `i % sensors` and due `i / rate` seconds after the begin, which its `ts` says: what a commit is
later than that is what the whole way took, this process's own delays included.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench import mqtt
from bench.city import SINGLE_BYTES, City

TICK_S: Final = 0.002
WINDOW: Final = 20_000
STEPS_APART: Final = 17  # of the last two digits of a value, from a sensor's reading to its next
_ZERO: Final = ord("0")
_FIRST_TS: Final = 10**12  # 13 digits


class Packets:
    """The PUBLISH packets of a city's sensors, all of one length, as bytes to be changed in place."""

    def __init__(self, city: City) -> None:
        rows, digits = [], []
        for n in range(city.size):
            device, prop = city.name(n)
            value = f"{city.base[n]:.4f}"
            body = f'{{"ts":{_FIRST_TS},"values":{{"{prop}":{value}}},"meta":{{"fw":"2.4.1","pad":"'
            body += "0" * (SINGLE_BYTES - len(body) - 3) + '"}}'
            packet = mqtt.publish(f"cim/v1/default/{device}/telemetry", body.encode(), 1)
            rows.append(np.frombuffer(packet, np.uint8))
            digits.append(packet.index(value.encode(), packet.index(b'"values"')) + len(value) - 2)
        self.bytes = np.stack(rows)
        packet = rows[0].tobytes()
        self.id_at = packet.index(b'{"ts"') - 2
        self.ts_at = self.id_at + len('xx{"ts":')
        self.digits_at = np.array(digits)

    def made(self, first: int, last: int, begun: float, rate: float) -> bytes:
        """Messages `first` to `last` (without it)."""
        i = np.arange(first, last, dtype=np.int64)
        size = len(self.bytes)
        rows = self.bytes[i % size]
        number = i % mqtt.LAST_PACKET_ID + 1
        rows[:, self.id_at], rows[:, self.id_at + 1] = number >> 8, number & 255
        ts = due_ms(i, begun, rate)
        for place in range(13):
            rows[:, self.ts_at + place] = ts // 10 ** (12 - place) % 10 + _ZERO
        end = (i % size * 31 + i // size * STEPS_APART) % 97
        at, here = self.digits_at[i % size], np.arange(len(i))
        rows[here, at], rows[here, at + 1] = end // 10 + _ZERO, end % 10 + _ZERO
        return rows.tobytes()


def due_ms(i: NDArray[np.int64], begun: float, rate: float) -> NDArray[np.int64]:
    return (begun * 1000 + i * (1000 / rate)).astype(np.int64)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("port", type=int)
    options.add_argument("sensors", type=int)
    options.add_argument("rate", type=float)
    options.add_argument("seconds", type=float)
    given = options.parse_args()
    packets = Packets(City(given.sensors))
    connection = mqtt.connect(given.port, f"bench-steady-{os.getpid()}")
    print("ready", flush=True)
    sys.stdin.readline()
    connection.setblocking(False)
    total = round(given.rate * given.seconds)
    begun = time.time()
    made = acknowledged = 0
    waiting, rest = b"", b""
    latest_s = 0.0
    while acknowledged < total:
        now = time.time()
        due = min(total, int((now - begun) * given.rate) + 1, acknowledged + WINDOW)
        if due > made and len(waiting) < 1 << 20:
            latest_s = max(latest_s, now - begun - made / given.rate)
            waiting += packets.made(made, due, begun, given.rate)
            made = due
        readable, writable, _ = select.select([connection], [connection] if waiting else [], [], TICK_S)
        if writable:
            waiting = waiting[connection.send(waiting) :]
        if readable:
            data = rest + connection.recv(1 << 18)
            if not data:
                raise ConnectionError("the broker closed the connection")
            whole = len(data) // 4 * 4
            acknowledged += whole // 4
            rest = data[whole:]
            if len(data) < 4096 and not waiting:
                time.sleep(TICK_S)  # acknowledgements come one by one: not each is worth a round
    ended = time.time()
    connection.sendall(b"\xe0\x00")
    connection.close()
    print(json.dumps({"acknowledged": acknowledged, "begun": begun, "ended": ended, "latest_s": latest_s}), flush=True)


if __name__ == "__main__":
    main()
