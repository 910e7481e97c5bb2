"""A bare sender: answers WebSocket clients with as little as they need, and then sends all of them one frame after the
other; what the machine can deliver to so many.

`python -m bench.crier PORT COUNT RATE SECONDS FILE.npy`: says `ready` when it listens, begins at a line on stdin, when
COUNT clients must be there, and prints a line of JSON: the last frame's number. FILE.npy holds when each was begun.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

import numpy as np

FRAME_BYTES = 900  # about what an alert takes
FIRST = 1


def text(words: str) -> bytes:
    """A server's text frame of 126 bytes or more."""
    data = words.ljust(200).encode()
    return b"\x81\x7e" + len(data).to_bytes(2, "big") + data


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    rate, seconds = float(sys.argv[3]), float(sys.argv[4])
    listening = socket.create_server(("127.0.0.1", port), backlog=1000)
    print("ready", flush=True)
    clients = _welcomed(listening, count)
    begun, times = time.time(), []
    for number in range(round(rate * seconds)):
        time.sleep(max(0.0, begun + number / rate - time.time()))
        event = {"transition": "raised", "sensor": str(number), "pad": "0" * FRAME_BYTES}
        frame = text(json.dumps({"type": "alert", "seq": FIRST + number, "event": event}))
        times.append(time.time())
        for client in clients:
            client.send(frame)
    np.save(sys.argv[5], np.array(times))
    print(json.dumps({"last": FIRST + len(times) - 1}), flush=True)
    sys.stdin.readline()  # until those who listen have it all


def _welcomed(listening: socket.socket, count: int) -> list[socket.socket]:
    """All clients, each with its snapshot, once stdin says that they are there."""
    poll = select.epoll()
    poll.register(listening, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == 0:
                sys.stdin.readline()
                if len(clients) != count:
                    raise ConnectionError(f"{len(clients)} of {count} clients are there")
                return list(clients.values())
            if number == listening.fileno():
                client = listening.accept()[0]
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            elif clients[number].recv(4096)[:3] == b"GET":
                clients[number].sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
                )
            else:
                clients[number].sendall(text(json.dumps({"type": "snapshot", "seq": FIRST - 1})))


if __name__ == "__main__":
    main()
