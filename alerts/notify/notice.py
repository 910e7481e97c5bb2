"""A notice: what one message says, whatever channel it goes by, and its words in Chinese and English."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from alerts.notify.plan import Receiver, local
from twin.model import LEVELS, Micros, iso, parse_time

KINDS: Final = ("alert", "update", "resolved", "escalation", "repeat", "refresh", "test")
LEVEL_ZH: Final = {"blue": "蓝色", "yellow": "黄色", "orange": "橙色", "red": "红色"}
_KIND_ZH: Final = {"update": "更新", "resolved": "解除", "escalation": "无人确认", "repeat": "仍未确认", "test": "测试"}
_KIND_EN: Final = {
    "update": "update", "resolved": "RESOLVED", "escalation": "NOT ACKNOWLEDGED", "repeat": "still not acknowledged",
    "test": "TEST",
}  # fmt: skip
Clean = Callable[[str], str]
INSTRUCTIONS: Final = 3  # shown of one notice
# What would be markup or a mention in a chat is shown as its full-width twin.
_UTC: Final = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\b", re.ASCII)
_PLAIN: Final = str.maketrans({"<": "＜", ">": "＞", "[": "［", "]": "］", "`": "｀", "*": "＊", "_": "＿", "#": "＃"})


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told. `alerts`: as HTTP gives them, each with `told_level`, the level that the receiver was told of
    before, or None; the worst first. `active`: how many of its group are active. `level`: the worst level of what it
    tells of. `stage`: of escalation. `people`: on duty. `only`: recipients of a mail that did not get it with the
    others; empty: all."""

    kind: str
    level: str
    group: str
    at: Micros
    alerts: tuple[Mapping[str, Any], ...]
    active: int
    incident: str | None = None
    stage: int = 0
    people: tuple[Mapping[str, str], ...] = ()
    zone: str = "Asia/Shanghai"
    only: tuple[str, ...] = ()

    @property
    def is_resolved(self) -> bool:
        return self.kind == "resolved"

    def as_json(self) -> dict[str, Any]:
        # Not `asdict`, which copies every alert in depth: two thirds of the time of telling a storm.
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return given | {"at": iso(self.at), "alerts": list(self.alerts), "people": list(self.people)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Notice:
        return cls(
            **{
                **given,
                "at": parse_time(given["at"]),
                "alerts": tuple(given["alerts"]),
                "people": tuple(given["people"]),
                "only": tuple(given.get("only", ())),
            }
        )


def is_active(alert: Mapping[str, Any]) -> bool:
    return str(alert["state"]).startswith("active")


def worst_first(alerts: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        sorted(alerts, key=lambda a: (not is_active(a), -LEVELS.index(str(a["level"])), str(a["raised_at"]), a["id"]))
    )


def joined(notices: Sequence[Notice]) -> Notice:
    """Several notices for one receiver as one: what a chat that takes twenty messages a minute is told in a storm. Of
    an alert in several of them the last word counts."""
    if len(notices) == 1:
        return notices[0]
    notices = sorted(notices, key=lambda notice: notice.at)  # they come the worst first
    last: dict[str, Mapping[str, Any]] = {}
    for notice in notices:
        last.update((str(alert["id"]), alert) for alert in notice.alerts)
    kinds = {notice.kind for notice in notices}
    people = {person["name"]: person for notice in notices for person in notice.people}
    return replace(
        notices[0], kind=kinds.pop() if len(kinds) == 1 else "update", alerts=worst_first(list(last.values())),
        level=max((notice.level for notice in notices), key=LEVELS.index), group="", incident=None,
        active=sum(notice.active for notice in notices), people=tuple(people.values()), at=notices[-1].at,
    )  # fmt: skip


def plain(text: str) -> str:
    """A text in which nothing is markup, on one line."""
    return line(text.translate(_PLAIN))


def when(at: Micros, zone: str) -> str:
    """A moment in the plan's zone, with its offset."""
    moment = local(at, zone)
    return f"{moment:%Y-%m-%d %H:%M:%S} {moment:%z}"


def in_zone(text: str, zone: str) -> str:
    """A text with its UTC times (`2026-07-01T08:00:00Z`) in the plan's zone: at night nobody is to add eight hours."""

    def said(found: re.Match[str]) -> str:
        try:
            return when(parse_time(found[0]), zone)
        except ValueError:  # no time, but somebody's words
            return found[0]

    return _UTC.sub(said, text)


def line(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def title(notice: Notice, language: str, clean: Clean = line) -> str:
    """The headline, in one language or in both; `clean` is what is done to texts from elsewhere."""
    if language == "both":
        return f"{title(notice, 'zh', clean)} / {title(notice, 'en', clean)}"
    is_zh = language == "zh"
    kind = (_KIND_ZH if is_zh else _KIND_EN).get(notice.kind, "")
    if notice.kind == "test":
        return "【测试】cimtwin 通知测试" if is_zh else "TEST: notification from cimtwin"
    level = LEVEL_ZH[notice.level] if is_zh else notice.level.upper()
    number = len(notice.alerts)
    first = clean(in_zone(str(notice.alerts[0]["message"][language]), notice.zone)) if number else ""
    if is_zh:
        head = f"【{level}{kind or '报警'}】"
        return f"{head}{first}" if number == 1 else f"{head}{number} 条报警：{first}"
    head = f"[{level}{' ' + kind if kind else ''}]"
    return f"{head} {first}" if number == 1 else f"{head} {number} alerts: {first}"


def lines(notice: Notice, language: str, clean: Clean = line) -> Iterator[str]:
    """What follows the headline, most important first; `language` zh or en, or both, the Chinese first."""
    if language == "both":
        yield from lines(notice, "zh", clean)
        yield ""
        yield from lines(notice, "en", clean)
        return
    is_zh = language == "zh"
    if notice.kind == "test":
        yield "收到此消息，说明该接收端可用。" if is_zh else "If you read this, the receiver works."
        yield ("时间：" if is_zh else "Time: ") + when(notice.at, notice.zone)
        return
    if notice.kind == "escalation":
        yield (
            f"无人确认，第 {notice.stage} 级升级通知。"
            if is_zh
            else f"Nobody has acknowledged: escalated, stage {notice.stage}."
        )
    if notice.people:
        names = "、".join(clean(person["name"]) for person in notice.people)
        yield f"值班：{names}" if is_zh else f"On duty: {names}"
    if notice.incident:
        yield f"事件：{notice.incident}" if is_zh else f"Incident: {notice.incident}"
    for alert in notice.alerts:
        yield "- " + _of_alert(alert, notice.zone, is_zh, clean)
    if notice.active and notice.kind in ("update", "resolved"):
        yield f"同组仍有 {notice.active} 条活动报警。" if is_zh else f"{notice.active} of the group still active."
    said: dict[str, None] = {}
    for alert in notice.alerts:
        if is_active(alert) and alert["instruction"][language]:
            said.setdefault(clean(str(alert["instruction"][language])))
    for instruction in list(said)[:INSTRUCTIONS]:
        yield f"处置：{instruction}" if is_zh else f"Do: {instruction}"


def _of_alert(alert: Mapping[str, Any], zone: str, is_zh: bool, clean: Clean) -> str:
    text = clean(in_zone(str(alert["message"]["zh" if is_zh else "en"]), zone))
    raised = when(parse_time(alert["raised_at"]), zone)
    if is_active(alert):
        return f"{text}（发生于 {raised}）" if is_zh else f"{text} (raised {raised})"
    if "withdrawn" in alert["flags"]:
        return f"{text}（迟到数据表明未发生，撤回）" if is_zh else f"{text} (withdrawn: late data shows it was not so)"
    cleared = when(parse_time(alert["cleared_at"]), zone) if alert["cleared_at"] else ""
    return f"{text}（{raised} 至 {cleared}）" if is_zh else f"{text} ({raised} to {cleared})"


def fitted(parts: Iterator[str], most_bytes: int, language: str) -> str:
    """The lines that fit into so many bytes of UTF-8, and how many were left out."""
    every = list(parts)
    taken, size = [], 0
    rest = "…… 其余 {} 行从略 / {} more lines" if language == "both" else (
        "…… 其余 {} 行从略" if language == "zh" else "… {} more lines"
    )  # fmt: skip
    room = most_bytes - len(rest.encode()) - 16
    for number, line in enumerate(every):
        size += len(line.encode()) + 1
        if size > (most_bytes if number == len(every) - 1 else room):
            taken.append(rest.format(*[len(every) - number] * 2))
            break
        taken.append(line)
    return "\n".join(taken)


def cut(text: str, most_bytes: int) -> str:
    """The beginning of a text that fits into so many bytes of UTF-8."""
    data = text.encode()
    return text if len(data) <= most_bytes else data[: most_bytes - 3].decode(errors="ignore") + "…"


def document(notice: Notice, id_: str, receiver: Receiver) -> dict[str, Any]:
    """The notice as a machine is told it (webhook, MQTT). `id` is the delivery's: a repetition has the same."""
    return {
        "version": 1,
        "id": id_,
        "receiver": receiver.name,
        "kind": notice.kind,
        "status": "resolved" if notice.is_resolved else "test" if notice.kind == "test" else "firing",
        "level": notice.level,
        "title": {"zh": title(notice, "zh"), "en": title(notice, "en")},
        "group": notice.group,
        "incident": notice.incident,
        "stage": notice.stage,
        "at": iso(notice.at),
        "active": notice.active,
        "people": [dict(person) for person in notice.people],
        "alerts": [dict(alert) for alert in notice.alerts],
    }
