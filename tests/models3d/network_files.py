"""What the tests of network files share: where real ones lie, an independent count of them, and ways to spoil one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from models3d import readers
from models3d.readers import recognise
from twin.city import Asset, CityModel, InvalidModel

SHARED = Path(__file__).parents[3] / "shared" / "data"
NASTY = (
    "nan", "inf", "-inf", "1e400", "1e308", "-1", "0", "1e9", "999999999999999999999", "1_0", "*", "", '"', "'", "%",
    ";", "[", "]", "[PIPES]", "[JUNCTIONS]", "[XSECTIONS]", "节点", "\0", "\ufeff", "\x1a", "x" * 300, "J1", "C1",
    "true", "null", "{", "}", "[1,2]", "IRREGULAR", "CUSTOM", "TABULAR", "mgc.pipe = [",
)  # fmt: skip


def section_rows(text: str, section: str) -> int:
    """Rows that stand in a section, counted as plainly as can be."""
    count, is_in = 0, False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            is_in = line.upper() == f"[{section}]"
        elif is_in and line and not line.startswith(";"):
            count += 1
    return count


def assets(model: CityModel, group: str) -> dict[str, Asset]:
    """A group's assets by id; each id once."""
    found = [a for a in model.assets if a.group == group]
    by_id = {a.local: a for a in found}
    assert len(by_id) == len(found)
    return by_id


def problems(data: bytes, name: str) -> list[str]:
    """What is wrong with a file, which must be refused."""
    try:
        readers.read(data, name)
    except InvalidModel as error:
        return [str(problem) for problem in error.problems]
    raise AssertionError(f"{name} is read")


@st.composite
def spoiled(draw: st.DrawFn, text: str) -> str:
    """`text` with a few lines dropped, doubled, cut, swapped or garbled."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        way = draw(st.sampled_from(("word", "word", "word", "drop", "double", "cut", "swap", "insert")))
        words = lines[at].split(" ")
        if way == "word":
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(NASTY))
            lines[at] = " ".join(words)
        elif way == "drop" and len(lines) > 1:
            del lines[at]
        elif way == "double":
            lines.insert(at, lines[at])
        elif way == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        elif way == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines.insert(at, draw(st.sampled_from(NASTY)))
    return "\n".join(lines)


def is_read_or_refused(data: bytes, name: str) -> None:
    """A file ends in a whole model or in `InvalidModel`, soon."""
    try:
        model = readers.read(data, name)
    except InvalidModel as error:
        said = [str(problem) for problem in error.problems]
        if not said or any("\0" in text for text in said):
            raise AssertionError(said) from error
    else:
        assert recognise(data, name) == model.format
        told = json.dumps([model.metadata, [a.attributes for a in model.assets]], allow_nan=False)
        assert "\\u0000" not in told
        for network in model.networks:
            for ends in (network.start, network.end):
                assert ((ends >= 0) & (ends < len(network.node))).all()
            for column in (network.x, network.y, network.z, network.length, network.diameter, network.demand):
                assert not np.isinf(column).any()
