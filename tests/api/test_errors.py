"""What goes wrong becomes a problem of RFC 9457; what is secret about it stays in the log."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future

import httpx
import pytest
from fastapi import FastAPI

from twin.api import errors
from twin.api.auth import answered_subprotocol, is_local_host, is_local_origin, sorted_subprotocols
from twin.api.errors import Invalid
from twin.model import Conflict, InvalidRules, NotFound, Problem, StoreRefused, StoreUnavailable


def answer_to(error: Exception) -> httpx.Response:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    async def fails() -> None:
        raise error

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/")

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("no sensor x / 没有测点 x"), 404),
        (Conflict("it is active / 仍在报警"), 409),
        (InvalidRules([Problem("line 3", "levels", "must be a table")]), 422),
        (Invalid("from", "must be a time", "必须是时间"), 422),
        (Invalid("", "not JSON", "不是 JSON", 400), 400),
        (StoreRefused("invalid byte sequence"), 422),
        (StoreUnavailable("connection to server at 10.1.2.3 failed for user admin"), 503),
        (RuntimeError("a secret"), 500),
    ],
)
def test_each_exception_has_its_answer(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        answer = answer_to(error)
    body = answer.json()
    assert (answer.status_code, body["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["title"]
    assert "/" in body["detail"]
    if status >= 500:
        assert str(error) not in answer.text
        assert caplog.records
    if status == 500:
        assert body["id"] in caplog.text
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0


def test_every_mistake_is_listed() -> None:
    problems = [Problem(f"line {n}", "id", "is given twice") for n in range(30)]
    body = answer_to(InvalidRules(problems)).json()
    assert body["count"] == 30
    assert body["problems"][29] == {"place": "line 29", "field": "id", "text": "is given twice"}


def test_a_command_that_never_has_its_turn_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "COMMAND_S", 0.05)
    future: Future[int] = Future()
    with pytest.raises(StoreUnavailable):
        asyncio.run(errors.done(future))
    assert future.cancelled()


@pytest.mark.parametrize(
    ("offered", "token", "answer"),
    [
        ([], None, None),
        (["bearer.T"], "T", None),
        (["Bearer.T", "chat"], "T", "chat"),
        (["bearer", "T"], "T", "bearer"),
        (["chat", "bearer", "T", "cimtwin"], "T", "cimtwin"),
        (["bearer", "cimtwin", "T"], "T", "cimtwin"),
        (["bearer"], None, "bearer"),
        (["T", "bearer"], None, "bearer"),
        (["T"], None, None),
    ],
)
def test_a_token_among_the_subprotocols_is_found_and_never_answered(
    offered: list[str], token: str | None, answer: str | None
) -> None:
    assert sorted_subprotocols(offered)[0] == token
    assert answered_subprotocol(offered, "T") == answer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:8000", "127.9.9.9", "[::1]", "[::1]:80"])
def test_names_of_this_machine(host: str) -> None:
    assert is_local_host(host)
    assert is_local_origin(f"http://{host}")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "user@127.0.0.1",
        "[::1",
        "/tmp",
        "0.0.0.0",
    ],
)
def test_other_names(host: str) -> None:
    assert not is_local_host(host)
    assert not is_local_origin(f"https://{host}")
