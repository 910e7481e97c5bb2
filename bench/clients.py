"""A process of many WebSocket clients that write down when each alert event came to each of them.

`python -m bench.clients HOST:PORT COUNT FILE.npz`: says `ready` when all have their snapshot. A line on stdin names
the last event's number; when all have it (or after PATIENCE_S) it prints a line of JSON, and FILE.npz holds `times`,
one row a client and one column an event (s of the wall clock, NaN: never came), `sensors`, whose event each is where
it was raised (else ""), and `events`: transition and sensor of each.

One thread over bare sockets and its own reader of frames: what comes is the same bytes for all clients, and is looked
into once.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE_S = 30.0
AT_ONCE = 100  # clients that connect side by side
READ = 1 << 18
MASK = b"\0\0\0\0"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
SUBSCRIBE = json.dumps({"type": "subscribe", "alerts": {}}).encode()


class Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.next = 0  # the number of the event that is to come next
        self.times: list[float] = []
        self.is_open = True

    def ask(self, host: str) -> None:
        self.socket.sendall(
            f"GET /ws/v1/live HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def subscribe(self) -> None:
        while b"\r\n\r\n" not in self.rest:
            self.rest += self._more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise ConnectionError(head.decode("latin-1"))
        self.socket.sendall(frame(TEXT, SUBSCRIBE))

    def begin(self) -> int:
        """Read up to the snapshot; its number."""
        while True:
            frames, used = whole(self.rest)
            if frames:
                break
            self.rest += self._more()
        self.rest = self.rest[used:]
        seq = int(json.loads(frames[0][1])["seq"])
        self.next = seq + 1
        self.socket.setblocking(False)
        return seq

    def _more(self) -> bytes:
        part = self.socket.recv(READ)
        if not part:
            raise ConnectionError("the service closed the connection")
        return part


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame of less than 126 bytes."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + MASK + payload


def whole(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """The whole frames that `data` begins with, (opcode, payload), and how many bytes they are."""
    frames = []
    at = 0
    while at + 2 <= len(data):
        length, begin = data[at + 1], at + 2
        if length == 126:
            length, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
        elif length == 127:
            length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
        if begin + length > len(data):
            break
        frames.append((data[at] & 15, data[begin : begin + length]))
        at = begin + length
    return frames, at


class Crowd:
    """All clients of this process."""

    def __init__(self, host: str, count: int) -> None:
        name, _, port = host.rpartition(":")
        self.clients: dict[int, Client] = {}
        self.first = 0  # the number of the first event that anyone may miss
        self.sensors: dict[int, str] = {}
        self.told: dict[int, str] = {}
        self.faults: list[str] = []
        self._known: dict[bytes, list[int]] = {}  # what came, to the events in it
        self._poll = select.epoll()
        for begin in range(0, count, AT_ONCE):
            group = [Client((name, int(port))) for _ in range(min(AT_ONCE, count - begin))]
            for client in group:
                client.ask(host)
            for client in group:
                client.subscribe()
            for client in group:
                seq = client.begin()
                self.first = max(self.first, seq + 1)
                self.clients[client.socket.fileno()] = client
                self._poll.register(client.socket, select.EPOLLIN)

    def watch(self) -> None:
        """Take what comes, until all have the event that stdin names."""
        self._poll.register(0, select.EPOLLIN)
        last, deadline = math.inf, math.inf
        behind = len(self.clients)
        looked_at = 0.0
        while behind and time.monotonic() < deadline:
            for number, _ in self._poll.poll(0.2):
                if number == 0:
                    self._poll.unregister(0)
                    last, deadline = int(os.read(0, 100)), time.monotonic() + PATIENCE_S
                else:
                    self._take(self.clients[number])
            if last < math.inf and time.monotonic() - looked_at > 0.1:
                looked_at = time.monotonic()
                behind = sum(client.is_open and client.next <= last for client in self.clients.values())

    def _take(self, client: Client) -> None:
        try:
            data = client.socket.recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            self.faults.append(str(error))
        now = time.time()
        if not data:
            client.is_open = False
            self._poll.unregister(client.socket)
            self.faults.append("a connection was closed")
            return
        if client.rest:
            data = client.rest + data
            client.rest = b""
        events = self._known.get(data)
        if events is None:
            events = self._look_into(client, data)
        if not events:
            return
        if events[0] != client.next or not client.is_open:
            self.faults.append(f"event {events[0]} came where {client.next} was due")
        client.next = events[-1] + 1
        client.times.extend([now] * len(events))

    def _look_into(self, client: Client, data: bytes) -> list[int]:
        frames, used = whole(data)
        events = []
        for opcode, payload in frames:
            if opcode == TEXT:
                found: dict[str, Any] = json.loads(payload)
                if found["type"] == "alert":
                    events.append(int(found["seq"]))
                    is_raised = found["event"]["transition"] == "raised"
                    self.sensors[events[-1]] = found["event"]["sensor"] if is_raised else ""
                    self.told[events[-1]] = f"{found['event']['transition']} {found['event'].get('sensor')}"
            elif opcode == PING:
                client.socket.send(frame(PONG, payload))
            elif opcode == CLOSE:
                self.faults.append(f"closed with {int.from_bytes(payload[:2], 'big')}")
        client.rest = data[used:]
        if used == len(data) and events:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[data] = events
        return events

    def result(self, file: Path) -> dict[str, Any]:
        events = sorted(number for number in self.sensors if number >= self.first)
        times = np.full((len(self.clients), len(events)), np.nan)
        for row, client in enumerate(self.clients.values()):
            came = client.times[-len(events) :] if events else []
            times[row, : len(came)] = came
        sensors = np.array([self.sensors[number] for number in events], str)
        np.savez(file, times=times, sensors=sensors, events=np.array([self.told[number] for number in events], str))
        lost = int(np.isnan(times).sum())
        return {"lost": lost, "faults": len(self.faults), "fault": "; ".join(self.faults[:3]),
                "cpu_s": time.process_time()}  # fmt: skip


def main() -> None:
    crowd = Crowd(sys.argv[1], int(sys.argv[2]))
    begun = time.process_time()
    print("ready", flush=True)
    crowd.watch()
    result = crowd.result(Path(sys.argv[3]))
    print(json.dumps(result | {"cpu_s": result["cpu_s"] - begun}), flush=True)


if __name__ == "__main__":
    main()
