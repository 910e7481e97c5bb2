"""Who may import whom, one home per outside system, and no effects in domain code: held by reading the source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("twin", "ingest", "alerts", "models3d")
SHELL = ("twin.api", "twin.apart", "twin.app", "twin.backtests", "twin.checking", "twin.cli", "twin.demo",
         "twin.incident_desk", "twin.exporting", "twin.exporting_models",
         "twin.following", "twin.importing", "twin.importing_models", "twin.judging", "twin.model_imports",
         "twin.notifying", "twin.sending",
         "twin.republish", "twin.rule_tests", "twin.tilesets", "twin.replay_worker", "twin.replaying", "twin.replays",
         "twin.__main__")  # fmt: skip
MAY_IMPORT = {
    "twin": {"twin"},
    "alerts": {"alerts", "twin"},
    "models3d": {"models3d", "twin"},
    "ingest": {"ingest", "alerts", "twin"},
}
HOMES = {
    "paho": ("ingest.mqtt",),
    "ssl": ("ingest.source", "twin.sending"),
    "smtplib": ("twin.sending",),
    "psycopg": ("twin.store", *SHELL),
    "psycopg_pool": ("twin.store",),
    "fastapi": ("twin.api", "twin.app"),
    "starlette": ("twin.api", "twin.app"),
    "uvicorn": ("twin.app",),
    "typer": ("twin.cli",),
    "pyarrow": ("ingest.arrow", "twin.arrow"),
}
# Code that decides: values and `now` in, values out.
PURE = (
    "models3d", "twin.city", "twin.network", "twin.placing",
    "twin.model", "twin.telling", "twin.units", "twin.catalog", "twin.state", "twin.sensors", "ingest.codecs",
    "ingest.quality",
    "ingest.arrow", "ingest.judgement",
    "ingest.recorded", "ingest.replay", "ingest.wire", "ingest.conversation",
    "alerts.composites", "alerts.composition", "alerts.parameters", "alerts.groups", "alerts.reach", "alerts.rules",
    "alerts.engine", "alerts.detectors", "alerts.lifecycle", "alerts.words", "alerts.holds",
    "alerts.judge", "alerts.scopes", "alerts.rule_diff", "alerts.comparing",
    "alerts.causes", "alerts.floods", "alerts.incidents", "twin.incident", "alerts.notify", "alerts.cap",
)  # fmt: skip
# Its one purpose is an effect: a process in which a library may crash.
APART = ("models3d.confined",)
EFFECTS = {"socket", "threading", "time", "asyncio", "subprocess", "selectors", "multiprocessing", "os", "random"}
READS_PACKAGE_DATA = {"twin.units", "models3d.readers.words"}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_place_allows(name: str) -> None:
    wrong = []
    for imported in imports(MODULES[name]):
        top = imported.partition(".")[0]
        if top in PACKAGES:
            if within(name, SHELL):
                continue
            if top not in MAY_IMPORT[name.partition(".")[0]] or within(imported, SHELL):
                wrong.append(imported)
        elif top in HOMES and not within(name, HOMES[top]):
            wrong.append(imported)
    assert not wrong, f"{name} may not import {wrong}"


@pytest.mark.parametrize("name", [n for n in MODULES if within(n, PURE) and not within(n, APART)])
def test_code_that_decides_has_no_clock_socket_thread_or_file(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert not {i.partition(".")[0] for i in imports(MODULES[name])} & EFFECTS
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert "open" not in calls
    if name not in READS_PACKAGE_DATA:
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not attributes & {"read_text", "read_bytes", "write_text", "write_bytes", "now", "utcnow", "today"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_uses_only_declared_packages(name: str) -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").lower().replace("-", "_")
    known_as = {"paho": "paho_mqtt", "psycopg_pool": "psycopg", "starlette": "fastapi"}
    for imported in imports(MODULES[name]):
        top = imported.partition(".")[0]
        if top in PACKAGES or top in sys.stdlib_module_names:
            continue
        assert known_as.get(top, top).lower() in declared, f"{name} uses {top}, which pyproject.toml does not name"


def test_broad_excepts_are_few_and_each_is_explained() -> None:
    """Only around a batch, around a rule, and in the MQTT callback and the threads that must not end."""
    allowed = {"ingest.pipeline", "ingest.mqtt", "ingest.source", "alerts.engine", "twin.app", "twin.api.errors",
               "twin.replays", "twin.replay_worker", "twin.apart", "twin.following", "twin.notifying"}  # fmt: skip
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
                assert name in allowed, f"{name}:{node.lineno}"
