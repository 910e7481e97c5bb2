"""Work that would hold the interpreter for long, done in a process of its own beside the running service."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psycopg

from twin.model import NotFound, Refused, StoreUnavailable


def run_apart(name: str, target: Callable[..., Any], *args: Any) -> Any:
    """What `target(*args)` returns, called in a new process named `name`; all of it must be picklable. Raises what it
    raises of `Refused`, `NotFound` and `StoreUnavailable` (which stands for the database's errors, too, and for a
    process that ends before it is done)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, target, args), name=name, daemon=True)
    process.start()
    theirs.close()
    try:
        outcome, value = ours.recv()
    except EOFError:
        raise StoreUnavailable(f"{name}: the process ended before it was done") from None
    finally:
        process.join()
        ours.close()
    if outcome == "refused":
        raise Refused(*value)
    if outcome == "not found":
        raise NotFound(value)
    if outcome == "unavailable":
        raise StoreUnavailable(value)
    return value


def _work(pipe: Connection, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
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
    pipe.send(outcome)
