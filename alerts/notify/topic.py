"""MQTT: the notice as JSON, as a webhook has it, on a topic made from it."""

from __future__ import annotations

from typing import Final

import orjson

from alerts.notify.calls import Publication
from alerts.notify.notice import Notice, document
from alerts.notify.plan import Receiver
from twin.model import Micros

TOPIC: Final = "cim/v1/alerts/{domain}/{level}"
_BARRED: Final = str.maketrans(dict.fromkeys("/+#\0 ", "_"))


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> Publication:
    """Tenant and domain are those of the worst alert."""
    first = notice.alerts[0] if notice.alerts else {}
    words = {
        "tenant": str(first.get("tenant") or "none"), "domain": str(first.get("domain") or "none"),
        "level": notice.level, "receiver": receiver.name, "kind": notice.kind,
    }  # fmt: skip
    topic = str(receiver.options.get("topic", TOPIC))
    for word, value in words.items():
        topic = topic.replace(f"{{{word}}}", value.translate(_BARRED))
    return Publication(
        topic, orjson.dumps(document(notice, id_, receiver)), bool(receiver.options.get("retain", False))
    )
