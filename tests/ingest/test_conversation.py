"""What is said to a broker and when the conversation ends, second by second, without a broker."""

from __future__ import annotations

import pytest

from ingest import wire
from ingest.conversation import ANSWER_S, Conversation, End, Terms
from twin.model import RawMessage

TERMS = Terms("id", None, None, ("a/#", "b"), is_v5=True, keepalive_s=60)
CONNACK = b"\x20\x03\x00\x00\x00"
SUBACK = b"\x90\x05\x00\x01\x00\x01\x01"
PINGRESP = b"\xd0\x00"


def conversation(terms: Terms = TERMS, answers: bytes = CONNACK + SUBACK, at: float = 100.0) -> Conversation:
    made = Conversation(terms, 3, 1000, at)
    if answers:
        made.receive(answers, at, 0)
    return made


def said(made: Conversation) -> bytes:
    words = bytes(made.outgoing)
    made.outgoing.clear()
    return words


def test_it_connects_subscribes_and_is_open() -> None:
    made = conversation(answers=b"")
    assert said(made) == wire.connect("id", None, None, 60, 65535, is_v5=True)
    assert (made.is_accepted, made.is_open) == (False, False)
    made.receive(CONNACK, 101, 0)
    assert said(made) == wire.subscribe(1, ("a/#", "b"), is_v5=True)
    assert (made.is_accepted, made.is_open) == (True, False)
    early = made.receive(wire.packet(0x32, b"\0\1t\0\1\0x"), 101, 5)  # of the session, before the SUBACK
    assert early == [RawMessage("t", b"x", 5, 1, 1, 3)]
    made.receive(SUBACK, 102, 0)
    assert (made.is_open, made.end, said(made)) == (True, None, b"")


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (b"\x20\x03\x00\x87\x00", End("refuses: Not authorized")),
        (b"\x20\x03\x00\x84\x00", End("refuses: Unsupported protocol version", True)),
        (b"\x20\x02\x00\x01", End("refuses: Unsupported protocol version", True)),
        (b"\x20\x02\x00\x05", End("refuses: Not authorized")),
        (CONNACK + b"\xe0\x01\x8b", End("ends the connection: Server shutting down")),
        (CONNACK + b"\x90\x05\x00\x01\x00\x87\x87", End("grants no subscription")),
        (CONNACK + b"\x90\x04\x00\x01\x00\x01", End("does not speak MQTT: a SUBACK for what was not asked")),
        (CONNACK + b"\x90\x05\x00\x02\x00\x01\x01", End("does not speak MQTT: a SUBACK for what was not asked")),
        (CONNACK + SUBACK + SUBACK, End("does not speak MQTT: a SUBACK for what was not asked")),
        (b"HTTP/1.1 400 Bad Request", End("does not speak MQTT: it speaks before it has answered CONNECT")),
    ],
)
def test_what_ends_it(answer: bytes, end: End) -> None:
    assert conversation(answers=answer + bytes(100)).end == end


def test_an_older_version_is_asked_for_once_only() -> None:
    older = Terms("id", None, None, ("a/#",), is_v5=False)
    assert conversation(older, b"\x20\x02\x00\x01").end == End("refuses: Unsupported protocol version")


def test_a_refused_subscription_is_told_and_the_others_go_on() -> None:
    made = conversation(answers=CONNACK + b"\x90\x05\x00\x01\x00\x87\x00")
    assert made.is_open
    assert made.remarks == [
        "refuses the subscription to a/#: Not authorized", "grants b at QoS 0 only: messages can be lost"
    ]  # fmt: skip


def test_a_broker_that_does_not_answer_is_given_up() -> None:
    for answers in (b"", CONNACK):
        made = conversation(answers=answers)
        assert made.tick(100, is_listening=True) == pytest.approx(ANSWER_S)
        made.tick(100 + ANSWER_S - 0.1, is_listening=True)
        assert made.end is None
        made.tick(100 + ANSWER_S, is_listening=True)
        assert made.end == End("does not answer for 10 s")


def test_pings_go_out_in_silence_and_their_answer_is_awaited() -> None:
    made = conversation()
    said(made)
    assert made.tick(100, is_listening=True) == pytest.approx(30)
    assert made.tick(129, is_listening=True) == pytest.approx(1)
    assert said(made) == b""
    made.tick(130, is_listening=True)
    assert said(made) == wire.PINGREQ
    made.receive(PINGRESP, 131, 0)
    assert made.tick(150, is_listening=True) == pytest.approx(10)  # after our own silence
    made.tick(160, is_listening=True)
    assert said(made) == wire.PINGREQ
    made.tick(169.9, is_listening=True)
    assert made.end is None
    made.tick(170, is_listening=True)
    assert made.end == End("does not answer for 10 s")


def test_who_only_speaks_or_only_hears_pings_too() -> None:
    made = conversation()
    made.receive(CONNACK[:1], 125, 0)  # something is heard
    made.tick(130, is_listening=True)
    assert made.outgoing.endswith(wire.PINGREQ)
    made = conversation()
    made.acknowledge(wire.pubacks([1]), 125)
    made.tick(130, is_listening=True)
    assert made.outgoing.endswith(wire.PINGREQ)


def test_while_the_inbox_is_full_pings_go_on_and_no_answer_is_missed() -> None:
    made = conversation()
    said(made)
    for now in range(100, 1000):
        assert made.tick(now, is_listening=False) > 0
    assert said(made) == wire.PINGREQ * 29
    assert made.tick(1000, is_listening=True) == pytest.approx(ANSWER_S)  # from now on it is listened to
    made.tick(1009, is_listening=True)
    assert made.end is None
    made.receive(PINGRESP * 29, 1009, 0)
    made.tick(1025, is_listening=True)
    assert made.end is None


def test_the_broker_s_own_keepalive_is_kept() -> None:
    made = conversation(answers=b"\x20\x06\x00\x00\x03\x13\x00\x0a" + SUBACK)
    assert made.tick(100, is_listening=True) == pytest.approx(5)


def test_acknowledgements_and_the_good_bye_go_out_in_order() -> None:
    made = conversation()
    said(made)
    made.acknowledge(wire.pubacks([7, 8]), 101)
    made.leave(102)
    assert said(made) == bytes.fromhex("4002000740020008e000")
