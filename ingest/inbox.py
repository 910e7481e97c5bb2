"""Messages that came and wait for the pipeline."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ingest.messages import Messages
from twin.model import Micros, RawMessage


class Inbox:
    """Messages between the network thread and the pipeline, in order of arrival.

    Bound: `messages` and `bytes_`, whichever is reached first (one message is always let in). Policy: `put` waits,
    `put_many` leaves the rest to the caller. Counters: `waits` (how often it was full for one of them), `len()`,
    `size` (bytes). Kept as the columns that came, so that nothing is done for a single message.
    """

    def __init__(self, messages: int, bytes_: int) -> None:
        self.messages = messages
        self.bytes = bytes_
        self.size = 0
        self.waits = 0
        self.on_room: Callable[[], None] = _nothing  # called by the taking thread, once after each refusal
        self._pieces: deque[tuple[Messages, int]] = deque()  # with their bytes
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
            self._add(Messages.of([message]), len(message.payload))
            return True

    def put_many(self, messages: Sequence[RawMessage]) -> int:
        """Add as many as there is room for, and say how many that were (none once closed); never waits. Where they were
        not all, `on_room` is called when some were taken. The inbox keeps the columns: do not change them."""
        messages = Messages.of(messages)
        size = messages.bytes
        with self._changed:
            if self._is_closed:
                return 0
            number = len(messages)
            if self._count + number > self.messages or self.size + size > self.bytes:
                number = self._fitting(messages)
                if number < len(messages):
                    self.waits += not self._is_room_wanted
                    self._is_room_wanted = True
                    messages = messages[:number]
                    size = messages.bytes
            if number:
                self._add(messages, size)
            return number

    def _fitting(self, messages: Messages) -> int:
        sizes = [*map(len, messages.payloads)]
        number, count, size = 0, self._count, self.size
        while number < len(sizes) and not (count and (count >= self.messages or size >= self.bytes)):
            size += sizes[number]
            number += 1
            count += 1
        return number

    def _add(self, messages: Messages, size: int) -> None:
        before = self._count
        self._pieces.append((messages, size))
        self._count += len(messages)
        self.size += size
        if not before or before < self._wanted <= self._count:
            self._changed.notify_all()

    def _is_full(self) -> bool:
        return self._count > 0 and (self._count >= self.messages or self.size >= self.bytes)

    def oldest(self) -> Micros | None:
        """When the message that has waited longest came; None if none waits."""
        with self._changed:
            return self._pieces[0][0].runs[0][1] if self._count else None

    def wake(self) -> None:
        """Let a waiting `take` return early, for work that does not come through the inbox."""
        with self._changed:
            self._changed.notify_all()

    def take(self, most: int, wait_s: float, linger_s: float, is_urgent: Callable[[], bool]) -> Messages:
        """Up to `most` messages: waits up to `wait_s` for the first and then `linger_s` for company; returns early
        when full or when `is_urgent()`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > 0 or self._is_closed or is_urgent(), wait_s)
            if not self._count:
                return Messages()
            if self._count < most and linger_s > 0 and not is_urgent():
                deadline = time.monotonic() + linger_s
                self._wanted = most
                self._changed.wait_for(
                    lambda: self._count >= most or self._is_closed or is_urgent() or time.monotonic() >= deadline,
                    linger_s,
                )
                self._wanted = 1
            taken = self._pop(most)
            self._changed.notify_all()
            is_room_wanted, self._is_room_wanted = self._is_room_wanted, False
        if is_room_wanted:
            self.on_room()
        return taken

    def _pop(self, most: int) -> Messages:
        taken = Messages()
        while self._pieces and len(taken) < most:
            piece, size = self._pieces.popleft()
            room = most - len(taken)
            if len(piece) > room:
                rest = piece[room:]
                self._pieces.appendleft((rest, rest.bytes))
                piece, size = piece[:room], size - rest.bytes
            taken.extend(piece)
            self.size -= size
        self._count -= len(taken)
        return taken

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _nothing() -> None:
    pass
