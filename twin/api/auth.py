"""Who may call: the API token where one is set; on loopback without one, only this machine's own programs and pages."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twin.api.errors import problem
from twin.api.protection import PAGES
from twin.settings import is_loopback

# Without a token: alive and ready, and the API's description, which holds no data; nor do the page's files.
OPEN_PATHS: Final = frozenset(("/healthz", "/readyz", "/openapi.json", *PAGES))
OPEN_FILES: Final = "/static-offline-docs/"
SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS", "QUERY"))
SUBPROTOCOL: Final = "bearer"
OWN_SUBPROTOCOLS: Final = frozenset(("cimtwin", "cimtwin.v1"))
# Set in a WebSocket's scope: True, False (wrong token), None (may still come in the first frame).
STANDING: Final = "cimtwin.is_authorised"


def is_token(given: str, token: str) -> bool:
    """Whether they are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def bearer(headers: Headers) -> str | None:
    """The token of the Authorization header, if there is one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def sorted_subprotocols(offered: list[str]) -> tuple[str | None, list[str]]:
    """The token among the subprotocols that a WebSocket's client offers, as `bearer.<token>` or as the name after
    `bearer`; and the others, none of which is a secret."""
    tokens: list[str] = []
    others: list[str] = []
    is_next = False
    for name in offered:
        if name.lower().startswith(f"{SUBPROTOCOL}."):
            tokens.append(name[len(SUBPROTOCOL) + 1 :])
        elif is_next and name not in OWN_SUBPROTOCOLS:
            tokens.append(name)
            is_next = False
        else:
            is_next = is_next or name.lower() == SUBPROTOCOL
            others.append(name)
    return tokens[0] if tokens else None, others


def answered_subprotocol(offered: list[str], token: str | None) -> str | None:
    """The subprotocol to answer with: browsers need one of those they offered. Never one that holds a token: our own
    name, else `bearer`, else what is left, else none."""
    _, others = sorted_subprotocols(offered)
    plain = [name for name in others if token is None or token not in name]
    return min(plain, key=lambda name: (name not in OWN_SUBPROTOCOLS, name.lower() != SUBPROTOCOL), default=None)


def socket_token(headers: Headers, subprotocols: list[str]) -> str | None:
    """The token that a WebSocket's opening request carries."""
    token = bearer(headers)
    return token if token is not None else sorted_subprotocols(subprotocols)[0]


def host_of(headers: Headers) -> str | None:
    """The Host header; None where there is none, or more than one to choose from."""
    hosts = headers.getlist("host")
    return hosts[0] if len(hosts) == 1 else None


def is_local_host(host: str | None) -> bool:
    """Whether a Host header names this machine: a page elsewhere whose name was re-bound to 127.0.0.1 does not."""
    if not host or "/" in host or "@" in host:
        return False
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_local_origin(origin: str) -> bool:
    """Whether a page that this machine itself serves is asking."""
    scheme, separator, host = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and is_local_host(host)


class Gate:
    """ASGI: lets through who may call, and answers the others. `open_paths` need no token."""

    def __init__(self, app: ASGIApp, token: str | None, open_paths: Collection[str]) -> None:
        self.app = app
        self.token = token
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refuse_http(scope)
            if refusal is not None:
                status, text = refusal
                headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
                await problem(status, text, headers)(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            headers_ = Headers(scope=scope)
            if self.token is not None:
                given = socket_token(headers_, scope.get("subprotocols", []))
                scope[STANDING] = None if given is None else is_token(given, self.token)
            elif not is_local_host(host_of(headers_)) or not is_local_origin(headers_.get("origin", "http://[::1]")):
                message: Message = {"type": "websocket.close", "code": 4403, "reason": "cross-site"}
                await receive()
                await send(message)
                return
            else:
                scope[STANDING] = True
        await self.app(scope, receive, send)

    def _refuse_http(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if self.token is not None:
            if scope["path"] in self.open_paths or scope["path"].startswith(OPEN_FILES):
                return None
            given = bearer(headers)
            if given is None:
                return 401, "send the token: Authorization: Bearer … / 请提供令牌"
            return None if is_token(given, self.token) else (401, "wrong token / 令牌错误")
        if not is_local_host(host_of(headers)):
            return 403, "without a token only loopback names are served / 未设置令牌时仅接受本机名称访问"
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in SAFE_METHODS and not is_local_origin(origin):
            return 403, "a page of another site may not do this / 不允许其他网站的页面执行此操作"
        return None
