"""httplint, which knows the RFCs better than we do, has nothing against any kind of reply of a running service."""

import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from httplint import HttpRequestLinter, HttpResponseLinter, levels

from service.bench.serving import Server, serving
from tests.conftest import filled, make_picture, png

PHOTO = png(make_picture(60, 80))
ADMIN, PAGE = "an admin key of some length", "a page key of some length"
SETTINGS = {
    "SDC_ADMIN_KEY": ADMIN,
    "SDC_MAX_BODY_BYTES": "100000",
    "SDC_API_KEYS": f'{{"page": {{"secret": "{PAGE}", "scopes": ["render", "compress"]}},'
    '"few": {"secret": "a key for a request a minute", "scopes": ["compress"], "per_minute": 1}}',
    "SDC_SIGNING_KEYS": '{"k1": "a signing key of some length"}',
}
ACCEPTED = {
    "STORE_PUBLIC_UNNECESSARY": "it is what lets a cache keep what a key opened, and does no harm where none did",
    "STATUS_BAD_REQUEST": "so it is",
    "LOCATION_UNDEFINED": "of a 200 to POST: the picture stands at the same place as after a 201, and clients look there",
    "REQUEST_HDR_IN_RESPONSE": "Accept of a 415, as RFC 9110 (15.5.16) asks for",
    "CONTENT_TYPE_MISMATCH": "of AVIF only, which the linter does not know",
}


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    content: bytes


@dataclass
class Linted:
    server: Server

    def __call__(self, method: str, path: str, status: int, body: bytes | None = None, **headers: str) -> Reply:
        """Ask, and let httplint look at the reply."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        connection.request(method, path, body, named)
        received = connection.getresponse()
        reply = Reply(received.status, received.headers, received.read())
        connection.close()
        assert reply.status == status, reply.content
        self.lint(method, path, named, received, reply)
        return reply

    def lint(self, method: str, path: str, asked: dict[str, str], received: http.client.HTTPResponse, reply: Reply) -> None:
        now, host = time.time(), f"127.0.0.1:{self.server.port}"
        request, response = HttpRequestLinter(start_time=now), HttpResponseLinter(start_time=now)
        request.process_request_topline(method.encode(), f"http://{host}{path}".encode(), b"1.1")
        request.process_headers([(b"Host", host.encode()), *((name.encode(), value.encode()) for name, value in asked.items())])
        request.finish_content(True)
        response.request, response.is_head_response = request, method == "HEAD"
        response.process_response_topline(b"1.1", str(reply.status).encode(), received.reason.encode())
        response.process_headers([(name.encode(), value.encode("latin-1")) for name, value in reply.headers.items()])
        if reply.content:
            response.feed_content(reply.content)
        response.finish_content(True)
        notes = {type(note).__name__: note.summary for note in response.notes if note.level in (levels.BAD, levels.WARN)}
        if reply.headers.get("content-type") != "image/avif":
            assert "CONTENT_TYPE_MISMATCH" not in notes
        if reply.status != 200 or method != "POST":
            assert "LOCATION_UNDEFINED" not in notes
        assert not set(notes) - set(ACCEPTED), (method, path, notes)


@pytest.fixture(scope="module")
def open_service(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linted]:
    """Nobody needs a key but to delete."""
    folder = tmp_path_factory.mktemp("open")
    few = {name: value for name, value in SETTINGS.items() if name in ("SDC_ADMIN_KEY", "SDC_MAX_BODY_BYTES")}
    with serving(folder, folder / "log", SDC_MODEL=str(small_model), SDC_SLOTS="1", **few) as server:
        yield Linted(server)


@pytest.fixture(scope="module")
def closed_service(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linted]:
    folder = tmp_path_factory.mktemp("closed")
    origins = '["https://shop.example"]'
    with serving(folder, folder / "log", SDC_MODEL=str(small_model), SDC_CORS_ORIGINS=origins, **SETTINGS) as server:
        yield Linted(server)


def test_every_kind_of_reply(open_service: Linted) -> None:
    ask = open_service
    made = ask("POST", "/compress?tag=shoes", 201, PHOTO)
    path = made.headers["location"]
    blob = path.replace("render", "blobs")
    ask("POST", "/compress", 200, PHOTO)
    content = ask("POST", "/compress", 200, PHOTO, accept="application/vnd.sdc").content
    for extension in ("webp", "png", "jpg", "avif"):
        ask("GET", f"{path}.{extension}", 200)
        ask("GET", f"{path}.{extension}", 200)
    shown = ask("GET", path, 200, accept="image/webp,*/*;q=0.8")
    ask("HEAD", path, 200, accept="image/webp,*/*;q=0.8")
    ask("HEAD", f"{path}.webp?w=30", 200)
    ask("GET", path, 304, accept="image/webp", if_none_match=shown.headers["etag"])
    ask("GET", f"{path}?q=80", 308)
    ask("GET", f"{path}?colour=red", 400)
    ask("GET", "/render/" + "a" * 26, 404)
    whole = ask("GET", blob, 200)
    ask("HEAD", blob, 200)
    ask("GET", blob, 304, if_none_match=whole.headers["etag"])
    ask("GET", blob, 206, range="bytes=0-9")
    ask("GET", blob, 416, range="bytes=1000000-")
    ask("GET", f"{blob}/info", 200)
    ask("POST", "/blobs", 201, content)
    ask("POST", "/compare?quality=20", 200, PHOTO)
    ask("POST", "/compare", 415, b"no picture")
    home = ask("GET", "/", 200)
    ask("HEAD", "/", 200)
    ask("GET", "/", 304, if_none_match=home.headers["etag"])
    for name in ("page.css", "page.js", "icon.svg", "samples/rocket.jpg", "samples/LICENCES.txt"):
        ask("GET", f"/page/{name}", 200)
    ask("GET", "/page/nothing.js", 404)
    ask("POST", "/decompress", 200, content)
    ask("POST", "/decompress?format=png&w=20", 200, content)
    ask("POST", "/decompress", 422, content[:-3])
    ask("PUT", "/compress", 405, b"x")
    ask("GET", "/nothing", 404)
    ask("POST", "/compress", 415, b"no picture")
    ask("POST", "/compress", 422, PHOTO[:-30])
    ask("POST", "/compress", 400, b"")
    ask("POST", "/compress", 413, bytes(100_001))
    ask("OPTIONS", "/compress", 204, origin="https://shop.example", access_control_request_method="POST")
    for page in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        ask("GET", page, 200)
    ask("HEAD", "/livez", 200)
    ask("DELETE", blob, 401)
    ask("DELETE", blob, 204, authorization=f"Bearer {ADMIN}")
    ask("GET", path, 410)


def test_a_full_service(open_service: Linted) -> None:
    with filled(open_service.server):
        reply = open_service("POST", "/compress?quality=7", 503, PHOTO)
    assert int(reply.headers["retry-after"]) >= 1


def test_keys_and_signatures(closed_service: Linted) -> None:
    ask = closed_service
    page = f"Bearer {PAGE}"
    ask("POST", "/compress", 401, PHOTO)
    made = ask("POST", "/compress", 201, PHOTO, authorization=page, origin="https://shop.example")
    signed = made.headers["location"]
    plain = signed.partition("?")[0]
    shown = ask("GET", signed, 200, accept="image/webp", origin="https://shop.example")
    ask("GET", signed, 304, accept="image/webp", if_none_match=shown.headers["etag"])
    ask("GET", plain, 401)
    ask("GET", f"{plain}.webp", 200, authorization=page)
    ask("GET", signed[:-3] + "AAA", 403)
    ask("DELETE", plain.replace("render", "blobs"), 403, authorization=page)
    few = "Bearer a key for a request a minute"
    ask("POST", "/compress", 200, PHOTO, authorization=few)
    ask("POST", "/compress", 429, PHOTO, authorization=few)
