"""What an alert says in its one line: value, limit, since when, evidence; Chinese and English."""

from __future__ import annotations

import math
from dataclasses import replace

from alerts_city import MINUTE, SECOND, T0, catalog, feed, rules, sensor

from alerts.engine import Engine
from alerts.words import message
from twin.model import Transition, iso

SINCE, TITLE = iso(T0), 'title = { zh = "积水", en = "Ponding" }'
CITY = catalog(sensor(0, asset="下穿3号"))


def lines(body: str, *values: float) -> list[tuple[str, str]]:
    """What a rule says of readings, one a minute."""
    given = rules(f'[[rule]]\nid = "r"\n{TITLE}\nkind = "drainage.ponding_depth"\n{body}')
    told = feed(Engine(given, CITY), [(0, T0 + n * MINUTE, value) for n, value in enumerate(values)])
    return [message(given.rules[0], CITY, t, "下穿3号") for t in told]


def test_an_alert_says_value_limit_and_since_when_it_has_been_so() -> None:
    held = 'detector = "threshold"\nlevels = { yellow = 15, red = 40 }\nhold = { yellow = "2min" }\n'
    assert lines(held, 16, 17, 18, 41, 20, 3) == [
        (
            f"黄色报警 积水：下穿3号（d0/v） 18 cm（限值 15 cm，自 {SINCE}）",
            f"YELLOW Ponding: 下穿3号 (d0/v) 18 cm (limit 15 cm, since {SINCE})",
        ),
        ("红色报警 积水：下穿3号（d0/v） 41 cm（限值 40 cm）", "RED Ponding: 下穿3号 (d0/v) 41 cm (limit 40 cm)"),
        (
            "降为黄色 积水：下穿3号（d0/v） 20 cm（已回到限值内 40 cm）",
            "eased to YELLOW Ponding: 下穿3号 (d0/v) 20 cm (back inside 40 cm)",
        ),
        ("积水 解除：下穿3号（d0/v） 3 cm（限值 15 cm）", "Ponding cleared: 下穿3号 (d0/v) 3 cm (limit 15 cm)"),
    ]
    stuck = lines('detector = "stuck"\nfor = "2h"\n', *[7.0] * 121)
    assert stuck == [
        (
            f"蓝色报警 积水：下穿3号（d0/v） 2 小时未变化，7 cm，自 {SINCE}",
            f"BLUE Ponding: 下穿3号 (d0/v) unchanged for 2 h at 7 cm, since {SINCE}",
        )
    ]


def test_a_yes_or_no_says_to_what() -> None:
    given = rules(
        f'[[rule]]\nid = "r"\n{TITLE}\nkind = "drainage.pump_running"\ndetector = "threshold"\nside = "below"\n'
        'levels = { orange = 0 }\nhold = "1min"\n'
    )
    city = catalog(sensor(0, "drainage.pump_running", asset="泵站"))
    told = feed(Engine(given, city), [(0, T0, 0.0), (0, T0 + MINUTE, 0.0), (0, T0 + 2 * MINUTE, 1.0)])
    assert [message(given.rules[0], city, t, "泵站") for t in told] == [
        (
            f"橙色报警 积水：泵站（d0/v） 水泵运行：否（自 {SINCE}）",
            f"ORANGE Ponding: 泵站 (d0/v) Pump running: no (since {SINCE})",
        ),
        ("积水 解除：泵站（d0/v） 水泵运行：是", "Ponding cleared: 泵站 (d0/v) Pump running: yes"),
    ]


def test_an_asset_whose_name_is_part_of_a_sensors_does_not_hide_it() -> None:
    given = rules(f'[[rule]]\nid = "r"\n{TITLE}\nkind = "*"\ndetector = "threshold"\nlevels = {{ red = 1 }}\n')
    told = Transition(0, 0, T0, 0, 4, 2.0, 1.0, T0)
    assert message(given.rules[0], catalog(sensor(0, asset="0")), told, "0")[1].startswith("RED Ponding: 0 (d0/v) 2 cm")
    assert message(given.rules[0], catalog(sensor(0)), told, "d0")[1].startswith("RED Ponding: d0 2 cm")


def test_silence_says_since_when_nothing_has_come() -> None:
    silent = rules(f'[[rule]]\nid = "r"\n{TITLE}\nkind = "*"\ndetector = "offline"\n').rules[0]
    told = Transition(0, 0, T0 + 210 * SECOND, 0, 1, math.nan, 210.0, T0 + 311_824)
    assert message(silent, CITY, told, "下穿3号") == (
        f"蓝色报警 积水：下穿3号（d0/v） 超过 3.5 分钟无数据（自 {SINCE}）",
        f"BLUE Ponding: 下穿3号 (d0/v) silent for more than 3.5 min (since {SINCE})",
    )
    city = replace(told, sensor=-1, subject="domain/gas", threshold=math.nan)
    assert message(silent, CITY, city, "domain/gas") == (
        f"蓝色报警 积水：燃气（domain/gas） 全部测点无数据（自 {SINCE}）",
        f"BLUE Ponding: gas (domain/gas) all sensors silent (since {SINCE})",
    )
    gateway = replace(told, sensor=-1, subject="water-co/gateway")
    assert message(silent, CITY, gateway, "")[0].startswith(
        "蓝色报警 积水：网关（water-co/gateway） 超过 3.5 分钟无数据"
    )


def test_what_is_less_unusual_is_not_said_to_be_usual() -> None:
    body = 'detector = "baseline"\nlevels = { blue = 6, yellow = 10 }\n'
    given = rules(f'[[rule]]\nid = "r"\n{TITLE}\nkind = "drainage.ponding_depth"\n{body}')
    eased = Transition(0, 0, T0, 2, 1, 30.0, 31.0, T0, note=1)
    assert message(given.rules[0], CITY, eased, "下穿3号") == (
        f"降为蓝色 积水：下穿3号（d0/v） 30 cm（已回到 31 cm 以内，自 {SINCE}）",
        f"eased to BLUE Ponding: 下穿3号 (d0/v) 30 cm (back inside 31 cm, since {SINCE})",
    )
    assert "back within what is expected" in message(given.rules[0], CITY, replace(eased, after=0), "下穿3号")[1]


def test_what_eases_keeps_the_words_of_its_evidence() -> None:
    both = rules(
        '[[rule]]\nid = "a"\nkind = "*"\ndetector = "threshold"\nlevels = { yellow = 1, red = 2 }\n'
        '[[rule]]\nid = "b"\ndetector = "composite"\nall = ["a"]\nlevel_from = ["a"]\n'
    )
    told = Transition(1, 0, T0, 4, 2, math.nan, math.nan, T0, evidence=("超过限值（d0/v）", "over the limit (d0/v)"))
    assert message(both.rules[1], CITY, told, "下穿3号") == (
        "降为黄色 b：下穿3号（d0/v） 超过限值（d0/v）", "eased to YELLOW b: 下穿3号 (d0/v) over the limit (d0/v)"
    )  # fmt: skip
