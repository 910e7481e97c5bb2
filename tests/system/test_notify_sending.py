"""Alerts reach people: from a reading over a real broker to real receivers on loopback, which fail, hang, and die."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import paho.mqtt.client as paho
import psycopg
import pytest
import shapely
from lxml import etree
from paho.mqtt.enums import CallbackAPIVersion

from alerts.notify.notice import Notice
from alerts.notify.plan import parse_plan
from alerts.notify.webhook import signature
from tests.conftest import Cimtwin, empty_database, until
from tests.far_side import Hook, Mailbox
from twin.demo.run import import_district
from twin.sending import deliver

pytestmark = pytest.mark.system

START_MS = 1_790_000_000_000
SENSORS = "device,property,kind,tenant,lon,lat,tags\n" + "".join(
    f"d{n},depth,drainage.ponding_depth,default,114.05,22.54,underpass\n" for n in range(30)
)
RULES = """
[[rule]]
id = "ponding"
title = { zh = "积水", en = "Ponding" }
kind = "drainage.ponding_depth"
detector = "threshold"
levels = { yellow = 15, red = 40 }
instruction = { zh = "封闭道路", en = "Close the road" }
"""
INCIDENTS = (
    "create table if not exists incident_alerts (alert_id text primary key, incident text not null,"
    " raised_at timestamptz not null, facts jsonb not null)"
)
WHERE = 'where = { tag = ["x", "underpass"], kind = "drainage.ponding_depth", tenant = "default" }'
HURRY = 'wait = "0s"\ninterval = "0s"\n'


def webhook(name: str, url: str, more: str = "") -> str:
    return f'[receiver.{name}]\ntype = "webhook"\nurl = "{url}"\nbackoff = "50ms"\n{more}\n'


def route(*names: str, more: str = "") -> str:
    return f"[[route]]\nreceivers = {json.dumps(names)}\n{more}\n"


@pytest.fixture
def open_(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Closes far sides at the end."""
    with ExitStack() as stack:

        def opened(far: Any) -> Any:
            stack.callback(far.close)
            return far

        yield opened


@pytest.fixture
def city(cimtwin: Callable[..., Cimtwin]) -> Cimtwin:
    made = cimtwin(
        CIMTWIN_NOTIFY_TOKEN="aus-der-umgebung", CIMTWIN_NOTIFY_CHAT="http://127.0.0.1:9/send?key=geheim\u00e9"
    )
    made.put_sensors(SENSORS)
    made.put_rules(RULES)
    return made


def put(city: Cimtwin, text: str) -> int:
    answer = httpx.put(f"{city.url}/api/v1/notify?by=li", content=text.encode(), timeout=30)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["version"])


def flood(city: Cimtwin, *devices: int, value: float = 20.0, step: int = 0) -> None:
    city.publish(*(
        (f"cim/v1/default/d{n}/telemetry", {"ts": START_MS + step * 10_000, "values": {"depth": value}})
        for n in devices
    ))  # fmt: skip


def deliveries(city: Cimtwin, **which: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = city.get("/deliveries", limit=1000, **which)["items"]
    return items


def certificate(folder: Path) -> tuple[Path, Path]:
    pem, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem, key


def test_a_receiver_that_fails_first_gets_each_alert_once_under_one_id_and_signed(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    hook = open_(Hook(503, 500, 200))
    headers = 'headers = { Authorization = "env:CIMTWIN_NOTIFY_TOKEN" }'
    put(
        city, HURRY + webhook("desk", f"{hook.url}/in?a=b", f'secret = "s3cret"\n{headers}') + route("desk", more=WHERE)
    )
    flood(city, 1)
    until(lambda: deliveries(city, state="sent"))
    (sent,) = deliveries(city)
    assert (sent["attempts"], sent["kind"], sent["level"]) == (3, "alert", "yellow")
    assert len(hook.seen) == 3
    assert {request.headers["webhook-id"] for request in hook.seen} == {sent["id"]}
    last = hook.seen[-1]
    assert last.path == "/in?a=b"
    assert last.headers["authorization"] == "aus-der-umgebung"
    stamp = int(last.headers["webhook-timestamp"])
    assert last.headers["webhook-signature"] == signature("s3cret", sent["id"], stamp, last.body)
    (alert,) = city.get("/alerts")["items"]
    assert last.json["alerts"][0]["id"] == alert["id"] == sent["alerts"][0]
    assert last.json["alerts"][0]["instruction"]["zh"] == "封闭道路"
    assert city.get("/deliveries", alert=alert["id"], receiver="desk")["items"] == [sent]
    assert city.get(f"/deliveries/{sent['id']}")["content"]["kind"] == "alert"
    stats = city.stats()
    assert (stats["notify_sent"], stats["notify_failed"], stats["notify_dead"]) == (1, 2, 0)
    assert "cimtwin_notify_sent_total 1.0" in httpx.get(f"{city.url}/metrics").text
    flood(city, 1, value=1.0, step=1)
    until(lambda: len(deliveries(city, state="sent")) == 2)
    assert hook.seen[-1].json["status"] == "resolved"


def test_what_never_arrives_is_a_dead_letter_goes_to_the_fallback_and_can_be_sent_again(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    bad, good, gone = open_(Hook(500)), open_(Hook(200)), open_(Hook(404))
    put(
        city,
        HURRY
        + webhook("bad", bad.url, 'attempts = 3\nfallback = "good"')
        + webhook("good", good.url)
        + webhook("gone", gone.url)
        + route("bad", "gone"),
    )
    flood(city, 1)
    until(lambda: len(deliveries(city, state="dead")) == 2 and deliveries(city, state="sent"))
    by_receiver = {one["receiver"]: one for one in deliveries(city)}
    assert by_receiver["bad"]["attempts"] == 3
    assert "HTTP 500" in by_receiver["bad"]["last_error"]
    assert by_receiver["gone"]["attempts"] == len(gone.seen) == 1
    assert by_receiver["good"]["instead_of"] == by_receiver["bad"]["id"]
    assert city.stats()["notify_dead"] == 2
    bad.answers = [200]
    id_ = by_receiver["bad"]["id"]
    key = {"Idempotency-Key": "k"}
    again = [city.post(f"/deliveries/{id_}/retry", {"by": "li"}, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in again] == [200, 200]
    until(lambda: city.get(f"/deliveries/{id_}")["state"] == "sent")
    assert city.get(f"/deliveries/{id_}")["reason"] == "tried again by li"
    assert bad.seen[-1].headers["webhook-id"] == id_
    assert city.post(f"/deliveries/{id_}/retry").status_code == 409
    assert city.post("/deliveries/none/retry").status_code == 404


def test_one_that_hangs_keeps_nobody_else_waiting_and_redirects_are_not_followed(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    stuck, moved, good = open_(Hook(200)), open_(Hook(302)), open_(Hook(200))
    stuck.hold.clear()
    put(
        city,
        HURRY
        + webhook("stuck", stuck.url, 'timeout = "20s"')
        + webhook("moved", moved.url)
        + webhook("good", good.url)
        + route("stuck", "moved", "good"),
    )
    for n in range(5):
        flood(city, n)
        until(lambda n=n: len(deliveries(city, state="sent", receiver="good")) == n + 1)
    assert len(stuck.seen) == 1
    until(lambda: len(deliveries(city, state="dead", receiver="moved")) == 5)
    assert all(request.path == "/" for request in moved.seen)
    assert city.stats()["readings_stored"] == 5
    stuck.hold.set()
    until(lambda: len(deliveries(city, state="sent", receiver="stuck")) == 5)


def test_when_the_way_out_of_the_house_is_cut_those_inside_are_still_told(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    stuck, good = open_(Hook(200)), open_(Hook(200))
    stuck.hold.clear()
    chats = [f"chat-{n}" for n in range(12)]
    put(
        city,
        HURRY
        + "".join(webhook(name, stuck.url, 'timeout = "2min"') for name in chats)
        + webhook("inside", good.url)
        + route(*chats, "inside"),
    )
    flood(city, 1)
    until(lambda: deliveries(city, state="sent", receiver="inside"))
    assert len(deliveries(city, state="waiting")) == 12


def test_nothing_is_lost_or_given_another_id_when_the_service_is_killed_while_it_sends(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    hook = open_(Hook(200))
    hook.hold.clear()
    put(city, HURRY + webhook("desk", hook.url) + route("desk"))
    flood(city, *range(30))
    until(lambda: hook.seen and city.stats()["alerts_active"] == 30)
    until(lambda: sum(len(one["alerts"]) for one in deliveries(city)) == 30)
    city.kill()
    hook.hold.set()
    first = hook.seen[0].headers["webhook-id"]
    city.start()
    until(lambda: len({a for one in deliveries(city, state="sent") for a in one["alerts"]}) == 30)
    assert {one["state"] for one in deliveries(city)} == {"sent"}
    ids = [request.headers["webhook-id"] for request in hook.seen]
    assert set(ids) == {one["id"] for one in deliveries(city)}
    assert {n: ids.count(n) for n in set(ids) if ids.count(n) > 1} == {first: 2}


def test_alerts_of_the_time_while_nobody_ran_the_sender_are_told_after_a_restart(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    hook = open_(Hook(503))
    put(city, 'wait = "1h"\n' + webhook("desk", hook.url) + route("desk"))
    flood(city, 1)
    until(lambda: city.stats()["alerts_active"] == 1)
    city.kill()
    hook.answers = [200]
    city.start()
    put(city, HURRY + webhook("desk", hook.url) + route("desk"))
    flood(city, 1, value=50, step=1)  # it gets worse, so it need not wait for what it was to wait for
    until(lambda: deliveries(city, state="sent"))
    assert deliveries(city)[0]["level"] == "red"


def test_mail_goes_out_over_tls_with_a_password_and_one_refused_recipient_does_not_stop_it(
    city: Cimtwin, open_: Callable[[Any], Any], tmp_path: Path
) -> None:
    pair = certificate(tmp_path)
    box = open_(Mailbox(pair, "twin", "p4ss", busy=1))
    box.refuse["gone@"] = "550 no such mailbox"
    put(
        city,
        f'{HURRY}[receiver.mail]\ntype = "mail"\nhost = "localhost"\nport = {box.port}\nca = "{pair[0]}"\n'
        'backoff = "50ms"\nfrom = "twin@example.org"\nto = ["desk@example.org", "gone@example.org"]\n'
        'user = "twin"\npassword = "p4ss"\n' + route("mail"),
    )
    flood(city, 1)
    until(lambda: deliveries(city, state="sent"))
    (sent,) = deliveries(city)
    (mail,) = box.mails
    assert (mail.user, mail.is_encrypted, mail.recipients) == ("twin", True, ("desk@example.org",))
    assert sent["attempts"] == 2
    assert "gone@example.org" in sent["last_error"]
    parsed = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert parsed["Message-ID"] == f"<{sent['id']}@cimtwin>"
    assert "封闭道路" in parsed.get_content()


def test_a_webhook_is_called_over_tls_only_where_its_certificate_is_trusted(
    city: Cimtwin, open_: Callable[[Any], Any], tmp_path: Path
) -> None:
    pair = certificate(tmp_path)
    hook = open_(Hook(200, certificate=pair))
    put(city, webhook("known", hook.url, f'ca = "{pair[0]}"') + webhook("unknown", hook.url) + route("known"))
    assert city.post("/notify/test", {"receiver": "known"}).json()["state"] == "sent"
    refused = city.post("/notify/test", {"receiver": "unknown"}).json()
    assert (refused["state"], refused["attempts"] > 0) == ("waiting", True)
    assert "certificate" in refused["last_error"]
    assert len(hook.seen) == 1


def test_a_recipient_who_is_refused_for_now_gets_the_mail_later_and_the_others_once(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    box = open_(Mailbox())
    box.refuse["grey@"] = "450 greylisted, come again"
    put(
        city,
        f'{HURRY}[receiver.mail]\ntype = "mail"\nhost = "127.0.0.1"\nport = {box.port}\nsecurity = "none"\n'
        'backoff = "50ms"\nfrom = "a@example.org"\nto = ["b@example.org", "grey@example.org"]\n' + route("mail"),
    )
    flood(city, 1)
    (second,) = until(lambda: deliveries(city, state="waiting", kind="alert") if box.mails else None)
    flood(city, 1, value=50, step=1)  # the others need not wait for them
    until(lambda: len(box.mails) == 2)
    assert [mail.recipients for mail in box.mails] == [("b@example.org",)] * 2
    box.refuse.clear()
    until(lambda: not deliveries(city, state="waiting"))
    assert sorted(mail.recipients for mail in box.mails) == [("b@example.org",)] * 2 + [("grey@example.org",)] * 2
    assert "grey@example.org" in second["reason"]


def test_a_wrong_mail_password_is_said_at_once(city: Cimtwin, open_: Callable[[Any], Any]) -> None:
    box = open_(Mailbox(None, "twin", "p4ss"))
    put(
        city,
        f'[receiver.mail]\ntype = "mail"\nhost = "127.0.0.1"\nport = {box.port}\nsecurity = "none"\n'
        'from = "a@example.org"\nto = "b@example.org"\nuser = "twin"\npassword = "wrong"\n' + route("mail"),
    )
    given = city.post("/notify/test", {"receiver": "mail"}).json()
    assert (given["state"], given["kind"]) == ("dead", "test")
    assert "535" in given["last_error"]


def test_mqtt_receivers_publish_to_the_services_own_broker_or_another(city: Cimtwin, mosquitto: str) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    clients = []
    for number, url in enumerate((city.mqtt_url, mosquitto)):
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"ear-{number}")
        subscribed = threading.Event()
        client.on_subscribe = lambda *_, done=subscribed: done.set()
        client.on_message = lambda _c, _u, message: heard.append((message.topic, json.loads(message.payload)))
        client.connect("127.0.0.1", int(url.rpartition(":")[2]))
        client.subscribe("cim/v1/alerts/#", 1)
        client.loop_start()
        assert subscribed.wait(10)
        clients.append(client)
    put(
        city,
        f'{HURRY}[receiver.own]\ntype = "mqtt"\n[receiver.other]\ntype = "mqtt"\nbroker = "{mosquitto}"\n'
        'topic = "cim/v1/alerts/other/{tenant}"\n' + route("own", "other"),
    )
    flood(city, 1)
    until(lambda: len(heard) == 2)
    assert {topic for topic, _ in heard} == {"cim/v1/alerts/drainage/yellow", "cim/v1/alerts/other/default"}
    assert {told["id"] for _, told in heard} == {one["id"] for one in deliveries(city)}
    for client in clients:
        client.disconnect()
        client.loop_stop()


def test_a_chat_that_takes_few_messages_is_told_of_a_storm_in_few(city: Cimtwin, open_: Callable[[Any], Any]) -> None:
    hook = open_(Hook(200))
    put(city, f'{HURRY}[receiver.chat]\ntype = "dingtalk"\nurl = "{hook.url}/?t=1"\nsecret = "SEC"\n' + route("chat"))
    flood(city, *range(30))
    until(lambda: sum(len(one["alerts"]) for one in deliveries(city, state="sent")) == 30)
    assert len(hook.seen) <= 20
    assert all(request.json["msgtype"] == "markdown" for request in hook.seen)
    assert "sign=" in hook.seen[0].path
    assert city.stats()["notify_sent"] == len(deliveries(city, state="sent"))


def test_the_plan_is_put_shown_without_secrets_and_refused_whole(
    city: Cimtwin, open_: Callable[[Any], Any], tmp_path: Path
) -> None:
    hook = open_(Hook(200))
    assert city.get("/notify") == {"version": 0}
    text = "# ours\n" + webhook("desk", hook.url, 'secret = "geheim"') + route("desk")
    assert put(city, text) == 1
    for accept in ("application/toml", "application/json"):
        shown = httpx.get(f"{city.url}/api/v1/notify", headers={"accept": accept}).text
        assert "geheim" not in shown
        assert "***" in shown
    given = city.get("/notify")
    again = httpx.put(f"{city.url}/api/v1/notify", json=given)
    assert (again.status_code, again.json()) == (200, {"version": 2})
    late = httpx.put(f"{city.url}/api/v1/notify", json=given, headers={"if-match": '"1"'})
    assert (late.status_code, city.get("/notify")["version"]) == (412, 2)
    bad = text.replace("webhook", "fax") + '[receiver.x]\ntype = "webhook"\nurl = "env:CIMTWIN_NOTIFY_MISSING"\n'
    refused = httpx.put(f"{city.url}/api/v1/notify", content=bad.encode())
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["place"] == "receiver.desk, line 3"
    assert httpx.put(f"{city.url}/api/v1/notify", content=b" ").status_code == 422
    assert city.post("/notify/test", {"receiver": "nobody"}).status_code == 404
    key = {"Idempotency-Key": "once"}
    tests = [city.post("/notify/test", {"receiver": "desk"}, headers=key).json() for _ in range(2)]
    assert tests[0]["id"] == tests[1]["id"]
    assert [one["state"] for one in tests] == ["sent", "sent"]
    assert [request.json["status"] for request in hook.seen] == ["test"]
    stamp = int(hook.seen[0].headers["webhook-timestamp"])
    expected = signature("geheim", tests[0]["id"], stamp, hook.seen[0].body)
    assert hook.seen[0].headers["webhook-signature"] == expected


def test_an_error_does_not_repeat_a_secret(city: Cimtwin) -> None:
    put(city, '[receiver.chat]\ntype = "wecom"\nurl = "env:CIMTWIN_NOTIFY_CHAT"\n' + route("chat"))
    given = city.post("/notify/test", {"receiver": "chat"}).json()
    assert given["attempts"] == 1
    assert given["last_error"]
    assert "geheim" not in json.dumps(given)


def test_the_first_plan_may_come_from_a_file_and_a_bad_one_ends_the_start_with_2(
    cimtwin: Callable[..., Cimtwin], server_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "notify.toml"
    file.write_text(webhook("desk", "http://127.0.0.1:9") + route("desk"), encoding="utf-8")
    city = cimtwin(CIMTWIN_NOTIFY=str(file))
    assert city.get("/notify")["version"] == 1
    city.stop()
    file.write_text("nonsense = 1\n", encoding="utf-8")
    city.start()
    assert city.get("/notify")["receiver"].keys() == {"desk"}
    with empty_database(server_url) as url:
        environ = {**os.environ, **city.environ, "CIMTWIN_DATABASE_URL": url, "CIMTWIN_DATA_DIR": str(tmp_path / "b")}
        environ |= {"CIMTWIN_HTTP": "127.0.0.1:0", "CIMTWIN_MQTT_LISTEN": "127.0.0.1:0"}
        ended = subprocess.run([sys.executable, "-m", "twin", "serve"], env=environ, capture_output=True, timeout=60)
    assert ended.returncode == 2
    assert f"{file}, line 1, nonsense: unknown field" in ended.stderr.decode()
    checked = subprocess.run(
        [sys.executable, "-m", "twin", "check-notify", str(file)], capture_output=True, timeout=60, text=True
    )
    assert checked.returncode == 2
    assert checked.stderr == f"cimtwin: {file}, line 1, nonsense: unknown field / 未知字段\n"


def test_an_alert_is_shown_as_cap(city: Cimtwin) -> None:
    flood(city, 1)
    until(lambda: city.stats()["alerts_active"] == 1)
    (alert,) = city.get("/alerts")["items"]
    flood(city, 1, value=50, step=1)
    until(lambda: city.get(f"/alerts/{alert['id']}")["level"] == "red")
    answer = httpx.get(f"{city.url}/api/v1/alerts/{alert['id']}/cap")
    assert answer.headers["content-type"] == "application/cap+xml"
    root = etree.fromstring(answer.content)
    space = {"c": root.nsmap[None]}
    assert root.findtext("c:msgType", namespaces=space) == "Update"
    assert root.findtext("c:info/c:event", namespaces=space) == "积水"
    assert root.findtext("c:info/c:area/c:circle", namespaces=space) == "22.540000,114.050000 0.100"
    first = etree.fromstring(httpx.get(f"{city.url}/api/v1/alerts/{alert['id']}/cap?number=1&test=true").content)
    assert first.findtext("c:msgType", namespaces=space) == "Alert"
    assert first.findtext("c:status", namespaces=space) == "Test"
    assert httpx.get(f"{city.url}/api/v1/alerts/{alert['id']}/cap?number=3").status_code == 404
    assert httpx.get(f"{city.url}/api/v1/alerts/none/cap").status_code == 404


def test_the_area_of_a_cap_message_holds_the_asset_or_what_lies_upstream_of_it(
    city: Cimtwin, database_url: str
) -> None:
    import_district(database_url, "demo")
    city.put_sensors("device,property,kind,asset\nwell,level,drainage.level,雨水井1-03\n")
    city.put_rules(RULES.replace("drainage.ponding_depth", "drainage.level"))
    city.publish(("cim/v1/default/well/telemetry", {"ts": START_MS, "values": {"level": 20}}))
    (alert,) = until(lambda: city.get("/alerts")["items"])

    def area(which: str) -> Any:
        answer = httpx.get(f"{city.url}/api/v1/alerts/{alert['id']}/cap", params={"area": which}, timeout=30)
        root = etree.fromstring(answer.content)
        space = {"c": root.nsmap[None]}
        ring = root.findtext("c:info/c:area/c:polygon", namespaces=space)
        if ring is None:
            around = root.findtext("c:info/c:area/c:circle", namespaces=space).split()[0]
            return shapely.Point([float(v) for v in around.split(",")][::-1])
        return shapely.Polygon([[float(v) for v in pair.split(",")][::-1] for pair in ring.split()])

    trace = city.get(f"/assets/{quote(alert['asset'], safe='')}/trace", direction="upstream")["items"]
    places = [city.get(f"/assets/{quote(item['asset'], safe='')}") for item in trace]
    assert len(places) > 3
    assert all(area("upstream").contains(shapely.Point(one["lon"], one["lat"])) for one in places)
    assert area("asset").distance(shapely.Point(places[0]["lon"], places[0]["lat"])) < 1e-4
    assert area("asset").area < area("upstream").area


def test_an_incident_is_one_chain_as_cap(city: Cimtwin, database_url: str) -> None:
    flood(city, 1, 2)
    until(lambda: city.stats()["alerts_active"] == 2)
    with psycopg.connect(database_url) as connection:
        connection.execute(INCIDENTS)
        for alert in city.get("/alerts")["items"]:
            connection.execute(
                "insert into incident_alerts values (%s, 'i 1', now(), '{}')"
                " on conflict (alert_id) do update set incident = excluded.incident",
                (alert["id"],),
            )
    answer = httpx.get(f"{city.url}/api/v1/incidents/i 1/cap")
    assert answer.headers["x-cap-messages"] == "2"
    root = etree.fromstring(answer.content)
    space = {"c": root.nsmap[None]}
    assert root.findtext("c:msgType", namespaces=space) == "Update"
    assert root.findtext("c:incidents", namespaces=space) == "i 1"
    assert httpx.get(f"{city.url}/api/v1/incidents/none/cap").status_code == 404


def test_an_alert_of_a_replay_is_an_exercise_as_cap(city: Cimtwin) -> None:
    flood(city, 1)
    until(lambda: city.stats()["alerts_active"] == 1)
    (alert,) = city.get("/alerts")["items"]
    wanted = {"from": "2026-09-21T13:00:00Z", "to": "2026-09-21T14:30:00Z", "speed": 0}
    replay = city.post("/replays", wanted).json()["id"]

    def found() -> httpx.Response | None:
        answer = httpx.get(f"{city.url}/api/v1/replays/{replay}/alerts/{alert['id']}/cap")
        return answer if answer.status_code == 200 else None

    root = etree.fromstring(until(found).content)
    assert root.findtext("c:status", namespaces={"c": root.nsmap[None]}) == "Exercise"


def test_alerts_that_join_a_message_on_its_second_try_are_told_under_another_id(
    city: Cimtwin, open_: Callable[[Any], Any]
) -> None:
    hook = open_(Hook(503))
    put(city, HURRY + webhook("few", hook.url, "per_minute = 600") + route("few"))
    flood(city, *range(15))
    until(lambda: any(len(request.json["alerts"]) > 1 for request in hook.seen))
    flood(city, *range(15, 30))
    until(lambda: len(city.get("/alerts", limit=1000)["items"]) == 30)
    hook.answers = [200]

    def told() -> set[str]:
        # As a receiver sees it that got them all, though its answers were lost, and drops what it has seen.
        first = {request.headers["webhook-id"]: request.json["alerts"] for request in reversed(list(hook.seen))}
        return {alert["id"] for alerts in first.values() for alert in alerts}

    until(lambda: len(told()) == 30)


class Dripping:
    """An HTTP server that says `first` and then a byte now and then, until it is closed."""

    def __init__(self, first: bytes) -> None:
        self.over = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.first = first
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.socket.accept()
            with connection:
                connection.sendall(self.first)
                while not self.over.wait(0.2):
                    connection.sendall(b"x")

    def close(self) -> None:
        self.over.set()
        self.socket.close()


def test_a_receiver_that_drips_does_not_keep_its_worker_and_one_that_took_it_need_not_finish(
    open_: Callable[[Any], Any],
) -> None:
    notice = Notice("test", "blue", "g", 0, (), 0)
    for first, is_sent in (
        (b"HTTP/1.1 503 later\r\nContent-Length: 9999\r\n\r\n", False),
        (b"HTTP/1.1 2", False),
        (b"HTTP/1.1 200 ok\r\nContent-Length: 9999\r\n\r\n", True),
    ):
        far = open_(Dripping(first))
        plan = parse_plan(webhook("r", far.url, 'timeout = "1s"'))
        begun = time.monotonic()
        answer = deliver(plan.receivers["r"], notice, "id", 0, "")
        assert (answer.is_sent, time.monotonic() - begun < 10) == (is_sent, True), first
