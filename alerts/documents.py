"""Documents that people hand in, rule sets and notification plans: TOML or JSON read, with the line of what is
wrong, and written as TOML."""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
from typing import Any

from twin.model import Problem, Refused


def from_toml(text: str | bytes, most: int, error: type[Refused]) -> tuple[dict[str, Any], str]:
    """The table of a TOML text of at most `most` bytes, and the text without its byte order mark. Raises `error`."""
    decoded = _decode(text, most, error)
    try:
        return tomllib.loads(decoded), decoded
    except RecursionError:
        raise error([Problem("file", "", "nested too deeply")]) from None
    except ValueError as mistake:  # a TOMLDecodeError, or an integer of thousands of digits
        found = re.search(r"at line (\d+)", str(mistake))
        place = f"line {found[1]}" if found else "file"
        raise error([Problem(place, "", f"not TOML: {mistake}")]) from None


def from_json(text: str | bytes, most: int, error: type[Refused]) -> Any:
    """What a JSON text of at most `most` bytes says; no name twice in an object, no NaN. Raises `error`."""
    try:
        return json.loads(_decode(text, most, error), object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as mistake:
        raise error([Problem(f"line {mistake.lineno}", "", f"not JSON: {mistake.msg}")]) from None
    except RecursionError:
        raise error([Problem("file", "", "nested too deeply")]) from None
    except ValueError as mistake:
        raise error([Problem("file", "", f"not JSON: {mistake}")]) from None


def toml_key(key: str) -> str:
    """A key as TOML writes it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: object) -> str:
    """A value as TOML writes it, on one line; tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(str(k))} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return str(value) if isinstance(value, dt.date | dt.time) else repr(value)


def _decode(text: str | bytes, most: int, error: type[Refused]) -> str:
    if len(text) > most:
        raise error([Problem("file", "", f"larger than {most >> 20} MiB")])
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as mistake:
        line = text[: mistake.start].count(b"\n") + 1
        raise error([Problem(f"line {line}", "", "not UTF-8")]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice in one object")
    return table


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number")
