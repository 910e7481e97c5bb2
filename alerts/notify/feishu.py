"""飞书自定义机器人: an interactive card with a coloured head; signed by HMAC-SHA256 over nothing with
`timestamp\\nsecret` as key, timestamp in seconds, both in the body (签名校验 of open.feishu.cn's guide to custom
robots, as its users quote it); 100 messages a minute, 5 a second (docs.flashcat.cloud, lark-integration-guide). The
bound of 20 KB and the error numbers are from memory [M]."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any, Final

import orjson

from alerts.notify.calls import Answer, HttpCall, of_code
from alerts.notify.notice import Notice, cut, fitted, lines, plain, title
from alerts.notify.plan import Receiver
from twin.model import SECOND, Micros

MAX_BYTES: Final = 15_000  # of text; of a body 20 KB
_NEVER: Final = {9499: "format", 19001: "no such robot", 19021: "signature or clock", 19022: "address refused",
                 19024: "keyword"}  # fmt: skip
_BUSY: Final = {11232: 10.0, 9500: 0.0}


def sign(secret: str, timestamp: int) -> str:
    """The `sign` of a body; `timestamp` in whole seconds."""
    return base64.b64encode(hmac.new(f"{timestamp}\n{secret}".encode(), b"", hashlib.sha256).digest()).decode()


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> HttpCall:
    template = "green" if notice.is_resolved else "grey" if notice.kind == "test" else notice.level
    text = fitted(lines(notice, receiver.language, plain), MAX_BYTES, receiver.language)
    head = cut(title(notice, receiver.language, plain), 800)
    body: dict[str, Any] = {
        "msg_type": "interactive",
        "card": {
            "config": {"wide_screen_mode": True},
            "header": {"title": {"tag": "plain_text", "content": head}, "template": template},
            "elements": [{"tag": "div", "text": {"tag": "lark_md", "content": text}}],
        },
    }
    secret = receiver.options.get("secret")
    if secret:
        timestamp = at // SECOND
        body |= {"timestamp": str(timestamp), "sign": sign(secret, timestamp)}
    return HttpCall(receiver.options["url"], {"Content-Type": "application/json"}, orjson.dumps(body))


def answer(status: int, body: bytes) -> Answer:
    return of_code(status, body, "code", _NEVER, _BUSY)
