"""Requests wait in a bucket for each (operation, shape); one dispatcher feeds one device thread.

A batch closes when it is full or the device is free, whichever comes first: no timer, no polling.  The bucket whose first request is
oldest goes next, so a rare shape is not starved by a common one; a request in the bulk lane counts as younger than it is, so that it
yields to interactive ones but never for long.  Batches run at two sizes only, 1 and ``max_batch`` (the rest is
padding), so that the company a request keeps does not choose among many kernels and change its pixels.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import DeviceFailed, Overloaded, SdcError
from service.telemetry import metrics

Lane = Literal["interactive", "bulk"]
BULK_HANDICAP_S = 2.0
"""a bulk request waits behind interactive ones that came up to this much later"""

Operation = Callable[[Sequence[Any]], Sequence[Any]]
"""takes items of one shape, returns one result for each, in order; runs on the device thread"""


@dataclass(eq=False)
class Request:
    item: Any
    cost: int
    future: asyncio.Future[Any]
    lane: Lane
    arrived: float

    @property
    def rank(self) -> float:
        """Lowest goes first."""
        return self.arrived + (BULK_HANDICAP_S if self.lane == "bulk" else 0.0)


class Batcher:
    """Runs operations in batches on a thread of its own.

    Args:
        operations: by name.
        max_batch: the larger of the two batch sizes.
        max_queued_cost: requests beyond this sum of costs (pixels) are refused; one alone is always taken.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        operations: dict[str, Operation],
        max_batch: int,
        max_queued_cost: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._max_batch = max_batch
        self._max_queued_cost = max_queued_cost
        self._buckets: dict[tuple[str, Lane, Hashable], deque[Request]] = {}
        self._queued_cost = 0
        self._seconds_per_cost = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._running = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def alive(self) -> bool:
        """Whether the dispatcher still runs."""
        return not self._dispatcher.done()

    @property
    def closing(self) -> bool:
        return self._closing

    async def submit(self, operation: str, shape: Hashable, item: Any, cost: int, lane: Lane = "interactive") -> Any:
        """Queue one item and wait for its result.

        Raises Overloaded when the queue is full or closing, and whatever the operation raised.  Cancelling the caller takes the item
        out of the queue if it has not reached the device, and leaves its neighbours alone.
        """
        if self._closing:
            raise Overloaded("the service is stopping", retry_after_s=5)
        if self._queued_cost and self._queued_cost + cost > self._max_queued_cost:
            metrics.REJECTED.labels(reason="queue-full").inc()
            raise Overloaded("the queue is full", retry_after_s=self.predicted_wait_s())
        request = Request(item, cost, asyncio.get_running_loop().create_future(), lane, self._clock())
        self._buckets.setdefault((operation, lane, shape), deque()).append(request)
        self._change_queued(operation, request, +1)
        self._wake.set()
        try:
            return await request.future
        except asyncio.CancelledError:
            waiting = self._buckets.get((operation, lane, shape), ())
            if request in waiting:
                self._buckets[operation, lane, shape].remove(request)
                self._change_queued(operation, request, -1)
            raise

    def predicted_wait_s(self) -> int:
        """Whole seconds until what is queued now will be done, from measured device time; at least 1."""
        return max(1, math.ceil(self._queued_cost * self._seconds_per_cost))

    async def close(self) -> None:
        """Refuse new requests, finish the queued ones, stop the thread.  Safe to call twice."""
        self._closing = True
        self._wake.set()
        with suppress(asyncio.CancelledError):
            await self._dispatcher
        await asyncio.to_thread(self._thread.shutdown)

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                taken = self._take()
                if taken is None:
                    if self._closing:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                operation, batch = taken
                size = 1 if len(batch) == 1 else self._max_batch
                items = [request.item for request in batch] + [batch[-1].item] * (size - len(batch))
                metrics.BATCH_SIZE.labels(op=operation).observe(len(batch))
                started = self._clock()
                try:
                    results = await loop.run_in_executor(self._thread, self._operations[operation], items)
                    if len(results) != len(items):
                        raise DeviceFailed(f"{operation} returned {len(results)} results for {len(items)} items")
                except Exception as error:  # one batch fails; the dispatcher lives
                    self._fail(batch, error)
                else:
                    for request, result in zip(batch, results, strict=False):
                        if not request.future.done():
                            request.future.set_result(result)
                seconds = self._clock() - started
                self._learn(seconds, sum(request.cost for request in batch))
                metrics.STAGE_SECONDS.labels(stage=f"device-{operation}").observe(seconds)
        finally:
            self._closing = True
            for (operation, _, _), waiting in self._buckets.items():
                for request in waiting:
                    self._change_queued(operation, request, -1)
                self._fail(waiting, Overloaded("the service is stopping", retry_after_s=5))
            self._buckets.clear()

    def _take(self) -> tuple[str, list[Request]] | None:
        """The next batch: from the bucket with the oldest request, cancelled ones dropped."""
        for (operation, _, _), waiting in self._buckets.items():
            while waiting and waiting[0].future.done():
                self._change_queued(operation, waiting.popleft(), -1)
        self._buckets = {key: waiting for key, waiting in self._buckets.items() if waiting}
        if not self._buckets:
            return None
        key = min(self._buckets, key=lambda bucket: self._buckets[bucket][0].rank)
        operation, waiting = key[0], self._buckets[key]
        batch: list[Request] = []
        # Padding a batch that is less than half full would cost more than running its items one by one.
        most = self._max_batch if 2 * len(waiting) > self._max_batch else 1
        while waiting and len(batch) < most:
            request = waiting.popleft()
            self._change_queued(operation, request, -1)
            if not request.future.done():
                metrics.QUEUE_WAIT.labels(op=operation, lane=request.lane).observe(self._clock() - request.arrived)
                batch.append(request)
        return (operation, batch) if batch else self._take()

    def _change_queued(self, operation: str, request: Request, sign: int) -> None:
        self._queued_cost += sign * request.cost
        metrics.QUEUE_DEPTH.labels(op=operation, lane=request.lane).inc(sign)

    def _learn(self, seconds: float, cost: int) -> None:
        measured = seconds / max(cost, 1)
        self._seconds_per_cost = measured if not self._seconds_per_cost else 0.8 * self._seconds_per_cost + 0.2 * measured

    @staticmethod
    def _fail(batch: Sequence[Request] | deque[Request], error: Exception) -> None:
        reply = error if isinstance(error, SdcError) else DeviceFailed(f"the device failed: {type(error).__name__}")
        reply.__cause__ = None if reply is error else error
        for request in batch:
            if not request.future.done():
                request.future.set_exception(reply)
