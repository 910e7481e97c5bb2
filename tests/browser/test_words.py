"""Every text of the page is there in Chinese and English."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web" / "src"
TOKEN = re.compile(r"'((?:[^'\\]|\\.)*)'|`[^`]*`|(\w+)(?=:)|([{}])")


def texts(file: Path) -> dict[str, str]:
    """The texts of an object in TypeScript by their paths, as `replay.state.paused`."""
    found: dict[str, str] = {}
    above: list[str] = []
    key = ""
    source = file.read_text("utf-8")
    begin = re.search(r"(?:default|=) {", source)
    assert begin
    for text, name, brace in TOKEN.findall(source, begin.start()):
        if name:
            key = name
        elif brace == "{":
            above.append(key)
        elif brace == "}":
            above.pop()
        elif above and key:
            found[".".join([*above[1:], key])] = text
    return found


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, str], dict[str, str]]:
    if not WEB.is_dir():
        pytest.skip("a source distribution has the built page only")
    zh, en = (texts(WEB / "locales" / f"{locale}.ts") for locale in ("zh", "en"))
    return zh, en


def test_every_text_is_there_in_both_languages_and_with_the_same_blanks(
    both: tuple[dict[str, str], dict[str, str]],
) -> None:
    zh, en = both
    assert len(zh) > 90
    assert zh.keys() == en.keys()
    for key in zh:
        assert zh[key].strip(), key
        assert en[key].strip(), key
        assert sorted(re.findall(r"{\w+}", zh[key])) == sorted(re.findall(r"{\w+}", en[key])), key


def test_no_text_was_left_untranslated(both: tuple[dict[str, str], dict[str, str]]) -> None:
    zh, en = both
    the_same = {key for key in zh if zh[key] == en[key]}
    assert the_same == {"list.shown"}
    said_in_the_other = {"language.name", "language.change"}
    for key in zh.keys() - the_same - said_in_the_other:
        assert re.search(r"[\u4e00-\u9fff]", zh[key]), f"zh {key}: {zh[key]}"
        assert not re.search(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", en[key]), f"en {key}: {en[key]}"
