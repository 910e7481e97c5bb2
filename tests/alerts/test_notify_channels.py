"""What each channel makes of a notice: forms, lengths, signatures, and what answers mean."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from alerts.notify import dingtalk, feishu, wecom
from alerts.notify.calls import HttpCall, Letter, Publication, of_status
from alerts.notify.channels import CHANNELS, answer
from alerts.notify.notice import Notice, joined
from alerts.notify.plan import NEEDS, Receiver, parse_plan
from twin.model import SECOND, parse_time

AT = parse_time("2026-07-01T08:05:11Z")
ADDRESS = 'url = "http://127.0.0.1:9/x?key=1"\n'
OPTIONS = {
    "webhook": ADDRESS + 'secret = "whsec_c2VjcmV0"\n',
    "alertmanager": 'url = "http://127.0.0.1:9/"\nresend = "30s"\n',
    "mail": 'host = "127.0.0.1"\nfrom = "twin@example.org"\nto = ["a@example.org"]\n',
    "mqtt": 'topic = "city/{tenant}/{domain}/{level}"\n',
    "wecom": ADDRESS,
    "dingtalk": ADDRESS + 'secret = "SECx"\n',
    "feishu": ADDRESS + 'secret = "fs"\n',
}


def receiver(kind: str, more: str = "") -> Receiver:
    return parse_plan(f'[receiver.r]\ntype = "{kind}"\n{OPTIONS[kind]}{more}').receivers["r"]


def alert(number: int = 1, level: str = "orange", state: str = "active_unacknowledged", **more: Any) -> dict[str, Any]:
    return {
        "id": f"a{number}", "rule": "road-ponding", "sensor": f"d{number}/depth", "asset": f"下穿-{number}",
        "tenant": "排水 公司", "domain": "drainage", "level": level, "peak_level": level, "state": state, "flags": [],
        "raised_at": "2026-07-01T08:05:00Z",
        "cleared_at": None if state.startswith("active") else "2026-07-01T09:00:00Z",
        "value": 26.1, "threshold": 25, "place": {"lon": 114.0, "lat": 22.5, "name": "x"},
        "instruction": {"zh": "封闭通道", "en": "Close it"},
        "message": {"zh": f"橙色报警 积水：下穿-{number} 26.1 cm（限值 25 cm）", "en": f"ORANGE ponding: {number}"},
        "told_level": None, **more,
    }  # fmt: skip


def notice(*alerts: dict[str, Any], kind: str = "alert", **more: Any) -> Notice:
    several = alerts or (alert(),)
    return Notice(kind, several[0]["level"], "g", AT, several, len(several), **more)


def body(call: HttpCall | Letter | Publication) -> Any:
    assert isinstance(call, HttpCall)
    return json.loads(call.body)


def made(kind: str, told: Notice, more: str = "") -> HttpCall:
    call = CHANNELS[kind](told, receiver(kind, more), "id-1", AT)
    assert isinstance(call, HttpCall)
    return call


def test_every_type_of_receiver_has_a_channel() -> None:
    assert CHANNELS.keys() == NEEDS.keys() == OPTIONS.keys()


def test_a_webhook_is_signed_over_id_time_and_body() -> None:
    call = made("webhook", notice())
    signed = b"id-1.%d." % (AT // SECOND) + call.body
    expected = base64.b64encode(hmac.new(b"secret", signed, hashlib.sha256).digest()).decode()
    assert call.headers["webhook-signature"] == f"v1,{expected}"
    assert call.headers["webhook-id"] == "id-1"
    assert call.headers["webhook-timestamp"] == str(AT // SECOND)
    given = body(call)
    assert (given["id"], given["status"], given["level"]) == ("id-1", "firing", "orange")
    assert given["alerts"][0]["id"] == "a1"


def test_alertmanager_is_told_until_when_and_that_the_old_level_ended() -> None:
    call = made("alertmanager", notice(alert(1, "red", told_level="orange"), alert(2, state="cleared"), kind="update"))
    assert call.url == "http://127.0.0.1:9/api/v2/alerts"
    old, new, cleared = body(call)
    assert (old["labels"]["severity"], new["labels"]["severity"]) == ("orange", "red")
    assert parse_time(old["endsAt"]) <= AT < parse_time(new["endsAt"])
    assert parse_time(new["endsAt"]) == AT + 120 * SECOND
    assert cleared["labels"]["alertname"] == "road-ponding"
    assert parse_time(cleared["startsAt"]) <= parse_time(cleared["endsAt"]) <= AT
    assert all(set(item) == {"labels", "annotations", "startsAt", "endsAt"} for item in (old, new, cleared))


def test_people_are_told_times_of_their_own_zone_and_machines_of_utc() -> None:
    said = "水位异常 3 m（自 2026-07-01T22:15:00Z）2026-99-01T00:00:00Z"
    told = notice(alert(message={"zh": said, "en": "since 2026-07-01T22:15:00.500Z"}))
    letter = CHANNELS["mail"](told, receiver("mail"), "id-1", AT)
    assert isinstance(letter, Letter)
    parsed = email.message_from_bytes(letter.content, policy=email.policy.default)
    for text in (parsed["Subject"], parsed.get_content()):
        assert "自 2026-07-02 06:15:00 +0800" in text
        assert "22:15" not in text
        assert "2026-99-01T00:00:00Z" in text
    assert body(made("webhook", told))["alerts"][0]["message"]["zh"] == said


def test_a_mail_has_one_name_however_often_it_goes_out_and_reaches_who_is_on_duty() -> None:
    people = ({"name": "张伟", "mobile": "", "mail": "zhang@example.org"},)
    letter = CHANNELS["mail"](notice(people=people), receiver("mail"), "id-1", AT)
    assert isinstance(letter, Letter)
    assert letter.recipients == ("a@example.org", "zhang@example.org")
    parsed = email.message_from_bytes(letter.content, policy=email.policy.default)
    assert parsed["Message-ID"] == "<id-1@cimtwin>"
    assert "橙色" in parsed["Subject"]
    text = parsed.get_content()
    assert "封闭通道" in text
    assert "Close it" in text
    assert "2026-07-01 16:05:00 +0800" in text


def test_an_mqtt_topic_is_made_of_words_that_a_topic_may_have() -> None:
    call = CHANNELS["mqtt"](notice(), receiver("mqtt"), "id-1", AT)
    assert isinstance(call, Publication)
    assert call.topic == "city/排水_公司/drainage/orange"
    assert json.loads(call.payload)["id"] == "id-1"


def test_dingtalk_is_signed_in_its_address_and_calls_who_is_on_duty() -> None:
    people = ({"name": "张伟", "mobile": "13800000000", "mail": ""},)
    call = made("dingtalk", notice(people=people))
    query = parse_qs(urlsplit(call.url).query)
    signed = f"{AT // 1000}\nSECx".encode()
    assert query["timestamp"] == [str(AT // 1000)]
    assert query["sign"] == [base64.b64encode(hmac.new(b"SECx", signed, hashlib.sha256).digest()).decode()]
    given = body(call)
    assert given["msgtype"] == "markdown"
    assert given["at"]["atMobiles"] == ["13800000000"]
    assert "@13800000000" in given["markdown"]["text"]


def test_feishu_is_a_signed_card_in_the_levels_colour() -> None:
    given = body(made("feishu", notice()))
    key = f"{AT // SECOND}\nfs".encode()
    assert given["sign"] == base64.b64encode(hmac.new(key, b"", hashlib.sha256).digest()).decode()
    assert given["card"]["header"]["template"] == "orange"
    over = body(made("feishu", notice(alert(state="cleared"), kind="resolved")))
    assert over["card"]["header"]["template"] == "green"


LIMITS = {"wecom": 4096, "dingtalk": 20_000, "feishu": 20_000}


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("language", ["both", "zh", "en"])
def test_a_storm_fits_into_a_chats_message_and_says_what_it_left_out(kind: str, language: str) -> None:
    told = notice(*(alert(n) for n in range(500)))
    call = made(kind, told, f'language = "{language}"\n')
    given = body(call)
    text = {
        "wecom": lambda: given["markdown"]["content"],
        "dingtalk": lambda: given["markdown"]["text"],
        "feishu": lambda: given["card"]["elements"][0]["text"]["content"],
    }[kind]()
    size = len(text.encode()) if kind == "wecom" else len(call.body)
    assert LIMITS[kind] / 4 < size <= LIMITS[kind]
    assert "500" in str(given)
    assert "其余" in text or "more lines" in text


@pytest.mark.parametrize("kind", ["wecom", "dingtalk", "feishu"])
def test_what_a_device_is_called_is_no_markup_in_a_chat(kind: str) -> None:
    evil = alert(message={"zh": "<@all> [点我](http://x) <at id=all></at>", "en": "**<font>** `x`"})
    text = str(body(made(kind, notice(evil))))
    assert "<@all>" not in text
    assert "<at id" not in text
    assert "](http" not in text


def test_several_notices_become_one_in_which_the_last_word_counts() -> None:
    one = joined([notice(alert(1)), notice(alert(2, "red")), notice(alert(1, state="cleared"), kind="resolved")])
    assert [(a["id"], a["state"]) for a in one.alerts] == [("a2", "active_unacknowledged"), ("a1", "cleared")]
    assert (one.level, one.kind) == ("red", "update")
    # They come the worst first, which is not the order in which things happened.
    over = replace(notice(alert(1, "red", state="cleared"), kind="resolved"), at=AT + SECOND)
    assert [a["state"] for a in joined([over, notice(alert(1, "blue"))]).alerts] == ["cleared"]


@pytest.mark.parametrize(
    ("status", "is_sent", "may_retry"),
    [(200, True, False), (204, True, False), (302, False, False), (404, False, False), (429, False, True),
     (500, False, True), (503, False, True)],
)  # fmt: skip
def test_what_an_http_status_means(status: int, is_sent: bool, may_retry: bool) -> None:
    answer = of_status(status, b"", {"retry-after": "7"})
    assert (answer.is_sent, answer.may_retry) == (is_sent, may_retry)


def test_what_a_chats_answer_means_is_in_its_number() -> None:
    assert wecom.answer(200, b'{"errcode":0,"errmsg":"ok"}').is_sent
    busy = wecom.answer(200, b'{"errcode":45009,"errmsg":"api freq out of limit"}')
    assert (busy.is_sent, busy.may_retry, busy.wait_s) == (False, True, 60)
    assert not wecom.answer(200, b'{"errcode":93000,"errmsg":"invalid webhook url"}').may_retry
    assert not dingtalk.answer(200, b'{"errcode":310000,"errmsg":"sign not match"}').may_retry
    assert feishu.answer(200, b'{"code":0,"msg":"success"}').is_sent
    assert feishu.answer(200, b"<html>").may_retry
    assert dingtalk.answer(502, b"").may_retry
    assert answer("feishu", 429, b"", {"retry-after": "30"}).wait_s == 30
