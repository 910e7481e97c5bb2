"""What can be behind what: kinds of alerts by what they are a sign of, and which sign explains which others where.

Distances and times are engineering defaults [E] unless a row says otherwise.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from twin.model import HOUR, MINUTE, Micros


class Sign(NamedTuple):
    """What an alert is a sign of. `rank`: the higher the more it is a cause that somebody can mend (0: of the devices
    themselves). `family`: signs of one family that are near each other at one time belong together. `zh`, `en`: what
    it is called; `many_zh`, `many_en`: of several."""

    rank: int
    family: str
    zh: str
    en: str
    many_en: str


SIGNS: Final[dict[str, Sign]] = {
    "power": Sign(5, "power", "供电中断", "power failure", "power failures"),
    "pump": Sign(4, "pump", "水泵停运", "pump stopped", "stopped pumps"),
    "pump-idle": Sign(4, "pump", "应启泵而未启泵", "pump not running", "pumps not running"),
    "pump-silent": Sign(4, "pump", "水泵失联", "pump silent", "silent pumps"),
    "pressure": Sign(3, "supply", "供水压力异常", "water pressure", "water pressures"),
    "supply-flow": Sign(3, "supply", "供水流量异常", "water flow", "water flows"),
    "gas-supply": Sign(3, "gas", "燃气压力流量异常", "gas supply", "gas pressures and flows"),
    "rain": Sign(2, "rain", "降雨", "rain", "rain gauges"),
    "methane": Sign(1, "gas", "甲烷浓度异常", "methane", "methane readings"),
    "level": Sign(1, "drain", "排水水位流量异常", "drain level", "drain levels"),
    "ponding": Sign(1, "drain", "积水", "ponding", "pondings"),
    "tank": Sign(1, "supply", "水池水位异常", "tank level", "tank levels"),
    "quality": Sign(1, "supply", "水质异常", "water quality", "water qualities"),
    "noise": Sign(1, "supply", "漏水噪声", "leak noise", "leak noises"),
    "cover": Sign(1, "cover", "井盖异常", "manhole cover", "manhole covers"),
    "air": Sign(1, "air", "有限空间气体异常", "air in a confined space", "confined spaces"),
    "bridge": Sign(1, "bridge", "桥梁结构异常", "bridge", "bridge sensors"),
    "silence": Sign(0, "silence", "设备离线", "silence", "silent devices"),
    "device": Sign(0, "device", "设备状态异常", "device", "devices"),
    "other": Sign(1, "other", "其他异常", "other alert", "other alerts"),
}

_BY_KIND: Final = {
    "drainage.pump_running": "pump", "drainage.rainfall": "rain", "drainage.level": "level", "drainage.flow": "level",
    "manhole.level": "level", "drainage.ponding_depth": "ponding", "water.pressure": "pressure",
    "water.flow": "supply-flow", "water.level": "tank", "water.turbidity": "quality", "water.chlorine": "quality",
    "water.ph": "quality", "water.noise": "noise", "gas.methane": "methane", "manhole.methane": "methane",
    "gas.pressure": "gas-supply", "gas.flow": "gas-supply", "manhole.tilt": "cover", "manhole.open": "cover",
}  # fmt: skip
# Kinds that users add: by what they measure, then by their domain.
_BY_QUANTITY: Final = {"pump_running": "pump", "rainfall": "rain", "power": "power", "mains": "power"}
_BY_DOMAIN: Final = {"confined": "air", "bridge": "bridge", "device": "device", "manhole": "cover"}


def sign_of(kind: str | None, detector: str | None, domain: str = "") -> str:
    """What an alert of a rule with this detector on a sensor of this kind (None: on a group) is a sign of: a key of
    `SIGNS`."""
    known = _BY_KIND.get(kind or "")
    quantity = (kind or "").rpartition(".")[2]
    if known is None:
        known = _BY_QUANTITY.get(quantity)
    if detector == "offline":
        return "pump-silent" if known == "pump" else "silence"
    if detector == "stuck":
        return "device"
    return known or _BY_DOMAIN.get((kind or "").partition(".")[0] or domain, "other")


class Row(NamedTuple):
    """A sign of kind `cause` explains one of kind `effect` that lies `along` the network of it (`upstream`,
    `downstream`; None: does not matter), no further than `within_m`; where one of them is in no network, and for None,
    no further than `near_m` in the plane. In time: from `slack` before the cause (sensors report at intervals, and
    holds differ) to `after` its beginning, or `tail` after its end. `zh`, `en`: how it is told, `{}` the effects."""

    cause: str
    effect: str
    along: Literal["upstream", "downstream"] | None
    within_m: float
    near_m: float
    zh: str
    en: str
    slack: Micros = 10 * MINUTE
    after: Micros = 24 * HOUR
    tail: Micros = HOUR


_FAR: Final = float("inf")
_PUMPS: Final = ("pump", "pump-idle", "pump-silent")
ROWS: Final[tuple[Row, ...]] = (
    *(Row("power", effect, None, 0, 300, "{}在停电点 300 m 内", "{} within 300 m of the power failure")
      for effect in (*_PUMPS, "silence")),
    # That none runs is concluded from the water before it; that one stopped is seen at itself.
    Row("pump", "pump-idle", None, 0, 300, "{}在停泵 300 m 内", "{} within 300 m of the pump"),
    # What a pump no longer lifts stands before it, and is missing behind it.
    *(Row(pump, "level", "upstream", _FAR, 2000, "{}位于停泵上游", "{} upstream of the pump") for pump in _PUMPS),
    *(Row(pump, "level", "downstream", _FAR, 0, "{}位于停泵下游", "{} downstream of the pump") for pump in _PUMPS),
    *(Row(pump, "ponding", None, 0, 1500, "{}在停泵 1.5 km 内", "{} within 1.5 km of the pump") for pump in _PUMPS),
    *(Row(pump, effect, "downstream", _FAR, 1500, "{}位于停泵下游", "{} downstream of the pump")
      for pump in _PUMPS for effect in ("pressure", "supply-flow", "tank")),
    *(Row("rain", effect, None, 0, 5000, "{}在降雨点 5 km 内", "{} within 5 km of the rain gauge", tail=3 * HOUR)
      for effect in ("level", "ponding", "cover", "rain")),
    # A burst shows where it is first; the water that leaves stirs up, and stands on roads.
    *(Row("pressure", effect, None, 0, 500, "{}在失压点 500 m 内", "{} within 500 m of the lost pressure")
      for effect in ("pressure", "supply-flow", "quality", "ponding", "noise")),
    *(Row("supply-flow", effect, None, 0, 500, "{}在流量异常点 500 m 内", "{} within 500 m of the changed flow")
      for effect in ("pressure", "quality", "ponding")),
    *(Row("gas-supply", effect, None, 0, 500, "{}在燃气异常点 500 m 内", "{} within 500 m of the gas supply's change")
      for effect in ("gas-supply", "methane")),
    Row("level", "ponding", None, 0, 300, "{}在高水位点 300 m 内", "{} within 300 m of the high level"),
    Row("level", "cover", None, 0, 50, "{}在高水位点 50 m 内", "{} within 50 m of the high level"),
)  # fmt: skip

EXPLAINS: Final[dict[tuple[str, str], tuple[Row, ...]]] = {
    pair: tuple(row for row in ROWS if (row.cause, row.effect) == pair)
    for pair in {(row.cause, row.effect) for row in ROWS}
}
# What each sign is explained by and explains, and those of its family, as they are looked for.
EFFECTS: Final = {sign: tuple(dict.fromkeys(row.effect for row in ROWS if row.cause == sign)) for sign in SIGNS}
CAUSES: Final = {sign: tuple(dict.fromkeys(row.cause for row in ROWS if row.effect == sign)) for sign in SIGNS}
FAMILY: Final = {
    sign: frozenset(o for o, other in SIGNS.items() if other.family == SIGNS[sign].family) for sign in SIGNS
}
# Signs that reach far are few, and looked through one by one; the others are looked for around a place.
FAR_SIGNS: Final = ("power", *_PUMPS, "rain")
AROUND_M: Final = 500.0  # what is looked for around a place lies no further

# Signs of one family belong together without a cause: within NEAR_M in the plane, or ALONG_M along the network whatever
# the flow, when their times are no further apart than NEAR_IN_TIME. Families not named here: on one asset only.
NEAR_M: Final = 300.0
ALONG_M: Final = 500.0
NEAR_IN_TIME: Final[Micros] = 30 * MINUTE
# What joined by being near lies no further than this from where its incident began: a storm is no chain over a city.
SPREAD_M: Final = 2000.0
NEAR_FAMILIES: Final = frozenset({"supply", "gas", "drain", "silence", "pump"})
