"""Bad days: more than anybody sends, larger than anybody should, and a database that hangs. Nothing acknowledged is
lost, what is held has its bound, and all comes right without help.

A WebSocket client that never reads: `tests/api/test_socket.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest import wire
from tests.conftest import Cimtwin, until
from twin.embedded import EmbeddedPostgres

pytestmark = pytest.mark.system

START_MS = 1_790_000_000_000
DEVICES = 500
SENSORS = "device,property,kind\n" + "".join(f"d{n},depth,drainage.ponding_depth\n" for n in range(DEVICES))
MIB = 1 << 20
HUGE = 64 * MIB
STALL_S = float(os.environ.get("CIMTWIN_TEST_STALL_S", "8"))


def peak(city: Cimtwin) -> int:
    """The most memory that the service has held so far, bytes."""
    assert city.process is not None
    text = Path(f"/proc/{city.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def prepared(city: Cimtwin) -> Cimtwin:
    city.put_sensors(SENSORS)
    return city


class Device:
    """A device that speaks MQTT 3.1.1 by itself, as fast as a socket takes it."""

    def __init__(self, url: str, name: str = "pump") -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30)
        self.socket.sendall(wire.connect(name, None, None, 600, 65535, is_v5=False))
        assert self._read(4)[:2] == b"\x20\x02"

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionError("the broker closed the connection")
            data += part
        return data

    def publish(self, packets: list[bytes]) -> None:
        """Send, and wait until the broker has acknowledged all of them."""
        self.socket.sendall(b"".join(packets))  # the acknowledgements, 4 B each, wait in the socket's buffers
        acknowledged = self._read(4 * len(packets))
        assert set(acknowledged[::4]) == {0x40}

    def close(self) -> None:
        self.socket.close()


def packet(topic: str, payload: bytes, packet_id: int) -> bytes:
    name = topic.encode()
    return wire.packet(0x32, struct.pack(">H", len(name)) + name + struct.pack(">H", packet_id) + payload)


def single(n: int) -> bytes:
    """Message `n`: one reading of one device."""
    device, step = n % DEVICES, n // DEVICES
    payload = json.dumps({"ts": START_MS + step * 1000, "values": {"depth": step % 9}}).encode()
    return packet(f"cim/v1/default/d{device}/telemetry", payload, n % 60_000 + 1)


def settled(city: Cimtwin, stored: int, patience_s: float = 30) -> dict[str, Any]:
    """Wait until so many readings are stored and nothing waits; the counters, which must add up."""

    def is_through() -> bool:
        stats = city.stats()
        return bool(stats["readings_stored"] >= stored and stats["inbox_messages"] == 0 and stats["lag_s"] < 1)

    until(is_through, f"{stored} readings to be stored and the lag to go; now {city.stats()}", patience_s)
    stats = city.stats()
    assert stats["readings_stored"] == stored
    parts = ("readings_stored", "readings_duplicate", "readings_quarantined")
    assert stats["readings_received"] == sum(stats[name] for name in parts)
    assert stats["pipeline_failures"] == stats["mqtt_failures"] == 0
    return stats


def test_messages_of_64_mib_are_refused_and_cost_no_more_than_their_beginning(
    cimtwin: Callable[..., Cimtwin], mosquitto: str
) -> None:
    city = prepared(cimtwin(CIMTWIN_MQTT_URL=mosquitto))
    with closing(Device(mosquitto)) as device, closing(Device(mosquitto, "neighbour")) as neighbour:
        neighbour.publish([single(n) for n in range(100)])
        settled(city, 100)
        before = peak(city)
        for n in range(4):
            huge = b'{"depth": "' + bytes([48 + n]) * (HUGE - 13) + b'"}'
            device.publish([packet("cim/v1/default/d1/telemetry", huge, n + 1)])
            neighbour.publish([single(i) for i in range(100 * (n + 1), 100 * (n + 2))])
        stats = settled(city, 500)
    assert stats["readings_quarantined"] == 4
    assert peak(city) - before < 48 * MIB
    rows = city.get("/quarantine")["items"]
    assert [(r["reason"], r["size"], r["is_truncated"], len(r["text"])) for r in rows] == [
        ("too-large", HUGE, True, MIB)
    ] * 4
    assert "lost the broker" not in city.log.read_text()


def test_the_embedded_broker_turns_messages_of_64_mib_away_itself(cimtwin: Callable[..., Cimtwin]) -> None:
    city = prepared(cimtwin())
    with closing(Device(city.mqtt_url, "neighbour")) as neighbour:
        for n in range(3):
            with closing(Device(city.mqtt_url)) as device, pytest.raises(ConnectionError):
                device.publish([packet("cim/v1/default/d1/telemetry", bytes(HUGE), n + 1)])
            neighbour.publish([single(i) for i in range(100 * n, 100 * (n + 1))])
        stats = settled(city, 300)
    assert stats["readings_quarantined"] == 0
    assert "lost the broker" not in city.log.read_text()


@contextmanager
def held(*pids: int) -> Iterator[None]:
    """These processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_burst_of_150_000_messages_is_taken_in_within_the_inbox_s_bound(
    cimtwin: Callable[..., Cimtwin], mosquitto: str
) -> None:
    city = prepared(
        cimtwin(CIMTWIN_MQTT_URL=mosquitto, CIMTWIN_INBOX_MESSAGES="5000", CIMTWIN_INBOX_BYTES=str(4 * MIB))
    )
    assert city.process is not None
    count, part = 150_000, 5000
    with closing(Device(mosquitto)) as device:
        device.publish([single(n) for n in range(5000)])
        settled(city, 5000)
        before = peak(city)
        with held(city.process.pid):
            for begin in range(5000, count // 2, part):
                device.publish([single(n) for n in range(begin, min(begin + part, count // 2))])
        # The other half beside what waits, as fast as the broker takes it.
        for begin in range(count // 2, count, part):
            device.publish([single(n) for n in range(begin, begin + part)])
    stats = settled(city, count, 60)
    assert stats["inbox_waits"] > 0
    assert peak(city) - before < 100 * MIB
    assert city.is_ready()


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def test_a_database_that_hangs_is_told_and_waited_for(cimtwin: Callable[..., Cimtwin], mosquitto: str) -> None:
    city = prepared(
        cimtwin(
            embedded=True, CIMTWIN_MQTT_URL=mosquitto, CIMTWIN_INBOX_MESSAGES="5000", CIMTWIN_INBOX_BYTES=str(4 * MIB)
        )
    )
    assert city.process is not None
    postgres = EmbeddedPostgres(city.data_dir).pid
    assert postgres is not None
    acknowledged = 0
    stop = threading.Event()

    def stream() -> None:
        nonlocal acknowledged
        with closing(Device(mosquitto)) as device:
            while not stop.is_set():
                device.publish([single(n) for n in range(acknowledged, acknowledged + 500)])
                acknowledged += 500
                stop.wait(0.05)

    thread = threading.Thread(target=stream)
    thread.start()
    until(lambda: city.stats()["readings_stored"] > 2000, "readings")
    before = peak(city)
    over = threading.Timer(STALL_S, lambda: None)
    with held(*family(postgres)):
        over.start()
        at_hang = city.stats()["readings_stored"]
        until(lambda: httpx.get(f"{city.url}/readyz", timeout=5).status_code == 503, "/readyz to tell", 7.5)
        answer = httpx.get(f"{city.url}/readyz", timeout=5).json()
        assert answer["parts"] == {"database": False, "broker": True, "pipeline": True}
        assert httpx.get(f"{city.url}/healthz", timeout=5).status_code == 200
        over.join()
        stats = city.stats()
        assert stats["readings_stored"] - at_hang <= 10_000  # what was under way
        assert stats["lag_s"] > 5
    until(city.is_ready, "the service to be ready again")
    until(lambda: city.stats()["readings_stored"] > at_hang + 20_000, "readings to be stored again")
    stop.set()
    thread.join()
    stats = settled(city, acknowledged)
    assert stats["readings_duplicate"] == 0  # the connection to the broker was kept
    assert "lost the broker" not in city.log.read_text()
    assert peak(city) - before < 100 * MIB
