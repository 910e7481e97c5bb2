"""What is wrong with something handed in, said in Chinese too: the readers of rules, tests and the like say it in
English, next to the check; here stands what it means for people who read Chinese."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from twin.model import Problem

# English, whole, as a pattern; and the Chinese of it, `{0}` for the first group.
_SAID: Final = [
    (re.compile(pattern), zh)
    for pattern, zh in (
        (r"is missing", "缺少"),
        (r"unknown field", "未知字段"),
        (r"must not be empty", "不能为空"),
        (r"must be a text", "必须是文字"),
        (r"must be a table", "必须是表"),
        (r"must be a number", "必须是数字"),
        (r"must be a finite number", "必须是有限的数字"),
        (r"must not be negative", "不能为负"),
        (r"must be above 0", "必须大于 0"),
        (r"must be true or false", "必须是 true 或 false"),
        (r"must be longer than 0", "必须长于 0"),
        (r"must be at most (\d+) days", "最长 {0} 天"),
        (r"must be longer than 0 and at most (.*)", "必须长于 0，至多 {0}"),
        (r"must be a text or a list of texts", "必须是文字或文字的列表"),
        (r"must be a list of at most (\d+) (?:texts|numbers)", "必须是至多 {0} 项的列表"),
        (r"must be one of (.*)", "只能是 {0}"),
        (r"must be a whole number(?: from|,) (\d+) to (\d+).*", "必须是 {0} 至 {1} 的整数"),
        (r"must be a duration (?:such as|with its unit).*", '必须是带单位的时长，如 "30s"、"5min"、"6h"、"1d"'),
        (r'must be a duration, or "3x" times the interval', '必须是时长，或上报间隔的倍数如 "3x"'),
        (r'must be at least "1x"', '至少为 "1x"'),
        (r"is longer than ten years", "超过十年"),
        (r"must be a distance such as .*", '必须是距离，如 "500m"、"1.5km"，最长 100 km'),
        (r"must be a distance from UTC such as .*", '必须是与 UTC 的时差，如 "+08:00"'),
        (r"must be two times of day such as .*", '必须是两个时刻，如 "02:00-04:00"'),
        (r"must be two different times", "起止时刻不能相同"),
        (r'must be a list of at most 1000 days such as .*', '必须是至多 1000 个日期的列表，如 "2026-10-01"'),
        (r"(.*) is not a day such as .*", "{0} 不是 2026-10-01 这样的日期"),
        (r"has a day that is among days_off too", "有的日期也在 days_off 中"),
        (r"is longer than 10,000 characters", "超过 10,000 个字符"),
        (r"must be 1 to 64 of the characters A-Z a-z 0-9 \. _ -", "必须是 1 至 64 个 A-Z a-z 0-9 . _ -"),
        (r"is the id of (?:rule (\d+)|the rule at line (\d+)) too", "与前面的规则编号重复"),
        (r"unknown detector (.*); known are (.*)", "未知的检测方法 {0}；可用 {1}"),
        (r"unknown kind (.*)", "未知的指标 {0}"),
        (r"unknown domain (.*)", "未知的领域 {0}"),
        (r"unknown label; known are (.*)", "未知的标签；可用 {0}"),
        (r"is not a field of detector (.*)", "检测方法 {0} 没有这个字段"),
        (r"is missing: a rule names its sensors by .*", "缺少：规则须用 kind、where 或 sensors 指明测点"),
        (r"cannot be combined with kind or where", "不能与 kind、where 并用"),
        (r"contradicts kind", "与 kind 矛盾"),
        (r'must be a list of at least one "device/property"', '必须是列表，至少一个 "device/property"'),
        (r"(.*) is not device/property", "{0} 不是 device/property 的形式"),
        (r"names a sensor twice", "同一测点写了两次"),
        (r"more than (\d+) (\w+)s?", "超过 {0} 个"),
        (r"must be a table of at least one of (.*)", "必须是表，至少含一项：{0}"),
        (r"must be a table such as .*", "必须是表，如 {{ yellow = 15, red = 40 }}"),
        (r'must be \{ zh = .*', '必须写成 {{ zh = "…", en = "…" }}'),
        (r"must be \{ margin = .*", '必须写成 {{ margin = "10%", hold = "5min" }}，或 true'),
        (r"must be \{ times = .*", '必须写成 {{ times = 3, within = "10min" }}'),
        (r'must be a number, or "0%" to "100%" of the limit', '必须是数字，或限值的 "0%" 至 "100%"'),
        (r"(\w+) must not be below (\w+)", "{0} 的限值不能小于 {1} 的"),
        (r"(\w+) must not be above (\w+)", "{0} 的限值不能大于 {1} 的"),
        (r"must be below max", "必须小于 max"),
        (r"the rule has no such level", "该规则没有这一级"),
        (r"is so wide that the alert could never clear", "过宽，报警将永远无法解除"),
        (r"must be above 0: the side tells the direction of a change", "必须大于 0：方向由 side 表示"),
        (r"must be at least (.*) sigmas", "至少为 {0} 倍标准差"),
        (r"must be 0 to 10 sigmas", "必须是 0 至 10 倍标准差"),
        (r"must be above 0 and at most (.*) false alerts per sensor and year", "必须大于 0，至多每测点每年 {0} 次误报"),
        (r"needs over: it is about several sensors", "须与 over 并用：它只用于多个测点"),
        (r"needs along", "须与 along 并用"),
        (r'must be "%" or left out', '只能是 "%"，或不写'),
        (r'must be "device/property" or a property, .*', "必须是 device/property 或 property，可含 {{device}} 等"),
        (r"must not be longer for a higher level", "级别越高，窗口不得越长"),
        (r"has none for (\w+)", "缺少 {0} 的"),
        (r"the longest is more than (\d+) times the shortest: .*", "最长的超过最短的 {0} 倍：请写成两条规则"),
        (r"must be min or mean", "只能是 min 或 mean"),
        (r"must be the name of an attribute of the sensor's asset", "必须是测点所在设施的属性名"),
        (r"is of (?:readings|values); a composite has none of its own", "组合规则没有自己的读数，不能用"),
        (r"is missing: which rules\? .*", "缺少：哪些规则？all = […]、any = […]、not = […]"),
        (r"could hold where nothing has happened: .*", "什么都没发生也可能成立：须有一条看该处自身、且必须打开的规则"),
        (r"there is no rule (.*)|no rule (.*) in this file", "文件中没有规则 {0}"),
        (r"(.*) follows other rules itself; nest a table in its place", "{0} 自身引用其他规则；请在原处嵌套一张表"),
        (r"(.*) judges silence, by the clock; .*", "{0} 按时钟判断离线，组合规则只能引用判断读数的规则"),
        (r"composite rules cannot follow this one", "组合规则不能引用这一条"),
        (r'must be "alert", or "condition" .*', '只能是 "alert"，或 "condition"（只供组合规则引用）'),
        (r"must name at least one rule", "至少写一条规则"),
        (r"must be the id of a rule.*", "必须是规则编号，或描述规则的表"),
        (r"is nested more than (\d+) deep", "嵌套超过 {0} 层"),
        (r"cannot be combined with along or within", "不能与 along、within 并用"),
        (r"starts at an asset or a sensor, not at (\w+)", "须从设施或测点出发，不能从 {0} 出发"),
        (r"(.*) has two of (\w+)", "{0} 写了两个 {1}"),
        (r"must be 0, 1, 2 or 3", "只能是 0、1、2、3"),
        (r"needs level_from: .*", "须与 level_from 并用"),
        (r"is missing: how far away is a neighbour\? .*", '缺少：多近算相邻？如 "50m"、"1.5km"'),
        (r'must be "any", "all", or how many', '只能是 "any"、"all" 或数目'),
        (r"cannot be overridden in a rule of detector (.*)", "检测方法为 {0} 的规则不能覆盖此字段"),
        (r"the override has no scope: it names (.*)", "覆盖没有写范围：可用 {0}"),
        (r"the override changes nothing", "这条覆盖什么也没改"),
        (r"names areas of different depth; make several overrides", "各区域的层级不同，请分写几条"),
        (r"(?:sensor )?(.*) has this field from (.*?) too(?:, which.*)?", "{0} 的这个字段也由 {1} 给出，范围同样窄"),
        (r"must be a list of numbers from 1 to (\d+)", "必须是列表，各项为 1 至 {0}"),
        (r"must be (?:a list|texts) such as .*22:00-06:00.*", '必须是列表，如 ["22:00-06:00"]'),
        (r"must not end where they begin", "起止时刻不能相同"),
        (r"must be a name such as .*Shanghai.*", '必须是时区名，如 "Asia/Shanghai"，或 "+08:00"'),
        (r"is missing: a mute time recurs", "缺少：免打扰时段须写明时间"),
        (r"is missing: a (\w+) has an end", "缺少：{0} 须有结束时刻"),
        (r"must lie after from \((.*)\)", "必须晚于 from（{0}）"),
        (r"must be a list of (.*)", "必须是列表，可含 {0}"),
        (r"is missing: equal or along says which .*", "缺少：equal 或 along 须说明哪些目标属于哪个源"),
        (r"must be of (.*)", "只能含 {0}"),
        (r"must be an array of tables: (.*)", "必须写成表的数组：{0}"),
        (r"no rules; for an empty set say rule = \[\]", "没有规则；空规则集应写为 rule = []"),
        (r"nested too deeply", "嵌套过深"),
        (r"not TOML: (.*)", "不是有效的 TOML：{0}"),
        (r"not JSON: (.*)", "不是有效的 JSON：{0}"),
        (r"not UTF-8", "不是 UTF-8 编码"),
        (r"larger than (\d+) MiB", "大于 {0} MiB"),
        (r"is missing: a table, or several \[\[test\.sensor\]\]", "缺少：一张表，或几个 [[test.sensor]]"),
        (r"must be an RFC 3339 time with its zone, in quotes", "必须是带时区的 RFC 3339 时刻，写在引号里"),
        (r"lies before the last reading", "早于最后一个读数"),
        (r"(.*) is none of 12\.5, .*", "{0} 不是 12.5、0x5、0+2x5、_、null、@10min、/30s 中的任何一种"),
        (r"(.*) names none of (.*) after its time", "{0} 的时间之后没有 {1} 中的任何一个"),
        (r'must be a list such as \["6min .*', '必须是列表，如 ["6min raised blue road-ponding"]；没有则写 []'),
        (r"must be a list of ids", "必须是编号的列表"),
        (r'must be a text such as "0x5 12 18x3 _"', '必须是文字，如 "0x5 12 18x3 _"'),
    )
]  # fmt: skip


@lru_cache(1024)
def in_chinese(text: str) -> str:
    """What a mistake's text means, in Chinese; empty where it has Chinese in it already, or is not known here."""
    for pattern, zh in _SAID:
        found = pattern.fullmatch(text)
        if found is not None:
            return zh.format(*[group for group in found.groups() if group is not None] or [""])
    return ""


def said(problem: Problem) -> str:
    """A mistake as a line for people: place, field, what is wrong, in both languages where it is known."""
    zh = in_chinese(problem.text)
    return f"{problem} / {zh}" if zh else str(problem)
