"""The one thread that calls the model, with one batch in hand and one laid out for it, and another that waits for what comes of it.

    start -> row -> thread "device": begins -> row -> thread "results": ends, tells the event loop

A device that works by itself, a GPU, is given the batch that is laid out while it computes the one in hand, and is never without work
between two.  One that works in the call, a processor, begins the next when that returns.
What can go wrong with a batch is dealt with here: too little memory (halved), an item that poisons its neighbours (each alone), a wrong
number of results.  A device that is lost ends the threads.  Knows nothing of lanes, deadlines or who asked.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from service.batching.replies import tell
from service.batching.waiting import Batch, Bucket, Item
from service.errors import DeviceFailed, DeviceLost, OutOfMemory, SdcError
from service.telemetry import metrics, traces

Ending = Callable[[], Sequence[Any]]
"""waits for a batch; returns one result for each of its payloads, in order"""

Operation = Callable[[Sequence[Any]], Sequence[Any] | Ending]
"""takes payloads of one shape; returns their results, or, where the device works by itself, what waits for them"""

Outcome = Any
"""a result, or the exception in its place"""

_Attempt = Callable[[], Sequence[Any] | SdcError]
"""waits for what the device was given"""

Given = TypeVar("Given")


class _Begun(NamedTuple):
    """A batch that the device was given."""

    batch: Batch
    wanted: list[Item]
    """those whose caller had not left"""
    since: float
    attempt: _Attempt | None
    """None where nothing was wanted"""


class DeviceThread:
    """Runs batches one after the other.

    Args:
        operations: by name.
        done: called on the event loop with each batch, what became of each item, and the seconds it took.
        died: called on the event loop when a thread ends of itself, which it never should.
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
        self._begun: queue.SimpleQueue[_Begun | BaseException | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        """held by whoever calls an operation: what failed is tried again by the thread that saw it fail"""
        self._threads = [
            threading.Thread(target=self._begin_all, name="device", daemon=True),
            threading.Thread(target=self._end_all, name="results", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def start(self, batch: Batch) -> None:
        """Hand over a batch."""
        self._row.put(batch)

    async def stop(self) -> None:
        """Finish what was handed over and end the threads."""
        self._row.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _begin_all(self) -> None:
        try:
            while (batch := self._row.get()) is not None:
                self._begun.put(self._begin(batch))
        except BaseException as error:
            self._begun.put(error)  # told after what was begun before
            raise
        self._begun.put(None)

    def _begin(self, batch: Batch) -> _Begun:
        """Give the device a batch; an item whose caller left meanwhile is not computed."""
        since, wanted = self._clock(), [item for item in batch.items if not item.gone]
        return _Begun(batch, wanted, since, self._attempt(batch, wanted, batch.size) if wanted else None)

    def _end_all(self) -> None:
        ended = -math.inf
        try:
            while (begun := self._begun.get()) is not None:
                if isinstance(begun, BaseException):
                    tell(self._loop, self._died, begun)
                    return
                since = max(begun.since, ended)  # until then it waited for the one before
                outcomes = self._traced_outcomes(begun, since) if traces.on() else self._outcomes(begun)
                ended = self._clock()
                tell(self._loop, self._done, begun.batch, outcomes, ended - since)
                lost = next((outcome for outcome in outcomes if isinstance(outcome, DeviceLost)), None)
                if lost is not None:
                    self._row.put(None)
                    tell(self._loop, self._died, lost)
                    return
        except BaseException as error:
            self._row.put(None)
            tell(self._loop, self._died, error)
            raise

    def _traced_outcomes(self, begun: _Begun, since: float) -> list[Outcome]:
        """``_outcomes``, in a span that is linked to those of the requests."""
        batch = begun.batch
        requests, pixels = [item.trace for item in batch.items], batch.size * batch.items[0].pixels
        began_s_ago = self._clock() - since
        with traces.batch(batch.bucket[0], requests, began_s_ago, items=len(batch.items), size=batch.size, pixels=pixels):
            outcomes = self._outcomes(begun)
            failed = sum(isinstance(outcome, Exception) for outcome in outcomes)
            if failed:
                traces.fail(f"{failed} of {len(outcomes)} items failed")
        return outcomes

    def _outcomes(self, begun: _Begun) -> list[Outcome]:
        """What became of each item."""
        batch, wanted = begun.batch, begun.wanted
        computed = iter(() if begun.attempt is None else self._settled(batch, wanted, begun.attempt))
        return [None if item not in wanted else next(computed) for item in batch.items]

    def _compute(self, batch: Batch, items: list[Item], size: int) -> list[Outcome]:
        return self._settled(batch, items, self._attempt(batch, items, size))

    def _attempt(self, batch: Batch, items: list[Item], size: int) -> _Attempt:
        """Give the device items of a batch, with what fills it up to ``size``, unless it is one."""
        operation, payloads = batch.bucket[0], [item.payload for item in items]
        padded = payloads + [payloads[-1]] * (size - len(payloads) if len(payloads) > 1 else 0)
        with self._turn:
            given = _or_error(lambda: self._operations[operation](padded))
        if isinstance(given, SdcError):
            return lambda: given
        return lambda: _checked(operation, len(padded), results_of(given))

    def _settled(self, batch: Batch, items: list[Item], attempt: _Attempt) -> list[Outcome]:
        """The results of items, or what became of them in smaller batches."""
        outcome = _or_error(attempt)
        if not isinstance(outcome, SdcError):
            return list(outcome[: len(items)])
        if isinstance(outcome, DeviceLost):
            return [outcome] * len(items)
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


def results_of(given: Sequence[Any] | Ending) -> Sequence[Any]:
    """What an operation came to, waited for where that is needed."""
    return given() if callable(given) else given


def _or_error(call: Callable[[], Given]) -> Given | SdcError:
    """What a call gives, or the error that it raises, without its traceback and those of what it came of."""
    try:
        return call()
    except SdcError as error:
        failed = error
    except Exception as error:
        failed = DeviceFailed(f"the device failed: {type(error).__name__}")
        failed.__cause__ = error.with_traceback(None)
        error.__context__ = None
    failed.__context__ = None
    return failed.with_traceback(None)


def _checked(operation: str, size: int, results: Sequence[Any]) -> Sequence[Any]:
    """Results, one for each item; raises DeviceFailed."""
    if len(results) != size:
        raise DeviceFailed(f"{operation} returned {len(results)} results for {size} items")
    return results
