"""The page's files as the service gives them out."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from twin.api import create_app, page
from twin.api.protection import PAGES
from twin.settings import Settings

TOKEN = "a-token-of-this-test"
HTML = "<!doctype html><title>页面</title><script type=module src=./assets/index-C0ffee.js></script>" * 9
SCRIPT = "console.log('cimtwin');\n" * 400
FILES = {
    "index.html": HTML.encode(),
    "favicon.svg": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
    "assets/index-C0ffee.js": SCRIPT.encode(),
    "assets/index-C0ffee.css": b"body { color: red }\n" * 100,
    "assets/digits-C0ffee.woff2": b"wOF2" + b"\0" * 1000,
}

Ask = Callable[..., httpx.Response]


def asking(token: str | None) -> Ask:
    """Put requests to an application with the page of `page.FOLDER`."""
    view: Any = SimpleNamespace(settings=Settings(api_token=token), live=None, reader=None)
    app = create_app(view)

    def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                given = {"accept-encoding": "identity"} | {k.replace("_", "-"): v for k, v in headers.items()}
                return await client.request(method, path, headers=given)

        return asyncio.run(answer())

    return ask


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built page, and beside it what is not to be had."""
    built = tmp_path / "twin" / "web"
    for name, content in FILES.items():
        file = built / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "twin" / "secret.txt").write_text("secret")
    monkeypatch.setattr(page, "FOLDER", built)
    return built


@pytest.fixture
def ask(folder: Path) -> Ask:
    return asking(None)


@pytest.mark.parametrize(
    ("path", "name", "media"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/favicon.svg", "favicon.svg", "image/svg+xml"),
        ("/assets/index-C0ffee.js", "assets/index-C0ffee.js", "text/javascript; charset=utf-8"),
        ("/assets/index-C0ffee.css", "assets/index-C0ffee.css", "text/css; charset=utf-8"),
        ("/assets/digits-C0ffee.woff2", "assets/digits-C0ffee.woff2", "font/woff2"),
    ],
)
def test_each_file_has_its_type_and_the_strict_policy(ask: Ask, path: str, name: str, media: str) -> None:
    answer = ask(path)
    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert answer.headers["content-type"] == media
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "font-src": "'self'",
        "connect-src": "'self'",
        "manifest-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert "content-encoding" not in answer.headers


def test_the_page_is_asked_for_anew_and_what_is_named_by_its_content_never(ask: Ask) -> None:
    for path in ("/", "/favicon.svg"):
        assert ask(path).headers["cache-control"] == "no-cache"
    for path in ("/assets/index-C0ffee.js", "/assets/digits-C0ffee.woff2"):
        assert ask(path).headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("accepted", ["gzip", "gzip, deflate, br", "br;q=1.0, GZIP;q=0.5", "*"])
def test_who_takes_gzip_is_sent_gzip(folder: Path, accepted: str) -> None:
    async def bytes_sent(path: str) -> tuple[httpx.Headers, bytes]:
        file = page.files(folder)[path]
        request: Any = SimpleNamespace(headers=httpx.Headers({"accept-encoding": accepted}))
        answer = file.answer(request)
        return httpx.Headers(answer.raw_headers), bytes(answer.body)

    for path, name in (("/", "index.html"), ("/assets/index-C0ffee.js", "assets/index-C0ffee.js")):
        headers, body = asyncio.run(bytes_sent(path))
        assert (headers["content-encoding"], headers["vary"]) == ("gzip", "Accept-Encoding")
        assert int(headers["content-length"]) == len(body) < len(FILES[name])
        assert gzip.decompress(body) == FILES[name]
    headers, body = asyncio.run(bytes_sent("/assets/digits-C0ffee.woff2"))
    assert "content-encoding" not in headers
    assert "vary" not in headers
    assert body == FILES["assets/digits-C0ffee.woff2"]


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "gzip; q=0.0, *", "*;q=0"])
def test_who_does_not_is_sent_it_plain(ask: Ask, accepted: str) -> None:
    answer = ask("/", accept_encoding=accepted)
    assert "content-encoding" not in answer.headers
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.content == FILES["index.html"]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_who_holds_it_is_told_so(ask: Ask, encoding: str) -> None:
    full = ask("/", accept_encoding=encoding)
    tag = full.headers["etag"]
    for held in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = ask("/", accept_encoding=encoding, if_none_match=held)
        assert (answer.status_code, answer.content) == (304, b"")
        # a browser takes these over into the copy that it holds
        for name in ("etag", "cache-control", "vary", "content-security-policy"):
            assert answer.headers[name] == full.headers[name]
        assert "content-encoding" not in answer.headers
    for other in ('"other"', tag.strip('"'), ""):
        assert ask("/", accept_encoding=encoding, if_none_match=other).status_code == 200


def test_the_two_forms_of_a_file_have_different_tags_and_the_same_ones_after_a_start(folder: Path) -> None:
    tags = [asking(None)("/", accept_encoding=e).headers["etag"] for e in ("identity", "gzip", "identity", "gzip")]
    assert tags[0] != tags[1]
    assert tags[:2] == tags[2:]
    (folder / "index.html").write_bytes(b"<!doctype html>another")
    assert asking(None)("/").headers["etag"] not in tags


def test_head(ask: Ask) -> None:
    for path in ("/", "/assets/index-C0ffee.js"):
        answer, full = ask(path, "HEAD"), ask(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert {**answer.headers} == {**full.headers}
    assert ask("/none", "HEAD").status_code == 404


def test_nothing_else_is_taken(ask: Ask) -> None:
    for path in ("/", "/assets/index-C0ffee.js"):
        for method in ("POST", "PUT", "DELETE"):
            answer = ask(path, method)
            assert answer.status_code == 405
            assert answer.headers["allow"] == "GET, HEAD"
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/assets",
        "/assets/",
        "/assets/none.js",
        "/assets/../index.html",
        "/assets/../../secret.txt",
        "/assets/..\\..\\secret.txt",
        "/../secret.txt",
        "../secret.txt",
        "//etc/passwd",
        "/secret.txt",
        "/web/index.html",
        "/favicon.svg\0",
        "/FAVICON.SVG",
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_no_file_of_the_page_is_not_found(path: str) -> None:
    """As the server hands it over, decoded: an HTTP client would tidy the path up before it asks."""
    view: Any = SimpleNamespace(settings=Settings(), live=None, reader=None)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")]}
    asyncio.run(create_app(view)(scope, receive, send))
    headers = dict(sent[0]["headers"])
    assert (sent[0]["status"], headers[b"content-type"]) == (404, b"application/problem+json")
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'; frame-ancestors 'none'")
    assert b"secret" not in sent[1]["body"]


def test_the_page_needs_no_token_and_what_it_shows_does(folder: Path) -> None:
    ask = asking(TOKEN)
    for path in page.files(folder):
        assert ask(path).status_code == 200
    for path in ("/api/v1/sensors", "/api/v1/none", "/metrics", "/none", "/assets/none.js", "/assets/../metrics"):
        assert ask(path).status_code == 401, path
        assert ask(path, authorization="Bearer wrong").status_code == 401, path
    assert ask("/none", authorization=f"Bearer {TOKEN}").status_code == 404


def test_without_a_token_the_page_too_is_for_this_machines_names_only(ask: Ask) -> None:
    for path in ("/", "/assets/index-C0ffee.js"):
        assert ask(path, host="localhost:8000").status_code == 200
        assert ask(path, host="rebound.example").status_code == 403


@pytest.mark.parametrize("token", [None, TOKEN])
def test_where_the_page_is_not_built_a_notice_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path / "none")
    ask = asking(token)
    answer = ask("/")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == page.POLICY
    for said in ("make page", "页面尚未构建", "The page is not built"):
        assert said in answer.text
    for link in re.findall(r'href="([^"]*)"', answer.text):
        assert f"/{link}" in PAGES
        assert ask(f"/{link}").status_code == 200
    assert ask("/assets/index-C0ffee.js").status_code == (404 if token is None else 401)


def test_half_a_page_is_none(folder: Path) -> None:
    (folder / "index.html").unlink()
    assert page.files(folder) == {}


def test_the_pages_of_the_description_keep_their_own_policy(ask: Ask) -> None:
    assert "'unsafe-inline'" in ask("/docs").headers["content-security-policy"]
    assert "/assets/index-C0ffee.js" not in ask("/openapi.json").text
