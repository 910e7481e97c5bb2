"""A bare reader: takes messages from the broker, acknowledges them and does nothing else; what a broker can deliver.

`python -m bench.reader PORT TOPIC COUNT [FILE.npy]`: says `ready` when subscribed, and prints a line of JSON after
COUNT messages; FILE.npy then holds when each came.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from bench import mqtt

COALESCE_S = 0.002  # what arrives meanwhile is read and acknowledged in one go
READ = 1 << 18


def main() -> None:
    port, topic, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    connection = mqtt.connect(port, f"bench-reader-{os.getpid()}")
    mqtt.subscribe(connection, topic)
    print("ready", flush=True)
    received, rest = 0, b""
    times = np.zeros(count)
    begun_cpu = 0.0
    while received < count:
        part = connection.recv(READ)
        if not part:
            raise ConnectionError("the broker closed the connection")
        begun_cpu = begun_cpu or time.process_time()
        data = rest + part
        acks, used = take(data)
        rest = data[used:]
        times[received : received + len(acks)] = time.time()
        received += len(acks)
        connection.sendall(b"".join(acks))
        if len(part) < READ and received < count:
            time.sleep(COALESCE_S)
    result = {"received": received, "ended": time.time(), "cpu_s": time.process_time() - begun_cpu}
    connection.sendall(b"\xe0\x00")
    connection.close()
    if len(sys.argv) > 4:
        np.save(sys.argv[4], times)
    print(json.dumps(result), flush=True)


def take(data: bytes) -> tuple[list[bytes], int]:
    """The PUBACKs that the whole PUBLISH packets in `data` ask for, and how many bytes those packets are."""
    acks: list[bytes] = []
    add = acks.append
    position, size = 0, len(data)
    while position + 2 <= size:
        at = position + 1
        length = shift = 0
        while at < size:
            byte = data[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        else:
            break
        if at + length > size:
            break
        if data[position] >> 4 == mqtt.PUBLISH:
            topic = (data[at] << 8) | data[at + 1]
            add(b"\x40\x02" + data[at + 2 + topic : at + 4 + topic])
        position = at + length
    return acks, position


if __name__ == "__main__":
    main()
