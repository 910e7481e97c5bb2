"""Whether a device says it is there: `online`, `offline` (its last will)."""

from __future__ import annotations

from ingest.codecs.gathering import Gathering, Unreadable
from twin.model import RawMessage


def decode(out: Gathering, message: RawMessage, tenant: str, device: str) -> None:
    """The plain word, with or without JSON's quotes; no reading comes of it. A gateway's own status is told under the
    device `gateway`."""
    word = message.payload.strip().strip(b'"')
    if word not in (b"online", b"offline"):
        raise Unreadable("a status is online or offline")
    if device != "gateway":
        device, _, why, detail = out.resolve(device, tenant, message.received_at)
        if why is not None:
            out.refuse_message(why, detail, device)
            return
    out.statuses.append((tenant, device, word == b"online", message.received_at))
