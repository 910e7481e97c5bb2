"""`python -m bench`: measure, print, and say what was met."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.report import Figure, lines_of, table
from bench.rows import BY_NAME, ROWS, Row
from bench.services import Bench, RowFailed, mosquitto_program
from twin import logs
from twin.embedded import EmbeddedFailed, _broker_program


def main() -> int:
    """0 when every row was measured and its readings were found; 1 otherwise. A goal not met is no failure."""
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument("--only", action="append", default=[], metavar="NAME", help="this row (or several, by commas)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything there too; - for stdout")
    options.add_argument("--list", action="store_true", help="name the rows and end")
    options.add_argument("--runs", type=int, default=3, help="runs of each row, the median counts (3)")
    options.add_argument("--scale", type=float, default=1.0, help="times the usual amount of readings (1)")
    options.add_argument("--minutes", type=float, default=10.0, help="how long the row `long` lasts (10)")
    given = options.parse_args()
    if given.list:
        for row in ROWS:
            print(f"{row.name:13} {row.title}{'; only where it is named' if row.is_long else ''}")
        return 0
    names = [name for words in given.only for name in words.split(",") if name]
    unknown = sorted(set(names) - BY_NAME.keys())
    if unknown:
        options.error(f"no row {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    if given.runs < 1 or not given.scale > 0 or not given.minutes > 0:
        options.error("--runs, --scale and --minutes must be above 0")
    rows = [BY_NAME[name] for name in names] or [row for row in ROWS if not row.is_long]
    return _measure(rows, given.runs, given.scale, given.minutes, given.json)


def _measure(rows: list[Row], runs: int, scale: float, minutes: float, json_file: Path | None) -> int:
    logs.configure("warning", False)
    begun = time.monotonic()
    figures: list[Figure] = []
    out = sys.stderr if json_file is not None and str(json_file) == "-" else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    with tempfile.TemporaryDirectory(prefix="cimtwin-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL may run as another user
        bench = Bench(folder, runs, scale, minutes)
        try:
            about = _machine(bench)
            say("  ".join(f"{key} {value}" for key, value in about.items()))
            for row in rows:
                say(f"\n{row.name}: {row.title}")
                started = time.monotonic()
                for figure in _figures(row, bench):
                    figures.append(figure)
                    for line in lines_of(figure):
                        say(line)
                say(f"  ({time.monotonic() - started:.0f} s; load of the machine {os.getloadavg()[0]:.1f})")
        finally:
            bench.close()
    say("")
    for line in table(figures):
        say(line)
    say(f"\n{', '.join(f'{key} {value}' for key, value in about.items())}")
    say(f"medians of {runs} runs; {time.monotonic() - begun:.0f} s in all; all processes share the cores")
    if json_file is not None:
        result = {"machine": about, "runs": runs, "scale": scale, "figures": [f.as_json() for f in figures]}
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        if str(json_file) == "-":
            sys.stdout.write(text)
        else:
            json_file.write_text(text, encoding="utf-8")
    return 0 if all(figure.is_sound for figure in figures) else 1


def _figures(row: Row, bench: Bench) -> list[Figure]:
    try:
        return row.measure(bench)
    except (RowFailed, EmbeddedFailed) as failure:
        return [Figure(row.name, row.title, "", [], fault=str(failure))]


def _machine(bench: Bench) -> dict[str, str]:
    try:
        nats: str | None = str(_broker_program())
    except EmbeddedFailed:
        nats = None
    return machine.describe(bench.postgres().url, mosquitto_program(), nats)


if __name__ == "__main__":
    sys.exit(main())
