"""The one place from which anything goes out to people: HTTP, SMTP and MQTT, each call with its time limit."""

from __future__ import annotations

import contextlib
import http.client
import os
import smtplib
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from alerts.notify.calls import Answer, HttpCall, Letter, Publication
from alerts.notify.channels import ANSWERS, CHANNELS, answer
from alerts.notify.notice import Notice
from alerts.notify.plan import ENVIRONMENT, SECRETS, Receiver
from ingest.mqtt import Publisher
from twin.model import SECOND, Micros

ANSWER_BYTES: Final = 1 << 16  # of an HTTP answer, so much is read
LONGEST: Final = 3  # times its limit for one answer that a conversation takes in all
AGENT: Final = "cimtwin-notify"


class NoVariable(Exception):  # noqa: N818
    """An environment variable that the plan names is not set."""


def resolved(receiver: Receiver, environ: Mapping[str, str] | None = None) -> Receiver:
    """The receiver with the values of the environment variables that it names. Raises `NoVariable`."""
    return replace(receiver, options=_resolved(dict(receiver.options), os.environ if environ is None else environ))


def _resolved(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(inner, environ) for key, inner in value.items()}
    if not isinstance(value, str) or not value.startswith(ENVIRONMENT):
        return value
    name = value.removeprefix(ENVIRONMENT)
    found = environ.get(name)
    if not found:
        raise NoVariable(f"environment variable {name} is not set / 未设置环境变量 {name}")
    return found.strip()


def _scrubbed(answer_: Answer, receiver: Receiver) -> Answer:
    """The answer without the receiver's secrets, which errors repeat."""
    text = answer_.text
    for key in SECRETS[receiver.type]:
        value = receiver.options.get(key)
        for secret in value.values() if isinstance(value, dict) else [value]:
            if isinstance(secret, str) and secret:
                parts = urlsplit(secret) if "://" in secret else None
                for part in (secret, parts and parts.query, parts and parts.path, parts and parts.password):
                    text = text.replace(part, "***") if part and len(part) > 3 else text
    return replace(answer_, text=text)


def deliver(receiver: Receiver, notice: Notice, id_: str, at: Micros, own_broker: str) -> Answer:
    """Send a notice to a receiver under a delivery's id, and say how it went. Never raises for what the far side or the
    network does. `own_broker`: the service's, for MQTT receivers that name none."""
    try:
        ready = resolved(receiver)
    except NoVariable as missing:
        return Answer(False, True, str(missing))
    try:
        call = CHANNELS[receiver.type](notice, ready, id_, at)
        timeout_s = receiver.timeout / SECOND
        if isinstance(call, HttpCall):
            given = _request(call, receiver.type, timeout_s, ready.options.get("ca"))
        elif isinstance(call, Letter):
            given = _mail(call, ready, timeout_s)
        else:
            given = _publish(call, ready.options.get("broker") or own_broker, timeout_s)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # OSError: also what smtplib raises, TLS, names that do not resolve, time limits.
        given = Answer(False, True, f"{type(error).__name__}: {error}"[:500])
    return _scrubbed(given, ready)


@contextlib.contextmanager
def _cut_off(timeout_s: float, socket_of: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Ends a conversation that goes on and on: a far side that gives a byte now and then keeps within every limit of
    Python's clients, and would keep its worker for days."""
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        open_ = socket_of()
        if open_ is not None:
            with contextlib.suppress(OSError):
                open_.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(LONGEST * timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError):
        if is_over.is_set():
            raise TimeoutError(f"not done within {LONGEST * timeout_s:g} s") from None
        raise
    finally:
        timer.cancel()


def _context(ca: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


def _request(call: HttpCall, kind: str, timeout_s: float, ca: str | None) -> Answer:
    """One request on a connection of its own. Redirects are not followed: they would lead where nobody configured."""
    parts = urlsplit(call.url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=timeout_s, context=_context(ca)
        )
    elif parts.scheme == "http":
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    else:
        return Answer(False, False, "the address is neither http:// nor https://")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.connect()
        open_ = connection.sock  # the connection forgets it while an answer is read
        with _cut_off(timeout_s, lambda: open_):
            connection.request(call.method, path, call.body, {"User-Agent": AGENT, **call.headers})
            response = connection.getresponse()
            if kind not in ANSWERS and 200 <= response.status < 300:
                return Answer(True)  # it has taken it, and whatever it goes on to say must not make us send it again
            body = response.read(ANSWER_BYTES)
        headers = {name.lower(): value for name, value in response.getheaders()}
        return answer(kind, response.status, body, headers)
    finally:
        connection.close()


def _mail(letter: Letter, receiver: Receiver, timeout_s: float) -> Answer:
    options = receiver.options
    security = options.get("security", "starttls")
    host, port = options["host"], options.get("port", 587)
    ca = options.get("ca")
    try:
        with (
            (
                smtplib.SMTP_SSL(host, port, timeout=timeout_s, context=_context(ca))
                if security == "tls"
                else smtplib.SMTP(host, port, timeout=timeout_s)
            ) as smtp,
            _cut_off(timeout_s, lambda: smtp.sock),
        ):
            if security == "starttls":
                smtp.starttls(context=_context(ca))
            if "user" in options:
                smtp.login(options["user"], options["password"])
            refused = smtp.sendmail(letter.sender, letter.recipients, letter.content)
    except smtplib.SMTPRecipientsRefused as error:
        may = any(code < 500 for code, _ in error.recipients.values())
        return Answer(False, may, f"all recipients refused: {_recipients(error.recipients)}")
    except smtplib.SMTPResponseException as error:
        text = error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return Answer(False, error.smtp_code < 500, f"SMTP {error.smtp_code} {text}"[:500])
    except smtplib.SMTPNotSupportedError as error:
        return Answer(False, False, f"SMTP: {error}")
    return Answer(True, text=f"refused for {_recipients(refused)}" if refused else "")


def _recipients(refused: Mapping[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{name}: {code} {text.decode(errors='replace')}" for name, (code, text) in refused.items())[:400]


def _publish(publication: Publication, broker: str, timeout_s: float) -> Answer:
    publisher = Publisher(broker, f"{AGENT}-{uuid.uuid4().hex[:12]}", 1)
    publisher.connect(timeout_s)
    try:
        publisher.publish(publication.topic, publication.payload, publication.is_retained)
        publisher.flush(timeout_s)
    finally:
        publisher.close()
    return Answer(True)
