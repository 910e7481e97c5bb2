"""E-mail: a plain text of UTF-8, in Chinese and English. Its Message-ID is made from the delivery's id, so that a mail
that goes out twice is one mail where it arrives."""

from __future__ import annotations

import datetime as dt
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from alerts.notify.calls import Letter
from alerts.notify.notice import Notice, cut, fitted, lines, title
from alerts.notify.plan import Receiver
from twin.model import SECOND, Micros

MAX_BYTES = 100_000


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> Letter:
    options = receiver.options
    given = options["to"]
    to = [given] if isinstance(given, str) else list(given)
    to += [person["mail"] for person in notice.people if person.get("mail")]
    to = list(notice.only or dict.fromkeys(to))
    message = EmailMessage(policy=SMTP)
    message["Subject"] = cut(title(notice, receiver.language), 300)
    message["From"] = options["from"]
    message["To"] = ", ".join(to)
    message["Date"] = format_datetime(dt.datetime.fromtimestamp(at / SECOND, dt.UTC))
    message["Message-ID"] = f"<{id_}@cimtwin>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    if notice.level in ("orange", "red") and not notice.is_resolved:
        message["Importance"] = "high"
    text = [title(notice, receiver.language), "", *lines(notice, receiver.language)]
    message.set_content(fitted(iter(text), MAX_BYTES, receiver.language) + "\n", cte="base64")
    return Letter(options["from"], tuple(to), message.as_bytes())
