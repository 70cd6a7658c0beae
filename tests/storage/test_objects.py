"""What a store does that is not as it should be: it hides conditions, answers late, fails for a moment or for long."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from prometheus_client import REGISTRY

from service.errors import BadParameter, StoreTooSlow, StoreUnavailable
from service.storage.breaker import FAILURES
from service.storage.objects import Objects, address_of, open_store


def run(call: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(call())  # type: ignore[arg-type]


def errors(op: str) -> float:
    return REGISTRY.get_sample_value("sdc_store_errors_total", {"op": op}) or 0


def test_a_probe_leaves_nothing(objects: Objects) -> None:
    async def check() -> None:
        await objects.probe()
        assert await objects.list("") == []

    run(check)


@pytest.mark.parametrize("store_url", ["file", "memory", "s3"], indirect=True)
def test_a_probe_finds_conditional_puts(objects: Objects) -> None:
    run(objects.probe)
    assert objects.first_write_wins


@pytest.mark.system
@pytest.mark.parametrize("store_url", ["swift"], indirect=True)
def test_a_probe_finds_that_they_are_refused(objects: Objects) -> None:
    run(objects.probe)
    assert not objects.first_write_wins


@pytest.mark.parametrize("how", ["ignored", "refused"])
def test_without_conditional_puts_what_stands_is_left_standing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put

    def put(store: object, path: str, content: bytes, mode: str | None = None) -> object:
        if mode == "create" and how == "refused":
            raise GenericError("501 Not Implemented")
        return real(store, path, content)  # type: ignore[call-overload]

    monkeypatch.setattr(obstore, "put", put)
    objects = open_store("memory:///")

    async def check() -> None:
        await objects.probe()
        assert not objects.first_write_wins
        assert await objects.create("a", b"first")
        assert not await objects.create("a", b"second")
        assert await objects.read("a") == b"first"
        won = await asyncio.gather(*(objects.create("b", bytes([n])) for n in range(20)))
        assert await objects.read("b") in {bytes([n]) for n in range(20) if won[n]}

    run(check)


def test_a_probe_of_a_store_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GenericError("read only")

    monkeypatch.setattr(obstore, "put", refuse)
    with pytest.raises(StoreUnavailable):
        run(open_store("memory:///").probe)


def test_age_is_told_in_seconds(objects: Objects) -> None:
    async def check() -> None:
        assert await objects.age_s("a") is None
        await objects.write("a", b"x")
        age = await objects.age_s("a")
        assert age is not None and -30 < age < 30

    run(check)


class Moody(BaseHTTPRequestHandler):
    """An S3 server that does as it is told: a status, or nothing for so many seconds."""

    plan: list[int | float]
    asked: list[str]
    wake: threading.Event
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        type(self).asked.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.plan.pop(0) if self.plan else 200
        if isinstance(what, float):
            self.wake.wait(what)
            what = 200
        self.send_response(what)
        for name, value in {"Content-Length": "4", "ETag": '"x"', "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"blob")

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def moody(monkeypatch: pytest.MonkeyPatch, *plan: int | float) -> Iterator[type[Moody]]:
    handler = type("Handler", (Moody,), {"plan": list(plan), "asked": [], "wake": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "x")
    try:
        yield handler
    finally:
        handler.wake.set()
        server.shutdown()
        server.server_close()


def test_a_moment_of_failure_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with moody(monkeypatch, 503, 500) as server:

        async def check() -> None:
            before = errors("read")
            assert await open_store("s3://bucket").read("a") == b"blob"
            assert len(server.asked) == 3
            assert errors("read") == before

        run(check)


def test_a_request_that_hangs_is_made_again_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with moody(monkeypatch, 60.0) as server:

        async def check() -> None:
            assert await open_store("s3://bucket", timeout_s=6).read("a") == b"blob"
            assert len(server.asked) == 2

        run(check)


def test_a_store_that_never_answers_is_too_slow_and_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with moody(monkeypatch, *[60.0] * 100) as server:

        async def check() -> None:
            objects, before = open_store("s3://bucket", timeout_s=0.2), errors("read")
            for _ in range(FAILURES):
                with pytest.raises((StoreTooSlow, StoreUnavailable)):
                    await objects.read("a")
            asked = len(server.asked)
            assert REGISTRY.get_sample_value("sdc_store_open", {"access": "read"}) == 1
            with pytest.raises(StoreUnavailable, match="left alone"):
                await objects.read("a")
            assert errors("read") == before + FAILURES + 1
            assert len(server.asked) <= asked + FAILURES  # threads that were given up may try once more
            assert REGISTRY.get_sample_value("sdc_store_open", {"access": "write"}) == 0

        run(check)


def test_a_store_that_can_only_be_read_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket over its quota answers puts with 507."""
    with moody(monkeypatch) as server:

        async def check() -> None:
            objects = open_store("s3://bucket")
            for _ in range(FAILURES):
                server.plan[:] = [507] * 4
                with pytest.raises(StoreUnavailable):
                    await objects.write("a", b"x")
            with pytest.raises(StoreUnavailable, match="left alone"):
                await objects.write("a", b"x")
            server.plan.clear()
            assert await objects.read("a") == b"blob"

        run(check)


def test_credentials_that_are_refused_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with moody(monkeypatch, 403), pytest.raises(StoreUnavailable, match="credentials"):
        run(lambda: open_store("s3://bucket").read("a"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file://store-here", "three slashes"),
        ("file://./data/store", "three slashes"),
        ("file:///tmp/a#b", "%23"),
        ("file:///tmp/a?b", "%3F"),
        ("s3:/bucket", "://"),
    ],
)
def test_an_address_of_another_folder_is_not_taken_for_one(url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadParameter, match=told):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["store", "./deep/a: b", "what? #1", os.fsdecode(b"caf\xe9")])
def test_a_folder_is_named_by_its_path_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate((name, str(tmp_path / name), address_of(name))):
        run(lambda place=place, number=number: open_store(place).write(str(number), b"x"))
    assert {path.name for path in (tmp_path / name).iterdir()} == {"0", "1", "2"}
