"""Who may come in, and who has left: pure ASGI, in front of everything that works.

``Door`` bounds the requests and the bytes of bodies inside, and refuses the next one before its body is read.  ``Presence`` cancels a
request whose client hung up.  Neither looks at what a request means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware import HttpMiddleware
from service.api.problems import reply_to
from service.errors import Overloaded
from service.telemetry import metrics

WORKING = {"/compress": "compress", "/decompress": "decompress", "/blobs": "blobs", "/render": "render"}
"""first part of a path that needs a slot, and the operation it is counted as"""


def working_operation(path: str) -> str | None:
    """The operation of a path that needs a slot; None for health, metrics, documentation."""
    return WORKING.get("/" + path.split("/", 2)[1] if path.startswith("/") else path)


class Door(HttpMiddleware):
    """Lets in ``slots`` requests and ``max_bytes`` of bodies at once; answers the others 503, with the time to come back.

    Args:
        app: what is behind the door.
        slots: requests inside.
        max_bytes: of bodies inside; a chunked body counts as ``largest_body``.  One alone is always let in.
        largest_body: bytes.
        retry_after_s: says when it is worth coming back.
    """

    def __init__(self, app: ASGIApp, slots: int, max_bytes: int, largest_body: int, retry_after_s: Callable[[], int]) -> None:
        super().__init__(app)
        self.slots, self.max_bytes, self.largest_body, self.retry_after_s = slots, max_bytes, largest_body, retry_after_s
        self.inside = self.bytes_inside = 0
        metrics.SLOTS.set(slots)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = working_operation(scope["path"])
        if operation is None:
            await self.app(scope, receive, send)
            return
        size = self._claimed(scope)
        if self.inside >= self.slots:
            await self._refuse("slots", "too many requests are at work or waiting", scope, receive, send)
            return
        if self.bytes_inside and self.bytes_inside + size > self.max_bytes:
            await self._refuse("bodies", "too many bytes of bodies are at work or waiting", scope, receive, send)
            return
        self.inside += 1
        self.bytes_inside += size
        metrics.INFLIGHT.labels(op=operation).inc()
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
            self.bytes_inside -= size
            metrics.INFLIGHT.labels(op=operation).dec()

    def _claimed(self, scope: Scope) -> int:
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers:
            return self.largest_body
        length = headers.get("content-length", "0")
        return min(int(length), self.largest_body) if length.isdecimal() else self.largest_body

    async def _refuse(self, reason: str, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        metrics.REJECTED.labels(reason=reason).inc()
        reply = reply_to(Overloaded(detail, self.retry_after_s()))
        if self._claimed(scope):
            reply.headers["Connection"] = "close"  # the body was not read
        await reply(scope, receive, send)


class Presence(HttpMiddleware):
    """Runs the app in a task of its own and cancels it when the client hangs up before the reply has begun."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = asyncio.Event()
        gone = asyncio.Event()
        begun = False

        async def receive_noticing() -> Message:
            if complete.is_set():  # whoever asks again after the body wants to know of the disconnect
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
                complete.set()
            elif not message.get("more_body", False):
                complete.set()
            return message

        async def send_noticing(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def watch() -> None:
            await complete.wait()
            while not gone.is_set():
                if (await receive())["type"] == "http.disconnect":
                    gone.set()

        work = asyncio.ensure_future(self.app(scope, receive_noticing, send_noticing))
        watcher = asyncio.create_task(watch())
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not begun:
                raise ClientDisconnect
            await work
        finally:
            watcher.cancel()
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work
