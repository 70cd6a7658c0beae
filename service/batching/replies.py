"""How threads tell the event loop what came of a call, and callers what became of theirs.  Knows nothing of what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def tell(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: Any) -> None:
    """Make a call on the loop's own thread; a loop that is closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        pass


def answer(reply: asyncio.Future[Any], outcome: object) -> None:
    """Give the caller a result, or raise an exception there; nothing where the caller left."""
    if reply.done():
        return
    if isinstance(outcome, BaseException):
        reply.set_exception(outcome)
    else:
        reply.set_result(outcome)
