"""`cimtwin check-rules`: rules files read as the service reads them, and their tests run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alerts.packs import default_tests, default_text
from alerts.rules import RuleSet
from twin.importing import parse_named_rules
from twin.mistakes import said
from twin.model import Refused
from twin.rule_tests import RuleTest, read_tests, run
from twin.settings import Settings
from twin.units import Kind, load_kinds

NamedBytes = tuple[str, bytes]
_RULES = re.compile(rb"^[ \t]*(\[\[?[ \t]*(rule|override)\b|rule[ \t]*=)", re.MULTILINE)
_TESTS = re.compile(rb"^[ \t]*\[\[[ \t]*test[ \t]*\]\]", re.MULTILINE)


@dataclass(slots=True)
class Checked:
    """What came of it: lines to say, lines of what is wrong, how many mistakes the files have and how many tests
    failed."""

    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mistakes: int = 0
    failed: int = 0


def check_files(settings: Settings, files: Sequence[NamedBytes], with_tests: bool) -> Checked:
    """Check rules files; `with_tests`, run the tests in each of them on its own rules, and those of files that hold
    tests only on the rules of all. Without a rules file the default pack is meant, with its tests where no other are
    given."""
    kinds = load_kinds(settings.kinds)
    result = Checked()
    of_tests = [file for file in files if _TESTS.search(file[1]) and not _RULES.search(file[1])]
    of_rules = [file for file in files if file not in of_tests]
    if not of_rules:
        of_rules = [("default", default_text().encode())]
        if not files:
            of_tests = [("default tests", default_tests().encode())]
    sets: list[tuple[RuleSet, NamedBytes]] = []
    for name, data in of_rules:
        try:
            rules = parse_named_rules(data, name, kinds)
        except Refused as refused:
            _refuse(result, refused)
            continue
        sets.append((rules, (name, data)))
        result.said.append(f"{name}: {len(rules)} rules / 条规则")
    if with_tests:
        total = sum(_run(result, kinds, rules, [file, *of_tests]) for rules, file in sets)
        if not result.mistakes:
            passed = total - result.failed
            result.said.append(f"{total} tests, {passed} passed, {result.failed} failed / 测试 {total},通过 {passed}")
    return result


def _run(result: Checked, kinds: dict[str, Kind], rules: RuleSet, files: Sequence[NamedBytes]) -> int:
    total = 0
    for name, data in files:
        try:
            tests: list[RuleTest] = read_tests(data, name, kinds, Path(name).parent.joinpath)
        except Refused as refused:
            _refuse(result, refused)
            continue
        total += len(tests)
        for test in tests:
            failure = run(test, rules, kinds)
            if failure is not None:
                result.failed += 1
                result.wrong += failure.lines()
    return total


def _refuse(result: Checked, refused: Refused) -> None:
    result.mistakes += len(refused.problems)
    result.wrong += [said(problem) for problem in refused.problems]
