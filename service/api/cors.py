"""Cross-origin requests (the Fetch standard, section 3.2).

Ours and not Starlette's: that one says who may read a reply only to requests that ask, and a cache then gives the reply of one who did
not ask to one who does.  Knows nothing of what is asked.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware import HttpMiddleware

METHODS = "GET, HEAD, POST, DELETE"
REQUEST_HEADERS = "Accept, Authorization, Content-Type, If-None-Match, SDC-Deadline-Ms, X-Request-Id"
REPLY_HEADERS = "Cache-Status, Content-Location, ETag, Location, Retry-After, SDC-Id, Server-Timing, X-Request-Id"
PREFLIGHT_S = 86400


class Cors(HttpMiddleware):
    """Lets pages of these origins read every reply; ``*`` is everybody, without their cookies."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(app)
        self.everybody, self.origins = "*" in origins, frozenset(origins)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        origin = asked.get("origin")
        allowed = "*" if self.everybody else origin if origin in self.origins else None

        def tell(headers: MutableHeaders) -> None:
            if allowed:
                headers["Access-Control-Allow-Origin"] = allowed
                headers["Access-Control-Expose-Headers"] = REPLY_HEADERS
            if not self.everybody:
                headers.add_vary_header("Origin")

        async def send_telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                tell(MutableHeaders(scope=message))
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            reply = Response(None, 204, {"Cache-Control": "no-store"})
            if allowed:
                reply.headers["Access-Control-Allow-Methods"] = METHODS
                reply.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
                reply.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
            await reply(scope, receive, send_telling)
            return
        await self.app(scope, receive, send_telling)
