"""The page at /: static files of ``service/page``, read once at start.  Needs no network but this service, and no build."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.api.middleware import header_of
from service.api.negotiation import matches
from service.errors import NotFound

FOLDER = Path(__file__).parents[1] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: dict[str, str]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, {**HEADERS, "Content-Type": TYPES[path.suffix], "ETag": tag})


def make_router() -> APIRouter:
    """Routes of the page."""
    router = APIRouter(include_in_schema=False)
    files = {str(path.relative_to(FOLDER)): _read(path) for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _reply(request, files["index.html"])

    @router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
    async def page_file(request: Request, name: str) -> Response:
        if name not in files:
            raise NotFound("the page has no such file")
        return _reply(request, files[name])

    return router


def _reply(request: Request, file: _File) -> Response:
    if matches(header_of(request, "if-none-match"), file.headers["ETag"]):
        return Response(None, 304, {name: value for name, value in file.headers.items() if name != "Content-Type"})
    return Response(file.content if request.method == "GET" else None, 200, {**file.headers, "Content-Length": str(len(file.content))})
