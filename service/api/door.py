"""Who may come in, and who has left: pure ASGI, in front of everything that works.

``Door`` bounds the requests and the bytes of bodies inside, and refuses the next one without waiting for its body.  ``EarlyReply`` sees
to it that a reply to a body nobody read arrives.  ``Presence`` cancels a request whose client hung up.  None looks at what a request means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.middleware import WORKING, HttpMiddleware, has_body, header, working_operation
from service.api.problems import reply_to
from service.errors import Overloaded
from service.telemetry import metrics

LINGER_BYTES, LINGER_S = 16 << 20, 1.0
"""of a body that nobody wants this much is read and forgotten, for so long: a connection that is closed on a client in the middle of its
sentence is reset, and the reply lost.  More than is under way before the client can look up, which is what two kernels hold: 4 MiB to be
sent and 6 MiB received, as Linux comes (measured: a millisecond each MiB; with 1 MiB, 2 % of curl's large uploads never saw their reply)"""
PATIENCE_S = 0.01
"""before somebody watches whether the client hangs up"""


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
        for operation in WORKING.values():
            metrics.INFLIGHT.labels(op=operation)  # there from the start, at 0

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
        if not has_body(scope):
            return 0
        length = header(scope, b"content-length") or "unknown"
        return min(int(length), self.largest_body) if length.isdecimal() else self.largest_body

    async def _refuse(self, reason: str, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        metrics.REJECTED.labels(reason=reason).inc()
        await reply_to(Overloaded(detail, self.retry_after_s()))(scope, receive, send)


class EarlyReply(HttpMiddleware):
    """Closes the connection after a reply that came before the whole body was read, and first lets the client finish its sentence."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not has_body(scope):
            await self.app(scope, receive, send)
            return
        complete = False
        waits = header(scope, b"expect") is not None
        """the client, to be told to go on"""

        async def receive_noticing() -> Message:
            nonlocal complete, waits
            waits = False
            message = await receive()
            complete = complete or message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def forget_body() -> None:
            left = LINGER_BYTES
            while left > 0 and not complete:
                left -= len((await receive_noticing()).get("body", b""))

        async def send_and_linger(message: Message) -> None:
            if complete or (message["type"] == "http.response.body" and message.get("more_body", False)):
                await send(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            else:
                await send({**message, "more_body": True})  # the client has it all: its length was told
                if not waits:  # or else it will not come
                    with suppress(TimeoutError):
                        await asyncio.wait_for(forget_body(), LINGER_S)
                await send({"type": "http.response.body", "body": b""})

        await self.app(scope, receive_noticing, send_and_linger)


class Presence(HttpMiddleware):
    """Cancels a request whose client hangs up before the reply has begun.  In the first ``PATIENCE_S`` nobody watches.

    A DELETE is finished all the same: half of one would leave what its sender believes deleted.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE":
            await self.app(scope, receive, send)
            return
        complete, gone = asyncio.Event(), asyncio.Event()
        begun, empty = False, not has_body(scope)
        if empty:  # few routes read what is not there
            complete.set()
        work, watcher = asyncio.current_task(), None
        assert work is not None

        async def receive_noticing() -> Message:
            nonlocal empty
            if empty:  # told once; the server's own word for it is the watcher's
                empty = False
                return {"type": "http.request", "body": b"", "more_body": False}
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
            if not begun:
                work.cancel()

        def start_watching() -> None:
            nonlocal watcher
            watcher = asyncio.get_running_loop().create_task(watch())

        timer = asyncio.get_running_loop().call_later(PATIENCE_S, start_watching)
        try:
            await self.app(scope, receive_noticing, send_noticing)
        except asyncio.CancelledError:
            if gone.is_set() and not begun and not work.uncancel():
                raise ClientDisconnect from None
            raise
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()
