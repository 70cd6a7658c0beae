"""The one thread that calls the model, with one batch in hand and one laid out for it.

What can go wrong with a batch is dealt with here: too little memory (halved), an item that poisons its neighbours (each alone), a wrong
number of results.  Knows nothing of lanes, deadlines or who asked.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from service.batching.waiting import Batch, Bucket, Item
from service.errors import DeviceFailed, OutOfMemory, SdcError
from service.telemetry import metrics, traces

Operation = Callable[[Sequence[Any]], Sequence[Any]]
"""takes payloads of one shape, returns one result for each, in order; runs on the device thread"""

Outcome = Any
"""a result, or the exception in its place"""


class DeviceThread:
    """Runs batches one after the other.

    Args:
        operations: by name.
        done: called on the event loop with each batch, what became of each item, and the seconds it took.
        died: called on the event loop when the thread ends of itself, which it never should.
        largest: where to note buckets that ran out of memory, and the batch that fitted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        operations: dict[str, Operation],
        done: Callable[[Batch, list[Outcome], float], None],
        died: Callable[[BaseException], None],
        largest: dict[Bucket, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operations, self._done, self._died, self._largest, self._clock = operations, done, died, largest, clock
        self._loop = asyncio.get_running_loop()
        self._row: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.batches: list[Batch] = []
        """handed over and not yet done, the one in hand first; changed on the event loop only"""
        self.busy_since: float | None = None
        """when the batch in hand was begun"""
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self, batch: Batch) -> None:
        """Hand over a batch."""
        self.batches.append(batch)
        self._row.put(batch)

    async def stop(self) -> None:
        """Finish what was handed over and end the thread."""
        self._row.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while (batch := self._row.get()) is not None:
                self.busy_since = started = self._clock()
                outcomes = self._traced_outcomes(batch) if traces.on() else self._outcomes(batch)
                seconds = self._clock() - started
                self.busy_since = None
                self._tell(self._finished, batch, outcomes, seconds)
        except BaseException as error:
            self._tell(self._died, error)
            raise

    def _finished(self, batch: Batch, outcomes: list[Outcome], seconds: float) -> None:
        self.batches.remove(batch)
        self._done(batch, outcomes, seconds)

    def _tell(self, call: Callable[..., None], *args: Any) -> None:
        """On the loop's own thread; a loop that is closed has nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            pass

    def _traced_outcomes(self, batch: Batch) -> list[Outcome]:
        """``_outcomes``, in a span that is linked to those of the requests."""
        requests, first = [item.trace for item in batch.items], batch.items[0]
        with traces.batch(batch.bucket[0], requests, items=len(batch.items), size=batch.size, pixels=batch.size * first.pixels):
            outcomes = self._outcomes(batch)
            failed = sum(isinstance(outcome, Exception) for outcome in outcomes)
            if failed:
                traces.fail(f"{failed} of {len(outcomes)} items failed")
        return outcomes

    def _outcomes(self, batch: Batch) -> list[Outcome]:
        """What became of each item; an item whose caller left meanwhile is not computed."""
        wanted = [item for item in batch.items if not item.gone]
        computed = iter(self._compute(batch, wanted, batch.size) if wanted else ())
        return [None if item not in wanted else next(computed) for item in batch.items]

    def _compute(self, batch: Batch, items: list[Item], size: int) -> list[Outcome]:
        operation = batch.bucket[0]
        if len(items) == 1:
            size = 1
        outcome = self._try(operation, [item.payload for item in items], size)
        if isinstance(outcome, list):
            return outcome
        # Here the exception's traceback, which keeps the failed batch's tensors alive, is gone.
        if isinstance(outcome, OutOfMemory):
            metrics.OUT_OF_MEMORY.inc()
            if len(items) == 1:
                return [outcome]
            half = (len(items) + 1) // 2
            self._largest[batch.bucket] = half
            return self._compute(batch, items[:half], half) + self._compute(batch, items[half:], half)
        if len(items) == 1:
            return [outcome]
        # One of them may be to blame: each alone is cheaper than halving batches that are padded to one size anyway.
        return [each for item in items for each in self._compute(batch, [item], 1)]

    def _try(self, operation: str, payloads: list[Any], size: int) -> list[Outcome] | SdcError:
        """Results, or the error without its traceback."""
        padded = payloads + [payloads[-1]] * (size - len(payloads))
        try:
            results = self._operations[operation](padded)
            if len(results) != len(padded):
                raise DeviceFailed(f"{operation} returned {len(results)} results for {len(padded)} items")
            return list(results[: len(payloads)])
        except SdcError as error:
            return error.with_traceback(None)
        except Exception as error:
            failed = DeviceFailed(f"the device failed: {type(error).__name__}")
            failed.__cause__ = error.with_traceback(None)
            return failed
