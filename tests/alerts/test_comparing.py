"""What two courses of the same time have in common, and what not."""

from __future__ import annotations

from dataclasses import replace

from alerts.comparing import compare
from twin.model import Alert, AlertState, alert_id

ALERT = Alert(
    id="", rule="r", rule_version=1, sensor="d/p", sensor_index=0, asset=None, tenant="t", domain="drainage", level=2,
    peak_level=2, state=AlertState.ACTIVE_UNACKNOWLEDGED, since=0, raised_at=0, value=None, peak_value=None,
    threshold=None, lon=None, lat=None, place=None, message_zh="", message_en="", instruction_zh="", instruction_en="",
)  # fmt: skip


def alert(raised: int, cleared: int | None, level: int = 2, sensor: str = "d/p", rule: str = "r") -> Alert:
    return replace(
        ALERT, id=alert_id(rule, sensor, raised), rule=rule, sensor=sensor, raised_at=raised, cleared_at=cleared,
        peak_level=level,
    )  # fmt: skip


def shown(would: list[Alert], was: list[Alert], start: int = 0) -> list[tuple[object, ...]]:
    return [
        (pair.kind, *(one.raised_at if one else None for one in (pair.would, pair.was)), *pair.fields)
        for pair in compare(would, was, start)
    ]


def test_alerts_are_paired_by_their_reading_else_by_their_time() -> None:
    would = [alert(10, 20), alert(30, 40, 4), alert(52, 70), alert(90, None), alert(10, 20, sensor="d/q")]
    was = [alert(10, 20), alert(30, 41), alert(50, 60), alert(65, 80), alert(100, 110, rule="s")]
    assert shown(would, was) == [
        ("same", 10, 10),
        ("added", 10, None),
        ("changed", 30, 30, "level", "cleared_at"),
        ("changed", 52, 50, "raised_at", "cleared_at"),
        ("missing", None, 65),
        ("added", 90, None),
        ("missing", None, 100),
    ]


def test_of_what_stood_before_the_start_it_does_not_matter_since_when() -> None:
    assert shown([alert(5, 20)], [alert(7, 20)], 10) == [("same", 5, 7)]
    assert shown([alert(5, 20)], [alert(12, 20)], 10) == [("changed", 5, 12, "raised_at")]


def test_one_that_ended_as_the_other_began_is_another() -> None:
    assert shown([alert(5, 10)], [alert(10, 20)]) == [("added", 5, None), ("missing", None, 10)]
