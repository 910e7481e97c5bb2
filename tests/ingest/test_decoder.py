"""Messages decoded together come to the same as each decoded alone and carefully, however hostile the stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ingest.codecs
from ingest.codecs import Decoded, Decoder, gathering, senml, telemetry, waveform
from tests.ingest.test_codecs import CATALOG, KINDS, NOW, NOW_MS, SENSORS, catalog_of, check_counts
from twin.catalog import Catalog, Replacement
from twin.model import HOUR, RawMessage, Sensor

TOPICS = [
    "cim/v1/drains/street-1/telemetry",
    "cim/v1/drains/street-1/telemetry",
    "cim/v1/drains/pump-1/telemetry",
    "cim/v1/default/plain/telemetry",
    "cim/v1/bridges/street-1/telemetry",
    "cim/v1/drains/nobody/telemetry",
    "cim/v1/drains/gateway/telemetry",
    "v1/gateway/telemetry",
    "cim/v1/drains/street-1/senml",
    "cim/v1/drains/gateway/senml",
    "cim/v1/bridges/bridge-1/waveform",
    "cim/v1/drains/street-1/status",
    "somewhere/else",
    "cim/v1/drains/street-1/waveform",
]
PROPERTIES = ["depth", "battery", "running", "ph", "acc_z", "values", "ts", "距离", ""]
# Texts, not values: much of what is hostile cannot come out of a JSON writer.
NUMBERS = [
    "1", "-0", "0.1", "12.5e3", "1e999", "-1e400", "1e150", "1.0000001e150", "123456789012345678901234567890",
    "1" + "0" * 400, "1" + "0" * 4400, "01", "1.", ".5", "+1", "NaN", "Infinity", "-Infinity", "0x10", "-",
]  # fmt: skip
OTHERS = [
    "true", "false", "null", "nul", '"12"', '"\\u00e9"', '"\\ud800"', '"\\q"', '"]"', "[]", "[1]", "{}", '{"v":1}',
    '[{"a":[1,{"b":null}]}]', "", "//x", "/* x */ 1", "[" * 300 + "]" * 300, '"\x01"', '"tab\there"', '"测点"',
]  # fmt: skip
TIMES = [
    str(NOW_MS), str(NOW_MS - 1), f"{NOW_MS}.0", f"{NOW_MS}.5", f"{NOW_MS}e0", str(NOW_MS + 2 * 3_600_000), "0", "-1",
    "9000000000000", "9000000000001", "-9000000000001", "9223372036854775807", "9223372036854775808", "1" + "0" * 30,
    "-9223372036854775808", "1e18", "null", "true", '"2026-07-01T08:00:00Z"', '"2026-07-01t08:00:00z"',
    '"2026-07-01T08:00:00"', '"yesterday"', '""', "[]", "{}",
]  # fmt: skip
number_text = st.one_of(st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False).map(repr))
value_text = st.one_of(number_text, number_text, st.sampled_from(OTHERS))
name_text = st.one_of(st.sampled_from(PROPERTIES[:4]), st.sampled_from(PROPERTIES)).map(
    lambda name: json.dumps(name, ensure_ascii=False)
)


def joined(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"


values_text = st.lists(st.tuples(name_text, value_text), max_size=4).map(joined)
plain_values_text = st.lists(
    st.tuples(st.sampled_from(['"depth"', '"battery"']), st.floats(-9, 9).map(repr)), min_size=1, max_size=3
).map(joined)
time_text = st.one_of(st.just(str(NOW_MS)), st.sampled_from(TIMES))
entry_text = st.one_of(
    plain_values_text,
    values_text,
    st.tuples(time_text, st.one_of(plain_values_text, values_text)).map(lambda e: f'{{"ts":{e[0]},"values":{e[1]}}}'),
    st.tuples(plain_values_text, value_text).map(lambda e: f'{{"values":{e[0]},"meta":{e[1]}}}'),
    st.tuples(values_text, values_text).map(lambda e: f'{{"values":{e[0]},"values":{e[1]}}}'),
    st.tuples(time_text, time_text).map(lambda e: f'{{"ts":{e[0]},"ts":{e[1]},"values":{{"depth":1}}}}'),
    time_text.map(lambda ts: f'{{"ts":{ts}}}'),
    time_text.map(lambda ts: f'{{"ts":{ts},"depth":1}}'),
)
id_text = st.sampled_from(
    ['"street-1/depth"', '"street-1/battery"', '"street-2/depth"', '"x]"', '"]/"', '"\\u0073treet-1/depth"', "1"]
)
lists = st.integers(0, 3).flatmap(
    lambda n: st.tuples(*(st.lists(part, min_size=n, max_size=n) for part in (id_text, time_text, number_text)))
)
packed_text = st.one_of(
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],"t":[{",".join(c[1])}],"v":[{",".join(c[2])}]}}'),
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],"v":[{",".join(c[2])}],"t":[{",".join(c[1])}]}}'),
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],"t":[{",".join(c[1])}],"v":[{",".join(c[2])}],"s":[]}}'),
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],"v":[{",".join(c[2])}]}}'),
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],"t":[{",".join(c[1])}],"v":[{",".join(c[2])}],"x":[1]}} '),
    lists.map(lambda c: f'{{"s":[{",".join(c[0])}],}}'),
    st.dictionaries(st.sampled_from(["street-1", "street-2", "plain"]), entry_text, max_size=2).map(
        lambda d: joined([(json.dumps(k), v) for k, v in d.items()])
    ),
)
FIELDS: dict[str, Any] = {
    "n": st.sampled_from(['"depth"', '"battery"', '"street-1:depth"', '"urn:dev:mac:01:temperature"', '"}"', "1"]),
    "v": number_text,
    "t": st.sampled_from(["0", "-1", "-1.5", "0.0000005", "1e9", "1e10", "-1e12", "null", "1782892800.123456"]),
    "u": st.sampled_from(['"cm"', '"in"', '"%"', '"/"', '"kg"', '""', "null"]),
    "bn": st.sampled_from(['"street-1:"', '"street-1/"', '"urn:dev:mac:01:"', '"depth"', '"nobody:"', '""', '"a}"']),
    "bt": st.sampled_from(["1782892800", "1782892800.25", "1782892800123", "-5", "0", "1e300"]),
    "bu": st.sampled_from(['"cm"', '"in"', '""']),
    "bv": st.just("1"),
    "vb": st.just("true"),
    "bver": st.sampled_from(["10", "11"]),
    "x_": st.just("1"),
}  # fmt: skip
record = st.lists(st.sampled_from([*"nnnnvvvvttu", "bn", "bt", "bu", "bv", "vb", "bver", "x_"]), max_size=5).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(f'"{n}"'), FIELDS[n]) for n in names)).map(lambda p: joined(list(p)))
)
plain_record = st.tuples(FIELDS["n"], st.floats(-9, 9).map(repr), st.sampled_from(["0", "-1.5", "2"])).map(
    lambda r: f'{{"n":{r[0]},"v":{r[1]},"t":{r[2]}}}'
)
base_record = st.tuples(FIELDS["bn"], FIELDS["bt"]).map(lambda r: f'{{"bn":{r[0]},"bt":{r[1]}}}')
senml_text = st.one_of(
    st.lists(record, max_size=4).map(lambda records: f"[{','.join(records)}]"),
    st.tuples(st.one_of(base_record, plain_record, record), st.lists(plain_record, min_size=1, max_size=4)).map(
        lambda p: f"[{p[0]},{','.join(p[1])}]"
    ),
)
samples_text = st.one_of(
    st.just("[0.5,1,-2]"), st.just("[0.5,1,-2]"), st.lists(number_text, max_size=3).map(lambda n: f"[{','.join(n)}]"),
    st.sampled_from(["[1,null,2]", "[true,1,2]", '["1",2,3]', "1", "[1e39,0,1]"]),
)  # fmt: skip
wave_text = st.tuples(
    st.sampled_from(["50", "50.0", "0", "1e999", "null", "100001", '"50"']) | st.just("50"),
    st.sampled_from(TIMES) | st.just(str(NOW_MS)),
    st.lists(st.tuples(name_text, samples_text), min_size=1, max_size=3).map(joined),
    st.sampled_from(["", ',"meta":1', ',"m":"\\u00e9"', ',"测":"点"', ',"rate_hz":50']),
).map(lambda p: f'{{"rate_hz":{p[0]},"ts":{p[1]},"values":{p[2]}{p[3]}}}')
body = st.one_of(
    entry_text,
    entry_text,
    packed_text,
    senml_text,
    wave_text,
    wave_text,
    st.lists(entry_text, max_size=3).map(lambda e: f"[{','.join(e)}]"),
).map(str.encode)
hostile = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b" ", b"[", b"]", b"{", b"},{", b"1", b'"', b"\xef\xbb\xbf{}", b"online", b'"offline"']),
    st.tuples(body, st.integers(0, 30)).map(lambda c: c[0][: c[1]]),
    st.tuples(body, body).map(b",".join),
    st.tuples(body, st.sampled_from([b"\xff", b"\x00", b"]", b",", b"\n", b" ", b"//"])).map(b"".join),
    body.map(lambda b: b"\xef\xbb\xbf" + b),
    body.map(lambda b: b.replace(b"depth", b"dep\xffth")),
    body.map(lambda b: b[:-1] + b',"meta":"\xed\xa0\x80"}'),
)
payload = st.one_of(body, body, body, hostile)
stream = st.lists(st.tuples(st.sampled_from(TOPICS), payload, st.sampled_from([0, 1, HOUR])), max_size=12).map(
    lambda rows: [RawMessage(topic, data, NOW + late) for topic, data, late in rows]
)


@contextmanager
def carefully() -> Iterator[None]:
    """Every shorter way switched off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "add_plain", lambda out, numbers, properties, max_bytes: list(numbers))
        patch.setattr(telemetry, "_add_packed_again", lambda *_: False)
        patch.setattr(waveform, "_add_together", lambda *_: False)
        patch.setattr(senml, "_add_alike", lambda *_: False)
        patch.setattr(senml, "_add_plainly", lambda *_: False)
        yield


def same(left: Decoded, right: Decoded) -> None:
    for field in dataclasses.fields(Decoded):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, field.name)
        elif field.name == "waveforms":
            assert [dataclasses.replace(b, samples=b.samples.tolist()) for b in one] == [
                dataclasses.replace(b, samples=b.samples.tolist()) for b in other
            ]
        else:
            assert one == other, field.name


def catalog_with_replacements() -> Catalog:
    catalog = catalog_of()
    catalog.replace([Replacement("street-2", "street-1b", "drains", NOW - HOUR)])
    return catalog


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stream, st.booleans(), st.integers(0, 6))
@example([RawMessage(TOPICS[0], b'{"values":{"depth":1},"x":[1', NOW), RawMessage(TOPICS[0], b"2]}", NOW),
          RawMessage(TOPICS[0], b'{"depth":1},{"depth":2}', NOW)], False, 1)  # fmt: skip
@example([RawMessage(TOPICS[0], b'{"values":{"depth":1},"m":"\xff"}', NOW)], False, 1)
@example([RawMessage(TOPICS[0], b'{"values":{"depth":1},"m":1' + b"0" * 4400 + b"}", NOW)], False, 1)
@example([RawMessage(TOPICS[6], b'{"s":["street-1/depth"],"t":[1782892800000],"v":[1]}', NOW)] * 2, True, 1)
def test_together_and_alone_come_to_the_same(messages: list[RawMessage], has_replacements: bool, cut: int) -> None:
    catalog = catalog_with_replacements() if has_replacements else CATALOG
    decoder = Decoder(catalog, max_bytes=8000)
    together, again = decoder.decode(messages), decoder.decode(messages)
    with carefully():
        alone = Decoder(catalog, max_bytes=8000).decode(messages)
    check_counts(together)
    same(together, alone)
    parts = [
        (len(part), decoder.decode(part)) for part in (messages[:cut], messages[cut : 2 * cut], messages[2 * cut :])
    ]
    same(Decoded.join(parts), alone)
    same(again, alone)


def test_a_stream_of_plain_messages_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest.codecs, "_add_carefully", lambda *_: pytest.fail("one was looked at alone"))
    bodies: list[dict[str, Any]] = [
        {"ts": NOW_MS, "values": {"depth": 1}},
        {"depth": 1.5, "battery": None},
        {"values": {"depth": 2}, "meta": {"名": "测"}},
        {"ts": "2026-07-01T08:00:00Z", "values": {"depth": True}},
        {"ts": NOW_MS + 0.5, "values": {"depth": 3, "battery": 4}},
    ]
    messages = [RawMessage(TOPICS[0], json.dumps(body, ensure_ascii=False).encode(), NOW) for body in bodies]
    found = Decoder(CATALOG).decode(messages)
    assert found.message.tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert found.position.tolist() == [0, 0, 1, 0, 0, 0, 1]
    assert (found.observed_at - NOW).tolist() == [0, 0, 0, 0, 0, 500, 500]


def test_what_was_looked_up_is_forgotten_when_the_catalogue_changes() -> None:
    catalog = catalog_of()
    decoder = Decoder(catalog)
    single = RawMessage(TOPICS[0], b'{"depth":1}', NOW)
    packed = RawMessage(TOPICS[6], b'{"s":["street-1/depth"],"t":[%d],"v":[1]}' % NOW_MS, NOW)
    assert len(decoder.decode([single, packed])) == 2
    moved = [dataclasses.replace(sensor, tenant="bridges") for sensor in SENSORS[:2]]
    catalog.put(list(enumerate(moved)))
    assert [r.reason for r in decoder.decode([single, packed]).rejects] == ["forbidden"] * 2
    catalog.put(list(enumerate(SENSORS[:2])))
    assert len(decoder.decode([single, packed])) == 2
    catalog.replace([Replacement("street-1", "street-1b", "drains", NOW - HOUR)])
    assert [r.reason for r in decoder.decode([single, packed]).rejects] == ["unknown-device"] * 2
    catalog.replace([])
    catalog.put([(len(SENSORS), Sensor("street-1", "level", "drainage.ponding_depth", "cm", tenant="drains"))])
    assert len(decoder.decode([RawMessage(TOPICS[0], b'{"level":1}', NOW), packed])) == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LISTS_BYTES", 1000)
    catalog = Catalog(KINDS)
    catalog.put([(n, Sensor(f"d{n}", "ph", "water.ph", "")) for n in range(200)])
    decoder = Decoder(catalog)
    for n in range(200):
        topics = [f"cim/v1/default/d{n}/telemetry", f"cim/v1/t{n}/d{n}/telemetry", f"cim/v1/default/x{n}/telemetry"]
        gateways = ["cim/v1/default/gateway/telemetry", f"cim/v1/t{n}/gateway/telemetry"]
        found = decoder.decode(
            [RawMessage(topic, b'{"ph":7}', NOW) for topic in topics]
            + [RawMessage(topic, b'{"s":["d%d/ph","x/ph"],"t":[1,1],"v":[1,1]}' % n, NOW) for topic in gateways]
            + [RawMessage(gateways[0], b'{"s":["d%d/ph"],"t":[%d],"v":[1]}' % (n, NOW_MS), NOW)]
        )
        assert len(found) == 2
    points = decoder._points
    assert len(points.by_topic) == 200
    assert len(points.lists) < 1000 / 14
    assert list(points._ids) == ["default"]
    assert len(points._ids["default"]) == 200
