"""Messages as columns are the messages that came, however they were joined and cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.messages import Messages
from twin.model import RawMessage

MESSAGES = st.builds(
    lambda topic, payload, at, mid, by, left: RawMessage(topic, payload, at, mid, int(mid > 0), by, left),
    st.sampled_from(["t", "cim/v1/水/d1/telemetry", "\ufffd"]),
    st.binary(max_size=5),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(1, 2),
    st.integers(0, 1),
)


@given(st.lists(st.lists(MESSAGES, max_size=8), max_size=6), st.integers(0, 50), st.integers(0, 50))
def test_columns_are_the_messages_that_came(pieces: list[list[RawMessage]], begin: int, end: int) -> None:
    whole = [message for piece in pieces for message in piece]
    made = Messages()
    for piece in pieces:
        made.extend(Messages.of(piece))
    assert made == whole
    assert made[begin:end] == whole[begin:end]
    assert [made[n] for n in range(-len(whole), 0)] == whole
    part = made[begin:end]
    part.extend(made)
    assert part == whole[begin:end] + whole
    assert made.received().tolist() == [m.received_at for m in whole]
    assert made.bytes == sum(len(m.payload) for m in whole)
    for connection in (1, 2):
        assert made.packet_ids(connection) == [m.mid for m in whole if m.qos and m.connection == connection]
