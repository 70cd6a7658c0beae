import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from service.api.cors import Cors

PAGE = "https://shop.example"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"vary", b"Accept")]})
    await send({"type": "http.response.body", "body": b"picture"})


def ask(origins: list[str], method: str = "GET", **headers: str) -> tuple[int, Headers]:
    sent: list[Message] = []

    async def main() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError("nothing is read")

        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await Cors(app, origins)({"type": "http", "method": method, "path": "/", "headers": raw}, receive, send)

    asyncio.run(main())
    return sent[0]["status"], Headers(raw=sent[0]["headers"])


@pytest.mark.parametrize("origin", [None, PAGE])
def test_everybody(origin: str | None) -> None:
    """Also who does not ask: a cache gives the same reply to one who does."""
    _, headers = ask(["*"], **({"origin": origin} if origin else {}))
    assert headers["access-control-allow-origin"] == "*"
    assert "Server-Timing" in headers["access-control-expose-headers"]
    assert headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("origin", "allowed"), [(PAGE, PAGE), ("https://other.example", None), ("https://shop.example:8443", None), (None, None)]
)
def test_some(origin: str | None, allowed: str | None) -> None:
    _, headers = ask([PAGE], **({"origin": origin} if origin else {}))
    assert headers.get("access-control-allow-origin") == allowed
    assert headers["vary"] == "Accept, Origin"


def test_preflight() -> None:
    asked = {"origin": PAGE, "access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    status, headers = ask([PAGE], "OPTIONS", **asked)
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    assert "Authorization" in headers["access-control-allow-headers"]
    assert headers["vary"] == "Origin"
    status, headers = ask(["https://other.example"], "OPTIONS", **asked)
    assert status == 204
    assert "access-control-allow-origin" not in headers
    assert "access-control-allow-methods" not in headers


def test_options_that_is_no_preflight_goes_to_the_application() -> None:
    assert ask(["*"], "OPTIONS")[0] == 200
