"""Logs: every line is JSON, and those of a request say so."""

import asyncio
import io
import json
import logging
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi.testclient import TestClient

from service.app import create_app
from service.batching.cpu import CpuPool
from service.bench.serving import serving
from service.errors import StoreUnavailable
from service.settings import Settings
from service.telemetry import logs
from tests.conftest import make_picture, png

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MINE = {"x-request-id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Logs as a service without a terminal has them, and what was said since the last look."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    for holder, name in ((threading, "excepthook"), (sys, "excepthook")):
        monkeypatch.setattr(holder, name, getattr(holder, name))  # put back at the end
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(root, "handlers", [])
    logs.configure("debug")
    seen = 0

    def since() -> list[dict[str, Any]]:
        nonlocal seen
        said, seen = stderr.getvalue()[seen:], len(stderr.getvalue())
        return [json.loads(line) for line in said.splitlines()]

    yield since
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers, root.level = handlers, level


def test_what_libraries_say(lines: Callable[[], list[dict[str, Any]]]) -> None:
    library = logging.getLogger("some.library")
    library.warning("queue of %d", 3)
    library.log(35, "between two levels")
    logs._Forward().emit(library.makeRecord(library.name, logging.ERROR, "", 1, "%d", ("no number",), None))
    said = [(line["event"], line["level"], line["logger"]) for line in lines()]
    assert said == [
        ("queue of 3", "warning", "some.library"),
        ("between two levels", "warning", "some.library"),
        ("%d ('no number',)", "error", "some.library"),
    ]


def test_an_error_of_a_library_has_its_trace(lines: Callable[[], list[dict[str, Any]]]) -> None:
    try:
        raise ValueError("deep down")
    except ValueError:
        logging.getLogger("some.library").exception("it failed")
    (line,) = lines()
    assert (line["event"], line["level"]) == ("it failed", "error")
    assert "ValueError: deep down" in line["exception"]


def test_warnings_are_lines_too(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # pytest's own catcher stands in between
        warnings.warn("old-fashioned", UserWarning, stacklevel=1)
    (line,) = lines()
    assert line["level"] == "warning" and "old-fashioned" in line["event"]


def test_a_thread_that_dies_is_a_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    def broken() -> None:
        raise RuntimeError("gone")

    thread = threading.Thread(target=broken, name="some-thread")
    thread.start()
    thread.join()
    (line,) = lines()
    assert (line["level"], line["thread"]) == ("critical", "some-thread")
    assert "RuntimeError: gone" in line["exception"]


def test_the_processors_threads_know_the_request(lines: Callable[[], list[dict[str, Any]]]) -> None:
    async def main() -> None:
        pool = CpuPool(1)

        async def one(request_id: str) -> None:
            structlog.contextvars.bind_contextvars(request_id=request_id)
            await pool.run(lambda: structlog.get_logger().info("at work", of=request_id))

        await asyncio.gather(one("a"), one("b"), one("c"))
        await pool.run(lambda: structlog.get_logger().info("at work"))
        await pool.close()

    asyncio.run(main())
    *three, last = lines()
    assert [line["request_id"] for line in three] == [line["of"] for line in three] == ["a", "b", "c"]
    assert "request_id" not in last, "a thread keeps nothing of the last one"


@pytest.fixture(scope="module")
def client(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(model=small_model, store_url=f"file://{tmp_path_factory.mktemp('store')}", dtype="float32")
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def test_the_line_of_a_request(client: TestClient, lines: Callable[[], list[dict[str, Any]]]) -> None:
    made = client.post("/compress?quality=40", content=png(make_picture(40, 40)), headers=MINE)
    path = made.json()["links"]["webp"]
    render = client.get(f"{path}?w=10&sig=hush&key=k1&expires=5", headers={"authorization": "Bearer hush"}, follow_redirects=False)
    gone = client.head(path, headers={"if-none-match": "*"})
    told = [line for line in lines() if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"], line["bytes"]) for line in told] == [
        ("POST", "/compress", 201, len(made.content)),
        ("GET", path, render.status_code, len(render.content)),
        ("HEAD", path, gone.status_code, 0),
    ]
    assert (told[0]["request_id"], told[0]["trace_id"]) == ("mine", TRACE)
    assert all(line["ms"] >= 0 and line["level"] == "info" and line["timestamp"] and line["request_id"] for line in told)
    assert "hush" not in json.dumps(told)


def test_every_line_of_a_request_that_fails_says_whose_it_is(
    client: TestClient, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = client.app.state.services  # type: ignore[attr-defined]
    monkeypatch.setattr(services.pipeline, "id_of", None)
    assert client.post("/compress", content=b"x", headers=MINE).status_code == 500

    async def down(*_: object) -> None:
        raise StoreUnavailable("the disk is gone")

    monkeypatch.setattr(services.blobs, "look", down)
    assert client.get(f"/render/{'a' * 26}.webp", headers=MINE).status_code == 503
    told = lines()
    assert [line["event"] for line in told] == ["unexpected error", "request", "request failed", "request"]
    assert all((line["request_id"], line["trace_id"]) == ("mine", TRACE) for line in told)
    assert "'NoneType' object is not callable" in told[0]["exception"]


def test_what_goes_on_after_the_reply_says_whose_it_is(
    client: TestClient, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The render is kept in the background, by a task that the request started."""
    path = client.post("/compress?quality=39", content=png(make_picture(40, 40))).json()["links"]["webp"]

    async def down(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(client.app.state.services.cache._objects, "write", down)  # type: ignore[attr-defined]
    assert client.get(path, headers=MINE).status_code == 200
    client.get("/livez")
    failed = [line for line in lines() if line["event"] == "the render cache failed"]
    assert [(line["request_id"], line["trace_id"]) for line in failed] == [("mine", TRACE)]


def test_everything_a_service_says_is_json(small_model: Path, tmp_path: Path) -> None:
    """From the first line to the last, refusals and a client that is no client included."""
    settings = {"SDC_MODEL": str(small_model), "SDC_SIGNING_KEYS": json.dumps({"k1": "hush" * 5}), "SDC_API_KEY": "hush"}
    with serving(tmp_path, tmp_path / "log", **settings) as server:
        httpx.post(f"{server.base}/compress", content=png(make_picture(40, 40)), timeout=60)
        httpx.post(f"{server.base}/compress", content=b"no picture", timeout=60)
        httpx.get(f"{server.base}/render/{'a' * 26}.webp?expires=1&key=k1&sig=hush", timeout=60)
        httpx.get(f"{server.base}/render/{'a' * 26}", timeout=60)
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            broken.sendall(b"no request at all\r\n\r\n")
            assert broken.recv(100).startswith(b"HTTP/1.1 400")
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [told[0]["event"], told[-1]["event"]] == ["starting", "stopped"]
    assert "loopback only" in told[0]["note"]
    assert (told[1]["level"], told[1]["detail"]) == ("warning", "SDC_API_KEY is no setting: is SDC_API_KEYS meant?")
    assert "hush" not in (tmp_path / "log").read_text()
    requests = [line for line in told if line["event"] == "request"]
    assert len({line["request_id"] for line in requests}) == len(requests) >= 4
    assert all({"method", "path", "status", "ms", "bytes", "level", "timestamp"} <= line.keys() for line in requests)
