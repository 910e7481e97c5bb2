"""Rule packs that are shipped: TOML files beside this one."""

from __future__ import annotations

from importlib.resources import files


def default_text() -> str:
    """The default pack's TOML, as shipped."""
    return (files(__name__) / "default.toml").read_text("utf-8")


def default_tests() -> str:
    """The tests of the default pack (`twin.rule_tests` reads them)."""
    return (files(__name__) / "default.tests.toml").read_text("utf-8")
