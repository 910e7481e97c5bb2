"""A made-up district (示范新区) whose devices the demo simulates: what they would publish, by simulated time.

Everything follows from the start, the seed and the time asked for: any span of time gives the same messages, however
it is cut. In the course of the first quarter of an hour a cover is opened, a main bursts, gas leaks, a bridge is
overloaded and a battery dies (`EVENTS`); one pressure point has been stuck from the beginning.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from twin.demo.district import asset_places
from twin.model import SECOND, Micros, Sensor

WATER, GAS, DRAINAGE, ROADS, BRIDGES = "demo-water", "demo-gas", "demo-drainage", "demo-roads", "demo-bridges"

# Seconds after the start at which things happen, and are over.
COVER_OPENS, COVER_CLOSED = 60.0, 2400.0
MAIN_BURSTS, MAIN_REPAIRED = 90.0, 5400.0
GAS_LEAKS, GAS_SHUT_OFF = 120.0, 3600.0
BATTERY_DIES = 420.0
TRUCK_CROSSES, SECOND_TRUCK_CROSSES = 240.0, 660.0
RAIN_BEGINS, RAIN_ENDS = 300.0, 3900.0

OPENED_COVER, DYING_COVER = "mc-07", "mc-03"
BURST_AT, STUCK_AT = "wp-09", "wp-14"
LEAK_AT, OVERLOADED_BRIDGE = "gm-05", "br-1"

EVENTS: Final[tuple[tuple[float, str, str], ...]] = (
    (0.0, f"压力测点 {STUCK_AT} 一直卡在同一数值", f"pressure point {STUCK_AT} has been stuck at one value all along"),
    (COVER_OPENS, f"井盖 {OPENED_COVER} 被打开", f"manhole cover {OPENED_COVER} is opened"),
    (MAIN_BURSTS, f"{BURST_AT} 附近供水干管爆管", f"a water main bursts near {BURST_AT}"),
    (GAS_LEAKS, f"{LEAK_AT} 附近燃气泄漏", f"gas leaks near {LEAK_AT}"),
    (TRUCK_CROSSES, f"超重车驶过 {OVERLOADED_BRIDGE} 号桥", f"an overweight truck crosses bridge {OVERLOADED_BRIDGE}"),
    (RAIN_BEGINS, "开始下雨", "it begins to rain"),
    (BATTERY_DIES, f"井盖 {DYING_COVER} 电池耗尽，不再上报", f"cover {DYING_COVER}: battery dead, silent from now on"),
    (SECOND_TRUCK_CROSSES, "又一辆超重车过桥", "another overweight truck"),
    (COVER_CLOSED, f"井盖 {OPENED_COVER} 已复位", f"cover {OPENED_COVER} is back in place"),
    (GAS_SHUT_OFF, "燃气阀门关闭", "the gas is shut off"),
    (MAIN_REPAIRED, "爆管修复", "the main is repaired"),
)  # fmt: skip

PRESSURES, METERS, QUALITY_POINTS = 16, 4, 4
WELLS, GAS_STATIONS, COVERS, BRIDGE_COUNT = 16, 6, 12, 2
STRAINS, DEFLECTIONS, ACCELEROMETERS = 4, 2, 2
DRAIN_WELLS, GAUGES, PUMPS, UNDERPASSES = 6, 2, 2, 2
WAVEFORM_HZ, WAVEFORM_S = 50, 5
DYING_INTERVAL_S = 10.0
VEHICLE_SLOT_S = 30.0

Message = tuple[Micros, str, bytes]
_encode: Final = msgspec.json.Encoder().encode
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Round:
    """What is published every `every_s`, first `offset_s` after the start: `tell(tick, t_s)` gives the messages as
    (seconds after the tick, topic, payload)."""

    every_s: float
    offset_s: float
    tell: Callable[[int, float], Iterator[tuple[float, str, Any]]]


class District:
    """The devices of the district from `start` (µs, whole milliseconds) on."""

    def __init__(self, start: Micros, seed: int = 1) -> None:
        self.start = start // 1000 * 1000
        self.sensors = city_sensors()
        self._seed = seed
        self._rounds = (
            _Round(60, 2, self._water_network),
            _Round(60, 7, self._water_quality),
            _Round(60, 11, self._gas_wells),
            _Round(60, 17, self._gas_stations),
            _Round(60, 23, self._covers),
            _Round(DYING_INTERVAL_S, 3, self._dying_cover),
            _Round(60, 29, self._bridges),
            _Round(60, 0, self._vibration),
            _Round(VEHICLE_SLOT_S, 0, self._vehicles),
            _Round(60, 41, self._drainage),
        )

    def messages(self, from_at: Micros, to_at: Micros) -> list[Message]:
        """What is published in [from_at, to_at): (observed_at µs, topic, payload), in time order."""
        found: list[Message] = []
        for place in self._rounds:
            every, first = round(place.every_s * SECOND), self.start + round(place.offset_s * SECOND)
            tick = max(0, (from_at - first) // every - 1)  # a round's messages may follow its tick by up to one round
            while (at := first + tick * every) < to_at:
                for later_s, topic, body in place.tell(tick, (at - self.start) / SECOND):
                    moment = at + round(later_s * 1000) * 1000
                    if from_at <= moment < to_at:
                        found.append((moment, topic, _encode(_timed(body, moment // 1000))))
                tick += 1
        found.sort(key=lambda message: message[0])
        return found

    # ---- chance, the same for the same question

    def _bits(self, what: str, tick: int) -> int:
        """64 even bits by splitmix64."""
        z = (zlib.crc32(what.encode()) * 0x9E3779B97F4A7C15 + self._seed * 0xD1B54A32D192ED03 + tick) & _MASK
        for _ in range(2):
            z = (z + 0x9E3779B97F4A7C15) & _MASK
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
            z ^= z >> 31
        return z

    def _even(self, what: str, tick: int) -> float:
        """Evenly spread over 0..1."""
        return self._bits(what, tick) / 2**64

    def _noise(self, what: str, tick: int) -> float:
        """Mean 0, deviation 1, never beyond 3.5."""
        bits = self._bits(what, tick)
        quarters = (bits >> shift & 0xFFFF for shift in (0, 16, 32, 48))
        return (sum(quarters) / 65536 - 2) * math.sqrt(3)

    def _own(self, what: str) -> float:
        """A constant of its own for each point, -1..1."""
        return 2 * self._even(what, -1) - 1

    # ---- water supply

    def _water_network(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        body: dict[str, Any] = {}
        burst = _course(t, MAIN_BURSTS, MAIN_REPAIRED, 20, 600)
        for number in range(1, PRESSURES + 1):
            device = f"wp-{number:02}"
            if device == STUCK_AT:
                body[device] = {"pressure": 0.3518}
                continue
            away = abs(number - int(BURST_AT[3:]))
            drop = burst * (0.27, 0.12, 0.07, 0.03)[away] if away < 4 else 0.0
            pressure = 0.34 + 0.02 * self._own(device) + 0.004 * _daily(t) + 0.0015 * self._noise(device, tick) - drop
            body[device] = {"pressure": round(pressure, 4)}
        for number in range(1, METERS + 1):
            device = f"wf-{number:02}"
            flow = 420 + 60 * self._own(device) + 25 * _daily(t) + 4 * self._noise(device, tick)
            body[device] = {"flow": round(flow * (1 + (0.38 * burst if number == 2 else 0)), 1)}
        yield 0, f"cim/v1/{WATER}/gateway/telemetry", {name: [{"values": values}] for name, values in body.items()}

    def _water_quality(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        stirred = _course(t, MAIN_BURSTS + 120, MAIN_REPAIRED, 180, 1800)
        for number in range(1, QUALITY_POINTS + 1):
            device = f"wq-{number:02}"
            noise = self._noise(device, tick)
            values = {
                "turbidity": round(
                    0.28 + 0.05 * self._own(device) + 0.015 * noise + (1.9 * stirred if number == 3 else 0), 3
                ),
                "chlorine": round(0.42 + 0.05 * self._own(device) + 0.01 * self._noise(device + "c", tick), 3),
                "ph": round(7.5 + 0.1 * self._own(device) + 0.02 * self._noise(device + "p", tick), 2),
            }
            yield number * 0.25, f"cim/v1/{WATER}/{device}/telemetry", {"values": values}

    # ---- gas

    def _gas_wells(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        shut_off = min(1.0, max(0.0, (t - GAS_SHUT_OFF) / 900))
        for number in range(1, WELLS + 1):
            device = f"gm-{number:02}"
            away = abs(number - int(LEAK_AT[3:]))
            since = t - GAS_LEAKS - 60 * away
            level = 0.0
            if away <= 2 and since > 0:
                level = (3.4, 1.9, 0.35)[away] * (1 - math.exp(-since / 200)) * (1 - shut_off)
            methane = max(0.0, level * (1 + 0.02 * self._noise(device, tick)))
            battery = 88 - 10 * abs(self._own(device)) - t / 86400
            yield (
                number * 0.125,
                f"cim/v1/{GAS}/{device}/senml",
                [
                    {"bn": f"{device}:", "bt": None, "n": "methane", "v": round(methane, 3)},
                    {"n": "battery", "u": "%EL", "v": round(battery, 1)},
                ],
            )

    def _gas_stations(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        leak = _course(t, GAS_LEAKS, GAS_SHUT_OFF, 300, 300)
        for number in range(1, GAS_STATIONS + 1):
            device = f"gp-{number:02}"
            pressure = 200 * (1 - (0.08 * leak if number == 2 else 0)) + 2 * self._own(device)
            flow = 650 + 80 * self._own(device + "f") + 40 * _daily(t)
            values = {
                "pressure": round(pressure + 0.4 * self._noise(device, tick), 2),
                "flow": round(flow * (1 + (0.2 * leak if number == 2 else 0)) + 5 * self._noise(device + "f", tick), 1),
            }
            yield number * 0.25, f"cim/v1/{GAS}/{device}/telemetry", {"values": values}

    # ---- manhole covers

    def _covers(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        for number in range(1, COVERS + 1):
            device = f"mc-{number:02}"
            if device != DYING_COVER:
                battery = 90 - 20 * abs(self._own(device)) - t / 86400
                yield number * 0.25, *self._cover(device, tick, t, battery)

    def _dying_cover(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        if t < BATTERY_DIES:
            yield 0, *self._cover(DYING_COVER, tick, t, 21.5 - 2.0 * t / 60)

    def _cover(self, device: str, tick: int, t: float, battery: float) -> tuple[str, Any]:
        is_open = device == OPENED_COVER and COVER_OPENS <= t < COVER_CLOSED
        values = {
            "tilt": round((76.0 if is_open else 0.8 + 0.3 * self._own(device)) + 0.1 * self._noise(device, tick), 2),
            "open": is_open,
            "h2s": round(max(0.0, 1.2 + 0.5 * self._own(device) + 0.15 * self._noise(device + "h", tick)), 2),
            "battery": round(max(0.0, battery), 1),
        }
        return f"cim/v1/{ROADS}/{device}/telemetry", {"values": values}

    # ---- bridges

    def _load(self, bridge: int, t: float) -> float:
        """1 while an overweight truck is on the bridge (45 s each), else 0."""
        crossings = (TRUCK_CROSSES, SECOND_TRUCK_CROSSES) if f"br-{bridge}" == OVERLOADED_BRIDGE else ()
        return float(any(at <= t < at + 45 for at in crossings))

    def _bridges(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        names: list[str] = []
        values: list[float] = []
        for bridge in range(1, BRIDGE_COUNT + 1):
            load = self._load(bridge, t)
            for number in range(1, STRAINS + 1):
                name = f"br-{bridge}/strain_{number}"
                names.append(name)
                values.append(
                    round(85 + 12 * self._own(name) + 4 * _daily(t) + 3 * self._noise(name, tick) + 160 * load, 1)
                )
            for number in range(1, DEFLECTIONS + 1):
                name = f"br-{bridge}/deflection_{number}"
                names.append(name)
                values.append(round(6 + self._own(name) + 0.5 * self._noise(name, tick) + 14 * load, 2))
            name = f"br-{bridge}/temperature"
            names.append(name)
            values.append(round(24 + 3 * _daily(t) + 0.1 * self._noise(name, tick), 1))
        yield 0, f"cim/v1/{BRIDGES}/gateway/telemetry", {"s": names, "t": [None] * len(names), "v": values}

    def _vibration(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        seconds = np.arange(WAVEFORM_HZ * WAVEFORM_S) / WAVEFORM_HZ
        for bridge in range(1, BRIDGE_COUNT + 1):
            amplitude = 0.62 if self._load(bridge, t) else 0.03
            values = {}
            for number in range(1, ACCELEROMETERS + 1):
                name = f"br-{bridge}/acc_{number}"
                chance = np.random.default_rng(self._bits(name, tick))
                wave = amplitude * np.sin(2 * math.pi * (2.4 + 0.3 * bridge) * seconds + chance.uniform(0, 6.28))
                values[f"acc_{number}"] = np.round(wave + chance.normal(0, 0.006, len(seconds)), 4).tolist()
            body = {"rate_hz": WAVEFORM_HZ, "values": values}
            yield bridge * 0.25, f"cim/v1/{BRIDGES}/br-{bridge}/waveform", body

    def _vehicles(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        for bridge in range(1, BRIDGE_COUNT + 1):
            device = f"br-{bridge}"
            chance = self._even(device, tick)
            later = 1 + 27 * self._even(device + "when", tick)
            weight = 1.3 + 6 * chance if chance < 0.8 else 12 + 30 * (chance - 0.8) / 0.2
            if self._load(bridge, t) and not self._load(bridge, t - VEHICLE_SLOT_S):
                weight, later = (82.4 if t < SECOND_TRUCK_CROSSES else 71.0), 1.0
            topic = f"cim/v1/{BRIDGES}/{device}/telemetry"
            yield later, topic, {"values": {"vehicle_weight": round(weight, 2)}}

    # ---- drainage

    def _drainage(self, tick: int, t: float) -> Iterator[tuple[float, str, Any]]:
        rain = _course(t, RAIN_BEGINS, RAIN_ENDS, 300, 300)
        water = _course(t, RAIN_BEGINS + 300, RAIN_ENDS + 1800, 1200, 3600)
        told: list[tuple[str, dict[str, Any]]] = []
        for number in range(1, DRAIN_WELLS + 1):
            device = f"dw-{number:02}"
            level = 0.35 + 0.1 * self._own(device) + 0.8 * water + 0.01 * self._noise(device, tick)
            told.append((device, {"level": round(level, 3)}))
        for number in range(1, GAUGES + 1):
            device = f"rg-{number:02}"
            told.append((device, {"rainfall": round(rain * 0.2 * round(1 + 2 * self._even(device, tick)), 1)}))
        told += [(f"pu-{number:02}", {"running": water > 0.3 * number}) for number in range(1, PUMPS + 1)]
        for number in range(1, UNDERPASSES + 1):
            device = f"up-{number:02}"
            depth = 3.2 * water + (0.1 * self._noise(device, tick) if water > 0.1 else 0)
            told.append((device, {"depth": round(max(0.0, depth), 1)}))
        for place, (device, values) in enumerate(told):
            yield place * 0.25, f"cim/v1/{DRAINAGE}/{device}/telemetry", {"values": values}


def _course(t: float, begins: float, ends: float, rise_s: float, fall_s: float) -> float:
    """0 before, rising to 1 in `rise_s` from `begins`, falling to 0 in `fall_s` from `ends`."""
    return max(0.0, min(1.0, (t - begins) / rise_s, 1 - (t - ends) / fall_s))


def _daily(t: float) -> float:
    return math.sin(2 * math.pi * t / 86400)


def _timed(body: Any, at_ms: int) -> Any:
    """The payload with its time put where its form has one."""
    if isinstance(body, list):
        return [record | {"bt": at_ms / 1000} if "bt" in record else record for record in body]
    if "s" in body:
        return body | {"t": [at_ms] * len(body["t"])}
    if "values" in body:
        return {"ts": at_ms, **body}
    return {name: [{"ts": at_ms, **entry} for entry in entries] for name, entries in body.items()}


def city_sensors() -> list[Sensor]:
    """The district's measuring points, each where its asset stands."""
    found: list[Sensor] = []
    places = asset_places()

    def add(
        tenant: str,
        device: str,
        prop: str,
        kind: str,
        unit: str,
        asset: str,
        low: float | None = None,
        high: float | None = None,
        every_s: float | None = 60.0,
        *tags: str,
    ) -> None:
        lon, lat = places[asset]
        found.append(Sensor(device, prop, kind, unit, tenant, asset, lon, lat, every_s, low, high, ("demo", *tags)))

    for n in range(1, PRESSURES + 1):
        add(WATER, f"wp-{n:02}", "pressure", "water.pressure", "MPa", f"示范新区供水阀井{n}号", -0.1, 1.6)
    for n in range(1, METERS + 1):
        add(WATER, f"wf-{n:02}", "flow", "water.flow", "m³/h", f"示范新区供水干管{n}号", 0, 3000)
    for n in range(1, QUALITY_POINTS + 1):
        asset = f"示范新区水质监测站{n}号"
        add(WATER, f"wq-{n:02}", "turbidity", "water.turbidity", "NTU", asset, 0, 100)
        add(WATER, f"wq-{n:02}", "chlorine", "water.chlorine", "mg/L", asset, 0, 5)
        add(WATER, f"wq-{n:02}", "ph", "water.ph", "", asset, 0, 14)
    for n in range(1, WELLS + 1):
        asset = f"燃气相邻井{n}号"
        add(GAS, f"gm-{n:02}", "methane", "gas.methane", "%VOL", asset, 0, 100)
        add(GAS, f"gm-{n:02}", "battery", "device.battery", "%", asset, 0, 100)
    for n in range(1, GAS_STATIONS + 1):
        asset = f"燃气调压站{n}号"
        add(GAS, f"gp-{n:02}", "pressure", "gas.pressure", "kPa", asset, 0, 400)
        add(GAS, f"gp-{n:02}", "flow", "gas.flow", "m³/h", asset, 0, 5000)
    for n in range(1, COVERS + 1):
        device, asset = f"mc-{n:02}", f"长江路井盖{n}号"
        every_s = DYING_INTERVAL_S if device == DYING_COVER else 60.0
        add(ROADS, device, "tilt", "manhole.tilt", "°", asset, 0, 180, every_s)
        add(ROADS, device, "open", "manhole.open", "bool", asset, None, None, every_s)
        add(ROADS, device, "h2s", "confined.h2s", "mg/m³", asset, 0, 150, every_s)
        add(ROADS, device, "battery", "device.battery", "%", asset, 0, 100, every_s)
    for bridge in range(1, BRIDGE_COUNT + 1):
        device, asset = f"br-{bridge}", ("彩虹桥", "南淝河大桥")[bridge - 1]
        for n in range(1, STRAINS + 1):
            add(BRIDGES, device, f"strain_{n}", "bridge.strain", "µε", asset, -2000, 2000)
        for n in range(1, DEFLECTIONS + 1):
            add(BRIDGES, device, f"deflection_{n}", "bridge.deflection", "mm", asset, -200, 200)
        for n in range(1, ACCELEROMETERS + 1):
            add(BRIDGES, device, f"acc_{n}", "bridge.acceleration", "m/s²", asset, -20, 20)
        add(BRIDGES, device, "temperature", "bridge.temperature", "°C", asset, -40, 80)
        add(BRIDGES, device, "vehicle_weight", "bridge.vehicle_weight", "t", asset, 0, 200, None)
    for n in range(1, DRAIN_WELLS + 1):
        add(DRAINAGE, f"dw-{n:02}", "level", "drainage.level", "m", f"雨水检查井{n}号", 0, 6)
    for n in range(1, GAUGES + 1):
        add(DRAINAGE, f"rg-{n:02}", "rainfall", "drainage.rainfall", "mm", f"雨量站{n}号", 0, 50)
    for n in range(1, PUMPS + 1):
        add(DRAINAGE, f"pu-{n:02}", "running", "drainage.pump_running", "bool", f"雨水泵站{n}号")
    for n in range(1, UNDERPASSES + 1):
        asset = ("望江路下穿", "铁路桥下穿")[n - 1]
        add(
            DRAINAGE,
            f"up-{n:02}",
            "depth",
            "drainage.ponding_depth",
            "cm",
            asset,
            0,
            300,
            60.0,
            "underpass",
        )
    return found
