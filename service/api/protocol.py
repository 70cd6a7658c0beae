"""The server's HTTP/1.1 protocol: uvicorn's, with bounds on what comes before a request is one.

uvicorn by httptools reads heads of any length, for as long as a client cares to send them, before anything of ours hears of the request:
no slot, limit or deadline counts it.  And what it refuses as no HTTP it answers in plain text.  Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.problems import problem
from service.errors import UploadTooSlow

LARGEST_HEAD = 1 << 16
"""bytes of a request's first line and headers together; browsers and proxies keep to 8 to 32 KiB"""
HEAD_S = 20.0
"""a head may take so long, from the connection or, on one that is kept, from its first byte"""
KINDS = {400: "bad-request", 408: UploadTooSlow.kind, 414: "address-too-long", 431: "head-too-long"}
"""of the problems that are told here, by status"""
LINGER_S = 2.0
"""for so long a client that was refused is listened to: closed at once on what it still sends, the connection would lose the reply"""


class BoundedProtocol(HttpToolsProtocol):
    """One connection.  Refuses heads that are too long (431, of an address 414) or too slow (408), and requests for no one host (400)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes: int | None = 0
        """that have come of the head that is being read; None while none is"""
        self._timer: asyncio.TimerHandle | None = None
        self._complaint = "this is no HTTP request"
        self._refused = False

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.url = b""
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # What came with its last bytes is of the body, or of the next: then no head is being read, or one that has just begun.
        if (self._head_bytes or 0) > LARGEST_HEAD and not self._refused:
            status = 414 if len(self.url) > LARGEST_HEAD // 2 else 431
            self._refuse(status, f"a request's head, its address included, has at most {LARGEST_HEAD:,} bytes")

    # -- what the parser says

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._head_bytes = None
        if self.parser.get_http_version() != "1.0" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._complaint = "a request names one host (RFC 9112, section 3.2)"
            raise ValueError(self._complaint)
        if b"#" in self.url:  # the parser drops it, a cache in front may not: then one picture has endlessly many addresses
            self._complaint = "an address is sent without a fragment (RFC 9112, section 3.2)"
            raise ValueError(self._complaint)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    # -- refusals

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._head_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        self._timer = None
        if self._answering:
            self._start_timer()  # it may be read after this reply
        elif self._head_bytes:
            self._refuse(408, f"the request's head took longer than {HEAD_S:.0f} seconds")
        else:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; ``msg`` is uvicorn's."""
        self._refuse(400, self._complaint)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer instead of the app, unless a reply to an earlier request is under way, and close."""
        self._stop_timer()
        self._refused = True
        if self._answering:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()
                return
            self.cycle.disconnected = True  # its own body broke off: the app need not go on
            self.cycle.message_event.set()
        reply = problem(status, KINDS[status], detail)
        headers = [*self.server_state.default_headers, *reply.raw_headers, (b"connection", b"close")]
        head = STATUS_LINE[status] + b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(head + b"\r\n" + bytes(reply.body))
        if self.transport.can_write_eof():  # not by TLS
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)
