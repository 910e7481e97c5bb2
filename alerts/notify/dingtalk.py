"""钉钉自定义机器人: markdown; signed (加签) by HMAC-SHA256 over `timestamp\\nsecret` with the secret as key,
timestamp in milliseconds and within an hour of theirs, both in the address; 20 messages a minute, and who sends more is
shut out for ten (open.dingtalk.com/document/group/custom-robot-access). The bound of 20,000 bytes and the error
numbers are from memory [M]."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final
from urllib.parse import quote_plus

import orjson

from alerts.notify.calls import Answer, HttpCall, of_code
from alerts.notify.notice import Notice, cut, fitted, lines, plain, title
from alerts.notify.plan import Receiver
from twin.model import Micros

MAX_BYTES: Final = 15_000  # of text: JSON makes some of it longer
_NEVER: Final = {310000: "keyword, signature or address refused", 300001: "no such token", 300005: "no such token",
                 400013: "the group is gone", 400101: "no such token", 40035: "format"}  # fmt: skip
_BUSY: Final = {130101: 600.0, 410100: 600.0, -1: 0.0}


def signed(url: str, secret: str, at: Micros) -> str:
    """The address with `timestamp` and `sign`."""
    timestamp = at // 1000
    digest = hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}timestamp={timestamp}&sign={quote_plus(base64.b64encode(digest))}"


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> HttpCall:
    head = cut(title(notice, receiver.language, plain), 800)
    mobiles = [person["mobile"] for person in notice.people if person.get("mobile")]
    called = " ".join(f"@{mobile}" for mobile in mobiles)  # only who stands in the text, too, is called
    text = f"### {head}\n\n" + (f"{called}\n\n" if called else "")
    # Markdown joins lines, so each one ends with two spaces.
    parts = (line + "  " for line in lines(notice, receiver.language, plain))
    text += fitted(parts, MAX_BYTES - len(text.encode()), receiver.language)
    body = {
        "msgtype": "markdown",
        "markdown": {"title": cut(head, 100), "text": text},
        "at": {"atMobiles": mobiles, "isAtAll": False},
    }
    url, secret = receiver.options["url"], receiver.options.get("secret")
    return HttpCall(
        signed(url, secret, at) if secret else url, {"Content-Type": "application/json"}, orjson.dumps(body)
    )


def answer(status: int, body: bytes) -> Answer:
    return of_code(status, body, "errcode", _NEVER, _BUSY)
