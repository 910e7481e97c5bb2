"""Work that would hold the interpreter for long, done in processes of their own beside the running service."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import psycopg

from twin.model import NotFound, Problem, Refused, StoreUnavailable

NICENESS: Final = 10  # the live service goes first


class Apart:
    """The service's processes that do one thing each."""

    def __init__(self) -> None:
        self._running: set[BaseProcess] = set()
        self._is_over = False

    def run(self, name: str, target: Callable[..., Any], *args: Any) -> Any:
        """What `target(*args)` returns, called in a new process named `name`; all of it must be picklable. Raises what
        it raises of `Refused`, `NotFound` and `StoreUnavailable`, which stands for the database's errors, too, and for
        a process that ends before it is done; anything else, a bug, is a `RuntimeError` with its traceback."""
        if self._is_over:
            raise StoreUnavailable("the service stops")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, target, args), name=name, daemon=True)
        process.start()
        self._running.add(process)
        theirs.close()
        try:
            outcome, value = ours.recv()
        except EOFError:
            raise StoreUnavailable(f"{name}: the process ended before it was done") from None
        finally:
            process.join()
            self._running.discard(process)
            ours.close()
        if outcome == "refused":
            raise Refused(*value)
        if outcome == "not found":
            raise NotFound(value)
        if outcome == "unavailable":
            raise StoreUnavailable(value)
        if outcome == "failed":
            raise RuntimeError(f"{name}:\n{value}")
        return value

    def end(self) -> None:
        """End what runs: what it was writing is undone, or swept at the next start."""
        self._is_over = True
        for process in list(self._running):
            process.terminate()


def _work(pipe: Connection, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.nice(NICENESS)
    outcome: tuple[str, Any]
    try:
        outcome = "done", target(*args)
    except Refused as refused:
        outcome = "refused", (refused.problems, refused.what)
    except NotFound as missing:
        outcome = "not found", str(missing)
    except StoreUnavailable as away:
        outcome = "unavailable", str(away)
    except psycopg.Error as error:
        outcome = "unavailable", str(error).splitlines()[0] if str(error) else type(error).__name__
    except MemoryError:
        text = "needs more memory than there is / 内存不足"
        outcome = "refused", ([Problem("", "", text)], "")
    except Exception:  # noqa: BLE001 - a bug: the service tells of it, as of its own
        outcome = "failed", traceback.format_exc()
    pipe.send(outcome)
