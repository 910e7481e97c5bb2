"""Rules: from TOML (or the same as JSON) to frozen `Rule`s, strictly, with every mistake told at once.

Nothing here looks at sensors or readings: which sensors a rule watches is the engine's question, so a rule may name a
sensor that does not exist yet. Limits stay in the kind's canonical unit; durations become int64 µs.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from alerts.composition import Composition, unfit
from alerts.documents import from_json, from_toml, toml_key, toml_value
from alerts.holds import Chatter, Inhibit, read_inhibit
from alerts.parameters import PARAMETERS, Neighbours, Parameters, Together
from twin.model import DAY, HOUR, LEVELS, MINUTE, SECOND, InvalidRules, Level, Micros, Problem

MAX_TEXT: Final = 4 << 20  # bytes of a rules file; a city's hand-written rules are a hundredth of it
MAX_RULES: Final = 10_000
MAX_SENSORS: Final = 100_000  # names in one `sensors` list
MAX_OVERRIDES: Final = 10_000
MAX_SCOPE: Final = 10_000  # words of an override's scope, all combinations counted
MAX_DURATION: Final[Micros] = 3660 * DAY
MAX_WINDOW: Final[Micros] = 31 * DAY  # keeps the rate detector's int64 keys from overflowing
LEARNING: Final[Micros] = 14 * DAY  # what the anomaly detector is given to learn from, where it starts without a state
MAX_TIMES: Final = 100  # that a point is raised before it is said to chatter
MAX_BUDGET: Final = 1000.0  # false alerts per sensor and year; three a day are no watch any more
NO_LEVEL: Final = math.nan  # a level that a rule does not have
MARKS: Final = ("V", "Vs", "M", "E")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SENSOR = re.compile(r"[^/+#\s]+/[^/+#\s]+")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")
_PLACE_LINE = re.compile(r"line (\d+)$")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*(rule|override|inhibit|test)[ \t]*\]\]", re.MULTILINE)
MAX_INHIBITS: Final = 1000
_UNIT_US: Final = {"ms": 1000, "s": SECOND, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY}

_COMMON: Final = frozenset(
    {
        "id",
        "title",
        "kind",
        "sensors",
        "where",
        "detector",
        "source",
        "mark",
        "instruction",
        "enabled",
        "role",
        "latch",
        "chatter",
        "tags",
    }
)
_RUNS: Final = frozenset({"hold", "clear", "max_gap"})

# The fields each detector takes beside the common ones; a detector is known if it is here.
FIELDS: Final[dict[str, frozenset[str]]] = {
    "threshold": frozenset({"side", "strict", "levels"}) | _RUNS,
    "range": frozenset({"min", "max", "level"}) | _RUNS,
    "rate": frozenset({"side", "strict", "levels", "window"}) | _RUNS,
    "stuck": frozenset({"for", "tolerance", "except", "level", "max_gap"}),
    "offline": frozenset({"after", "level"}),
} | {
    name: takes.fields
    | (frozenset({"side", "strict", "levels"}) if takes.sides else frozenset({"level"}))
    | (_RUNS if takes.has_runs else frozenset())
    for name, takes in PARAMETERS.items()
}
_SIDES: Final[dict[str, tuple[str, ...]]] = {
    "threshold": ("above", "below"),
    "rate": ("above", "below", "either"),
} | {name: takes.sides for name, takes in PARAMETERS.items() if takes.sides}
_DEFAULT_LEVEL: Final = {
    "range": Level.YELLOW, "stuck": Level.BLUE, "offline": Level.BLUE
} | {name: takes.level for name, takes in PARAMETERS.items()}  # fmt: skip
FOLLOWING: Final = ("composite", "neighbours of")  # they may look wherever the rules look that they follow
_WHERE: Final = ("tag", "not_tag", "domain", "tenant", "asset", "device", "statistic", "kind")
SCOPES: Final = ("sensor", "asset", "area", "tag", "tenant")  # of an override, the narrowest first
# What an override may change beside what its detector takes. Not the side: the limits would mean something else; nor
# over what sensors are judged as one: that would be another detector.
_OVERRIDABLE: Final = frozenset({"enabled", "source", "mark"})
_NOT_OVERRIDABLE: Final = frozenset({"side", "over"})
_TABLES: Final = ("rule", "override", "inhibit", "test")


@dataclass(frozen=True, slots=True)
class Words:
    """A text for people in both languages."""

    zh: str
    en: str


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions on a sensor; each empty one holds for all, several words of one mean "any of them". `not_tag`: none
    of them."""

    tag: tuple[str, ...] = ()
    not_tag: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    asset: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    statistic: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Margin:
    """How far inside its limit a value must be to count as clear: `amount` in the kind's unit, or in % of |limit|."""

    amount: float = 0.0
    is_percent: bool = False

    def of(self, limit: float) -> float:
        return abs(limit) * self.amount / 100 if self.is_percent else self.amount


@dataclass(frozen=True, slots=True)
class FromModel:
    """A limit that the sensor's asset gives: `(of - minus) * times + plus` in the kind's unit, `of` and `minus` being
    numbers among the asset's attributes, or of what it is part of. `default` where one is missing (None: no limit), and
    where the limit comes to less than `least`."""

    of: str
    minus: str = ""
    times: float = 1.0
    plus: float = 0.0
    default: float | None = None
    least: float | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        return (self.of, self.minus) if self.minus else (self.of,)

    def limit(self, numbers: Mapping[str, float]) -> float | None:
        """The limit of an asset with these numbers; None where it has none."""
        if any(name not in numbers for name in self.attributes):
            return self.default
        base = numbers[self.of] - (numbers[self.minus] if self.minus else 0.0)
        found = base * self.times + self.plus
        is_believed = math.isfinite(found) and (self.least is None or found >= self.least)
        return found if is_believed else self.default


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked. `levels` and `hold` hold blue, yellow, orange, red in that order (NaN: no such level);
    every duration is in µs. Fields that the rule's detector does not use keep their defaults. `is_condition`: it raises
    no alert, and is there for composite rules to follow. `from_model`: by field (`levels.red`, `min`), the limits that
    each sensor's asset gives; until it is fitted to one, they are not there. `fingerprint` is equal for two rules if
    and only if they judge alike under the same id, and so do those that they follow; title, instruction, source, mark,
    latch, chatter and tags do not bear on it."""

    id: str
    detector: str
    title: Words
    kind: str | None = None
    sensors: tuple[str, ...] = ()
    where: Where = Where()
    side: str = "above"
    strict: bool = False
    levels: tuple[float, float, float, float] = (NO_LEVEL,) * 4
    hold: tuple[Micros, Micros, Micros, Micros] = (0, 0, 0, 0)
    clear_margin: Margin = Margin()
    clear_hold: Micros = 0
    max_gap: Micros | None = None
    level: Level = Level.YELLOW
    min: float | None = None
    max: float | None = None
    window: Micros = 0
    stuck_for: Micros = 0
    tolerance: float = 0.0
    excepted: tuple[float, ...] = ()
    after: Micros = 0
    after_intervals: float = 0.0
    budget: float = 1.0
    parameters: Parameters | None = None
    is_condition: bool = False
    latch: bool = False
    chatter: Chatter | None = None
    from_model: tuple[tuple[str, FromModel], ...] = ()
    tags: tuple[str, ...] = ()
    source: str = ""
    marks: tuple[str, str, str, str] = ("",) * 4
    instruction: Words = Words("", "")
    enabled: bool = True
    line: int = field(default=0, compare=False)
    fingerprint: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def memory(self) -> Micros:
        """The span of readings before a moment that, with the level open at its start, tells how this rule stands."""
        learnt = LEARNING if self.detector == "anomaly" else 0
        own = 0 if self.parameters is None else self.parameters.memory
        return learnt + own + self.window + self.stuck_for + max(*self.hold, self.clear_hold)

    def judged(self) -> tuple[Any, ...]:
        """Everything that bears on which alerts the rule gives."""
        selection = (self.kind, tuple(sorted(self.sensors)), self.where)
        limits = (self.side, self.strict, self.levels, self.level, self.min, self.max)
        runs = (self.hold, self.clear_margin, self.clear_hold, self.max_gap, self.window)
        others = (self.stuck_for, self.tolerance, self.excepted, self.after, self.after_intervals, self.enabled)
        judged: tuple[Any, ...] = (self.id, self.detector, selection, limits, runs, others)
        # Only where there is one, so that the states saved for other rules stay theirs.
        if self.is_condition:
            judged = (*judged, "condition")
        if self.from_model:
            judged = (*judged, self.from_model)
        if self.parameters is not None:
            return (*judged, self.parameters)
        return (*judged, self.budget) if self.detector == "anomaly" else judged


def sealed(rule: Rule, *followed: int) -> Rule:
    """The rule with its fingerprint, which changes with those of the rules that it follows."""
    digest = hashlib.blake2b(repr((*rule.judged(), *followed)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # The digest is of the finished rule, which is frozen: there is no other moment to set it.
    object.__setattr__(rule, "fingerprint", int.from_bytes(digest, "big", signed=True))
    return rule


@dataclass(frozen=True, slots=True)
class Override:
    """Other values of some fields of a rule, for the sensors of a scope: all of its parts must hold, of several words
    of one any. `fields` as written. `rank` is greater for a narrower scope."""

    rule: str
    scope: tuple[tuple[str, tuple[str, ...]], ...]
    fields: Mapping[str, Any] = field(compare=False, repr=False)
    attributes: frozenset[str] = frozenset()
    place: str = field(default="", compare=False)
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rank(self) -> tuple[int, ...]:
        words = dict(self.scope)
        return tuple(
            (max(map(area_depth, words[name])) if name == "area" else 1) if name in words else 0 for name in SCOPES
        )


def area_depth(area: str) -> int:
    """How many parts a path such as `district/street/grid` has."""
    return len(area.strip("/").split("/"))


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in the order of their file. A rule's place in `rules` is its index wherever rules are numbered. `text` is
    the TOML they came from (made from the JSON, where they came as JSON). `tests` as written: they are read by
    `alerts.rule_tests`."""

    rules: tuple[Rule, ...]
    text: str
    by_id: Mapping[str, Rule]
    inhibits: tuple[Inhibit, ...] = ()
    overrides: tuple[Override, ...] = ()
    tests: tuple[Mapping[str, Any], ...] = ()

    @property
    def follows_networks(self) -> bool:
        """Whether a rule asks what lies along a network."""
        return any("along" in override.fields for override in self.overrides) or any(
            any(member.scope.along for member, _ in found.holds.members())
            if isinstance(found, Composition)
            else isinstance(found, Neighbours) and bool(found.along)
            for found in (rule.parameters for rule in self.rules)
        )

    @property
    def attributes(self) -> frozenset[str] | None:
        """The assets' attributes that limits are taken from; None where nothing of the assets bears on the rules."""
        named = {name for rule in self.rules for _, given in rule.from_model for name in given.attributes}
        found = frozenset(named).union(*(override.attributes for override in self.overrides))
        by_place = any(name in ("area", "asset") for override in self.overrides for name, _ in override.scope)
        by_place = by_place or any(map(_is_by_area, self.rules))
        return found if found or by_place else None

    def __len__(self) -> int:
        return len(self.rules)

    def index(self, rule_id: str) -> int:
        """The place of rule `rule_id`; KeyError if there is none."""
        return self.rules.index(self.by_id[rule_id])

    def as_json(self) -> dict[str, Any]:
        """The rules as they were written, as a JSON object in the file's form."""
        tables = {
            "rule": [dict(rule.raw) for rule in self.rules],
            "override": [dict(override.raw) for override in self.overrides],
            "inhibit": [dict(inhibit.raw) for inhibit in self.inhibits],
            "test": [dict(test) for test in self.tests],
        }
        return {name: found for name, found in tables.items() if found or name == "rule"}

    @property
    def chatters(self) -> dict[str, Chatter]:
        """By rule, the chatter damping of those that have one."""
        return {rule.id: rule.chatter for rule in self.rules if rule.chatter is not None}


def _is_by_area(rule: Rule) -> bool:
    """Whether a rule asks in which administrative area its sensors lie."""
    found = rule.parameters
    if isinstance(found, Composition):
        return found.place == "area" or any(member.scope.on == "area" for member, _ in found.holds.members())
    return isinstance(found, Together) and found.over == "area"


def parse_rules(text: str | bytes, kinds: Collection[str], *, require_source: bool = False) -> RuleSet:
    """The rules of a TOML text. `kinds` are the names of the known kinds; `require_source` asks each rule for source,
    mark, title and instruction, as shipped packs must have them. Raises `InvalidRules` with every mistake."""
    table, decoded = from_toml(text, MAX_TEXT, InvalidRules)
    lines: dict[str, list[int]] = {name: [] for name in _TABLES}
    for match in _HEADER.finditer(decoded):
        lines[match[1]].append(decoded.count("\n", 0, match.start()) + 1)
    try:
        return _parse(table, kinds, lines, require_source, decoded)
    except InvalidRules as refused:
        raise InvalidRules([_at_its_line(problem, decoded) for problem in refused.problems], refused.what) from None


def parse_rules_json(text: str | bytes, kinds: Collection[str]) -> RuleSet:
    """The same from JSON: `{"rule": [{…}, …]}`. Raises `InvalidRules` with every mistake."""
    return parse_rules_table(from_json(text, MAX_TEXT, InvalidRules), kinds)


def parse_rules_table(table: object, kinds: Collection[str]) -> RuleSet:
    """The same from a decoded JSON or TOML document. Raises `InvalidRules` with every mistake."""
    if not isinstance(table, dict):
        raise InvalidRules([Problem("file", "", 'must be an object {"rule": [ … ]}')])
    found = _parse(table, kinds, {}, False, "")
    return replace(found, text=to_toml(found))


def parse_duration(text: str) -> Micros:
    """µs of "500ms", "30s", "5min" (or "5m"), "6h", "1d" or several together ("1h30min"); ValueError for others."""
    text = text.strip()
    if len(text) > 64 or not _DURATION.fullmatch(text):
        raise ValueError('must be a duration such as "30s", "5min", "6h" or "1d"')
    span = sum(round(float(number) * _UNIT_US[unit]) for number, unit in _DURATION_PART.findall(text))
    if span > MAX_DURATION:
        raise ValueError("is longer than ten years")
    return span


def to_toml(found: RuleSet) -> str:
    """TOML that parses into the same rules."""
    tables = [("rule", rule.raw) for rule in found.rules]
    tables += [("override", override.raw) for override in found.overrides]
    tables += [("inhibit", inhibit.raw) for inhibit in found.inhibits]
    tables += [("test", test) for test in found.tests]
    head = "" if found.rules else "rule = []\n"
    blocks = (
        f"[[{name}]]\n" + "".join(f"{toml_key(key)} = {toml_value(value)}\n" for key, value in table.items())
        for name, table in tables
    )
    return head + "\n".join(blocks)


def _at_its_line(problem: Problem, text: str) -> Problem:
    """The problem with the line of its field, where that stands on a line of its own below the rule's head."""
    match = _PLACE_LINE.search(problem.place)
    if match is None or not problem.field:
        return problem
    name = re.compile(rf"\s*[\"']?{re.escape(problem.field.partition('.')[0])}[\"']?\s*[=.]")
    lines = text.splitlines()
    for number in range(int(match[1]), len(lines)):
        if _HEADER.match(lines[number]):
            break
        if name.match(lines[number]):
            return Problem(f"{problem.place[: match.start()]}line {number + 1}", problem.field, problem.text)
    return problem


def _parse(
    table: dict[str, Any], kinds: Collection[str], lines: dict[str, list[int]], require_source: bool, text: str
) -> RuleSet:
    problems = [Problem("file", str(name)[:80], "unknown field") for name in table if name not in _TABLES]
    if "rule" not in table:
        # Nothing at all is more likely a lost upload than the wish to watch nothing; that is said by `rule = []`.
        problems.append(Problem("file", "rule", "no rules; for an empty set say rule = []"))
    rules: list[Rule] = []
    seen: dict[str, str] = {}
    for number, entry, line in _entries(table, "rule", lines, MAX_RULES, problems):
        name = entry.get("id") if isinstance(entry, dict) else None
        known = isinstance(name, str) and _ID.fullmatch(name) is not None
        place = (str(name) if known else f"rule {number}") + (f", line {line}" if line else "")
        if not isinstance(entry, dict):
            problems.append(Problem(place, "", "must be a table"))
            continue
        reader = _RuleReader(entry, place, kinds, problems)
        rule = reader.rule(line, require_source)
        if known:
            if rule.id in seen:
                problems.append(Problem(place, "id", f"is the id of {seen[rule.id]} too"))
            seen.setdefault(rule.id, f"rule {number}" if not line else f"the rule at line {line}")
        rules.append(rule)
    by_id = {rule.id: rule for rule in rules}
    _connect(rules, by_id, problems)
    has_sound_rules = not problems  # else what is wrong with a rule would be told again with each of its overrides
    overrides: list[Override] = []
    for number, entry, line in _entries(table, "override", lines, MAX_OVERRIDES, problems):
        place = f"override {number}" + (f", line {line}" if line else "")
        if not isinstance(entry, dict):
            problems.append(Problem(place, "", "must be a table"))
            continue
        found = _override(entry, place, by_id, kinds, problems, has_sound_rules)
        if found is not None:
            overrides.append(found)
    _check_ties(overrides, problems)
    inhibits = _inhibits(table, lines, by_id, problems)
    tests = [entry for _, entry, _ in _entries(table, "test", lines, MAX_RULES, problems)]
    problems += [Problem(f"test {n}", "", "must be a table") for n, t in enumerate(tests, 1) if not isinstance(t, dict)]
    if problems:
        raise InvalidRules(problems)
    return RuleSet(tuple(rules), text, by_id, inhibits, tuple(overrides), tuple(tests))


def _inhibits(
    table: dict[str, Any], lines: dict[str, list[int]], rules: Collection[str], problems: list[Problem]
) -> tuple[Inhibit, ...]:
    found = [
        read_inhibit(entry, f"inhibit {number}" + (f", line {line}" if line else ""), rules, problems)
        for number, entry, line in _entries(table, "inhibit", lines, MAX_INHIBITS, problems)
    ]
    return tuple(inhibit for inhibit in found if inhibit is not None)


def _connect(rules: list[Rule], by_id: Mapping[str, Rule], problems: list[Problem]) -> None:
    """Look whether there is what composite rules follow. One that follows a changed rule judges otherwise itself."""
    for rule in rules:
        if not isinstance(rule.parameters, Composition):
            continue
        place = (rule.id or "rule") + (f", line {rule.line}" if rule.line else "")
        problems += [Problem(place, name, text) for name, text in unfit(rule, by_id)]
        if not problems:
            sealed(rule, *(by_id[name].fingerprint for name in rule.parameters.rules()))


def _entries(
    table: dict[str, Any], name: str, lines: dict[str, list[int]], most: int, problems: list[Problem]
) -> list[tuple[int, Any, int]]:
    """Number, content and line of each table `[[name]]`."""
    entries = table.get(name, [])
    if not isinstance(entries, list):
        problems.append(Problem("file", name, f"must be an array of tables: [[{name}]]"))
        return []
    if len(entries) > most:
        raise InvalidRules([*problems, Problem("file", name, f"more than {most} {name}s")])
    places = lines.get(name, [])
    if len(places) != len(entries):
        places = [0] * len(entries)  # written inline, or a header inside a string: better none than a wrong line
    return list(zip(range(1, len(entries) + 1), entries, places, strict=True))


def overridable(rule: Rule) -> frozenset[str]:
    """The fields that an override may give of a rule; none of one that does not judge each sensor by itself."""
    detector = rule.detector
    takes = PARAMETERS.get(f"{detector} of" if "of" in rule.raw and f"{detector} of" in PARAMETERS else detector)
    if takes is not None and not takes.by_sensor:
        return frozenset()
    if detector == "offline":
        return frozenset({"after"}) | _OVERRIDABLE  # its alerts may be of a whole gateway: one level for all
    return (FIELDS[detector] | _OVERRIDABLE) - _NOT_OVERRIDABLE


def _override(
    table: dict[str, Any],
    place: str,
    rules: Mapping[str, Rule],
    kinds: Collection[str],
    problems: list[Problem],
    has_sound_rules: bool,
) -> Override | None:
    reader = _RuleReader(table, place, kinds, problems)
    before = len(problems)
    rule = rules.get(reader.text("rule", required=True))
    if rule is None:
        if len(problems) == before:
            reader.wrong("rule", f"no rule {str(table.get('rule'))[:80]!r} in this file")
        return None
    scope = tuple((name, reader.scope(name)) for name in SCOPES if name in table)
    if not scope:
        reader.wrong("rule", f"the override has no scope: it names {', '.join(SCOPES)}")
    if math.prod(len(words) for _, words in scope) > MAX_SCOPE:
        reader.wrong(scope[0][0], f"more than {MAX_SCOPE} combinations; make several overrides")
    fields = {name: value for name, value in table.items() if name != "rule" and name not in SCOPES}
    allowed = overridable(rule) if rule.detector in FIELDS else frozenset(fields)
    for name in fields.keys() - allowed:
        reader.wrong(name, f"cannot be overridden in a rule of detector {rule.detector}")
    if not fields.keys() - {"source", "mark"}:
        reader.wrong("rule", "the override changes nothing")
    if len(problems) > before or not has_sound_rules:
        return None
    attributes = frozenset[str]()
    merged = overridden(rule, [fields], kinds, place, problems)
    if merged is not None:
        attributes = frozenset(name for _, given in merged.from_model for name in given.attributes)
    return Override(rule.id, scope, fields, attributes, place, table)


def overridden(
    rule: Rule, fields: Sequence[Mapping[str, Any]], kinds: Collection[str], place: str, problems: list[Problem]
) -> Rule | None:
    """The rule with fields of overrides in place of its own, the last first; None where they do not fit, which is then
    in `problems`."""
    table = dict(rule.raw)
    for given in fields:
        table |= given
    if "hold" in table and not any("hold" in given for given in fields) and isinstance(table["hold"], dict):
        # A hold by level is of the rule's own levels: for others there is nothing to hold.
        present = table.get("levels", table["hold"])
        table["hold"] = {name: span for name, span in table["hold"].items() if name in present}
    if isinstance(table.get("mark"), dict) and not any("mark" in given for given in fields):
        present = table.get("levels", table["mark"])
        table["mark"] = {name: mark for name, mark in table["mark"].items() if name in present}
    if isinstance(table.get("window"), dict) and not any("window" in given for given in fields):
        present = table.get("levels", table["window"])
        table["window"] = {name: span for name, span in table["window"].items() if name in present}
    before = len(problems)
    found = _RuleReader(table, place, kinds, problems).rule(rule.line, False)
    return found if len(problems) == before else None


def _check_ties(overrides: Sequence[Override], problems: list[Problem]) -> None:
    """Refuse two overrides of one rule that give a field to the same sensors and are equally narrow."""
    taken: dict[tuple[Any, ...], Override] = {}
    for override in overrides:
        told = False
        for words in itertools.product(*(words for _, words in override.scope)):
            names = tuple(zip((name for name, _ in override.scope), words, strict=True))
            for name in override.fields.keys() - {"source", "mark"}:
                other = taken.setdefault((override.rule, names, name), override)
                if other is not override and not told:
                    told = True
                    said = ", ".join(f"{scope} {word}" for scope, word in names)
                    problems.append(Problem(override.place, name, f"{said} has this field from {other.place} too"))


def disorder(side: str, detector: str, limits: Sequence[float]) -> list[str]:
    """What is wrong with the order of the limits by level, NaN for none."""
    falling = side == "below" and detector == "threshold"
    given = [(name, limit) for name, limit in zip(LEVELS, limits, strict=True) if not math.isnan(limit)]
    return [
        f"{upper} must not be {'above' if falling else 'below'} {lower}"
        for (lower, a), (upper, b) in itertools.pairwise(given)
        if ((b > a) if falling else (b < a))
    ]


def never_clears(
    detector: str, side: str, levels: Sequence[float], low: float | None, high: float | None, margin: Margin
) -> bool:
    """Whether the margin leaves no value at which an alert could ever clear."""
    if detector == "range" and low is not None and high is not None and low < high:
        return low + margin.of(low) > high - margin.of(high)
    return detector == "rate" and side == "either" and any(margin.of(limit) >= limit > 0 for limit in levels)


class _RuleReader:
    """Reads one rule's table; each mistake goes into `problems` and reading goes on with a harmless value."""

    def __init__(self, table: dict[str, Any], place: str, kinds: Collection[str], problems: list[Problem]) -> None:
        self.table = table
        self.place = place
        self.kinds = kinds
        self.problems = problems
        self.from_model: dict[str, FromModel] = {}

    def wrong(self, name: str, text: str) -> None:
        self.problems.append(Problem(self.place, name[:80], text))

    def rule(self, line: int, require_source: bool) -> Rule:
        table = self.table
        rule_id = self.text("id", required=True)
        if rule_id and not _ID.fullmatch(rule_id):
            self.wrong("id", "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        detector = self.text("detector", required=True)
        form = f"{detector} of" if "of" in table and f"{detector} of" in FIELDS else detector
        known = form in FIELDS and " " not in detector  # "neighbours of" is a form, and nobody's word
        if detector and not known:
            names = dict.fromkeys(name.removesuffix(" of") for name in FIELDS)
            self.wrong("detector", f"unknown detector {detector[:40]!r}; known are {', '.join(names)}")
        allowed = FIELDS.get(form, frozenset().union(*FIELDS.values()))
        for name in table:
            if name not in _COMMON and name not in allowed:
                elsewhere = known and any(name in fields for fields in FIELDS.values())
                self.wrong(name, f"is not a field of detector {detector}" if elsewhere else "unknown field")
        kind, sensors, where = self.selection(form in FOLLOWING)
        title = self.words("title", rule_id)
        has = allowed.__contains__ if known else (lambda name: False)
        side = self.side(form) if has("side") else "above"
        levels = self.levels(side, detector) if has("levels") else (NO_LEVEL,) * 4
        single = _DEFAULT_LEVEL.get(form, Level.YELLOW)
        if has("level"):
            single = self.level(single)
        low = self.bound("min") if has("min") else None
        high = self.bound("max") if has("max") else None
        if low is not None and high is not None and low >= high:
            self.wrong("min", "must be below max")
        present = [i + 1 == single for i in range(4)]
        if has("levels"):
            present = [name in table["levels"] if isinstance(table.get("levels"), dict) else False for name in LEVELS]
        hold = self.hold(present) if has("hold") else (0, 0, 0, 0)
        margin, clear_hold = self.clear() if has("clear") else (Margin(), 0)
        self.check_margin(detector, side, levels, low, high, margin)
        after, after_intervals = self.after() if has("after") else (0, 0.0)
        parameters = PARAMETERS[form].read(self) if form in PARAMETERS else None
        window = self.duration("window", required=True, most=MAX_WINDOW) if detector == "rate" else None
        source, instruction = self.text("source"), self.words("instruction", "")
        marks = self.marks(present)
        if require_source:
            self.check_shipped(source, marks, present, instruction)
        rule = Rule(
            id=rule_id,
            detector=detector,
            title=title,
            kind=kind,
            sensors=sensors,
            where=where,
            side=side,
            strict=self.flag("strict", False) if has("strict") else False,
            levels=levels,
            hold=hold,
            clear_margin=margin,
            clear_hold=clear_hold,
            max_gap=self.duration("max_gap") if has("max_gap") else None,
            level=single,
            min=low,
            max=high,
            window=window or 0,
            stuck_for=(self.duration("for", required=True) or 0) if has("for") else 0,
            tolerance=self.not_negative("tolerance") if has("tolerance") else 0.0,
            excepted=self.excepted() if has("except") else (),
            after=after,
            after_intervals=after_intervals,
            budget=self.budget() if has("budget") else 1.0,
            parameters=parameters,
            is_condition=self.is_condition(form),
            latch=self.flag("latch", False),
            chatter=self.chatter() if "chatter" in table else None,
            from_model=tuple(sorted(self.from_model.items())),
            tags=self.tags(),
            source=source,
            marks=marks,
            instruction=instruction,
            enabled=self.flag("enabled", True),
            line=line,
            raw=table,
        )
        return sealed(rule)

    # plain values

    def text(self, name: str, *, required: bool = False) -> str:
        value = self.table.get(name)
        if value is None:
            if required or name in self.table:
                self.wrong(name, "is missing" if name not in self.table else "must be a text")
            return ""
        if not isinstance(value, str) or (required and not value):
            self.wrong(name, "must be a text" if not isinstance(value, str) else "must not be empty")
            return ""
        if len(value) > 10_000:
            self.wrong(name, "is longer than 10,000 characters")
        return value

    def as_number(self, name: str, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(name, "must be a number")
            return None
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.wrong(name, "must be a finite number")
            return None
        return number

    def number(self, name: str) -> float | None:
        return self.as_number(name, self.table[name]) if name in self.table else None

    def limit(self, name: str, value: object) -> float | None:
        """A number; NaN for one that the sensor's asset gives, which is noted in `from_model`."""
        if not isinstance(value, dict):
            return self.as_number(name, value)
        before = len(self.problems)
        for key in value.keys() - {"of", "minus", "times", "plus", "default", "least"}:
            self.wrong(f"{name}.{key}", "unknown field")
        texts = {key: value.get(key, "") for key in ("of", "minus")}
        for key, text in texts.items():
            if not isinstance(text, str) or len(text) > 200 or (not text and (key == "of" or key in value)):
                self.wrong(f"{name}.{key}", "must be the name of an attribute of the sensor's asset")
        numbers = {
            key: self.as_number(f"{name}.{key}", value[key])
            for key in ("times", "plus", "default", "least")
            if key in value
        }
        if len(self.problems) > before:
            return None
        times, plus, default = numbers.get("times"), numbers.get("plus"), numbers.get("default")
        self.from_model[name] = FromModel(
            texts["of"], texts["minus"], 1.0 if times is None else times, plus or 0.0, default, numbers.get("least")
        )
        return math.nan

    def bound(self, name: str) -> float | None:
        """`min` or `max` of a range; None where it is the sensor's own, or its asset's."""
        found = self.limit(name, self.table[name]) if name in self.table else None
        return None if found is None or math.isnan(found) else found

    def tags(self) -> tuple[str, ...]:
        value = self.table.get("tags", [])
        if not isinstance(value, list) or len(value) > 100 or not all(isinstance(v, str) and v for v in value):
            self.wrong("tags", "must be a list of at most 100 texts")
            return ()
        return tuple(dict.fromkeys(value))

    def scope(self, name: str) -> tuple[str, ...]:
        """The words of one part of an override's scope."""
        value = self.table[name]
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip("/") for w in words):
            self.wrong(name, "must be a text or a list of texts")
            return ("",)
        if name == "sensor":
            for word in [w for w in words if not _SENSOR.fullmatch(w)][:10]:
                self.wrong(name, f"{word[:80]!r} is not device/property")
        if name == "area":
            words = [word.strip("/") for word in words]
            if len(set(map(area_depth, words))) > 1:
                self.wrong(name, "names areas of different depth; make several overrides")
        return tuple(dict.fromkeys(words))

    def not_negative(self, name: str) -> float:
        number = self.number(name)
        if number is not None and number < 0:
            self.wrong(name, "must not be negative")
        return number or 0.0

    def flag(self, name: str, default: bool) -> bool:
        value = self.table.get(name, default)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
            return default
        return value

    def as_duration(self, name: str, value: object) -> Micros:
        if isinstance(value, str):
            try:
                return parse_duration(value)
            except ValueError as error:
                self.wrong(name, str(error))
                return 0
        if isinstance(value, bool) or not isinstance(value, int | float) or value != 0:
            negative = isinstance(value, int | float) and not isinstance(value, bool) and value < 0
            text = "must not be negative" if negative else 'must be a duration with its unit, such as "30s", or 0'
            self.wrong(name, text)
        return 0

    def duration(self, name: str, *, required: bool = False, most: Micros = MAX_DURATION) -> Micros | None:
        """A duration above 0, or None if the field is not there."""
        if name not in self.table:
            if required:
                self.wrong(name, "is missing")
            return None
        before = len(self.problems)
        span = self.as_duration(name, self.table[name])
        if len(self.problems) == before and not 0 < span <= most:
            self.wrong(name, "must be longer than 0" if span <= 0 else f"must be at most {most // DAY} days")
        return span

    def words(self, name: str, default: str) -> Words:
        value = self.table.get(name)
        if name not in self.table:
            return Words(default, default)
        if isinstance(value, str):
            return Words(value, value)
        if not isinstance(value, dict) or not value or not all(isinstance(v, str) for v in value.values()):
            self.wrong(name, 'must be { zh = "…", en = "…" }')
            return Words(default, default)
        for key in value.keys() - {"zh", "en"}:
            self.wrong(f"{name}.{key}", "unknown field")
        if any(len(v) > 10_000 for v in value.values()):
            self.wrong(name, "is longer than 10,000 characters")
        zh, en = value.get("zh"), value.get("en")
        return Words(zh or en or default, en or zh or default)

    # parts of a rule

    def selection(self, is_optional: bool) -> tuple[str | None, tuple[str, ...], Where]:
        table = self.table
        named = [name for name in ("kind", "sensors", "where") if name in table]
        if not named and not is_optional:
            self.wrong("kind", "is missing: a rule names its sensors by kind, where or sensors")
        if "sensors" in named and len(named) > 1:
            self.wrong("sensors", "cannot be combined with kind or where")
        kind: str | None = None
        if "kind" in table:
            kind = self.text("kind", required=True) or None
            self.check_kind("kind", kind)
        sensors = self.sensors() if "sensors" in table else ()
        where = self.where() if "where" in table else Where()
        if kind is not None and kind != "*" and where.kind and kind not in where.kind:
            self.wrong("where.kind", "contradicts kind")
        return kind, sensors, where

    def check_kind(self, name: str, kind: str | None) -> None:
        if kind and kind != "*" and kind not in self.kinds:
            self.wrong(name, f"unknown kind {kind[:80]!r}")

    def sensors(self) -> tuple[str, ...]:
        value = self.table["sensors"]
        if not isinstance(value, list) or not value:
            self.wrong("sensors", 'must be a list of at least one "device/property"')
            return ()
        if len(value) > MAX_SENSORS:
            self.wrong("sensors", f"more than {MAX_SENSORS} sensors")
            return ()
        bad = [v for v in value if not (isinstance(v, str) and len(v) <= 512 and _SENSOR.fullmatch(v))]
        for v in bad[:10]:
            self.wrong("sensors", f"{str(v)[:80]!r} is not device/property")
        good = [v for v in value if isinstance(v, str)]
        if not bad and len(set(good)) != len(good):
            self.wrong("sensors", "names a sensor twice")
        return tuple(good)

    def where(self) -> Where:
        value = self.table["where"]
        if not isinstance(value, dict) or not value:
            self.wrong("where", f"must be a table of at least one of {', '.join(_WHERE)}")
            return Where()
        parts: dict[str, tuple[str, ...]] = {}
        for name, given in value.items():
            if name not in _WHERE:
                self.wrong(f"where.{name}", "unknown field")
                continue
            words = [given] if isinstance(given, str) else given
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and w for w in words):
                self.wrong(f"where.{name}", "must be a text or a list of texts")
                continue
            parts[name] = tuple(words)
        domains = {kind.partition(".")[0] for kind in self.kinds}
        for word in parts.get("domain", ()):
            if word not in domains:
                self.wrong("where.domain", f"unknown domain {word[:80]!r}")
        for word in parts.get("kind", ()):
            self.check_kind("where.kind", word)
        return Where(**parts)

    def side(self, detector: str) -> str:
        allowed = _SIDES[detector]
        value = self.table.get("side", "above")
        if not isinstance(value, str) or value not in allowed:
            hint = "; detector range has two limits" if value == "either" else ""
            self.wrong("side", f"must be one of {', '.join(allowed)}{hint}")
            return "above"
        return value

    def is_condition(self, form: str) -> bool:
        value = self.table.get("role", "alert")
        if value not in ("alert", "condition"):
            self.wrong("role", 'must be "alert", or "condition" for a rule that is only there for composite rules')
        elif value == "condition" and form in (*FOLLOWING, "offline"):
            self.wrong("role", "composite rules cannot follow this one")
        return bool(value == "condition")

    def level(self, default: Level) -> Level:
        value = self.table.get("level")
        if "level" not in self.table:
            return default
        try:
            return Level.of(value if isinstance(value, str) else "")
        except ValueError:
            self.wrong("level", f"must be one of {', '.join(LEVELS)}")
            return default

    def levels(self, side: str, detector: str) -> tuple[float, float, float, float]:
        value = self.table.get("levels")
        nothing = (NO_LEVEL,) * 4
        if not isinstance(value, dict) or not value:
            missing = "levels" not in self.table
            self.wrong("levels", "is missing" if missing else "must be a table such as { yellow = 15, red = 40 }")
            return nothing
        limits = list(nothing)
        for name, given in value.items():
            if name not in LEVELS:
                self.wrong(f"levels.{name}", f"must be one of {', '.join(LEVELS)}")
                continue
            number = self.limit(f"levels.{name}", given)
            if number is not None:
                limits[LEVELS.index(name)] = number
                if detector == "rate" and number <= 0:
                    self.wrong(f"levels.{name}", "must be above 0: the side tells the direction of a change")
        for text in disorder(side, detector, limits):
            self.wrong("levels", text)
        return (limits[0], limits[1], limits[2], limits[3])

    def hold(self, present: list[bool]) -> tuple[Micros, Micros, Micros, Micros]:
        value = self.table.get("hold", 0)
        if not isinstance(value, dict):
            span = self.as_duration("hold", value)
            return (span,) * 4
        spans = [0, 0, 0, 0]
        for name, given in value.items():
            if name not in LEVELS:
                self.wrong(f"hold.{name}", f"must be one of {', '.join(LEVELS)}")
                continue
            spans[LEVELS.index(name)] = self.as_duration(f"hold.{name}", given)
            if not present[LEVELS.index(name)]:
                self.wrong(f"hold.{name}", "the rule has no such level")
        return (spans[0], spans[1], spans[2], spans[3])

    def clear(self) -> tuple[Margin, Micros]:
        value = self.table.get("clear", True)
        if value is True:
            return Margin(), 0
        if not isinstance(value, dict):
            self.wrong("clear", 'must be { margin = "10%", hold = "5min" } or true')
            return Margin(), 0
        for name in value.keys() - {"margin", "hold"}:
            self.wrong(f"clear.{name}", "unknown field")
        hold = self.as_duration("clear.hold", value.get("hold", 0))
        given = value.get("margin", 0)
        if isinstance(given, str):
            found = _PERCENT.fullmatch(given.strip()) if len(given) < 40 else None
            if found is None or float(found[1]) > 100:
                self.wrong("clear.margin", 'must be a number, or "0%" to "100%" of the limit')
                return Margin(), hold
            return Margin(float(found[1]), True), hold
        number = self.as_number("clear.margin", given)
        if number is not None and number < 0:
            self.wrong("clear.margin", "must not be negative")
        return Margin(number or 0.0), hold

    def chatter(self) -> Chatter | None:
        value = self.table["chatter"]
        if not isinstance(value, dict):
            self.wrong("chatter", 'must be { times = 3, within = "10min" }')
            return None
        before = len(self.problems)
        for name in value.keys() - {"times", "within", "steady"}:
            self.wrong(f"chatter.{name}", "unknown field")
        times = value.get("times")
        if type(times) is not int or not 2 <= times <= MAX_TIMES:
            self.wrong("chatter.times", f"must be a whole number from 2 to {MAX_TIMES}")
        spans = [
            self.as_duration(f"chatter.{name}", value.get(name, value.get("within"))) for name in ("within", "steady")
        ]
        if len(self.problems) == before and not all(0 < span <= DAY for span in spans):
            self.wrong("chatter.within", "must be longer than 0 and at most a day")
        return Chatter(times, *spans) if len(self.problems) == before and isinstance(times, int) else None

    def check_margin(
        self,
        detector: str,
        side: str,
        levels: tuple[float, ...],
        low: float | None,
        high: float | None,
        margin: Margin,
    ) -> None:
        """Refuse a margin that leaves no value at which the alert could ever clear."""
        if never_clears(detector, side, levels, low, high, margin):
            self.wrong("clear.margin", "is so wide that the alert could never clear")

    def marks(self, present: list[bool]) -> tuple[str, str, str, str]:
        value = self.table.get("mark", "")
        if isinstance(value, str):
            if value not in ("", *MARKS):
                self.wrong("mark", f"must be one of {', '.join(MARKS)}")
            return (value,) * 4
        marks = ["", "", "", ""]
        if not isinstance(value, dict):
            self.wrong("mark", f"must be one of {', '.join(MARKS)}, or a table by level")
            value = {}
        for name, given in value.items():
            if name not in LEVELS or not present[LEVELS.index(name)]:
                self.wrong(f"mark.{name}", "the rule has no such level")
            elif given not in MARKS:
                self.wrong(f"mark.{name}", f"must be one of {', '.join(MARKS)}")
            else:
                marks[LEVELS.index(name)] = given
        return (marks[0], marks[1], marks[2], marks[3])

    def excepted(self) -> tuple[float, ...]:
        value = self.table.get("except", [])
        if not isinstance(value, list) or len(value) > 100:
            self.wrong("except", "must be a list of at most 100 numbers")
            return ()
        numbers = [self.as_number("except", v) for v in value]
        return tuple(sorted({n for n in numbers if n is not None}))

    def after(self) -> tuple[Micros, float]:
        """`(µs, 0)` for a duration, `(0, times)` for times the sensor's interval ("3x", the default)."""
        value = self.table.get("after", "3x")
        found = _TIMES.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
        if found is not None:
            times = float(found[1])
            if not 1 <= times <= 1e6:
                self.wrong("after", 'must be at least "1x"')
            return 0, times
        before = len(self.problems)
        span = self.as_duration("after", value)
        if len(self.problems) > before:
            self.problems[-1] = Problem(self.place, "after", 'must be a duration, or "3x" times the interval')
        elif span <= 0:
            self.wrong("after", "must be longer than 0")
        return span, 0.0

    def budget(self) -> float:
        """False alerts allowed per sensor and year."""
        number = self.number("budget")
        if number is not None and not 0 < number <= MAX_BUDGET:
            self.wrong("budget", f"must be above 0 and at most {MAX_BUDGET:g} false alerts per sensor and year")
            return 1.0
        return 1.0 if number is None else number

    def check_shipped(self, source: str, marks: tuple[str, ...], present: list[bool], instruction: Words) -> None:
        if not source:
            self.wrong("source", "is missing")
        if any(there and not mark for there, mark in zip(present, marks, strict=True)):
            self.wrong("mark", "is missing")
        if "title" not in self.table:
            self.wrong("title", "is missing")
        if not instruction.zh or not instruction.en:
            self.wrong("instruction", "is missing")
