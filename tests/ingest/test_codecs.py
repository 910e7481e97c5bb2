"""Payloads as devices and gateways send them, good and bad, by contract 3."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest.codecs
import twin.units
from ingest.codecs import Decoded, decode, find_route
from ingest.codecs.waveform import STATISTICS, summarise_all, summarise_many
from twin.catalog import Catalog, Replacement
from twin.model import DAY, HOUR, MINUTE, SECOND, RawMessage, Reason, Sensor, WaveformBlock, parse_time

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
NOW = parse_time("2026-07-01T08:00:00Z")
NOW_MS = NOW // 1000
SENSORS = [
    Sensor("street-1", "depth", "drainage.ponding_depth", "in", tenant="drains"),
    Sensor("street-1", "battery", "device.battery", "%", tenant="drains"),
    Sensor("street-2", "depth", "drainage.ponding_depth", "cm", tenant="drains"),
    Sensor("pump-1", "running", "drainage.pump_running", "bool", tenant="drains"),
    Sensor("urn:dev:mac:01", "temperature", "bridge.temperature", "°C", tenant="drains"),
    Sensor("bridge-1", "acc_z", "bridge.acceleration", "g", tenant="bridges"),
    Sensor("plain", "ph", "water.ph", ""),
]


def catalog_of(sensors: list[Sensor] = SENSORS) -> Catalog:
    catalog = Catalog(KINDS)
    catalog.put(list(enumerate(sensors)))
    return catalog


CATALOG = catalog_of()


def message(topic: str, payload: Any, received_at: int = NOW) -> RawMessage:
    return RawMessage(topic, payload if isinstance(payload, bytes) else json.dumps(payload).encode(), received_at)


def decoded(*messages: RawMessage, catalog: Catalog = CATALOG, max_bytes: int = 1 << 20) -> Decoded:
    result = decode(messages, catalog, default_tenant="default", max_bytes=max_bytes)
    check_counts(result)
    return result


def check_counts(result: Decoded) -> None:
    refused = sum(reject.readings for reject in result.rejects)
    assert len(result) + len(result.waveforms) + refused == result.received
    assert len(places_of(result)) == result.received


def places_of(result: Decoded) -> set[tuple[int, int]]:
    """Message and position of all that was received."""
    places = set(zip(result.message.tolist(), result.position.tolist(), strict=True))
    places |= {(block.message, block.position) for block in result.waveforms}
    return places | {(reject.message, position) for reject in result.rejects for position in reject.positions}


def rows(result: Decoded, catalog: Catalog = CATALOG) -> list[tuple[str, int, float | None]]:
    return [
        (catalog.sensors[s].id, at - NOW, None if math.isnan(v) else round(v, 9))
        for s, at, v in zip(result.sensor.tolist(), result.observed_at.tolist(), result.value.tolist(), strict=True)
    ]


def refused(result: Decoded) -> list[tuple[str, tuple[int, ...]]]:
    return [(reject.reason.value, reject.positions) for reject in result.rejects]


def device(payload: Any, topic: str = "cim/v1/drains/street-1/telemetry", catalog: Catalog = CATALOG) -> Decoded:
    return decoded(message(topic, payload), catalog=catalog)


def gateway(payload: Any) -> Decoded:
    return decoded(message("cim/v1/drains/gateway/telemetry", payload))


def senml(payload: Any, name: str = "street-1") -> Decoded:
    return decoded(message(f"cim/v1/drains/{name}/senml", payload))


# ---- one device


def test_a_flat_object_is_timed_by_its_receipt_and_converted_to_the_canonical_unit() -> None:
    assert rows(device({"depth": 10})) == [("street-1/depth", 0, 25.4)]


def test_milliseconds_fractions_of_them_and_rfc_3339_texts_are_times_to_the_microsecond() -> None:
    for ts, offset in [
        (NOW_MS - 1, -1000),
        (NOW_MS - 0.5, -500),
        (float(NOW_MS), 0),
        ("2026-07-01T08:00:00.000001Z", 1),
        ("2026-07-01T16:00:00+08:00", 0),
        ("2026-07-01t08:00:00z", 0),
    ]:
        assert rows(device({"ts": ts, "values": {"depth": 1}})) == [("street-1/depth", offset, 2.54)], ts


def test_an_array_holds_many_times_and_bare_objects_in_it_are_timed_by_receipt() -> None:
    result = device(
        [{"ts": NOW_MS - 1000, "values": {"depth": 1, "battery": 50}}, {"values": {"depth": 2}}, {"depth": 3}]
    )
    assert rows(result) == [
        ("street-1/depth", -SECOND, 2.54),
        ("street-1/battery", -SECOND, 50),
        ("street-1/depth", 0, 5.08),
        ("street-1/depth", 0, 7.62),
    ]
    assert result.position.tolist() == [0, 1, 2, 3]
    assert not result.by_gateway.any()


def test_null_is_a_missing_value_and_booleans_are_0_and_1() -> None:
    assert rows(device({"depth": None})) == [("street-1/depth", 0, None)]
    result = device([{"running": True}, {"running": False}], "cim/v1/drains/pump-1/telemetry")
    assert [value for _, _, value in rows(result)] == [1, 0]


@pytest.mark.parametrize("value", ["12", {"a": 1}, [1], b"1e999", b"-1e999", b"1" + b"0" * 400])
def test_a_value_that_is_no_number_is_refused_alone(value: Any) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    result = device(b'{"battery": 50, "depth": ' + text + b"}")
    assert rows(result) == [("street-1/battery", 0, 50)]
    assert refused(result) == [("bad-value", (1,))]


def test_a_value_that_leaves_float64_only_by_its_conversion_is_refused() -> None:
    assert refused(device({"depth": 1.7e308})) == [("bad-value", (0,))]


@pytest.mark.parametrize(
    "ts",
    [
        "2026-07-01T08:00:00",
        "2026-07-01",
        "soon",
        "",
        True,
        None,
        {},
        [],
        b"1e400",
        b"-1e300",
        b"1" + b"0" * 30,
        9007199254740993,
        2**63,
        -(2**63),
        18446744073710000000,
        0,
        NOW_MS + 3_600_001,
        parse_time("1999-12-31T23:59:59.999Z") // 1000,
        "1970-01-01T00:00:00Z",
        "2100-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_a_time_that_is_none_or_before_2000_or_over_an_hour_ahead_is_refused(ts: Any) -> None:
    text = ts if isinstance(ts, bytes) else json.dumps(ts).encode()
    result = device(b'[{"ts": ' + text + b', "values": {"depth": 1, "battery": 2}}, {"depth": 3}]')
    assert refused(result) == [("bad-time", (0, 1))]
    assert rows(result) == [("street-1/depth", 0, 7.62)]
    assert result.rejects[0].device == "street-1"


def test_2000_itself_and_exactly_an_hour_ahead_are_times() -> None:
    for at in (parse_time("2000-01-01T00:00:00Z"), NOW + HOUR):
        assert rows(device({"ts": at // 1000, "values": {"depth": 0}})) == [("street-1/depth", at - NOW, 0)]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b'{"depth": 1',
        b'{"depth": 1}}',
        b'{"depth": NaN}',
        b'{"depth": Infinity}',
        b'{"depth": 1e999, "x": NaN}',
        b'{"depth": 01}',
        b'{"depth": .5}',
        b'{"d\xffpth": 1}',
        b'{"depth": "\xc3\x28"}',
        b"\xff\xfe{\x00}\x00",
        b"\x00",
        b"null",
        b"12",
        b'"depth"',
        b"[]",
        b"{}",
        b"[[]]]",
        b'{"values": {}}',
        b'{"ts": 1782892800000, "values": {}}',
        b'{"ts": 1782892800000, "depth": 1}',
        b'{"ts": 1782892800000}',
        b'{"ts": 1782892800000, "values": null}',
        b'{"values": 5}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"depth": 1e999, "a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_message_of_readings_is_refused_whole_and_counts_as_one(payload: bytes) -> None:
    result = device(payload)
    assert refused(result) == [("malformed", (-1,))]
    assert result.received == 1
    assert result.rejects[0].detail


def test_one_bad_element_of_an_array_costs_no_other() -> None:
    result = device([{"depth": 1}, 5, {"ts": 1, "depth": 2}, {"values": 7}, {"battery": 3}])
    assert rows(result) == [("street-1/depth", 0, 2.54), ("street-1/battery", 0, 3)]
    assert refused(result) == [("malformed", (1, 2, 3))]


def test_of_a_key_given_twice_the_last_holds() -> None:
    assert rows(device(b'{"depth": 1, "depth": 2}')) == [("street-1/depth", 0, 5.08)]


def test_an_unknown_device_is_one_reject_for_all_readings_of_the_message() -> None:
    result = device([{"depth": 1, "x": "y"}, {"depth": 2}], "cim/v1/drains/nobody/telemetry")
    assert refused(result) == [("unknown-device", (0, 1, 2))]
    assert result.rejects[0].device == "nobody"
    assert result.received == 3


def test_an_unknown_property_is_refused_alone() -> None:
    result = device({"depth": 1, "width": 2, "\u0000": 3, "depth ": 4})
    assert rows(result) == [("street-1/depth", 0, 2.54)]
    assert refused(result) == [("unknown-property", (1, 2, 3))]
    assert all(reject.detail.isprintable() for reject in result.rejects)


def test_another_tenants_device_is_forbidden() -> None:
    result = device({"depth": 1, "x": 1}, "cim/v1/bridges/street-1/telemetry")
    assert refused(result) == [("forbidden", (0, 1))]


def test_a_payload_over_the_limit_is_not_even_parsed() -> None:
    assert refused(decoded(message("cim/v1/drains/street-1/telemetry", b"{" * 11), max_bytes=10)) == [
        ("too-large", (-1,))
    ]
    assert rows(decoded(message("cim/v1/drains/street-1/telemetry", b'{"depth":1}'), max_bytes=11))


@pytest.mark.parametrize(
    "topic",
    [
        "cim/v1/drains/street-1",
        "cim/v1/drains/street-1/telemetry/x",
        "cim/v1/drains/street-1/attributes",
        "cim/v1",
        "cim/v2/drains/street-1/telemetry",
        "",
        "v1/gateway/attributes",
        "/cim/v1/drains/street-1/telemetry",
    ],
)
def test_a_topic_that_leads_nowhere_refuses_its_messages(topic: str) -> None:
    result = decoded(message(topic, {"depth": 1}))
    assert refused(result) == [("malformed", (-1,))]
    assert result.rejects[0].detail == "unknown topic"


def test_the_memory_of_topics_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.codecs, "MAX_ROUTES", 10)
    monkeypatch.setattr(ingest.codecs, "_routes", {})
    decoded(*(message(f"cim/v1/drains/d{n}/telemetry", {"depth": 1}) for n in range(100)))
    assert len(ingest.codecs._routes) <= 10
    assert find_route("v1/gateway/telemetry").tenant is None


# ---- gateways


def test_a_gateway_speaks_for_many_devices_and_its_faults_stay_with_those_at_fault() -> None:
    result = gateway(
        {
            "street-1": [{"ts": NOW_MS, "values": {"depth": 1, "nope": 2}}],
            "nobody": [{"ts": NOW_MS, "values": {"depth": 1}}, {"depth": 2}],
            "bridge-1": [{"acc_z": 1}],
            "street-2": {"ts": NOW_MS, "values": {"depth": 4}},
            "pump-1": ["on"],
            "urn:dev:mac:01": [],
        }
    )
    assert rows(result) == [("street-1/depth", 0, 2.54), ("street-2/depth", 0, 4)]
    assert result.by_gateway.all()
    assert set(refused(result)) == {
        ("unknown-property", (1,)),
        ("unknown-device", (2, 3)),
        ("forbidden", (4,)),
        ("malformed", (6,)),
    }
    assert result.position.tolist() == [0, 5]


def test_the_gateway_topic_without_a_tenant_is_the_default_tenants() -> None:
    result = decoded(message("v1/gateway/telemetry", {"plain": [{"ph": 7}], "street-1": [{"depth": 1}]}))
    assert rows(result) == [("plain/ph", 0, 7)]
    assert refused(result) == [("forbidden", (1,))]


def test_packed_readings_equal_the_same_unpacked() -> None:
    names = ["street-1/depth", "street-2/depth", "street-1/depth", "street-1/battery"]
    result = gateway({"s": names, "t": [NOW_MS, NOW_MS - 1, NOW_MS - 2, NOW_MS], "v": [1, 2.5, 3, 99]})
    assert rows(result) == [
        ("street-1/depth", 0, 2.54),
        ("street-2/depth", -1000, 2.5),
        ("street-1/depth", -2000, 7.62),
        ("street-1/battery", 0, 99),
    ]
    assert result.by_gateway.all()
    assert result.position.tolist() == [0, 1, 2, 3]


def test_packed_readings_with_faults_are_refused_one_by_one() -> None:
    t = [NOW_MS, 5, "2026-07-01T08:00:00Z", NOW_MS, NOW_MS, NOW_MS, NOW_MS, NOW_MS, 2**64, NOW_MS + 0.5]
    s = ["street-1/depth"] * 3 + ["x/y", "street-1/x", "street-1", "bridge-1/acc_z", 7] + ["street-2/depth"] * 2
    v = [None, 1, True, 1, 1, 1, 1, 1, 1, 2]
    result = gateway({"v": v, "t": t, "s": s})
    assert rows(result) == [("street-1/depth", 0, None), ("street-1/depth", 0, 2.54), ("street-2/depth", 500, 2)]
    found = {(reason, position) for reason, positions in refused(result) for position in positions}
    assert found == {
        ("bad-time", 1),
        ("unknown-device", 3),
        ("unknown-property", 4),
        ("unknown-property", 5),
        ("forbidden", 6),
        ("malformed", 7),
        ("bad-time", 8),
    }


@pytest.mark.parametrize("value", ["1", [1], {"a": 1}, b"1e999"])
def test_a_packed_value_that_is_no_number_is_refused_alone(value: Any) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    result = gateway(
        b'{"s": ["street-1/depth", "street-2/depth"], "t": [%d, %d], "v": [%b, 3]}' % (NOW_MS, NOW_MS, text)
    )
    assert rows(result) == [("street-2/depth", 0, 3)]
    assert refused(result) == [("bad-value", (0,))]


@pytest.mark.parametrize(
    "payload",
    [
        {"s": ["street-1/depth"], "t": [NOW_MS, NOW_MS], "v": [1]},
        {"s": ["street-1/depth"], "t": [NOW_MS], "v": []},
        {"s": [], "t": [], "v": []},
        {"s": "street-1/depth", "t": NOW_MS, "v": 1},
        {"s": ["street-1/depth"], "t": NOW_MS, "v": [1]},
        {},
        [],
        [{"depth": 1}],
        {"street-1": []},
        {"street-1": [{"values": {}}]},
        5,
    ],
)
def test_a_gateway_message_without_a_reading_is_malformed(payload: Any) -> None:
    assert refused(gateway(payload)) == [("malformed", (-1,))]


def test_packed_and_single_messages_keep_their_order_and_their_places() -> None:
    result = decoded(
        message("cim/v1/drains/street-1/telemetry", {"depth": 1}, NOW),
        message(
            "cim/v1/drains/gateway/telemetry", {"s": ["street-2/depth"] * 2, "t": [NOW_MS] * 2, "v": [2, 3]}, NOW + 1
        ),
        message("cim/v1/drains/street-1/telemetry", b"garbage", NOW + 2),
        message("cim/v1/drains/street-1/telemetry", {"ts": NOW_MS, "values": {"depth": 4}}, NOW + 3),
    )
    assert [value for _, _, value in rows(result)] == [2.54, 2, 3, 10.16]
    assert result.message.tolist() == [0, 1, 1, 3]
    assert result.position.tolist() == [0, 0, 1, 0]
    assert (result.received_at - NOW).tolist() == [0, 1, 1, 3]
    assert result.by_gateway.tolist() == [False, True, True, False]
    assert [column.dtype.name for column in (result.sensor, result.observed_at, result.value, result.position)] == [
        "int32", "int64", "float64", "int32",
    ]  # fmt: skip


def test_rejects_of_a_message_with_very_many_unknown_devices_are_bounded() -> None:
    result = gateway({f"d{n}": [{"depth": 1}] for n in range(5000)})
    assert len(result.rejects) <= 110
    assert result.received == 5000


# ---- replaced devices


def test_hardware_that_replaces_a_device_reports_its_points_from_that_day_on() -> None:
    catalog = catalog_of()
    catalog.replace([Replacement("street-1", "new-1", "drains", NOW - HOUR)])
    entries = [{"ts": NOW_MS - 2 * 3_600_000, "values": {"depth": 1}}, {"ts": NOW_MS, "values": {"depth": 2}}]
    result = device(entries, "cim/v1/drains/new-1/telemetry", catalog)
    assert rows(result, catalog) == [("street-1/depth", 0, 5.08)]
    assert refused(result) == [("unknown-device", (0,))]
    result = device(entries, catalog=catalog)
    assert rows(result, catalog) == [("street-1/depth", -2 * HOUR, 2.54)]
    assert refused(result) == [("unknown-device", (1,))]
    assert "replaced by new-1" in result.rejects[0].detail
    packed = {"s": ["new-1/depth", "street-1/depth"], "t": [NOW_MS, NOW_MS], "v": [1, 2]}
    result = decoded(message("cim/v1/drains/gateway/telemetry", packed), catalog=catalog)
    assert rows(result, catalog) == [("street-1/depth", 0, 2.54)]
    assert refused(result) == [("unknown-device", (1,))]


def test_hardware_known_by_itself_keeps_its_own_points_before_and_tenants_hold() -> None:
    catalog = catalog_of()
    catalog.replace([Replacement("street-1", "street-2", "drains", NOW - HOUR)])
    entries = [{"ts": NOW_MS - 2 * 3_600_000, "values": {"depth": 1}}, {"ts": NOW_MS, "values": {"depth": 1}}]
    result = device(entries, "cim/v1/drains/street-2/telemetry", catalog)
    assert rows(result, catalog) == [("street-2/depth", -2 * HOUR, 1), ("street-1/depth", 0, 2.54)]
    assert refused(device({"depth": 1}, "cim/v1/bridges/street-2/telemetry", catalog)) == [("forbidden", (0,))]


def test_of_two_replacements_the_later_holds_from_its_day_and_a_bad_time_is_called_one() -> None:
    catalog = catalog_of()
    catalog.replace(
        [
            Replacement("street-1", "new-1", "drains", NOW - 2 * DAY),
            Replacement("street-1", "new-2", "drains", NOW - DAY),
        ]
    )
    for hardware, age, is_stored in (
        ("street-1", 3, True), ("street-1", 1.5, False), ("new-1", 1.5, True), ("new-1", 0.5, False),
        ("new-2", 1.5, False), ("new-2", 0.5, True),
    ):  # fmt: skip
        payload = {"ts": (NOW - age * DAY) / 1000, "values": {"depth": 1}}
        result = device(payload, f"cim/v1/drains/{hardware}/telemetry", catalog)
        assert (len(result) == 1) == is_stored, (hardware, age)
    assert refused(device({"ts": "x", "values": {"depth": 1}}, "cim/v1/drains/new-2/telemetry", catalog)) == [
        ("bad-time", (0,))
    ]


# ---- SenML


def test_senml_names_are_device_and_property_or_the_property_alone() -> None:
    result = senml(
        [
            {"n": "depth", "v": 1},
            {"n": "street-2:depth", "v": 2},
            {"n": "street-2/depth", "v": 3},
            {"n": "urn:dev:mac:01:temperature", "v": 4},
            {"n": "bridge-1:acc_z", "v": 5},
            {"n": "nobody:depth", "v": 6},
            {"n": "width", "v": 7},
            {"n": "a/b/c", "v": 8},
        ]
    )
    assert [(name, value) for name, _, value in rows(result)] == [
        ("street-1/depth", 2.54),
        ("street-2/depth", 2),
        ("street-2/depth", 3),
        ("urn:dev:mac:01/temperature", 4),
    ]
    assert [reason for reason, _ in refused(result)] == [
        "forbidden", "unknown-device", "unknown-property", "unknown-device",
    ]  # fmt: skip


@pytest.mark.timeout(60)
def test_a_senml_name_of_a_million_colons_ends() -> None:
    assert refused(senml([{"n": ":" * 1_000_000, "v": 1}])) == [("unknown-device", (0,))]
    assert refused(senml([{"bn": ":" * 500_000, "v": 1}] + [{"v": 1}] * 40_000))[0][0] == "unknown-device"


def test_senml_base_fields_hold_until_the_next_and_times_may_be_relative() -> None:
    seconds = NOW // SECOND
    result = senml(
        [
            {"bn": "street-1:", "bt": seconds - 10, "bu": "m", "bv": 1},
            {"n": "depth", "v": 0.5},
            {"n": "depth", "v": 0.25, "t": 2.5, "u": "cm"},
            {"bn": "", "bt": 0, "bv": 0, "n": "battery", "u": "%EL", "v": 80, "t": -60},
        ]
    )
    assert rows(result) == [
        ("street-1/depth", -10 * SECOND, 150),
        ("street-1/depth", -7_500_000, 1.25),
        ("street-1/battery", -MINUTE, 80),
    ]


def test_senml_values_may_be_boolean_and_texts_sums_and_wrong_units_are_bad_values() -> None:
    result = senml(
        [
            {"n": "pump-1:running", "vb": True},
            {"n": "depth", "vs": "deep"},
            {"n": "depth", "vd": "AA"},
            {"n": "depth", "s": 5},
            {"n": "depth", "u": "Pa", "v": 1},
            {"n": "depth"},
            {"n": "depth", "v": None},
            {"n": "depth", "u": "furlong", "v": 1},
        ]
    )
    assert rows(result) == [("pump-1/running", 0, 1), ("street-1/depth", 0, None), ("street-1/depth", 0, 2.54)]
    assert refused(result) == [("bad-value", (1, 2, 3, 4, 5))]


@pytest.mark.parametrize(
    "pack",
    [
        {},
        [],
        5,
        [{"bn": "street-1:"}],
        [{"n": "depth", "v": 1}, {"bver": 11}],
        [{"n": "depth", "v": 1, "new_": 1}],
        [{"n": "depth", "v": 1, "bver": "10"}],
    ],
)
def test_a_senml_pack_that_cannot_be_understood_is_refused_whole(pack: Any) -> None:
    assert refused(senml(pack)) == [("malformed", (-1,))]
    if isinstance(pack, list):
        assert refused(senml(cbor2.dumps(pack))) == [("malformed", (-1,))]


def test_a_senml_record_with_a_field_of_the_wrong_type_is_refused_alone() -> None:
    result = senml([{"n": 5, "v": 1}, {"n": "depth", "t": "now", "v": 1}, 7, {"n": "depth", "v": 1}])
    assert rows(result) == [("street-1/depth", 0, 2.54)]
    assert refused(result) == [("malformed", (0, 1, 2))]


def test_cbor_says_the_same_as_json() -> None:
    pack = [{-2: "street-1:", -3: NOW / 1e6 - 5, 0: "depth", 2: 1.5}, {0: "battery", 2: 7, 6: 1}, {0: "x", 4: True}]
    result = senml(cbor2.dumps(pack))
    assert rows(result) == [("street-1/depth", -5 * SECOND, 3.81), ("street-1/battery", -4 * SECOND, 7)]
    assert refused(result) == [("unknown-property", (2,))]


@pytest.mark.parametrize("number", [math.nan, math.inf, 10**400])
def test_numbers_that_only_cbor_has_are_bad_values(number: float) -> None:
    assert refused(senml(cbor2.dumps([{"n": "depth", "v": number}]))) == [("bad-value", (0,))]
    assert refused(senml(cbor2.dumps([{"n": "depth", "v": 1, "t": number}]))) == [("bad-time", (0,))]


# ---- waveforms and status


def waveform(payload: Any, name: str = "bridge-1") -> Decoded:
    return decoded(message(f"cim/v1/bridges/{name}/waveform", payload))


def test_a_block_is_converted_to_float32_of_the_canonical_unit() -> None:
    result = waveform({"ts": NOW_MS, "rate_hz": 50, "values": {"acc_z": [0, 1, -1.5]}})
    (block,) = result.waveforms
    assert (block.sensor, block.started_at, block.rate_hz) == (5, NOW, 50)
    assert block.samples.dtype == np.float32
    assert block.samples.tolist() == pytest.approx([0, 9.80665, -14.709975])
    assert result.received == 1
    assert waveform({"rate_hz": 50, "values": {"acc_z": [1]}}).waveforms[0].started_at == NOW


def test_blocks_of_one_length_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.codecs.waveform, "_add_one_by_one", lambda *_: pytest.fail("each was looked at alone"))
    values = {"depth": [1, 2.5], "battery": [50, 0.0]}
    body = {"ts": "2026-07-01T08:00:00Z", "rate_hz": 50, "values": values, "名": "测"}
    result = decoded(message("cim/v1/drains/street-1/waveform", body))
    assert [(b.position, b.rate_hz) for b in result.waveforms] == [(0, 50), (1, 50)]
    assert [CATALOG.sensors[b.sensor].property for b in result.waveforms] == ["depth", "battery"]
    assert result.waveforms[1].samples.tolist() == [50, 0]
    assert result.received == 2


@pytest.mark.parametrize("samples", [[], [1, None], ["1"], [True], 5, "x", {}, [1e39], [[1]], None])
def test_a_block_of_anything_but_finite_numbers_is_refused_alone(samples: Any) -> None:
    result = waveform({"ts": NOW_MS, "rate_hz": 50, "values": {"x": [1], "acc_z": samples}})
    assert sorted(refused(result)) == [("bad-value", (1,)), ("unknown-property", (0,))]
    assert result.received == 2
    huge = b'{"rate_hz": 50, "values": {"acc_z": [1, 1e999]}}'
    assert refused(waveform(huge)) == [("bad-value", (0,))]


@pytest.mark.parametrize("rate", [0, -1, 100_001, "50", None, True, b"1e999"])
def test_a_block_without_a_believable_rate_is_malformed(rate: Any) -> None:
    text = rate if isinstance(rate, bytes) else json.dumps(rate).encode()
    assert refused(waveform(b'{"rate_hz": %b, "values": {"acc_z": [1]}}' % text)) == [("malformed", (-1,))]


def test_a_block_has_the_faults_of_other_messages() -> None:
    good = {"rate_hz": 50, "values": {"acc_z": [1]}}
    assert refused(waveform(good | {"ts": 5})) == [("bad-time", (0,))]
    assert refused(waveform(good | {"values": {}})) == [("malformed", (-1,))]
    assert refused(waveform([good])) == [("malformed", (-1,))]
    assert refused(waveform(good, "nobody")) == [("unknown-device", (0,))]
    assert refused(waveform(good, "street-1")) == [("forbidden", (0,))]


def summary_of(block: WaveformBlock) -> dict[str, float]:
    return dict(zip(STATISTICS, summarise_all([block])[0].tolist(), strict=True))


def block_of(samples: Any, rate_hz: float = 50.0) -> WaveformBlock:
    return WaveformBlock(0, NOW, NOW, rate_hz, np.asarray(samples, np.float32))


@pytest.mark.parametrize("frequency", [0.8, 3.3, 7.77, 12.0, 24.0])
def test_the_dominant_frequency_is_found_between_the_lines_of_the_spectrum(frequency: float) -> None:
    t = np.arange(500) / 50
    summary = summary_of(block_of(2 + 0.5 * np.sin(2 * np.pi * frequency * t) + 0.1 * np.sin(2 * np.pi * 5.1 * t)))
    assert summary["frequency"] == pytest.approx(frequency, abs=0.02)
    assert summary["mean"] == pytest.approx(2, abs=0.05)
    assert summary["rms"] == pytest.approx(math.sqrt(4 + 0.125 + 0.005), abs=0.05)
    assert summary["peak_to_peak"] == pytest.approx(1.2, abs=0.15)


@pytest.mark.parametrize("samples", [[3.0], [1, 2, 3], [0.1] * 100, [7.7] * 4])
def test_constant_and_very_short_blocks_have_frequency_0(samples: list[float]) -> None:
    summary = summary_of(block_of(samples))
    assert summary["frequency"] == 0
    assert summary["mean"] == pytest.approx(np.mean(samples), rel=1e-6)


def test_many_blocks_at_once_equal_one_at_a_time() -> None:
    random = np.random.default_rng(1)
    blocks = [
        block_of(random.normal(size=size), rate) for size, rate in ((250, 50), (7, 10), (250, 100), (4, 1), (1, 1))
    ]
    together = summarise_all(blocks)
    for row, block in zip(together, blocks, strict=True):
        assert row.tolist() == pytest.approx([summary_of(block)[word] for word in STATISTICS])
    assert summarise_many(np.zeros((3, 8), np.float32), np.ones(3)).tolist() == [[0, 0, 0, 0]] * 3


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_a_summary_is_finite_and_ordered(samples: list[float]) -> None:
    summary = summary_of(block_of(samples))
    assert all(map(math.isfinite, summary.values()))
    assert 0 <= summary["frequency"] <= 25
    assert abs(summary["mean"]) <= summary["rms"] * (1 + 1e-9)


@pytest.mark.parametrize(("word", "is_online"), [(b"online", True), (b"offline", False), (b'"online"\n', True)])
def test_a_status_gives_no_reading(word: bytes, is_online: bool) -> None:
    result = decoded(message("cim/v1/drains/street-1/status", word), message("cim/v1/drains/gateway/status", word))
    assert result.statuses == [("drains", "street-1", is_online, NOW), ("drains", "gateway", is_online, NOW)]
    assert result.received == 0


def test_a_status_that_says_nothing_or_of_nobody_is_refused_and_counts_as_one() -> None:
    result = decoded(
        message("cim/v1/drains/street-1/status", b"perhaps"),
        message("cim/v1/drains/nobody/status", b"online"),
        message("cim/v1/bridges/street-1/status", b"online"),
    )
    assert [reject.reason for reject in result.rejects] == [
        Reason.MALFORMED, Reason.UNKNOWN_DEVICE, Reason.FORBIDDEN,
    ]  # fmt: skip
    assert result.received == 3


# ---- anything at all

TOPICS = st.sampled_from(
    [
        "cim/v1/drains/street-1/telemetry", "cim/v1/drains/gateway/telemetry", "v1/gateway/telemetry",
        "cim/v1/drains/street-1/senml", "cim/v1/drains/street-1/waveform", "cim/v1/drains/street-1/status",
        "cim/v1/bridges/bridge-1/waveform", "cim/v1/bridges/bridge-1/telemetry", "cim/v1/drains/gateway/senml",
        "cim/v1/drains/old/telemetry", "cim/v1/drains/x/y/z",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "street-1", "street-2", "bridge-1", "nobody", "depth", "battery", "acc_z", "ts", "values", "rate_hz", "s", "t",
        "v", "n", "bn", "bt", "u", "street-1/depth", "street-2:depth", "m", "2026-07-01T08:00:00Z", "\u0000", "",
    ]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5) | st.just(NOW_MS)
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, NOW_MS + 3_600_001, NOW / 1e6])
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)
ENTRY = st.fixed_dictionaries({"ts": SCALARS, "values": st.dictionaries(WORDS, SCALARS, max_size=3)})
NEAR = (
    ENTRY
    | st.lists(ENTRY | SCALARS, max_size=3)
    | st.dictionaries(WORDS, st.lists(ENTRY | SCALARS, max_size=3), max_size=3)
    | st.integers(0, 4).flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "s": st.lists(
                    st.sampled_from(["street-1/depth", "street-2/depth", "old/depth"]) | WORDS, min_size=n, max_size=n
                ),
                "t": st.lists(st.just(NOW_MS) | SCALARS, min_size=n, max_size=n),
                "v": st.lists(st.floats() | SCALARS, min_size=n, max_size=n),
            }
        )
    )
    | st.lists(
        st.dictionaries(st.sampled_from(["n", "bn", "v", "t", "bt", "u", "vb", "bv"]), SCALARS, max_size=4), max_size=3
    )
)
PAYLOADS = st.binary(max_size=60) | st.builds(lambda tree: json.dumps(tree).encode(), TREES | NEAR) | st.builds(
    cbor2.dumps, TREES | NEAR
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(TOPICS, PAYLOADS), max_size=5), st.booleans())
def test_no_payload_raises_and_every_reading_is_either_stored_or_refused(
    pairs: list[tuple[str, bytes]], is_replaced: bool
) -> None:
    catalog = catalog_of()
    if is_replaced:
        catalog.replace([Replacement("street-1", "old", "drains", NOW - HOUR)])
    messages = [RawMessage(topic, payload, NOW) for topic, payload in pairs]
    result = decoded(*messages, catalog=catalog)
    assert not np.isinf(result.value).any()
    assert (result.sensor >= 0).all()
    for reject in result.rejects:
        assert reject.detail
        assert reject.device is None or reject.device.isprintable()
    apart = [decoded(one, catalog=catalog) for one in messages]
    assert result.received == sum(one.received for one in apart)
    assert result.value.tolist() == pytest.approx([v for one in apart for v in one.value.tolist()], nan_ok=True)
    assert result.observed_at.tolist() == [at for one in apart for at in one.observed_at.tolist()]
    assert len(result.rejects) == sum(len(one.rejects) for one in apart)
    if not any("status" in topic for topic, _ in pairs):  # a redrive finds readings at the places they had
        assert places_of(result) == places_of(decoded(*messages, catalog=Catalog(KINDS)))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=100).map(lambda tail: b"\x80" + tail)
    | st.binary(min_size=1, max_size=60).map(lambda b: bytes([b[0] | 0x80]) + b)
)
def test_no_cbor_raises(payload: bytes) -> None:
    senml(payload)
