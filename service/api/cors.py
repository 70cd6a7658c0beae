"""Cross-origin requests (the Fetch standard, section 3.2).

Ours and not Starlette's: that one says who may read a reply only to requests that ask, and a cache then gives the reply of one who did
not ask to one who does.  Knows nothing of what is asked.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware import HttpMiddleware, header

METHODS = "GET, HEAD, POST, DELETE"
REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, If-Match, If-None-Match, If-Range, Range, SDC-Deadline-Ms, X-Request-Id, traceparent"
)
REPLY_HEADERS = (
    b"Cache-Status, Content-Location, Content-Range, ETag, Location, Retry-After, SDC-Id, SDC-Variant, Server-Timing, X-Request-Id"
)
PREFLIGHT_S = 86400


class Cors(HttpMiddleware):
    """Lets pages of these origins read every reply; ``*`` is everybody, without their cookies."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(app)
        self.everybody, self.origins = "*" in origins, frozenset(origins)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin")
        allowed = "*" if self.everybody else origin if origin in self.origins else None

        async def send_telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                if allowed:
                    told = (b"access-control-allow-origin", allowed.encode("latin-1")), (b"access-control-expose-headers", REPLY_HEADERS)
                    message["headers"] = [*message["headers"], *told]
                if not self.everybody:
                    MutableHeaders(scope=message).add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            reply = Response(None, 204, {"Cache-Control": "no-store"})
            if allowed:
                reply.headers["Access-Control-Allow-Methods"] = METHODS
                reply.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
                reply.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
            await reply(scope, receive, send_telling)
            return
        await self.app(scope, receive, send_telling)
