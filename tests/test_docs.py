"""The documents are held to the code: what they show parses, exists, resolves and gives what they say it gives.

    python -m tests.test_docs

writes the tables of the default pack into the documents.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from alerts.composition import Composition, Group, Member
from alerts.notify.plan import NEEDS, parse_plan
from alerts.packs import default_text
from alerts.parameters import Accumulating, Drifting, Nightly, Seasonal
from alerts.rules import FIELDS, FromModel, Rule, parse_rules
from ingest import codecs
from twin.api import create_app
from twin.catalog import Catalog
from twin.cli import app
from twin.judging import judge_files
from twin.live import parse_subscription
from twin.model import DAY, HOUR, LEVELS, MINUTE, SECOND, Micros, RawMessage, Reason, parse_time
from twin.rule_tests import read_tests, run
from twin.sensors import parse_sensors_csv
from twin.settings import SECRETS, URLS, Settings, load, variable_of
from twin.telling import STATES
from twin.units import load_kinds

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [
    ("README.md", "README.zh.md"),
    *((f"docs/{name}.md", f"docs/zh/{name}.md") for name in
      ("start", "import-a-model", "city-model", "survey-tables", "page", "replay", "concepts", "connect-a-device",
       "write-a-rule", "manage-rules", "incidents", "detection", "holds", "notify", "operate")),
]  # fmt: skip
PAGES = [page for pair in PAIRS for page in pair]
KINDS = load_kinds()
NOW: Micros = parse_time("2026-01-01T00:00:00Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: `info` is what follows the fence."""

    page: str
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1].strip(), m[2]) for m in found]


def prose(page: str) -> str:
    return re.sub(r"^```[^\n]*\n.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_language(*languages: str) -> list[Block]:
    return [block for block in ALL_BLOCKS if block.language in languages]


# ---- rules


RULE_BLOCKS = [
    block
    for block in ALL_BLOCKS
    for _ in [0]
    if (block.language == "toml" and "[[rule]]" in block.text) or (block.language == "sh" and "[[rule]]" in block.text)
]


@pytest.mark.parametrize("block", RULE_BLOCKS, ids=str)
def test_every_rule_shown_parses(block: Block) -> None:
    text = block.text
    if block.language == "sh":
        found = re.search(r"<<'END'\n(.*?)^END$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        text = found[1]
    assert len(parse_rules(text, KINDS)) >= 1


@pytest.mark.parametrize("block", [b for b in RULE_BLOCKS if "[[test]]" in b.text], ids=str)
def test_every_test_of_rules_shown_passes(block: Block) -> None:
    rules = parse_rules(block.text, KINDS)
    tests = read_tests(block.text.encode(), str(block), KINDS, Path)
    assert tests
    assert [run(test, rules, KINDS) for test in tests] == [None] * len(tests)


def test_every_detector_and_field_is_explained_with_an_example() -> None:
    for page in ("docs/write-a-rule.md", "docs/zh/write-a-rule.md"):
        shown = [rule for b in blocks(page) if b.language == "toml" for rule in parse_rules(b.text, KINDS).rules]
        assert {rule.detector for rule in shown} == {name.removesuffix(" of") for name in FIELDS}
        text = text_of(page)
        for field in set().union(*FIELDS.values()) | {"instruction", "enabled", "source", "mark", "where", "sensors"}:
            assert re.search(rf"`{field}\b", text), f"{page} does not explain {field}"


@pytest.mark.parametrize("page", ["docs/write-a-rule.md", "docs/zh/write-a-rule.md"])
def test_the_worked_example_gives_what_it_says(page: str) -> None:
    found = blocks(page)
    rules = next(b for b in found if b.language == "toml").text.encode()
    sensors, readings = (b.text.encode() for b in found if b.info == "csv")
    judged = next(b for b in found if b.info == "csv judged").text
    lines, events = judge_files(Settings(), ("r", rules), ("f", readings), ("s", sensors))
    assert lines == judged
    assert events.count("\n") == 5


# ---- the default pack


def duration(span: Micros) -> str:
    for unit, width in (("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", SECOND)):
        if span % width == 0 and span >= width:
            return f"{span // width} {unit}"
    return f"{span / SECOND:g} s"


def limits(rule: Rule) -> str:
    """What makes the rule speak, in signs."""
    if isinstance(rule.parameters, Composition):
        held = f" ({duration(max(rule.hold))})" if max(rule.hold) else ""
        up = rule.parameters.level_up
        return f"{rule.level.word}{f' or {up} above' if up else ''}: {expression(rule.parameters)}{held}"
    if rule.detector == "offline":
        return f"offline > {rule.after_intervals:g} × interval" if rule.after_intervals else duration(rule.after)
    if rule.detector == "stuck":
        except_ = ", except " + ", ".join(f"{v:g}" for v in rule.excepted) if rule.excepted else ""
        return f"stuck {duration(rule.stuck_for)}{except_}"
    if rule.detector == "range":
        said = f"< {rule.min:g}, > {rule.max:g}"
        return f"{rule.level.word} {said}" + (f" ({duration(max(rule.hold))})" if max(rule.hold) else "")
    sign = {"above": ">", "below": "<", "either": "±"}[rule.side] + ("" if rule.strict else "=")
    if rule.detector == "rate" and rule.side == "below":
        sign = "-" + sign
    own, prefix, unit, windows = rule.parameters, "", "", (0,) * 4
    if rule.detector == "rate":
        prefix = f"change within {duration(rule.window)}: "
    elif isinstance(own, Accumulating):
        prefix, windows = "sum: ", own.windows
    elif own is not None:
        sign = {"above": "+", "below": "-", "either": "±"}[rule.side]
        unit = " %" if isinstance(own, Nightly) or (isinstance(own, Seasonal) and own.measure == "percent") else ""
        unit = " σ" if isinstance(own, Drifting) or (isinstance(own, Seasonal) and own.measure == "sigmas") else unit
        prefix = {"baseline": "against the same hour: ", "night": "night, against the 14-night median: "}.get(
            rule.detector, "drift: "
        )
    parts = []
    given = dict(rule.from_model)
    for name, limit, hold, window in zip(LEVELS, rule.levels, rule.hold, windows, strict=True):
        from_model = given.get(f"levels.{name}")
        if limit == limit or from_model is not None:
            amount = f"{limit:g}" if from_model is None else of_model(from_model)
            said = f"{name} {sign}{'' if unit or sign in '+-±' else ' '}{amount}{unit}"
            said += f" in {duration(window)}" if window else ""
            parts.append(said + (f" ({duration(hold)})" if hold else ""))
    return prefix + ", ".join(parts)


def of_model(limit: FromModel) -> str:
    """A limit that the sensor's asset gives, as a sum."""
    said = f"`{limit.of}`"
    if limit.minus:
        said += f" - `{limit.minus}`"
    if limit.times != 1:
        said = f"({said})" if limit.minus else said
        said = f"{limit.times:g} × {said}"
    if limit.plus:
        said += f" {'-' if limit.plus < 0 else '+'} {abs(limit.plus):g}"
    if limit.least is not None:
        said += f", if {limit.least:g} or more"
    return said if limit.default is None else f"{said}, else {limit.default:g}"


def expression(composition: Composition) -> str:
    """What a composite asks for, in words."""

    def said(part: Member | Group) -> str:
        if isinstance(part, Group):
            sign = " or " if part.op == "any" else ", "
            text = ("not " if part.op == "none" else "") + sign.join(said(p) for p in part.parts)
            return text + (f" in {duration(part.window)}" if part.window else "")
        level = f" {part.at_least.word}+" if part.at_least > 1 else ""
        many = f" at {part.need}" if part.need > 1 else ""
        far = f" within {part.scope.within_m:g} m" if part.scope.within_m else ""
        far += f" {part.scope.along}" if part.scope.along else ""
        window = f" in {duration(part.window)}" if part.window else ""
        return f"`{part.rule}`{level}{many}{far}{window}"

    return said(composition.counted or composition.holds)


def selection(rule: Rule) -> str:
    names = [rule.kind] if rule.kind else list(rule.where.kind)
    text = ", ".join(f"`{name}`" for name in names)
    if rule.where.tag:
        text += f" tag {', '.join(rule.where.tag)}"
    if rule.where.not_tag:
        text += f" no tag {', '.join(rule.where.not_tag)}"
    if rule.where.statistic:
        text += f" .{', .'.join(rule.where.statistic)}"
    return text


def marks(rule: Rule) -> str:
    if len(set(rule.marks)) == 1:
        return rule.marks[0]
    return ", ".join(f"{name} {mark}" for name, mark in zip(LEVELS, rule.marks, strict=True) if mark)


def pack_table(is_chinese: bool) -> str:
    head = ("编号", "含义", "测点", "条件（持续）", "标记", "依据（原文）") if is_chinese else (
        "id", "means", "sensors", "condition (hold)", "mark", "source")  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for rule in parse_rules(default_text(), KINDS, require_source=True).rules:
        title = rule.title.zh if is_chinese else rule.title.en
        if rule.is_condition:
            title += "（条件）" if is_chinese else " (condition)"
        cells = (f"`{rule.id}`", title, selection(rule), limits(rule), marks(rule), rule.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


PACK = re.compile(r"(<!-- default-pack[^\n]*-->\n)(.*?)(<!-- /default-pack -->)", re.DOTALL)


@pytest.mark.parametrize("page", ["docs/write-a-rule.md", "docs/zh/write-a-rule.md"])
def test_the_default_packs_table_is_the_pack(page: str) -> None:
    found = PACK.search(text_of(page))
    assert found is not None
    assert found[2] == pack_table("/zh/" in page), "python -m tests.test_docs writes it anew"


# ---- payloads


def example_catalog() -> Catalog:
    """The sensors of the list in docs/start.md."""
    listed = next(b for b in blocks("docs/start.md") if b.language == "csv")
    catalog = Catalog(KINDS)
    catalog.put(list(enumerate(parse_sensors_csv(listed.text.encode(), KINDS))))
    return catalog


def options_of(block: Block) -> dict[str, str]:
    return dict(word.split("=", 1) for word in block.info.split()[1:])


PAYLOADS = [block for block in of_language("json") if "topic" in options_of(block)]


@pytest.mark.parametrize("block", PAYLOADS, ids=str)
def test_every_payload_shown_decodes_or_is_refused_as_said(block: Block) -> None:
    options = options_of(block)
    decoded = codecs.decode([RawMessage(options["topic"], block.text.encode(), NOW)], example_catalog())
    refused = [str(reject.reason) for reject in decoded.rejects]
    assert refused == ([options["refused"]] if "refused" in options else [])
    if "refused" not in options:
        assert len(decoded) + len(decoded.waveforms) >= 1


@pytest.mark.parametrize("page", ["docs/connect-a-device.md", "docs/zh/connect-a-device.md"])
def test_every_topic_and_every_reason_is_told(page: str) -> None:
    text = text_of(page)
    for pattern, _ in codecs.CODECS:
        topic = pattern.replace("+", "{tenant}", 1).replace("+", "{device}", 1)
        assert f"| `{topic}` |" in text
    for reason in Reason:
        assert f"| `{reason}` |" in text


@pytest.mark.parametrize("block", [b for b in of_language("json") if "subscribe" in b.text], ids=str)
def test_every_subscription_shown_is_taken(block: Block) -> None:
    parse_subscription(block.text, example_catalog())


def test_every_json_block_is_a_payload_or_a_subscription() -> None:
    assert all("topic" in options_of(b) or "subscribe" in b.text for b in of_language("json"))


# ---- the command


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Where a command stands, and its words after `cimtwin`."""
    for block in of_language("sh"):
        for line in block.text.splitlines():
            found = re.match(r"\s*cimtwin[ \t]+([a-z].*)", line)
            if found:
                yield str(block), shlex.split(found[1], comments=True)
    for page in PAGES:
        for found in re.finditer(r"`cimtwin ([a-z-]+[^`]*)`", prose(page)):
            yield page, found[1].split()


def test_every_command_and_option_shown_exists() -> None:
    group: Any = typer.main.get_command(app)
    lines = list(command_lines())
    assert lines
    for place, words in lines:
        command = group.commands.get(words[0])
        assert command is not None, f"{place}: cimtwin {words[0]}"
        if hasattr(command, "commands") and words[1:]:
            words = words[1:]
            command = command.commands.get(words[0])
            assert command is not None, f"{place}: cimtwin … {words[0]}"
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for word in words[1:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{place}: cimtwin {words[0]} {word}"


def test_every_command_is_listed() -> None:
    group: Any = typer.main.get_command(app)
    for page in ("docs/start.md", "docs/zh/start.md"):
        for name in group.commands:
            assert f"| `cimtwin {name}` |" in text_of(page)


def test_every_make_target_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE):
            assert target in targets, f"{page}: make {target}"


# ---- settings


def variables() -> dict[str, str]:
    """Every setting's variable and its default as the table shows it."""
    settings = Settings()
    shown = {}
    for name in Settings.__dataclass_fields__:
        value = getattr(settings, name)
        text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if value.__class__ is float else value
        shown[variable_of(name)] = f"`{text}`" if value is not None else ""
    return shown


def test_every_variable_named_exists() -> None:
    known = set(variables()) | {f"{variable_of(name)}_FILE" for name in SECRETS | URLS.keys()} | {"CIMTWIN_CONFIG"}
    compose = set(re.findall(r"^#?(CIMTWIN_\w+)=", text_of(".env.example"), re.MULTILINE))
    for page in PAGES:
        for variable in re.findall(r"CIMTWIN_(?!NOTIFY_)[A-Z_]*[A-Z]", text_of(page)):
            assert variable in known | compose, f"{page}: {variable}"


@pytest.mark.parametrize("page", ["docs/operate.md", "docs/zh/operate.md"])
def test_every_setting_is_in_the_table_with_its_default(page: str) -> None:
    rows = dict(re.findall(r"^\| `(CIMTWIN_\w+)` \| ([^|]*?) \|", text_of(page), re.MULTILINE))
    for variable, default in variables().items():
        assert variable in rows, f"{page} lacks {variable}"
        if default:
            assert rows[variable] == default, f"{page}: {variable}"
    for variable in re.findall(r"^#?(CIMTWIN_\w+)=", text_of(".env.example"), re.MULTILINE):
        assert f"`{variable}`" in text_of(page), f"{page} lacks compose's {variable}"
    for name in SECRETS | URLS.keys():
        assert f"`{variable_of(name)}_FILE`" in text_of(page)


@pytest.mark.parametrize(
    "block", [b for b in of_language("toml") if "[[rule]]" not in b.text and b.info != "toml notify"], ids=str
)
def test_every_settings_file_shown_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "cimtwin.toml"
    file.write_text(block.text, encoding="utf-8")
    assert tomllib.loads(block.text)
    load({}, {}, file)


@pytest.mark.parametrize("block", [b for b in of_language("toml") if b.info == "toml notify"], ids=str)
def test_every_notification_plan_shown_is_taken(block: Block) -> None:
    parse_plan(block.text)


@pytest.mark.parametrize("page", ["docs/notify.md", "docs/zh/notify.md"])
def test_every_type_of_receiver_and_state_of_a_delivery_is_told(page: str) -> None:
    text = text_of(page)
    for kind, (needs, takes, _) in NEEDS.items():
        (row,) = re.findall(rf"^\| `{kind}` \| .*$", text, re.MULTILINE)
        assert all(f"`{name}`" in row for name in needs | takes)
    for state in STATES:
        assert f"\n| `{state}` |" in text


# ---- routes


def routes() -> list[tuple[str, re.Pattern[str]]]:
    """Method and pattern of every HTTP route."""
    view: Any = SimpleNamespace(settings=Settings(), live=None, reader=None)
    paths = create_app(view).openapi()["paths"]
    patterns = []
    for path, methods in paths.items():
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
        patterns += [(method.upper(), pattern) for method in methods]
    return patterns


def requests_shown(block: Block) -> Iterator[tuple[str, str]]:
    for command in re.split(r"(?:^|\s)curl ", block.text.replace("\\\n", " "))[1:]:
        found = re.search(r"127\.0\.0\.1:8000(/[^\s'\"?]*)", command)
        if found is None:
            continue
        method = re.search(r"-X (\w+)", command)
        has_body = re.search(
            r"(?:\s-d|--data-binary)\s", command[: command.find("\n\n")] if "\n\n" in command else command
        )
        yield (method[1] if method else "POST" if has_body else "GET"), found[1]


def test_every_route_shown_exists() -> None:
    known = routes()
    shown = [(str(b), *request) for b in of_language("sh") for request in requests_shown(b)]
    assert shown
    for place, method, path in shown:
        assert any(m == method and p.fullmatch(path) for m, p in known), f"{place}: {method} {path}"
    for page in PAGES:
        for path in re.findall(r"`(?:[A-Z]+ )?(/(?:api/v1|healthz|readyz|metrics)[^`?]*)", prose(page)):
            assert any(p.fullmatch(path) for _, p in known), f"{page}: {path}"


# ---- links, languages


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    text = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_resolves(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(str(file.relative_to(ROOT))), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_both_languages_show_the_same(pair: tuple[str, str]) -> None:
    english, chinese = ([b for b in blocks(page) if b.language != "text"] for page in pair)
    assert [(b.info, b.text) for b in english] == [(b.info, b.text) for b in chinese]
    headings = [re.findall(r"^(#+) ", prose(page), re.MULTILINE) for page in pair]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("page", PAGES)
def test_no_outside_host_and_no_machine_path_is_shown(page: str) -> None:
    text = text_of(page)
    hosts = set(re.findall(r"(?:https?|wss?)://([^/\s)>\"'`:]+)", text))
    assert hosts <= {"127.0.0.1"}
    assert not re.search("/(?:root|(?:home|tmp|work|Users)/)", text)


def write_tables() -> None:
    for page in ("docs/write-a-rule.md", "docs/zh/write-a-rule.md"):
        text = PACK.sub(lambda m, page=page: m[1] + pack_table("/zh/" in page) + m[3], text_of(page))
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_tables()
