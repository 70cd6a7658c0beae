"""Threads for the work on both sides of the device: opening, coding, writing.  Knows nothing of what is computed.

Threads, because Pillow lets go of the interpreter for most of its time; what does not, coding, is done in processes for which they wait
(``service.codec.coders``).
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from service.batching.refusals import missed, stopping
from service.batching.replies import answer, tell

Result = TypeVar("Result")


@dataclass(order=True)
class _Turn:
    """A caller's place in the row: the earliest ``due`` goes next."""

    due: float
    number: int
    given: asyncio.Future[None] = field(compare=False)


class CpuPool:
    """Runs calls on threads, those that finish a picture before those that begin one.

    Everything but the calls happens on the event loop, so that nothing needs a lock.

    Args:
        threads: calls that run at once.
        clock: monotonic seconds.
    """

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self._clock = clock
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="cpu")
        self._free = threads
        self._closed = False
        self._row: list[_Turn] = []
        self._numbers = itertools.count()

    async def run(self, call: Callable[[], Result], patience_s: float = 0.0, deadline: float = math.inf) -> tuple[Result, float]:
        """Run a call and say how many seconds it took, waiting not counted.

        Args:
            call: takes nothing; runs on a thread.
            patience_s: calls are taken in the order of when they came plus this: they may be overtaken for so long and no longer.
            deadline: on the clock; a call whose turn comes later is not made.

        Raises DeadlineMissed, Overloaded when the pool is closed, and whatever the call raises.  Cancelling the caller gives its place in
        the row away; a call that has begun is finished, and only then is its thread given to the next.
        """
        await self._turn(patience_s)
        if self._closed:
            self._release()
            raise stopping()
        if self._clock() > deadline:
            self._release()
            raise missed("the deadline passed before the picture was finished")

        def timed() -> tuple[Result, float]:
            started = self._clock()
            return call(), self._clock() - started

        loop = asyncio.get_running_loop()
        reply: asyncio.Future[tuple[Result, float]] = loop.create_future()

        # with the caller's context, so that what is logged there says of which request it is
        future = self._executor.submit(contextvars.copy_context().run, timed)
        future.add_done_callback(partial(tell, loop, self._done, reply))
        return await reply

    def _done(self, reply: asyncio.Future[tuple[Result, float]], future: Future[tuple[Result, float]]) -> None:
        """The thread to the next, the result to the caller, in one turn of the loop: ``wrap_future`` would take another."""
        self._release()
        answer(reply, future.exception() or future.result())

    async def _turn(self, patience_s: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = _Turn(self._clock() + patience_s, next(self._numbers), asyncio.get_running_loop().create_future())
        heapq.heappush(self._row, turn)
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled():
                self._release()  # the turn came in the same moment: to the next
            raise

    def _release(self) -> None:
        """A thread is free: to the first in the row who is still there."""
        while self._row:
            turn = heapq.heappop(self._row)
            if not turn.given.done():
                turn.given.set_result(None)
                return
        self._free += 1

    async def close(self) -> None:
        """Finish what has begun, refuse the rest."""
        self._closed = True
        await asyncio.to_thread(self._executor.shutdown)
