"""`cimtwin replay`: a replay in the terminal, or to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressLine

from ingest.replay import Replay
from twin.catalog import Catalog
from twin.importing import parse_named_rules
from twin.live import event_json
from twin.model import EARLIEST, LATEST, Micros, Problem, Refused, iso, parse_time
from twin.replay_worker import SPEEDS, TICK_S, Pace, ReplayTape, Wanted, is_speed, open_replay, selection
from twin.settings import Settings
from twin.store.backfill import unknown_sensors
from twin.store.tape import Tape
from twin.units import Kind, load_kinds


def in_terminal(
    settings: Settings,
    dsn: str,
    span: tuple[str, str],
    speed: float,
    sensors: Sequence[str] | None,
    area: str | None,
    rules: tuple[str, bytes] | None,
    received_before: str | None,
    out: Path | None,
) -> str:
    """`cimtwin replay`: alert events as JSON lines to `out` or stdout, a progress line on stderr where that is a
    terminal; what it came to. Raises `Refused` for a bad option, naming it; then nothing is written."""
    start, end = (moment(f"--{name}", text) for name, text in zip(("from", "to"), span, strict=True))
    if start >= end:
        raise Refused([Problem("--from", "", "must be before --to / 必须早于 --to")])
    if not is_speed(speed):
        text = " … ".join(f"{end:g}" for end in SPEEDS)
        raise Refused([Problem("--speed", "", f"must be {text}, or 0 for as fast as possible / 0 为尽快")])
    kinds = load_kinds(settings.kinds)
    given = None if rules is None else parse_named_rules(rules[1], rules[0], kinds).text
    then = None if received_before is None else moment("--received-before", received_before)
    wanted = Wanted(start, end, speed, indices(dsn, kinds, sensors, area), given, then)
    with closing(ReplayTape(dsn, then)) as tape:
        return _play(open_replay(tape, settings.kinds, wanted), speed, out)


def _play(replay: Replay, speed: float, out: Path | None) -> str:
    start, end = replay.start, replay.end
    try:
        file = sys.stdout if out is None else out.open("w", encoding="utf-8")
    except OSError as error:
        raise Refused([Problem("--out", "", f"{out}: {error.strerror}")]) from None
    console = Console(stderr=True)
    try:
        with ProgressLine(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), console=console,
            disable=not console.is_terminal, transient=True,
        ) as bar:  # fmt: skip
            line = bar.add_task("回放 replay", total=end - start, said="")
            pace = Pace(speed, replay.time)
            while replay.time < end:
                due = pace.due(end)
                told = replay.advance(due)
                pace.keep_to(replay.time, due)
                for event in told.events:
                    file.write(orjson.dumps(event_json(event)).decode() + "\n")
                said = f"读数 readings {replay.told:,}  事件 events {replay.digest.count:,}"
                at = (iso(replay.time) or "")[:19]
                bar.update(line, completed=replay.time - start, said=f"{at}Z  {said}")
                if speed and replay.time < end:
                    file.flush()
                    time.sleep(TICK_S)
    finally:
        if out is not None:
            file.close()
    live = replay.recorded_digest()
    comparison = "the same / 一致" if str(live) == str(replay.digest) else "not the same / 不一致"
    return (
        f"{replay.told} readings, {replay.digest.count} alert events, digest {replay.digest};"
        f" told live {live.count}, digest {live}: {comparison}"
    )


def moment(option: str, text: str) -> Micros:
    """The time that an option gives. Raises `Refused`."""
    try:
        return min(max(parse_time(text), EARLIEST), LATEST)
    except (ValueError, OverflowError):
        text = "must be an RFC 3339 time with its zone, e.g. 2026-07-01T08:00:00Z / 必须是带时区的 RFC 3339 时间"
        raise Refused([Problem(option, "", text)]) from None


def _box(area: str) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = map(float, area.split(","))
        if west <= east and south <= north:
            return west, south, east, north
    except ValueError:
        pass
    raise Refused([Problem("--area", "", "must be minlon,minlat,maxlon,maxlat / 必须为 minlon,minlat,maxlon,maxlat")])


def indices(
    dsn: str, kinds: dict[str, Kind], sensors: Sequence[str] | None, area: str | None
) -> tuple[int, ...] | None:
    """The indices of the sensors named and inside; None for all. Raises `Refused`."""
    bounds = None if area is None else _box(area)
    if not sensors and bounds is None:
        return None
    catalog = Catalog(kinds)
    with closing(Tape(dsn)) as tape:
        tape.load_catalog(catalog)
    unknown = unknown_sensors(catalog, list(sensors or ()))
    if unknown:
        raise Refused([Problem("--sensor", "", f"no sensor {name} / 没有测点 {name}") for name in unknown])
    return selection(catalog, sensors or None, bounds)
