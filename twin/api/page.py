"""The page of the operations centre, as `make page` or the wheel's build made it from `web/`: a table of whole files,
read once. Nothing else of the disk can be asked for. They hold no data: what the page shows, it asks of the API."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twin.api.caching import is_held, takes_gzip

FOLDER: Final = Path(__file__).parent.parent / "web"

# Not by the machine's own table of types: with nosniff, a wrong one there would keep a browser from running the page.
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
IS_PACKED: Final = frozenset((".ico", ".png", ".woff2"))  # compressed as they are, or too small

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Vite puts a digest of the content into the names there.
NAMED_BY_CONTENT: Final = "/assets/"

NOT_BUILT: Final = """<!doctype html>
<html lang="zh">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>cimtwin</title>
<h1>页面尚未构建</h1>
<p>服务运行正常，只是此源码目录中还没有构建好的页面。请运行 <code>make page</code>，然后重新启动服务。</p>
<p>接口说明：<a href="docs">/docs</a></p>
<div lang="en">
<h1>The page is not built</h1>
<p>The service runs; only the page has not been built in this source checkout. Run <code>make page</code> and start the
service again.</p>
<p>The interface is described at <a href="docs">/docs</a>.</p>
</div>
</html>
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent. The two forms have an ETag each, as they differ in their bytes."""

    plain: bytes
    packed: bytes | None  # gzip
    tag: str
    media: str
    caching: str

    def answer(self, request: Request) -> Response:
        packed = self.packed if takes_gzip(request.headers.get("accept-encoding", "")) else None
        tag = f'"{self.tag}"' if packed is None else f'"{self.tag}-gzip"'
        headers = {"Cache-Control": self.caching, "Content-Security-Policy": POLICY, "ETag": tag}
        if self.packed is not None:
            headers["Vary"] = "Accept-Encoding"
        if is_held(request.headers.get("if-none-match", ""), tag):
            # With the policy, too: a browser takes the headers of a 304 over into the copy that it holds.
            return Response(status_code=304, headers=headers)
        headers["Content-Type"] = self.media
        if packed is None:
            return Response(self.plain, headers=headers)
        return Response(packed, headers=headers | {"Content-Encoding": "gzip"})


def files(folder: Path) -> dict[str, PageFile]:
    """Every file of a built page by the path that it is asked for with; none where the page was not built."""
    found: dict[str, PageFile] = {}
    if not (folder / "index.html").is_file():
        return found
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        path = "/" if name == "index.html" else f"/{name}"
        plain = file.read_bytes()
        # mtime: the same bytes, and so the same ETag, after every start
        packed = None if file.suffix in IS_PACKED else gzip.compress(plain, mtime=0)
        found[path] = PageFile(
            plain=plain,
            packed=packed if packed is not None and len(packed) < len(plain) else None,
            tag=hashlib.sha256(plain).hexdigest()[:32],
            media=TYPES.get(file.suffix, "application/octet-stream"),
            caching="public, max-age=31536000, immutable" if path.startswith(NAMED_BY_CONTENT) else "no-cache",
        )
    return found


def routes(table: Mapping[str, PageFile]) -> list[Route]:
    """A route for each file, or for a notice at `/` where there is none."""
    if not table:
        return [Route("/", _not_built, include_in_schema=False)]
    return [Route(path, _answering(file), include_in_schema=False) for path, file in table.items()]


def _answering(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return file.answer(request)

    return answer


async def _not_built(_request: Request) -> Response:
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": POLICY, "Content-Type": TYPES[".html"]}
    return Response(NOT_BUILT, 503, headers)
