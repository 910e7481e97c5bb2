"""Blocks of fast sampling, and the four numbers that sum each up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ingest.codecs.gathering import Gathering, Unreadable, read_json, shown, time_fault, time_of
from twin.model import Floats, RawMessage, Reason, WaveformBlock

STATISTICS: Final = ("mean", "rms", "peak_to_peak", "frequency")
MAX_RATE_HZ: Final = 100_000.0
MIN_FOR_FREQUENCY: Final = 4  # fewer samples show no frequency but zero


class _Entry(msgspec.Struct):
    """A message as most are; numbers only, so that no sample is looked at by itself."""

    rate_hz: float
    values: dict[str, list[float]]
    ts: int | float | str | msgspec.UnsetType | None = msgspec.UNSET


_ENTRY: Final = msgspec.json.Decoder(_Entry)


def decode(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    """`{"ts": start_ms, "rate_hz": 100, "values": {"acc_z": [ … ]}}`: one block a property, in its canonical unit.

    Each block counts as one received. A block with anything but finite numbers in it is refused alone.
    """
    if not _add_together(out, message, tenant, device):
        _add_one_by_one(out, message, tenant, device)


def _add_together(out: Gathering, message: RawMessage, tenant: str, device: str) -> bool:
    """Take in a message all of whose blocks are usable and of one length; False, and nothing done, for any other."""
    payload = message.payload
    try:
        entry = _ENTRY.decode(payload)
        if not payload.isascii():
            payload.decode()  # the typed reader passes over what is no text where it is not asked for
    except (ValueError, RecursionError):
        return False
    columns = list(entry.values.values())
    if not 0 < entry.rate_hz <= MAX_RATE_HZ or not columns or not columns[0]:
        return False
    length = len(columns[0])
    if any(len(column) != length for column in columns):
        return False
    at = message.received_at if entry.ts is msgspec.UNSET else time_of(entry.ts)
    properties = out.resolve(device, tenant, at)[1]  # none of a device that is refused
    indices = [properties.get(name, -1) for name in entry.values]
    if min(indices) < 0 or time_fault(at, message.received_at) is not None:
        return False
    flat = np.fromiter(chain.from_iterable(columns), np.float64, length * len(columns))
    factors = np.array([out.factors(index) for index in indices])
    with np.errstate(over="ignore", invalid="ignore"):
        samples = (flat.reshape(-1, length) * factors[:, :1] + factors[:, 1:]).astype(np.float32)
    if not np.isfinite(samples).all():
        return False
    out.blocks_met += len(columns)
    out.blocks += [
        WaveformBlock(index, at, message.received_at, entry.rate_hz, block, out.number, position)
        for position, (index, block) in enumerate(zip(indices, samples, strict=True))
    ]
    return True


def _add_one_by_one(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    body = read_json(message.payload)
    if type(body) is not dict:
        raise Unreadable("must be an object with ts, rate_hz and values")
    rate = body.get("rate_hz")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= MAX_RATE_HZ:
        raise Unreadable(f"rate_hz must be a number above 0, at most {MAX_RATE_HZ:.0f}")
    values = body.get("values")
    if type(values) is not dict or not values:
        raise Unreadable("values must be an object of arrays")
    at = time_of(body["ts"]) if "ts" in body else message.received_at
    fault = time_fault(at, message.received_at)
    _, properties, why, detail = out.resolve(device, tenant, at)
    out.blocks_met += len(values)
    for position, (name, samples) in enumerate(values.items()):
        index = properties.get(name, -1)
        if why is not None:
            out.refuse(why, detail, device, position)
        elif index < 0:
            out.refuse(Reason.UNKNOWN_PROPERTY, f"{shown(device)} has no property {shown(name)}", device, position)
        elif fault is not None:
            out.refuse(Reason.BAD_TIME, fault, device, position)
        else:
            block = _canonical(samples, *out.factors(index))
            if block is None:
                detail = f"{shown(name)}: samples must be an array of finite numbers, at least one"
                out.refuse(Reason.BAD_VALUE, detail, device, position)
                detail = ""
                continue
            out.blocks.append(WaveformBlock(index, at, message.received_at, float(rate), block, out.number, position))


def _canonical(samples: object, factor: float, offset: float) -> NDArray[np.float32] | None:
    """Samples in the canonical unit, or None if they are not all finite numbers."""
    if type(samples) is not list or not samples or not {float, int}.issuperset(map(type, samples)):
        return None
    try:
        column = np.array(samples, np.float64)
    except OverflowError:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        block = (column * factor + offset).astype(np.float32)
    return block if np.isfinite(block).all() else None


def summarise_many(samples: NDArray[np.float32], rate_hz: Floats) -> Floats:
    """Blocks of one length at once: `samples` (blocks, length), `rate_hz` (blocks,) → (blocks, 4) as `STATISTICS`.

    rms is that of the samples as they are, the mean not taken off: what JT/T 1037 asks of acceleration, whose mean is
    about zero. The frequency is the highest line but zero of the mean-free block under a Hann window, refined by a
    parabola through the logarithms of it and its neighbours; 0 for a constant block and one of under 4 samples.
    """
    x = samples.astype(np.float64)
    length = x.shape[1]
    low, high = x.min(axis=1), x.max(axis=1)
    mean = x.mean(axis=1)
    result = np.zeros((len(x), 4))
    result[:, 0] = mean
    result[:, 1] = np.sqrt(np.mean(x * x, axis=1))
    result[:, 2] = high - low
    if length < MIN_FOR_FREQUENCY:
        return result
    window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(length) / length)
    power = np.abs(np.fft.rfft((x - mean[:, None]) * window, axis=1)) ** 2
    line = 1 + np.argmax(power[:, 1:], axis=1)
    rows = np.arange(len(x))
    last = power.shape[1] - 1
    tiny = np.finfo(np.float64).tiny
    before, here, after = (np.log(np.maximum(power[rows, np.clip(line + step, 0, last)], tiny)) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    is_inside = (line < last) & (bend < 0)
    shift = np.where(is_inside, 0.5 * (before - after) / np.where(is_inside, bend, 1.0), 0.0)
    frequency = (line + np.clip(shift, -0.5, 0.5)) * rate_hz / length
    result[:, 3] = np.where(high > low, frequency, 0.0)
    return result


def summarise_all(blocks: Sequence[WaveformBlock]) -> Floats:
    """`summarise_many` for blocks of any lengths, (blocks, 4) in their order; blocks of one length share one step."""
    result = np.zeros((len(blocks), len(STATISTICS)))
    by_length: dict[int, list[int]] = {}
    for place, block in enumerate(blocks):
        by_length.setdefault(len(block.samples), []).append(place)
    for places in by_length.values():
        samples = np.stack([blocks[place].samples for place in places])
        result[places] = summarise_many(samples, np.array([blocks[place].rate_hz for place in places]))
    return result
