"""What is in memory is told at once, however full the service is."""

import re
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from service.api.delivery import LONGEST_REMEMBERED, REMEMBERED
from service.app import create_app
from service.settings import Settings
from tests.api.conftest import app_of
from tests.conftest import make_picture, png

PHOTO = png(make_picture(60, 80))


@pytest.fixture
def full(small_model: Path, tmp_path: Path) -> TestClient:
    """A service with one place."""
    return TestClient(create_app(Settings(model=small_model, store_url=f"file://{tmp_path}/store", dtype="float32", slots=1)))


def test_a_full_service_tells_what_it_knows(full: TestClient) -> None:
    with full as client:
        path = client.post("/compress", content=PHOTO).json()["links"]["webp"]
        shown = client.get(path)
        door = app_of(client).middleware_stack
        while not hasattr(door, "slots"):
            door = door.app  # type: ignore[union-attr]
        door.slots = 0
        assert client.get(f"{path}?w=30").status_code == 503
        assert client.post("/compress?quality=3", content=PHOTO).status_code == 503
        kept = client.get(path)
        assert (kept.status_code, kept.content, kept.headers["cache-status"]) == (200, shown.content, "sdc; hit")
        assert client.get(path, headers={"if-none-match": shown.headers["etag"]}).status_code == 304
        head = client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(shown.content)))
        assert client.get(f"{path}?q=80", follow_redirects=False).status_code == 308
        assert client.get(f"{path}?colour=red").status_code == 400
        assert client.get("/render/x").status_code == 404


def test_a_deleted_picture_is_not_told_from_memory(client: TestClient) -> None:
    path = client.post("/compress?quality=17", content=PHOTO).json()["links"]["webp"]
    tag = client.get(path).headers["etag"]
    assert client.get(path).headers["cache-status"] == "sdc; hit"
    blob = path.replace("render", "blobs").removesuffix(".webp")
    assert client.delete(blob, headers={"authorization": "Bearer open, sesame, open"}).status_code == 204
    assert client.get(path, headers={"if-none-match": tag}).status_code == 410


def test_the_accept_header_may_come_in_parts(client: TestClient) -> None:
    path = client.post("/compress?quality=17", content=PHOTO).json()["links"]["render"]
    parts = [("accept", "image/webp;q=0.4"), ("accept", "image/avif")]
    reply = client.get(path, headers=httpx.Headers(parts))
    assert reply.headers["content-type"] == "image/avif"
    tags = httpx.Headers([*parts, ("if-none-match", '"other"'), ("if-none-match", reply.headers["etag"])])
    assert client.get(path, headers=tags).status_code == 304


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (".webp", 'model="small-residual-1", steps=1, format=webp, q=80'),
        (".png?steps=0", 'model="small-residual-1", steps=0, format=png'),
        (".jpg?w=30&h=20&fit=cover&q=60", 'model="small-residual-1", steps=1, format=jpg, q=60, w=30, h=20, fit=cover'),
    ],
)
def test_what_was_done_can_be_seen_without_doing_it(client: TestClient, query: str, told: str) -> None:
    path = client.post("/compress?quality=17", content=PHOTO).json()["links"]["render"] + query
    assert client.head(path).headers["sdc-variant"] == told
    assert client.get(path).headers["sdc-variant"] == told


def test_the_stages_of_a_request_are_told(client: TestClient) -> None:
    made = client.post("/compress?quality=18", content=PHOTO)
    shown = client.get(made.json()["links"]["webp"])
    plain = client.get(made.json()["links"]["webp"] + "?steps=0")
    for reply, stages in (
        (made, ["header", "open", "queue", "encode", "code"]),
        (shown, ["read", "queue", "unet", "decode", "write"]),
        (plain, ["read", "queue", "decode", "write"]),
    ):
        parts = re.findall(r"(\w+);dur=(\d+\.\d)(?:, |$)", reply.headers["server-timing"])
        assert [name for name, _ in parts] == stages


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("{path}", 200),
        ("{path}?", 200),
        ("{escaped}", 308),
        ("{path}%3Fw=30", 404),
        ("{path}?w=%33%30", 308),
        ("{path}/", 404),
        ("{path}.webp.webp", 404),
        ("{path}.", 404),
        ("{path}%0d%0aX:1", 404),
        ("{path}?w=30&w=30", 400),
    ],
)
def test_spellings(client: TestClient, asked: str, status: int) -> None:
    path = client.post("/compress?quality=17", content=PHOTO).json()["links"]["render"]
    escaped = path.replace("/render/", "/render/%").replace("%" + path[8], f"%{ord(path[8]):02x}", 1)
    reply = client.get(asked.format(path=path, escaped=escaped), follow_redirects=False)
    assert reply.status_code == status
    if status == 308:
        assert client.get(reply.headers["location"], follow_redirects=False).status_code == 200


def test_a_stranger_cannot_fill_the_memory_with_addresses(client: TestClient) -> None:
    """A long address is understood each time, and only so many short ones are remembered."""
    delivery = app_of(client).middleware_stack
    while not hasattr(delivery, "_understood"):
        delivery = delivery.app  # type: ignore[union-attr]
    path = client.post("/compress?quality=17", content=PHOTO).json()["links"]["render"]
    before = delivery._understood.cache_info()
    assert before.maxsize == REMEMBERED
    assert client.get(path, headers={"accept": "image/webp," + "x/y," * LONGEST_REMEMBERED}).headers["content-type"] == "image/webp"
    assert delivery._understood.cache_info() == before
