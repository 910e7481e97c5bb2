"""A process that publishes packets made beforehand, as fast as the broker acknowledges them or at a given rate.

`python -m bench.publisher PORT STREAM.npz [--window N] [--rate N] [--times FILE.npy]`: says `ready`, begins at a line
on stdin, and at its end prints a line of JSON: messages acknowledged, and the wall clock at the first and the last.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from pathlib import Path

import numpy as np

from bench import mqtt

CHUNK = 256  # messages handed to the socket at once
TICK_S = 0.001  # at a given rate, messages are handed over so often


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("port", type=int)
    options.add_argument("stream", type=Path)
    options.add_argument("--window", type=int, default=5000)
    options.add_argument("--rate", type=float, default=0.0)
    options.add_argument("--times", type=Path)
    given = options.parse_args()
    with np.load(given.stream) as stream:
        packets, ends = stream["packets"].tobytes(), stream["ends"]
    result, times = run(given.port, packets, ends, given.window, given.rate)
    if given.times is not None:
        np.save(given.times, times)
    print(json.dumps(result), flush=True)


def run(port: int, packets: bytes, ends: np.ndarray, window: int, rate: float) -> tuple[dict[str, float], np.ndarray]:
    """Publish everything with at most `window` messages unacknowledged; the times at which each was handed over."""
    connection = mqtt.connect(port, f"bench-publisher-{os.getpid()}")
    print("ready", flush=True)
    sys.stdin.readline()
    connection.setblocking(False)
    view = memoryview(packets)
    limits = ends.tolist()
    total = len(limits)
    times = np.zeros(total)
    begun = time.time()
    sent = acknowledged = position = 0
    rest = b""
    while acknowledged < total:
        allowed = min(total, acknowledged + window)
        wait_s = 1.0
        if rate and sent < total:
            ticks = int((time.time() - begun) / TICK_S) + 1
            allowed = min(allowed, int(ticks * TICK_S * rate))
            wait_s = max(0.0, begun + ticks * TICK_S - time.time())
        wants = sent < allowed
        readable, writable, _ = select.select([connection], [connection] if wants else [], [], wait_s)
        if writable:
            now = time.time()
            wrote = connection.send(view[position : limits[min(allowed, sent + CHUNK) - 1]])
            position += wrote
            until = int(np.searchsorted(ends, position, side="right"))
            times[sent:until] = now
            sent = until
        if readable:
            data = rest + connection.recv(1 << 16)
            if not data:
                raise ConnectionError("the broker closed the connection")
            whole = len(data) // 4 * 4
            if data[:whole:4].strip(bytes([mqtt.PUBACK])):
                raise ConnectionError("the broker sent something that is no PUBACK")
            acknowledged += whole // 4
            rest = data[whole:]
    ended = time.time()
    connection.sendall(b"\xe0\x00")
    connection.close()
    return {"acknowledged": acknowledged, "begun": begun, "ended": ended}, times


if __name__ == "__main__":
    main()
