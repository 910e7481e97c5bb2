"""Waiting for work that is done for one client only: where the client goes, the work ends."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import Request

from twin.api.view import BacktestView

LOOK_S: Final = 0.5


async def answered(request: Request, run: BacktestView) -> dict[str, Any]:
    """What a back-test came to. One whose client has gone is cancelled. Raises what the back-test raises."""
    answer = asyncio.wrap_future(run.answer)
    try:
        while True:
            done, _ = await asyncio.wait({answer}, timeout=LOOK_S)
            if done:
                return await answer
            if await request.is_disconnected():
                run.cancel()
    except asyncio.CancelledError:
        run.cancel()
        raise
