"""The few MQTT 3.1.1 packets that a load generator and a bare reader need."""

from __future__ import annotations

import socket
import struct
from typing import Final

CONNACK: Final = 0x20
PUBACK: Final = 0x40
PUBLISH: Final = 3  # the high four bits
LAST_PACKET_ID: Final = 65535


def connect(port: int, client_id: str) -> socket.socket:
    """A connection with a clean session and no keep-alive. ConnectionError where the broker refuses."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_packet(0x10, text("MQTT") + bytes([4, 2, 0, 0]) + text(client_id)))
    answer = exactly(connection, 4)
    if answer[0] != CONNACK or answer[3]:
        raise ConnectionError(f"the broker on port {port} refuses: {answer.hex()}")
    return connection


def subscribe(connection: socket.socket, topic: str) -> None:
    """Subscribe at QoS 1 and wait for the broker's answer."""
    connection.sendall(_packet(0x82, struct.pack(">H", 1) + text(topic) + b"\x01"))
    answer = exactly(connection, 5)
    if answer[0] != 0x90 or answer[4] != 1:
        raise ConnectionError(f"the broker refuses the subscription: {answer.hex()}")


def publish(topic: str, payload: bytes, packet_id: int) -> bytes:
    """A PUBLISH at QoS 1."""
    return _packet(0x32, text(topic) + struct.pack(">H", packet_id) + payload)


def text(word: str) -> bytes:
    data = word.encode()
    return struct.pack(">H", len(data)) + data


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the broker closed the connection")
        data += part
    return data


def _packet(first: int, body: bytes) -> bytes:
    left, length = len(body), b""
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | (128 if left else 0)])
        if not left:
            return bytes([first]) + length + body
