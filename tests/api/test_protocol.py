"""Raw bytes against a real server: what comes before a request is one."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api import protocol
from service.api.protocol import LARGEST_HEAD, BoundedProtocol

GET = b"GET /here HTTP/1.1\r\nHost: a\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how many bytes of body came."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    content = f"{scope['path']} {length}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(content)).encode())]})
    await send({"type": "http.response.body", "body": content})


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def listening() -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Connection:
        reader, writer = await asyncio.open_connection(host, port)
        opened.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in opened:
            writer.close()
        server.should_exit = True
        await serving


def exchange(*parts: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send, and read until the server has no more to say."""

    async def main() -> bytes:
        async with listening() as connect:
            reader, writer = await connect()
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            return await asyncio.wait_for(reader.read(), 30)

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]) if status else 0, {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def told(reply: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and kind of a problem."""
    status, headers, body = reply
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    told: dict[str, Any] = json.loads(body)
    assert told["status"] == status
    return status, told["type"].removeprefix("urn:sdc:problem:")


def test_an_ordinary_request() -> None:
    assert exchange(GET + b"Connection: close\r\n\r\n")[::2] == (200, b"/here 0")


def test_a_head_as_long_as_may_be() -> None:
    filling = b"X: " + b"x" * (LARGEST_HEAD - len(GET) - len(b"X: \r\nConnection: close\r\n\r\n")) + b"\r\n"
    assert exchange(GET + filling + b"Connection: close\r\n\r\n")[0] == 200


def test_a_body_is_no_head() -> None:
    post = GET.replace(b"GET", b"POST") + b"Connection: close\r\nContent-Length: 1000000\r\n\r\n"
    assert exchange(post + bytes(1_000_000))[::2] == (200, b"/here 1000000")
    assert exchange(post, *[bytes(100_000)] * 10)[::2] == (200, b"/here 1000000")


@pytest.mark.parametrize("endless", [b"a:b\r\n" * 200_000, b"A: " + b"b" * 1_000_000], ids=["many lines", "one line"])
def test_a_head_without_end(endless: bytes) -> None:
    assert told(exchange(GET + endless)) == (431, "head-too-long")


def test_an_address_without_end() -> None:
    assert told(exchange(b"GET /" + b"a" * 1_000_000)) == (414, "address-too-long")


def test_a_head_without_end_behind_an_ordinary_request() -> None:
    async def main() -> tuple[bytes, bytes]:
        async with listening() as connect:
            reader, writer = await connect()
            writer.write(GET + b"\r\n")
            first = await reader.readuntil(b"/here 0")
            for _ in range(20):
                writer.write(b"a:b\r\n" * 4000)
            return first, await asyncio.wait_for(reader.read(), 30)

    first, second = asyncio.run(main())
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        GET + b"Host: b\r\n\r\n",
        GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\0\1\2\r\n\r\n",
        b"GET /here#there HTTP/1.1\r\nHost: a\r\n\r\n",
        GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nno length\r\n",
        GET.replace(b"GET", b"POST") + b"Transfer-Encoding: identity\r\n\r\n",
    ],
)
def test_what_is_no_request(request_: bytes) -> None:
    assert told(exchange(request_)) == (400, "bad-request")


def test_no_reply_is_given_to_another_request() -> None:
    """The app has not replied to the first when the second turns out to be none: a 400 now would be taken for the first one's."""
    for second in (b"\0\1\2\r\n\r\n", GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"):
        status, _, body = exchange(GET + b"\r\n" + second)
        assert (status, body) in ((0, b""), (200, b"/here 0"))


def test_http_1_0_needs_no_host() -> None:
    assert exchange(b"GET /here HTTP/1.0\r\n\r\n")[::2] == (200, b"/here 0")


def test_a_slow_head_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    assert told(exchange(GET)) == (408, "upload-too-slow")


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    assert exchange() == (0, {}, b"")


def test_a_kept_connection_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)

    async def main() -> bytes:
        async with listening() as connect:
            reader, writer = await connect()
            writer.write(GET + b"\r\n")
            await reader.readuntil(b"/here 0")
            await asyncio.sleep(0.6)
            writer.write(GET + b"\r\n")
            await reader.readuntil(b"/here 0")
            writer.write(GET)
            return await asyncio.wait_for(reader.read(), 30)

    assert asyncio.run(main()).startswith(b"HTTP/1.1 408")
