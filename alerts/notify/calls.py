"""What a channel makes of a notice: the call, letter or publication that carries it; and what the far side answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

# Answers that may be others later; any other 4xx is the far side's last word.
LATER: Final = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One HTTP request."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail, as it goes over SMTP."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Publication:
    """One MQTT message at QoS 1."""

    topic: str
    payload: bytes
    is_retained: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """How a sending went: it arrived; or it did not, and trying again makes sense (`may_retry`), not before
    `wait_s`; or it does not. `later`: recipients of a mail that were refused for now, while it arrived for others."""

    is_sent: bool
    may_retry: bool = False
    text: str = ""
    wait_s: float = 0.0
    later: tuple[str, ...] = ()


def of_status(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """What an HTTP status says: 2xx arrived, 5xx and a few others later, redirects and the other 4xx never."""
    if 200 <= status < 300:
        return Answer(True)
    text = f"HTTP {status} {body[:200].decode(errors='replace')}".strip()
    after = (headers or {}).get("retry-after", "")
    wait_s = min(float(after), 3600.0) if after.isdigit() else 0.0
    return Answer(False, status >= 500 or status in LATER, text, wait_s)


def of_code(
    status: int, body: bytes, field: str, never: Mapping[int, str], busy: Mapping[int, float]
) -> Answer:  # fmt: skip
    """What a chat robot's answer says: HTTP 200 with an error number of its own in `field`, 0 where it arrived.
    `never`: numbers that trying again does not change; `busy`: numbers that ask for a pause, in seconds."""
    if status != 200:
        return of_status(status, body)
    try:
        given: Any = orjson.loads(body)
        code = int(given[field])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Answer(False, True, f"not an answer of the robot: {body[:200].decode(errors='replace')}")
    if code == 0:
        return Answer(True)
    text = f"{field} {code} {str(given.get('errmsg', given.get('msg', '')))[:300]}".strip()
    if code in never:
        return Answer(False, False, f"{text} ({never[code]})")
    return Answer(False, True, text, busy.get(code, 0.0))
