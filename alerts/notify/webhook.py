"""Webhooks: the notice as JSON, signed.

Signature after the Standard Webhooks specification (standardwebhooks.com; headers and signed content as
docs of its users give them): HMAC-SHA256 over `id.timestamp.body`, base64, behind `v1,`; a secret `whsec_…` is the
base64 of the key, any other the key itself. A receiver refuses timestamps more than five minutes off.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import orjson

from alerts.notify.calls import HttpCall
from alerts.notify.notice import Notice, document
from alerts.notify.plan import Receiver
from twin.model import SECOND, Micros

PREFIX: Final = "whsec_"


def key_of(secret: str) -> bytes:
    """The bytes that sign."""
    if secret.startswith(PREFIX):
        try:
            return base64.b64decode(secret[len(PREFIX) :], validate=True)
        except (binascii.Error, ValueError):
            pass
    return secret.encode()


def signature(secret: str, id_: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`; `timestamp` in whole seconds."""
    signed = f"{id_}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode()


def render(notice: Notice, receiver: Receiver, id_: str, at: Micros) -> HttpCall:
    body = orjson.dumps(document(notice, id_, receiver))
    timestamp = at // SECOND
    headers = {
        "Content-Type": "application/json",
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp),
        "Idempotency-Key": id_,
        **receiver.options.get("headers", {}),
    }
    secret = receiver.options.get("secret")
    if secret:
        headers["webhook-signature"] = signature(secret, id_, timestamp, body)
    return HttpCall(receiver.options["url"], headers, body)
