"""The WebSockets of live alerts and readings, and of replays (contract 6): one client's connection over `twin.live`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from twin.api.auth import STANDING, answered_subprotocol, is_token
from twin.api.protection import PROTOCOL
from twin.api.view import ServiceView
from twin.live import (
    BAD_FRAME,
    UNAUTHORISED,
    BadFrame,
    Client,
    Live,
    error_frame,
    frame_token,
    parse_subscription,
)
from twin.model import NotFound, StoreUnavailable

FIRST_FRAME_S: Final = 10.0
CLOSE_S: Final = 5.0
ABORT_S: Final = 30.0  # for a client that takes nothing: until then it can still read why
TRY_AGAIN: Final = 1013
NO_SUCH_REPLAY: Final = 4404
READY_S: Final = 10.0  # a client of a new replay waits for its start so long; then its first snapshot is empty


class _End(Exception):  # noqa: N818 - how a conversation ends, not an error
    """The connection is to be closed with this code, after an error frame if there is a detail."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class LiveSocket:
    """ASGI application of `/ws/v1/live`."""

    def __init__(self, service: ServiceView) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await _opened(self.service, scope, receive, send):
            await _Conversation(self.service, self.service.live).hold(scope, receive, send)


class ReplaySocket:
    """ASGI application of `/ws/v1/replays/{id}`."""

    def __init__(self, service: ServiceView) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await _opened(self.service, scope, receive, send):
            return
        try:
            replay = self.service.replays.find(scope["path_params"]["id"])
        except NotFound as error:
            await _close(scope, send, NO_SUCH_REPLAY, "no such replay", str(error))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                await replay.ready()
        if replay.is_over:
            await _close(scope, send, 1000, "the replay has ended", None)
            return
        await _Conversation(self.service, replay.live, replay.watched).hold(scope, receive, send)


async def _opened(service: ServiceView, scope: Scope, receive: Receive, send: Send) -> bool:
    """Accept a connection; whether there is one."""
    if (await receive())["type"] != "websocket.connect":
        return False
    subprotocol = answered_subprotocol(scope.get("subprotocols", []), service.settings.api_token)
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    return True


class _Conversation:
    """With one client, over `live`; `watched` is called whenever it has subscribed."""

    def __init__(self, service: ServiceView, live: Live, watched: Callable[[], None] | None = None) -> None:
        self.service = service
        self.live = live
        self.watched = watched

    async def hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        live = self.live
        live.start()
        client = Client(take_now=_shortcut(scope))
        tasks = [
            asyncio.create_task(self._listen(scope, receive, client)),
            asyncio.create_task(self._speak(client, send)),
            asyncio.create_task(client.closing.wait()),
        ]
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            live.leave(client)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if client.close_code is not None:
            await _close(scope, send, client.close_code, client.close_reason, None)
            return
        for task, result in zip(tasks, results, strict=True):
            if task not in finished or not isinstance(result, BaseException):
                continue
            if isinstance(result, _End):
                live.refused += 1
                await _close(scope, send, result.code, "", result.detail)
            elif not isinstance(result, OSError | asyncio.CancelledError):  # OSError: the client has gone
                await _close(scope, send, 1011, "internal error", None)
                raise result

    async def _listen(self, scope: Scope, receive: Receive, client: Client) -> None:
        """Take subscribe frames until the client goes; `_End` if one is bad."""
        token = self.service.settings.api_token
        standing = scope.get(STANDING)
        if standing is False:
            raise _End(UNAUTHORISED, "wrong token / 令牌错误")
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                data = await _frame(receive)
        except TimeoutError:
            text = f"no subscribe frame within {FIRST_FRAME_S:g} s / {FIRST_FRAME_S:g} 秒内未收到 subscribe 帧"
            raise _End(BAD_FRAME, text) from None
        if data is not None and standing is None and token is not None:
            given = frame_token(data)
            if given is None or not is_token(given, token):
                raise _End(UNAUTHORISED, "wrong or no token / 令牌缺失或错误")
        while data is not None:
            try:
                wanted = parse_subscription(data, self.service.catalog)
                await self.live.subscribe(client, wanted)
                if self.watched is not None:
                    self.watched()
            except BadFrame as error:
                raise _End(BAD_FRAME, str(error)) from None
            except StoreUnavailable:
                text = "the database is not available now, come back / 数据库暂时不可用，请稍后重连"
                raise _End(TRY_AGAIN, text) from None
            data = await _frame(receive)

    async def _speak(self, client: Client, send: Send) -> None:
        """Send what waits for the client, as fast as it takes it."""
        next_frame = self.live.next_frame
        while True:
            frame = next_frame(client)
            if frame is None:
                await client.wait()
            else:
                await send({"type": "websocket.send", "text": frame})


def _shortcut(scope: Scope) -> Callable[[bytes], bool] | None:
    """How frames in their last form reach a client past ASGI: uvicorn writes only whole frames, so they may go between
    its own, while its buffer has room and no end was said. None where another server runs us."""
    protocol: Any = scope.get(PROTOCOL)
    writable, transport = getattr(protocol, "writable", None), getattr(protocol, "transport", None)
    if not isinstance(writable, asyncio.Event) or transport is None:
        return None
    is_writable, is_closing, write = writable.is_set, transport.is_closing, transport.write

    def take_now(frames: bytes) -> bool:
        if not is_writable() or is_closing() or protocol.close_sent:
            return False
        write(frames)
        return True

    return take_now


async def _frame(receive: Receive) -> str | bytes | None:
    """The next frame from the client, None when it has gone."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    data: str | bytes | None = message.get("text")
    return data if data is not None else message.get("bytes") or b""


def _abort(transport: asyncio.Transport) -> None:
    with suppress(AttributeError):  # of one that is gone asyncio lets go of the loop, and then stumbles over that
        transport.abort()


async def _close(scope: Scope, send: Send, code: int, reason: str, detail: str | None) -> None:
    """Close, also where the client takes nothing: uvicorn's own close would wait for it without end."""
    protocol: Any = scope.get(PROTOCOL)
    writable, transport = getattr(protocol, "writable", None), getattr(protocol, "transport", None)
    if isinstance(writable, asyncio.Event) and transport is not None:
        writable.set()  # the close frame goes behind what is buffered, however long that waits
        asyncio.get_running_loop().call_later(ABORT_S, _abort, transport)
    try:
        async with asyncio.timeout(CLOSE_S):
            if detail is not None:
                await send({"type": "websocket.send", "text": error_frame(detail)})
            await send({"type": "websocket.close", "code": code, "reason": reason})
    except (OSError, RuntimeError, TimeoutError):
        return  # gone already
