"""The channels there are: by a receiver's type, what makes a message of a notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from alerts.notify import alertmanager, dingtalk, feishu, mail, topic, webhook, wecom
from alerts.notify.calls import Answer, HttpCall, Letter, Publication, of_status
from alerts.notify.notice import Notice
from alerts.notify.plan import Receiver
from twin.model import Micros

Render = Callable[[Notice, Receiver, str, Micros], HttpCall | Letter | Publication]

# `render(notice, receiver, delivery id, now)`; the receiver's options hold the secrets themselves.
CHANNELS: Final[dict[str, Render]] = {
    "webhook": webhook.render,
    "alertmanager": alertmanager.render,
    "mail": mail.render,
    "mqtt": topic.render,
    "wecom": wecom.render,
    "dingtalk": dingtalk.render,
    "feishu": feishu.render,
}
# What an HTTP answer means, where more than its status counts.
ANSWERS: Final[dict[str, Callable[[int, bytes], Answer]]] = {
    "wecom": wecom.answer,
    "dingtalk": dingtalk.answer,
    "feishu": feishu.answer,
}


def answer(kind: str, status: int, body: bytes, headers: dict[str, str]) -> Answer:
    """What the far side of a receiver of type `kind` says."""
    return ANSWERS[kind](status, body) if kind in ANSWERS and status == 200 else of_status(status, body, headers)
