"""What every route shares: problems, request ids, health, documentation."""

import re

import pytest
from fastapi.testclient import TestClient


def test_health(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics(client: TestClient) -> None:
    text = client.get("/metrics").text
    for name in ("sdc_requests_total", "sdc_queue_depth", "sdc_batch_size", "sdc_stage_seconds", "sdc_ready 1.0", "sdc_build_info"):
        assert name in text
    assert not re.search(r'op="[a-z2-7]{26}', text), "no id may become a label"


def test_documentation(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/compress", "/decompress", "/render/{blob_id}", "/blobs", "/blobs/{blob_id}", "/livez", "/metrics"} <= set(paths)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/compress", 405), ("POST", "/livez", 405)])
def test_framework_errors_are_problems_too(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    if status == 405:
        assert reply.headers["allow"]


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
