"""企业微信群机器人: markdown, at most 4096 bytes of UTF-8, 20 messages a minute for each robot
(work.weixin.qq.com/api/doc/90000/90136/91770; the error numbers are from memory [M])."""

from __future__ import annotations

from typing import Final

import orjson

from alerts.notify.calls import Answer, HttpCall, of_code
from alerts.notify.notice import Notice, cut, fitted, lines, plain, title
from alerts.notify.plan import Receiver
from twin.model import Micros

MAX_BYTES: Final = 4096
# The three colours that its markdown knows: green, grey, orange-red.
_COLOUR: Final = {"blue": "comment", "yellow": "warning", "orange": "warning", "red": "warning"}
_NEVER: Final = {93000: "no such robot", 40008: "message type", 40058: "format", 45002: "too long"}
_BUSY: Final = {45009: 60.0, 45033: 60.0, -1: 0.0}


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> HttpCall:
    colour = "info" if notice.is_resolved else _COLOUR[notice.level]
    head = f'**<font color="{colour}">{cut(title(notice, receiver.language, plain), 800)}</font>**\n'
    text = head + fitted(lines(notice, receiver.language, plain), MAX_BYTES - len(head.encode()), receiver.language)
    body = {"msgtype": "markdown", "markdown": {"content": text}}
    return HttpCall(receiver.options["url"], {"Content-Type": "application/json"}, orjson.dumps(body))


def answer(status: int, body: bytes) -> Answer:
    return of_code(status, body, "errcode", _NEVER, _BUSY)
