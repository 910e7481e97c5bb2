"""The inbox keeps order and bounds, whoever puts and however it is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from ingest.inbox import Inbox
from tests.conftest import until
from twin.model import RawMessage


def message(n: int, size: int = 1) -> RawMessage:
    return RawMessage("t", b"x" * size, n)


def never() -> bool:
    return False


def take(inbox: Inbox, most: int = 1000, urgent: Callable[[], bool] = never) -> list[int]:
    return [m.received_at for m in inbox.take(most, 0, 0, urgent)]


@given(st.integers(1, 20), st.integers(1, 60), st.lists(st.lists(st.integers(0, 30), max_size=30)), st.integers(1, 9))
def test_what_goes_in_comes_out_once_and_in_order_within_the_bounds(
    messages: int, bytes_: int, batches: list[list[int]], most: int
) -> None:
    inbox = Inbox(messages, bytes_)
    asked: list[None] = []
    inbox.on_room = lambda: asked.append(None)
    put, taken, refusals = 0, [], 0
    for sizes in batches:
        waiting = [message(put + n, size) for n, size in enumerate(sizes)]
        put += len(sizes)
        while waiting:
            done = inbox.put_many(waiting)
            held = len(inbox)
            assert held <= messages
            assert inbox.size < bytes_ + 30
            assert inbox.oldest() == (len(taken) if held else None)
            refusals += done < len(waiting)
            assert done == len(waiting) or held == messages or inbox.size >= bytes_
            waiting = waiting[done:]
            if waiting:
                taken += take(inbox, most)
                assert len(asked) == refusals == inbox.waits
    while len(inbox):
        taken += take(inbox, most)
    assert taken == list(range(put))
    assert inbox.size == 0
    assert inbox.oldest() is None


def test_a_message_larger_than_the_bound_is_let_in_alone() -> None:
    inbox = Inbox(10, 5)
    assert inbox.put_many([message(0, 100), message(1)]) == 1
    assert inbox.put_many([message(1)]) == 0
    assert take(inbox) == [0]
    assert inbox.put_many([message(1)]) == 1


def test_a_full_inbox_lets_put_wait_until_there_is_room_or_it_is_closed() -> None:
    inbox = Inbox(1, 100)
    results: list[bool] = []

    def put() -> None:
        results.extend(inbox.put(message(n)) for n in range(3))

    putting = threading.Thread(target=put)
    putting.start()
    until(lambda: inbox.waits == 1)
    assert take(inbox) == [0]
    until(lambda: inbox.waits == 2)
    inbox.close()
    putting.join(5)
    assert results == [True, True, False]
    assert inbox.put_many([message(5)]) == 0
    assert take(inbox) == [1]


def test_a_waiting_take_goes_on_when_company_is_complete_or_something_is_urgent() -> None:
    inbox = Inbox(100, 1000)
    is_urgent = threading.Event()
    taken: list[list[RawMessage]] = []

    def take_three() -> None:
        taken.append(inbox.take(3, 60, 60, never))
        taken.append(inbox.take(3, 60, 60, is_urgent.is_set))

    taking = threading.Thread(target=take_three)
    taking.start()
    inbox.put_many([message(0)])
    inbox.put(message(1))
    inbox.put_many([message(2), message(3)])
    until(lambda: taken)
    is_urgent.set()
    inbox.wake()
    taking.join(5)
    assert [[m.received_at for m in some] for some in taken] == [[0, 1, 2], [3]]
