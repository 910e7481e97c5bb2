"""Prometheus Alertmanager's API v2, `POST /api/v2/alerts` (prometheus.io/docs/alerting/latest/alerts_api and the
project's api/v2/openapi.yaml): an array of alerts with labels, annotations, startsAt, endsAt.

Labels make an alert's identity there, so level is one (`severity`, by which Alertmanager routes), and an alert whose
level changed is also told to have ended at its old one. An active alert ends, as Prometheus sets it, four times the
time of sending again from now: what we stop telling of resolves itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from alerts.notify.calls import HttpCall
from alerts.notify.notice import Notice, is_active
from alerts.notify.plan import Receiver
from alerts.rules import parse_duration
from twin.model import MINUTE, Micros, iso, parse_time

PATH: Final = "/api/v2/alerts"
LASTS: Final = 4  # times the time of sending again
_LABELS: Final = ("sensor", "asset", "tenant", "domain")


def resend_of(receiver: Receiver) -> Micros:
    """How often an active alert is sent again."""
    return parse_duration(receiver.options["resend"]) if "resend" in receiver.options else MINUTE


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> HttpCall:
    lasts_until = iso(at + LASTS * resend_of(receiver)) or ""
    items: list[dict[str, Any]] = []
    if notice.kind == "test":
        labels = {"alertname": "cimtwin-test", "severity": "blue", "receiver": receiver.name}
        items.append(
            {"labels": labels, "annotations": {"summary": "cimtwin 通知测试 / test"}, "endsAt": iso(at + MINUTE)}
        )
    for alert in notice.alerts:
        before = alert.get("told_level")
        if before not in (None, alert["level"]):
            items.append(_item(alert, str(before), iso(at) or ""))
        ended = None if is_active(alert) else min(parse_time(alert["cleared_at"]), at) if alert["cleared_at"] else at
        items.append(_item(alert, str(alert["level"]), lasts_until if ended is None else iso(ended) or ""))
    url = str(receiver.options["url"]).rstrip("/")
    if not url.endswith(PATH):
        url += PATH
    headers = {"Content-Type": "application/json", "Idempotency-Key": id_, **receiver.options.get("headers", {})}
    return HttpCall(url, headers, orjson.dumps(items))


def _item(alert: Mapping[str, Any], level: str, ends_at: str) -> dict[str, Any]:
    labels = {"alertname": alert["rule"], "severity": level}
    labels |= {name: alert[name] for name in _LABELS if alert.get(name)}
    annotations = {
        "summary": alert["message"]["zh"],
        "description": alert["message"]["en"],
        "instruction": " / ".join(filter(None, (alert["instruction"]["zh"], alert["instruction"]["en"]))),
        "value": "" if alert["value"] is None else f"{alert['value']:g}",
        "alert_id": alert["id"],
    }
    return {
        "labels": labels,
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": alert["raised_at"],
        "endsAt": max(ends_at, alert["raised_at"], key=parse_time),
    }
