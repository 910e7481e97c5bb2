"""Models sent over HTTP: each is read and stored in a process of its own, beside the running service.

Bounds: one import at a time, `WAITING_MOST` more wait for their turn, and one more is refused for now; what is sent is
spooled to a file of at most `CIMTWIN_MAX_MODEL_BYTES`, removed when its import is over. A worker's priority is low: the
live service goes first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import psycopg

from twin.importing import Imported, ModelWords, import_model, mapped
from twin.model import Problem, Refused, StoreUnavailable
from twin.store.models import Source

WAITING_MOST: Final = 4
NICENESS: Final = 10


class ModelImports:
    """Imports of a running service, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0
        self._process: BaseProcess | None = None
        self._is_over = False

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
                return self._work(dsn, file, name, words, once)
        finally:
            with self._count:
                self._waiting -= 1

    def _work(self, dsn: str, file: Path, name: str, words: ModelWords, once: tuple[str, str] | None) -> Imported:
        if self._is_over:
            raise StoreUnavailable("the service stops")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, dsn, file, name, words, once), name="model import", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            outcome, value = ours.recv()
        except EOFError:
            raise StoreUnavailable("the import ended before it was done") from None
        finally:
            self._process.join()
            ours.close()
        if outcome == "refused":
            raise Refused(*value)
        if outcome == "unavailable":
            raise StoreUnavailable(value)
        done: Imported = value
        return done

    def end(self) -> None:
        """End the import that runs, if any: its transaction is undone."""
        self._is_over = True
        if self._process is not None and self._process.is_alive():
            self._process.terminate()


def work(
    pipe: Connection, dsn: str, file: Path, name: str, words: ModelWords, once: tuple[str, str] | None
) -> None:  # fmt: skip
    """The worker: send `("done", Imported)`, `("refused", (problems, what))` or `("unavailable", text)`."""
    os.nice(NICENESS)
    outcome: tuple[str, Any]
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="cimtwin import") as connection:
            outcome = "done", import_model(connection, [Source(name, mapped(file))], words, once=once)
    except Refused as refused:
        outcome = "refused", (refused.problems, refused.what)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        outcome = "refused", ([Problem(name, "", str(error).splitlines()[0])], name)
    except psycopg.Error as error:
        outcome = "unavailable", str(error).splitlines()[0] if str(error) else type(error).__name__
    pipe.send(outcome)
