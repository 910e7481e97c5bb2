"""3D Tiles of a city: houses, drains and manholes, and how the cost grows with their number."""

from __future__ import annotations

import time
from typing import Final

from bench.report import Figure
from bench.rows.city_models import BUILDINGS, PIPES, cityjson, swmm
from bench.services import Bench
from models3d import readers
from models3d.writers import tiles

GOAL_S: Final = 10
GROWTH_GOAL: Final = 1.5
GLB: Final = b"glTF"


def written(bench: Bench) -> list[Figure]:
    """The tilesets of both models, every file of them; one process, processor time beside."""
    houses, drains = bench.scaled(BUILDINGS), bench.scaled(PIPES)
    many, few, cpu = [], [], []
    fault, files, size = "", 0, 0
    city, district = _city(houses, drains), _city(houses // 10, drains // 10)
    for _ in range(bench.runs):
        begun, busy = time.perf_counter(), time.process_time()
        found = [file for features, crs in city for file in tiles.write(features, crs, "city")]
        many.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - busy)
        files, size = len(found), sum(len(data) for _, data in found)
        if not all(data.startswith(GLB) for path, data in found if path.endswith(".glb")):
            fault = "a tile is no GLB"
        begun = time.perf_counter()
        for features, crs in district:
            list(tiles.write(features, crs, "district"))
        few.append(time.perf_counter() - begun)
    growth = [a / b / 10 for a, b in zip(many, few, strict=True)]
    what = f"{houses:,} buildings, {drains:,} pipes and their manholes"
    return [
        Figure("tiles", f"3D Tiles of {what}", "s", many, GOAL_S, "at most", fault=fault,
               details={"processor time, s": min(cpu), "files": files, "MB": round(size / 1e6, 1)}),
        Figure("tiles", "cost a feature, all over a tenth of them", "times", growth, GROWTH_GOAL, "at most",
               fault=fault),
    ]  # fmt: skip


def _city(houses: int, drains: int) -> list[tuple[list[tiles.Feature], str]]:
    models = [
        readers.read(cityjson(houses), "buildings.city.json"),
        readers.read(swmm(drains).encode(), "drains.inp", "EPSG:4547"),
    ]
    return [
        ([tiles.Feature(f"{n}:{asset.group}:{asset.local}", asset) for asset in model.assets], "EPSG:4547")
        for n, model in enumerate(models)
    ]
