"""The city model in the database: an import of buildings and drains, and boxes over a million assets."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import orjson
import psycopg

from bench.report import Figure
from bench.services import Bench, RowFailed, Service
from twin.store.assets import AssetQuery, matching
from twin.store.migrate import migrate
from twin.store.reader import Reader

BUILDINGS: Final = 20_000
PIPES: Final = 100_000
IMPORT_GOAL_S: Final = 20
MEMORY_GOAL_MB: Final = 1500
ASSETS: Final = 1_000_000
BOX_GOAL_MS: Final = 20
BOXES: Final = 200
EAST, NORTH = 505_000, 2_493_000


def imported(bench: Bench) -> list[Figure]:
    """`cimtwin import` of both files, CityJSON and SWMM, into a fresh database, and of both once more, one asset of
    each changed."""
    houses, drains = bench.scaled(BUILDINGS), bench.scaled(PIPES)
    files = [bench.file("buildings.city.json"), bench.file("drains.inp")]
    seconds, memory, again = [], [], []
    found = 0
    for _ in range(bench.runs):
        files[0].write_bytes(cityjson(houses))
        files[1].write_text(swmm(drains), encoding="utf-8")
        with bench.database() as url:
            migrate(url)
            service = Service(bench.folder, url, None)
            took, peak = _command(service, files)
            seconds.append(took)
            memory.append(peak)
            files[0].write_bytes(files[0].read_bytes().replace(b'"height":9.0', b'"height":9.5', 1))
            files[1].write_text(swmm(drains).replace("p0 n0 n1 10", "p0 n0 n1 11"), encoding="utf-8")
            again.append(_command(service, files)[0])
            with psycopg.connect(url) as connection:
                row = connection.execute(
                    "select count(*) from asset_versions where until is null and extent is not null and type in"
                    " ('building', 'pipe')"
                ).fetchone()
                found += int(row[0]) if row else 0
    expected = (houses + drains) * bench.runs
    what = f"{houses:,} LoD2 buildings and {drains:,} pipes"
    return [
        Figure("models-import", f"import of {what}", "s", seconds, IMPORT_GOAL_S, "at most", verified=found,
               expected=expected),
        Figure("models-import", "its memory at the highest", "MB", memory, MEMORY_GOAL_MB, "at most", verified=found,
               expected=expected),
        Figure("models-import", "the same again, two assets changed", "s", again, IMPORT_GOAL_S, "at most",
               verified=found, expected=expected),
    ]  # fmt: skip


def _command(service: Service, files: list[Path]) -> tuple[float, float]:
    """Run `cimtwin import` on files; how long it took, and the most memory it had (MB)."""
    words = ["import", "--crs", "EPSG:4547", *map(str, files)]
    code = (
        "import resource, sys\nfrom twin.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=service.environ(), cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    took = time.monotonic() - begun
    if done.returncode:
        raise RowFailed(f"cimtwin import ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return took, int(done.stderr.split()[-1]) * 1024 / 1e6


def boxes(bench: Bench) -> list[Figure]:
    """A million assets over 40 km x 40 km; pages of 100 from boxes of a house to a district, and from the whole."""
    size = bench.scaled(ASSETS)
    with bench.database() as url:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("insert into models (name) values ('city')")
            connection.execute(
                "insert into model_versions (id, model, version, format, crs, height, file, size, sha256, tenant,"
                " imported_at, assets, nodes, links, kinds, added, changed, removed, orphans, notes, metadata) values"
                " (1, 1, 1, 'cityjson', 'EPSG:4326', '', '', 0, '', 'default', now(), 0, 0, 0, '{}', 0, 0, 0, '{}',"
                " '[]', '{}')"
            )
            connection.execute("select setseed(0.5)")
            connection.execute(
                "insert into asset_versions (asset, since, model, id, type, tenant, lon, lat, extent)"
                " select n, 1, 1, 'city:' || n, 'building', 'default', x, y,"
                " box(point(x + 0.00005, y + 0.00005), point(x - 0.00005, y - 0.00005)) from"
                " (select n, 114 + 0.4 * random() as x, 22.4 + 0.4 * random() as y from generate_series(1, %s) n) p",
                (size,),
            )
            connection.execute("vacuum analyze asset_versions")
        figures = []
        for what, side in (("a house to a block", 0.003), ("a district", 0.08), ("all of it", 0.0)):
            median, most, seen = asyncio.run(_ask(url, side))
            figures.append(
                Figure("models-box", f"a page of 100 of {size:,} assets in a box: {what}", "ms", [median], BOX_GOAL_MS,
                       "at most", details={"slowest of all, ms": round(most, 2), "assets found": seen})
            )  # fmt: skip
        return figures


async def _ask(url: str, side: float) -> tuple[float, float, int]:
    """Median and longest time (ms) of a box's first page, and how many assets came in all."""
    rng = np.random.default_rng(1)
    reader = Reader(url)
    took, seen = [], 0
    for _ in range(BOXES):
        x, y = 114 + 0.4 * rng.random(), 22.4 + 0.4 * rng.random()
        width = side * rng.random()
        area = (x, y, x + width, y + width) if side else (113.9, 22.3, 114.5, 22.9)
        begun = time.perf_counter()
        async for page in matching(reader, AssetQuery(area), 0, 101, False):
            seen += len(page)
            break
        took.append((time.perf_counter() - begun) * 1e3)
    await reader.close()
    return statistics.median(took), max(took), seen


def cityjson(count: int) -> bytes:
    """Blocks of 10 m on a square, each with walls, floor and roof."""
    side = int(np.ceil(np.sqrt(count)))
    vertices: list[list[int]] = []
    objects = {}
    for n in range(count):
        e, north, first = 30 * (n % side), 30 * (n // side), len(vertices)
        for z in (0, 9):
            vertices += [[(e + x) * 1000, (north + y) * 1000, z * 1000]
                         for x, y in ((0, 0), (10, 0), (10, 10), (0, 10))]  # fmt: skip
        rings = [[0, 3, 2, 1], [4, 5, 6, 7], *([k, (k + 1) % 4, 4 + (k + 1) % 4, 4 + k] for k in range(4))]
        shell = [[[first + k for k in ring]] for ring in rings]
        surfaces = [{"type": kind} for kind in ("GroundSurface", "RoofSurface", "WallSurface")]
        objects[f"b{n}"] = {
            "type": "Building", "attributes": {"height": 9.0, "storeys": 3, "use": "住宅"},
            "geometry": [{"type": "Solid", "lod": "2.2", "boundaries": [shell],
                          "semantics": {"surfaces": surfaces, "values": [[0, 1, 2, 2, 2, 2]]}}],
        }  # fmt: skip
    return orjson.dumps(
        {"type": "CityJSON", "version": "2.0",
         "metadata": {"referenceSystem": "https://www.opengis.net/def/crs/EPSG/0/4547"},
         "transform": {"scale": [0.001, 0.001, 0.001], "translate": [EAST, NORTH, 0]},
         "CityObjects": objects, "vertices": vertices}
    )  # fmt: skip


def swmm(pipes: int) -> str:
    """Manholes on a square with one conduit from each to the next, the last of a row to the row above."""
    side = int(np.ceil(np.sqrt(pipes)))
    nodes = range(pipes + 1)
    lines = ["[TITLE]", "drains", "[OPTIONS]", "FLOW_UNITS CMS", "[JUNCTIONS]"]
    lines += [f"n{n} 2 2 0 0 0" for n in nodes[:-1]]
    lines += ["[OUTFALLS]", f"n{pipes} 0 FREE", "[CONDUITS]"]
    lines += [f"p{n} n{n} n{n + 1} 10 0.013 0 0" for n in range(pipes)]
    lines.append("[XSECTIONS]")
    lines += [f"p{n} CIRCULAR 0.4 0 0 0 1" for n in range(pipes)]
    lines.append("[COORDINATES]")
    for n in nodes:
        row, place = divmod(n, side)
        column = place if row % 2 == 0 else side - 1 - place
        lines.append(f"n{n} {EAST + 10 * column} {NORTH + 10 * row}")
    return "\n".join(lines) + "\n"
