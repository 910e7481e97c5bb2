"""Payload formats: from messages as they came to columns of readings, and rejects with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, NamedTuple, cast

import numpy as np

from ingest.codecs import senml, status, telemetry, waveform
from ingest.codecs.gathering import Gathering, Points, Unreadable
from ingest.messages import Messages
from twin.catalog import Catalog
from twin.model import Bools, Floats, Indices, Ints, Micros, RawMessage, Reason, Reject, WaveformBlock, by_sensor

__all__ = ["Decoded", "Decoder", "decode"]

Codec = Callable[[Gathering, RawMessage, str, str], None]

# What `+` of a pattern stands for is tenant, then device. The first pattern that fits holds.
CODECS: Final[tuple[tuple[str, Codec], ...]] = (
    ("v1/gateway/telemetry", telemetry.decode_gateway),
    ("cim/v1/+/gateway/telemetry", telemetry.decode_gateway),
    ("cim/v1/+/+/telemetry", telemetry.decode_device),
    ("cim/v1/+/+/senml", senml.decode),
    ("cim/v1/+/+/waveform", waveform.decode),
    ("cim/v1/+/+/status", status.decode),
)
_PATTERNS: Final = tuple((pattern.split("/"), codec) for pattern, codec in CODECS)
MAX_ROUTES: Final = 200_000


class Route(NamedTuple):
    """Where a topic leads: its codec (None: nowhere), tenant (None: the default one) and device."""

    codec: Codec | None
    tenant: str | None
    device: str


# Topics seen, with where they lead. Bound: MAX_ROUTES, then emptied; a topic's route never changes.
_routes: dict[str, Route] = {}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch of messages decoded.

    Columns, one row a usable reading, in the order of messages and within them: `sensor` int32 index, `observed_at`
    and `received_at` int64 µs, `value` float64 in the kind's canonical unit (NaN = null), `message` int32 index into
    the batch, `position` int32 place in the message's order of decoding, `by_gateway` whether it came by a gateway's
    topic. `statuses` are (tenant, device, is online, received_at). `received` counts as the contract does:
    rows + blocks + rejected positions = received, a message refused whole (position -1) counting as one.
    """

    sensor: Indices
    observed_at: Ints
    received_at: Ints
    value: Floats
    message: Indices
    position: Indices
    by_gateway: Bools
    rejects: list[Reject]
    waveforms: list[WaveformBlock]
    statuses: list[tuple[str, str, bool, Micros]]
    received: int

    def __len__(self) -> int:
        return len(self.sensor)

    @classmethod
    def join(cls, parts: Sequence[tuple[int, Decoded]]) -> Decoded:
        """One batch of several, each given with its number of messages."""
        if len(parts) == 1:
            return parts[0][1]
        first = [0, *accumulate(size for size, _ in parts)]
        decoded = [part for _, part in parts]
        return cls(
            np.concatenate([part.sensor for part in decoded]),
            np.concatenate([part.observed_at for part in decoded]),
            np.concatenate([part.received_at for part in decoded]),
            np.concatenate([part.value for part in decoded]),
            np.concatenate([part.message + np.int32(n) for n, part in zip(first, decoded, strict=False)]),
            np.concatenate([part.position for part in decoded]),
            np.concatenate([part.by_gateway for part in decoded]),
            [replace(r, message=r.message + n) for n, part in zip(first, decoded, strict=False) for r in part.rejects],
            [
                replace(b, message=b.message + n)
                for n, part in zip(first, decoded, strict=False)
                for b in part.waveforms
            ],
            [status for part in decoded for status in part.statuses],
            sum(part.received for part in decoded),
        )

    def by_sensor(self) -> Decoded:
        """The same with the columns in the order of sensors, and as they came within each: whatever looks at them next
        needs them so."""
        if (self.sensor[1:] >= self.sensor[:-1]).all():
            return self
        order = by_sensor(self.sensor)
        return replace(
            self,
            **{
                name: getattr(self, name).take(order)
                for name in ("sensor", "observed_at", "received_at", "value", "message", "position", "by_gateway")
            },
        )

    def per_message(self, only: Sequence[frozenset[int] | None]) -> tuple[list[int], list[int]]:
        """By message, how many readings and blocks are usable and how many are refused, of the positions that `only`
        names for it (None: all)."""
        accepted, refused = [0] * len(only), [0] * len(only)
        places = [*zip(self.message.tolist(), self.position.tolist(), strict=True)]
        places += [(block.message, block.position) for block in self.waveforms]
        for message, position in places:
            accepted[message] += _is_wanted(only[message], position)
        for reject in self.rejects:
            refused[reject.message] += sum(_is_wanted(only[reject.message], p) for p in reject.positions)
        return accepted, refused

    def narrowed(self, only: Sequence[frozenset[int] | None]) -> Decoded:
        """The same without the positions that `only` leaves out."""
        rows = zip(self.message.tolist(), self.position.tolist(), strict=True)
        keep = np.array([_is_wanted(only[m], p) for m, p in rows], bool)
        rejects = [
            replace(reject, positions=tuple(p for p in reject.positions if _is_wanted(only[reject.message], p)))
            for reject in self.rejects
        ]
        rejects = [reject for reject in rejects if reject.positions]
        blocks = [block for block in self.waveforms if _is_wanted(only[block.message], block.position)]
        return Decoded(
            self.sensor[keep],
            self.observed_at[keep],
            self.received_at[keep],
            self.value[keep],
            self.message[keep],
            self.position[keep],
            self.by_gateway[keep],
            rejects,
            blocks,
            self.statuses,
            int(keep.sum()) + len(blocks) + sum(reject.readings for reject in rejects),
        )


def _is_wanted(wanted: frozenset[int] | None, position: int) -> bool:
    return wanted is None or position in wanted


class Decoder:
    """Decodes batch after batch by one catalogue, and keeps what it looked up there until the catalogue changes.

    `default_tenant` owns what comes without a tenant in the topic; a payload over `max_bytes` is refused unparsed.
    """

    def __init__(self, catalog: Catalog, default_tenant: str = "default", max_bytes: int = 1 << 20) -> None:
        self.catalog = catalog
        self.default_tenant = default_tenant
        self.max_bytes = max_bytes
        self._points = Points(catalog)

    def decode(self, messages: Sequence[RawMessage]) -> Decoded:
        """Everything in `messages` that is usable, as columns, and the rest as rejects; raises for no payload or
        topic."""
        if self._points.changes != self.catalog.changes:
            self._points = Points(self.catalog)
        out = Gathering(Messages.of(messages), self._points)
        careful = self._add_plain(out)
        if careful:
            _add_carefully(out, careful, self.default_tenant, self.max_bytes)
        columns = out.columns()  # refuses, too: before rejects()
        return Decoded(*columns, out.rejects(), out.blocks, out.statuses, out.received())

    def _add_plain(self, out: Gathering) -> Sequence[int]:
        """Take in the messages of single devices that can be taken in together; the numbers of all others."""
        by_topic = self._points.by_topic
        names = out.messages.names
        found = [*map(by_topic.get, names)]
        if not found:
            return ()
        if all(found):  # a device has properties
            return telemetry.add_plain(out, range(len(found)), cast("list[dict[str, int]]", found), self.max_bytes)
        for number, known in enumerate(found):
            if known is None:
                found[number] = self._place(names[number])
        plain = [number for number, known in enumerate(found) if known]
        others = [number for number, known in enumerate(found) if not known]
        if plain:
            owners = [known for known in found if known]
            others = sorted(others + telemetry.add_plain(out, plain, owners, self.max_bytes))
        return others

    def _place(self, name: bytes) -> dict[str, int] | None:
        """The properties of the plain device whose telemetry comes by this topic, None if it is no such topic."""
        topic = name.decode("utf-8", "replace")
        route = _routes.get(topic) or _route(topic)
        if route.codec is not telemetry.decode_device or route.tenant is None:
            return None
        properties = self._points.properties(route.device, route.tenant)
        if properties and topic.encode() == name:
            self._points.by_topic[name] = properties
        return properties


def decode(
    messages: Sequence[RawMessage], catalog: Catalog, *, default_tenant: str = "default", max_bytes: int = 1 << 20
) -> Decoded:
    """One batch, as `Decoder` does."""
    return Decoder(catalog, default_tenant, max_bytes).decode(messages)


def _add_carefully(out: Gathering, numbers: Sequence[int], default_tenant: str, max_bytes: int) -> None:
    """Take in messages one by one, each by its topic's codec."""
    for number in numbers:
        message = out.messages[number]
        out.begin(number, message)
        if len(message.payload) > max_bytes:
            out.refuse_message(Reason.TOO_LARGE, f"{message.size} bytes; at most {max_bytes}")
            continue
        codec, tenant, device = _routes.get(message.topic) or _route(message.topic)
        if codec is None:
            out.refuse_message(Reason.MALFORMED, "unknown topic")
            continue
        try:
            codec(out, message, default_tenant if tenant is None else tenant, device)
        except Unreadable as error:
            out.refuse_message(Reason.MALFORMED, str(error), device or None)
        else:
            out.counts[number] = len(out.sensor) - out.first


def _route(topic: str) -> Route:
    if len(_routes) >= MAX_ROUTES:
        _routes.clear()
    route = _routes[topic] = find_route(topic)
    return route


def find_route(topic: str) -> Route:
    """The first pattern of `CODECS` that fits the topic."""
    levels = topic.split("/")
    for wanted, codec in _PATTERNS:
        if len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True)):
            names = [level for w, level in zip(wanted, levels, strict=True) if w == "+"]
            return Route(codec, names[0] if names else None, names[1] if len(names) > 1 else "")
    return Route(None, None, "")
