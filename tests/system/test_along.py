"""Wells held against those upstream of them, along a network that is imported, and imported anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cimtwin, until
from tests.system.test_commands import run

pytestmark = pytest.mark.system

T0 = 1_790_000_000_000  # ms
WELLS = 5
SENSORS = (
    "device,property,kind,unit,asset\n"
    + "".join(f"w{n},level,drainage.level,m,J{n}\n" for n in range(WELLS))
    + "x,level,drainage.level,m,elsewhere\n"
)
RULES = """
[[rule]]
id = "unlike"
title = { zh = "液位与上游不符", en = "Level unlike upstream" }
kind = "drainage.level"
detector = "neighbours"
along = "upstream"
within = "120m"
count = 1
levels = { yellow = 1 }
"""


def drain(broken_at: int | None = None) -> str:
    """Wells in a row, 50 m apart, that run to an outfall; one pipe may be missing."""
    names = [f"J{n}" for n in range(WELLS)]
    pipes = [(n, a, b) for n, (a, b) in enumerate(zip(names, [*names[1:], "O1"], strict=True)) if n != broken_at]
    return "\n".join(
        [
            "[TITLE]", "drain", "[OPTIONS]", "FLOW_UNITS CMS", "[JUNCTIONS]", *(f"{n} 0 3 0 0 0" for n in names),
            "[OUTFALLS]", "O1 -1 FREE NO", "[CONDUITS]", *(f"C{n} {a} {b} 50 0.013 0 0 0 0" for n, a, b in pipes),
            "[XSECTIONS]", *(f"C{n} CIRCULAR 0.6 0 0 0 1" for n, _, _ in pipes),
            "[COORDINATES]", *(f"{n} {50 * k} 0" for k, n in enumerate(names)), "O1 9000 0", "",
        ]
    )  # fmt: skip


def test_a_well_is_held_against_those_upstream_in_the_model_in_force(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin()
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    assert city.get("/stats")["watches_without_limit"] == WELLS + 1
    file = tmp_path / "drain.inp"

    def bring(text: str) -> None:
        file.write_text(text)
        assert run("import", str(file), CIMTWIN_DATABASE_URL=city.environ["CIMTWIN_DATABASE_URL"]).returncode == 0

    bring(drain())
    (lost,) = until(lambda: len(found := city.get("/rules/without-limit")["items"]) == 1 and found)
    assert (lost["sensor"], lost["missing"], lost["watched"]) == ("x/level", ["along"], False)
    (of_x,) = city.get("/sensors/x/level/rules")["items"]
    assert (of_x["watched"], "no network" in of_x["why"]) == (False, True)

    def say(minute: int, high: float) -> None:
        ts = T0 + 60_000 * minute
        said = {f"w{n}": [{"ts": ts, "values": {"level": high if n == 3 else 1}}] for n in range(WELLS)}
        city.publish(("cim/v1/default/gateway/telemetry", said))

    def alerts() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = city.get("/alerts", limit=100)["items"]
        return found

    say(0, 5)
    (alert,) = until(alerts)
    assert (alert["sensor"], alert["state"]) == ("w3/level", "active_unacknowledged")
    assert "较上游邻近测点中位数偏离 +4 m" in alert["message"]["zh"]
    assert "off the median of the sensors upstream by +4 m" in alert["message"]["en"]

    city.kill()
    city.start()
    say(1, 5)
    say(2, 1)
    until(lambda: alerts()[0]["state"] == "cleared_unacknowledged")
    events = city.get(f"/alerts/{alert['id']}")["events"]
    assert [(e["transition"], e["observed_at"][14:16]) for e in events] == [("raised", "13"), ("cleared", "15")]

    bring(drain(broken_at=2))  # nothing is upstream of J3 any more
    until(lambda: not city.get("/sensors/w3/level/rules")["items"])
    say(3, 5)
    say(4, 6)
    until(lambda: city.get("/latest", sensor="w3/level")["items"][0]["value"] == 6)
    assert len(alerts()) == 1
