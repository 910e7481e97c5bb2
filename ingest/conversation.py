"""What a subscriber and a broker say to each other on one connection, from CONNECT to the end: decided here, with the
time as an argument, and carried out by `ingest.source`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from ingest import wire
from ingest.messages import Messages
from twin.model import Micros

# Everything below our own root, so that what a device sends to a mistyped topic is seen and refused with its reason.
SUBSCRIPTIONS: Final = ("cim/v1/#", "v1/gateway/telemetry")
RECEIVE_MAXIMUM: Final = 65535
KEEPALIVE_S: Final = 60  # the broker may let a connection go after 1.5 times that without a word, 3.1.2.10
ANSWER_S: Final = 10.0  # [E]; how long the broker may be silent when an answer is due
SUBSCRIBE_ID: Final = 1
UNSUPPORTED_VERSION: Final = 0x84


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker is, from `mqtt://user:password@host:port` or `mqtts://…`."""

    host: str
    port: int
    user: str | None
    password: str | None
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError("a broker's address looks like mqtt://host:1883 or mqtts://user:password@host:8883")
        is_tls = parts.scheme == "mqtts"
        return cls(
            parts.hostname,
            parts.port or (8883 if is_tls else 1883),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            is_tls,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """Who we are to a broker, and what we ask it for."""

    client_id: str
    user: str | None
    password: str | None
    subscriptions: Sequence[str]
    is_v5: bool
    keepalive_s: int = KEEPALIVE_S


@dataclass(frozen=True, slots=True)
class End:
    """Why there is nothing more to say: `text` for the log, what the broker does, and whether it asks for an older
    MQTT."""

    text: str
    is_older_wanted: bool = False


class Conversation:
    """One connection's conversation, over bytes that others carry. `now` is in seconds of any clock that only goes
    forward; not thread-safe.

    `outgoing` is what is to be sent, the caller takes from its front; bound: an acknowledgement for each message taken
    in, and pings. `is_open` once the broker has granted a subscription. `remarks` are for the log, the caller takes
    them. `end` ends it.
    """

    def __init__(self, terms: Terms, connection: int, keep_bytes: int, now: float) -> None:
        self.terms = terms
        self.is_accepted = False
        self.is_open = False
        self.end: End | None = None
        self.remarks: list[str] = []
        self.outgoing = bytearray(
            wire.connect(terms.client_id, terms.user, terms.password, terms.keepalive_s, RECEIVE_MAXIMUM, terms.is_v5)
        )
        self._incoming = wire.Incoming(terms.is_v5, connection, keep_bytes)
        self._ping_s = terms.keepalive_s / 2
        self._heard_at = self._sent_at = now
        self._asked_at: float | None = now  # since when an answer is due
        self._is_listening = True

    def receive(self, data: bytes | memoryview, now: float, received_at: Micros) -> Messages:
        """The messages that `data` completes; answers the rest."""
        self._heard_at = now
        messages, packets = self._incoming.take(data, received_at)
        for packet in packets:
            self._on_packet(packet, now)
        if self.end is None and self._incoming.fault is not None:
            self.end = End(f"does not speak MQTT: {self._incoming.fault}")
        return messages

    def acknowledge(self, packets: bytes | bytearray, now: float) -> None:
        """Send PUBACKs."""
        self._send(packets, now)

    def leave(self, now: float) -> None:
        """Say good-bye; the session stays with the broker."""
        self._send(wire.DISCONNECT, now)

    def tick(self, now: float, is_listening: bool) -> float:
        """Do what the time asks for, and say in how many seconds to look again. While nobody listens (the inbox is
        full) pings go on, so that the broker keeps the connection, and no answer is missed."""
        if is_listening and not self._is_listening:
            self._heard_at = now
        self._is_listening = is_listening
        if self._asked_at is not None and is_listening:
            silent_since = max(self._heard_at, self._asked_at)
            if now - silent_since >= ANSWER_S:
                self.end = self.end or End(f"does not answer for {now - silent_since:.0f} s")
                return 0.0
            due = silent_since + ANSWER_S
        else:
            due = now + self._ping_s
        ping_at = self._sent_at + self._ping_s
        if is_listening and self._asked_at is None:
            ping_at = min(ping_at, self._heard_at + self._ping_s)
        if now >= ping_at:
            if self.is_accepted:
                self._send(wire.PINGREQ, now)
                if self._asked_at is None:
                    self._asked_at = now
            ping_at = now + self._ping_s
        return max(0.0, min(due, ping_at) - now)

    def _send(self, packets: bytes | bytearray, now: float) -> None:
        self.outgoing += packets
        self._sent_at = now

    def _on_packet(self, packet: wire.Packet, now: float) -> None:
        if isinstance(packet, wire.Connack):
            self._on_connack(packet, now)
        elif isinstance(packet, wire.Suback):
            self._on_suback(packet)
        elif isinstance(packet, wire.Pingresp):
            if self.is_open:
                self._asked_at = None
        else:
            self.end = End(f"ends the connection: {wire.reason_of(packet.code, packet.reason)}")

    def _on_connack(self, answer: wire.Connack, now: float) -> None:
        if answer.code:
            text = f"refuses: {wire.reason_of(answer.code, answer.reason)}"
            self.end = End(text, is_older_wanted=self.terms.is_v5 and answer.code == UNSUPPORTED_VERSION)
            return
        self.is_accepted = True
        if answer.keepalive_s:
            self._ping_s = min(self._ping_s, answer.keepalive_s / 2)
        self._asked_at = now
        self._send(wire.subscribe(SUBSCRIBE_ID, self.terms.subscriptions, self.terms.is_v5), now)

    def _on_suback(self, answer: wire.Suback) -> None:
        topics = self.terms.subscriptions
        if answer.packet_id != SUBSCRIBE_ID or len(answer.codes) != len(topics) or self.is_open:
            self.end = End("does not speak MQTT: a SUBACK for what was not asked")
            return
        refused = 0
        for topic, code in zip(topics, answer.codes, strict=True):
            if code >= 0x80:
                refused += 1
                # 3.1.1 knows one code only, and no reason.
                self.remarks.append(f"refuses the subscription to {topic}: {wire.reason_of(code)}")
            elif code == 0:
                self.remarks.append(f"grants {topic} at QoS 0 only: messages can be lost")
        if refused == len(topics):
            self.end = End("grants no subscription")
            return
        self.is_open = True
        self._asked_at = None
