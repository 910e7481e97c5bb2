"""Alerts and incidents as messages of the Common Alerting Protocol, CAP 1.2 (OASIS, 1 July 2010).

A chain of messages follows an alert: Alert when it is raised, Update when its level changes, Cancel when it is over or
late data takes it back; each refers to those before it. What a sensor says is for owners and authorities: the scope is
Restricted or Private, never Public, and every message says that a public warning needs a named authority's approval.

Identifiers begin like those of GB/T 35965.1-2018, `ZZZZZZDDDUUUXX_YYYYMMDDhhmmss_N`: division, agency, unit,
extension, time and serial, 31 signs [V]; how the serial goes on past 9 is not known to us: letters [M]. The alert's id
follows, so that no two messages share one. Times are those of the plan's zone, with its offset, as there.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import shapely
from lxml import etree
from shapely.geometry.base import BaseGeometry

from alerts.notify.notice import in_zone
from alerts.notify.plan import CapTerms, local
from alerts.rules import Words
from twin.model import Alert, AlertEvent, Level, Micros

NAMESPACE: Final = "urn:oasis:names:tc:emergency:cap:1.2"
STATUSES: Final = ("Actual", "Exercise", "Test")
MOST_VERTICES: Final = 100
MOST_ASSETS: Final = 50  # named of an incident
METRES_A_DEGREE: Final = 111_320.0
LANGUAGES: Final = (("zh", "zh-CN"), ("en", "en-US"))

_CATEGORIES: Final = {
    "water": ("Infra",),
    "gas": ("Safety", "Infra"),
    "drainage": ("Infra", "Transport"),
    "manhole": ("Safety", "Transport"),
    "confined": ("Safety", "Health"),
    "bridge": ("Infra", "Transport"),
    "device": ("Other",),
}
_SEVERITY: Final = {Level.BLUE: "Minor", Level.YELLOW: "Moderate", Level.ORANGE: "Severe", Level.RED: "Extreme"}
_URGENCY: Final = {Level.BLUE: "Future", Level.YELLOW: "Expected", Level.ORANGE: "Immediate", Level.RED: "Immediate"}
_RESPONSE: Final = {Level.BLUE: "Monitor", Level.YELLOW: "Assess", Level.ORANGE: "Execute", Level.RED: "Execute"}
_LEVEL: Final = {
    Level.BLUE: Words("蓝色（四级）", "blue (IV)"), Level.YELLOW: Words("黄色（三级）", "yellow (III)"),
    Level.ORANGE: Words("橙色（二级）", "orange (II)"), Level.RED: Words("红色（一级）", "red (I)"),
}  # fmt: skip
_NOTE: Final = (
    "监测报警，非公众预警；对公众发布须经有权机关批准。 / "
    "A monitoring alarm, not a public warning; that needs the approval of a named authority."
)
_WITHDRAWN: Final = Words("迟到数据表明情况未发生，撤回。", "Late data shows that it was not so; withdrawn. ")
_SERIALS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Area:
    """Where: in words, and as a ring of (lon, lat) or a circle (lon, lat, radius in m), if known."""

    words: str
    ring: tuple[tuple[float, float], ...] = ()
    circle: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Matter:
    """What a chain of messages is about. `event`: what kind of thing happens; `facts`: names and values beside it."""

    id: str
    event: Words
    domains: tuple[str, ...]
    area: Area
    instruction: Words
    source: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    incident: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to tell: at `at` (the service's clock) the matter stands at `level`, or is over."""

    at: Micros
    level: int
    is_over: bool
    is_withdrawn: bool
    headline: Words
    onset: Micros


@dataclass(frozen=True, slots=True)
class Message:
    """One CAP message. `chain`: `sender,identifier,sent` of all messages; those from `since` up to `number` come before
    this one. All share it: each with a list of its own, a storm's thousands of messages would take up gigabytes."""

    identifier: str
    sent: str
    type: str
    status: str
    matter: Matter
    step: Step
    chain: Sequence[str]
    since: int
    number: int

    @property
    def references(self) -> Sequence[str]:
        return self.chain[self.since : self.number]


def matter_of(alert: Alert, title: Words, area: Area, incident: str | None = None) -> Matter:
    """An alert as what a chain is about."""
    facts = [("level", ""), ("rule", alert.rule), ("tenant", alert.tenant)]
    facts += [(name, value) for name, value in (("asset", alert.asset), ("sensor", alert.sensor)) if value]
    facts += [
        (name, f"{value:.6g}")
        for name, value in (("value", alert.value), ("peak_value", alert.peak_value), ("threshold", alert.threshold))
        if value is not None and math.isfinite(value)
    ]
    return Matter(
        alert.id, title, (alert.domain,), area, Words(alert.instruction_zh, alert.instruction_en),
        alert.sensor or alert.asset or "", tuple(facts), incident,
    )  # fmt: skip


def matter_of_incident(incident: str, alerts: Sequence[Alert], titles: Sequence[Words], area: Area) -> Matter:
    """An incident as what a chain is about: its worst alert's instruction, and what happens to all of them."""
    worst = max(alerts, key=lambda alert: (alert.peak_level, -alert.raised_at))
    events = list(dict.fromkeys(titles))
    title = Words("、".join(words.zh for words in events[:5]), ", ".join(words.en for words in events[:5]))
    facts = [("level", ""), ("alerts", str(len(alerts)))]
    facts += [("asset", name) for name in dict.fromkeys(a.asset for a in alerts if a.asset)][:MOST_ASSETS]
    return Matter(
        incident, title, tuple(dict.fromkeys(alert.domain for alert in alerts)), area,
        Words(worst.instruction_zh, worst.instruction_en), worst.sensor or worst.asset or "", tuple(facts), incident,
    )  # fmt: skip


def steps_of(events: Iterable[AlertEvent]) -> list[Step]:
    """What is to be told of one alert, or of several together, from their events in the order they were told. Of
    several it is their worst level; each one that joins is told, and the end of the last."""
    levels: dict[str, int] = {}
    standing: Counter[int] = Counter()  # alerts, by level
    steps: list[Step] = []
    onset: Micros | None = None
    for event in events:
        before = _worst(standing)
        is_begun = event.alert_id in levels
        is_withdrawn = event.transition == "withdrawn"
        if event.transition in ("raised", "escalated", "deescalated"):
            standing[levels.get(event.alert_id, 0)] -= 1
            standing[event.level] += 1
            levels[event.alert_id] = event.level
        elif event.transition in ("cleared", "closed") or (is_withdrawn and not event.state.is_active):
            if not is_begun:
                continue
            standing[levels.pop(event.alert_id)] -= 1
        else:
            continue
        onset = event.observed_at if onset is None or not before else min(onset, event.observed_at)
        worst = _worst(standing)
        is_over = worst == 0
        if is_over or worst != before or event.transition == "raised":
            headline = Words(event.message_zh, event.message_en)
            steps.append(Step(event.at, worst or before, is_over, is_withdrawn, headline, onset))
    return steps


def _worst(standing: Mapping[int, int]) -> int:
    return max((level for level, number in standing.items() if number > 0), default=0)


def chain(matter: Matter, steps: Sequence[Step], terms: CapTerms, status: str = "Actual") -> list[Message]:
    """The messages of a matter, in order; what is told again after its end begins anew."""
    messages: list[Message] = []
    told: list[str] = []
    since = 0
    for number, step in enumerate(steps, 1):
        kind = "Cancel" if step.is_over else "Update" if len(told) > since else "Alert"
        sent = _time(step.at, terms.zone)
        identifier = (
            f"{terms.code}_{local(step.at, terms.zone):%Y%m%d%H%M%S}_{_SERIALS[number % len(_SERIALS)]}"
            f"-{matter.id}{'' if status == 'Actual' else '-' + status.lower()}"
        )
        messages.append(Message(identifier, sent, kind, status, matter, step, told, since, len(told)))
        told.append(f"{terms.sender},{identifier},{sent}")
        since = len(told) if step.is_over else since
    return messages


def to_xml(message: Message, terms: CapTerms) -> bytes:
    """The message as XML, valid by the schema of CAP 1.2."""
    matter, step = message.matter, message.step
    alert = etree.Element(f"{{{NAMESPACE}}}alert", nsmap={None: NAMESPACE})
    _add(alert, "identifier", message.identifier)
    _add(alert, "sender", terms.sender)
    _add(alert, "sent", message.sent)
    _add(alert, "status", message.status)
    _add(alert, "msgType", message.type)
    _add(alert, "source", matter.source)
    _add(alert, "scope", terms.scope)
    if terms.scope == "Restricted":
        _add(alert, "restriction", terms.restriction)
    else:
        _add(alert, "addresses", terms.contact or terms.sender_name.zh)
    note = _NOTE
    if message.status == "Exercise":
        note = f"回放演练，非实况。 / An exercise: a replay of the past. {note}"
    if step.is_withdrawn:
        note = f"{_WITHDRAWN.zh} / {_WITHDRAWN.en}{note}"
    _add(alert, "note", note)
    _add(alert, "references", " ".join(message.references))
    _add(alert, "incidents", matter.incident or "")
    for name, language in LANGUAGES:
        _info(alert, message, terms, name, language)
    return bytes(etree.tostring(alert, encoding="UTF-8", xml_declaration=True, pretty_print=True))


def _info(alert: Any, message: Message, terms: CapTerms, name: str, language: str) -> None:
    matter, step = message.matter, message.step
    level = Level(step.level)

    def words(both: Words) -> str:
        return both.zh if name == "zh" else both.en

    info = etree.SubElement(alert, f"{{{NAMESPACE}}}info")
    _add(info, "language", language)
    for category in dict.fromkeys(c for domain in matter.domains for c in _CATEGORIES.get(domain, ("Infra",))):
        _add(info, "category", category)
    _add(info, "event", words(matter.event))
    _add(info, "responseType", "AllClear" if step.is_over else _RESPONSE[level])
    _add(info, "urgency", "Past" if step.is_over else _URGENCY[level])
    _add(info, "severity", _SEVERITY[level])
    _add(info, "certainty", "Unlikely" if step.is_withdrawn else "Observed")
    _add(info, "effective", message.sent)
    _add(info, "onset", _time(step.onset, terms.zone))
    _add(info, "senderName", words(terms.sender_name))
    for element in ("headline", "description"):
        _add(info, element, in_zone(words(step.headline), terms.zone))
    _add(info, "instruction", "" if step.is_over else words(matter.instruction))
    _add(info, "contact", terms.contact)
    for key, value in matter.facts:
        parameter = etree.SubElement(info, f"{{{NAMESPACE}}}parameter")
        _add(parameter, "valueName", key)
        _add(parameter, "value", words(_LEVEL[level]) if key == "level" else value)
    area = etree.SubElement(info, f"{{{NAMESPACE}}}area")
    _add(area, "areaDesc", matter.area.words or matter.id)
    if matter.area.ring:
        _add(area, "polygon", " ".join(f"{lat:.6f},{lon:.6f}" for lon, lat in matter.area.ring))
    elif matter.area.circle is not None:
        lon, lat, radius_m = matter.area.circle
        _add(area, "circle", f"{lat:.6f},{lon:.6f} {radius_m / 1000:.3f}")


def _add(parent: Any, name: str, text: str) -> None:
    """An element with a text; none where there is no text."""
    text = _NO_XML.sub("", text).strip()
    if text:
        etree.SubElement(parent, f"{{{NAMESPACE}}}{name}").text = text


def _time(at: Micros, zone: str) -> str:
    moment: dt.datetime = local(at, zone).replace(microsecond=0)
    text = moment.isoformat()
    return text[:-6] + "-00:00" if text.endswith("+00:00") else text  # CAP 3.3.2: UTC is -00:00


def area_of(words: str, shapes: Iterable[Mapping[str, Any] | None], radius_m: float) -> Area:
    """The area around what lies on the map (GeoJSON in longitude and latitude): a circle of `radius_m` about a single
    point, else a ring about all of it, so far away. Just the words where nothing is on the map."""
    points = [point for shape in shapes if shape is not None for point in _points(shape["coordinates"])]
    if not points:
        return Area(words)
    lon0 = sum(p[0] for p in points) / len(points)
    lat0 = sum(p[1] for p in points) / len(points)
    if len(set(points)) == 1:
        return Area(words, circle=(lon0, lat0, radius_m))
    narrowing = METRES_A_DEGREE * max(0.01, math.cos(math.radians(lat0)))
    flat = [((lon - lon0) * narrowing, (lat - lat0) * METRES_A_DEGREE) for lon, lat in points]
    around: BaseGeometry = shapely.MultiPoint(flat).convex_hull.buffer(radius_m, quad_segs=4)
    ring = list(around.exterior.coords)
    tolerance = radius_m / 20
    while len(ring) > MOST_VERTICES:
        ring = list(around.simplify(tolerance).exterior.coords)
        tolerance *= 2
    return Area(words, tuple((round(x / narrowing + lon0, 6), round(y / METRES_A_DEGREE + lat0, 6)) for x, y in ring))


def _points(coordinates: Any) -> Iterable[tuple[float, float]]:
    if coordinates and isinstance(coordinates[0], int | float):
        yield float(coordinates[0]), float(coordinates[1])
    else:
        for inner in coordinates:
            yield from _points(inner)
