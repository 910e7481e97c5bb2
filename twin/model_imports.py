"""Models sent over HTTP: each is read and stored in a process of its own, beside the running service.

Bounds: one import at a time, `WAITING_MOST` more wait for their turn, and one more is refused for now; what is sent is
spooled to a file of at most `CIMTWIN_MAX_MODEL_BYTES`, removed when its import is over. A worker's priority is low: the
live service goes first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

from twin.apart import Apart
from twin.importing_models import Imported, ModelWords, import_model, mapped
from twin.model import Problem, Refused, StoreUnavailable
from twin.store.models import Source

WAITING_MOST: Final = 4


class ModelImports:
    """Imports of a running service, one after the other."""

    def __init__(self, folder: Path, apart: Apart) -> None:
        self._folder = folder
        self._apart = apart
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        """A file for what is sent, gone when left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix="model-")
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a service that was killed left behind."""
        for file in self._folder.glob("model-*"):
            file.unlink(missing_ok=True)

    def run(self, dsn: str, file: Path, name: str, words: ModelWords, once: tuple[str, str] | None) -> Imported:
        """Import a spooled file, called `name` in messages, when it is its turn. Raises `Refused`, and
        `StoreUnavailable` where too many wait or the worker ends before it is done: nothing was changed then."""
        with self._count:
            if self._waiting > WAITING_MOST:
                raise StoreUnavailable("too many models wait to be imported")
            self._waiting += 1
        try:
            with self._turn:
                done: Imported = self._apart.run("model import", work, dsn, file, name, words, once)
                return done
        finally:
            with self._count:
                self._waiting -= 1


def work(dsn: str, file: Path, name: str, words: ModelWords, once: tuple[str, str] | None) -> Imported:
    """Import a file, in the process that runs this."""
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="cimtwin import") as connection:
            return import_model(connection, [Source(name, mapped(file))], words, once=once)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise Refused([Problem(name, "", str(error).splitlines()[0])], name) from None
