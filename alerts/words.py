"""What an alert says: one line, Chinese and English, from a detector's verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final

from alerts.composition import Composition
from alerts.detectors.together import named
from alerts.parameters import Accumulating, Drifting, Neighbours, Residual, Spectrum, Together
from alerts.rules import Rule, Words
from twin.catalog import Catalog
from twin.model import DAY, HOUR, LEVELS, MINUTE, SECOND, Level, Micros, Transition, iso

LEVEL_ZH: Final = ("", "蓝色", "黄色", "橙色", "红色")


@functools.lru_cache(1024)  # in a storm many things begin at once
def _when(at: Micros) -> str:
    """A moment as people are told it, to the second."""
    return str(iso(at // SECOND * SECOND))


def _number(value: float) -> str:
    return f"{value:.6g}"


def message(rule: Rule, catalog: Catalog, t: Transition, place: str) -> tuple[str, str]:
    """What happened in one line, Chinese and English: level, what, where, and the value beside its limit."""
    if t.subject is None:
        sensor = catalog.sensors[t.sensor]
        names = (f"{place}（{sensor.id}）", f"{place} ({sensor.id})")
        where_zh, where_en = (place, place) if place == sensor.device else names
    else:
        where_zh, where_en = _group(t.subject)
    if rule.detector == "offline":
        told_zh, told_en = _silence(t)
    elif isinstance(rule.parameters, Composition):
        told_zh, told_en = _count(t)
    else:
        told_zh, told_en = _values(rule, catalog, t)
    if t.before > t.after > Level.NONE:
        parts_zh = f"降为{LEVEL_ZH[t.after]} {rule.title.zh}：{where_zh}"
        parts_en = f"eased to {LEVELS[t.after - 1].upper()} {rule.title.en}: {where_en}"
        told_zh, told_en = told_zh.replace("（限值", "（已回到限值内"), told_en.replace("(limit", "(back inside")
    elif t.after == Level.NONE:
        parts_zh, parts_en = f"{rule.title.zh} 解除：{where_zh}", f"{rule.title.en} cleared: {where_en}"
    else:
        parts_zh = f"{LEVEL_ZH[t.after]}报警 {rule.title.zh}：{where_zh}"
        parts_en = f"{LEVELS[t.after - 1].upper()} {rule.title.en}: {where_en}"
    return f"{parts_zh} {told_zh}".strip(), f"{parts_en} {told_en}".strip()


# Of a whole domain that is silent; one that a city has added goes by its name.
_DOMAINS: Final = {
    "water": ("供水", "water supply"), "gas": ("燃气", "gas"), "drainage": ("排水", "drainage"),
    "confined": ("有限空间", "confined spaces"), "manhole": ("窨井", "manholes"), "bridge": ("桥梁", "bridges"),
    "device": ("设备", "devices"), "signal": ("信号", "signals"),
}  # fmt: skip


def _group(subject: str) -> tuple[str, str]:
    """What a group is called: a gateway's sensors, a domain, or what a composite is judged for."""
    head, _, name = subject.rpartition("/")
    if head == "domain":
        zh, en = _DOMAINS.get(name, (name, name))
        return f"{zh}（{subject}）", f"{en} ({subject})"
    return (f"网关（{subject}）", f"gateway ({subject})") if head and name == "gateway" else (subject, subject)


def holding(
    held: Sequence[tuple[Words, str, Micros]], others: int, absent: Sequence[Words]
) -> tuple[str, str]:  # fmt: skip
    """What a composite rests on: the rules that hold, on which sensor and since when; how many more there are; and the
    rules that must not hold."""
    zh, en = [], []
    for title, sensor, since in held:
        at = _when(since)
        zh.append(f"{title.zh}（{sensor}，自 {at}）")
        en.append(f"{title.en} ({sensor}, since {at})")
    if others > 0:
        zh.append(f"另有 {others} 项")
        en.append(f"{others} more")
    zh += [f"无“{title.zh}”" for title in absent]
    en += [f"no '{title.en}'" for title in absent]
    return "；".join(zh), "; ".join(en)


def _silence(t: Transition) -> tuple[str, str]:
    if not t.after:
        return "恢复上报", "reporting again"
    since = _when(t.since)
    if math.isnan(t.threshold):
        return f"全部测点无数据（自 {since}）", f"all sensors silent (since {since})"
    zh, en = _about(t.threshold)
    return f"超过 {zh}无数据（自 {since}）", f"silent for more than {en} (since {since})"


def _about(seconds: float) -> tuple[str, str]:
    """A duration in words, to three figures."""
    for width, zh, en in ((86400, "天", "d"), (3600, "小时", "h"), (60, "分钟", "min")):
        if seconds >= 2 * width:
            return f"{seconds / width:.3g} {zh}", f"{seconds / width:.3g} {en}"
    return f"{seconds:.3g} 秒", f"{seconds:.3g} s"


def _began(t: Transition) -> tuple[str, str]:
    """Since when it has been so, where that is not the moment that is told."""
    if t.after <= t.before or t.since >= t.observed_at:
        return "", ""
    since = _when(t.since)
    return f"，自 {since}", f", since {since}"


def _count(t: Transition) -> tuple[str, str]:
    """A composite's evidence, with how many places there are where they are counted."""
    zh, en = t.evidence
    if math.isnan(t.value) or not t.after:
        return zh, en
    count, least = _number(t.value), _number(t.threshold)
    return f"{count} 处同时（至少 {least} 处）：{zh}", f"at {count} places at once (at least {least}): {en}"


def _values(rule: Rule, catalog: Catalog, t: Transition) -> tuple[str, str]:
    if math.isnan(t.value):
        return "", ""
    kind = catalog.kind(t.sensor)
    if isinstance(rule.parameters, Together):
        return _together(catalog, t)
    since_zh, since_en = _began(t)
    if kind.unit == "bool":
        # With what it is a yes or no to: "Pump stopped: no" alone would say the opposite.
        zh, en = (f"{kind.zh}：是", f"{kind.en}: yes") if t.value else (f"{kind.zh}：否", f"{kind.en}: no")
        return (f"{zh}（{since_zh[1:]}）", f"{en} ({since_en[2:]})") if since_zh else (zh, en)
    value = f"{_number(t.value)} {kind.unit}".strip()
    limit = f"{_number(t.threshold)} {kind.unit}".strip()
    if rule.detector == "stuck":
        hours = f"{_number(t.threshold / 3600)}"
        return f"{hours} 小时未变化，{value}{since_zh}", f"unchanged for {hours} h at {value}{since_en}"
    if rule.detector == "rate":
        window = _number(rule.window / MINUTE)
        return (
            f"{window} 分钟内变化 {value}（限值 {limit}{since_zh}）",
            f"changed by {value} in {window} min (limit {limit}{since_en})",
        )
    if isinstance(rule.parameters, Residual | Neighbours | Spectrum):
        return _deviation(rule.parameters, t, kind.unit)
    if isinstance(rule.parameters, Accumulating):
        zh, en = _span(rule.parameters.windows[max(t.before, t.after) - 1])
        return f"{zh}内累计 {value}（限值 {limit}{since_zh}）", f"{value} in {en} (limit {limit}{since_en})"
    if rule.detector == "anomaly":
        return _evidence(t, value, limit)
    if rule.detector in _LEARNT:
        return _learnt(rule, t, value, limit)
    return f"{value}（限值 {limit}{since_zh}）", f"{value} (limit {limit}{since_en})"


def _deviation(parameters: Residual | Neighbours | Spectrum, t: Transition, unit: str) -> tuple[str, str]:
    """The words for a deviation from what other sensors say."""
    if parameters.is_percent:
        unit = "%"
    elif isinstance(parameters, Spectrum):
        unit = "σ"
    match parameters:
        case Residual():
            of_zh, of_en = "较模型值偏离", "off its model by"
        case Neighbours():
            zh, en = _BESIDE[parameters.along]
            of_zh, of_en = f"较{zh}测点中位数偏离", f"off the median of {en} by"
        case Spectrum():
            of_zh, of_en = "较健康期偏离", "off its healthy period by"
    value, limit = f"{t.value:+.6g} {unit}".strip(), f"{t.threshold:+.6g} {unit}".strip()
    since = _when(t.since)
    return f"{of_zh} {value}（限值 {limit}，自 {since}）", f"{of_en} {value} (limit {limit}, since {since})"


# By `Neighbours.along`, whom a reading is held against.
_BESIDE: Final = {
    "": ("邻近", "its neighbours"),
    "both": ("沿管网邻近", "its neighbours along the network"),
    "upstream": ("上游邻近", "the sensors upstream"),
    "downstream": ("下游邻近", "the sensors downstream"),
}


def _together(catalog: Catalog, t: Transition) -> tuple[str, str]:
    """The words for sensors that are together unlike what they have been; the value is -log10 of a probability."""
    since = _when(t.since)
    if not t.after:
        zh, en = (
            ("持续已久，视为新常态", "lasting, now taken as normal")
            if t.note < 0
            else ("已恢复常态", "back to what is usual")
        )
        return f"（{zh}，自 {since}）", f"({en}, since {since})"
    odds = f"10^-{t.value:.1f}"
    zh, en = "多测点联合异常", "sensors together unlike what they have been"
    if found := [catalog.sensors[index].id for index in named(t.note)]:
        zh, en = f"{zh}，{found[0]} 最为异常", f"{en}, {found[0]} most of all"
        if found[1:]:
            zh, en = f"{zh}，其次 {'、'.join(found[1:])}", f"{en}, then {', '.join(found[1:])}"
    return f"{zh}（概率 {odds}，自 {since}）", f"{en} (probability {odds}, since {since})"


def _span(span: Micros) -> tuple[str, str]:
    """A duration in words."""
    for width, zh, en in ((DAY, "天", "d"), (HOUR, "小时", "h")):
        if span % width == 0:
            return f"{span // width} {zh}", f"{span // width} {en}"
    return f"{_number(span / MINUTE)} 分钟", f"{_number(span / MINUTE)} min"


# By detector and `Transition.note`: what the reading was compared with.
_LEARNT: Final = {
    "baseline": {
        1: ("与工作日同时段相比", "as usual at this hour of working days"),
        2: ("与休息日同时段相比", "as usual at this hour of days off"),
    },
    "night": {
        1: ("夜间流量，高于近 14 夜中位数", "flow at night, above the median of the last 14 nights"),
        2: ("夜间流量，低于近 14 夜中位数", "flow at night, below the median of the last 14 nights"),
    },
    "cusum": {1: ("均值持续偏高", "mean drifting upwards"), 2: ("均值持续偏低", "mean drifting downwards")},
}


def _learnt(rule: Rule, t: Transition, value: str, limit: str) -> tuple[str, str]:
    """The words for a verdict against what the sensor has shown before: value, expected edge, since when, evidence."""
    if isinstance(rule.parameters, Drifting):
        zh, en = _span(rule.parameters.every)
        value_zh, value_en = f"{zh}均值 {value}", f"{value} on average in {en}"
    else:
        value_zh = value_en = value
    since = _when(t.since)
    if 0 < t.after < t.before and not math.isnan(t.threshold):  # still beyond what is expected, if less so
        return f"{value_zh}（已回到 {limit} 以内，自 {since}）", f"{value_en} (back inside {limit}, since {since})"
    if t.after < t.before or math.isnan(t.threshold):
        return f"{value_zh}（已回到预期范围，自 {since}）", f"{value_en} (back within what is expected, since {since})"
    zh, en = _LEARNT[rule.detector].get(t.note, ("与以往不符", "unlike before"))
    is_high = t.value >= t.threshold if rule.detector == "baseline" else t.note == 1
    most_zh, most_en = ("不高于", "at most") if is_high else ("不低于", "at least")
    return (
        f"{value_zh}（预期{most_zh} {limit}；{zh}，自 {since}）",
        f"{value_en} (expected {most_en} {limit}; {en}, since {since})",
    )


# By `Transition.note` of the anomaly detector: what the evidence is; the last one ends an alert.
_EVIDENCE: Final = {
    1: ("高于其长期水平", "above its long-run level"),
    2: ("低于其长期水平", "below its long-run level"),
    3: ("较上一读数突变", "a jump from the reading before"),
    4: ("与该时段的常值不符", "unlike what is usual at this hour"),
    5: ("连续多个读数偏离常值", "several readings together away from usual"),
    6: ("波动消失", "it has gone quiet"),
    7: ("持续已久，视为新常态", "lasting, now taken as normal"),
}


def _evidence(t: Transition, value: str, limit: str) -> tuple[str, str]:
    """The words for a verdict without a limit that anybody set: value, expected edge, since when, evidence."""
    since = _when(t.since)
    zh, en = _EVIDENCE.get(t.note, ("已恢复常态", "back to what is usual"))
    if not t.after or math.isnan(t.threshold):
        return f"{value}（{zh}，自 {since}）", f"{value} ({en}, since {since})"
    most_zh, most_en = ("不高于", "at most") if t.value >= t.threshold else ("不低于", "at least")
    return (
        f"{value}（预期{most_zh} {limit}；{zh}，自 {since}）",
        f"{value} (expected {most_en} {limit}; {en}, since {since})",
    )
