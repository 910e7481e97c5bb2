"""CAP 1.2: valid by the schema, in two languages, chained, and never a public warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from alerts import cap
from alerts.notify.plan import CapTerms, parse_plan
from alerts.rules import Words
from twin.model import MINUTE, Alert, AlertEvent, AlertState, parse_time

SCHEMA = Path(__file__).parents[3] / "shared" / "data" / "formats" / "CAP-v1.2.xsd"
AT = parse_time("2026-07-01T08:05:00Z")
ACTIVE, OVER = AlertState.ACTIVE_UNACKNOWLEDGED, AlertState.CLEARED_UNACKNOWLEDGED
NS = {"c": cap.NAMESPACE}
TITLE = Words("道路积水", "Road ponding")
# The schema's own order, for a checkout that has no schema beside it.
ALERT = ["identifier", "sender", "sent", "status", "msgType", "source", "scope", "restriction", "addresses", "note",
         "references", "incidents", "info"]  # fmt: skip
INFO = ["language", "category", "event", "responseType", "urgency", "severity", "certainty", "effective", "onset",
        "senderName", "headline", "description", "instruction", "contact", "parameter", "area"]  # fmt: skip


def event(transition: str, minute: int, level: int = 3, state: AlertState = ACTIVE, alert: str = "a1") -> AlertEvent:
    at = AT + minute * MINUTE
    return AlertEvent(
        f"{alert}-{minute}", alert, "road-ponding", 1, "d/depth", 0, "underpass-3", "drainage-co", "drainage", level, 0,
        state, transition, 26.1, 25.0, at, at, 114.05, 22.54, f"{transition} 积水 <26 & \x00", f"{transition} ponding",
    )  # fmt: skip


def alert() -> Alert:
    return Alert(
        "a1", "road-ponding", 1, "d/depth", 0, "underpass-3", "drainage-co", "drainage", 3, 3, ACTIVE, AT, AT, 26.1,
        27.0, 25.0, None, (), 114.05, 22.54, "3 号下穿", "zh", "en", "封闭下穿通道", "Close the underpass",
    )  # fmt: skip


def messages(*events: AlertEvent, status: str = "Actual", terms: CapTerms | None = None) -> list[Any]:
    """Every message of the chain as XML, held against the schema."""
    terms = terms or CapTerms()
    area = cap.area_of("3 号下穿", [{"type": "Point", "coordinates": [114.05, 22.54]}], 100)
    found = cap.chain(cap.matter_of(alert(), TITLE, area, "inc-7"), cap.steps_of(events), terms, status)
    roots = [etree.fromstring(cap.to_xml(message, terms)) for message in found]
    for root in roots:
        check(root)
    return roots


def check(root: Any) -> None:
    if SCHEMA.is_file():
        etree.XMLSchema(etree.parse(str(SCHEMA))).assertValid(root)
    for parent, order in ((root, ALERT), *((info, INFO) for info in root.findall("c:info", NS))):
        places = [order.index(etree.QName(child).localname) for child in parent]
        assert places == sorted(places)


def text(root: Any, path: str) -> list[str]:
    return [element.text for element in root.findall("/".join(f"c:{part}" for part in path.split("/")), NS)]


def test_an_alert_is_told_in_both_languages_with_place_and_instruction() -> None:
    (root,) = messages(event("raised", 0))
    assert text(root, "msgType") == ["Alert"]
    assert text(root, "status") == ["Actual"]
    assert text(root, "sent") == ["2026-07-01T16:05:00+08:00"]
    assert text(root, "info/language") == ["zh-CN", "en-US"]
    assert text(root, "info/event") == ["道路积水", "Road ponding"]
    assert text(root, "info/instruction") == ["封闭下穿通道", "Close the underpass"]
    assert text(root, "info/severity") == ["Severe"] * 2
    assert text(root, "info/area/circle") == ["22.540000,114.050000 0.100"] * 2
    assert text(root, "incidents") == ["inc-7"]
    assert "橙色（二级）" in text(root, "info/parameter/value")
    told = event("raised", 0)
    (root,) = messages(replace(told, message_zh=f"{told.message_zh}，自 2026-07-01T08:00:00Z"))
    assert text(root, "info/headline")[0].endswith("，自 2026-07-01 16:00:00 +0800")


def test_the_identifier_begins_as_gb_t_35965_has_it_and_is_nobody_elses() -> None:
    terms = parse_plan('[cap]\nsender = "hefei.example"\ncode = "34010000100200"\n').cap
    first, second = messages(event("raised", 0), event("escalated", 1, 4), terms=terms)
    (one,), (two,) = text(first, "identifier"), text(second, "identifier")
    assert one[:31] == "34010000100200_20260701160500_1"
    assert two[:31] == "34010000100200_20260701160600_2"
    assert "a1" in one
    assert text(second, "references") == [f"hefei.example,{one},2026-07-01T16:05:00+08:00"]


def test_a_chain_is_alert_update_cancel_each_with_all_before_it() -> None:
    roots = messages(
        event("raised", 0), event("acknowledged", 1), event("escalated", 2, 4), event("deescalated", 3, 2),
        event("cleared", 4, 2, OVER), event("noted", 5, 2, OVER),
    )  # fmt: skip
    assert [text(root, "msgType")[0] for root in roots] == ["Alert", "Update", "Update", "Cancel"]
    assert [len((text(root, "references") or [""])[0].split()) for root in roots] == [0, 1, 2, 3]
    assert text(roots[-1], "info/responseType") == ["AllClear"] * 2
    assert len({text(root, "identifier")[0] for root in roots}) == 4


def test_what_late_data_takes_back_is_cancelled_and_what_comes_again_begins_anew() -> None:
    roots = messages(event("raised", 0), event("withdrawn", 9, 3, AlertState.CLEARED), event("raised", 10))
    assert [text(root, "msgType")[0] for root in roots] == ["Alert", "Cancel", "Alert"]
    assert text(roots[1], "info/certainty") == ["Unlikely"] * 2
    assert "撤回" in text(roots[1], "note")[0]
    assert text(roots[2], "references") == []


def test_several_alerts_are_one_chain_until_the_last_is_over() -> None:
    roots = messages(
        event("raised", 0, 2), event("raised", 1, 4, alert="a2"), event("cleared", 2, 4, OVER, "a2"),
        event("cleared", 3, 2, OVER),
    )  # fmt: skip
    assert [text(root, "msgType")[0] for root in roots] == ["Alert", "Update", "Update", "Cancel"]
    assert [text(root, "info/severity")[0] for root in roots] == ["Moderate", "Extreme", "Moderate", "Moderate"]


@pytest.mark.parametrize("status", ["Exercise", "Test"])
def test_a_replay_is_an_exercise_and_no_message_is_public(status: str) -> None:
    (root,) = messages(event("raised", 0), status=status)
    assert text(root, "status") == [status]
    assert text(root, "scope") == ["Restricted"]
    assert "approval" in text(root, "note")[0]
    assert status.lower() in text(root, "identifier")[0]


def test_a_private_message_names_whom_it_is_for() -> None:
    (root,) = messages(event("raised", 0), terms=parse_plan('[cap]\nscope = "Private"\ncontact = "desk"\n').cap)
    assert text(root, "addresses") == ["desk"]


def test_an_area_lies_around_all_of_a_shape_and_is_closed() -> None:
    line = {"type": "LineString", "coordinates": [[114.0, 22.5, 3.0], [114.01, 22.5, 3.0], [114.01, 22.51, 3.0]]}
    area = cap.area_of("x", [line, None], 50)
    assert area.ring[0] == area.ring[-1]
    assert 4 <= len(area.ring) <= cap.MOST_VERTICES
    west, east = min(p[0] for p in area.ring), max(p[0] for p in area.ring)
    # 50 m beyond the line, in degrees of longitude at that latitude
    assert west == pytest.approx(114.0 - 50 / (111_320 * 0.9239), abs=2e-6)
    assert east == pytest.approx(114.01 + 50 / (111_320 * 0.9239), abs=2e-6)
    assert cap.area_of("x", [None], 50) == cap.Area("x")
