"""What the words in survey tables and GeoJSON properties mean: columns, systems, types, sections, years. The words are
data (`words.toml`)."""

from __future__ import annotations

import codecs
import math
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from mmap import mmap
from typing import Any, Final

from twin.city import ASSET_TYPES, SYSTEMS

CODES: Final = {code: system for system, codes in SYSTEMS.items() for code in codes}
# In cells, what surveyors write for "not known".
EMPTY: Final = frozenset(
    ("", "-", "--", "—", "——", "/", "\\", "无", "不详", "未知", "null", "none", "nan", "n/a", "na", "<null>")
)
UNITS: Final = {"m": 1.0, "米": 1.0, "mm": 0.001, "毫米": 0.001, "cm": 0.01, "厘米": 0.01, "ft": 0.3048, "in": 0.0254}
_BRACKETS: Final = re.compile(r"[(\[（【]([^()\[\]（）【】]*)[)\]）】]")
_IDLE: Final = re.compile(r"[\s_\-.]+")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_CJK: Final = re.compile(r"[\u3400-\u9fff]")


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("models3d.readers").joinpath("words.toml").read_text(encoding="utf-8"))


def plain(word: str) -> str:
    """A header or word as it is compared: NFKC, lower case, without blanks, `_`, `-`, `.` and what is in brackets."""
    return _IDLE.sub("", _BRACKETS.sub("", unicodedata.normalize("NFKC", word))).lower()


def unit(header: str) -> float:
    """Metres in the unit which a header names in brackets; NaN if it names none."""
    found = _BRACKETS.search(unicodedata.normalize("NFKC", header))
    return UNITS.get(found.group(1).strip().lower(), math.nan) if found else math.nan


@lru_cache(maxsize=2)
def _fields(kind: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field, words in _table()["fields"][kind].items():
        for word in words:
            fields.setdefault(plain(word), field)
    return fields


def columns(headers: Iterable[str], kind: str) -> dict[str, str]:
    """Which of our fields (`[fields.point]`, `[fields.line]`) is in which column: field -> header, the alias named
    first in the table winning where several columns would do."""
    known = _fields(kind)
    order = {word: place for place, word in enumerate(known)}
    best: dict[str, tuple[int, str]] = {}
    for header in headers:
        word = plain(header)
        if word in known:
            field, rank = known[word], order[word]
            if field not in best or rank < best[field][0]:
                best[field] = (rank, header)
    return {field: header for field, (_, header) in best.items()}


def is_field(header: str, kind: str) -> bool:
    return plain(header) in _fields(kind)


@lru_cache(maxsize=4096)
def system_of(text: str) -> str:
    """The system (a key of `SYSTEMS`) that a code (`JS`, `YSLine`), a word or a text with such a word names; "" if
    none does."""
    text = unicodedata.normalize("NFKC", text).strip()[:200]
    low = text.lower()
    if low in SYSTEMS:
        return low
    code = code_of(text)
    if code:
        return CODES[code]
    for word, system in _system_words():
        if (word in low) if _CJK.search(word) else re.search(rf"(?<![a-z]){re.escape(word)}(?![a-z])", low):
            return system
    return ""


@lru_cache(maxsize=4096)
def code_of(text: str) -> str:
    """The survey's two-letter code in a table's or file's name (`JS`, `PSPoint`, `ys_line.csv`, `WS点表`); "" if none.
    Lower case counts only beside a word for point or line."""
    base = re.split(r"[\\/]", unicodedata.normalize("NFKC", text).strip())[-1]
    codes = "|".join(CODES)
    found = re.search(rf"(?<![A-Za-z])({codes})(?=$|[^A-Za-z]|point|line|pt|ln|p\b|l\b)", base, re.IGNORECASE)
    if not found:
        return ""
    is_plain = found.group(1).isupper() or re.match(
        r"[_\- ]?(point|line|点|线|管|表)|$|\.", base[found.end() :].lower()
    )
    return found.group(1).upper() if is_plain else ""


@lru_cache(maxsize=1)
def _system_words() -> list[tuple[str, str]]:
    pairs = [(word.lower(), system) for system, words in _table()["systems"].items() for word in words]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


@lru_cache(maxsize=1)
def _type_words() -> dict[str, str]:
    known = {plain(word): type_ for type_, words in _table()["types"].items() for word in words}
    return known | {plain(type_): type_ for type_ in ASSET_TYPES if type_ not in ("other", "group", "source")}


@lru_cache(maxsize=4096)
def type_of(word: str) -> str:
    """The type (one of `ASSET_TYPES`) that a word names, whole or, in Chinese, by its end (`砖砌检查井`), or ""."""
    word = plain(word[:200])
    known = _type_words()
    if word in known:
        return known[word]
    if _CJK.search(word):
        for start in range(1, len(word) - 1):
            if word[start:] in known:
                return known[word[start:]]
    return ""


@lru_cache(maxsize=4096)
def _telling(keys: frozenset[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Of a feature's keys those that tell its type, in order: by their value, and by being there."""
    table = _table()["type_keys"]
    low = {key.lower(): key for key in sorted(keys)}
    by_value = [low[key.lower()] for key in table["keys"] if key.lower() in low]
    return by_value, [(low[key], type_) for key, type_ in table["present"].items() if key in low]


def type_in(properties: Mapping[str, Any]) -> tuple[str, str]:
    """The type that a feature's properties name, and the word that does: ("", "") if none."""
    by_value, by_presence = _telling(frozenset(properties))
    for key in by_value:
        value = properties[key]
        if isinstance(value, str) and (type_ := type_of(value)):
            return type_, value
    for key, type_ in by_presence:
        if properties[key] not in (None, "", "no", False, 0):
            return type_, key
    return "", ""


@lru_cache(maxsize=4096)
def hint(keys: frozenset[str]) -> tuple[str, str]:
    """Type and system that the names of properties tell: ("", "") unless two of one list are there."""
    plain_keys = {plain(key) for key in keys}
    best, found = 1, ("", "")
    for names, type_, system in _hints():
        hits = len(plain_keys & names)
        if hits > best:
            best, found = hits, (type_, system)
    return found


@lru_cache(maxsize=1)
def _hints() -> list[tuple[frozenset[str], str, str]]:
    return [
        (frozenset(map(plain, hint["properties"])), hint["type"], hint.get("system", "")) for hint in _table()["hint"]
    ]


def number(value: object) -> float | None:
    """A cell as a number; NaN if it says nothing; None if it is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e300 else None
    if value is None:
        return math.nan
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text.lower() in EMPTY:
        return math.nan
    try:
        found = float(text) if text.isascii() and "_" not in text else float(unicodedata.normalize("NFKC", text))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def section(value: object, metres: float) -> tuple[float, float] | None:
    """Height and width (m) of a pipe's section as surveys write it: `300`, `DN300`, `Φ300`, `d 300mm`, `1000X800`
    (width by height), `4"`. `metres`: what a bare number's unit is. NaNs if it says nothing; None if it cannot be read;
    the width is NaN of a round pipe."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found = number(value)
        return None if found is None else (found * metres, math.nan)
    if value is None:
        return math.nan, math.nan
    if not isinstance(value, str):
        return None
    text = unicodedata.normalize("NFKC", value).strip().lower()[:100]
    if text in EMPTY:
        return math.nan, math.nan
    text = re.sub(r"^(管径|断面|dn|de|od|id|φ|ф|ø|⌀|∅|d|r)\s*[:=]?\s*", "", text)
    for mark, size in (
        ("mm", 0.001),
        ("毫米", 0.001),
        ("cm", 0.01),
        ("厘米", 0.01),
        ('"', 0.0254),
        ("″", 0.0254),
        ("in", 0.0254),
        ("ft", 0.3048),
        ("m", 1.0),
        ("米", 1.0),
    ):
        if mark in text:
            text, metres = text.replace(mark, ""), size
            break
    parts = [part.strip() for part in re.split(r"[x×*＊✕✖]", text)]
    if not all(_NUMBER.fullmatch(part) for part in parts) or len(parts) > 2:
        return None
    sizes = [float(part) * metres for part in parts]
    if not all(math.isfinite(size) for size in sizes):
        return None
    return (sizes[0], math.nan) if len(sizes) == 1 else (sizes[1], sizes[0])


def year_of(value: object) -> int | None:
    """The year of a date as surveys write it (`2008`, `2008-05`, `20080501`, `2008年`); None if there is none."""
    found = re.match(r"\s*(1[89]\d\d|20\d\d)(?!\d(?:\D|$))", str(value))
    return int(found.group(1)) if found else None


def survey_code(value: object) -> tuple[str, bool]:
    """A 部件码 (16 digits) or 井盖号 (19), as text, and whether it is well formed: digits, of which the first two name
    a province (11-82)."""
    text = str(value).strip()
    is_good = text.isascii() and text.isdigit() and len(text) in (16, 19) and 11 <= int(text[:2]) <= 82
    return text, is_good


def encoding(data: bytes | mmap) -> str:
    """`utf-8` if the whole of `data` is (but for a last character cut off), else `gb18030`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), 1 << 20):
            decoder.decode(data[start : start + (1 << 20)])
    except UnicodeDecodeError:
        return "gb18030"
    return "utf-8"


def has_chinese(text: str) -> bool:
    return bool(_CJK.search(text))
