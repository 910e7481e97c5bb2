"""The far sides of notifying, on loopback: an HTTP receiver and a mail server that do as they are told."""

from __future__ import annotations

import base64
import contextlib
import json
import socketserver
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HTTP_BODY = b'{"errcode":0,"code":0}'


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hook:
    """An HTTP server that answers with the statuses of `answers`, one after the other, the last for good. `hold`: while
    it is set, requests are taken in and not answered."""

    def __init__(self, *answers: int, certificate: tuple[Path, Path] | None = None) -> None:
        self.answers = list(answers) or [200]
        self.seen: list[Request] = []
        self.hold = threading.Event()
        self.hold.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                hook.seen.append(Request(self.path, headers, body))
                hook.hold.wait(60)
                status = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    if status in (301, 302):
                        self.send_header("location", "/elsewhere")
                    self.send_header("content-length", str(len(HTTP_BODY)))
                    self.end_headers()
                    self.wfile.write(HTTP_BODY)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@dataclass(frozen=True)
class Mail:
    sender: str
    recipients: tuple[str, ...]
    content: bytes
    user: str
    is_encrypted: bool


class Mailbox:
    """As much of an SMTP server (RFC 5321, AUTH PLAIN of RFC 4616, STARTTLS of RFC 3207) as takes mails. `refuse`: what
    RCPT is answered for recipients that hold a word; `busy`: how many mails are first put off with 451."""

    def __init__(
        self, certificate: tuple[Path, Path] | None = None, user: str = "", password: str = "", busy: int = 0
    ) -> None:
        self.mails: list[Mail] = []
        self.refuse: dict[str, str] = {}
        self.busy = busy
        box = self

        class Handler(socketserver.StreamRequestHandler):
            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

            def handle(self) -> None:
                plain = self.request
                with contextlib.suppress(OSError):
                    self.talk()
                if self.request is not plain:
                    for encrypted in (self.rfile, self.wfile, self.request):
                        encrypted.close()

            def talk(self) -> None:
                sender, recipients, known, is_encrypted = "", [], "", False
                self.say("220 mailbox")
                while line := self.rfile.readline():
                    word, _, rest = line.decode().strip().partition(" ")
                    word = word.upper()
                    if word == "EHLO":
                        features = ["mailbox", "8BITMIME"]
                        features += ["STARTTLS"] if certificate and not is_encrypted else []
                        features += ["AUTH PLAIN"] if user and (is_encrypted or not certificate) else []
                        for n, feature in enumerate(features):
                            self.say(f"250{' ' if n == len(features) - 1 else '-'}{feature}")
                    elif word == "STARTTLS" and certificate:
                        self.say("220 go")
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(*certificate)
                        self.request = context.wrap_socket(self.request, server_side=True)
                        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)
                        is_encrypted = True
                    elif word == "AUTH":
                        given = base64.b64decode(rest.split()[1]).decode().split("\0")[1:]
                        known = user if given == [user, password] else ""
                        self.say("235 welcome" if known else "535 5.7.8 wrong password")
                    elif word == "MAIL":
                        sender, recipients = rest[5:].split(">")[0].lstrip(":<").lstrip("<"), []
                        self.say("530 authenticate" if user and not known else "250 ok")
                    elif word == "RCPT":
                        name = rest[3:].strip("<> ")
                        said = next((text for part, text in box.refuse.items() if part in name), "250 ok")
                        if said.startswith("250"):
                            recipients.append(name)
                        self.say(said)
                    elif word == "DATA":
                        self.say("354 go on")
                        lines = []
                        while (text := self.rfile.readline()) != b".\r\n":
                            lines.append(text)
                        if box.busy > 0:
                            box.busy -= 1
                            self.say("451 later")
                        else:
                            box.mails.append(Mail(sender, tuple(recipients), b"".join(lines), known, is_encrypted))
                            self.say("250 taken")
                    elif word == "QUIT":
                        self.say("221 bye")
                        return
                    else:
                        self.say("250 ok" if word in ("RSET", "NOOP") else "502 what?")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
