"""3D Tiles of the models: written once for each version by a process of its own, kept as files in the data directory.

Bounds: one set is written at a time; `KEPT` sets are kept, those least asked for are removed first. A set is a folder
that appears whole.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Final

import psycopg

from models3d.writers import tiles
from twin.apart import Apart
from twin.store.models import load_model

KEPT: Final = 20
REVISION: Final = 1  # of what is written: sets of another are written anew


class Tilesets:
    """The sets under a folder."""

    def __init__(self, folder: Path, apart: Apart) -> None:
        self._folder = folder
        self._apart = apart
        self._turn = threading.Lock()

    def find(self, dsn: str, version: int, digest: str, name: str) -> Path:
        """The folder of a version's set, written now if it is not there. `digest`: of the version's file, so that the
        sets of another database are not taken for ours. Raises `StoreUnavailable`."""
        wanted = self._folder / f"{version}-{digest[:16]}-{REVISION}"
        if not (wanted / tiles.ROOT).exists():
            with self._turn:
                if not (wanted / tiles.ROOT).exists():
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._apart.run("tiles", write, dsn, version, name, wanted)
                    self._drop_oldest(wanted)
        with contextlib.suppress(OSError):
            os.utime(wanted)
        return wanted

    def sweep(self) -> None:
        """Remove what a service that was killed left half written."""
        for folder in self._folder.glob("part-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _drop_oldest(self, kept: Path) -> None:
        sets = sorted((p for p in self._folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in sets[: max(0, len(sets) - KEPT)]:
            if old != kept:
                shutil.rmtree(old, ignore_errors=True)


def write(dsn: str, version: int, name: str, wanted: Path) -> None:
    """Write a version's set: each file, packed beside it where that makes it smaller, and its tag."""
    part = Path(tempfile.mkdtemp(dir=wanted.parent, prefix="part-"))
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="cimtwin tiles") as connection:
            model, ids = load_model(connection, version)
        features = [tiles.Feature(id_, asset) for id_, asset in zip(ids, model.assets, strict=True)]
        for path, data in tiles.write(features, model.crs, name, f"{version}/"):
            (part / path).write_bytes(data)
            packed = gzip.compress(data, 1, mtime=0)  # a third of the time of level 6
            if len(packed) < len(data) * 0.9:
                (part / f"{path}.gz").write_bytes(packed)
            (part / f"{path}.tag").write_text(hashlib.sha256(data).hexdigest()[:32])
        part.chmod(0o755)
        part.rename(wanted)
    finally:
        shutil.rmtree(part, ignore_errors=True)
