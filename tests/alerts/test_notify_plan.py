"""The notification plan: what is read, every mistake with its place, secrets not shown again, who is on duty."""

from __future__ import annotations

import json

import pytest

from alerts.notify.desk import on_duty
from alerts.notify.plan import InvalidPlan, masked, masked_text, parse_json, parse_plan, to_toml
from twin.model import HOUR, MINUTE, SECOND, parse_time

PLAN = """
# who is told
zone = "Asia/Shanghai"
wait = "10s"
escalate_after = { red = "3min" }

[receiver.desk]
type = "wecom"
url = "https://127.0.0.1/send?key=geheim-1"   # the robot's key
quiet = "night"

[receiver.board]
type = "webhook"
url = "http://127.0.0.1:9/hook"
secret = 'geheim-2'
headers = { Authorization = "Bearer geheim-3" }

[receiver.chief]
type = "mail"
host = "127.0.0.1"
security = "none"
from = "twin@example.org"
to = ["chief@example.org"]
user = "twin"
password = "env:MAIL_PASSWORD"

[quiet.night]
from = "22:00"
to = "07:00"

[person.zhang]
name = "张伟"
mobile = "13800000000"

[roster.duty]
otherwise = ["chief"]

[[roster.duty.shift]]
days = ["mon-fri"]
from = "08:00"
to = "20:00"
receivers = ["desk"]
people = ["zhang"]

[[roster.duty.shift]]
from = "20:00"
to = "08:00"
receivers = ["board"]

[[roster.duty.exception]]
date = 2026-10-01
receivers = ["chief"]

[[route]]
where = { domain = "drainage", level = ["orange", "red"] }
receivers = ["duty", "board"]
escalate = [["chief"]]

[[route]]
receivers = ["desk"]
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(InvalidPlan) as refused:
        parse_plan(text)
    return [str(problem) for problem in refused.value.problems]


def test_a_plan_is_read_with_its_defaults() -> None:
    plan = parse_plan(PLAN)
    assert plan.routes[0].wait == (10 * SECOND,) * 4
    assert plan.routes[0].escalate_after == (2 * HOUR, 30 * MINUTE, 10 * MINUTE, 3 * MINUTE)
    assert plan.receivers["desk"].per_minute == 20
    assert plan.receivers["board"].per_minute == 0
    assert plan.quiets["night"].levels == {1, 2, 3}
    assert parse_plan(to_toml(plan.table)) == plan
    assert parse_json(json.dumps({**plan.table, "version": 4}, default=str)).routes == plan.routes


def test_every_mistake_is_told_with_its_line() -> None:
    text = """zone = "Mars/Olympus"
wait = "fast"
[receiver.a]
type = "webhook"
secret = 5
[receiver.b]
type = "fax"
[receiver.c]
type = "webhook"
url = "ftp://x"
quiet = "noon"
attempts = 0
secret = "env:CIMTWIN_API_TOKEN"
[quiet.night]
from = "25:00"
to = "07:00"
[roster.r]
[[roster.r.shift]]
days = ["monday"]
from = "08:00"
to = "09:00"
receivers = ["nobody"]
[[route]]
receivers = ["a"]
where = { level = "pink", colour = "x" }
[[route]]
receivers = ["zzz"]
escalate = ["yyy"]
"""
    found = mistakes(text)
    for said in (
        "line 1, zone: there is no time zone",
        "line 2, wait: must be a duration",
        "receiver.a, line 3, url: is missing",
        "receiver.a, line 5, secret: must be a text, or env:NAME",
        "receiver.b, line 7, type: must be one of webhook, alertmanager, mail, mqtt, wecom, dingtalk, feishu",
        "receiver.c, line 10, url: must be an address",
        "receiver.c, line 11, quiet: there is no quiet hours 'noon'",
        "receiver.c, line 12, attempts: must be a whole number",
        "receiver.c, line 13, secret: CIMTWIN_API_TOKEN is a setting of the service's own",
        "quiet.night, line 15, from: must be a time of day",
        "roster.r, line 17, otherwise: is missing",
        "roster.r shift 1, line 19, days: must be of mon",
        "roster.r shift 1, line 22, receivers: there is no receiver 'nobody'",
        "route 1, line 25, where.level: must be of blue",
        "route 1, line 25, where.colour: must be one of",
        "route 2, line 27, receivers: there is no receiver or roster 'zzz'",
        "route 2, line 28, escalate: there is no receiver or roster 'yyy'",
    ):
        assert any(line.startswith(said) for line in found), f"{said} in {found}"
    assert len(found) == 17


def test_an_address_or_header_that_cannot_be_sent_is_refused_before_it_is_needed() -> None:
    start = '[receiver.a]\ntype = "webhook"\n'
    for rest, said in (
        ('url = "http://127.0.0.1/报警"', "url: must be an address http://… or https://… in ASCII"),
        ('url = "http://user:geheim@127.0.0.1/"', "url: must hold no user and password"),
        ('url = "http://127.0.0.1/"\nheaders = { X-City = "合肥" }', "headers.X-City: must be ASCII"),
        (
            'url = "http://127.0.0.1/"\ntimeout = "1h"',
            'timeout: must be a duration such as "30s" or "5min", from 1ms to 2min',
        ),
    ):
        (found,) = mistakes(start + rest)
        assert said in found


@pytest.mark.parametrize("text", ["[receiver", "a = 1", "receiver = 3", "route = {}", "\x00", "[[route]]\nreceivers=5"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    assert mistakes(text)


def test_no_scope_of_a_cap_message_is_public() -> None:
    (said,) = mistakes('[cap]\nscope = "Public"\n')
    assert "no sensor warns the public" in said


def test_secrets_are_not_shown_and_stay_when_they_are_written_back() -> None:
    plan = parse_plan(PLAN)
    shown = masked_text(PLAN, plan.table)
    assert "geheim" not in shown + json.dumps(masked(plan.table), default=str)
    assert "# who is told" in shown
    assert "env:MAIL_PASSWORD" in shown
    again = parse_plan(shown, plan.table)
    assert again == plan
    assert again.table == plan.table
    with pytest.raises(InvalidPlan, match="no secret is kept here"):
        parse_plan(shown)


def test_a_secret_that_is_also_another_word_of_the_plan_does_not_show() -> None:
    text = '[receiver.a]\ntype = "webhook"\nurl = "http://127.0.0.1/a"\nsecret = """a\\u0062c"""\ntitle = "abc"\n'
    plan = parse_plan(text)
    shown = masked_text(text, plan.table)
    assert parse_plan(shown, plan.table) == plan
    assert 'secret = "***"' in shown
    assert "\\u0062" not in shown


def test_the_roster_knows_weekdays_nights_and_exceptions_in_its_own_zone() -> None:
    plan = parse_plan(PLAN)
    for at, receivers, people in (
        ("2026-09-28T10:00:00+08:00", ["desk"], ["zhang"]),  # a Monday
        ("2026-09-28T20:00:00+08:00", ["board"], []),
        ("2026-09-29T07:59:00+08:00", ["board"], []),
        ("2026-10-03T10:00:00+08:00", ["chief"], []),  # Saturday: nobody
        ("2026-10-01T10:00:00+08:00", ["chief"], []),  # the exception
        ("2026-10-02T00:00:00+08:00", ["board"], []),
    ):
        assert on_duty(plan, ["duty"], parse_time(at)) == (receivers, people), at


def test_quiet_hours_end_and_never_hold_red() -> None:
    night = parse_plan(PLAN).quiets["night"]
    assert night.until(parse_time("2026-09-28T23:30:00+08:00"), 2) == parse_time("2026-09-29T07:00:00+08:00")
    assert night.until(parse_time("2026-09-28T06:59:59+08:00"), 3) == parse_time("2026-09-28T07:00:00+08:00")
    assert night.until(parse_time("2026-09-28T12:00:00+08:00"), 2) is None
    assert night.until(parse_time("2026-09-28T23:30:00+08:00"), 4) is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"zone": null}', "file, zone: must not be null"),
        ('{"receiver": {"a": {"type": "mqtt", "title": null}}}', "receiver.a, title: must not be null"),
        ('{"route": [{"receivers": ["a"], "box": null}]}', "route 1, box: must not be null"),
        ('{"route": [{"receivers": ["a", null]}]}', "route 1, receivers 2: must not be null"),
        ('{"person": {"p": {"name": "\\ud800"}}}', "person.p, name: holds half a character"),
    ],
)
def test_json_that_could_not_be_kept_as_toml_is_refused_with_its_place(body: str, place: str) -> None:
    with pytest.raises(InvalidPlan) as refused:
        parse_json(body)
    assert any(str(problem).startswith(place) for problem in refused.value.problems), refused.value.problems


@pytest.mark.parametrize("address", ["a@[", "张@例子.中国", "a(@x", "a:b@c", "a@b@c", "@b", "a@-"])
def test_a_mail_address_that_cannot_be_written_to_is_refused_before_it_is_needed(address: str) -> None:
    mail = f'[receiver.m]\ntype = "mail"\nhost = "h"\nfrom = "x@y"\nto = ["desk+night@a-b.example", "{address}"]\n'
    assert any("to: must be a mail address" in mistake for mistake in mistakes(mail))
    assert any("must be a mail address" in mistake for mistake in mistakes(f'[person.p]\nmail = "{address}"\n'))
