"""Messages as they came, as columns: nothing is made for each of them, on their way from the network to their codec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import overload

import numpy as np

from twin.model import Ints, Micros, RawMessage


class Messages(Sequence[RawMessage]):
    """A sequence of `RawMessage`, each made when it is looked at.

    `names` (topics as bytes), `payloads`, `mids` (packet ids, 0 at QoS 0): one a message. `runs`: so many of them, one
    after the other, came at that moment by that connection. `left_out`: of those not taken in whole, by their place.
    """

    __slots__ = ("_came", "_settled", "left_out", "mids", "names", "payloads", "runs")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.payloads: list[bytes] = []
        self.mids: list[int] = []
        self.runs: list[tuple[int, Micros, int]] = []
        self.left_out: dict[int, int] = {}
        self._settled = 0  # messages that the runs tell of
        self._came: list[tuple[Micros, int]] | None = None  # the runs, one entry a message

    @classmethod
    def of(cls, messages: Sequence[RawMessage]) -> Messages:
        """These messages; themselves where they are columns already."""
        if isinstance(messages, Messages):
            return messages
        made = cls()
        for message in messages:
            made.add(message)
            made.settle(message.received_at, message.connection)
        return made

    def add(self, message: RawMessage) -> None:
        """One more; when and by which connection it came is for `settle` to say."""
        if message.left_out:
            self.left_out[len(self.names)] = message.left_out
        self.names.append(message.topic.encode("utf-8", "replace"))
        self.payloads.append(message.payload)
        self.mids.append(message.mid)

    def settle(self, received_at: Micros, connection: int) -> None:
        """All that were added since came at this moment, by this connection."""
        number = len(self.names) - self._settled
        if number:
            self._settled += number
            self._run(number, received_at, connection)

    def _run(self, number: int, received_at: Micros, connection: int) -> None:
        if self.runs and self.runs[-1][1:] == (received_at, connection):
            number += self.runs.pop()[0]
        self.runs.append((number, received_at, connection))
        self._came = None

    def extend(self, others: Messages) -> None:
        """Add others behind these."""
        for place, size in others.left_out.items():
            self.left_out[len(self.names) + place] = size
        self.names += others.names
        self.payloads += others.payloads
        self.mids += others.mids
        self._settled += len(others.names)
        for run in others.runs:
            self._run(*run)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> RawMessage: ...

    @overload
    def __getitem__(self, place: slice) -> Messages: ...

    def __getitem__(self, place: int | slice) -> RawMessage | Messages:
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self.names))
            if step != 1:
                raise ValueError("messages are cut into pieces, not picked")
            return self._cut(begin, max(begin, end))
        if place < 0:
            place += len(self.names)
        if self._came is None:
            self._came = [*chain.from_iterable(repeat((at, by), number) for number, at, by in self.runs)]
        received_at, connection = self._came[place]
        mid = self.mids[place]
        return RawMessage(
            self.names[place].decode("utf-8", "replace"), self.payloads[place], received_at, mid, int(mid > 0),
            connection, self.left_out.get(place, 0),
        )  # fmt: skip

    def _cut(self, begin: int, end: int) -> Messages:
        part = Messages()
        part.names, part.payloads, part.mids = self.names[begin:end], self.payloads[begin:end], self.mids[begin:end]
        part._settled = end - begin
        part.left_out = {place - begin: size for place, size in self.left_out.items() if begin <= place < end}
        first = 0
        for number, received_at, connection in self.runs:
            inside = min(end, first + number) - max(begin, first)
            if inside > 0:
                part.runs.append((inside, received_at, connection))
            first += number
        return part

    def __iter__(self) -> Iterator[RawMessage]:
        return map(self.__getitem__, range(len(self.names)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    @property
    def bytes(self) -> int:
        """Of all payloads."""
        return sum(map(len, self.payloads))

    def received(self) -> Ints:
        """When each came, µs."""
        numbers, moments, _ = zip(*self.runs, strict=True) if self.runs else ((), (), ())
        return np.repeat(np.array(moments, np.int64), np.array(numbers, np.int64))

    def packet_ids(self, connection: int) -> list[int]:
        """Of those to be acknowledged that came by this connection."""
        found: Iterable[int] = self.mids
        if any(by != connection for _, _, by in self.runs):
            first, parts = 0, []
            for number, _, by in self.runs:
                if by == connection:
                    parts.append(self.mids[first : first + number])
                first += number
            found = chain.from_iterable(parts)
        return [mid for mid in found if mid]
