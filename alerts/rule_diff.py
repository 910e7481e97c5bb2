"""What changed from one text of rules to another: rules by id and field, overrides, and the texts line by line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any

Table = Mapping[str, Any]


def difference(before: str, after: str, names: tuple[str, str] = ("before", "after")) -> dict[str, Any]:
    """`added` and `removed` (ids), `changed` (`{"rule", "fields": {name: {"before", "after"}}}`), `overrides`,
    `inhibits` and `tests` (`added`, `removed`: as written) and `text`, a unified diff. Both texts are TOML that was
    taken before."""
    old, new = tomllib.loads(before), tomllib.loads(after)
    was, now = ({str(rule.get("id")): rule for rule in table.get("rule", [])} for table in (old, new))
    changed = [
        {"rule": rule, "fields": fields} for rule in now if rule in was and (fields := _fields(was[rule], now[rule]))
    ]
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="")
    return {
        "added": [rule for rule in now if rule not in was],
        "removed": [rule for rule in was if rule not in now],
        "changed": changed,
        "overrides": _tables(old.get("override", []), new.get("override", [])),
        "inhibits": _tables(old.get("inhibit", []), new.get("inhibit", [])),
        "tests": _tables(old.get("test", []), new.get("test", [])),
        "text": "\n".join(lines),
    }


def _fields(before: Table, after: Table) -> dict[str, dict[str, Any]]:
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: {"before": before.get(name), "after": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    }


def _tables(before: list[Table], after: list[Table]) -> dict[str, list[Table]]:
    return {
        "added": [table for table in after if table not in before],
        "removed": [table for table in before if table not in after],
    }
