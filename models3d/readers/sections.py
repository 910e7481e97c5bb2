"""Text of model files in lines and in sections: what EPANET's and SWMM's `.inp` and MATGAS share.

Text is decoded block by block (UTF-8, else GB18030, with a note), so that a file is never held a second time as a
whole; numbers are finite and of a size that any unit can be converted from; a line has a length that ends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

from models3d.readers import Buffer, Problems
from twin.city import Progress

BLOCK: Final = 1 << 20  # bytes decoded at a time
MAX_LINE: Final = 1 << 16  # characters
MAX_ID: Final = 200
HOPELESS: Final = 10_000  # problems after which a file is not read on
LARGEST: Final = 1e15  # of any number in a file
UNKNOWN: Final = math.nan

_BOM: Final = b"\xef\xbb\xbf"
_TOKEN: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')
_HEADER: Final = re.compile(r"^[ \t]*\[[ \t]*([A-Za-z_]+)", re.MULTILINE)


def head_text(head: bytes) -> str:
    """The beginning of a file as text, for recognising it."""
    return head.removeprefix(_BOM).decode("utf-8", "replace").replace("\r", "\n")


def headers(head: str) -> list[str]:
    """The names of the sections in a file's beginning, in capitals."""
    return [found.upper() for found in _HEADER.findall(head)]


def lines(data: Buffer, problems: Problems, notes: Problems, progress: Progress) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1. Ends early, with a problem, where it is no text."""
    begin = len(_BOM) if data[: len(_BOM)] == _BOM else 0
    encoding = _encoding(data, begin)
    if encoding != "utf-8":
        notes.add(notes.name, "", f"is not UTF-8, read as {encoding} / 不是 UTF-8，按 {encoding} 读取")
    number = 0
    for at, end in _blocks(data, begin):
        if len(problems) > HOPELESS:
            problems.line(number + 1, "", "and what follows was not read any more / 错误过多，其后未读")
            return
        if end - at > BLOCK:
            problems.line(number + 1, "", f"is longer than {MAX_LINE} characters / 一行超过 {MAX_LINE} 个字符")
            return
        text = data[at:end].decode(encoding, "replace")
        if "\0" in text:
            problems.line(number + text[: text.index("\0")].count("\n") + 1, "", "is no text / 不是文本")
            return
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        for line in text.removesuffix("\n").split("\n"):
            number += 1
            if len(line) > MAX_LINE:
                problems.line(number, "", f"is longer than {MAX_LINE} characters / 一行超过 {MAX_LINE} 个字符")
                return
            yield number, line
        progress("read", 0.7 * end / len(data))


def rows(
    data: Buffer, stems: Mapping[str, str], problems: Problems, notes: Problems, progress: Progress,
    described_above: bool = False,
) -> Iterator[tuple[str, int, list[str], str]]:  # fmt: skip
    """The rows of an `.inp` file: section, line, words, and the comment that describes it.

    `stems`: how the names of sections begin, and their names in full; any other is a problem, as a misspelt name would
    lose what stands under it. A comment is what follows `;` in the row, or, if `described_above`, the line before that
    begins with a single `;`.
    """
    longest_first = sorted(stems, key=len, reverse=True)
    section, above = "", ""
    is_skipped = False
    for number, line in lines(data, problems, notes, progress):
        content, semicolon, comment = line.partition(";")
        if not content or content.isspace():
            above = comment.strip() if described_above and semicolon and not comment.startswith(";") else ""
            continue
        words = content.split() if '"' not in content else [a or b for a, b in _TOKEN.findall(content)]
        if words[0].startswith("["):
            word = "".join(words)[1:].partition("]")[0].upper()
            section = next((stems[stem] for stem in longest_first if word.startswith(stem)), "")
            is_skipped = not section
            if is_skipped:
                problems.line(number, f"[{word[:40]}]", "is no section of this format / 未知的段")
            above = ""
            continue
        if not section:
            if not is_skipped:
                problems.line(number, "", "stands before the first section / 在第一个段之前")
                is_skipped = True  # said once
            continue
        yield section, number, words, above or comment.strip().strip(";").strip()
        above = ""


def number(text: str) -> float | None:
    """A finite number of a sane size, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if -LARGEST <= value <= LARGEST and "_" not in text else None


def value(words: list[str], at: int, field: str, line: int, problems: Problems, default: float | None = None) -> float:
    """The number in column `at`, `default` where the row ends before it. What is no number, or is missing without a
    default, is a problem."""
    if at >= len(words):
        if default is None:
            problems.line(line, field, "is missing / 缺失")
            return UNKNOWN
        return default
    found = number(words[at])
    if found is None:
        problems.line(line, field, f"is not a number: {words[at][:40]!r} / 不是数字")
        return UNKNOWN
    return found


def has(words: list[str], count: int, line: int, problems: Problems) -> bool:
    """Whether a row has `count` fields and an id of sane length; a problem if not."""
    if len(words) < count:
        problems.line(line, "", f"has {len(words)} of at least {count} fields / 字段不足，至少 {count} 个")
        return False
    if not words[0]:
        problems.line(line, "id", "is empty / 编号为空")
        return False
    if len(words[0]) > MAX_ID:
        problems.line(line, "id", f"is longer than {MAX_ID} characters / 编号过长")
        return False
    return True


def setting(words: list[str], two_words: frozenset[str]) -> tuple[str, str]:
    """An option's name (in capitals) and value; names in `two_words` have two."""
    both = " ".join(words[:2]).upper()
    count = 2 if both in two_words else 1
    return " ".join(words[:count]).upper(), " ".join(words[count:])


def _encoding(data: Buffer, begin: int) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            for at, end in _blocks(data, begin):
                if end - at <= BLOCK:
                    data[at:end].decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def _blocks(data: Buffer, at: int) -> Iterator[tuple[int, int]]:
    """Stretches of whole lines, each of at most `BLOCK` bytes unless a line is longer."""
    size = len(data)
    while at < size:
        end = min(at + BLOCK, size)
        if end < size:
            cut = data.rfind(b"\n", at, end)
            if cut < 0:
                cut = data.rfind(b"\r", at, end)
            end = cut + 1 if cut >= 0 else size
        yield at, end
        at = end
