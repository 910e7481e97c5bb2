"""SenML packs read the fast way and the slow way, which must say the same of every pack, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import twin.units
from ingest.codecs import Decoded, decode, senml
from twin.catalog import Catalog, Replacement
from twin.model import HOUR, SECOND, RawMessage, Sensor, parse_time

KINDS = twin.units.parse_kinds(Path(twin.units.__file__).with_name("kinds.toml").read_text("utf-8"))
NOW = parse_time("2026-07-01T08:00:00Z")
SENSORS = [
    Sensor("street-1", "depth", "drainage.ponding_depth", "in", tenant="drains"),
    Sensor("street-1", "battery", "device.battery", "%", tenant="drains"),
    Sensor("street-2", "depth", "drainage.ponding_depth", "cm", tenant="drains"),
    Sensor("urn:dev:mac:01", "temperature", "bridge.temperature", "°C", tenant="drains"),
    Sensor("urn:dev:mac:01", "gas", "gas.methane", "%LEL-CH4", tenant="drains"),
    # Names that may be parted in more than one way.
    Sensor("street-1", "x:y", "device.battery", "%", tenant="drains"),
    Sensor("street-1:x", "y", "device.battery", "%", tenant="drains"),
    Sensor("street-2", "street-1:depth", "device.battery", "%", tenant="drains"),
    Sensor("street-2", "a/b", "device.battery", "%", tenant="drains"),
    Sensor("street-2", "", "device.battery", "%", tenant="drains"),
    # Not for everyone, or not at every time.
    Sensor("a/b", "depth", "drainage.ponding_depth", "cm", tenant="drains"),
    Sensor("bridge-1", "acc_z", "bridge.acceleration", "g", tenant="bridges"),
    Sensor("old", "depth", "drainage.ponding_depth", "cm", tenant="drains"),
]
CATALOG = Catalog(KINDS)
CATALOG.put(list(enumerate(SENSORS)))
CATALOG.replace([Replacement("old", "new", "drains", NOW - HOUR)])


def decoded(*packs: tuple[str, bytes]) -> Decoded:
    messages = [
        RawMessage(f"cim/v1/drains/{device}/senml", payload, NOW + n) for n, (device, payload) in enumerate(packs)
    ]
    return decode(messages, CATALOG)


def all_of(result: Decoded) -> tuple[Any, ...]:
    """Everything in it; columns as bytes, for 0.0 is not -0.0 here."""
    columns = (
        result.sensor,
        result.observed_at,
        result.received_at,
        result.value,
        result.message,
        result.position,
        result.by_gateway,
    )
    rest = (result.rejects, result.waveforms, result.statuses, result.received)
    return (*[(column.dtype, column.tobytes()) for column in columns], *rest)


def slowly(*packs: tuple[str, bytes]) -> Decoded:
    with mock.patch.object(senml, "_add_plainly", return_value=False):
        return decoded(*packs)


def fast_only(device: str, pack: list[dict[str, Any]]) -> Decoded:
    """The pack decoded where there is no slow way."""
    with mock.patch.object(senml, "read_json", side_effect=AssertionError("was read the slow way")):
        return decoded((device, json.dumps(pack).encode()))


@pytest.mark.parametrize(
    ("device", "pack", "sensors"),
    [
        ("street-1", [{"n": "depth", "v": 1}], [0]),
        ("street-1", [{"bn": "street-1:", "bt": NOW / 1e6}, {"n": "depth", "v": 1}, {"n": "battery", "v": 3}], [0, 1]),
        ("street-1", [{"bn": "street-1/", "bt": -10, "n": "depth", "v": 1}, {"n": "x:y", "t": -1e-6, "v": 3}], [0, 5]),
        ("street-1", [{"bn": "street-1:", "bu": "m"}, {"n": "depth", "v": 1}, {"n": "depth", "v": 1, "u": ""}], [0, 0]),
        ("street-1", [{"bu": "%"}, {"n": "battery", "v": 1}, {"n": "depth", "u": "", "v": 1}], [1, 0]),
        ("street-1", [{"bn": "street-1:depth", "v": 1}, {"v": 2, "t": -1}], [0, 0]),
        ("gateway", [{"bn": "urn:dev:mac:", "n": "01:temperature", "u": "K", "v": 300}], [3]),
        ("gateway", [{"bn": "street-1:", "n": "x:y", "v": 1}, {"bn": "street-1:x:", "n": "y", "v": 1}], [6, 6]),
        ("street-2", [{"bn": "street-1:", "n": "depth", "v": 7}, {"n": "battery", "v": 8}], [7, 1]),
        ("street-2", [{"bn": "street-2:", "n": "", "v": 1}, {"bn": "street-", "n": "1:battery", "v": 3}], [9, 1]),
    ],
)
def test_packs_of_plain_records_need_no_slow_way(device: str, pack: list[dict[str, Any]], sensors: list[int]) -> None:
    assert fast_only(device, pack).sensor.tolist() == sensors
    assert slowly((device, json.dumps(pack).encode())).sensor.tolist() == sensors


def test_a_unit_and_a_time_of_the_base_hold_until_the_next() -> None:
    pack = [
        {"bn": "street-2:", "bu": "m", "bt": NOW / 1e6 - 10},
        {"n": "depth", "v": 0.5},
        {"n": "depth", "v": 5, "t": 2.5, "u": "cm"},
        {"bu": "mm", "bt": -60, "n": "depth", "v": 5},
    ]
    result = fast_only("street-2", pack)
    assert result.value.tolist() == [50, 5, 0.5]
    assert (result.observed_at - NOW).tolist() == [-10 * SECOND, -7_500_000, -60 * SECOND]


# Numbers and texts as JSON, where the way they are written may matter.
NEAR = st.sampled_from(
    ["0", "-0", "-5", "2.5", "0.0000005", "0.0000015", "268435455", "268435456", "1782892799.1234565", "946684800"]
) | st.floats(-1, 1).map(repr)
TIMES = (
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "-5",
            "2.5",
            "0.0000005",
            "0.0000015",
            "1e-7",
            "268435456",
            "268435455.9999999",
            "268435455",
            "1782892800",
            "1782892799.123456",
            "1782892799.1234565",
            "1782892799.1234575",
            "1.7828928e9",
            "1782896400",
            "1782896400.000001",
            "946684799.999999",
            "946684800",
            "8999999999",
            "8999999999.999999",
            "9000000000",
            "9e9",
            "-8999999999.999999",
            "-9e9",
            "-9000000000",
            "1e300",
            "18446744073709551616",
            "9007199254740993",
        ]
    )
    | NEAR
    | st.floats(-1e10, 1e10).map(repr)
    | st.integers(-(10**10), 10**10).map(str)
)
VALUES = (
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "0.1",
            "1",
            "-1.5e-7",
            "1e308",
            "1.7976931348623157e308",
            "-1e308",
            "5e-324",
            "2e-324",
            "9007199254740993",
            "-9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709555713",
            "123456789012345678901234567890",
            "1" + "0" * 300,
            "0.1000000000000000055511151231257827021181583404541015625000000000000001",
            "1.00000000000000011102230246251565",
        ]
    )
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers().map(str)
)
NAMES = st.sampled_from(
    [
        "depth",
        "battery",
        "temperature",
        "gas",
        "x:y",
        "y",
        "a/b",
        "",
        ":depth",
        "/depth",
        "1:depth",
        "street-1:depth",
        "street-2/depth",
        "pump",
        "dep\\u0074h",
        "street-1\\u003adepth",
        "street-1\\/depth",
        "01:gas",
        "acc_z",
        "depth ",
    ]
).map('"{}"'.format)
BASES = st.sampled_from(
    [
        "",
        "street-1:",
        "street-1/",
        "street-2:",
        "street-2/",
        "street-",
        "street-1:x:",
        "street-1:x",
        "urn:dev:mac:01:",
        "urn:dev:mac:01/",
        "urn:dev:mac:",
        "nobody:",
        "nobody/",
        "bridge-1:",
        "old:",
        "new/",
        ":",
        "/",
        "a/b:",
        "dep",
        "street-1",
        "street-1:depth",
        "street-1::",
        "street-1//",
        "x" * 299 + ":",
        "x" * 300 + ":",
        "x" * 301 + ":",
        "street-1:" + ":" * 400,
        "street-1:" * 40,
    ]
).map('"{}"'.format)
UNITS = st.sampled_from(
    [
        "",
        "cm",
        " cm ",
        "in",
        "m",
        "mm",
        "%",
        "%EL",
        "%RH",
        "%VOL",
        "ppm",
        "Pa",
        "Cel",
        "K",
        "°F",
        "g",
        "/",
        "furlong",
    ]
).map('"{}"'.format)
LIKELY = {
    "bn": st.sampled_from(["street-1:", "street-1/", "street-2:", "", "street-1:x:"]).map('"{}"'.format),
    "n": st.sampled_from(["depth", "depth", "battery", "x:y"]).map('"{}"'.format),
    "u": st.sampled_from(["", "%", "cm", "cm", "mm", "m", "in", "furlong"]).map('"{}"'.format),
}
PLAIN = {"v": VALUES, "n": NAMES, "u": UNITS, "t": TIMES, "bn": BASES, "bt": TIMES, "bu": UNITS}
ODD = st.sampled_from(
    [
        "null",
        "true",
        '"1"',
        '"depth"',
        "[]",
        "{}",
        "1e999",
        "-1e999",
        "1" + "0" * 400,
        "01",
        "NaN",
        ".5",
        '"\\ud800"',
        '"\udcff"',  # an octet that is no UTF-8, as it is written below
    ]
)


def objects(
    fields: dict[str, st.SearchStrategy[str]], usual: dict[str, st.SearchStrategy[str]]
) -> st.SearchStrategy[str]:
    """Records of `usual` fields and some of `fields`."""
    return st.builds(
        lambda always, sometimes: "{" + ",".join(f'"{k}":{v}' for k, v in {**always, **sometimes}.items()) + "}",
        st.fixed_dictionaries(usual),
        st.fixed_dictionaries({}, optional=fields),
    )


# Records that the fast way takes, unless a unit does not fit.
GOOD = objects({"t": NEAR, "bn": LIKELY["bn"]}, {"n": LIKELY["n"], "v": VALUES}) | objects(
    {"t": NEAR}, {"n": st.just('"depth"'), "u": LIKELY["u"], "v": VALUES}
)
BASE = objects({"bt": NEAR}, {"bn": LIKELY["bn"]}) | objects({"bu": LIKELY["u"]}, {"bt": NEAR})
ANY = objects(PLAIN, {})
OTHER = {
    "bv": VALUES,
    "bs": VALUES,
    "bver": st.sampled_from(["10", "11", '"10"']),
    "s": VALUES,
    "ut": TIMES,
    "vs": NAMES,
    "vb": st.sampled_from(["true", "false", "1"]),
    "x": VALUES,
    "x_": VALUES,
    "\\u0076": VALUES,
}
NEARLY = objects(OTHER, {"n": LIKELY["n"], "v": VALUES})  # one field more than the fast way knows, as a rule
# Fields given twice, of the wrong type, and unknown to the fast way.
STRANGE = st.lists(
    st.sampled_from(sorted(PLAIN) + sorted(OTHER)).flatmap(
        lambda key: st.tuples(st.just(key), (PLAIN | OTHER)[key] | ODD)
    ),
    max_size=5,
).map(lambda pairs: "{" + ",".join(f'"{k}":{v}' for k, v in pairs) + "}")
PACKS = st.one_of(
    st.lists(GOOD | BASE, min_size=1, max_size=6),
    st.builds(lambda base, rest: [base, *rest], BASE, st.lists(GOOD, min_size=1, max_size=6)),
    st.lists(ANY | GOOD, max_size=4),
    st.builds(lambda base, rest: [base, *rest], objects(PLAIN, {"bt": TIMES}), st.lists(GOOD, max_size=2)),
    st.lists(NEARLY | GOOD, max_size=3),
    st.lists(GOOD | BASE | ANY | STRANGE | ODD, max_size=5),
).map(lambda records: "[" + ",".join(records) + "]")
PAYLOADS = st.one_of(
    PACKS,
    PACKS,
    PACKS,
    st.builds(lambda pack, cut: pack[: min(cut, len(pack))], PACKS, st.integers(0, 200)),
    st.builds(lambda pack, tail: pack + tail, PACKS, st.sampled_from([" ", "\n", "]", ",", "x", "\x00"])),
    ODD,
).map(lambda text: text.encode("utf-8", "surrogateescape"))
DEVICES = st.sampled_from(
    ["street-1", "street-1", "street-2", "urn:dev:mac:01", "gateway", "nobody", "old", "new", "bridge-1"]
)


@settings(deadline=None, max_examples=1000)
@given(st.lists(st.tuples(DEVICES, PAYLOADS), min_size=1, max_size=3))
@example([("street-1", b'[{"n":"depth","v":1},{"bn":"street-1:","n":""}]')])
@example([("street-1", b'[{"n":"depth","v":1},{"t":0}]')])
@example([("street-1", b'[{"n":"depth","v":-0,"u":"cm"},{"u":"cm"},{"bn":"nobody:"}]')])
@example([("street-1", b'[{"n":"depth","v":1},{"n":"depth","v":1,"bv":1},{"n":"depth","v":1,"bver":10}]')])
@example([("street-1", b'[{"bu":"cm"},{"bu":"","n":"depth","v":1}]')])
@example([("street-1", b'[{"bt":-7217107200},{"n":"depth","v":1,"t":9e9}]')])
@example([("street-1", b'[{"bt":9e9},{"n":"depth","v":1,"t":-7217107200}]')])
@example([("street-1", b'[{"bn":"urn:dev:mac:01:","n":"temperature","u":"\xc2\xb0F","v":71.3}]')])
@example([("street-1", b'[{"bn":"a/b:","n":"depth","v":1},{"bn":"a/b/","n":"depth","v":1}]')])
@example([("street-2", b'[{"bn":"street-1:","n":"depth","v":1}]')])
@example([("street-2", b'[{"n":"a/b","v":1}]'), ("street-2", b'[{"bn":"street-2:","n":"a/b","v":1}]')])
@example(
    [("street-1", b'[{"bn":"%b:","n":"%b","v":1}]' % one) for one in ((b"bridge-1", b"acc_z"), (b"old", b"depth"))]
)
def test_packs_read_the_fast_way_say_what_they_say_read_the_slow_way(packs: list[tuple[str, bytes]]) -> None:
    assert all_of(decoded(*packs)) == all_of(slowly(*packs))
