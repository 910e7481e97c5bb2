"""Messages that came and wait for the pipeline."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final

from twin.model import Micros, RawMessage

PAYLOAD: Final = itemgetter(RawMessage._fields.index("payload"))


class Inbox:
    """Messages between the network thread and the pipeline, in order of arrival.

    Bound: `messages` and `bytes_`, whichever is reached first (one message is always let in). Policy: `put` waits,
    `put_many` leaves the rest to the caller. Counters: `waits` (how often it was full for one of them), `len()`,
    `size` (bytes). Kept as the lists that came, so that nothing is done for a single message.
    """

    def __init__(self, messages: int, bytes_: int) -> None:
        self.messages = messages
        self.bytes = bytes_
        self.size = 0
        self.waits = 0
        self.on_room: Callable[[], None] = _nothing  # called by the taking thread, once after each refusal
        self._lists: deque[Sequence[RawMessage]] = deque()
        self._begun = 0  # how many of the first list are taken
        self._count = 0
        self._wanted = 1  # so many wake a waiting `take`
        self._is_room_wanted = False
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return self._count

    def put(self, message: RawMessage) -> bool:
        """Add, waiting while full; False once closed."""
        with self._changed:
            if self._is_full():
                self.waits += 1
                self._changed.wait_for(lambda: self._is_closed or not self._is_full())
            if self._is_closed:
                return False
            self._add([message], len(message.payload))
            return True

    def put_many(self, messages: Sequence[RawMessage]) -> int:
        """Add as many as there is room for, and say how many that were (none once closed); never waits. Where they were
        not all, `on_room` is called when some were taken. The inbox keeps the list itself: do not change it."""
        sizes = [*map(len, map(PAYLOAD, messages))]
        size = sum(sizes)
        with self._changed:
            if self._is_closed:
                return 0
            number = len(messages)
            if self._count + number > self.messages or self.size + size > self.bytes:
                number = self._fitting(sizes)
                messages, size = messages[:number], sum(sizes[:number])
                if number < len(sizes):
                    self.waits += not self._is_room_wanted
                    self._is_room_wanted = True
            if number:
                self._add(messages, size)
            return number

    def _fitting(self, sizes: list[int]) -> int:
        number, count, size = 0, self._count, self.size
        while number < len(sizes) and not (count and (count >= self.messages or size >= self.bytes)):
            size += sizes[number]
            number += 1
            count += 1
        return number

    def _add(self, messages: Sequence[RawMessage], size: int) -> None:
        before = self._count
        self._lists.append(messages)
        self._count += len(messages)
        self.size += size
        if not before or before < self._wanted <= self._count:
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return self._count > 0 and (self._count >= self.messages or self.size >= self.bytes)

    def oldest(self) -> Micros | None:
        """When the message that has waited longest came; None if none waits."""
        with self._changed:
            return self._lists[0][self._begun].received_at if self._count else None

    def wake(self) -> None:
        """Let a waiting `take` return early, for work that does not come through the inbox."""
        with self._changed:
            self._changed.notify_all()

    def take(self, most: int, wait_s: float, linger_s: float, is_urgent: Callable[[], bool]) -> list[RawMessage]:
        """Up to `most` messages: waits up to `wait_s` for the first and then `linger_s` for company; returns early
        when full or when `is_urgent()`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > 0 or self._is_closed or is_urgent(), wait_s)
            if not self._count:
                return []
            if self._count < most and linger_s > 0 and not is_urgent():
                deadline = time.monotonic() + linger_s
                self._wanted = most
                self._changed.wait_for(
                    lambda: self._count >= most or self._is_closed or is_urgent() or time.monotonic() >= deadline,
                    linger_s,
                )
                self._wanted = 1
            taken = self._pop(most)
            self._count -= len(taken)
            self.size -= sum(map(len, map(PAYLOAD, taken)))
            self._changed.notify_all()
            is_room_wanted, self._is_room_wanted = self._is_room_wanted, False
        if is_room_wanted:
            self.on_room()
        return taken

    def _pop(self, most: int) -> list[RawMessage]:
        taken: list[RawMessage] = []
        while self._lists and len(taken) < most:
            first = self._lists[0]
            end = min(len(first), self._begun + most - len(taken))
            taken += first[self._begun : end] if self._begun or end < len(first) else first
            if end == len(first):
                self._lists.popleft()
                self._begun = 0
            else:
                self._begun = end
        return taken

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _nothing() -> None:
    pass
