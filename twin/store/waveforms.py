"""Blocks of samples as the database keeps them: in two bytes a sample where that loses nothing, else in four."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from twin.model import Ints, WaveformBlock
from twin.store.database import COPY_HEADER, COPY_TRAILER, POSTGRES_EPOCH

MOST_DECIMALS: Final = 9
_LARGEST: Final = 32767
_NONE: Final = -1


def compact(samples: NDArray[np.float32]) -> tuple[NDArray[np.int16], Ints]:
    """Blocks of one length, (blocks, length), as whole numbers of 10^-decimals, and the decimals of each block; -1 for
    one that these cannot say exactly, with as many decimals as 16 bits have room for."""
    x = samples.astype(np.float64)
    peak = np.abs(x).max(axis=1, initial=0.0)
    with np.errstate(divide="ignore"):
        # Half a step of room: a peak of 327.67 is a little more as a float of 32 bits.
        decimals = np.clip(np.floor(np.log10((_LARGEST + 0.5) / peak)), _NONE, MOST_DECIMALS).astype(np.int64)
    scale = 10.0 ** np.maximum(decimals, 0)[:, None]
    whole = np.clip(np.rint(x * scale), -_LARGEST, _LARGEST)
    is_exact = (decimals >= 0) & ((whole / scale).astype(np.float32) == samples).all(axis=1)
    return whole.astype(np.int16), np.where(is_exact, decimals, _NONE)


def expanded(samples: bytes, decimals: int | None) -> NDArray[np.float32]:
    """The samples of a stored block."""
    if decimals is None:
        return np.frombuffer(samples, "<f4").astype(np.float32)
    return (np.frombuffer(samples, "<i2") / 10.0**decimals).astype(np.float32)


def pack_waveforms(blocks: Sequence[WaveformBlock], batch: int) -> bytes:
    """Rows of COPY's binary format: sensor_id, started_at, received_at, rate_hz, quality, batch, decimals, samples."""
    by_length: dict[int, list[WaveformBlock]] = {}
    for block in blocks:
        by_length.setdefault(len(block.samples), []).append(block)
    parts = [COPY_HEADER]
    for alike in by_length.values():
        samples = np.stack([block.samples for block in alike])
        whole, decimals = compact(samples)
        for is_compact in (True, False):
            chosen = np.flatnonzero((decimals != _NONE) == is_compact)
            if len(chosen):
                values = whole[chosen].astype("<i2") if is_compact else samples[chosen].astype("<f4")
                rows = [alike[place] for place in chosen.tolist()]
                parts.append(_rows(rows, values.view(np.uint8), decimals[chosen] if is_compact else None, batch))
    return b"".join([*parts, COPY_TRAILER])


def _rows(blocks: Sequence[WaveformBlock], samples: NDArray[np.uint8], decimals: Ints | None, batch: int) -> bytes:
    size = samples.shape[1]
    rows = np.empty(
        len(blocks),
        [
            ("fields", ">i2"),
            ("n1", ">i4"), ("sensor", ">i4"),
            ("n2", ">i4"), ("started_at", ">i8"),
            ("n3", ">i4"), ("received_at", ">i8"),
            ("n4", ">i4"), ("rate_hz", ">f8"),
            ("n5", ">i4"), ("quality", ">i2"),
            ("n6", ">i4"), ("batch", ">i8"),
            ("n7", ">i4"), *([] if decimals is None else [("decimals", ">i2")]),
            ("n8", ">i4"), ("samples", np.uint8, (size,)),
        ],
    )  # fmt: skip
    rows["fields"] = 8
    rows["n1"] = 4
    rows["n2"] = rows["n3"] = rows["n4"] = rows["n6"] = 8
    rows["n5"] = 2
    rows["sensor"] = [block.sensor for block in blocks]
    rows["started_at"] = np.array([block.started_at for block in blocks], np.int64) - POSTGRES_EPOCH
    rows["received_at"] = np.array([block.received_at for block in blocks], np.int64) - POSTGRES_EPOCH
    rows["rate_hz"] = [block.rate_hz for block in blocks]
    rows["quality"] = [block.quality for block in blocks]
    rows["batch"] = batch
    if decimals is None:
        rows["n7"] = -1
    else:
        rows["n7"], rows["decimals"] = 2, decimals
    rows["n8"] = size
    rows["samples"] = samples
    return rows.tobytes()
