"""The demo district's storm through a running service: a pump trips, and some forty manholes rise. How many incidents
people are shown, and what stands at the root."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any, Final

import psycopg

from bench.city import write_stream
from bench.report import Figure
from bench.services import Bench, RowFailed, Running, Service, until
from ingest.publisher import device_messages
from twin.demo import storm
from twin.demo.city import DRAINAGE
from twin.demo.run import import_district

ROOT: Final = f"{storm.PUMP}/running"


class _Storm:
    def csv(self, interval_s: int) -> str:
        return storm.sensors_csv()


def incidents(bench: Bench) -> list[Figure]:
    """Runs of the same readings, each on a database of its own."""
    recorded = storm.readings()
    messages = list(device_messages(recorded, DRAINAGE))
    stream = write_stream(
        bench.file("storm.npz"), len(messages), len(recorded), lambda n: (messages[n].topic, messages[n].payload)
    )
    rules = bench.file("storm.rules.toml")
    rules.write_text(storm.rules(), "utf-8")
    mqtt_url, broker_pid = bench.mosquitto()
    numbers: list[float] = []
    stored = 0
    told: list[tuple[list[dict[str, Any]], int]] = []
    for _ in range(bench.runs):
        with bench.database() as url:
            service = Service(bench.folder, url, mqtt_url)
            service.import_sensors(_Storm())
            import_district(url, "default")
            service.command("import", str(rules))
            try:
                service.start()
                with psycopg.connect(url, autocommit=True) as connection:
                    running = Running(service, connection, url, bench.postgres().pid or 0, broker_pid)
                    stored += running.take(bench, stream).verified
                    told.append(_incidents(running))
            finally:
                service.stop()
        numbers.append(float(len(told[-1][0])))
    fault = next((text for found, alerts in told if (text := _wrong(found, alerts))), "")
    first, alerts = told[0]
    return [
        Figure(
            "storm", "incidents that a storm with a pump trip gives", "", numbers, 1, "at most", fault=fault,
            verified=stored, expected=bench.runs * len(recorded),
            details={
                "alerts (in the database)": alerts,
                "alerts in the incidents": ", ".join(str(one["alert_count"]) for one in first),
                "probable root": ", ".join(str((one["probable_cause"] or {}).get("sensor")) for one in first),
                "what it explains": "; ".join(reason["en"] for one in first for reason in one["reasons"]),
            },
        )
    ]  # fmt: skip


def _incidents(running: Running) -> tuple[list[dict[str, Any]], int]:
    """All incidents, once they hold all the alerts of readings, and how many alerts there are."""
    found: list[dict[str, Any]] = []
    alerts = 0

    def are_told() -> bool:
        nonlocal found, alerts
        row = running.connection.execute("select count(*) from alerts where rule <> 'device-offline'").fetchone()
        alerts = 0 if row is None else int(row[0])
        try:
            with urllib.request.urlopen(f"http://{running.service.http}/api/v1/incidents", timeout=30) as answer:
                found = [one for one in json.load(answer)["items"] if _is_of_readings(one)]
        except urllib.error.HTTPError as error:
            raise RowFailed(f"GET /incidents answers {error.code}") from None
        return sum(one["alert_count"] for one in found) >= alerts > 0

    until(are_told, "the incidents", pause_s=0.2)
    return found, alerts


def _is_of_readings(incident: dict[str, Any]) -> bool:
    """Not one of devices that went silent when the recording ended."""
    return (incident["probable_cause"] or {}).get("rule") != "device-offline"


def _wrong(found: list[dict[str, Any]], alerts: int) -> str:
    if len(found) != 1:
        return ""  # the figure says it
    root = (found[0]["probable_cause"] or {}).get("sensor")
    if root != ROOT:
        return f"the root is {root}, not {ROOT}"
    return "" if found[0]["alert_count"] == alerts else f"{found[0]['alert_count']} of {alerts} alerts are in it"
