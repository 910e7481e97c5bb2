"""A pump that stops explains the wells that fill behind it, along a network that was imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cimtwin
from tests.system.test_commands import run

pytestmark = pytest.mark.system

WELLS, OTHERS = 40, 5
SENSORS = (
    "device,property,kind,unit,asset\n"
    + "".join(f"w{n},level,drainage.level,m,J{n}\n" for n in range(WELLS + OTHERS))
    + f"p,running,drainage.pump_running,bool,J{WELLS - 1}\n"
)
RULES = """
[[rule]]
id = "full"
kind = "drainage.level"
detector = "threshold"
levels = { yellow = 2 }

[[rule]]
id = "stopped"
kind = "drainage.pump_running"
detector = "threshold"
side = "below"
levels = { yellow = 0 }

[[inhibit]]
source = { rule = "stopped" }
target = { rule = "full" }
along = "upstream"
within = "2km"
"""


def drain() -> str:
    """Wells in a row, 50 m apart, that run to an outfall; the others on a drain of their own."""
    names = [f"J{n}" for n in range(WELLS + OTHERS)]
    after = [*names[1:WELLS], "O1", *names[WELLS + 1 :], "O2"]
    return "\n".join(
        [
            "[TITLE]", "drain", "[OPTIONS]", "FLOW_UNITS CMS", "[JUNCTIONS]", *(f"{n} 0 3 0 0 0" for n in names),
            "[OUTFALLS]", "O1 -1 FREE NO", "O2 -1 FREE NO", "[CONDUITS]",
            *(f"C{n} {a} {b} 50 0.013 0 0 0 0" for n, (a, b) in enumerate(zip(names, after, strict=True))),
            "[XSECTIONS]", *(f"C{n} CIRCULAR 0.6 0 0 0 1" for n in range(len(names))),
            "[COORDINATES]", *(f"{n} {50 * k} 0" for k, n in enumerate(names)), "O1 9000 0", "O2 9000 50", "",
        ]
    )  # fmt: skip


def test_a_pump_that_stops_explains_forty_wells_in_the_push_that_tells_of_them(
    cimtwin: Callable[..., Cimtwin], tmp_path: Path
) -> None:
    city = cimtwin(start=False)
    file = tmp_path / "drain.inp"
    file.write_text(drain())
    assert run("import", str(file), CIMTWIN_DATABASE_URL=city.environ["CIMTWIN_DATABASE_URL"]).returncode == 0
    city.start()
    city.put_rules(RULES)
    city.put_sensors(SENSORS)
    city.kill()  # so that the names the sensors use are known from the first question on
    city.start()
    watcher = city.watch(alerts={})
    assert watcher.read()["type"] == "snapshot"
    now = int(time.time() * 1000)
    full = {f"w{n}": [{"ts": now, "values": {"level": 3}}] for n in range(WELLS + OTHERS)}
    stopped = {"p": [{"ts": now, "values": {"running": 0}}]}
    city.publish(("cim/v1/default/gateway/telemetry", full | stopped))
    told = [frame["event"] for frame in watcher.events(2 * WELLS + OTHERS + 1)]
    loud = [e["sensor"] for e in told if e["transition"] == "raised" and not e["flags"]]
    assert loud == [*(f"w{n}/level" for n in range(WELLS, WELLS + OTHERS)), "p/running"]
    city.publish(("cim/v1/default/p/telemetry", {"running": 1}))
    after = [frame["event"] for frame in watcher.events(3 * WELLS + OTHERS + 2)][len(told) :]
    assert sorted(e["transition"] for e in after) == ["cleared", *["unsuppressed"] * WELLS]
    watcher.close()
