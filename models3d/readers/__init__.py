"""Model files in: bytes to a `CityModel`, recognised by content, whole or refused with every mistake.

Each format is a module with `recognise(head, name)` (what the file's first bytes say) and `read(data, name, …)`. What
they share of refusing hostile files is here.
"""

from __future__ import annotations

import importlib
from mmap import mmap
from types import ModuleType
from typing import Any, Final, Protocol, cast

from twin.city import CityModel, InvalidModel, Progress
from twin.model import Problem

Buffer = bytes | mmap  # what readers get: a large file is mapped, not loaded

HEAD: Final = 1 << 16  # bytes that recognising may look at
MAX_BYTES: Final = 2 << 30
MAX_ELEMENTS: Final = 5_000_000  # nodes, links, objects
MAX_VERTICES: Final = 100_000_000
MAX_DEPTH: Final = 64  # of nesting, in JSON and XML
MAX_PROBLEMS: Final = 200  # told one by one; the rest is counted

# In the order in which they are asked. A format whose module needs an extra says so when it reads.
READERS: Final[tuple[str, ...]] = (
    "swmm", "epanet", "matgas", "pandapipes", "cityjson", "citygml", "osm", "ifc", "geojson", "survey",
)  # fmt: skip


def nothing(what: str, share: float) -> None:
    """A `Progress` that tells nobody."""


def extra(module: str, name: str, file: str) -> ModuleType:
    """The module of an optional library, from the extra `name`. Raises `InvalidModel` saying how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        text = f'needs the extra: pip install "cimtwin[{name}]" / 读取此格式需安装：pip install "cimtwin[{name}]"'
        raise InvalidModel([Problem(file, "", text)], file) from None


class Reader(Protocol):
    def recognise(self, head: bytes, name: str) -> bool:
        """Whether a file that begins so (its first `HEAD` bytes) is of this format; `name` decides nothing alone."""
        ...

    def read(self, data: Buffer, name: str, crs: str = "", progress: Progress = ...) -> CityModel:
        """The model in a file. `name` is the file's, for messages; `crs` what the user says the coordinates are, where
        the file does not. Raises `InvalidModel` with every mistake."""
        ...


def reader(format_: str) -> Reader:
    return cast(Reader, importlib.import_module(f"models3d.readers.{format_}"))


def recognise(data: Buffer, name: str) -> str | None:
    """The format of a file, a member of `READERS`; None if it is none of them."""
    head = bytes(data[:HEAD])
    return next((format_ for format_ in READERS if reader(format_).recognise(head, name)), None)


def read(data: Buffer, name: str, crs: str = "", progress: Progress = nothing) -> CityModel:
    """The model in a file of any known format. Raises `InvalidModel`."""
    if len(data) > MAX_BYTES:
        text = f"is larger than {MAX_BYTES >> 30} GiB / 文件超过 {MAX_BYTES >> 30} GiB"
        raise InvalidModel([Problem(name, "", text)], name)
    format_ = recognise(data, name)
    if format_ is None:
        raise InvalidModel([Problem(name, "", "is no model file of a known format / 不是可识别的模型文件")], name)
    return reader(format_).read(data, name, crs, progress)


def bounded(told: Any) -> Any:
    """`told` of JSON, its integers beyond 64 bits as floats (None where no float is so large): what a file says is
    told on as JSON, which most programs hold to 64 bits. Objects and lists are changed in place."""
    held = [told]
    open_: list[Any] = [held]
    while open_:
        part = open_.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, dict | list):
                open_.append(value)
            elif type(value) is int and not -(1 << 63) <= value < 1 << 63:
                try:
                    part[key] = float(value)  # the size stays as it was
                except OverflowError:
                    part[key] = None
    return held[0]


class Problems:
    """Mistakes found while reading: the first `MAX_PROBLEMS` one by one, the others counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._problems: list[Problem] = []
        self._more = 0

    def __len__(self) -> int:
        return len(self._problems) + self._more

    def line(self, number: int, field: str, text: str) -> None:
        self.add(f"{self.name}, line {number}", field, text)

    def object(self, id_: object, field: str, text: str) -> None:
        self.add(f"{self.name}, object {id_}", field, text)

    def add(self, place: str, field: str, text: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(place, field, text))
        else:
            self._more += 1

    def told(self) -> list[Problem]:
        """What was found, and how much more; a reader's notes are kept in such a list too."""
        more = [Problem(self.name, "", f"and {self._more} more / 另有 {self._more} 处")] if self._more else []
        return [*self._problems, *more]

    def check(self) -> None:
        """Raise `InvalidModel` if there are any."""
        if self._problems:
            raise InvalidModel(self.told(), self.name)
