"""What every answer and every body is subject to: security headers, and a bound on what is sent to us. And HEAD."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twin.api.errors import problem

MIB: Final = 1 << 20
BODY_BYTES: Final = MIB
BODY_BYTES_OF: Final = {"/api/v1/sensors": 32 * MIB, "/api/v1/rules": 4 * MIB}
# Of a body that is refused, this much is read and thrown away: a connection that is closed with something unread is
# reset, and the client may lose the answer.
DISCARD_BYTES: Final = 64 * MIB
DISCARD_S: Final = 5.0
PROTOCOL: Final = "cimtwin.protocol"
AS_GET: Final = "cimtwin.as_get"  # in the scope of a HEAD request

_API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# The pages of the API's description start with a script of their own in the page.
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'self'"
)
PAGES: Final = frozenset(("/docs", "/redoc", "/docs/oauth2-redirect"))


class TooLarge(HTTPException):
    """A body over its bound, found while it is read."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {limit >> 20} MiB / 请求体超过 {limit >> 20} MiB")


class Protection:
    """ASGI: refuses bodies over the path's bound and adds the security headers that an answer has not set itself. HEAD
    is answered as GET, without the body."""

    def __init__(self, app: ASGIApp, model_bytes: int = BODY_BYTES) -> None:
        self.app = app
        self.limits = BODY_BYTES_OF | {"/api/v1/models": model_bytes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # For the way out where a client takes nothing any more; see `twin.api.socket`.
            scope[PROTOCOL] = getattr(send, "__self__", None)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET", AS_GET: True}

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Content-Security-Policy", _PAGE_POLICY if path in PAGES else _API_POLICY)
                if path.startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
                    headers.add_vary_header("Accept")
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        limit = self.limits.get(path, BODY_BYTES)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > limit:
            if "expect" not in Headers(scope=scope):  # who waits for leave to send has not sent anything
                await _discard(receive)
            error = TooLarge(limit)
            await problem(413, error.detail, {"Connection": "close"})(scope, receive, guarded_send)
            return
        seen = 0

        async def bounded_receive() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    if message.get("more_body"):
                        await _discard(receive)
                    raise TooLarge(limit)
            return message

        await self.app(scope, bounded_receive, guarded_send)


async def _discard(receive: Receive) -> None:
    """Read what is left of a body, within bounds."""
    seen = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while seen < DISCARD_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                seen += len(message.get("body", b""))
