"""MQTT as bytes: whatever comes is cut anywhere, and anything may come."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import wire
from ingest.wire import CONTROL_BYTES, Connack, Disconnect, Incoming, Packet, Pingresp, Suback
from twin.model import RawMessage

NOW = 1_790_000_000_000_000
KEEP = 1000
VERSIONS = pytest.mark.parametrize("is_v5", [False, True], ids=["3.1.1", "5"])


def text(word: str | bytes) -> bytes:
    data = word.encode() if isinstance(word, str) else word
    return struct.pack(">H", len(data)) + data


def connack(is_v5: bool, code: int = 0, properties: bytes = b"") -> bytes:
    return wire.packet(0x20, bytes([0, code]) + (bytes([len(properties)]) + properties if is_v5 else b""))


def publish(
    is_v5: bool, topic: str | bytes, payload: bytes, packet_id: int = 1, qos: int = 1, properties: bytes = b""
) -> bytes:
    body = text(topic) + (struct.pack(">H", packet_id) if qos else b"")
    if is_v5:
        length = wire.packet(0, properties)[1 : len(wire.packet(0, properties)) - len(properties)]
        body += length + properties
    return wire.packet(0x30 | qos << 1, body + payload)


def incoming(is_v5: bool, keep: int = KEEP) -> Incoming:
    made = Incoming(is_v5, 7, keep)
    assert made.take(connack(is_v5), NOW) == ([], [Connack(0, False, None, "")])
    return made


def taken(made: Incoming, parts: Sequence[bytes]) -> tuple[list[RawMessage], list[Packet], bool]:
    """Everything of all parts, and whether it ended in a fault."""
    messages: list[RawMessage] = []
    packets: list[Packet] = []
    for part in parts:
        some, others = made.take(memoryview(part), NOW)
        messages += some
        packets += others
    return messages, packets, made.fault is not None


@VERSIONS
def test_messages_and_packets_come_out_as_they_went_in(is_v5: bool) -> None:
    made = incoming(is_v5)
    properties = b"\x01\x01" + b"\x26" + text("k") + text("v") * 1 if is_v5 else b""
    data = (
        publish(is_v5, "cim/v1/水/d1/telemetry", b"{}", 1)
        + publish(is_v5, "cim/v1/水/d1/telemetry", b"", 65535, properties=properties)
        + publish(is_v5, b"bad\xff", b"x" * 300, 3)
        + publish(is_v5, "t", b"y" * 20_000, qos=0, properties=properties)
        + b"\xd0\x00"
        + wire.packet(0x90, b"\0\1" + (b"\0" if is_v5 else b"") + b"\1\x80")
        + b"\x3b" + publish(is_v5, "t", b"again and retained", 5)[1:]
    )  # fmt: skip
    assert taken(made, [data]) == (
        [
            RawMessage("cim/v1/水/d1/telemetry", b"{}", NOW, 1, 1, 7),
            RawMessage("cim/v1/水/d1/telemetry", b"", NOW, 65535, 1, 7),
            RawMessage("bad\ufffd", b"x" * 300, NOW, 3, 1, 7),
            RawMessage("t", b"y" * 20_000, NOW, 0, 0, 7),
            RawMessage("t", b"again and retained", NOW, 5, 1, 7),
        ],
        [Pingresp(), Suback(1, b"\1\x80")],
        False,
    )


def test_the_broker_s_words_are_understood() -> None:
    words = b"\x13\x00\x1e" + b"\x1f" + text("not\ntoday")
    assert Incoming(True, 1, KEEP).take(connack(True, 0x87, words), NOW)[1] == [Connack(0x87, False, 30, "not today")]
    older = Incoming(True, 1, KEEP).take(b"\x20\x02\x00\x01", NOW)[1]  # as nats-server refuses MQTT 5
    assert older == [Connack(0x84, False, None, "")]
    assert Incoming(False, 1, KEEP).take(b"\x20\x02\x00\x05", NOW)[1] == [Connack(0x87, False, None, "")]
    assert wire.reason_of(0x87, "not today") == "Not authorized (not today)"
    assert wire.reason_of(0xFE) == "Reason 254"
    made = incoming(True)
    assert made.take(b"\xe0\x02\x8e\x00\xe0\x01\x8b\xe0\x00", NOW)[1] == [
        Disconnect(0x8E, ""), Disconnect(0x8B, ""), Disconnect(0, "")
    ]  # fmt: skip


MALFORMED: dict[str, Callable[[bool], bytes]] = {
    "no packet id": lambda v5: publish(v5, "t", b"x", 0),
    "QoS 2": lambda v5: publish(v5, "t", b"x", 1, 2),
    "QoS 3": lambda v5: publish(v5, "t", b"x", 1, 3),
    "no topic": lambda v5: publish(v5, "", b"x"),
    "no topic at QoS 0": lambda v5: publish(v5, "", b"x", qos=0),
    "a topic beyond its packet": lambda _: b"\x32\x06\x00\x09abcd" + b"x" * 20,
    "a topic beyond everything": lambda _: b"\x32\x04\xff\xffab",
    "an empty PUBLISH": lambda _: b"\x32\x00",
    "a PUBLISH of a byte": lambda _: b"\x30\x01\x00",
    "a length of five bytes": lambda _: b"\x32\xff\xff\xff\xff\x01",
    "type 0": lambda _: b"\x00\x00",
    "type 15": lambda v5: b"\xf0\x00" if not v5 else b"\xf1\x00",
    "PINGRESP with flags": lambda _: b"\xd1\x00",
    "PINGRESP with a body": lambda _: b"\xd0\x01\x00",
    "CONNACK again": connack,
    "PUBREL": lambda _: b"\x62\x02\x00\x01",
    "SUBACK of nothing": lambda v5: wire.packet(0x90, b"\0\1" + (b"\0" if v5 else b"")),
    "a large packet of another type": lambda _: wire.packet(0x90, bytes(CONTROL_BYTES + 1)),
}
MALFORMED_V5 = {
    "properties beyond the packet": b"\x32\x06\x00\x01t\x00\x01\x09" + b"\0" * 20,
    "properties without an end": b"\x32\x0a\x00\x01t\x00\x01\xff\xff\xff\xff\xff",
    "no room for properties": b"\x32\x05\x00\x01t\x00\x01",
    "an unknown property": b"\xe0\x04\x00\x02\x7f\x00",
    "a property cut short": b"\xe0\x05\x00\x03\x1f\x00\x09",
}


@VERSIONS
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_ends_the_connection_after_what_came_before(is_v5: bool, name: str) -> None:
    good = publish(is_v5, "t", b"good", 9)
    for parts in ([good + MALFORMED[name](is_v5) + good], [good, MALFORMED[name](is_v5), good]):
        messages, _, is_faulty = taken(made := incoming(is_v5), parts)
        assert (messages, is_faulty) == ([RawMessage("t", b"good", NOW, 9, 1, 7)], True)
        assert made.fault
        assert made.take(good, NOW) == ([], [])


@pytest.mark.parametrize("name", MALFORMED_V5)
def test_malformed_properties_end_the_connection(name: str) -> None:
    assert taken(incoming(True), [MALFORMED_V5[name]])[2]
    assert taken(incoming(True), [MALFORMED_V5[name] + publish(True, "t", b"x" * 200)]) == ([], [], True)


def test_a_broker_answers_connect_before_anything_else() -> None:
    large = publish(True, "t", b"x" * 200_000)
    for first in (publish(True, "t", b"x"), publish(True, "t", b"x", qos=0), b"\xd0\x00", large):
        assert taken(Incoming(True, 1, KEEP), [first]) == ([], [], True)


def test_an_unfinished_publish_is_waited_for_up_to_the_bound_and_no_longer() -> None:
    made = incoming(False, 200_000)
    assert taken(made, [publish(False, "t", b"x" * 300_000)[:-1]]) == ([], [], False)
    assert len(made._rest) < 200_000 + CONTROL_BYTES


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
def test_of_a_message_too_large_the_beginning_is_kept(is_v5: bool, qos: int) -> None:
    size = KEEP + CONTROL_BYTES + 5000
    payload = bytes(n % 251 for n in range(size))
    data = publish(is_v5, "t", payload, 4, qos) + publish(is_v5, "t", b"next", 5)
    large = RawMessage("t", payload[:KEEP], NOW, 4 * qos, qos, 7, size - KEEP)
    for step in (len(data), 100_000, 1013):
        made = incoming(is_v5)
        held = 0
        for at in range(0, len(data), step):
            messages, _ = made.take(data[at : at + step], NOW)
            held = max(held, len(made._rest))
            if messages:
                assert messages[-1].size in (size, 4)
        assert held <= KEEP + CONTROL_BYTES + step
        messages, _, is_faulty = taken(incoming(is_v5), [data[at : at + step] for at in range(0, len(data), step)])
        assert (messages, is_faulty) == ([large, RawMessage("t", b"next", NOW, 5, 1, 7)], False)
    assert large.size == size


def test_properties_that_fill_all_that_is_kept_leave_no_payload() -> None:
    properties = (b"\x26" + text("k") + text(b"v" * 60_000)) * 4
    data = publish(True, "t", b"payload", 4, properties=properties)
    for step in (len(data), 5000):
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        assert taken(incoming(True), parts) == ([RawMessage("t", b"", NOW, 4, 1, 7, 7)], [], False)


# ---- any cut, any bytes

TOPICS = st.text(min_size=1, max_size=300).filter(lambda t: len(t.encode("utf-8", "replace")) < 60_000)
PROPERTIES = st.lists(st.tuples(st.text("ab", max_size=9), st.text("ab", max_size=70)), max_size=4).map(
    lambda pairs: b"".join(b"\x26" + text(k) + text(v) for k, v in pairs)
)
MESSAGES = st.builds(
    lambda topic, payload, packet_id, qos, properties: (
        lambda is_v5: publish(is_v5, topic.encode("utf-8", "replace"), payload, packet_id, qos, properties)
    ),
    TOPICS,
    st.one_of(st.binary(max_size=300), st.integers(0, 150_000).map(bytes)),
    st.integers(1, 65535),
    st.integers(0, 1),
    PROPERTIES,
)
OTHERS = st.sampled_from(
    [
        lambda _: b"\xd0\x00",
        lambda v5: wire.packet(0x90, b"\0\1" + (b"\0" if v5 else b"") + b"\1\1"),
        *MALFORMED.values(),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.booleans(),
    st.lists(st.one_of(MESSAGES, MESSAGES, MESSAGES, OTHERS), max_size=8),
    st.lists(st.floats(0, 1), max_size=12),
)
def test_cutting_changes_nothing(is_v5: bool, made: list[Callable[[bool], bytes]], cuts: list[float]) -> None:
    data = connack(is_v5) + b"".join(make(is_v5) for make in made)
    places = [0, *sorted(round(cut * len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(places)]
    whole = taken(Incoming(is_v5, 7, KEEP), [data])
    assert taken(Incoming(is_v5, 7, KEEP), parts) == whole
    small = data if len(data) < 3000 else data[:3000]
    assert taken(Incoming(is_v5, 7, KEEP), [small[n : n + 1] for n in range(len(small))]) == taken(
        Incoming(is_v5, 7, KEEP), [small]
    )


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(st.binary(max_size=200), max_size=10))
def test_whatever_comes_is_taken_or_is_a_fault(is_v5: bool, is_connected: bool, parts: list[bytes]) -> None:
    made = Incoming(is_v5, 7, KEEP)
    if is_connected:
        made.take(connack(is_v5), NOW)
    messages, _, is_faulty = taken(made, parts)
    assert is_faulty or len(made._rest) <= KEEP + CONTROL_BYTES
    assert sum(len(m.payload) for m in messages) <= sum(map(len, parts))


def fuzz(rounds: int, seed: int) -> tuple[int, int]:
    """Streams with bytes changed, lost, doubled and cut; how many messages and faults there were."""
    chance = random.Random(seed)
    found = faults = 0
    for _ in range(rounds):
        is_v5 = chance.random() < 0.5
        packets = [connack(is_v5)]
        for _ in range(chance.randrange(1, 8)):
            size = chance.choice((0, 5, 150, 20_000, 140_000)) if chance.random() < 0.2 else chance.randrange(200)
            properties = b"\x02\0\0\0\x01" * chance.randrange(2)
            packets.append(
                publish(is_v5, f"t{chance.randrange(9)}", bytes(size), chance.randrange(1, 9), 1, properties)
            )
            if chance.random() < 0.2:
                packets.append(chance.choice([b"\xd0\0", *(make(is_v5) for make in MALFORMED.values())]))
        data = bytearray(b"".join(packets))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(min(len(data), 400))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 5)]
                case 2:
                    data[at:at] = data[at : at + chance.randrange(1, 40)]
                case _:
                    data[at] ^= 1 << chance.randrange(8)
            if not data:
                data += b"\0"
        places = [0, *sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6))), len(data)]
        parts = [bytes(data[a:b]) for a, b in itertools.pairwise(places)]
        cut = taken(Incoming(is_v5, 7, KEEP), parts)
        assert cut == taken(Incoming(is_v5, 7, KEEP), [bytes(data)]), (seed, data[:400].hex(), places)
        found += len(cut[0])
        faults += cut[2]
    return found, faults


def test_streams_with_errors_never_loop_nor_raise_and_cutting_changes_nothing() -> None:
    found, faults = fuzz(3000, seed=1)
    assert found > 3000
    assert faults > 500


# ---- what goes out


def test_what_goes_out_is_as_the_standard_says() -> None:
    assert wire.connect("id", None, None, 60, 65535, is_v5=False) == bytes.fromhex("100e00044d5154540400003c00026964")
    assert wire.connect("id", "u", "p", 60, 65535, is_v5=True) == bytes.fromhex(
        "102000044d51545405c0003c0b11ffffffff21ffff22000000026964000175000170"
    )
    assert wire.connect("id", "u", None, 60, 1, is_v5=False)[9] == 0x80
    assert wire.connect("id", None, "p", 60, 1, is_v5=False)[9] == 0
    assert wire.subscribe(1, ["a/#"], is_v5=False) == bytes.fromhex("820800010003612f2301")
    assert wire.subscribe(1, ["a/#"], is_v5=True) == bytes.fromhex("82090001000003612f2301")
    assert wire.pubacks([1, 65535]) == bytes.fromhex("400200014002ffff")
    assert wire.packet(0x30, bytes(200))[:3] == bytes.fromhex("30c801")


if __name__ == "__main__":  # python -m tests.ingest.test_wire ROUNDS SEED
    import sys

    print(fuzz(int(sys.argv[1]), int(sys.argv[2])))
