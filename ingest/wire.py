"""MQTT 5 and 3.1.1 as bytes, as far as a subscriber needs them: no socket, no clock, no thread.

`Incoming` makes messages and packets of whatever a broker sends, cut anywhere; the functions make what we send. What a
conversation does with them is in `ingest.conversation`. Clauses are those of the OASIS standard, MQTT 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ingest.messages import Messages
from twin.model import Micros, RawMessage

CONTROL_BYTES: Final = 128 * 1024  # a packet other than PUBLISH is at most this long; so is what precedes a payload
NEVER: Final = 0xFFFFFFFF  # a session expiry
PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"  # normal, and the session stays

# Properties of CONNACK, SUBACK and DISCONNECT by what follows them, 2.2.2.2
_BYTE, _TWO, _FOUR, _VARIABLE, _TEXT, _PAIR = range(6)
_FORMS: Final = {
    0x01: _BYTE, 0x02: _FOUR, 0x03: _TEXT, 0x08: _TEXT, 0x09: _TEXT, 0x0B: _VARIABLE, 0x11: _FOUR, 0x12: _TEXT,
    0x13: _TWO, 0x15: _TEXT, 0x16: _TEXT, 0x17: _BYTE, 0x18: _FOUR, 0x19: _BYTE, 0x1A: _TEXT, 0x1C: _TEXT, 0x1F: _TEXT,
    0x21: _TWO, 0x22: _TWO, 0x23: _TWO, 0x24: _BYTE, 0x25: _BYTE, 0x26: _PAIR, 0x27: _FOUR, 0x28: _BYTE, 0x29: _BYTE,
    0x2A: _BYTE,
}  # fmt: skip
SERVER_KEEP_ALIVE: Final = 0x13
REASON_STRING: Final = 0x1F

# 2.4 and 3.14.2.1, the ones that a subscriber can meet
REASONS: Final = {
    0x00: "Normal disconnection", 0x80: "Unspecified error", 0x81: "Malformed packet", 0x82: "Protocol error",
    0x83: "Implementation specific error", 0x84: "Unsupported protocol version", 0x85: "Client identifier not valid",
    0x86: "Bad user name or password", 0x87: "Not authorized", 0x88: "Server unavailable", 0x89: "Server busy",
    0x8A: "Banned", 0x8B: "Server shutting down", 0x8C: "Bad authentication method", 0x8D: "Keep alive timeout",
    0x8E: "Session taken over by another client with our id", 0x8F: "Topic filter invalid",
    0x93: "Receive maximum exceeded",
    0x95: "Packet too large", 0x96: "Message rate too high", 0x97: "Quota exceeded", 0x98: "Administrative action",
    0x9C: "Use another server", 0x9D: "Server moved", 0x9E: "Shared subscriptions not supported",
    0x9F: "Connection rate exceeded", 0xA0: "Maximum connect time", 0xA1: "Subscription identifiers not supported",
    0xA2: "Wildcard subscriptions not supported",
}  # fmt: skip
# The answers of 3.1.1 in those words
OLDER: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}


_HEAD: Final = struct.Struct(">BBBH").unpack_from  # of a packet with a length of two bytes, and its topic's


class _Malformed(Exception):  # noqa: N818
    """What the broker sent is not MQTT; never leaves this module."""


@dataclass(frozen=True, slots=True)
class Connack:
    """The broker's answer to CONNECT, its code as in MQTT 5 whatever is spoken."""

    code: int
    is_session_present: bool
    keepalive_s: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Suback:
    """For each subscription asked for, the QoS granted, or a code from 128 on."""

    packet_id: int
    codes: bytes


@dataclass(frozen=True, slots=True)
class Pingresp:
    pass


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The broker's parting words, MQTT 5 only."""

    code: int
    reason: str


Packet = Connack | Suback | Pingresp | Disconnect


def reason_of(code: int, words: str = "") -> str:
    """A reason code and the broker's own words about it, as a text."""
    text = REASONS.get(code, f"Reason {code}")
    return f"{text} ({words})" if words else text


# ---- what comes in


@dataclass(slots=True)
class _Large:
    """A message too large to be taken in, of which `left` bytes are still to come."""

    message: RawMessage
    left: int


@dataclass(slots=True)
class Incoming:
    """What a broker sends on one connection, number `connection`.

    A payload is kept up to `keep_bytes` at least; of a packet that is longer by more than CONTROL_BYTES the rest is
    passed over as it comes, and the message has it as `left_out`. Bound: `keep_bytes` + CONTROL_BYTES. `fault` says why
    no more is taken in: the connection must be ended. What came whole before it is given out nevertheless, so cutting
    changes nothing.
    """

    is_v5: bool
    connection: int
    keep_bytes: int
    fault: str | None = None
    _rest: bytearray = field(default_factory=bytearray)
    _wanted: int = 2  # bytes from which on it is worth while to look at the rest again
    _large: _Large | None = None
    _is_connected: bool = False

    def take(self, data: bytes | memoryview, now: Micros) -> tuple[Messages, list[Packet]]:
        """The messages and the other packets that `data` completes; `now` is when the messages came."""
        messages = Messages()
        packets: list[Packet] = []
        if self.fault is not None:
            return messages, packets
        if self._large is not None:
            data = self._pass_over(data, messages)
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return messages, packets
            whole = bytes(self._rest)
            self._rest = bytearray()
        else:
            whole = bytes(data)
        try:
            self._parse(whole, now, messages, packets)
        except _Malformed as error:
            self.fault = str(error)
        except IndexError:
            self.fault = "a packet ends within a field"
        messages.settle(now, self.connection)
        return messages, packets

    def _parse(self, data: bytes, now: Micros, messages: Messages, packets: list[Packet]) -> None:
        """Everything whole in `data`. The loop is what each message costs, about 0.6 µs: hardly anything of it is a
        call, and one look at where the payload begins stands for all that could be cut short before (fields reaching
        beyond their packet, read from what follows, put it behind the end). What nearly all are, PUBLISH at QoS 1 with
        a length of two bytes, is looked for first."""
        is_v5, is_connected = self.is_v5, self._is_connected
        bound = self.keep_bytes + CONTROL_BYTES
        names, payloads, mids, head = messages.names, messages.payloads, messages.mids, _HEAD
        position, size, wanted = 0, len(data), 2
        while position + 2 <= size:
            if is_connected and position + 5 <= size:
                first, length, high, start = head(data, position)
                end = position - 125 + (high << 7) + length
                if high < 128 <= length and first & 0xF6 == 0x32 and end <= size:
                    start += position + 5  # of the packet id
                    packet_id = data[start] << 8 | data[start + 1]
                    begin = start + 2
                    if is_v5:
                        begin += 1 if not data[begin] else _properties_size(data, begin, end)
                    if begin > end or not packet_id or start == position + 5:
                        raise _Malformed("a PUBLISH has no topic or packet id, or ends within a field")
                    names.append(data[position + 5 : start])
                    payloads.append(data[begin:end])
                    mids.append(packet_id)
                    position = end
                    continue
            length = data[position + 1]
            start = position + 2
            if length > 127:
                if start == size:
                    wanted = 3
                    break
                length += (data[start] << 7) - 128
                if data[start] > 127:
                    length, start = _long_length(data, position)
                    if not start:
                        wanted = 5
                        break
                    if length > bound and data[position] & 0xF0 == 0x30 and start + length <= size:
                        messages.add(self._beginning(data[position], data[start : start + bound], length, now))
                        position = start + length
                        continue
                else:
                    start += 1
            end = start + length
            if end > size:
                wanted = self._missing(data, position, start, length, now)
                break
            if data[position] & 0xF6 != 0x32:  # anything but PUBLISH at QoS 1, sent again or retained or not
                self._other(data[position], data[start:end], now, messages, packets)
                is_connected = self._is_connected
            else:
                if not is_connected:
                    raise _Malformed("it speaks before it has answered CONNECT")
                start += 2
                at = start + (data[start - 2] << 8 | data[start - 1])
                packet_id = data[at] << 8 | data[at + 1]
                begin = at + 2
                if is_v5:
                    begin += 1 if not data[begin] else _properties_size(data, begin, end)
                if begin > end or not packet_id or start == at:
                    raise _Malformed("a PUBLISH has no topic or packet id, or ends within a field")
                names.append(data[start:at])
                payloads.append(data[begin:end])
                mids.append(packet_id)
            position = end
        if position < size:
            self._rest += data[position:] if self._large is None else b""
            self._wanted = wanted

    @staticmethod
    def _topic(name: bytes) -> str:
        if not name:
            raise _Malformed("a PUBLISH has no topic")  # nor may it have an alias, 3.3.2.3.4: we allow none
        return name.decode("utf-8", "replace")

    def _missing(self, data: bytes, position: int, start: int, length: int, now: Micros) -> int:
        """How many bytes from `position` on to wait for, of a packet that is not whole yet. Too large a message begins
        to be passed over."""
        first = data[position]
        if first & 0xF0 != 0x30:
            if length > CONTROL_BYTES:
                raise _Malformed(f"a packet of type {first >> 4} has {length} bytes")
            return start - position + length
        bound = self.keep_bytes + CONTROL_BYTES
        if length <= bound:
            return start - position + length
        if len(data) - start < bound:
            return start - position + bound
        message = self._beginning(first, data[start : start + bound], length, now)
        self._large = _Large(message, start + length - len(data))
        return 2

    def _beginning(self, first: int, body: bytes, length: int, now: Micros) -> RawMessage:
        """A message of which only the beginning is here. Where its properties alone fill that, no payload is left."""
        if not self._is_connected:
            raise _Malformed("it speaks before it has answered CONNECT")
        qos = _qos(first)
        at = 2 + int.from_bytes(body[:2], "big")
        topic = self._topic(body[2:at])
        packet_id = int.from_bytes(body[at : at + 2], "big") if qos else 0
        begin = at + 2 if qos else at
        if qos and not packet_id:
            raise _Malformed("a PUBLISH has no packet id, or ends within a field")
        if self.is_v5:
            begin += _properties_size(body, begin, length)
            if begin > length:
                raise _Malformed("a PUBLISH has no packet id, or ends within a field")
        payload = body[begin : begin + self.keep_bytes]
        return RawMessage(topic, payload, now, packet_id, qos, self.connection, length - begin - len(payload))

    def _pass_over(self, data: bytes | memoryview, messages: Messages) -> bytes | memoryview:
        large = self._large
        assert large is not None
        passed = min(len(data), large.left)
        large.left -= passed
        if not large.left:
            messages.add(large.message)
            messages.settle(large.message.received_at, self.connection)
            self._large = None
        return data[passed:]

    def _other(self, first: int, body: bytes, now: Micros, messages: Messages, packets: list[Packet]) -> None:
        """Any packet but PUBLISH at QoS 1."""
        kind, flags = first >> 4, first & 15
        if kind == 2 and not flags and not self._is_connected:
            packets.append(self._connack(body))
            self._is_connected = True
        elif not self._is_connected:
            raise _Malformed("it speaks before it has answered CONNECT")
        elif kind == 3:
            _qos(first)
            at = 2 + (body[0] << 8 | body[1])
            begin = at + (_properties_size(body, at, len(body)) if self.is_v5 else 0)
            if begin > len(body):
                raise _Malformed("a PUBLISH ends within a field")
            messages.add(RawMessage(self._topic(body[2:at]), body[begin:], now, 0, 0, self.connection))
        elif len(body) > CONTROL_BYTES:
            raise _Malformed(f"a packet of type {kind} has {len(body)} bytes")
        elif kind == 9 and not flags:
            at = 2
            if self.is_v5:
                at += _properties(body, 2)[1]
            if len(body) <= at:
                raise _Malformed("a SUBACK says nothing")
            packets.append(Suback(body[0] << 8 | body[1], body[at:]))
        elif kind == 13 and not flags and not body:
            packets.append(Pingresp())
        elif kind == 14 and not flags and self.is_v5:
            properties = _properties(body, 1)[0] if len(body) > 1 else {}
            packets.append(Disconnect(body[0] if body else 0, _words(properties)))
        else:
            raise _Malformed(f"a packet of type {kind} with flags {flags} is nothing for a subscriber")

    def _connack(self, body: bytes) -> Connack:
        if body[0] > 1:
            raise _Malformed("a CONNACK with flags that there are not")
        code = body[1]
        # A broker that refuses MQTT 5 may answer in the form of 3.1.1, and in its codes.
        if not self.is_v5 or (len(body) == 2 and code in OLDER):
            if len(body) != 2:
                raise _Malformed("a CONNACK of another length")
            return Connack(OLDER.get(code, code), bool(body[0]), None, "")
        properties = _properties(body, 2)[0] if len(body) > 2 else {}
        keepalive = properties.get(SERVER_KEEP_ALIVE)
        keepalive_s = None if keepalive is None else int.from_bytes(keepalive, "big")
        return Connack(code, bool(body[0]), keepalive_s, _words(properties))


def _qos(first: int) -> int:
    """0 or 1; we subscribe at 1, so that 2 cannot come."""
    qos = first >> 1 & 3
    if qos > 1:
        raise _Malformed(f"a PUBLISH at QoS {qos}, and we subscribed at 1")
    return qos


def _long_length(data: bytes, position: int) -> tuple[int, int]:
    """A packet's length of three or four bytes, and where its body begins; that is 0 if not all is here."""
    length = 0
    for place in range(4):
        at = position + 1 + place
        if at >= len(data):
            return 0, 0
        length |= (data[at] & 127) << 7 * place
        if data[at] < 128:
            return length, at + 1
    raise _Malformed("a packet's length has more than four bytes")


def _variable(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to four bytes and where it ends."""
    value = 0
    for place in range(4):
        value |= (data[at + place] & 127) << 7 * place
        if data[at + place] < 128:
            return value, at + place + 1
    raise _Malformed("a number has more than four bytes")


def _properties_size(data: bytes, at: int, end: int) -> int:
    """How many bytes the properties of a PUBLISH take, with their length. What they say is of no use here."""
    if at >= end:
        raise _Malformed("a PUBLISH ends before its properties")
    size, begin = _variable(data, at)
    return begin - at + size


def _properties(body: bytes, at: int) -> tuple[dict[int, bytes], int]:
    """Properties by their number, and how many bytes they take, with their length."""
    size, here = _variable(body, at)
    end = here + size
    if end > len(body):
        raise _Malformed("properties reach beyond their packet")
    found: dict[int, bytes] = {}
    while here < end:
        number = body[here]
        form = _FORMS.get(number)
        here += 1
        if form is None:
            raise _Malformed(f"there is no property {number}")
        if form in (_BYTE, _TWO, _FOUR):
            after = here + (1, 2, 4)[form]
        elif form == _VARIABLE:
            after = _variable(body, here)[1]
        else:
            after = _after_text(body, here)
            if form == _PAIR:
                after = _after_text(body, after)
        if after > end:
            raise _Malformed("a property reaches beyond the others")
        found[number] = body[here:after]
        here = after
    return found, end - at


def _after_text(body: bytes, at: int) -> int:
    return at + 2 + (body[at] << 8 | body[at + 1])


def _words(properties: dict[int, bytes]) -> str:
    """The broker's own words, fit for one line of a log."""
    words = properties.get(REASON_STRING, b"")[2:].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in words[:200]).strip()


# ---- what goes out


def connect(
    client_id: str, user: str | None, password: str | None, keepalive_s: int, receive_maximum: int, is_v5: bool
) -> bytes:
    """CONNECT that takes up our session, and asks the broker to keep it for ever."""
    flags = (0x80 if user else 0) | (0x40 if user and password is not None else 0)
    body = _text("MQTT") + struct.pack(">BBH", 5 if is_v5 else 4, flags, keepalive_s)
    if is_v5:
        properties = struct.pack(">BIBHBH", 0x11, NEVER, 0x21, receive_maximum, 0x22, 0)
        body += bytes([len(properties)]) + properties
    body += _text(client_id)
    if user:
        body += _text(user)
        if password is not None:
            body += _text(password)
    return packet(0x10, body)


def subscribe(packet_id: int, topics: Iterable[str], is_v5: bool) -> bytes:
    """SUBSCRIBE at QoS 1."""
    wishes = b"".join(_text(topic) + b"\x01" for topic in topics)
    return packet(0x82, struct.pack(">H", packet_id) + (b"\0" if is_v5 else b"") + wishes)


def pubacks(packet_ids: Sequence[int]) -> bytes:
    """A PUBACK for each, in order; the same in both versions."""
    words = np.empty((len(packet_ids), 2), ">u2")
    words[:, 0] = 0x4002
    words[:, 1] = packet_ids
    return words.tobytes()


def packet(first: int, body: bytes) -> bytes:
    left, length = len(body), b""
    while True:
        left, low = divmod(left, 128)
        length += bytes([low | (128 if left else 0)])
        if not left:
            return bytes([first]) + length + body


def _text(word: str) -> bytes:
    data = word.encode()
    return struct.pack(">H", len(data)) + data
