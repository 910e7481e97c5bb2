"""What people do in the page to keep alerts from disturbing them, and to incidents."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import Screens, depth, part, refused, row
from tests.conftest import Cimtwin
from twin.model import HOUR, parse_time

pytestmark = pytest.mark.system

HELD = re.compile(r"\bheld\b")


def send(page: Page, dialog: str, note: str) -> None:
    part(page, f"{dialog}-by").fill("值班员甲")
    part(page, f"{dialog}-note").fill(note)
    part(page, f"{dialog}-send").click()
    expect(part(page, f"{dialog}-dialog")).not_to_be_visible()


def test_a_shelved_alert_goes_grey_says_why_and_until_when_and_comes_back(city: Cimtwin, screens: Screens) -> None:
    city.publish(depth("s1", 25), depth("s2", 15))
    here, there = (screens.open(city.url) for _ in range(2))
    for page in (here, there):
        row(page, "s1/depth").click()
        expect(part(page, "held-by")).to_have_count(0)
    part(here, "act-shelve").click()
    part(here, "until-240").click()
    part(here, "ack-send").click()
    expect(part(here, "ack-dialog")).to_be_visible()  # a shelf has a reason
    send(here, "ack", "探头堵塞")
    for page in (here, there):
        expect(row(page, "s1/depth")).to_have_class(HELD)
        expect(row(page, "s1/depth")).to_contain_text("搁置至")
        expect(part(page, "held-by")).to_contain_text("值班员甲")
        expect(part(page, "held-by").locator("q")).to_have_text("探头堵塞")
        expect(part(page, "act-shelve")).to_have_count(0)
    expect(row(here, "s2/depth")).not_to_have_class(HELD)
    expect(part(here, "holds-button")).to_have_attribute("data-count", "1")
    [alert] = city.get("/alerts", flag="shelved")["items"]
    [told] = [e for e in city.get(f"/alerts/{alert['id']}")["events"] if e["transition"] == "shelved"]
    assert 0 <= parse_time(told["at"]) + 4 * HOUR - parse_time(alert["shelved_until"]) < HOUR / 6
    part(there, "act-unshelve").click()
    part(there, "ack-send").click()
    for page in (here, there):
        expect(row(page, "s1/depth")).not_to_have_class(HELD)
        expect(part(page, "held-by")).to_have_count(0)
    # What the service refuses, it says.
    screens.expect(refused(422))
    part(here, "alert-list").focus()
    here.keyboard.press("s")
    part(here, "until").fill("2099-01-01T00:00")
    part(here, "ack-note").fill("永远")
    part(here, "ack-send").click()
    expect(part(here, "ack-error")).to_contain_text("搁置最长 168 小时")


def test_an_incident_is_split_merged_and_acknowledged_as_a_whole(city: Cimtwin, screens: Screens) -> None:
    city.put_sensors(
        "device,property,kind,unit,lon,lat\n"
        + "".join(f"near{n},depth,drainage.ponding_depth,cm,117.300{n},31.8\n" for n in (4, 5))
    )
    city.publish(depth("s1", 25), depth("near4", 15), depth("near5", 15), depth("s4", 35))
    page = screens.open(city.url)
    expect(row(page)).to_have_count(4)
    part(page, "incident").click()
    expect(row(page)).to_have_count(3)
    expect(part(page, "map")).to_have_attribute("data-marked", "3")
    detail = part(page, "incident-detail")
    root = city.get("/incidents", state="open")["items"]
    [whole] = [one for one in root if one["alert_count"] == 3]
    expect(part(page, "incident-root")).to_contain_text(whole["probable_cause"]["place"]["name"])
    expect(part(page, "incident-reasons")).to_contain_text(whole["reasons"][0]["zh"])
    expect(row(page).locator("em", has_text="可能原因")).to_have_count(1)
    part(page, "incident-split").click()
    expect(part(page, "incident-act-send")).to_be_disabled()
    apart = row(page, "near5/depth").get_attribute("data-id") or ""
    part(page, "incident-choice", id=apart).check()
    send(page, "incident-act", "两处无关")
    expect(row(page)).to_have_count(2)
    expect(detail.locator("li[data-what=split]")).to_contain_text("两处无关")
    other = city.get(f"/alerts/{apart}")["incident"]
    assert other != whole["id"]
    part(page, "incident-merge").click()
    part(page, "incident-choice", id=other).check()
    send(page, "incident-act", "同一积水")
    expect(row(page)).to_have_count(3)
    expect(detail.locator("li[data-what=took_in]")).to_contain_text("同一积水")
    assert city.get(f"/alerts/{apart}")["incident"] == whole["id"]
    part(page, "incident-confirm").click()
    send(page, "incident-act", "")
    expect(part(page, "incident-confirm")).to_have_count(0)
    expect(part(page, "incident-close")).to_have_count(0)  # its alerts are active
    part(page, "incident-acknowledge").click()
    send(page, "incident-act", "已派人")
    expect(row(page, state="active_acknowledged")).to_have_count(3)
    expect(part(page, "incident-acknowledge")).to_have_count(0)
    part(page, "incident", id=whole["id"]).click()
    expect(row(page)).to_have_count(4)
    expect(row(page, "s4/depth", state="active_unacknowledged")).to_have_count(1)


def test_a_silence_made_from_an_alert_holds_its_like_until_it_is_ended(city: Cimtwin, screens: Screens) -> None:
    city.put_sensors(
        "device,property,kind,unit,asset,lon,lat\ntwin1,depth,drainage.ponding_depth,cm,street-1,117.3,31.8\n"
    )
    city.publish(depth("s1", 25), depth("s2", 25))
    page = screens.open(city.url)
    row(page, "s1/depth").click()
    part(page, "act-more").click()
    part(page, "act-silence").click()
    send(page, "ack", "路面施工")
    expect(row(page, "s1/depth")).to_have_class(HELD)
    expect(part(page, "held-by").locator("q")).to_have_text("路面施工")
    city.publish(depth("twin1", 15))
    expect(row(page, "twin1/depth")).to_have_class(HELD)
    city.publish(depth("twin1", 45))  # worse than what was silenced
    row(page, "twin1/depth", level="red").wait_for()
    expect(row(page, "twin1/depth")).not_to_have_class(HELD)
    part(page, "holds-button").click()
    hold = part(page, "hold")
    expect(hold).to_have_count(1)
    for word in ("静默", "生效中", "积水", "street-1", "蓝或黄", "值班员甲", "路面施工"):
        expect(hold).to_contain_text(word)
    part(page, "hold-end").click()
    send(page, "hold-end", "完工")
    expect(hold).to_have_count(0)
    page.keyboard.press("Escape")
    expect(part(page, "holds")).not_to_be_visible()
    expect(row(page, "s1/depth")).not_to_have_class(HELD)
    [ended] = city.get("/holds", state="ended")["items"]
    assert (ended["ended_by"], ended["end_note"]) == ("值班员甲", "完工")
    # In a replay there is nothing to do.
    part(page, "mode-replay").click()
    part(page, "replay-speed").select_option("0")
    part(page, "replay-start").click()
    row(page, "s1/depth").click()
    expect(part(page, "holds-button")).to_have_count(0)
    for name in ("act-more", "act-shelve", "note-button"):
        expect(part(page, name)).to_have_count(0)
