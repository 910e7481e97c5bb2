"""`cimtwin demo`: the first alert soon, on a model of the city."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Cimtwin, until


def test_the_demo_raises_alerts_on_the_assets_of_its_district(tmp_path: Path) -> None:
    demo = Cimtwin(tmp_path / "data", {}, "demo", "--speed", "120").start()
    try:
        until(lambda: demo.get("/alerts")["items"], "an alert", 60)
        models = demo.get("/models")["items"]
        assert [model["orphans"] for model in models] == [[]] * 4
        until(lambda: demo.get("/assets", q="长江路井盖7号", type="manhole")["items"], "the district")
        cover = demo.get("/assets/长江路井盖7号")
        assert cover["id"] == "示范新区排水:长江路井盖7号"
        assert cover["sensors"] == ["mc-07/tilt", "mc-07/open", "mc-07/h2s", "mc-07/battery"]
        downstream = demo.get("/assets/长江路井盖7号/trace", direction="downstream")["items"]
        assert downstream[-1]["asset"] == "示范新区排水:污水处理厂"
        isolated = demo.get("/assets/示范新区供水阀井9号/trace", direction="isolate")
        assert isolated["valves"]
    finally:
        demo.stop()


def test_its_storm_stops_a_pump_and_then_fills_the_manholes_upstream(tmp_path: Path) -> None:
    demo = Cimtwin(tmp_path / "data", {}, "demo", "--scenario", "storm", "--speed", "600").start()
    try:

        def risen() -> dict[str, int]:
            rules = [alert["rule"] for alert in demo.get("/alerts", limit=1000)["items"]]
            return {rule: rules.count(rule) for rule in rules}

        until(lambda: risen().get("storm-sewer-surcharged", 0) >= 40, "forty manholes", 60)
        assert risen()["duty-pump-stopped"] == 1
    finally:
        demo.stop()
