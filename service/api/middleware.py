"""Pure ASGI, because one ``BaseHTTPMiddleware`` would hide a client's disconnect: request ids, metrics, access log, body limit."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache

import structlog
from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import tracing
from service.api.problems import reply_to, unexpected
from service.batching.refusals import stopping
from service.errors import TooManyBytes, UploadTooSlow
from service.telemetry import metrics, traces

TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
"""W3C Trace Context, section 3.2"""
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_GONE = 499
"""what logs and metrics say of a client that hung up before its request was complete (nginx's number); nobody receives it"""
WORKING = {"/compress": "compress", "/compare": "compare", "/decompress": "decompress", "/blobs": "blobs", "/render": "render"}
"""first part of a path that needs a slot, and the operation it is counted as"""
UPLOAD_S, UPLOAD_BYTES_A_SECOND = 20.0, 65536
"""a body may take so long, and a second more for so many bytes that have come"""
QUIET_PATHS = ("/livez", "/readyz", "/metrics")


def header(scope: Scope, name: bytes) -> str | None:
    """A header of the request, its lines put together as RFC 9110 (5.3) says; ``name`` in lower case."""
    found = [value for key, value in scope["headers"] if key == name]
    return b", ".join(found).decode("latin-1") if found else None


def header_of(request: Request, name: str) -> str | None:
    """``header``, for a route."""
    return header(request.scope, name.encode())


def has_body(scope: Scope) -> bool:
    """Whether the request comes with one, as far as its headers say."""
    return header(scope, b"content-length") not in (None, "0") or header(scope, b"transfer-encoding") is not None


def working_operation(path: str) -> str | None:
    """The operation of a path that needs a slot; None for health, metrics, documentation."""
    return WORKING.get("/" + path.split("/", 2)[1] if path.startswith("/") else path)


def negotiated(path: str) -> bool:
    """Whether the reply depends on what the client accepts."""
    return path in ("/compress", "/decompress") or (path.startswith("/render/") and "." not in path)


class HttpMiddleware:
    """Pure ASGI around an app: requests go to ``handle``, everything else (lifespan) straight through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        raise NotImplementedError


class Telling(HttpMiddleware):
    """Gives each request an id, binds it and its trace to the log, counts and times the reply; answers what nobody else has answered.

    A reply that says nothing of caches is not to be stored.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = header(scope, b"x-request-id") or ""
        request_id = offered if SAFE_REQUEST_ID.fullmatch(offered) else os.urandom(16).hex()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        parent = TRACE_PARENT.fullmatch(header(scope, b"traceparent") or "")
        span = None
        if traces.on() and scope["path"] not in QUIET_PATHS:
            span = tracing.begin(scope, request_id, parent and parent.group(), header(scope, b"tracestate"))
        if span or parent:
            structlog.contextvars.bind_contextvars(trace_id=span.trace_id if span else parent and parent.group(1))
        started, status, sent = time.perf_counter(), 0, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                if b"cache-control" not in dict(headers):  # one of the framework's own pages
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # the time of a service that is stopping is over
            if status:
                raise
            await reply_to(stopping())(scope, receive, send_with_id)
        except Exception:
            structlog.get_logger().exception("unexpected error", path=scope["path"])
            if status:  # too late for a reply: break the connection off
                raise
            await unexpected()(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            operation = _operation(scope)
            count, duration = _counters(operation, status)
            count.inc()
            duration.observe(seconds)
            if scope["path"] not in QUIET_PATHS:  # the path alone: a query may hold a signature
                structlog.get_logger().info(
                    "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1), bytes=sent
                )
            if span:
                tracing.end(span, scope, None if status in (0, CLIENT_GONE) else status, sent)


@lru_cache(256)
def _counters(operation: str, status: int) -> tuple[Counter, Histogram]:
    """Looking them up costs more than counting."""
    return metrics.REQUESTS.labels(op=operation, code=str(status)), metrics.REQUEST_SECONDS.labels(op=operation)


def _operation(scope: Mapping[str, object]) -> str:
    """The operation, or else the route's name: no id becomes a label."""
    return working_operation(str(scope["path"])) or str(getattr(scope.get("route"), "name", "none"))


class Varying(HttpMiddleware):
    """Says ``Vary: Accept`` on every reply of an address whose reply depends on it, errors included: what a cache must know it must know
    of all of them."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_varying(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).add_vary_header("Accept")
            await send(message)

        await self.app(scope, receive, send_varying if negotiated(scope["path"]) else send)


class BodyLimit(HttpMiddleware):
    """Refuses a body over the limit: unread where Content-Length says so, else as soon as it has grown too long.

    And one that drips in: whoever uploads holds a slot.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        super().__init__(app)
        self.max_bytes = max_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not has_body(scope):
            await self.app(scope, receive, send)
            return
        error = TooManyBytes(f"the body is larger than {self.max_bytes:,} bytes")
        claimed = header(scope, b"content-length") or ""
        if claimed.isdecimal() and int(claimed) > self.max_bytes:
            await reply_to(error)(scope, receive, send)
            return
        received, complete, loop = 0, False, asyncio.get_running_loop()
        started = loop.time()

        async def receive_counted() -> Message:
            nonlocal received, complete
            if complete:  # whoever asks again waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(started + UPLOAD_S + received / UPLOAD_BYTES_A_SECOND):
                    message = await receive()
            except TimeoutError as late:
                raise UploadTooSlow(f"{received:,} bytes of the body came in {loop.time() - started:.0f} s") from late
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.max_bytes:
                raise error
            return message

        await self.app(scope, receive_counted, send)
