"""What every route shares: problems, request ids, health, documentation."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from starlette.types import Message

from tests.api.conftest import app_of
from tests.conftest import make_picture, png


def test_health(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics(client: TestClient) -> None:
    text = client.get("/metrics").text
    for name in ("sdc_requests_total", "sdc_queue_depth", "sdc_batch_size", "sdc_stage_seconds", "sdc_ready 1.0", "sdc_build_info"):
        assert name in text
    assert not re.search(r'op="[a-z2-7]{26}', text), "no id may become a label"


def test_documentation(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "SwaggerUIBundle" in page.text
    assert '<div id="swagger-ui"><p>' in page.text, "what is read where its scripts do not come"
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/compress", "/decompress", "/render/{blob_id}", "/blobs", "/blobs/{blob_id}", "/livez", "/metrics"} <= set(paths)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/compress", 405), ("POST", "/livez", 405)])
def test_framework_errors_are_problems_too(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    if status == 405:
        assert reply.headers["allow"] == {"/compress": "POST", "/livez": "GET, HEAD"}[path]


def test_allow_names_every_method_of_a_path(client: TestClient) -> None:
    assert client.put("/blobs/" + "a" * 26).headers["allow"] == "DELETE, GET, HEAD"


def test_who_asks_for_what_is_not_there_hears_what_is(client: TestClient) -> None:
    assert "use POST" in client.get("/compress").json()["detail"]
    assert "use DELETE or GET or HEAD" in client.put("/blobs/" + "a" * 26).json()["detail"]
    assert "/docs" in client.get("/nowhere").json()["detail"]


def test_no_redirects_for_slashes(client: TestClient) -> None:
    assert client.get("/livez/", follow_redirects=False).status_code == 404


def test_health_answers_head(client: TestClient) -> None:
    assert client.head("/livez").status_code == client.head("/readyz").status_code == 200


def test_a_failure_is_a_problem_without_a_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /etc/x")

    monkeypatch.setattr(client.app.state.services.pipeline, "id_of", broken)  # type: ignore[attr-defined]
    reply = client.post("/compress", content=b"x")
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("offered", ["abc-123", "a" * 64])
def test_a_safe_request_id_is_kept(client: TestClient, offered: str) -> None:
    assert client.get("/livez", headers={"x-request-id": offered}).headers["x-request-id"] == offered


@pytest.mark.parametrize("offered", ["a b", "<script>", "a" * 65, "x\ty", "{}"])
def test_a_hostile_request_id_is_replaced(client: TestClient, offered: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", client.get("/livez", headers={"x-request-id": offered}).headers["x-request-id"])


@pytest.mark.parametrize(
    ("offered", "known"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", True),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("<script>", False),
    ],
)
def test_the_trace_of_a_request_is_logged(client: TestClient, offered: str, known: bool) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        client.get("/nothing", headers={"traceparent": offered})
    (line,) = [each for each in logs if each["event"] == "request"]
    assert (line.get("trace_id") == "4bf92f3577b34da6a3ce929d0e0e4736") is known
    assert known or "trace_id" not in line


def test_a_client_that_hangs_up_is_no_failure(client: TestClient) -> None:
    """Its body never comes to an end: nothing is answered, and metrics do not say 500."""
    counted = {"op": "compress", "code": "499"}
    before = REGISTRY.get_sample_value("sdc_requests_total", counted) or 0
    sent: list[object] = []

    async def gone() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/compress", "raw_path": b"/compress", "query_string": b"",
        "headers": [(b"content-length", b"9")],
        "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    asyncio.run(client.app(scope, gone, send))  # type: ignore[arg-type]
    assert sent == []
    assert REGISTRY.get_sample_value("sdc_requests_total", counted) == before + 1


def test_nothing_of_a_request_is_told_of_the_next(client: TestClient) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        client.get("/nothing", headers={"x-request-id": "first", "traceparent": f"00-{'4' * 32}-{'f' * 16}-01"})
        client.get("/nothing")
    first, second = (each for each in logs if each["event"] == "request")
    assert (first["request_id"], first["trace_id"]) == ("first", "4" * 32)
    assert second["request_id"] != "first"
    assert "trace_id" not in second


def test_the_devices_threads_know_of_no_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    engine = app_of(client).state.services.pipeline.engine
    real = engine.begin_encode

    def begin(*given: Any, **named: Any) -> Callable[[], Any]:
        seen.append(structlog.contextvars.get_contextvars())
        finish = real(*given, **named)
        return lambda: (seen.append(structlog.contextvars.get_contextvars()), finish())[1]

    monkeypatch.setattr(engine, "begin_encode", begin)
    assert client.post("/compress?quality=44", content=png(make_picture(40, 40)), headers={"x-request-id": "mine"}).status_code == 201
    assert seen == [{}, {}]


def test_a_body_that_drips_in_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pace is asked for: a slot is held as long as it comes."""
    monkeypatch.setattr("service.api.middleware.UPLOAD_S", 0.05)
    sent: list[Message] = []
    pieces = iter([b"x" * 10, b"x" * 10])

    async def receive() -> Message:
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        await asyncio.sleep(600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/compress", "raw_path": b"/compress", "query_string": b""}
    assert client.portal is not None
    client.portal.call(app_of(client), {**scope, "headers": [(b"content-length", b"1000"), (b"expect", b"x")]}, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["detail"].startswith("20 bytes of the body came in")


def test_a_steady_body_may_take_its_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.middleware.UPLOAD_S", 0.5)
    monkeypatch.setattr("service.api.middleware.UPLOAD_BYTES_A_SECOND", 10)

    def dripping() -> Iterator[bytes]:
        yield b"no picture, and slow"
        time.sleep(1)
        yield b"!"

    assert client.post("/compress", content=dripping()).status_code == 415
